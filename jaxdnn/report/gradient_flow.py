"""Charts of a sweep, from its folder: delta and the forward signal over depth, and the factors.

Bands are what was measured, dots what theory expects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.lines import Line2D

from jaxdnn.propagation import Combination, Expected, Layers, Table, read_csv, sweep_theory
from jaxdnn.report.style import GREY, PALETTE, new_figure, save, tidy

PANELS_PER_ROW = 3
_THEORY_WIDTH = 6
# Lines that lie on each other all show: the later ones are narrower.
_WIDEST, _NARROWEST = 4.0, 1.4
CHARTS = {
    "delta": ("delta_rms", "Gradient: RMS of δ = ∂L/∂z"),
    "signal": ("pre_activation_rms", "Forward signal: RMS of the pre-activation z"),
    "kernel_grad": ("kernel_grad_rms", "Gradient of the weights: RMS of ∂L/∂W"),
}


def draw_gradient_flow(folder: Path) -> list[Path]:
    """Draw every chart of a sweep, as PNG and SVG; one set for each norm and depth."""
    table = read_csv(folder / "grad_flow.csv")
    expected = sweep_theory.read_csv(folder / "theory.csv")
    flows = json.loads((folder / "summary.json").read_text())["combinations"]
    grids = sorted({(key.norm, key.depth) for key in table})
    paths = []
    for norm, depth in grids:
        suffix = "" if len(grids) == 1 else f"_{norm}_{depth}"
        part = {
            key: value for key, value in table.items() if (key.norm, key.depth) == (norm, depth)
        }
        own = [flow for flow in flows if (flow["norm"], flow["depth"]) == (norm, depth)]
        about = f"norm: {norm}, {depth} layers of {own[0]['width']}"
        for name, (statistic, title) in CHARTS.items():
            paths.append(folder / f"{name}{suffix}.png")
            theory = {key: _theory(statistic, expected[key], part[key]) for key in part}
            draw_depth(part, theory, statistic, f"{title} ({about})", paths[-1])
        paths.append(folder / f"factor{suffix}.png")
        draw_factors(own, about, paths[-1])
    return paths


def _theory(statistic: str, expected: Expected, layers: Layers) -> np.ndarray | None:
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


def draw_depth(
    table: Table,
    theory: Mapping[Combination, np.ndarray | None],
    statistic: str,
    title: str,
    path: Path,
) -> None:
    """Draw a statistic over the layers: a panel an activation, a line with band an initializer.

    Args:
      table: what was measured.
      theory: log10 of what is expected of the hidden layers.
      statistic: a column of the table.
      title: of the whole chart.
      path: of the PNG; the SVG is beside it.
    """
    activations = list(dict.fromkeys(key.activation for key in table))
    initializers = list(dict.fromkeys(key.initializer for key in table))
    num_columns = min(PANELS_PER_ROW, len(activations))
    num_rows = -(-len(activations) // num_columns)
    figure = new_figure(max(4.6 * num_columns + 2.4, 9.0), max(3.4 * num_rows + 0.6, 5.0))
    panels = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in panels[len(activations) :]:
        axes.axis("off")
    for axes, activation in zip(panels, activations, strict=False):
        own = {key: layers[statistic] for key, layers in table.items() if key[1] == activation}
        for key, values in own.items():
            place = initializers.index(key.initializer)
            _draw_band(axes, key.initializer, values, place, len(initializers))
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


def _colour(place: int) -> str:
    return PALETTE[place % len(PALETTE)]


def _drawn(values: np.ndarray) -> np.ndarray:
    """Return which layers have a logarithm for all seeds."""
    return np.all((values > 0) & np.isfinite(values), axis=0)


def _draw_band(axes: Axes, name: str, values: np.ndarray, place: int, num_lines: int) -> None:
    """Draw median and 5-95 % band over seeds; zeros and overflow end the line."""
    layers, whole = np.arange(1, values.shape[1] + 1), _drawn(values)
    low, median, high = np.full((3, len(layers)), np.nan)
    logs = np.log10(values[:, whole])
    low[whole], median[whole], high[whole] = np.percentile(logs, [5, 50, 95], axis=0)
    axes.fill_between(layers, low, high, color=_colour(place), alpha=0.2, linewidth=0)
    width = np.linspace(_WIDEST, _NARROWEST, num_lines)[place]
    style = "-" if place % 2 == 0 else "--"
    axes.plot(layers, median, style, color=_colour(place), linewidth=width, label=name)


def _name_absent(axes: Axes, own: Mapping[str, np.ndarray]) -> None:
    """Say of which lines no hidden layer is shown, because all is zero or not finite."""
    missing = {name: x[:, :-1] for name, x in own.items() if not _drawn(x[:, :-1]).any()}
    words: dict[str, list[str]] = {}
    for name, values in missing.items():
        words.setdefault("0" if np.isfinite(values).all() else "not finite", []).append(name)
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


def draw_factors(flows: list[dict], about: str, path: Path) -> None:
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
    axes.text(
        cell[1],
        cell[0],
        f"{shown}{verdict}",
        ha="center",
        va="center",
        fontsize=10,
        fontweight="bold" if verdict == "healthy" else "normal",
        color="white"
        if strong
        else ("black" if verdict == "healthy" else GREY if factor is None else "black"),
    )
