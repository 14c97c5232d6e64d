"""Pictures of the theory: the phase diagram of an activation, and the table of all activations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, TwoSlopeNorm

from jaxdnn.propagation import ActivationRow, CriticalLine, PhaseDiagram
from jaxdnn.report.style import GREY, VERMILION, new_figure, save, tidy

# Depth scales outside are drawn in the first or the last colour.
_LEAST_XI, _MOST_XI = 1.0, 100.0
_BOX = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 3}
_Extent = tuple[float, float, float, float]


def draw_phase_diagram(
    name: str,
    diagram: PhaseDiagram,
    line: CriticalLine,
    initializers: Mapping[str, float],
    path: Path,
) -> None:
    """Draw order, chaos and xi_c; write PNG and SVG.

    Args:
      name: what the activation is called on the picture.
      diagram: at least 2 x 2 points of an even grid.
      line: where chi_1 is 1; dashed where it repels.
      initializers: name -> sigma_w²; all have sigma_b² = 0.
      path: without suffix.
    """
    figure = new_figure(9, 6.2)
    axes = figure.subplots()
    tidy(
        axes, x=r"weight variance  $\sigma_w^2$ = fan-in × Var W", y=r"bias variance  $\sigma_b^2$"
    )
    axes.set_title(f"{name}: how deep does information reach?", fontsize=15, loc="left", pad=50)
    axes.grid(False)
    extent = _extent(diagram)
    image = axes.imshow(
        np.clip(diagram.xi_c, _LEAST_XI, _MOST_XI),
        origin="lower",
        extent=extent,
        aspect="auto",
        cmap="cividis",
        norm=LogNorm(_LEAST_XI, _MOST_XI),
        interpolation="nearest",
    )
    bar = figure.colorbar(image, ax=axes, extend="both", ticks=[1, 3, 10, 30, 100])
    bar.ax.set_yticklabels(["1", "3", "10", "30", "100"])
    bar.set_label(r"depth scale $\xi_c$ in layers (trainable to about 6 $\xi_c$)", fontsize=12)
    _hatch_unbounded(axes, diagram, extent)
    axes.plot(line.sigma_w2, line.sigma_b2, color="white", linewidth=5, zorder=3)
    for part, style in ((~line.repels, "-"), (line.repels, (0, (3, 2)))):
        shown = np.where(part, line.sigma_w2, np.nan)
        options = {"color": VERMILION, "linewidth": 2.5, "linestyle": style, "zorder": 4}
        axes.plot(shown, line.sigma_b2, **options)
    axes.set_xlim(extent[0], extent[1])
    axes.set_ylim(extent[2], extent[3])
    _name_phases(axes, diagram)
    _name_line(axes, line, extent)
    _mark_initializers(axes, initializers, extent)
    save(figure, path.with_suffix(".png"), svg=True)


def _extent(diagram: PhaseDiagram) -> _Extent:
    w, b = diagram.sigma_w2, diagram.sigma_b2
    half_w, half_b = (w[1] - w[0]) / 2, (b[1] - b[0]) / 2
    return w[0] - half_w, w[-1] + half_w, b[0] - half_b, b[-1] + half_b


def _hatch_unbounded(axes: Axes, diagram: PhaseDiagram, extent: _Extent) -> None:
    unbounded = ~np.isfinite(diagram.q)
    if unbounded.any():
        rows = np.linspace(extent[2], extent[3], len(unbounded))
        columns = np.linspace(extent[0], extent[1], unbounded.shape[1])
        options = {"colors": ["#eeeeee"], "hatches": ["//"], "zorder": 2}
        axes.contourf(columns, rows, unbounded.astype(float), [0.5, 1.5], **options)


def _name_phases(axes: Axes, diagram: PhaseDiagram) -> None:
    unbounded = ~np.isfinite(diagram.q)
    chaotic = ~unbounded & (diagram.c < 1 - 1e-9)
    regions = {
        "ordered:\ninputs become alike,\ngradients vanish": ~unbounded & ~chaotic,
        "chaotic:\ninputs drift apart,\ngradients explode": chaotic & (diagram.chi1 > 1),
        "chaotic by jumps": chaotic & (diagram.chi1 <= 1),
        "signals grow\nwithout bound": unbounded,
    }
    for name, region in regions.items():
        if region.mean() >= 0.04:
            row, column = _heart(region)
            place = diagram.sigma_w2[column], diagram.sigma_b2[row]
            axes.text(*place, name, ha="center", va="center", fontsize=12, zorder=5, bbox=_BOX)


def _heart(region: np.ndarray) -> tuple[int, int]:
    """Return the cell of the region that is farthest from its edge, by peeling it."""
    left = np.pad(region, 1)
    while True:
        inner = (
            left[1:-1, 1:-1] & left[:-2, 1:-1] & left[2:, 1:-1] & left[1:-1, :-2] & left[1:-1, 2:]
        )
        if not inner.any():
            cells = np.argwhere(left[1:-1, 1:-1])
            row, column = cells[len(cells) // 2]
            return int(row), int(column)
        left = np.pad(inner, 1)


def _name_line(axes: Axes, line: CriticalLine, extent: _Extent) -> None:
    inside = (
        (line.sigma_w2 > extent[0])
        & (line.sigma_w2 < extent[1])
        & (line.sigma_b2 >= 0)
        & (line.sigma_b2 < extent[3])
    )
    options = {"fontsize": 12, "color": VERMILION, "zorder": 7, "bbox": _BOX}
    if not inside.any():
        text = r"no critical line ($\chi_1 = 1$) in this range"
        axes.text(0.99, 0.98, text, transform=axes.transAxes, ha="right", va="top", **options)
        return
    w, b = line.sigma_w2[inside], line.sigma_b2[inside]
    if np.ptp(w) + np.ptp(b) < 1e-3 * (extent[1] - extent[0]):
        axes.plot(w[0], b[0], "o", markersize=13, color=VERMILION, zorder=6, clip_on=False)
        i, text = 0, r"critical: this point alone ($\chi_1 = 1$)"
        shift, side = (0, 26), "center"
    else:
        i, text = int(np.argmin(np.abs(b - 0.85 * extent[3]))), r"critical line, $\chi_1 = 1$"
        shift, side = (-8, 8), "right"
    axes.annotate(text, (w[i], b[i]), shift, textcoords="offset points", ha=side, **options)


def _mark_initializers(axes: Axes, initializers: Mapping[str, float], extent: _Extent) -> None:
    """Point to the initializers from above the frame; those in one place share a label."""
    places: dict[float, list[str]] = {}
    for name, sigma_w2 in initializers.items():
        places.setdefault(round(sigma_w2, 6), []).append(name)
    arrow = {"marker": "^", "markersize": 13, "color": "black", "clip_on": False, "zorder": 8}
    label = {"ha": "center", "va": "bottom", "fontsize": 11, "annotation_clip": False}
    for sigma_w2, names in places.items():
        if extent[0] <= sigma_w2 <= extent[1]:
            axes.plot(sigma_w2, 0, markeredgecolor="white", markeredgewidth=1.5, **arrow)
            ends = [sigma_w2, sigma_w2], [0, extent[3]]
            axes.plot(*ends, ":", color="black", linewidth=1.2, zorder=4)
            top = sigma_w2, extent[3]
            axes.annotate("\n".join(names), top, (0, 6), textcoords="offset points", **label)


def draw_activation_table(rows: list[ActivationRow], path: Path) -> None:
    """Draw moments, gains and gradient factors of all activations; write PNG and SVG.

    Args:
      rows: one for each activation.
      path: without suffix.
    """
    groups = _group_initializers(rows)
    heads = ["E φ", "E φ²", "E φ'²", "gain\nforward", "gain\nbackward", "gain\nin use"]
    factor_heads = [*groups, "batch\nnorm", "layer\nnorm"]
    figure = new_figure(1.02 * (len(heads) + len(factor_heads)) + 2.4, 0.43 * len(rows) + 1.9)
    axes = figure.subplots()
    axes.set_axis_off()
    norm = TwoSlopeNorm(0.0, -math.log(2), math.log(2))
    for j, head in enumerate([*heads, *factor_heads]):
        axes.text(j + 0.5, -0.15, head, ha="center", va="bottom", fontsize=11, weight="bold")
    for i, row in enumerate(rows):
        axes.text(-0.1, i + 0.5, row.name, ha="right", va="center", fontsize=12)
        plain = [row.m1, row.m2, row.d2, *row.gains[:3]]
        for j, value in enumerate(plain):
            axes.text(j + 0.5, i + 0.5, _number(value), ha="center", va="center", fontsize=11)
        factors = [row.factors[names[0]] for names in groups.values()]
        rates = [math.sqrt(rate) for rate in (row.batch_norm_rate, row.layer_norm_rate)]
        for j, value in enumerate([*factors, *rates], start=len(plain)):
            _draw_factor(axes, i, j, value, norm)
    axes.plot([6, 6], [-0.1, len(rows)], color="white", linewidth=4)
    axes.set_xlim(-2.1, len(heads) + len(factor_heads) + 0.1)
    axes.set_ylim(len(rows) + 0.9, -2.0)
    title = "What each activation does to signal and gradient, by theory"
    axes.text(-2.0, -1.7, title, fontsize=15, weight="bold")
    above = "factor of the gradient's RMS per layer"
    axes.text(9.0, -1.2, above, fontsize=12, ha="center", color=GREY)
    legend = (
        "Moments and gains at unit variance. Factors: 50 layers of width 256, inputs of unit "
        "variance; purple: vanishes, orange: explodes. “–”: none, or outside theory."
    )
    axes.text(-2.0, len(rows) + 0.55, legend, fontsize=10.5, color=GREY)
    save(figure, path.with_suffix(".png"), svg=True)


def _draw_factor(axes: Axes, i: int, j: int, value: float, norm: TwoSlopeNorm) -> None:
    log = -9.0 if value == 0 else math.log(value) if math.isfinite(value) else math.nan
    clipped = min(max(log, -math.log(2)), math.log(2))
    colour = "#f2f2f2" if math.isnan(log) else colormaps["PuOr_r"](norm(clipped))
    axes.fill_between([j + 0.03, j + 0.97], i + 0.04, i + 0.96, color=colour, linewidth=0)
    dark = not math.isnan(log) and abs(clipped) > 0.55
    options = {"ha": "center", "va": "center", "color": "white" if dark else "black"}
    axes.text(j + 0.5, i + 0.5, _number(value), fontsize=11, **options)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    if value and abs(value) < 5e-4:
        return f"{value:.0e}" if abs(value) > 1e-9 else "0"
    return f"{value:.3f}"


def _group_initializers(rows: list[ActivationRow]) -> dict[str, list[str]]:
    """Return heading -> initializers whose factors are the same for all activations."""
    groups: dict[tuple[float, ...], list[str]] = {}
    for name in rows[0].factors:
        groups.setdefault(tuple(row.factors[name] for row in rows), []).append(name)
    headings = {
        "zeros": "zeros",
        "normal": "normal\n0.01",
        "uniform": "uniform\n±0.01",
        "glorot_normal": "Xavier,\nLeCun",
        "he_normal": "He\n(MSRA)",
    }
    return {headings.get(names[0], names[0]): names for names in groups.values()}
