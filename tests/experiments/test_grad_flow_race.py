"""The race command as its users use it."""

import csv
import json

import pytest

from jaxdnn import command_line

from .conftest import load_program

grad_flow, race = load_program("grad_flow"), load_program("commands.race")

HEADER = (
    "initializer,activation,norm,depth,width,seed,step,loss,accuracy,delta_first_rms,delta_last_rms"
)
LINE = {
    *("initializer", "activation", "norm", "depth", "width", "learned", "steps_to_learn"),
    *("final_loss", "factor_median", "factor_low", "factor_high", "log10_total", "verdict"),
}
KINDS = ["--initializers", "xavier", "zero", "--activations", "tanh", "prelu"]
SMALL = [*KINDS, "--seeds", "2", "--depth", "4", "--width", "8", "--no-progress"]
# Long enough that tanh learns under Xavier.
LENGTH = ["--steps", "80", "--record-every", "24", "--batch-size", "128", "--learning-rate", "0.3"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished race."""
    folder = tmp_path_factory.mktemp("race")
    assert race.main([*SMALL, *LENGTH, "--out", str(folder)]) == 0
    return folder


def test_table_has_a_row_for_every_recorded_step(finished):
    with (finished / "race.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert ",".join(lines[0]) == HEADER
    assert [int(line["step"]) for line in lines] == [0, 24, 48, 72, 80] * 8
    assert {line["activation"] for line in lines} == {"tanh", "parametric_relu"}
    assert {(line["depth"], line["width"], line["norm"]) for line in lines} == {("4", "8", "none")}
    assert [line["seed"] for line in lines[::5]] == ["0", "1"] * 4
    for line in lines:
        zeros = line["initializer"] == "zeros"
        assert (float(line["delta_first_rms"]) == 0) == zeros
        assert 0 <= float(line["accuracy"]) <= 1


def test_summary_has_a_line_for_every_combination(finished):
    summary = json.loads((finished / "summary.json").read_text())
    # 716 of the 6980 training images are dogs.
    assert summary["guess_loss"] == pytest.approx(0.33066, abs=1e-4)
    assert summary["num_networks"] == 8
    lines = {(line["initializer"], line["activation"]): line for line in summary["combinations"]}
    assert len(lines) == 4
    for (initializer, _), line in lines.items():
        assert line.keys() == LINE
        assert line["learned"] == (line["steps_to_learn"] is not None)
        assert line["verdict"] == ("dead" if initializer == "zeros" else "healthy")
    assert lines["glorot_normal", "tanh"]["learned"]
    assert not lines["zeros", "tanh"]["learned"]


def test_chart(finished):
    assert (finished / "race.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (finished / "race.svg").read_text()


def test_interrupted_race_goes_on_to_the_same_table(finished, call, tmp_path, monkeypatch):
    class StopsAtSecondCall(command_line.StopSignal):
        calls = 0

        def __call__(self):
            self.calls += 1
            return self.calls == 2

    out = tmp_path / "race"
    with monkeypatch.context() as patched:
        patched.setattr(command_line, "StopSignal", StopsAtSecondCall)
        code, said, _ = call(grad_flow, "race", *SMALL, *LENGTH, "--out", out)
    # The chart takes as long as the rest, and is another test's.
    monkeypatch.setattr(race, "draw_race", lambda folder: [])
    assert code == 130
    assert "the same command goes on" in said
    assert len(list((out / "cells").iterdir())) == 1
    code, said, _ = call(grad_flow, "race", *SMALL, *LENGTH, "--out", out)
    assert code == 0
    assert "from step" in said
    assert "never" in said
    assert (out / "race.csv").read_bytes() == (finished / "race.csv").read_bytes()


@pytest.mark.slow
def test_diverged_networks_are_named(call, tmp_path):
    args = ["--initializers", "he", "--activations", "relu", "--depth", 3, "--width", 4]
    length = ["--steps", 3, "--seeds", 1, "--learning-rate", 1e25, "--no-progress"]
    code, said, _ = call(grad_flow, "race", *args, *length, "--out", tmp_path)
    assert code == 0
    assert "never: diverged" in said
    # Text is drawn as paths, its words kept as comments.
    assert "<!-- diverged: -->" in (tmp_path / "race.svg").read_text()
    (line,) = json.loads((tmp_path / "summary.json").read_text())["combinations"]
    assert (line["learned"], line["final_loss"]) == (False, None)


def test_folder_of_another_race_or_of_a_sweep_is_refused(finished, call, tmp_path):
    code, _, said = call(grad_flow, "race", *SMALL, *LENGTH, "--norm", "batch", "--out", finished)
    assert code == 2
    assert "holds another race" in said
    (tmp_path / "grid.json").write_text("{}")
    code, _, said = call(grad_flow, "race", *SMALL, *LENGTH, "--out", tmp_path)
    assert code == 2
    assert "holds a sweep" in said


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--initializers", "hee"], "there are zeros, normal"),
        (["--initializers", "pretrained"], "there are zeros, normal"),
        (["--activations", "rleu"], "did you mean 'relu'"),
        (["--norm", "bacth"], "'none', 'batch', 'layer'"),
        (["--depth", "1"], "--depth is 1; give 2 or more"),
        (["--width", "0"], "--width is 0; give 1 or more"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--batch-size", "100000"], "--batch-size 100000 exceeds"),
        (["--learning-rate", "-1"], "--learning-rate is -1"),
        (["--steps", "0"], "--steps is 0; give 1 or more"),
        (["--seeds", "0"], "--seeds is 0; give 1 or more"),
        (["--seed", "-1"], "--seed is -1"),
        (["--epochs", "1", "--steps", "3"], "give one of them"),
    ],
)
def test_bad_options_get_one_line(args, expected, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, said = call(grad_flow, "race", *args)
    assert code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert expected in said
    assert not list(tmp_path.iterdir())
