"""Charts of the lecture's chain, from its folder: sizes of the updates, and the classroom game.

In the game a person stands for each weight. All start side by side, and in each training step a
person walks 60 * rate * D floor tiles: 60 tiles are a change of the weight by 1.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Polygon, Rectangle, Wedge
from matplotlib.ticker import MaxNLocator

from jaxdnn.report.style import GREY, PALETTE, VERMILION, new_figure, save, tidy

TILES_PER_UNIT = 60
MOST_CURVES = 7
MOST_POINTS = 50
MOST_LANES = 7
MOST_SQUARES = 26
LEAST_SQUARES = 16
LANE = 1.5


@dataclasses.dataclass(frozen=True)
class Walk:
    """How one weight moved.

    Attributes:
      layer: its number, 1 nearest the input.
      name: `w3`, or of several inputs' weights in the first layer the one that got farthest.
      start: before the first step.
      updates: (step,), what each step added: -rate * D.
    """

    layer: int
    name: str
    start: float
    updates: np.ndarray

    @property
    def tiles(self) -> np.ndarray:
        """Where it stands, in tiles from its start, before the first and after each step."""
        return TILES_PER_UNIT * np.concatenate([[0.0], np.cumsum(self.updates)])

    @property
    def distance(self) -> float:
        """How far from its start it ends, in tiles."""
        return float(abs(self.tiles[-1]))

    @property
    def end(self) -> float:
        """The weight after the last step."""
        return self.start + float(self.updates.sum())

    def steps_to(self, goal: float) -> float:
        """Return how many steps it needs to get `goal` tiles away, at the pace of these steps."""
        steps = len(self.updates) * goal / self.distance if self.distance else math.inf
        return float(np.ceil(steps))


def walks(table: Mapping[str, np.ndarray], learning_rate: float) -> list[Walk]:
    """Return the walk of each layer's weight, the first layer's first."""
    found: dict[int, Walk] = {}
    for name, weights in table.items():
        if name.startswith("w"):
            layer = int(name[1:].partition("[")[0])
            updates = 0.0 - learning_rate * table["D" + name[1:]]
            walk = Walk(layer, name, float(weights[0]), updates)
            found[layer] = max(found.get(layer, walk), walk, key=lambda walk: walk.distance)
    return list(found.values())


def spans(layers: Sequence[int]) -> str:
    """Return `w1 to w3, w7` for 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"w{run[0]}" + (f" to w{run[-1]}" if run[1:] else "") for run in runs)


def lanes(everyone: Sequence[Walk]) -> list[Walk]:
    """Choose whom to show, from the output back: the last three, and some evenly spaced."""
    depth = len(everyone)
    if depth <= MOST_LANES:
        return list(everyone)[::-1]
    spaced = np.linspace(0, depth - 4, MOST_LANES - 3).round().astype(int)[::-1]
    return [everyone[index] for index in (depth - 1, depth - 2, depth - 3, *spaced)]


def read_table(path: Path) -> dict[str, np.ndarray]:
    """Read a table of the chain: name of each quantity -> (step,)."""
    with path.open(newline="") as file:
        _, *lines = csv.reader(file)
    return {name: np.array(list(map(float, cells))) for name, *cells in lines}


def draw_all(folder: Path) -> list[Path]:
    """Draw both charts of a folder, as PNG and SVG; return the paths of the PNGs."""
    summary = json.loads((folder / "summary.json").read_text())
    everyone = walks(read_table(folder / "lecture_chain.csv"), summary["learning_rate"])
    chain, walk = folder / "lecture_chain.png", folder / "lecture_walk.png"
    draw_updates(everyone, summary, chain)
    draw_walk(everyone, summary, walk)
    return [chain, walk]


def _about(summary: dict) -> str:
    neurons = "neuron" if summary["depth"] == 1 else "neurons"
    return f"{summary['depth']} {summary['activation']} {neurons} in a row"


def draw_updates(everyone: Sequence[Walk], summary: dict, path: Path) -> None:
    """Draw the size of each weight's update over the steps, on a log axis."""
    figure = new_figure(9, 5.4)
    axes = figure.subplots()
    moving = [walk for walk in everyone if walk.updates.any()]
    still = [walk.layer for walk in everyone if not walk.updates.any()]
    block = _block(summary["steps"], summary["num_samples"])
    size = "|D|" if summary["learning_rate"] == 1 else f"|{summary['learning_rate']:g} · D|"
    title = f"Size of each step: {_about(summary)}"
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


def draw_walk(everyone: Sequence[Walk], summary: dict, path: Path) -> None:
    """Draw the classroom from above: a lane of tiles for each weight, and a flag to get to."""
    shown = lanes(everyone)
    goal = max(walk.distance for walk in everyone)
    paths = [walk.tiles * _direction(walk) for walk in shown]
    least = min(tiles.min() for tiles in paths)
    most = max(goal, *(tiles.max() for tiles in paths))
    unit = _square(most - least)
    first = math.floor(least / unit)
    last = max(math.ceil(most / unit + 0.6), first + LEAST_SQUARES)
    inch, bottom = (last - first) / 8.0, -LANE * len(shown)
    figure = new_figure(13, 2.0 + LANE * len(shown) / inch)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.set_xlim(first - 1.7 * inch, last + 3.3 * inch)
    axes.set_ylim(bottom - 0.6 * inch, 1.4 * inch)
    columns = first - 0.3 * inch, last + 1.4 * inch, last + 3.1 * inch
    for row, (walk, tiles) in enumerate(zip(shown, paths, strict=True)):
        floor = -LANE * (row + 1)
        _draw_floor(axes, first, last, floor)
        _draw_person(axes, tiles / unit, floor, PALETTE[row])
        _label(axes, walk, goal, columns, floor + 0.5)
        remark = _remark(walk, summary)
        axes.text(0.8, floor + 0.5, remark, va="center", fontsize=13, color=VERMILION)
    axes.plot([0, 0], [bottom, 0], color="black", linewidth=2)
    if goal > 0:
        _draw_flag(axes, goal / unit, bottom, inch)
    for column in range(first, last + 1):
        if column % 5 == 0:
            text = f"{column * unit:g}"
            axes.text(column, bottom - 0.08 * inch, text, ha="center", va="top", fontsize=12)
    axes.text(0, bottom - 0.3 * inch, "floor tiles from the start", va="top", fontsize=12)
    for place, text in zip(columns[1:], ("from start", "to the flag,\nat this pace"), strict=True):
        axes.text(place, 0.1 * inch, text, ha="right", va="bottom", fontsize=12, color=GREY)
    _write_title(axes, everyone, summary, first - 1.5 * inch, inch)
    save(figure, path, svg=True)


def _write_title(
    axes: Axes, everyone: Sequence[Walk], summary: dict, left: float, inch: float
) -> None:
    far, near = (choose(everyone, key=lambda walk: walk.distance) for choose in (max, min))
    steps = "1 step" if summary["steps"] == 1 else f"{summary['steps']:,} steps"
    title = f"After {steps} {far.name} is {short(far.distance)} tiles from its start"
    if near is not far:
        title += f", {near.name} {short(near.distance)}"
    if far.distance == 0:
        title = f"After {steps} nobody has moved: every D is exactly 0"
    rate = "" if summary["learning_rate"] == 1 else f"{summary['learning_rate']:g} · "
    game = f"{_about(summary)}; each step is {TILES_PER_UNIT} · {rate}D tiles, a dot after each"
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


def _draw_floor(axes: Axes, first: int, last: int, height: float) -> None:
    for column in range(first, last):
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


def _draw_flag(axes: Axes, place: float, bottom: float, inch: float) -> None:
    top = 0.5 * inch
    axes.plot([place, place], [bottom, top], color="black", linewidth=2)
    flag = [(place, top), (place + 0.35 * inch, top * 0.75), (place, top * 0.5)]
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


def short(value: float) -> str:
    """Return a number in three digits: 0.0123, 25.2, 54,000, 4·10¹²."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{float(f'{value:.3g}'):,.7g}"
    digits, power = f"{value:.0e}".split("e")
    return f"{digits}·10" + str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _remark(walk: Walk, summary: dict) -> str:
    if not walk.updates.any():
        return "every D is exactly 0"
    unmoved = walk.layer in summary["unmoved_in_float32"]
    return "in float32: does not move at all" if unmoved else ""
