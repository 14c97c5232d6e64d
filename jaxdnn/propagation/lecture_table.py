"""The steps of the lecture's chain as the slides' table, and what float32 would lose of them."""

from __future__ import annotations

import numpy as np

from jaxdnn.propagation.lecture_chain import Iteration


def rows(steps: Iteration) -> dict[str, np.ndarray]:
    """Return the table as the slides lay it out: name of each quantity -> (step,)."""
    first, weights, _ = steps.params
    depth = steps.a.shape[1]
    inputs, backwards = range(1, steps.x.shape[1] + 1), slice(None, None, -1)
    return {
        **_named("x{}", inputs, steps.x),
        "y": steps.y,
        **_named("a{}", range(2, depth + 2), steps.a),
        **_named("w1[x{}]", inputs, first),
        **_named("w{}", range(2, depth + 1), weights),
        **_named("delta{}", range(depth + 1, 1, -1), steps.delta[:, backwards]),
        **_named("D{}", range(depth, 1, -1), steps.gradients.weights[:, backwards]),
        **_named("D1[x{}]", inputs, steps.gradients.first),
    }


def _named(pattern: str, numbers: range, values: np.ndarray) -> dict[str, np.ndarray]:
    names = map(pattern.format, numbers)
    return dict(zip(names, values.T, strict=True))


def unmoved_in_float32(steps: Iteration, learning_rate: float) -> list[int]:
    """Return the layers whose weights do not move in float32 in any of the steps.

    An update below half the distance between neighbouring float32 numbers is lost in rounding.
    """
    weights, updates = ([p.first, *p.weights.T[..., None]] for p in (steps.params, steps.gradients))
    pairs = enumerate(zip(weights, updates, strict=True), start=1)
    return [layer for layer, (w, d) in pairs if _unmoved(w, learning_rate * d)]


def _unmoved(weights: np.ndarray, updates: np.ndarray) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        weights32 = weights.astype(np.float32)
        return bool((weights32 - updates.astype(np.float32) == weights32).all())
