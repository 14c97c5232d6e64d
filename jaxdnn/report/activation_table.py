"""The table of all activations as a picture: moments, gains, factors."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from jaxdnn.propagation import ActivationRow
from jaxdnn.report.style import GREY, new_figure, save


def draw_activation_table(rows: list[ActivationRow], path: Path) -> None:
    """Draw moments, gains and gradient factors of all activations; write PNG and SVG.

    Args:
      rows: one for each activation.
      path: of the picture, without suffix.
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
            _draw_factor(figure, axes, i, j, value, norm)
    axes.plot([6, 6], [-0.1, len(rows)], color="white", linewidth=4)
    axes.set_xlim(-2.1, len(heads) + len(factor_heads) + 0.1)
    axes.set_ylim(len(rows) + 0.9, -2.0)
    axes.text(
        -2.0,
        -1.7,
        "What each activation does to signal and gradient, by theory",
        fontsize=15,
        weight="bold",
        ha="left",
    )
    axes.text(
        9.0, -1.2, "factor of the gradient's RMS per layer", fontsize=12, ha="center", color=GREY
    )
    axes.text(
        -2.0,
        len(rows) + 0.55,
        "Moments and gains at unit variance. Factors: 50 layers of width 256, inputs of unit "
        "variance; purple: vanishes, orange: explodes. “–”: none, or outside theory.",
        fontsize=10.5,
        color=GREY,
        ha="left",
    )
    save(figure, path.with_suffix(".png"), svg=True)


def _draw_factor(
    figure: Figure, axes: Axes, i: int, j: int, value: float, norm: TwoSlopeNorm
) -> None:
    from matplotlib import colormaps

    log = -9.0 if value == 0 else math.log(value) if math.isfinite(value) else math.nan
    clipped = min(max(log, -math.log(2)), math.log(2))
    colour = "#f2f2f2" if math.isnan(log) else colormaps["PuOr_r"](norm(clipped))
    axes.fill_between([j + 0.03, j + 0.97], i + 0.04, i + 0.96, color=colour, linewidth=0)
    dark = not math.isnan(log) and abs(clipped) > 0.55
    axes.text(
        j + 0.5,
        i + 0.5,
        _number(value),
        ha="center",
        va="center",
        fontsize=11,
        color="white" if dark else "black",
    )


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
