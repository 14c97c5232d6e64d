"""Chart of a race, from its folder: learning curves, and delta of the first and last layer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from jaxdnn.propagation import read_networks
from jaxdnn.report.style import GREY, PALETTE, new_figure, save, tidy

PANELS_PER_ROW = 4
# Row of panels -> its label.
STATISTICS = {
    "loss": "training loss",
    "delta_first_rms": "log₁₀ RMS of δ,\nfirst layer",
    "delta_last_rms": "log₁₀ RMS of δ,\nlast hidden layer",
}
# A loss beyond so many times that of guessing is not shown.
MOST_LOSS = 2.0

# (initializer, activation) -> column -> (seed, step)
Table = dict[tuple[str, str], dict[str, np.ndarray]]


def read_csv(path: Path) -> Table:
    """Read race.csv: `step` and the statistics of every combination."""
    return read_networks(
        path, ("step", *STATISTICS), lambda line: (line["initializer"], line["activation"])
    )


def draw_race(folder: Path) -> Path:
    """Draw race.png and race.svg: a column an activation, a line with band an initializer."""
    table = read_csv(folder / "race.csv")
    content = json.loads((folder / "summary.json").read_text())
    about = content["combinations"][0]
    guess = content["guess_loss"]
    activations = list(dict.fromkeys(activation for _, activation in table))
    initializers = list(dict.fromkeys(initializer for initializer, _ in table))
    num_columns = min(PANELS_PER_ROW, len(activations))
    num_rows = len(STATISTICS) * -(-len(activations) // num_columns)
    figure = new_figure(3.4 * num_columns + 2.6, 2.5 * num_rows + 0.9)
    panels = figure.subplots(num_rows, num_columns, sharex=True, sharey="row", squeeze=False)
    for place, activation in enumerate(activations):
        block, column = divmod(place, num_columns)
        for row, (name, label) in enumerate(STATISTICS.items()):
            axes = panels[block * len(STATISTICS) + row, column]
            _draw_panel(axes, table, activation, initializers, name)
            tidy(axes, title=activation if row == 0 else "", y=label if column == 0 else "")
            if name == "loss":
                axes.axhline(guess, color=GREY, linestyle=":", linewidth=2, label="guessing")
                axes.set_ylim(0, MOST_LOSS * guess)
                _name_diverged(axes, table, activation, initializers)
    for axes in panels[-len(STATISTICS) :, len(activations) % num_columns or num_columns :].flat:
        axes.axis("off")
    figure.supxlabel("step", fontsize=13)
    title = f"Training side by side (norm: {about['norm']}, {about['depth']} layers of "
    figure.suptitle(f"{title}{about['width']})", fontsize=15, x=0.01, ha="left")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=12, frameon=False)
    path = folder / "race.png"
    save(figure, path, svg=True)
    return path


def _draw_panel(
    axes: Axes, table: Table, activation: str, initializers: list[str], name: str
) -> None:
    shown: Callable[[np.ndarray], np.ndarray] = _logs if name.startswith("delta") else np.asarray
    for index, initializer in enumerate(initializers):
        columns = table[initializer, activation]
        values, steps = shown(columns[name]), columns["step"][0]
        whole = np.isfinite(values).all(axis=0)
        low, median, high = np.full((3, len(steps)), np.nan)
        percentiles = np.percentile(values[:, whole], [5, 50, 95], axis=0)
        low[whole], median[whole], high[whole] = percentiles
        colour, style = PALETTE[index % len(PALETTE)], "-" if index % 2 == 0 else "--"
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(steps, median, style, color=colour, linewidth=2, label=initializer)


def _name_diverged(axes: Axes, table: Table, activation: str, initializers: list[str]) -> None:
    """Name the initializers of which most seeds diverged: their lines end."""
    diverged = [
        name
        for name in initializers
        if np.isnan(table[name, activation]["loss"][:, -1]).mean() > 0.5
    ]
    if diverged:
        said = "\n".join(["diverged:", *diverged])
        axes.text(0.97, 0.95, said, transform=axes.transAxes, fontsize=11, ha="right", va="top")


def _logs(values: np.ndarray) -> np.ndarray:
    """log10; zeros and overflow end the line."""
    return np.log10(np.where((values > 0) & np.isfinite(values), values, np.nan))
