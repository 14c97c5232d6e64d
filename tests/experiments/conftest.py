"""Images that any network tells apart, activations of a user, commands inside the test process."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from jaxdnn import command_line

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
NUM_EACH = 40
# The lecture recipe compiles fastest: it does not augment.
QUICK = ["lecture", "--widths", "8", "--batch-size", "16", "--epochs", "3", "--no-progress"]
QUICK += ["--devices", "1"]


def load_program(name: str) -> ModuleType:
    """Import a program as `python` would: its own folder comes first on the import path.

    The path is as before afterwards; no other test sees that folder.

    Args:
      name: below experiments/, without .py: `deep_dog`, `benchmarks/chaos`; what lies in a package
        beside a program has a dot, `commands.race`.
    """
    folder, _, module = name.rpartition("/")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS / folder)
        return importlib.import_module(module)


MODULE = """
import jax.numpy as jnp

def bent(x):
    return jnp.where(x > 0.3, x, 0.1 * x)

def hyperbolic(x):
    return jnp.tanh(x)

def undefined(x):
    return jnp.sqrt(x)

constant = 3
"""


def write_images(folder, name, is_bright, num=NUM_EACH, seed=0):
    """Write dark or bright noise of 8x8 pixels."""
    (folder / name).mkdir(parents=True)
    draw = np.random.default_rng(seed + is_bright)
    for index in range(num):
        pixels = draw.integers(0, 100, (8, 8), dtype=np.uint8) + np.uint8(150 * is_bright)
        Image.fromarray(pixels).save(folder / name / f"{index:03}.png")


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """{dog,cat,owl}/*.png: dogs are bright, the others dark."""
    folder = tmp_path_factory.mktemp("photos")
    write_images(folder, "dog", True)
    write_images(folder, "cat", False)
    write_images(folder, "owl", False, seed=5)
    return folder


@pytest.fixture(scope="session")
def finished(photos, tmp_path_factory):
    """The folder of a finished run: dogs against others, nothing happened to it."""
    deep_dog, path = load_program("deep_dog"), tmp_path_factory.mktemp("runs") / "first"
    recipe, arguments = deep_dog.parse([*QUICK, "--data", str(photos), "--positive", "dog"])
    assert recipe == "lecture"
    folder = deep_dog.run_folder.create(path)
    assert deep_dog._train(arguments, folder, path) == 0
    return folder


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    """A module of activations in the current directory, under a name of its own; returns it."""
    name = f"module_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.fixture
def call(monkeypatch, capsys):
    """Call a command; return (exit code, stdout, stderr)."""

    def run(module, *args):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            command_line.run(module.main)
        said = capsys.readouterr()
        return stop.value.code, said.out, said.err

    return run
