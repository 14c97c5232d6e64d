"""Random changes to the training images."""

from __future__ import annotations

import dataclasses

from jaxdnn.options.checks import check_range


@dataclasses.dataclass(frozen=True)
class AugmentOptions:
    """Random changes to every training image; 0 turns each off."""

    brightness: float = 0.0
    """Brightness is multiplied by a factor within 1 ± this."""
    contrast: float = 0.0
    """Distance from the image's mean is multiplied by a factor within 1 ± this."""
    saturation: float = 0.0
    """Distance from grey is multiplied by a factor within 1 ± this; colour images only."""
    random_scale: float = 0.0
    """Size is multiplied by a factor within 1 ± this."""
    random_crop: int = 0
    """The image is padded by its reflection by so many pixels, and cropped back anywhere."""
    horizontal_flip: float = 0.0
    """Probability of mirroring left and right."""
    vertical_flip: float = 0.0
    """Probability of mirroring top and bottom."""
    rotation: float = 0.0
    """Rotated by an angle within ± so many degrees."""
    noise: float = 0.0
    """Standard deviation of the noise added to every pixel; black to white is 1."""

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation", "horizontal_flip", "vertical_flip"):
            check_range(self, name, 0, 1)
        check_range(self, "random_scale", 0, 0.9)
        check_range(self, "random_crop", 0)
        check_range(self, "rotation", 0, 180)
        check_range(self, "noise", 0)
