"""The samples of the lecture's chain, from a user's CSV file."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxdnn.errors import InputError


def read_samples(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return x (sample, input) and y (sample,) of a CSV file.

    Raises:
      InputError: it cannot be read, or a cell is missing or not a number.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file)
            header = [name.strip() for name in next(lines, [])]
            rows = [(lines.line_num, cells) for cells in lines if cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file of comma-separated rows"
        raise InputError(f"--samples {path} cannot be read: {reason}") from error
    expected = [*(f"x{number}" for number in range(1, len(header))), "y"]
    if len(header) < 2 or header != expected:
        raise InputError(
            f"--samples {path}: the header is {','.join(header)!r}; name the columns x1,x2,...,y"
        )
    if not rows:
        raise InputError(f"--samples {path} has no rows below its header; give at least one sample")
    table = np.array([_read_row(f"--samples {path}, row {row}", header, c) for row, c in rows])
    return table[:, :-1], table[:, -1]


def _read_row(where: str, header: Sequence[str], cells: Sequence[str]) -> list[float]:
    if len(cells) > len(header):
        raise InputError(f"{where} has {len(cells)} cells; the header has {len(header)}")
    filled = itertools.zip_longest(header, cells, fillvalue="")
    return [_read_cell(f"{where}, column {name}", name, cell.strip()) for name, cell in filled]


def _read_cell(where: str, name: str, cell: str) -> float:
    if not cell:
        raise InputError(f"{where} is missing; fill it in (the header is row 1)")
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where} is {cell!r}; give a finite number (the header is row 1)")
    if name == "y" and value not in (0, 1):
        raise InputError(f"{where} is {cell}; the target y is 0 or 1 (the header is row 1)")
    return value
