"""Progress on stderr: a bar on a terminal, and anywhere else a plain line now and then."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from jaxdnn.names import printable

LINE_SECONDS = 30.0
LINE_FRACTION = 0.1
_LINE = "{desc}{percentage:3.0f}% {n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}{postfix}]"


def progress_bar(
    *,
    total: int,
    desc: str,
    disable: bool = False,
    initial: int = 0,
    unit: str = "",
    leave: bool = True,
    delay: float = 0.0,
) -> tqdm:
    """Return a bar to be moved by `update(n)`; a context manager.

    Where stderr is no terminal, such as a log file, it is a line after every tenth of the work
    and every 30 seconds.

    Args:
      total: what there is to do, in units.
      desc: a word for it, such as `training`.
      disable: show nothing.
      initial: how much of it was done before.
      unit: word after the count, with its space, such as ` images`.
      leave: whether the bar stays on the terminal when it is done.
      delay: seconds before anything is shown: what takes less is not worth a bar.
    """
    kind = _Bar if sys.stderr.isatty() else _Lines
    return kind(
        total=total,
        desc=f"{desc}: ",
        disable=disable,
        initial=initial,
        unit=unit,
        unit_scale=total >= 1000,  # 1.2k, but 12 and not 12.0
        leave=leave,
        delay=delay,
        file=sys.stderr,
        dynamic_ncols=True,
    )


def write_line(text: str) -> None:
    """Write a line to stderr, above the bar if there is one."""
    tqdm.write(printable(text), file=sys.stderr)


class _Bar(tqdm):
    """A bar that tells time by a clock that nobody can set back: by tqdm's it would stand still."""

    monitor_interval = 0  # tqdm's thread that draws what is late compares with the other clock.

    def __init__(self, **options: Any):
        super().__init__(miniters=1, **options)
        self._time = time.monotonic
        self.start_t = self.last_print_t = self._time()


class _Lines(_Bar):
    """A bar that writes lines, and never returns to the start of one."""

    def __init__(self, *, total: int, initial: int, delay: float, **options: Any):
        self._least, self._said = LINE_FRACTION * total, initial
        self._said_at = time.monotonic()
        self._shown_from = self._said_at + delay
        super().__init__(total=total, initial=initial, delay=delay, bar_format=_LINE, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        now, done = time.monotonic(), self.n - self._said
        is_due = done >= self._least or now - self._said_at >= LINE_SECONDS
        if done and now >= self._shown_from and (is_due or self.n == self.total):
            self._said, self._said_at = self.n, now
            self.fp.write(f"{self}\n")

    def clear(self, nolock: bool = False) -> None:
        """Leave what is written."""

    def close(self) -> None:
        """Write what was done last."""
        if not self.disable:
            self.display()
            self.disable = True
