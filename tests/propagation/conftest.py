"""Reference values of the theory."""

import json

import pytest


@pytest.fixture(scope="session")
def reference(shared_data):
    """Numbers computed elsewhere, by quantity."""
    return json.loads((shared_data / "reference" / "theory.json").read_text())
