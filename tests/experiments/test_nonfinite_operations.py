"""Operations that are not finite are named with their lines, and their sound twins are not."""

import json

import pytest

from .conftest import load_program

program = load_program("benchmarks/nonfinite_operations")


def wrong(tmp_path, call, *options):
    """What is not right of what the program examines."""
    code, said, _ = call(program, "--out", str(tmp_path), *options)
    assert code == 0
    assert (tmp_path / "table.md").read_text().strip() in said
    rows = [json.loads(line) for line in (tmp_path / "operations.jsonl").read_text().splitlines()]
    assert rows
    return [(row["operation"], row["through"], row["said"]) for row in rows if not row["right"]]


def test_a_value_and_a_gradient(tmp_path, call):
    names = ["masked_softmax", "slope_of_norm"]
    assert wrong(tmp_path, call, "--operations", *names, "--through", "remat") == []


@pytest.mark.slow
def test_every_operation_through_every_transformation(tmp_path, call):
    assert wrong(tmp_path, call) == []


def test_unknown_names_are_refused(tmp_path, call):
    code, _, complaint = call(program, "--out", str(tmp_path), "--through", "pmap")
    assert code == 2
    assert "no transformation is called pmap" in complaint
