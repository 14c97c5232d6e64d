"""Every program says what it does, with the lines of its examples as they were written."""

import pytest

from .conftest import load_program

PROGRAMS = [
    *("deep_dog", "grad_flow", "predict"),
    *(f"benchmarks/{name}" for name in ("bench", "chaos", "results", "scale", "suite_coverage")),
    "benchmarks/untrained_dogs",
    "benchmarks/nonfinite_operations",
]


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_opens_with_the_docstring(name, call):
    program = load_program(name)
    code, said, _ = call(program, "--help")
    assert code == 0
    assert (program.__doc__ or name).strip() in said
