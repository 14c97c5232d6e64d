"""What the options of several commands are checked for, and how they are kept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxdnn.errors import InputError


def check_least(values: Mapping[str, int | None], least: int) -> None:
    """Raise InputError where a value is below `least`; None is allowed."""
    for name, value in values.items():
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} is {value}; give {least} or more")


def check_named(values: Mapping[str, Sequence[Any]]) -> None:
    """Raise InputError where nothing is listed."""
    for name, value in values.items():
        if not value:
            raise InputError(f"--{name} is empty; name at least one")


def deciding(options: Any) -> dict[str, Any]:
    """Return what decides the numbers, as JSON holds it: not where they go, nor who computes."""
    kept = dataclasses.asdict(options)
    for name in ("out", "progress", "processes"):
        kept.pop(name, None)
    return json.loads(json.dumps(kept))
