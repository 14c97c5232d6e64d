"""The sweep command as its users use it."""

import csv
import json

import pytest

from jaxdnn import command_line

from .conftest import load_program

grad_flow, sweep = load_program("grad_flow"), load_program("commands.sweep")
grid_folder = load_program("commands.grid_folder")

HEADER = (
    "initializer,activation,norm,depth,width,seed,layer,pre_activation_mean,pre_activation_rms,"
    "delta_rms,kernel_grad_rms,dead_fraction,saturated_fraction,correlation"
)
FLOW = {"factor_median", "factor_low", "factor_high", "log10_total", "verdict"}
THEORY = {"factor_theory", "log10_total_theory", "agrees", "note"}
KINDS = ["--initializers", "xavier", "zeros", "--activations", "tanh", "relu"]
SMALL = [*KINDS, "--seeds", "2", "--width", "8", "--batch-size", "6", "--no-progress"]
TWO_DEPTHS = [*SMALL, "--activations", "relu", "--depth", "4", "5", "--seed", "3"]
CHARTS = ("delta", "signal", "kernel_grad", "factor")


def lines_of(folder):
    with (folder / "grad_flow.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def charts_of(folder, *, suffix=""):
    for name in CHARTS:
        assert (folder / f"{name}{suffix}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / f"{name}{suffix}.svg").read_text()


@pytest.fixture
def no_charts(monkeypatch):
    """Leave the charts out, which take longer than such small sweeps."""
    monkeypatch.setattr(sweep, "draw_gradient_flow", lambda folder: [])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished sweep of two depths."""
    folder = tmp_path_factory.mktemp("sweep")
    assert sweep.main([*TWO_DEPTHS, "--out", str(folder)]) == 0
    return folder


def test_table_has_a_row_for_every_layer(finished):
    lines = lines_of(finished)
    assert ",".join(lines[0]) == HEADER
    networks = 2 * 2
    assert len(lines) == networks * (4 + 5)
    assert {line["initializer"] for line in lines} == {"glorot_normal", "zeros"}
    assert {line["activation"] for line in lines} == {"relu"}
    assert {line["seed"] for line in lines} == {"3", "4"}
    for depth in (4, 5):
        own = [line for line in lines if line["depth"] == str(depth)]
        layers = [int(line["layer"]) for line in own]
        assert layers == list(range(1, depth + 1)) * networks
    # All weights zero: only the output has a gradient.
    for line in lines:
        if line["initializer"] == "zeros":
            assert (float(line["delta_rms"]) > 0) == (line["layer"] == line["depth"])


def test_summary_has_a_line_for_every_combination(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["num_networks"] == 8
    lines = summary["combinations"]
    assert len(lines) == 4
    for line in lines:
        assert line.keys() == FLOW | THEORY | {
            "initializer",
            "activation",
            "norm",
            "depth",
            "width",
        }
        assert (line["verdict"] == "dead") == (line["initializer"] == "zeros")
        exact = {"zeros": 0.0, "glorot_normal": 0.5**0.5}[line["initializer"]]
        assert line["factor_theory"] == pytest.approx(exact)
        if line["verdict"] != "dead":
            assert line["factor_low"] <= line["factor_median"] <= line["factor_high"]


def test_charts_for_every_depth(finished):
    suffixes = [f"_none_{depth}" for depth in (4, 5)]
    for suffix in suffixes:
        charts_of(finished, suffix=suffix)
    for name in CHARTS:
        drawn = {path.stem: path.read_bytes() for path in finished.glob(f"{name}*.png")}
        assert drawn.keys() == {name + suffix for suffix in suffixes}
        assert len(set(drawn.values())) == len(suffixes)


def test_sweep_is_the_default_command_and_passes_images_through(call, tmp_path):
    args = [*SMALL, "--depth", 4, "--data", "silhouettes", "--norm", "batch", "--out", tmp_path]
    code, said, _ = call(grad_flow, *args)
    assert code == 0
    assert "8 networks" in said
    assert sum(line.startswith("zeros") and line.endswith("dead") for line in said.split("\n")) == 2
    lines = lines_of(tmp_path)
    assert len(lines) == 2 * 2 * 2 * 4
    assert {line["norm"] for line in lines} == {"batch"}
    charts_of(tmp_path)


@pytest.mark.slow
def test_own_activation_gives_the_numbers_of_the_packages(module, call, no_charts, tmp_path):
    own = f"{module}:hyperbolic"
    args = [*SMALL, "--depth", 6, "--out", tmp_path / "sweep", "--activations", "tanh", own]
    assert call(grad_flow, "sweep", *args)[0] == 0
    lines = lines_of(tmp_path / "sweep")
    ours, theirs = ([x for x in lines if x["activation"] == name] for name in ("tanh", own))
    assert len(ours) == len(theirs) == 2 * 2 * 6
    for line, other in zip(ours, theirs, strict=True):
        assert line | {"activation": own} == other


@pytest.mark.parametrize(
    ("command", "option"), [("sweep", "--activations"), ("lecture", "--activation")]
)
def test_activation_that_is_not_finite_gets_one_line(command, option, module, call, tmp_path):
    name = f"{module}:undefined"
    code, _, said = call(grad_flow, command, option, name, "--out", tmp_path / "out")
    assert code == 2
    assert "is nan at x = " in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_interrupted_sweep_goes_on_to_the_same_table(
    finished, call, no_charts, tmp_path, monkeypatch
):
    class StopsAtSecondCall(command_line.StopSignal):
        calls = 0

        def __call__(self):
            self.calls += 1
            return self.calls == 2

    out = tmp_path / "sweep"
    args = [*TWO_DEPTHS, "--out", out]
    with monkeypatch.context() as patched:
        patched.setattr(command_line, "StopSignal", StopsAtSecondCall)
        code, said, _ = call(grad_flow, "sweep", *args)
    assert code == 130
    assert "the same command goes on" in said
    assert not (out / "grad_flow.csv").exists()
    assert len(list((out / "cells").iterdir())) == 1
    assert call(grad_flow, "sweep", *args)[0] == 0
    assert (out / "grad_flow.csv").read_bytes() == (finished / "grad_flow.csv").read_bytes()


def test_folder_of_another_sweep_is_refused(finished, call):
    before = (finished / "grad_flow.csv").read_bytes()
    code, _, said = call(grad_flow, "sweep", *SMALL, "--depth", 4, "--out", finished)
    assert code == 2
    assert "holds another sweep" in said
    assert said.count("\n") == 1
    assert (finished / "grad_flow.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["swep"], "there are sweep"),
        (["sweep", "--initializers", "hee"], "there are zeros, normal"),
        (["sweep", "--activations", "rleu"], "did you mean 'relu'"),
        (["sweep", "--norm", "bacth"], "'none', 'batch', 'layer'"),
        (["sweep", "--depth", "1"], "--depth is 1; give 2 or more"),
        (["sweep", "--depth", "4", "0"], "--depth is 0; give 2 or more"),
        (["sweep", "--width", "0"], "--width is 0; give 1 or more"),
        (["sweep", "--batch-size", "1"], "--batch-size is 1; give 2 or more"),
        (["sweep", "--seeds", "0"], "--seeds is 0; give 1 or more"),
        (["sweep", "--seed", "-1"], "--seed is -1; give 0 or more"),
        (["sweep", "--initializers"], "--initializers"),
        (["sweep", "--scale", "-1"], "positive"),
        (["sweep", "--data", "nowhere"], "nowhere"),
        (["sweep", "--dephts", "3"], "--depth"),
    ],
)
def test_bad_options_get_one_line(args, expected, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, said = call(grad_flow, *args)
    assert code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert expected in said
    assert not list(tmp_path.iterdir())


def test_out_that_cannot_be_written(call, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, said = call(grad_flow, "sweep", *SMALL, "--out", tmp_path / "file/sweep")
    assert code == 2
    assert "cannot be written" in said
    assert said.count("\n") == 1


def test_a_log_file_gets_lines_of_progress(capsys, tmp_path):
    def run(on_done, interrupted):
        for _ in range(3):
            on_done(4)

    grid_folder.run_until_stopped(run, num_networks=12, out=tmp_path, progress=True)
    said = capsys.readouterr().err
    assert "\r" not in said
    assert said.splitlines()[-1].startswith("done: 100% 12/12 networks")
