"""The shell command: its exit codes, what stands on stdout, and what it hands to the diagnosis."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn import check, diagnose

from .diagnosis import made

PAGE = Path(__file__).parents[1] / "docs" / "for_assistants.md"
MODULE = """
import os, sys, threading
import jax, jax.numpy as jnp

print("imported")

def make(scale):
    print("made")
    kernels = [scale * jax.random.normal(jax.random.key(i), (8, 8)) for i in range(4)]
    def apply(params, x):
        *hidden, last = params
        for kernel in hidden:
            x = jnp.tanh(x @ kernel)
        return x @ last
    return apply, kernels

def good(): return make(0.5)
def broken(): raise RuntimeError("no data")
def leaves(): sys.exit(0)
def leaves_at_once(): os._exit(0)
def leaves_from_a_thread():
    thread = threading.Thread(target=os._exit, args=(0,))
    thread.start()
    thread.join()
def lets_a_child_leave():
    child = os.fork()
    if not child:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    sys.exit(0)
def leaves_with_words(): sys.exit("bye")
class Odd(BaseException): pass
def raises_oddly(): raise Odd
def whole():
    table = jnp.ones((5, 8))
    return lambda params, x: table[x].sum(1) @ params, jnp.ones((8, 3))
def loud():
    os.write(1, b"from below Python")
    sys.__stdout__.write("buffered")
    return good()
def whole_training():
    def loss_fn(params, batch): return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)
    x = jax.random.normal(jax.random.key(0), (32, 4))
    return loss_fn, {"w": jnp.zeros((4, 1))}, {"x": x, "y": x[:, :1]}
def own(outputs, targets): return jnp.mean((outputs - targets) ** 2)
number = 3
"""
OPTIONS = ["--input", "16,8", "--target", "int:3"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Stand where there is a module with networks; forget what was imported from there."""
    (tmp_path / "some_networks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("some_networks", None)
    return tmp_path


@pytest.fixture
def handed(monkeypatch):
    """What came to the diagnosis, which is always the same."""
    came: dict[str, Any] = {}

    def fake(model, inputs, targets, **options):
        came.update(options, model=model, inputs=inputs, targets=targets)
        return made.diagnosis(causes=(made.cause(),) * 5)

    monkeypatch.setattr(check, "diagnose", fake)
    return came


def test_exit_codes_and_files(folder, monkeypatch, capsys):
    # What would help is no matter here.
    monkeypatch.setattr(check, "diagnose", functools.partial(diagnose, try_changes=False))
    good = ["some_networks:good", *OPTIONS, "--optimizer", "adam:0.01", "--json", "--out", "out"]
    assert check.main(good) == 0
    first = capsys.readouterr()
    assert json.loads(first.out)["verdict"] == "trains"
    assert "made" in first.err
    for name in ("diagnosis.json", "diagnosis.md", "report.html"):
        assert (folder / "out" / name).is_file()
    assert check.main(good) == 0
    assert capsys.readouterr().out == first.out


@pytest.mark.parametrize(
    ("verdict", "code"), [("trains", 0), ("at risk", 1), ("will not train", 2)]
)
def test_every_verdict_has_its_exit_code(verdict, code, monkeypatch):
    found = made.diagnosis(verdict=verdict)
    monkeypatch.setattr(check, "diagnose", lambda *_, **__: found)
    assert check.main(["some_networks:good", *OPTIONS]) == code


@pytest.mark.slow
@pytest.mark.parametrize("model", ["leaves_from_a_thread", "lets_a_child_leave"])
def test_code_that_ends_the_process_has_no_code_of_a_verdict(model, folder):
    command = [sys.executable, "-m", "jaxdnn.check", f"some_networks:{model}", *OPTIONS]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 3
    assert ended.stdout == ""
    assert "ended the process (exit code 0) before there was a verdict" in ended.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        ["some_networks:broken", *OPTIONS],
        ["some_networks:good"],
        ["some_networks:none", *OPTIONS],
        ["nowhere:good", *OPTIONS],
        [":good", *OPTIONS],
        ["some_networks:good", "--input", "16,x"],
        ["some_networks:good", "--input", "16,8", "--input-type", "int"],
        ["some_networks:good", "--input", "16,8", "--input-type", "words:8"],
        ["some_networks:leaves", *OPTIONS],
        ["some_networks:leaves_with_words", *OPTIONS],
        ["some_networks:leaves_at_once", *OPTIONS],
        ["some_networks:raises_oddly", *OPTIONS],
        ["some_networks:number", *OPTIONS],
        ["some_networks:good", *OPTIONS, "--loss", "some_networks:number"],
        ["some_networks:good", *OPTIONS, "--loss", "some_networks:nothing"],
        ["some_networks:good", "--data", "some_networks.py"],
        ["some_networks:good", "--data", "nowhere.npz"],
    ],
)
def test_what_is_wrong_is_told_on_stderr_and_in_json(wrong, capsys):
    assert check.main(wrong) == 3
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-1].startswith("error: ")
    assert shown.out == ""
    assert check.main([*wrong, "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["error"] in shown.err


@pytest.mark.parametrize(
    "wrong",
    [
        [*OPTIONS, "--optimizer", "sgd:much"],
        [*OPTIONS, "--seed", "-1"],
        [*OPTIONS, "--loss", "no_function"],
        [*OPTIONS, "--out", "some_networks.py/folder"],
        [*OPTIONS, "--data", "data.npz"],
        ["--input", "16,8", "--target", "int:3000000000"],
        ["--input", "16,8,100000000000000"],
    ],
)
def test_options_are_checked_before_the_users_code_runs(wrong, capsys):
    assert check.main(["some_networks:good", *wrong]) == 3
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_a_model_of_whole_numbers_says_what_to_give(capsys):
    assert check.main(["some_networks:whole", *OPTIONS]) == 3
    assert "--input-type int:WORDS" in capsys.readouterr().err


def test_no_verdict_where_it_cannot_be_printed(handed, monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert check.main(["some_networks:good", *OPTIONS]) == 3
        monkeypatch.undo()
    assert "the verdict cannot be printed" in capsys.readouterr().err


def test_nothing_but_the_diagnosis_reaches_the_descriptor(handed, capfd):
    assert check.main(["some_networks:loud", *OPTIONS, "--json"]) == 2
    shown = capfd.readouterr()
    assert json.loads(shown.out)["verdict"]
    assert "from below Python" in shown.err


def test_an_unknown_option_is_an_error(capsys):
    assert check.main(["some_networks:good", "--unknown"]) == 3
    assert capsys.readouterr().err.startswith("error: ")


def test_stdout_holds_the_diagnosis_alone(handed, capsys):
    shown = {}
    for options in ([], ["--all"], ["--json"], ["--json", "--all"]):
        assert check.main(["some_networks:good", *OPTIONS, *options]) == 2
        shown[tuple(options)] = capsys.readouterr().out
    found = made.diagnosis(causes=(made.cause(),) * 5)
    assert shown == {
        (): f"{found}\n",
        ("--all",): f"{found.details()}\n",
        ("--json",): f"{found.to_short_json()}\n",
        ("--json", "--all"): f"{found.to_json()}\n",
    }
    assert json.loads(shown["--json", "--all"])["layers"]


def test_a_loss_of_ones_own(handed):
    check.main(["some_networks:good", *OPTIONS])
    assert handed["loss"] is None
    check.main(["some_networks:good", *OPTIONS, "--loss", "some_networks:own"])
    assert getattr(handed["loss"], "__name__", "") == "own"


def test_a_loss_function_comes_with_its_parameters_and_its_batch(capsys):
    assert check.main(["some_networks:whole_training", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["verdict"], said["loss"]) == ("trains", "loss_fn")


def test_random_inputs_are_of_the_type_asked_for(handed):
    check.main(["some_networks:good", *OPTIONS])
    chex.assert_type(handed["inputs"], float)
    check.main(["some_networks:good", "--input", "64,128", "--input-type", "int:5"])
    chex.assert_shape(handed["inputs"], (64, 128))
    chex.assert_type(handed["inputs"], int)
    assert set(np.unique(handed["inputs"])) == set(range(5))


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.float32])
def test_arrays_of_a_file_keep_their_kind(dtype, handed, folder):
    inputs, targets = np.arange(12).reshape(4, 3).astype(dtype), np.arange(4)
    np.savez(folder / "data.npz", inputs=inputs, targets=targets)
    check.main(["some_networks:good", "--data", "data.npz"])
    assert handed["inputs"].dtype.kind == np.dtype(dtype).kind
    chex.assert_trees_all_equal(handed["inputs"], jnp.asarray(inputs))
    chex.assert_type(handed["targets"], int)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


def test_the_page_for_assistants_is_short_and_shows_an_object_of_today():
    [text] = blocks("json")
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= 60
    shown, own = json.loads(text), json.loads(made.diagnosis().to_short_json())
    chex.assert_trees_all_equal_structs(shown["prescription"], own["prescription"])
    assert list(shown) == list(own)
    assert list(shown["findings"][0]) == list(own["findings"][0])


@pytest.mark.slow
def test_the_page_for_assistants_shows_what_its_command_prints(folder, capsys):
    [module] = blocks("python")
    (folder / "net.py").write_text(module)
    command = next(line for line in blocks("bash")[0].splitlines() if "net:make" in line)
    code = check.main(command.split()[1:])
    came, shown = json.loads(capsys.readouterr().out), json.loads(blocks("json")[0])
    assert code == 2
    assert came["verdict"] == shown["verdict"]
    assert came["findings"][0]["code"] == shown["findings"][0]["code"]
    assert came["prescription"]["patch"] == shown["prescription"]["patch"]
    assert abs(came["prescription"]["after"] - shown["prescription"]["after"]) <= 0.1
