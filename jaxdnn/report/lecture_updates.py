"""Chart of the lecture's chain: the size of each weight's update over the steps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from jaxdnn.propagation import Walk
from jaxdnn.report.lecture_words import about, short, spans
from jaxdnn.report.style import PALETTE, VERMILION, new_figure, save, tidy

MOST_CURVES = 7
MOST_POINTS = 50


def draw_updates(everyone: Sequence[Walk], summary: dict, path: Path) -> None:
    """Draw the size of each weight's update over the steps, on a log axis."""
    figure = new_figure(9, 5.4)
    axes = figure.subplots()
    moving = [walk for walk in everyone if walk.updates.any()]
    still = [walk.layer for walk in everyone if not walk.updates.any()]
    block = _block(summary["steps"], summary["num_samples"])
    size = "|D|" if summary["learning_rate"] == 1 else f"|{summary['learning_rate']:g} · D|"
    title = f"Size of each step: {about(summary)}"
    if still:
        title += f"\n{spans(still)}: every step is exactly 0"
    tidy(axes, title=title, x="step", y=size + (f", mean of {block} steps" if block > 1 else ""))
    axes.set_xlim(0.8, summary["steps"] + 0.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if moving:
        picks = np.linspace(len(moving) - 1, 0, min(MOST_CURVES, len(moving))).round().astype(int)
        _draw_curves(axes, [moving[index] for index in picks], block, summary)
    else:
        axes.set_yticks([])
    save(figure, path, svg=True)


def _block(num_steps: int, num_samples: int) -> int:
    """Return how many steps make one dot: whole passes of the samples, where they fit."""
    block = -(-num_steps // MOST_POINTS)
    if block == 1 or num_samples * 10 > num_steps:
        return block
    return -(-block // num_samples) * num_samples


def _draw_curves(axes: Axes, curves: list[Walk], block: int, summary: dict) -> None:
    """Draw the curves and their names at their ends; where an update is 0 there is no dot."""
    axes.set_yscale("log")
    steps = np.arange(1, summary["steps"] + 1)
    starts = np.arange(0, len(steps), block)
    counts = np.diff([*starts, len(steps)])
    logs = []
    for walk, colour in zip(curves, PALETTE, strict=False):
        sizes = np.add.reduceat(np.abs(walk.updates), starts) / counts
        middles = np.add.reduceat(steps, starts) / counts
        some = sizes > 0
        axes.plot(middles[some], sizes[some], "-o", color=colour, linewidth=2.2, markersize=5)
        logs.append(np.log10(sizes[some]))
    low, high = min(map(np.min, logs)), max(map(np.max, logs))
    margin = 0.2 + 0.05 * (high - low)
    low, high = max(low - margin, -307.5), high + margin
    axes.set_ylim(10**low, 10**high)
    _shade_float32(axes, summary)
    places = _apart([log[-1] for log in logs], gap=0.055 * (high - low))
    for walk, place, colour in zip(curves, places, PALETTE, strict=False):
        end = (1.01, (place - low) / (high - low))
        text = {"color": colour, "fontsize": 13, "fontweight": "bold", "va": "center"}
        axes.annotate(walk.name, end, xycoords="axes fraction", annotation_clip=False, **text)


def _shade_float32(axes: Axes, summary: dict) -> None:
    """Shade the sizes that float32 rounds away, where the axis gets there."""
    low, high = axes.get_ylim()
    with np.errstate(over="ignore", invalid="ignore"):
        # On the side of zero, where float32 is finer at powers of two.
        weight = np.nextafter(np.float32(abs(summary["weight"])), np.float32(0))
        lost = float(np.spacing(weight)) / 2
    if low < lost < high:
        axes.axhspan(low, lost, color="#eeeeee", zorder=0)
        text = f"below {short(lost)}: float32 rounds it away"
        at = {"xycoords": ("axes fraction", "data"), "va": "top", "ha": "right"}
        axes.annotate(text, (0.99, lost), fontsize=12, color=VERMILION, **at)


def _apart(values: Sequence[float], gap: float) -> list[float]:
    """Return the values moved down as little as keeps them `gap` apart."""
    places = list(values)
    order = np.argsort(values)[::-1]
    for above, below in itertools.pairwise(order):
        places[below] = min(places[below], places[above] - gap)
    return places
