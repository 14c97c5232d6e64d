"""The names of the norms, and what they add to a variance: for those who need no layers."""

from typing import Literal

Norm = Literal["none", "batch", "layer"]

BATCH_NORM_EPSILON = 1e-5
LAYER_NORM_EPSILON = 1e-6
