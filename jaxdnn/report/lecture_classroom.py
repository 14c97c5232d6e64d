"""Chart of the lecture's chain: the classroom game from above, a lane for each weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Polygon, Rectangle, Wedge

from jaxdnn.propagation import TILES_PER_UNIT, Walk
from jaxdnn.report.lecture_words import about, lanes, short
from jaxdnn.report.style import GREY, PALETTE, VERMILION, new_figure, save

MOST_SQUARES = 26
LEAST_SQUARES = 16
LANE = 1.5


def draw_walk(everyone: Sequence[Walk], summary: dict, path: Path) -> None:
    """Draw the classroom from above: a lane of tiles for each weight, and a flag to get to."""
    shown = lanes(everyone)
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


class Room(NamedTuple):
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


def _room(goal: float, paths: Sequence[np.ndarray]) -> Room:
    """Return a room that holds the flag and all paths, in tiles."""
    least = min(tiles.min() for tiles in paths)
    most = max(goal, *(tiles.max() for tiles in paths))
    square = _square(most - least)
    first = math.floor(least / square)
    last = max(math.ceil(most / square + 0.6), first + LEAST_SQUARES)
    return Room(square, first, last, -LANE * len(paths))


def _write_scale(axes: Axes, room: Room) -> None:
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


def _write_title(axes: Axes, everyone: Sequence[Walk], summary: dict, room: Room) -> None:
    left, inch = room.first - 1.5 * room.inch, room.inch
    far, near = (choose(everyone, key=lambda walk: walk.distance) for choose in (max, min))
    steps = "1 step" if summary["steps"] == 1 else f"{summary['steps']:,} steps"
    title = f"After {steps} {far.name} is {short(far.distance)} tiles from its start"
    if near is not far:
        title += f", {near.name} {short(near.distance)}"
    if far.distance == 0:
        title = f"After {steps} nobody has moved: every D is exactly 0"
    rate = "" if summary["learning_rate"] == 1 else f"{summary['learning_rate']:g} · "
    game = f"{about(summary)}; each step is {TILES_PER_UNIT} · {rate}D tiles, a dot after each"
    axes.text(left, 1.25 * inch, title, va="top", fontsize=18, fontweight="bold")
    axes.text(left, 0.87 * inch, game, va="top", fontsize=12, color=GREY)


def _direction(walk: Walk) -> float:
    """Return the sign that turns the end of a walk to the right."""
    return -1.0 if walk.tiles[-1] < 0 else 1.0


def _square(span: float) -> float:
    """Return 1, 2 or 5 times a power of ten, in tiles: the side of squares that cover `span`."""
    if span == 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / MOST_SQUARES))
    return next(step * power for step in (1, 2, 5, 10) if span <= MOST_SQUARES * step * power)


def _draw_floor(axes: Axes, room: Room, height: float) -> None:
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


def _draw_flag(axes: Axes, place: float, room: Room) -> None:
    top = 0.5 * room.inch
    axes.plot([place, place], [room.bottom, top], color="black", linewidth=2)
    flag = [(place, top), (place + 0.35 * room.inch, top * 0.75), (place, top * 0.5)]
    axes.add_patch(Polygon(flag, facecolor=VERMILION, edgecolor="black", zorder=4))


def _label(
    axes: Axes, walk: Walk, goal: float, columns: tuple[float, float, float], middle: float
) -> None:
    """Write name and weight to the left of a lane, distance and pace to the right."""
    left, walked, pace = columns
    at = {"va": "center", "fontsize": 14}
    axes.text(left, middle + 0.2, walk.name, ha="right", fontweight="bold", **at)
    change = f"{walk.start:.7g} → {walk.end:.7g}"
    axes.text(left, middle - 0.35, change, ha="right", va="center", fontsize=10, color=GREY)
    axes.text(walked, middle, f"{short(walk.distance)} tiles", ha="right", **at)
    steps = walk.steps_to(goal)
    there = goal > 0 and walk.distance == goal
    text = "is there" if there else "never" if math.isinf(steps) else f"{short(steps)} steps"
    axes.text(pace, middle, text, ha="right", color=GREY if there else VERMILION, **at)


def _remark(walk: Walk, summary: dict) -> str:
    if not walk.updates.any():
        return "every D is exactly 0"
    unmoved = walk.layer in summary["unmoved_in_float32"]
    return "in float32: does not move at all" if unmoved else ""
