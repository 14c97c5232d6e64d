"""A chart of a watched run: how large delta is in every layer, from the first step to the last."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxdnn.report.style import GREY, new_figure, save
from jaxdnn.run_folder import RunFolder, read_looks

PREFIX, SUFFIX = "gradients/", "/delta_rms"


def draw_gradients(folder: RunFolder, path: Path) -> None:
    """Draw log10 of delta's RMS by layer and step; grey where it is zero or not finite."""
    looks = read_looks(folder.metrics)
    layers = [name[len(PREFIX) : -len(SUFFIX)] for name in looks[0] if name.endswith(SUFFIX)]
    values = np.array(
        [[look[f"{PREFIX}{layer}{SUFFIX}"] or np.nan for look in looks] for layer in layers]
    )
    logs = np.ma.masked_invalid(np.log10(values))
    figure = new_figure(max(6.5, min(13, 3 + 0.12 * len(looks))), 2.2 + 0.32 * min(len(layers), 30))
    axes = figure.subplots()
    axes.set_facecolor(GREY)
    # No step comes before the first.
    steps = np.maximum(_edges([look["step"] for look in looks]), 0)
    # cividis: the same to people with and without red-green blindness.
    mesh = axes.pcolormesh(steps, _edges(range(len(layers))), logs, cmap="cividis")
    figure.colorbar(mesh, ax=axes, label="log10 of delta's RMS")
    every = -(-len(layers) // 30)
    axes.set_yticks(range(0, len(layers), every), layers[::every])
    axes.set_xlabel("step", fontsize=12)
    axes.set_ylabel("layer, from the input up", fontsize=12)
    axes.set_title("Gradients: delta = dL/dz of every layer", fontsize=13, loc="left")
    save(figure, path)


def _edges(steps: Sequence[float]) -> np.ndarray:
    """Return the edges of cells around increasing centres; a single cell has width 1."""
    centres = np.asarray(steps, float)
    if len(centres) == 1:
        return centres[0] + np.array([-0.5, 0.5])
    middles = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middles[0]], middles, [2 * centres[-1] - middles[-1]]])
