"""A contact sheet of what augmentation does to the training images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxdnn.report.style import new_figure, save
from jaxdnn.report.training import show_image


def draw_augmentations(originals: np.ndarray, augmented: np.ndarray, path: Path) -> None:
    """Draw each image beside its augmented versions.

    Args:
      originals: uint8 (image, height, width, channel).
      augmented: floats in [0, 1], (image, version, height, width, channel).
      path: of the picture.
    """
    num_images, num_versions = augmented.shape[:2]
    figure = new_figure(1.3 * (num_versions + 1), 1.35 * num_images + 0.5)
    grid = figure.subplots(num_images, num_versions + 1, squeeze=False)
    figure.suptitle("Training images (left), augmented (right)", fontsize=13, x=0.01, ha="left")
    for row, original, versions in zip(grid, originals, augmented, strict=True):
        show_image(row[0], original)
        for axes, version in zip(row[1:], versions, strict=True):
            show_image(axes, version)
    save(figure, path)
