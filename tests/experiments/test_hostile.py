"""Hostile inputs: what counts as which outcome, and that every input can be made."""

import random

import pytest

from .conftest import load_program

hostile = load_program("benchmarks/hostile")
inputs = load_program("benchmarks/hostile_inputs")


@pytest.mark.parametrize(
    ("code", "said", "errors", "wanted", "expected"),
    [
        (0, "fine", "", "works", "right"),
        (0, "fine", "", "either", "right"),
        (0, "fine", "", "refused", "silently wrong"),
        (0, "else", "", "works", "silently wrong"),
        (0, "\x1b[31m", "", "either", "silently wrong"),
        (2, "", "error: give one\n", "refused", "one clear line"),
        (3, "", "noise\nerror: give one\n", "either", "one clear line"),
        (2, "", "error: give one\n", "works", "silently wrong"),
        (2, "", "error: one\nerror: two\n", "refused", "traceback"),
        (1, "", "error: give one\n", "refused", "traceback"),
        (1, "", "Traceback (most recent call last):\nKeyError", "either", "traceback"),
        (-11, "", "", "either", "traceback"),
        (None, "", "", "either", "hang"),
    ],
)
def test_outcomes(code, said, errors, wanted, expected, tmp_path):
    (tmp_path / hostile.CANARY).write_text(hostile.CANARY)
    law = {"else": "other numbers"}
    case = inputs.Case("kind", "name", (), wanted, law=lambda _, said: law.get(said, ""))
    assert hostile.judge(case, tmp_path, hostile.Ended(code, said, errors))[0] == expected
    (tmp_path / hostile.CANARY).write_text("touched")
    if expected == "right":
        ended = hostile.Ended(code, said, errors)
        assert hostile.judge(case, tmp_path, ended)[0] == "silently wrong"


def test_there_are_hundreds_and_a_seed_decides_their_bytes(tmp_path):
    cases, again = inputs.cases(0), inputs.cases(0)
    assert len(cases) >= 300
    assert [case.name for case in cases] == [case.name for case in again]
    changed = [case for case in cases if "bytes changed" in case.name][:3]
    for place, seed in (("a", 0), ("b", 0), ("c", 1)):
        for number, case in enumerate(c for c in inputs.cases(seed) if "bytes changed" in c.name):
            if number < len(changed):
                folder = tmp_path / place / str(number)
                folder.mkdir(parents=True)
                case.prepare(folder, random.Random(seed))
    contents = [
        [path.read_bytes() for path in sorted((tmp_path / place).rglob("flipped*"))]
        for place in "abc"
    ]
    assert contents[0] == contents[1] != contents[2]
