"""What the commands share: options from dataclasses, one-line errors, a stop that saves first."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO, TypeVar

import tyro

from jaxdnn.errors import InputError
from jaxdnn.names import printable, printable_lines
from jaxdnn.xla import set_flags

T = TypeVar("T")

INTERRUPTED_EXIT_CODE = 130
RESUME_EXIT_CODE = 75
"""What was done is saved: run me again (EX_TEMPFAIL of sysexits.h)."""
_DISK_ERRORS = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room within your quota",
    errno.EFBIG: "raise the limit on the size of files",
    errno.EROFS: "choose another folder",
    errno.EACCES: "mend its permissions, or choose another folder",
    errno.EPERM: "mend its permissions, or choose another folder",
    errno.EIO: "check the disk",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "choose a folder",
    errno.EISDIR: "choose another name",
    errno.ELOOP: "mend the link, or choose another folder",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.ENOMEM: "close other programs, or choose a smaller size",
}
_PLACE = "DESCRIPTION"
_RULE = re.compile(r"-*")
_BORDERS = re.compile(r"[│╭╮╰╯─]+")


def parse(
    kind: type[T], *, default: T | None, args: Sequence[str], prog: str, description: str | None
) -> T:
    """Parse options into the dataclass `kind`; nested stages do not prefix their options.

    Args:
      kind: a dataclass whose fields are documented by the strings below them.
      default: values of the options that are not given; None where `kind` has them all.
      args: the command line, without the program.
      prog: name of the program.
      description: what `--help` opens with; its lines stay as they are.

    Raises:
      InputError: with tyro's message on one line.
    """
    shown, said = _Help(sys.stdout), io.StringIO()
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(said):
            return tyro.cli(
                tyro.conf.OmitArgPrefixes[kind],
                default=tyro.MISSING_NONPROP if default is None else default,
                args=list(args),
                prog=prog,
                description=_PLACE,
            )
    except SystemExit as stop:
        if stop.code != 0:
            raise InputError(_one_line(said.getvalue(), prog)) from None
        # Tyro would run the lines of the examples together.
        _print(shown.getvalue().replace(_PLACE, (description or "").strip()).rstrip())
        raise


class _Help(io.TextIOWrapper):
    """Keeps what is printed; boxes and colours are drawn as they would be for `stdout`."""

    def __init__(self, stdout: TextIO) -> None:
        super().__init__(io.BytesIO(), stdout.encoding, errors="replace", write_through=True)
        self.isatty = stdout.isatty

    def getvalue(self) -> str:
        self.seek(0)
        return self.read()


def _one_line(box: str, prog: str) -> str:
    """Take the message out of tyro's box: what stands between its title and the next rule."""
    body = [_BORDERS.sub("", line).strip() for line in box.strip().splitlines()[1:]]
    blocks = "\n".join("" if _RULE.fullmatch(line) else line for line in body).strip("\n")
    message, _, rest = blocks.partition("\n\n")
    message = re.sub(r"^Error parsing \S+: ", "", " ".join(message.split())).rstrip(".")
    hint = re.search(r"Perhaps you meant:\n(\S+)", rest)
    meant = f" (did you mean {hint.group(1)}?)" if hint else ""
    return f"{message}{meant}; {prog} --help lists the options"


def run(main: Callable[[], int]) -> None:
    """Exit with what a command's `main` returns; say what is wrong on one line, not in a traceback.

    The flags of the compiler are set first, so nothing may be computed before.
    """
    set_flags()
    os.environ["MPLBACKEND"] = "agg"  # Charts go to files alone, whatever the shell has set.
    _open_closed()
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal does not have, or a file's name that is no text, is shown
        # by its number: what has been computed is not lost for it.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main()
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        code = 2
    except BrokenPipeError:
        _close_stdout()
        code = 1
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        name = printable(str(error.filename or ""))
        where = f"{name} cannot be used" if name else "the disk failed"
        remedy = _DISK_ERRORS[error.errno]
        print(f"error: {where} ({error.strerror}); {remedy}, then go on", file=sys.stderr)
        _drop_unwritable()
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED_EXIT_CODE
    except (MemoryError, RuntimeError, AssertionError) as error:
        if not (message := of_the_machine(error)):
            raise
        print(f"error: {message}", file=sys.stderr)
        code = 2
    sys.exit(code)


def of_the_machine(error: BaseException) -> str:
    """Say in one line what the machine lacks; '' where an error is not about that.

    JAX's errors are known by their words. Of a GPU without its plug-in it has none: it asserts that
    there is a device.
    """
    said = " ".join(str(error).split())[:200]
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return "there is not enough memory; choose a smaller network, batch or image size"
    if isinstance(error, AssertionError) and not _has_device():
        said = f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
    elif not said.startswith(("Unable to initialize backend", "Unknown backend")):
        return ""
    return (
        f"JAX finds no such device ({said}); leave JAX_PLATFORMS out, set it to cpu, or install "
        "the JAX that knows the device, such as jax[cuda13]"
    )


def _has_device() -> bool:
    import jax

    try:
        return bool(jax.devices())
    except (RuntimeError, AssertionError):
        return False


def _open_closed() -> None:
    """Open what the shell has closed (`>&-`): the next file would take its place, and its noise."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free: those before it are open by now.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115


def say(text: str) -> None:
    """Print lines, each of them made `printable`."""
    _print(printable_lines(text))


def _print(text: str) -> None:
    """Print; a reader that has seen enough (`| head`) changes nothing."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _close_stdout()
    except OSError:
        _drop_unwritable()
        raise


@contextlib.contextmanager
def stdout_kept() -> Iterator[None]:
    """Send to stderr whatever other code prints meanwhile, from below Python as well."""
    with contextlib.redirect_stdout(sys.stderr), contextlib.ExitStack() as after:
        with contextlib.suppress(OSError):  # One of them is closed.
            kept = os.dup(1)
            after.callback(os.close, kept)
            os.dup2(2, 1)
            after.callback(os.dup2, kept, 1)
            # What waits in a buffer goes where it was meant to go when it was printed.
            after.callback(_flush, sys.__stdout__)
        yield


def _flush(stream: TextIO | None) -> None:
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def end_of_stdout() -> None:
    """Let whatever is printed from here on, while the process ends, go to stderr."""
    _flush(sys.stdout)
    with contextlib.suppress(OSError):
        os.dup2(2, 1)


def _drop_unwritable() -> None:
    """Let what stdout does not take go nowhere: Python would try again, and fail, at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        _close_stdout()


def _close_stdout() -> None:
    """Let what is still to be flushed go nowhere: who read the output has seen enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class StopSignal:
    """Notes Ctrl-C and SIGTERM (preemption), so that a run can save before it stops.

    A second one stops at once.
    """

    def __init__(self) -> None:
        self._received = False

    def __enter__(self) -> StopSignal:
        self._previous = {
            number: signal.signal(number, self._receive)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return self._received

    def _receive(self, *_: object) -> None:
        self._received = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        print("\nsaving, then stopping (once more stops at once)", file=sys.stderr)
