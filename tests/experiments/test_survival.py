"""A run meets signals, kills, full disks and jumping clocks; what it leaves is never wrong."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from jaxdnn.run_folder import RunFolder

from .conftest import QUICK, load_program

chaos, deep_dog = load_program("benchmarks/chaos"), load_program("deep_dog")


@pytest.fixture(scope="module")
def args(photos):
    return [*QUICK, "--data", str(photos), "--positive", "dog"]


def assert_like(out, finished):
    assert chaos.differences(out, finished.path) == ()
    ours, theirs = (json.loads(folder.summary.read_text()) for folder in (RunFolder(out), finished))
    assert ours["params_sha256"] == theirs["params_sha256"]
    assert ours["test/loss"] == theirs["test/loss"]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_asks_to_be_resumed(number, args, finished, call, tmp_path, monkeypatch):
    class Signalled(deep_dog.command_line.StopSignal):
        turns = 0

        def __call__(self):
            self.turns += 1
            if self.turns == 2:
                os.kill(os.getpid(), number)
            return super().__call__()

    out = tmp_path / "run"
    again = [*args, "--resume", "auto", "--out", out]
    with monkeypatch.context() as patched:
        patched.setattr(deep_dog.command_line, "StopSignal", Signalled)
        code, said, _ = call(deep_dog, *again)
    assert code == deep_dog.command_line.RESUME_EXIT_CODE
    assert f"--resume {out}" in said
    assert not RunFolder(out).summary.exists()
    assert call(deep_dog, *again)[0] == 0
    assert_like(out, finished)
    code, said, _ = call(deep_dog, *again)
    assert code == 0
    assert "finished" in said


def test_resume_auto_refuses_other_settings(args, finished, call):
    code, _, said = call(deep_dog, *args, "--resume", "auto", "--out", finished.path, "--seed", 1)
    assert code == 2
    assert "seed: 0, 1" in said


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(args, finished, call, tmp_path, monkeypatch):
    now, num_asked = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: now() + 100 * (next(num_asked) % 2))
    out = tmp_path / "run"
    assert call(deep_dog, *args, "--out", out)[0] == 0
    assert_like(out, finished)


# Python ignores the signal that comes with the limit: writing fails as on a full disk.
ON_A_FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))"


def start(*args, before: str = "") -> subprocess.Popen[str]:
    """Start the command in a process of its own, after some lines of Python."""
    run = f"import runpy; {before}\nrunpy.run_path({deep_dog.__file__!r}, run_name='__main__')"
    command = [sys.executable, "-c", run, *map(str, args), "--compilation-cache", "off"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_run_killed_in_a_save_ends_as_if_it_had_not_been(args, finished, call, tmp_path):
    out = tmp_path / "run"
    again = [*args, "--resume", "auto", "--out", out]
    process = start(*again)
    temporary = (out / "checkpoints").glob
    while process.poll() is None and not list(temporary(chaos.TEMPORARY)):
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert call(deep_dog, *again)[0] == 0
    assert_like(out, finished)
    assert not list(temporary(chaos.TEMPORARY))


@pytest.mark.slow
def test_a_disk_that_is_full_gets_one_line_and_the_run_goes_on_later(
    args, finished, call, tmp_path
):
    out = tmp_path / "run"
    wide = [*args, "--widths", 64, "--out", out]

    process = start(*wide, before=ON_A_FULL_DISK)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2
    assert said.count("\n") == 1
    assert said.startswith("error: ")
    assert "File too large" in said
    assert call(deep_dog, *wide, "--resume", "auto")[0] == 0
    assert call(deep_dog, *wide[:-1], tmp_path / "other")[0] == 0
    assert chaos.differences(out, tmp_path / "other") == ()
