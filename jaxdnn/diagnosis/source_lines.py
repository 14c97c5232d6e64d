"""The line of a user's file that an operation was written in.

JAX keeps with every equation the calls that led to it. The line is that of the innermost call
outside JAX, outside installed libraries and outside this package; a library's own where there is no
such call, as for the loss that a library offers. What JAX compiles once for all callers, such as
the inside of `jnp.where`, has no calls of its own and takes those of the equation around it.
"""

from __future__ import annotations

import linecache
import os
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from jax.extend import core, source_info_util

_JAX = f"{Path(jax.__file__).parent}{os.sep}"
# Whoever traces a user's function stands here; calls around it are not the user's model.
_TRACERS = f"{Path(__file__).parent}{os.sep}"
_INSTALLED = f"{os.sep}site-packages{os.sep}"
_LIBRARIES = (
    f"{Path(__file__).parents[1]}{os.sep}",
    *(f"{sysconfig.get_path(name)}{os.sep}" for name in ("purelib", "platlib", "stdlib")),
)
_LONGEST_TEXT = 80


class SourceLine(NamedTuple):
    """A line of a file.

    Attributes:
      file: its path.
      line: number from 1.
      text: what it says, without indentation and cut at 80 characters; empty if unreadable.
    """

    file: str
    line: int
    text: str

    @property
    def is_own(self) -> bool:
        """Whether it stands outside installed libraries and this package."""
        return not self.file.startswith(_LIBRARIES) and _INSTALLED not in self.file

    def __str__(self) -> str:
        text = f" `{self.text}`" if self.text else ""
        _, installed, below = self.file.rpartition(_INSTALLED)
        return f"{below if installed else Path(self.file).name}:{self.line}{text}"


def source_line(equations: Sequence[core.JaxprEqn]) -> SourceLine | None:
    """Return the line of an operation; None where no call outside JAX is known.

    Args:
      equations: that of the operation, then those of the calls around it, innermost first.
    """
    found = None
    for eqn in equations:
        outside, own = _lines_of(eqn)
        if own is not None:
            return own
        found = found or outside
    return found


def _lines_of(eqn: core.JaxprEqn) -> tuple[SourceLine | None, SourceLine | None]:
    """The innermost line outside JAX, and the innermost of the user's own."""
    outside: SourceLine | None = None
    traceback = eqn.source_info.traceback
    for frame in () if traceback is None else traceback.frames:
        name = frame.file_name
        if name.startswith(_TRACERS):
            break
        if name.startswith((_JAX, "<frozen")):
            continue
        line = _line(name, frame.line_num)
        outside = outside or line
        if line.is_own:
            return outside, line
    return outside, None


def _line(file: str, number: int) -> SourceLine:
    text = linecache.getline(file, number).strip()
    text = text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "..."
    return SourceLine(file, number, text)


def place(equations: Sequence[core.JaxprEqn]) -> str:
    """Return what is equal for operations of one call in one line: file, line and column."""
    summaries = (source_info_util.summarize(eqn.source_info) for eqn in equations)
    return next(filter(None, summaries), "")
