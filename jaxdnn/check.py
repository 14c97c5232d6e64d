"""Examine a network from a shell.

    python -m jaxdnn.check my_module:make_model --input 64,32,32,3 --target int:10

`make_model` is called without arguments and returns what `jaxdnn.diagnose` takes. Exit code: 0 it
trains, 1 at risk, 2 it will not train, 3 it could not be examined. What that code prints goes to
stderr: on stdout stands the diagnosis alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxdnn import command_line
from jaxdnn.diagnosis import Diagnosis, diagnose, error_json
from jaxdnn.errors import InputError
from jaxdnn.names import printable

EXIT_CODES = {"trains": 0, "at risk": 1, "will not train": 2}
NOT_EXAMINED = 3


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to examine, and with what."""

    model: Annotated[str, tyro.conf.Positional]
    """module:function that returns the model; from this folder or the Python path."""
    input: str = ""
    """Shape of random inputs, the batch first, such as 64,32,32,3."""
    input_type: str = "float"
    """Random inputs: float for standard normal ones, int:WORDS for 0 to WORDS - 1."""
    target: str = "int:10"
    """Random targets: int:CLASSES or float:OUTPUTS."""
    data: Path | None = None
    """An .npz file with real arrays `inputs` and `targets` instead; integers stay integers."""
    loss: str | None = None
    """module:function of (outputs, targets) that returns a scalar, or one for each example."""
    optimizer: str = "sgd:0.1"
    """What will train it, such as sgd:0.1 or adam:0.001."""
    seed: int = 0
    """Of random data and dropout."""
    json: bool = False
    """Print one JSON object of at most 2,000 characters."""
    all: bool = False
    """Print all findings and changes and the table of layers, in JSON all that is known."""
    progress: bool = True
    """Show a progress bar on stderr."""
    out: Path | None = None
    """Folder for report.html, diagnosis.json and diagnosis.md."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = None
    try:
        options = command_line.parse(
            Arguments,
            default=None,
            args=sys.argv[1:] if args is None else args,
            prog="python -m jaxdnn.check",
            description=__doc__,
        )
        with contextlib.redirect_stdout(sys.stderr):
            diagnosis = _diagnose(options)
        if options.out is not None:
            _write(diagnosis, options.out)
    except Exception as error:  # the user's own code may raise anything
        message = _message(error)
        if options is not None and options.json:
            command_line.say(error_json(message))
        print(f"error: {printable(message)}", file=sys.stderr)
        return NOT_EXAMINED
    command_line.say(_shown(diagnosis, options))
    return EXIT_CODES[diagnosis.verdict]


def _message(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _shown(diagnosis: Diagnosis, options: Arguments) -> str:
    if options.json:
        return diagnosis.to_json() if options.all else diagnosis.to_short_json()
    return diagnosis.details() if options.all else str(diagnosis)


def _write(diagnosis: Diagnosis, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "diagnosis.json").write_text(diagnosis.to_json(), encoding="utf-8")
        (folder / "diagnosis.md").write_text(diagnosis.to_markdown(), encoding="utf-8")
        (folder / "report.html").write_text(diagnosis.to_html(), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out {folder} cannot be written ({error.strerror})") from error


def _diagnose(options: Arguments) -> Diagnosis:
    model = _load(options.model, "a function without arguments that returns the model")()
    loss = None
    if options.loss is not None:
        loss = _load(options.loss, "a function of (outputs, targets)")
    if options.data is not None:
        inputs, targets = _read(options.data)
    elif not options.input:
        raise InputError("neither --input nor --data came; give --input 64,32,32,3 or --data FILE")
    else:
        inputs, targets = _random(options)
    return diagnose(
        model,
        inputs,
        targets,
        loss=loss,
        optimizer=options.optimizer,
        seed=options.seed,
        progress=options.progress,
    )


def _load(name: str, wanted: str) -> Any:
    """Import `module:function` from the current folder or the Python path."""
    module_name, _, function = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise InputError(f"{name}: {error}; give module:function, importable from here") from None
    if not function or function not in vars(module):
        raise InputError(
            f"{name}: {module_name} has no function {function!r}; give module:function"
        )
    made = vars(module)[function]
    if not callable(made):
        raise InputError(f"{name} is of type {type(made).__name__}; give {wanted}")
    return made


def _random(options: Arguments) -> tuple[Any, Any]:
    """Draw inputs and targets: standard normal numbers, or uniform whole ones."""
    kind, _, size = options.target.partition(":")
    input_kind, _, words = options.input_type.partition(":")
    try:
        sizes, number = [int(part) for part in options.input.split(",")], int(size)
        num_words = int(words) if input_kind == "int" else 1
    except ValueError:
        sizes, number, num_words = [], 0, 0
    kinds_are_known = kind in ("int", "float") and input_kind in ("int", "float")
    if not sizes or min([*sizes, number, num_words]) < 1 or not kinds_are_known:
        raise InputError(
            f"--input {options.input} --input-type {options.input_type} --target {options.target}"
            " came; give positive whole numbers such as --input 64,32,32,3 --target int:10 (or"
            " float:1), or --input 64,128 --input-type int:1000"
        )
    input_key, target_key = jax.random.split(jax.random.key(options.seed))
    if input_kind == "int":
        inputs = jax.random.randint(input_key, sizes, 0, num_words)
    else:
        inputs = jax.random.normal(input_key, sizes)
    if kind == "int":
        return inputs, jax.random.randint(target_key, (sizes[0],), 0, number)
    return inputs, jax.random.normal(target_key, (sizes[0], number))


def _read(path: Path) -> tuple[Any, Any]:
    try:
        with np.load(path) as arrays:
            return jnp.asarray(arrays["inputs"]), jnp.asarray(arrays["targets"])
    except OSError as error:
        raise InputError(f"--data {path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, TypeError) as error:
        said = error.args[0] if isinstance(error, KeyError) else "no .npz archive"
        raise InputError(
            f"--data {path}: {said}; give an .npz file with arrays `inputs` and `targets`"
        ) from None


def script() -> None:
    """Run as `jaxdnn-check`."""
    command_line.run(main)


if __name__ == "__main__":
    script()
