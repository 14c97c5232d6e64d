"""What the lecture's command prints: the slides' table, and who got how far."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdnn.activations import Activation
from jaxdnn.propagation import TILES_PER_UNIT, Walk
from jaxdnn.report import lanes, spans

MOST_ROWS = 10
MOST_COLUMNS = 7


def print_table(table: Mapping[str, np.ndarray], columns: Sequence[str], rest: str) -> None:
    """Print the table, without the middle of what is long; `rest` says where that is."""
    shown = _ends(range(len(columns)), MOST_COLUMNS)
    _print_row("", ["..." if at is None else columns[at] for at in shown])
    for _, block in itertools.groupby(table, key=lambda name: re.split(r"[\d\[]", name)[0]):
        for name in _ends(list(block), MOST_ROWS):
            if name is None:
                print(f"  ... ({rest})")
            else:
                cells = ["..." if at is None else _cell(table[name][at]) for at in shown]
                _print_row(name, cells)


def _ends(items: Sequence[Any], most: int) -> list[Any]:
    if len(items) <= most:
        return list(items)
    return [*items[: most // 2], None, *items[-(most // 2) :]]


def _print_row(name: str, cells: Sequence[str]) -> None:
    print(f"{name:8}" + "".join(f"{cell:>15}" for cell in cells))


def _cell(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:.9f}" if 1e-4 <= abs(value) < 1e3 else f"{value:.6e}"


def print_findings(summary: dict[str, Any], everyone: Sequence[Walk], phi: Activation) -> None:
    """Print who walked how far, and what stood in the way."""
    _print_walks(everyone, summary["goal_tiles"])
    if summary["depth"] > 1 and summary["delta_factor_per_layer"]:
        print(
            f"On its way back delta is multiplied by w phi'(z) at each neuron, here by "
            f"{summary['delta_factor_per_layer']:.3g} on average; phi' of {phi.name} is at most "
            f"{phi.derivative_range[1]:.3g}."
        )
    unmoved, zero = summary["unmoved_in_float32"], summary["never_updated"]
    if unmoved != zero:
        print(
            f"In float32 {spans(unmoved)} would not move at all: rounding takes each update away."
        )
    if zero:
        print(f"D is exactly 0 for {spans(zero)}: a neuron is dead, or D is below 1e-307.")


def _print_walks(everyone: Sequence[Walk], goal: float) -> None:
    print(f"\nOn floor tiles, {TILES_PER_UNIT} to a change of a weight by 1:")
    print(f"{'':8}{'first step':>15}{'last step':>15}{'from start':>15}{'steps to the flag':>20}")
    for walk in lanes(everyone):
        first, last = (f"{TILES_PER_UNIT * walk.updates[at]:+.3g}" for at in (0, -1))
        left = _steps_left(walk, goal)
        print(f"{walk.name:8}{first:>15}{last:>15}{walk.distance:>15.3g}{left:>20}")
    if goal > 0:
        print("(The flag is where the weight stands that got farthest; the pace is that so far.)")


def _steps_left(walk: Walk, goal: float) -> str:
    pace = walk.steps_to(goal)
    if goal > 0 and walk.distance == goal:
        return "is there"
    if math.isinf(pace):
        return "never"
    return f"{pace:,.0f}" if pace < 1e6 else f"{pace:.1e}"
