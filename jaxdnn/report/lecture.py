"""Charts of the lecture's chain, from its folder: sizes of the updates, and the classroom game."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from jaxdnn.propagation import walks
from jaxdnn.report.lecture_classroom import draw_walk
from jaxdnn.report.lecture_updates import draw_updates


def draw_lecture(folder: Path) -> list[Path]:
    """Draw both charts of a folder, as PNG and SVG; return the paths of the PNGs."""
    summary = json.loads((folder / "summary.json").read_text())
    everyone = walks(read_table(folder / "lecture_chain.csv"), summary["learning_rate"])
    chain, walk = folder / "lecture_chain.png", folder / "lecture_walk.png"
    draw_updates(everyone, summary, chain)
    draw_walk(everyone, summary, walk)
    return [chain, walk]


def read_table(path: Path) -> dict[str, np.ndarray]:
    """Read a table of the chain: name of each quantity -> (step,)."""
    with path.open(newline="") as file:
        _, *lines = csv.reader(file)
    return {name: np.array(list(map(float, cells))) for name, *cells in lines}
