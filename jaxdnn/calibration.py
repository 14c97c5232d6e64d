"""Calibration: probabilities that are right as often as they say.

A network trained for long is surer than it should be. One number, fitted on the validation images,
mends that and changes no decision: p = softmax(z / T). With a shift of each class besides,
p = softmax((z + s) / T), the decision moves to where the probabilities are even.

With n images of n right the likelihood would have T = 0. Targets are therefore Platt's: as if one
more image of each class had been seen, so that of two classes none is surer than (n + 1) / (n + 2).

    >>> import numpy as np
    >>> logits = np.array([[0.0, 8.0]] * 3 + [[8.0, 0.0]] * 3)
    >>> sure = fit_calibration(logits, np.array([1, 1, 1, 0, 0, 1]))
    >>> round(float(sure.probabilities(logits)[0, 1]), 2)
    0.75

References:
  On calibration of modern neural networks (Guo, Pleiss, Sun and Weinberger, 2017).
  Probabilistic outputs for support vector machines (Platt, 1999).
  Maximum likelihood with bias-corrected calibration is hard-to-beat at label shift adaptation
  (Alexandari, Kundaje and Shrikumar, 2020).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

NUM_BINS = 15
# Of the temperature, over the spread of the logits: beyond, they say nothing, or all there is.
_LEAST, _MOST = 1e-3, 1e3

Logits = Float[np.ndarray, "example output"]
Labels = Int[np.ndarray, " example"]
Weights = Float[np.ndarray, " example"]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How logits become probabilities.

    Attributes:
      temperature: above 0; 1 leaves them as they are.
      shift: what is added to the logit of each class before, none for nothing.
    """

    temperature: float = 1.0
    shift: tuple[float, ...] = ()

    def moved(self, logits: Logits) -> Logits:
        """Return the logits with the shift, whose greatest is the decision."""
        if not self.shift:
            return logits
        shift = np.asarray(self.shift, logits.dtype)
        return logits + (shift[1:] - shift[:1] if logits.shape[1] == 1 else shift)

    def probabilities(self, logits: Logits) -> Float[np.ndarray, "example class"]:
        """Return the probability of each class: k >= 2 columns that sum to 1."""
        with np.errstate(invalid="ignore"):  # Of what is not finite, nothing is.
            return softmax(two_or_more(self.moved(logits)) / self.temperature, axis=1)


def two_or_more(logits: Logits) -> Float[np.ndarray, "example class"]:
    """Return one logit for each class, in float64; one sigmoid unit is that of class 1."""
    logits = np.asarray(logits, np.float64)
    return logits if logits.shape[1] > 1 else np.concatenate([np.zeros_like(logits), logits], 1)


def weights_of(labels: Labels, *, alike: bool) -> Weights:
    """Return the weight of each example, on average 1: all the same, or all classes `alike`."""
    if not alike:
        return np.ones(len(labels))
    counts = np.bincount(labels)
    return (len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)))[labels]


def fit_calibration(
    logits: Logits, labels: Labels, *, shift: bool = False, alike: bool = False
) -> Calibration:
    """Fit a calibration by the likelihood.

    Args:
      logits: of images that the network was not trained on; finite.
      labels: their classes.
      shift: fit a shift of each class, too.
      alike: let all classes count alike, so that the probabilities are those where all are equally
        common; otherwise as common as among the labels.
    """
    scores, weights = two_or_more(logits), weights_of(labels, alike=alike)
    num, num_classes = scores.shape
    targets = np.eye(num_classes)[labels] * num + 1
    targets /= targets.sum(axis=1, keepdims=True)
    targets *= weights[:, None] / num
    scores = scores - scores.mean(axis=1, keepdims=True)
    spread = float(np.sqrt(np.mean(scores**2))) or 1.0
    scores /= spread

    # In the inverse of the temperature and the shift over it the loss is convex.
    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        z = scores * point[0] + (point[1:] if shift else 0)
        log_sum = logsumexp(z, axis=1, keepdims=True)
        excess = weights[:, None] / num * np.exp(z - log_sum) - targets
        slope = [np.sum(excess * scores), *(excess.sum(axis=0) if shift else ())]
        return -float(np.sum(targets * (z - log_sum))), np.array(slope)

    num_shifts = num_classes if shift else 0
    start = np.array([np.clip(spread, 1 / _MOST, 1 / _LEAST), *([0.0] * num_shifts)])
    bounds = [(1 / _MOST, 1 / _LEAST), *([(None, None)] * num_shifts)]
    found = minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-13}
    ).x
    temperature, moved = spread / found[0], found[1:]
    moved = moved - moved.mean() if shift else moved
    return Calibration(float(temperature), tuple(map(float, moved * temperature)))


class Reliability(NamedTuple):
    """What became of predictions, by how sure they were.

    Attributes:
      share: of all examples in each bin, or of their weight.
      confidence: mean probability of the predicted class; NaN of an empty bin.
      accuracy: share that was right; NaN of an empty bin.
    """

    share: Float[np.ndarray, " bin"]
    confidence: Float[np.ndarray, " bin"]
    accuracy: Float[np.ndarray, " bin"]

    @property
    def error(self) -> float:
        """Expected calibration error, in [0, 1]: how far the two are apart on average."""
        return float(np.nansum(self.share * np.abs(self.confidence - self.accuracy)))


def reliability(
    probabilities: Float[np.ndarray, "example class"], labels: Labels, weights: Weights
) -> Reliability:
    """Sort predictions into NUM_BINS equal ranges of the predicted class's probability."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(bins, weights * values, minlength=NUM_BINS)

    of_bin = total(np.ones(len(labels)))
    filled = np.where(of_bin > 0, of_bin, np.nan)
    return Reliability(of_bin / of_bin.sum(), total(confidence) / filled, total(right) / filled)
