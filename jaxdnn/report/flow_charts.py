"""Charts of many networks at once, from their folders: what a sweep measured, how a race went.

Bands are what was measured, dots what theory expects.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.lines import Line2D

from jaxdnn.propagation import Combination, sweep_theory, table
from jaxdnn.report.style import GREY, PALETTE, new_figure, save, tidy

PANELS_PER_ROW = 3
_RACE_PANELS_PER_ROW = 4
_THEORY_WIDTH = 6
# Lines that lie on each other all show: the later ones are narrower.
_WIDEST, _NARROWEST = 4.0, 1.4
CHARTS = {
    "delta": ("delta_rms", "Gradient: RMS of δ = ∂L/∂z"),
    "signal": ("pre_activation_rms", "Forward signal: RMS of the pre-activation z"),
    "kernel_grad": ("kernel_grad_rms", "Gradient of the weights: RMS of ∂L/∂W"),
}
# Row of a race's panels -> its label.
RACE_STATISTICS = {
    "loss": "training loss",
    "delta_first_rms": "log₁₀ RMS of δ,\nfirst layer",
    "delta_last_rms": "log₁₀ RMS of δ,\nlast hidden layer",
}
# A loss beyond so many times that of guessing is not shown.
MOST_LOSS = 2.0

# (initializer, activation) -> column -> (seed, step)
RaceTable = Mapping[tuple[str, str], Mapping[str, np.ndarray]]


def draw_gradient_flow(folder: Path) -> list[Path]:
    """Draw every chart of a sweep, as PNG and SVG; one set for each norm and depth."""
    networks = table.read_csv(folder / "grad_flow.csv")
    expected = sweep_theory.read_csv(folder / "theory.csv")
    flows = json.loads((folder / "summary.json").read_text())["combinations"]
    grids = sorted({(key.norm, key.depth) for key in networks})
    paths = []
    for norm, depth in grids:
        suffix = "" if len(grids) == 1 else f"_{norm}_{depth}"
        part = {
            key: value for key, value in networks.items() if (key.norm, key.depth) == (norm, depth)
        }
        own = [flow for flow in flows if (flow["norm"], flow["depth"]) == (norm, depth)]
        about = f"norm: {norm}, {depth} layers of {own[0]['width']}"
        for name, (statistic, title) in CHARTS.items():
            paths.append(folder / f"{name}{suffix}.png")
            theory = {key: _theory(statistic, expected[key], part[key]) for key in part}
            _draw_depth(part, theory, statistic, f"{title} ({about})", paths[-1])
        paths.append(folder / f"factor{suffix}.png")
        _draw_factors(own, about, paths[-1])
    return paths


def _theory(
    statistic: str, expected: sweep_theory.Expected, layers: table.Layers
) -> np.ndarray | None:
    """Return log10 of what theory expects of the hidden layers, None where it says nothing."""
    if statistic == "pre_activation_rms":
        with np.errstate(divide="ignore"):
            return np.log10(expected.pre_activation_rms)
    if statistic == "delta_rms":
        # From the last hidden layer down: what the loss sends back is not theory's to say.
        with np.errstate(divide="ignore"):
            steps = np.append(np.log10(expected.factor[:-1]), 0.0)
            start = np.log10(np.median(layers["delta_rms"][:, -2]))
        return start + np.cumsum(steps[::-1])[::-1]
    return None


def _draw_depth(
    networks: table.Table,
    theory: Mapping[Combination, np.ndarray | None],
    statistic: str,
    title: str,
    path: Path,
) -> None:
    """Draw a statistic over the layers: a panel an activation, a line with band an initializer.

    Args:
      networks: what was measured; of one norm and depth.
      theory: log10 of what is expected of the hidden layers, None where theory says nothing.
      statistic: a column of the table.
      title: stands above all panels.
      path: a PNG; the SVG gets the same name.
    """
    activations = list(dict.fromkeys(key.activation for key in networks))
    initializers = list(dict.fromkeys(key.initializer for key in networks))
    num_columns = min(PANELS_PER_ROW, len(activations))
    num_rows = -(-len(activations) // num_columns)
    figure = new_figure(max(4.6 * num_columns + 2.4, 9.0), max(3.4 * num_rows + 0.6, 5.0))
    panels = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in panels[len(activations) :]:
        axes.axis("off")
    for axes, activation in zip(panels, activations, strict=False):
        own = {key: layers[statistic] for key, layers in networks.items() if key[1] == activation}
        for key, values in own.items():
            place = initializers.index(key.initializer)
            width = np.linspace(_WIDEST, _NARROWEST, len(initializers))[place]
            layers = np.arange(1, values.shape[1] + 1)
            _draw_band(axes, layers, _logs(values), place, key.initializer, width)
            _draw_theory(axes, theory[key], values, _colour(place))
        tidy(axes, title=activation)
        _name_absent(axes, {key.initializer: values for key, values in own.items()})
    figure.supxlabel("layer (1 is nearest the input)", fontsize=13)
    figure.supylabel("log₁₀", fontsize=13)
    figure.suptitle(title, fontsize=15, x=0.01, ha="left")
    handles, labels = panels[0].get_legend_handles_labels()
    if any(values is not None for values in theory.values()):
        handles.append(Line2D([], [], color=GREY, linestyle=":", linewidth=_THEORY_WIDTH))
        labels.append("theory")
    figure.legend(handles, labels, loc="outside right center", fontsize=12, frameon=False)
    save(figure, path, svg=True)


def _name_absent(axes: Axes, own: Mapping[str, np.ndarray]) -> None:
    """Say of which lines no hidden layer is shown, because all is zero or not finite."""
    words: dict[str, list[str]] = {}
    for name, values in own.items():
        hidden = values[:, :-1]
        if not np.isfinite(_logs(hidden)).all(axis=0).any():
            words.setdefault("0" if np.isfinite(hidden).all() else "not finite", []).append(name)
    for line, (word, names) in enumerate(words.items()):
        where = (0.03, 0.04 + 0.09 * line)
        text = f"{word}: {', '.join(names)}"
        axes.text(*where, text, transform=axes.transAxes, fontsize=11, color=GREY)


def _draw_theory(axes: Axes, expected: np.ndarray | None, values: np.ndarray, colour: str) -> None:
    """Draw what theory expects as wide dots behind the band, as far as the measurements go."""
    if expected is None:
        return
    measured = values[(values > 0) & np.isfinite(values)]
    if len(measured) == 0:
        return
    least, most = np.log10([measured.min(), measured.max()])
    shown = np.where((expected > least - 1) & (expected < most + 1), expected, np.nan)
    layers = np.arange(1, len(expected) + 1)
    axes.plot(layers, shown, ":", color=colour, linewidth=_THEORY_WIDTH, alpha=0.7, zorder=1)


def _draw_factors(flows: list[dict], about: str, path: Path) -> None:
    """Draw the factor per layer as a heat map: initializers down, activations across."""
    activations = list(dict.fromkeys(flow["activation"] for flow in flows))
    initializers = list(dict.fromkeys(flow["initializer"] for flow in flows))
    figure = new_figure(max(1.15 * len(activations) + 3.2, 9.0), 0.72 * len(initializers) + 2.0)
    axes = figure.subplots()
    factors = np.full((len(initializers), len(activations)), np.nan)
    for flow in flows:
        cell = initializers.index(flow["initializer"]), activations.index(flow["activation"])
        factors[cell] = np.nan if flow["factor_median"] is None else flow["factor_median"]
        _write_cell(axes, cell, flow)
    # Symmetric in the logarithm; colours stop at a half and at the double.
    logs = np.clip(np.log2(factors), -1, 1)
    image = axes.imshow(logs, cmap="PuOr_r", norm=TwoSlopeNorm(0, -1, 1), aspect="auto")
    axes.set_facecolor("#cccccc")
    bar = figure.colorbar(image, ax=axes, ticks=[-1, -0.5, 0, 0.5, 1], shrink=0.9)
    bar.ax.set_yticklabels(["≤ 0.5", "0.71", "1", "1.41", "≥ 2"], fontsize=11)
    bar.set_label("factor per layer", fontsize=12)
    axes.set_xticks(range(len(activations)), activations, rotation=30, ha="right", fontsize=12)
    axes.set_yticks(range(len(initializers)), initializers, fontsize=12)
    title = f"What one layer does to the gradient ({about})"
    axes.set_title(title, fontsize=14, loc="left")
    save(figure, path, svg=True)


def _write_cell(axes: Axes, cell: tuple[int, int], flow: dict) -> None:
    factor, verdict = flow["factor_median"], flow["verdict"]
    shown = "" if factor is None else f"{factor:.3g}\n"
    strong = factor is not None and abs(np.log2(factor)) > 0.6
    plain = GREY if factor is None and verdict != "healthy" else "black"
    at = {"ha": "center", "va": "center", "color": "white" if strong else plain}
    weight = "bold" if verdict == "healthy" else "normal"
    axes.text(cell[1], cell[0], f"{shown}{verdict}", fontsize=10, fontweight=weight, **at)


def draw_race(folder: Path) -> Path:
    """Draw race.png and race.svg: a column an activation, a line with band an initializer."""
    networks = table.read_networks(
        folder / "race.csv",
        ("step", *RACE_STATISTICS),
        lambda line: (line["initializer"], line["activation"]),
    )
    content = json.loads((folder / "summary.json").read_text())
    about = content["combinations"][0]
    guess = content["guess_loss"]
    activations = list(dict.fromkeys(activation for _, activation in networks))
    initializers = list(dict.fromkeys(initializer for initializer, _ in networks))
    num_columns = min(_RACE_PANELS_PER_ROW, len(activations))
    num_rows = len(RACE_STATISTICS) * -(-len(activations) // num_columns)
    figure = new_figure(3.4 * num_columns + 2.6, 2.5 * num_rows + 0.9)
    panels = figure.subplots(num_rows, num_columns, sharex=True, sharey="row", squeeze=False)
    for place, activation in enumerate(activations):
        block, column = divmod(place, num_columns)
        for row, (name, label) in enumerate(RACE_STATISTICS.items()):
            axes = panels[block * len(RACE_STATISTICS) + row, column]
            _draw_panel(axes, networks, activation, initializers, name)
            tidy(axes, title=activation if row == 0 else "", y=label if column == 0 else "")
            if name == "loss":
                axes.axhline(guess, color=GREY, linestyle=":", linewidth=2, label="guessing")
                axes.set_ylim(0, MOST_LOSS * guess)
                _name_diverged(axes, networks, activation, initializers)
    unused = len(activations) % num_columns or num_columns
    for axes in panels[-len(RACE_STATISTICS) :, unused:].flat:
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
    axes: Axes, networks: RaceTable, activation: str, initializers: list[str], name: str
) -> None:
    shown: Callable[[np.ndarray], np.ndarray] = _logs if name.startswith("delta") else np.asarray
    for index, initializer in enumerate(initializers):
        columns = networks[initializer, activation]
        _draw_band(axes, columns["step"][0], shown(columns[name]), index, initializer, 2)


def _name_diverged(
    axes: Axes, networks: RaceTable, activation: str, initializers: list[str]
) -> None:
    """Name the initializers of which most seeds diverged: their lines end."""
    diverged = [
        name
        for name in initializers
        if np.isnan(networks[name, activation]["loss"][:, -1]).mean() > 0.5
    ]
    if diverged:
        said = "\n".join(["diverged:", *diverged])
        axes.text(0.97, 0.95, said, transform=axes.transAxes, fontsize=11, ha="right", va="top")


def _draw_band(
    axes: Axes, x: np.ndarray, values: np.ndarray, place: int, name: str, width: float
) -> None:
    """Draw median and 5-95 % band over seeds; a value that is not finite ends the line."""
    finite = np.isfinite(values).all(axis=0)
    low, median, high = np.full((3, len(x)), np.nan)
    low[finite], median[finite], high[finite] = np.percentile(
        values[:, finite], [5, 50, 95], axis=0
    )
    axes.fill_between(x, low, high, color=_colour(place), alpha=0.2, linewidth=0)
    style = "-" if place % 2 == 0 else "--"
    axes.plot(x, median, style, color=_colour(place), linewidth=width, label=name)


def _colour(place: int) -> str:
    return PALETTE[place % len(PALETTE)]


def _logs(values: np.ndarray) -> np.ndarray:
    """log10; zeros and overflow end the line."""
    return np.log10(np.where((values > 0) & np.isfinite(values), values, np.nan))
