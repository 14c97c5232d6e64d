"""Charts of the lecture's chain, from its folder: sizes of the updates, and the classroom game."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Polygon, Rectangle, Wedge
from matplotlib.ticker import MaxNLocator

from jaxdnn.propagation import lecture
from jaxdnn.report.style import GREY, PALETTE, VERMILION, new_figure, save, tidy

MOST_CURVES = 7
MOST_POINTS = 50
MOST_SQUARES = 26
LEAST_SQUARES = 16
LANE = 1.5


def draw_lecture(folder: Path) -> list[Path]:
    """Draw both charts of a folder, as PNG and SVG; return the paths of the PNGs."""
    summary = json.loads((folder / "summary.json").read_text())
    table = lecture.read_csv(folder / "lecture_chain.csv")
    everyone = lecture.walks(table, summary["learning_rate"])
    chain, walk = folder / "lecture_chain.png", folder / "lecture_walk.png"
    _draw_updates(everyone, summary, chain)
    _draw_walk(everyone, summary, walk)
    return [chain, walk]


def _draw_updates(everyone: Sequence[lecture.Walk], summary: dict, path: Path) -> None:
    """Draw the size of each weight's update over the steps, on a log axis."""
    figure = new_figure(9, 5.4)
    axes = figure.subplots()
    moving = [walk for walk in everyone if walk.updates.any()]
    still = [walk.layer for walk in everyone if not walk.updates.any()]
    block = _block(summary["steps"], summary["num_samples"])
    size = "|D|" if summary["learning_rate"] == 1 else f"|{summary['learning_rate']:g} · D|"
    title = f"Size of each step: {_about(summary)}"
    if still:
        title += f"\n{lecture.spans(still)}: every step is exactly 0"
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


def _draw_curves(axes: Axes, curves: list[lecture.Walk], block: int, summary: dict) -> None:
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
        text = f"below {_short(lost)}: float32 rounds it away"
        at = {"xycoords": ("axes fraction", "data"), "va": "top", "ha": "right"}
        axes.annotate(text, (0.99, lost), fontsize=12, color=VERMILION, **at)


def _apart(values: Sequence[float], gap: float) -> list[float]:
    """Return the values moved down as little as keeps them `gap` apart."""
    places = list(values)
    order = np.argsort(values)[::-1]
    for above, below in itertools.pairwise(order):
        places[below] = min(places[below], places[above] - gap)
    return places


def _draw_walk(everyone: Sequence[lecture.Walk], summary: dict, path: Path) -> None:
    """Draw the classroom from above: a lane of tiles for each weight, and a flag to get to."""
    shown = lecture.lanes(everyone)
    goal = max(walk.distance for walk in everyone)
    paths = [walk.tiles * _direction(walk) for walk in shown]
    room = _room(goal, paths)
    figure = new_figure(13, 2.0 + LANE * len(shown) / room.inch)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.set_xlim(room.first - 1.7 * room.inch, room.last + 3.3 * room.inch)
    axes.set_ylim(room.bottom - 0.6 * room.inch, 1.4 * room.inch)
    for row, (walk, tiles) in enumerate(zip(shown, paths, strict=True)):
        floor = -LANE * (row + 1)
        _draw_floor(axes, room, floor)
        _draw_person(axes, tiles / room.square, floor, PALETTE[row])
        _label(axes, walk, goal, room.columns, floor + 0.5)
        remark = _remark(walk, summary)
        axes.text(0.8, floor + 0.5, remark, va="center", fontsize=13, color=VERMILION)
    axes.plot([0, 0], [room.bottom, 0], color="black", linewidth=2)
    if goal > 0:
        _draw_flag(axes, goal / room.square, room)
    _write_scale(axes, room)
    _write_title(axes, everyone, summary, room)
    save(figure, path, svg=True)


class _Room(NamedTuple):
    """The classroom, measured in squares from the start to the right, and upwards.

    Attributes:
      square: side of a square, in tiles.
      first: the leftmost square.
      last: the end of the rightmost.
      bottom: lower end of the lowest lane.
    """

    square: float
    first: int
    last: int
    bottom: float

    @property
    def inch(self) -> float:
        """An inch of the paper."""
        return (self.last - self.first) / 8.0

    @property
    def columns(self) -> tuple[float, float, float]:
        """Where names end, distances, and paces."""
        return (
            self.first - 0.3 * self.inch,
            self.last + 1.4 * self.inch,
            self.last + 3.1 * self.inch,
        )


def _room(goal: float, paths: Sequence[np.ndarray]) -> _Room:
    """Return a room that holds the flag and all paths, in tiles."""
    least = min(tiles.min() for tiles in paths)
    most = max(goal, *(tiles.max() for tiles in paths))
    square = _square(most - least)
    first = math.floor(least / square)
    last = max(math.ceil(most / square + 0.6), first + LEAST_SQUARES)
    return _Room(square, first, last, -LANE * len(paths))


def _write_scale(axes: Axes, room: _Room) -> None:
    """Write the tiles under the floor, and what the columns on the right are."""
    bottom, inch = room.bottom, room.inch
    for column in range(room.first, room.last + 1):
        if column % 5 == 0:
            text = f"{column * room.square:g}"
            axes.text(column, bottom - 0.08 * inch, text, ha="center", va="top", fontsize=12)
    axes.text(0, bottom - 0.3 * inch, "floor tiles from the start", va="top", fontsize=12)
    heads = ("from start", "to the flag,\nat this pace")
    for place, text in zip(room.columns[1:], heads, strict=True):
        axes.text(place, 0.1 * inch, text, ha="right", va="bottom", fontsize=12, color=GREY)


def _write_title(axes: Axes, everyone: Sequence[lecture.Walk], summary: dict, room: _Room) -> None:
    left, inch = room.first - 1.5 * room.inch, room.inch
    far, near = (choose(everyone, key=lambda walk: walk.distance) for choose in (max, min))
    steps = "1 step" if summary["steps"] == 1 else f"{summary['steps']:,} steps"
    title = f"After {steps} {far.name} is {_short(far.distance)} tiles from its start"
    if near is not far:
        title += f", {near.name} {_short(near.distance)}"
    if far.distance == 0:
        title = f"After {steps} nobody has moved: every D is exactly 0"
    rate = "" if summary["learning_rate"] == 1 else f"{summary['learning_rate']:g} · "
    tiles = f"{lecture.TILES_PER_UNIT} · {rate}D tiles"
    game = f"{_about(summary)}; each step is {tiles}, a dot after each"
    axes.text(left, 1.25 * inch, title, va="top", fontsize=18, fontweight="bold")
    axes.text(left, 0.87 * inch, game, va="top", fontsize=12, color=GREY)


def _direction(walk: lecture.Walk) -> float:
    """Return the sign that turns the end of a walk to the right."""
    return -1.0 if walk.tiles[-1] < 0 else 1.0


def _square(span: float) -> float:
    """Return 1, 2 or 5 times a power of ten, in tiles: the side of squares that cover `span`."""
    if span == 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / MOST_SQUARES))
    return next(step * power for step in (1, 2, 5, 10) if span <= MOST_SQUARES * step * power)


def _draw_floor(axes: Axes, room: _Room, height: float) -> None:
    for column in range(room.first, room.last):
        colour = "#f4f1ea" if column % 2 else "#e6e1d3"
        axes.add_patch(Rectangle((column, height), 1, 1, facecolor=colour, edgecolor="white"))


def _draw_person(axes: Axes, places: np.ndarray, height: float, colour: str) -> None:
    """Draw a path with a dot after each step, an outline at its start and a person at its end."""
    middle = np.full(len(places), height + 0.16)
    dots = "o" if len(places) <= 100 else None
    axes.plot(places, middle, color=colour, linewidth=2, marker=dots, markersize=5)
    for place, face, line in ((0.0, "white", colour), (places[-1], colour, "white")):
        for part in (
            Wedge((place, height + 0.22), 0.36, 0, 180),
            Circle((place, height + 0.82), 0.24),
        ):
            part.set(facecolor=face, edgecolor=line, linewidth=1.2, zorder=4)
            axes.add_patch(part)


def _draw_flag(axes: Axes, place: float, room: _Room) -> None:
    top = 0.5 * room.inch
    axes.plot([place, place], [room.bottom, top], color="black", linewidth=2)
    flag = [(place, top), (place + 0.35 * room.inch, top * 0.75), (place, top * 0.5)]
    axes.add_patch(Polygon(flag, facecolor=VERMILION, edgecolor="black", zorder=4))


def _label(
    axes: Axes, walk: lecture.Walk, goal: float, columns: tuple[float, float, float], middle: float
) -> None:
    """Write name and weight to the left of a lane, distance and pace to the right."""
    left, walked, pace = columns
    at = {"va": "center", "fontsize": 14}
    axes.text(left, middle + 0.2, walk.name, ha="right", fontweight="bold", **at)
    change = f"{walk.start:.7g} → {walk.end:.7g}"
    axes.text(left, middle - 0.35, change, ha="right", va="center", fontsize=10, color=GREY)
    axes.text(walked, middle, f"{_short(walk.distance)} tiles", ha="right", **at)
    steps = walk.steps_to(goal)
    there = goal > 0 and walk.distance == goal
    text = "is there" if there else "never" if math.isinf(steps) else f"{_short(steps)} steps"
    axes.text(pace, middle, text, ha="right", color=GREY if there else VERMILION, **at)


def _remark(walk: lecture.Walk, summary: dict) -> str:
    if not walk.updates.any():
        return "every D is exactly 0"
    unmoved = walk.layer in summary["unmoved_in_float32"]
    return "in float32: does not move at all" if unmoved else ""


def _about(summary: dict) -> str:
    """Return what the chain is, for titles."""
    neurons = "neuron" if summary["depth"] == 1 else "neurons"
    return f"{summary['depth']} {summary['activation']} {neurons} in a row"


def _short(value: float) -> str:
    """Return a number in three digits: 0.0123, 25.2, 54,000, 4·10¹²."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{float(f'{value:.3g}'):,.7g}"
    digits, power = f"{value:.0e}".split("e")
    return f"{digits}·10" + str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
