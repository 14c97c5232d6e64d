"""The phase diagram of an activation as a picture: order, chaos and the line between."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from jaxdnn.propagation import CriticalLine, PhaseDiagram
from jaxdnn.report.style import VERMILION, new_figure, save, tidy

# Depth scales outside are drawn in the first or the last colour.
_LEAST_XI, _MOST_XI = 1.0, 100.0


def draw_phase_diagram(
    name: str,
    diagram: PhaseDiagram,
    line: CriticalLine,
    initializers: Mapping[str, float],
    path: Path,
) -> None:
    """Draw order, chaos and xi_c; write PNG and SVG.

    Args:
      name: of the activation.
      diagram: to draw.
      line: the critical line.
      initializers: name -> sigma_w²; all have sigma_b² = 0.
      path: of the picture, without suffix.
    """
    figure = new_figure(9, 6.2)
    axes = figure.subplots()
    tidy(
        axes, x=r"weight variance  $\sigma_w^2$ = fan-in × Var W", y=r"bias variance  $\sigma_b^2$"
    )
    axes.set_title(f"{name}: how deep does information reach?", fontsize=15, loc="left", pad=50)
    axes.grid(False)
    extent = _extent(diagram)
    shown = np.clip(diagram.xi_c, _LEAST_XI, _MOST_XI)
    image = axes.imshow(
        shown,
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
        axes.plot(
            np.where(part, line.sigma_w2, np.nan),
            line.sigma_b2,
            color=VERMILION,
            linewidth=2.5,
            linestyle=style,
            zorder=4,
        )
    axes.set_xlim(extent[0], extent[1])
    axes.set_ylim(extent[2], extent[3])
    _name_phases(axes, diagram)
    _name_line(axes, line, extent)
    _mark_initializers(axes, initializers, extent)
    save(figure, path.with_suffix(".png"), svg=True)


def _extent(diagram: PhaseDiagram) -> tuple[float, float, float, float]:
    w, b = diagram.sigma_w2, diagram.sigma_b2
    half_w, half_b = (w[1] - w[0]) / 2, (b[1] - b[0]) / 2
    return w[0] - half_w, w[-1] + half_w, b[0] - half_b, b[-1] + half_b


def _hatch_unbounded(
    axes: Axes, diagram: PhaseDiagram, extent: tuple[float, float, float, float]
) -> None:
    unbounded = ~np.isfinite(diagram.q)
    if not unbounded.any():
        return
    rows, columns = (
        np.linspace(low, high, n)
        for (low, high), n in zip((extent[2:], extent[:2]), unbounded.shape, strict=True)
    )
    axes.contourf(
        columns,
        rows,
        unbounded.astype(float),
        [0.5, 1.5],
        colors=["#eeeeee"],
        hatches=["//"],
        zorder=2,
    )


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
        if region.mean() < 0.04:
            continue
        row, column = _heart(region)
        axes.text(
            diagram.sigma_w2[column],
            diagram.sigma_b2[row],
            name,
            ha="center",
            va="center",
            fontsize=12,
            zorder=5,
            bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 4},
        )


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


def _name_line(axes: Axes, line: CriticalLine, extent: tuple[float, float, float, float]) -> None:
    inside = (
        (line.sigma_w2 > extent[0])
        & (line.sigma_w2 < extent[1])
        & (line.sigma_b2 >= 0)
        & (line.sigma_b2 < extent[3])
    )
    if not inside.any():
        axes.text(
            0.99,
            0.98,
            r"no critical line ($\chi_1 = 1$) in this range",
            transform=axes.transAxes,
            ha="right",
            va="top",
            fontsize=12,
            color=VERMILION,
            zorder=6,
            bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 4},
        )
        return
    w, b = line.sigma_w2[inside], line.sigma_b2[inside]
    if np.ptp(w) + np.ptp(b) < 1e-3 * (extent[1] - extent[0]):
        axes.plot(w[0], b[0], "o", markersize=13, color=VERMILION, zorder=6, clip_on=False)
        axes.annotate(
            r"critical: this point alone ($\chi_1 = 1$)",
            (w[0], b[0]),
            (0, 26),
            textcoords="offset points",
            ha="center",
            fontsize=12,
            color=VERMILION,
            zorder=7,
            bbox={"facecolor": "white", "alpha": 0.9, "edgecolor": "none", "pad": 2},
        )
        return
    i = int(np.argmin(np.abs(b - 0.85 * extent[3])))
    axes.annotate(
        r"critical line, $\chi_1 = 1$",
        (w[i], b[i]),
        (-8, 8),
        textcoords="offset points",
        ha="right",
        fontsize=12,
        color=VERMILION,
        zorder=7,
        bbox={"facecolor": "white", "alpha": 0.9, "edgecolor": "none", "pad": 2},
    )


def _mark_initializers(
    axes: Axes, initializers: Mapping[str, float], extent: tuple[float, float, float, float]
) -> None:
    """Point to the initializers from above the frame; those in one place share a label."""
    places: dict[float, list[str]] = {}
    for name, sigma_w2 in initializers.items():
        places.setdefault(round(sigma_w2, 6), []).append(name)
    for sigma_w2, names in places.items():
        if not extent[0] <= sigma_w2 <= extent[1]:
            continue
        axes.plot(
            sigma_w2,
            0,
            marker="^",
            markersize=13,
            color="black",
            markeredgecolor="white",
            markeredgewidth=1.5,
            clip_on=False,
            zorder=8,
        )
        axes.plot([sigma_w2, sigma_w2], [0, extent[3]], ":", color="black", linewidth=1.2, zorder=4)
        axes.annotate(
            "\n".join(names),
            (sigma_w2, extent[3]),
            (0, 6),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=11,
            annotation_clip=False,
        )
