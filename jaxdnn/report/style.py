"""The style of every chart: readable on a slide, and by the colour-blind.

Colours: Okabe and Ito, "Color Universal Design", 2008.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, BLACK = "#CC79A7", "#56B4E9", "#F0E442", "#000000"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK, YELLOW)
GREY = "#666666"


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure of this size in inches, without touching global state."""
    return Figure(figsize=(width, height), layout="constrained")


def tidy(axes: Axes, *, title: str = "", x: str = "", y: str = "") -> None:
    """Label the axes, drop the box, and draw a faint grid behind the data."""
    axes.set_title(title, fontsize=13, loc="left")
    axes.set_xlabel(x, fontsize=12)
    axes.set_ylabel(y, fontsize=12)
    axes.tick_params(labelsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)


def save(figure: Figure, path: Path, *, svg: bool = False) -> None:
    """Write the figure as a PNG, and as an SVG of the same name if asked."""
    with warnings.catch_warnings():
        # Names may be of any script and width; a letter that the font lacks is drawn as a box.
        warnings.filterwarnings(
            "ignore", "Glyph .* missing from font|constrained_layout not applied"
        )
        figure.savefig(path, dpi=120, facecolor="white")
        if svg:
            # The layout stands; to find it again takes longer than to draw.
            figure.set_layout_engine("none")
            figure.savefig(path.with_suffix(".svg"), facecolor="white")
