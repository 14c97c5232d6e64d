"""Several processes on one machine, each with a device and its share of the images."""

import json
import subprocess
import sys

import chex
import pytest

from jaxdnn.run_folder import RunFolder, read_metrics
from jaxdnn.training import Checkpoints
from tests.together import ENVIRONMENT, run_together

from .conftest import QUICK, load_program

deep_dog, grad_flow = load_program("deep_dog"), load_program("grad_flow")


def start_together(num: int, program, *args) -> list[str]:
    """Run a program as so many processes; return what each printed."""

    def command(address: str, index: int) -> list[str]:
        among = ["--coordinator", address, "--num-processes", num, "--process-index", index]
        return [sys.executable, program.__file__, *map(str, [*args, "--distributed", *among])]

    return run_together(num, command)


@pytest.fixture(scope="module")
def args(photos):
    # Everything that has to agree between processes; QUICK's last two options choose one device.
    return [*QUICK[:-2], "--data", str(photos), "--positive", "dog", "--dropout", "0.2"]


@pytest.fixture(scope="module")
def alone(args, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "alone"
    _, arguments = deep_dog.parse([*args, "--devices", "1"])
    assert deep_dog._train(arguments, deep_dog.run_folder.create(path), path) == 0
    return RunFolder(path)


def assert_close(ours: RunFolder, theirs: RunFolder):
    lines = [read_metrics(folder.metrics) for folder in (ours, theirs)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    for a, b in zip(*lines, strict=True):
        for name in ("train/loss", "val/loss"):
            chex.assert_trees_all_close(a[name], b[name], rtol=1e-5)
    summaries = [json.loads(folder.summary.read_text()) for folder in (ours, theirs)]
    chex.assert_trees_all_close(*(summary["test/loss"] for summary in summaries), rtol=1e-5)
    assert summaries[0]["confusion"] == summaries[1]["confusion"]


@pytest.mark.slow
@pytest.mark.parametrize(("num", "options"), [(2, ["--fsdp"]), (4, ["--watch-gradients", "4"])])
def test_processes_together_train_as_one_does(num, options, args, alone, tmp_path):
    out = tmp_path / "together"
    said = start_together(num, deep_dog, *args, *options, "--out", out)
    if "--watch-gradients" in options:
        rows = [line for line in read_metrics(out / "metrics.jsonl") if "train/loss" not in line]
        assert len(rows) == 4  # Steps 1, 4, 8 and 12.
        kept = [line for line in read_metrics(out / "metrics.jsonl") if "train/loss" in line]
        (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    assert_close(RunFolder(out), alone)
    assert json.loads((out / "summary.json").read_text())["num_processes"] == num
    assert "everything is in" in said[0]
    assert not any(said[1:])
    # One process goes on where several have been: their checkpoint is like its own.
    with Checkpoints(out / "checkpoints") as theirs, Checkpoints(alone.checkpoints) as ours:
        a, b = (checkpoints.restore("latest") for checkpoints in (theirs, ours))
    chex.assert_trees_all_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_the_sweep_is_shared_by_processes(tmp_path):
    grid = [
        "sweep",
        "--depth",
        "3",
        "--width",
        "8",
        "--seeds",
        "3",
        "--initializers",
        "he",
        "zeros",
    ]
    grid += ["--activations", "tanh", "relu", "--batch-size", "8", "--no-progress"]
    said = start_together(2, grad_flow, *grid, "--out", tmp_path / "together")
    assert "12 networks" in said[0]
    assert not said[1]
    alone = [sys.executable, grad_flow.__file__, *grid, "--out", str(tmp_path / "alone")]
    subprocess.run(list(map(str, alone)), check=True, capture_output=True, env=ENVIRONMENT)
    tables = [(tmp_path / name / "grad_flow.csv").read_bytes() for name in ("together", "alone")]
    assert tables[0] == tables[1]
