"""What the charts and the printed findings of the lecture's chain say, and whom they show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxdnn.propagation import Walk

MOST_LANES = 7


def lanes(everyone: Sequence[Walk]) -> list[Walk]:
    """Choose whom to show, from the output back: the last three, and some evenly spaced."""
    depth = len(everyone)
    if depth <= MOST_LANES:
        return list(everyone)[::-1]
    spaced = np.linspace(0, depth - 4, MOST_LANES - 3).round().astype(int)[::-1]
    return [everyone[index] for index in (depth - 1, depth - 2, depth - 3, *spaced)]


def spans(layers: Sequence[int]) -> str:
    """Return `w1 to w3, w7` for 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"w{run[0]}" + (f" to w{run[-1]}" if run[1:] else "") for run in runs)


def about(summary: dict) -> str:
    """Return what the chain is, for titles."""
    neurons = "neuron" if summary["depth"] == 1 else "neurons"
    return f"{summary['depth']} {summary['activation']} {neurons} in a row"


def short(value: float) -> str:
    """Return a number in three digits: 0.0123, 25.2, 54,000, 4·10¹²."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{float(f'{value:.3g}'):,.7g}"
    digits, power = f"{value:.0e}".split("e")
    return f"{digits}·10" + str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
