"""Charts of a training run, from its folder, and what augmentation does to its images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from scipy.ndimage import gaussian_filter

from jaxdnn.calibration import Calibration, Reliability, reliability, weights_of
from jaxdnn.report.style import BLUE, GREY, ORANGE, VERMILION, new_figure, save, tidy
from jaxdnn.run_folder import (
    RunFolder,
    read_dataset,
    read_evaluations,
    read_layer_stats,
    read_predictions,
    read_summary,
)

MISTAKES_PER_ROW = 6
_LONGEST_NAME = 16
_NUM_COMMONEST = 30
# Names of what a watched run logs of a layer: gradients/layers/0/delta_rms.
_PREFIX, _SUFFIX = "gradients/", "/delta_rms"
_MOST_INCHES = 40.0  # Of a side: a picture may have no more than 65,536 pixels.


def draw_training(folder: RunFolder) -> list[Path]:
    """Draw every chart of a finished run; return their paths."""
    draws: dict[str, Callable[[RunFolder, Path], None]] = {
        "curves": _draw_curves,
        "confusion": _draw_confusion,
        "reliability": _draw_reliability,
        "explain": _draw_explained,
        "mistakes": _draw_mistakes,
    }
    if read_layer_stats(folder.metrics):
        draws["gradients"] = draw_gradients
    paths = []
    for name, draw in draws.items():
        paths.append(folder.chart(name))
        draw(folder, paths[-1])
    return paths


def _draw_curves(folder: RunFolder, path: Path) -> None:
    """Draw loss, accuracy and learning rate over the epochs, with the best epoch marked."""
    lines = read_evaluations(folder.metrics)
    best_step = read_summary(folder)["best_step"]
    best_epoch = next((line["epoch"] for line in lines if line["step"] == best_step), None)
    figure = new_figure(13, 4.2)
    loss, score, rate = figure.subplots(1, 3)
    _plot(loss, lines, "train/loss", BLUE, "training (augmented)")
    _plot(loss, lines, "val/loss", VERMILION, "validation")
    tidy(loss, title="Loss", x="epoch", y="cross-entropy (nats)")
    _plot(score, lines, "train/accuracy", BLUE, "training (augmented), accuracy")
    _plot(score, lines, "val/accuracy", ORANGE, "validation, accuracy")
    _plot(score, lines, "val/balanced_accuracy", VERMILION, "validation, balanced accuracy")
    tidy(score, title="Accuracy", x="epoch", y="share correct")
    _plot(rate, lines, "learning_rate", GREY, "learning rate")
    tidy(rate, title="Learning rate", x="epoch", y="step size")
    rate.set_ylim(bottom=0)
    for axes in (loss, score, rate):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (loss, score):
        if best_epoch is not None:
            axes.axvline(best_epoch, color=GREY, linestyle=":", label="best weights")
        axes.legend(fontsize=10, frameon=False)
    save(figure, path)


def _plot(axes: Axes, lines: list[dict], name: str, colour: str, label: str) -> None:
    epochs = [line["epoch"] for line in lines]
    values = [np.nan if line[name] is None else line[name] for line in lines]
    marker = "o" if len(lines) <= 12 else None
    axes.plot(epochs, values, color=colour, linewidth=2, marker=marker, markersize=4, label=label)


def _draw_confusion(folder: RunFolder, path: Path) -> None:
    """Draw the confusion matrix of the test images: shares of each row, with the counts.

    Where there are too many classes for one, the commonest mistakes.
    """
    summary = read_summary(folder)
    if summary["confusion"] is None:
        return _draw_commonest(summary, path)
    counts, names = np.array(summary["confusion"]), summary["class_names"]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(4.5, 1.4 + 0.75 * len(names)), _MOST_INCHES)
    figure = new_figure(side + 0.6, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    if len(names) <= 20:
        _write_cells(axes, counts, shares)
    shown = list(map(_short, names))
    rotation = 45 if len(names) > 4 or max(map(len, shown)) > 8 else 0
    axes.set_xticks(range(len(names)), shown, rotation=rotation, parse_math=False)
    axes.set_yticks(range(len(names)), shown, parse_math=False)
    axes.set_xlabel("predicted", fontsize=12)
    axes.set_ylabel("true", fontsize=12)
    axes.set_title(_test_title(summary), fontsize=13, loc="left")
    save(figure, path)


def _draw_commonest(summary: dict[str, Any], path: Path) -> None:
    """Draw how many test images each of the commonest mistakes has."""
    pairs, names = summary["most_confused"][:_NUM_COMMONEST], summary["class_names"]
    figure = new_figure(9, 1.6 + 0.3 * max(len(pairs), 1))
    axes = figure.subplots()
    axes.barh(range(len(pairs)), [count for _, _, count in pairs], color=VERMILION)
    shown = [f"{_short(names[label])} as {_short(names[says])}" for label, says, _ in pairs]
    axes.set_yticks(range(len(pairs)), shown, parse_math=False)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(axes, title=_test_title(summary), x="test images", y="commonest mistakes")
    save(figure, path)


def _test_title(summary: dict[str, Any]) -> str:
    balanced = summary["test/balanced_accuracy"]
    shown = "not finite" if balanced is None else f"{balanced:.3f}"
    return f"Test: balanced accuracy {shown}"


def _write_cells(axes: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    size = 12 if len(counts) <= 4 else 9
    for row, column in np.ndindex(counts.shape):
        share = shares[row, column]
        text = f"{counts[row, column]:,}" + (f"\n{share:.1%}" if len(counts) <= 4 else "")
        colour = "white" if share > 0.5 else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)


def _draw_mistakes(folder: RunFolder, path: Path) -> None:
    """Draw the test images that the network got wrong with the greatest confidence."""
    names, kept = read_dataset(folder)["class_names"], read_predictions(folder)
    images, worst = kept["mistake_images"], kept["mistakes"]
    labels, scores = kept["labels"][worst], kept["probabilities"][worst]
    num_rows = max(1, -(-len(images) // MISTAKES_PER_ROW))
    figure = new_figure(2.0 * MISTAKES_PER_ROW, 2.5 * num_rows + 0.4)
    title = "The most confident mistakes on the test images" if len(images) else "No mistakes"
    figure.suptitle(title, fontsize=14, x=0.01, ha="left")
    for index, axes in enumerate(figure.subplots(num_rows, MISTAKES_PER_ROW).flat):
        axes.axis("off")
        if index < len(images):
            says = scores[index].argmax()
            _show_image(axes, images[index])
            said, is_truly = _short(names[says]), _short(names[labels[index]])
            caption = f"{said}: {scores[index, says]:.1%}\nis {is_truly}"
            axes.set_title(caption, fontsize=10, parse_math=False)
    save(figure, path)


def _draw_reliability(folder: RunFolder, path: Path) -> None:
    """Draw how often predictions were right, by how sure they were, before and after calibration.

    DeGroot and Fienberg, "The comparison and evaluation of forecasters", 1983.
    """
    summary, kept = read_summary(folder), read_predictions(folder)
    weights = weights_of(kept["labels"], alike=summary["classes_alike"])
    figure = new_figure(11, 5.2)
    if summary["temperature"] is None:
        figure.suptitle("No reliability: answers are not finite", fontsize=14, x=0.01, ha="left")
        return save(figure, path)
    before, after = figure.subplots(1, 2)
    raw = reliability(Calibration().probabilities(kept["logits"]), kept["labels"], weights)
    _plot_reliability(before, raw, ORANGE, f"as trained: {summary['test/ece']:.3f}")
    mended = reliability(kept["probabilities"], kept["labels"], weights)
    _plot_reliability(after, mended, BLUE, f"calibrated: {summary['test/ece_calibrated']:.3f}")
    save(figure, path)


def _plot_reliability(axes: Axes, found: Reliability, colour: str, title: str) -> None:
    num = len(found.share)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="right as often as it says")
    edges = np.arange(num) / num
    axes.bar(
        edges, found.share, 1 / num, align="edge", color="#cccccc", label="share of the images"
    )
    # As large as the bin: where there are few images, the share that is right may be anything.
    filled = found.share > 0
    sizes = 15 + 160 * np.sqrt(found.share[filled])
    points = found.confidence[filled], found.accuracy[filled]
    axes.scatter(*points, sizes, color=colour, label="test images, by probability", zorder=3)
    axes.set(xlim=(0, 1), ylim=(0, 1.03))
    title = f"Calibration error, {title}"
    tidy(axes, title=title, x="probability of the class it says", y="share that was right")
    axes.legend(fontsize=10, frameon=False, loc="upper left")


def _draw_explained(folder: RunFolder, path: Path) -> None:
    """Draw which pixels spoke for the class that was said, beneath the pictures themselves."""
    names, kept = read_dataset(folder)["class_names"], read_predictions(folder)
    places, images, shares = kept["explained"], kept["explained_images"], kept["attributions"]
    labels, scores = kept["labels"][places], kept["probabilities"][places]
    is_right = labels == scores.argmax(axis=1)
    groups = [
        group for group in (np.flatnonzero(~is_right), np.flatnonzero(is_right)) if len(group)
    ]
    num_rows, num_columns = max(1, len(groups)), max(3, *map(len, groups), 0)
    figure = new_figure(2.0 * num_columns, 4.5 * num_rows + 0.4)
    title = "What speaks for the answer (orange) and against it (purple)"
    figure.suptitle(title if groups else "Nothing to explain", fontsize=14, x=0.01, ha="left")
    grid = figure.subplots(2 * num_rows, num_columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for row, group in enumerate(groups):
        for above, below, index in zip(*grid[2 * row : 2 * row + 2], group, strict=False):
            says = scores[index].argmax()
            caption = f"{_short(names[says])}: {scores[index, says]:.1%}"
            caption += "\nright" if is_right[index] else f"\nis {_short(names[labels[index]])}"
            above.set_title(caption, fontsize=10, parse_math=False)
            _show_image(above, images[index])
            _show_overlay(below, images[index], shares[index])
    save(figure, path)


def _show_overlay(axes: Axes, image: np.ndarray, shares: np.ndarray) -> None:
    """Show the picture in pale grey, and over it the pixels that matter, the more the denser."""
    # Of single pixels a gradient is noise; what neighbours have in common is read.
    smooth = gaussian_filter(shares.astype(float), max(0.5, len(shares) / 56))
    strength = np.clip(smooth / (np.quantile(np.abs(smooth), 0.995) or 1.0), -1, 1)
    pale = 0.6 + 0.4 * image.mean(axis=-1) / 255
    axes.imshow(pale, cmap="gray", vmin=0, vmax=1)
    # Orange and purple: told apart whatever colours one sees.
    axes.imshow(-strength, cmap="PuOr", vmin=-1, vmax=1, alpha=np.abs(strength) ** 0.7)


def _short(name: str) -> str:
    """Return a class's name as a chart has room for it."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def draw_gradients(folder: RunFolder, path: Path) -> None:
    """Draw log10 of delta's RMS by layer and step; grey where it is zero or not finite."""
    rows = read_layer_stats(folder.metrics)
    layers = [name[len(_PREFIX) : -len(_SUFFIX)] for name in rows[0] if name.endswith(_SUFFIX)]
    values = np.array(
        [[row[f"{_PREFIX}{layer}{_SUFFIX}"] or np.nan for row in rows] for layer in layers]
    )
    logs = np.ma.masked_invalid(np.log10(values))
    figure = new_figure(max(6.5, min(13, 3 + 0.12 * len(rows))), 2.2 + 0.32 * min(len(layers), 30))
    axes = figure.subplots()
    axes.set_facecolor(GREY)
    # No step comes before the first.
    steps = np.maximum(_edges([row["step"] for row in rows]), 0)
    # cividis: the same to people with and without red-green blindness.
    mesh = axes.pcolormesh(steps, _edges(range(len(layers))), logs, cmap="cividis")
    figure.colorbar(mesh, ax=axes, label="log10 of delta's RMS")
    every = -(-len(layers) // 30)
    axes.set_yticks(range(0, len(layers), every), layers[::every], parse_math=False)
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


def draw_augmentations(originals: np.ndarray, augmented: np.ndarray, path: Path) -> None:
    """Draw each image next to its augmented versions.

    Args:
      originals: uint8 (image, height, width, channel).
      augmented: floats in [0, 1], (image, version, height, width, channel).
      path: where to write, ending in .png.
    """
    num_images, num_versions = augmented.shape[:2]
    figure = new_figure(1.3 * (num_versions + 1), 1.35 * num_images + 0.5)
    grid = figure.subplots(num_images, num_versions + 1, squeeze=False)
    figure.suptitle("Training images (left), augmented (right)", fontsize=13, x=0.01, ha="left")
    for row, original, versions in zip(grid, originals, augmented, strict=True):
        _show_image(row[0], original)
        for axes, version in zip(row[1:], versions, strict=True):
            _show_image(axes, version)
    save(figure, path)


def _show_image(axes: Axes, image: np.ndarray) -> None:
    """Show one uint8 image, or a float one in [0, 1], grey or colour."""
    greatest = 255 if image.dtype == np.uint8 else 1
    grey = image.shape[-1] == 1
    axes.imshow(image[..., 0] if grey else image, cmap="gray", vmin=0, vmax=greatest)
    axes.axis("off")
