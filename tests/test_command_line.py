"""What the commands share: help as it was written, and one line for all that goes wrong."""

import dataclasses
import errno
import io
import os
import signal
import sys

import jax
import pytest

from jaxdnn import command_line
from jaxdnn.errors import InputError

from .hostile_files import ESCAPES

ABOUT = """Count.

    count.py --number 1        a first line of examples
    count.py --number 2        a second one
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to count."""

    number: int = 1
    """How many."""


def parse(*args: str) -> Options:
    return command_line.parse(
        Options, default=Options(), args=args, prog="count.py", description=ABOUT
    )


def test_help_keeps_the_lines_of_its_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    said = capsys.readouterr().out
    assert stop.value.code == 0
    assert ABOUT.strip() in said
    assert "How many." in said


def test_options_are_parsed():
    assert parse("--number", "3") == Options(3)
    assert parse() == Options()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--nubmer", "3"], "did you mean --number"),
        (["--number", "three"], "three"),
        (["--number"], "--number"),
    ],
)
def test_bad_options_get_one_line_that_names_the_help(args, expected):
    with pytest.raises(InputError, match=r"count\.py --help lists the options") as caught:
        parse(*args)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def raising(error: BaseException):
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code", "expected"),
    [
        (lambda: 0, 0, ""),
        (lambda: 7, 7, ""),
        (raising(MemoryError()), 2, "error: there is not enough memory"),
        (
            raising(RuntimeError("RESOURCE_EXHAUSTED: Out of")),
            2,
            "error: there is not enough memory",
        ),
        (raising(RuntimeError("Unable to initialize backend 'x'")), 2, "error: JAX finds no such"),
        (raising(OSError(errno.ENAMETOOLONG, "long", "n")), 2, "choose a shorter name"),
        (raising(InputError("3 is no name; give one")), 2, "error: 3 is no name; give one"),
        (raising(OSError(errno.ENOSPC, "No space left", "x")), 2, "make room on the disk"),
        (raising(OSError(errno.EIO, "Input/output error")), 2, "the disk failed"),
        (raising(KeyboardInterrupt()), command_line.INTERRUPTED_EXIT_CODE, "interrupted"),
    ],
)
def test_a_command_ends_with_a_code_and_at_most_one_line(main, code, expected, capsys):
    with pytest.raises(SystemExit) as stop:
        command_line.run(main)
    said = capsys.readouterr().err
    assert stop.value.code == code
    assert expected in said
    assert said.count("\n") == bool(expected)


def test_a_reader_that_has_seen_enough_is_no_error(capsys, monkeypatch):
    monkeypatch.setattr(command_line, "_close_stdout", lambda: None)
    with pytest.raises(SystemExit) as stop:
        command_line.run(raising(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    assert stop.value.code == 1
    assert capsys.readouterr().err == ""


def test_what_is_nobodys_fault_keeps_its_traceback():
    with pytest.raises(OSError, match="no such error"):
        command_line.run(raising(OSError(errno.ENOTTY, "no such error")))
    with pytest.raises(AssertionError):
        command_line.run(raising(AssertionError()))


def test_a_gpu_without_its_plug_in_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(jax, "devices", raising(AssertionError()))
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(SystemExit) as stop:
        command_line.run(raising(AssertionError()))
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.startswith("error: JAX finds no such device (JAX_PLATFORMS=cuda); leave")
    assert said.count("\n") == 1


def test_a_first_signal_is_noted_and_the_handlers_come_back(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with command_line.StopSignal() as stopped:
        assert not stopped()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # A second one stops at once.
    assert signal.getsignal(signal.SIGTERM) == before
    assert "saving, then stopping" in capsys.readouterr().err


def test_the_colours_of_help_stay(capsys, monkeypatch):
    monkeypatch.setattr(command_line._Help, "getvalue", lambda _: "\x1b[1mHelp\x1b[0m")
    with pytest.raises(SystemExit):
        parse("--help")
    assert capsys.readouterr().out == "\x1b[1mHelp\x1b[0m\n"


def test_what_others_have_named_is_said_on_one_line_that_steers_nothing(capsys):
    def fail() -> int:
        command_line.say(f"first {ESCAPES}\nsecond {ESCAPES}")
        raise InputError(f"no {ESCAPES}\nhere")

    with pytest.raises(SystemExit):
        command_line.run(fail)
    said = capsys.readouterr()
    shown = r"\x1b[31m\u202egnp\x07"
    assert said.out == f"first {shown}\nsecond {shown}\n"
    assert said.err == f"error: no {shown}\\nhere\n"


def test_what_stdout_cannot_encode_is_shown_by_number_and_nothing_is_lost(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))

    def main() -> int:
        print("naïve \udcff.png")
        print("the end")
        return 0

    with pytest.raises(SystemExit) as stop:
        command_line.run(main)
    assert stop.value.code == 0
    assert written.getvalue() == b"na\\xefve \\udcff.png\nthe end\n"


def test_a_full_disk_under_stdout_is_one_line(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as stop:
            command_line.run(lambda: print("a table") or 0)
        full.flush()  # What was not written is not tried again when the process ends.
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
