"""Examine a network from a shell.

    python -m jaxdnn.check my_module:make_model --input 64,32,32,3 --target int:10

`make_model` is called without arguments and returns what `jaxdnn.diagnose` takes. Exit code: 0 it
trains, 1 at risk, 2 it will not train, each only with the verdict on stdout; 3 everything else, 130
for Ctrl-C. What that code prints goes to stderr: on stdout stands the diagnosis alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import tyro

from jaxdnn import command_line
from jaxdnn.diagnosis import Diagnosis, diagnose, error_json, parse_optimizer
from jaxdnn.errors import InputError
from jaxdnn.memory import check_memory
from jaxdnn.names import printable
from jaxdnn.stored import read_arrays

EXIT_CODES = {"trains": 0, "at risk": 1, "will not train": 2}
NOT_EXAMINED = 3
_LARGEST = 2**31 - 1
_WANTED = "a function without arguments that returns the model"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to examine, and with what."""

    model: Annotated[str, tyro.conf.Positional]
    """module:function that returns the model, or (loss function, params, batch) without --input and
    --data; from this folder or the Python path."""
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
    budget: float = math.inf
    """Seconds after which no more changes are tried."""
    json: bool = False
    """Print one JSON object of at most 2,000 characters."""
    all: bool = False
    """Print all findings and changes and the table of layers, in JSON all that is known."""
    progress: bool = True
    """Show a progress bar on stderr."""
    out: Path | None = None
    """Folder for report.html, diagnosis.json and diagnosis.md."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code, that of a verdict only where it has been printed."""
    options = None
    try:
        options = command_line.parse(
            Arguments,
            default=None,
            args=sys.argv[1:] if args is None else args,
            prog="python -m jaxdnn.check",
            description=__doc__,
        )
    except InputError as error:
        return _refuse(str(error), options)
    try:
        _check_options(options)
        with command_line.stdout_kept(), _exit_caught():
            diagnosis = _diagnose(options)
        if options.out is not None:
            _write(diagnosis, options.out)
        shown = _shown(diagnosis, options)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's own code may raise anything, SystemExit too
        return _refuse(_message(error), options)
    try:
        command_line.say(shown)
    except OSError as error:
        return _refuse(f"the verdict cannot be printed: stdout fails ({error.strerror})", None)
    return EXIT_CODES[diagnosis.verdict]


@contextlib.contextmanager
def _exit_caught() -> Iterator[None]:
    """Let `os._exit` raise: the code to examine would end the process, with a verdict's code."""
    leave, process = os._exit, os.getpid()

    def caught(status: int) -> NoReturn:
        if os.getpid() != process:  # A child, which has to end so.
            leave(status)
        if threading.current_thread() is not threading.main_thread():
            print(f"error: {_message(SystemExit(status))}", file=sys.stderr, flush=True)
            leave(NOT_EXAMINED)
        raise SystemExit(status)

    os._exit = caught
    try:
        yield
    finally:
        os._exit = leave


def _refuse(message: str, options: Arguments | None) -> int:
    """Say why nothing was examined."""
    if options is not None and options.json:
        with contextlib.suppress(OSError):
            command_line.say(error_json(message))
    print(f"error: {printable(message)}", file=sys.stderr)
    return NOT_EXAMINED


def _message(error: BaseException) -> str:
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, SystemExit):
        return (
            f"the code to examine ended the process (exit code {error.code!r}) before there was a "
            "verdict; let the module only define the model"
        )
    if message := command_line.of_the_machine(error):
        return message
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300] or 'it says no more'}"


def _shown(diagnosis: Diagnosis, options: Arguments) -> str:
    if options.json:
        return diagnosis.to_json() if options.all else diagnosis.to_short_json()
    return diagnosis.details(fold=False) if options.all else str(diagnosis)


def _write(diagnosis: Diagnosis, folder: Path) -> None:
    try:
        (folder / "diagnosis.json").write_text(diagnosis.to_json(), encoding="utf-8")
        (folder / "diagnosis.md").write_text(diagnosis.to_markdown(), encoding="utf-8")
        (folder / "report.html").write_text(diagnosis.to_html(), encoding="utf-8")
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(f"--out {folder} cannot be written ({error.strerror}); choose another")


def _check_options(options: Arguments) -> None:
    """Check all that can be before any of the user's code runs, which may take long.

    Raises:
      InputError: an option cannot work.
    """
    parse_optimizer(options.optimizer)
    if not 0 <= options.seed <= _LARGEST:
        raise InputError(f"--seed is {options.seed}; give one from 0 to {_LARGEST}")
    if not options.budget > 0:
        raise InputError(f"--budget is {options.budget}; give a positive number of seconds")
    for flag, name in (("the model", options.model), ("--loss", options.loss)):
        if name is not None and not all(name.partition(":")[::2]):
            raise InputError(f"{flag} is {name!r}; give module:function")
    if options.input and options.data is not None:
        raise InputError("both --input and --data came; give --input 64,32,32,3 or --data FILE")
    if options.input:
        _parse_random(options)
    if options.out is not None:
        try:
            options.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(options.out, error) from error


def _diagnose(options: Arguments) -> Diagnosis:
    if options.input or options.data is not None:
        batch = _random(options) if options.data is None else _read(options.data)
        made = _load(options.model, _WANTED)(), *batch
    else:
        made = _load(options.model, _WANTED)()
        if not isinstance(made, tuple) or len(made) != 3:
            raise InputError(
                "neither --input nor --data came; give --input 64,32,32,3 or --data FILE, or let"
                f" {options.model} return (loss function, params, batch)"
            )
    model, inputs, targets = made
    loss = None
    if options.loss is not None:
        loss = _load(options.loss, "a function of (outputs, targets)")
    return diagnose(
        model,
        inputs,
        targets,
        loss=loss,
        optimizer=options.optimizer,
        seed=options.seed,
        budget=options.budget,
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


class _Random(NamedTuple):
    """What random data to draw: shapes, and the largest numbers plus one; 0 for normal ones."""

    shape: tuple[int, ...]
    num_words: int
    num_classes: int
    num_outputs: int


def _parse_random(options: Arguments) -> _Random:
    """Read --input, --input-type and --target.

    Raises:
      InputError: they make no sense, or the data would not fit in memory.
    """
    kind, _, size = options.target.partition(":")
    input_kind, _, words = options.input_type.partition(":")
    try:
        shape, number = tuple(int(part) for part in options.input.split(",")), int(size)
        num_words = int(words) if input_kind == "int" else 1
    except ValueError:
        shape, number, num_words = (), 0, 0
    kinds_are_known = kind in ("int", "float") and input_kind in ("int", "float")
    if not shape or min([*shape, number, num_words]) < 1 or not kinds_are_known:
        raise InputError(
            f"--input {options.input} --input-type {options.input_type} --target {options.target}"
            " came; give positive whole numbers such as --input 64,32,32,3 --target int:10 (or"
            " float:1), or --input 64,128 --input-type int:1000"
        )
    for flag, most in (("--target", number), ("--input-type", num_words)):
        if most > _LARGEST:
            raise InputError(f"{flag} int:{most} came; give at most {_LARGEST}")
    check_memory(f"inputs of --input {options.input}", shape, "choose a smaller batch or shape")
    if kind == "float":
        what = f"targets of --target {options.target}"
        check_memory(what, (shape[0], number), "choose fewer outputs")
    return _Random(
        shape,
        num_words if input_kind == "int" else 0,
        number if kind == "int" else 0,
        number,
    )


def _random(options: Arguments) -> tuple[Any, Any]:
    """Draw inputs and targets: standard normal numbers, or uniform whole ones."""
    random = _parse_random(options)
    input_key, target_key = jax.random.split(jax.random.key(options.seed))
    if random.num_words:
        inputs = jax.random.randint(input_key, random.shape, 0, random.num_words)
    else:
        inputs = jax.random.normal(input_key, random.shape)
    num = random.shape[0]
    if random.num_classes:
        return inputs, jax.random.randint(target_key, (num,), 0, random.num_classes)
    return inputs, jax.random.normal(target_key, (num, random.num_outputs))


def _read(path: Path) -> tuple[Any, Any]:
    remedy = "give an .npz file with arrays `inputs` and `targets`"
    try:
        arrays = read_arrays(path, ("inputs", "targets"), remedy=remedy)
    except InputError as error:
        raise InputError(f"--data {error}") from None
    for name in ("inputs", "targets"):
        if arrays[name].dtype.kind not in "biufc":
            raise InputError(f"--data {path}: {name} are {arrays[name].dtype}; give numbers")
    return jnp.asarray(arrays["inputs"]), jnp.asarray(arrays["targets"])


def script() -> None:
    """Run as `jaxdnn-check`."""

    def answer_last() -> int:
        code = main()
        command_line.end_of_stdout()  # The user's own code may print when the process ends.
        return code

    command_line.run(answer_last)


if __name__ == "__main__":
    script()
