"""What is wrong with the gradients of a network, and why, from one look at it.

On its way from the last hidden layer to the first, the length of delta is multiplied in each layer
by its slope, by the gain of the kernel above, and by the rest (norm, pooling, dropout, branches):

    |delta_l| / |delta_(l+1)| = rms(phi'(z_l)) * rms(W_(l+1)) sqrt(fan_in) * rest

Only ratios and logarithms count: the scale of the loss and the width of a layer do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from jaxdnn.propagation import HEALTHY_LOG10
from jaxdnn.training.look import Layer, Look

# More dead features than this, or more saturated units, and a layer passes little.
DEAD_FRACTION = 0.9
SATURATED_FRACTION = 0.5
_SMALLEST = float(np.finfo(np.float32).tiny)
HE_GAIN = math.sqrt(2)


def find_problems(layers: list[Layer], look: Look, *, bounded: bool) -> dict[str, str]:
    """Return `kind of problem -> one line with the layer and the cause`.

    Args:
      layers: of the network, the output last.
      look: with numbers that are finite; others are no problem of depth.
      bounded: whether the activation has bounds on both sides, so that it can saturate.
    """
    checks: Mapping[str, Callable[[], str | None]] = {
        "dead": lambda: _dead(layers, look),
        "saturated": lambda: _saturated(layers, look) if bounded else None,
        "depth": lambda: _depth(layers, look),
    }
    found = {kind: find() for kind, find in checks.items()}
    return {kind: text for kind, text in found.items() if text is not None}


def _dead(layers: list[Layer], look: Look) -> str | None:
    path, share, more = _worst(layers, np.asarray(look.dead_fraction))
    if share < DEAD_FRACTION:
        return None
    return (
        f"{path} is dead{more(DEAD_FRACTION)}: {share:.0%} of its features have slope 0 for every "
        "image of the batch, so that no gradient moves them; lower --learning-rate, or use "
        "--activation leaky_relu"
    )


def _saturated(layers: list[Layer], look: Look) -> str | None:
    path, share, more = _worst(layers, np.asarray(look.saturated_fraction))
    if share < SATURATED_FRACTION:
        return None
    index = int(np.argmax(look.saturated_fraction))
    return (
        f"{path} is saturated{more(SATURATED_FRACTION)}: the slope of {share:.0%} of its units is "
        "under 1 % of the steepest, because its pre-activations have an RMS of "
        f"{look.pre_activation_rms[index]:.2g}; use --norm batch, or lower --gain"
    )


def _worst(layers: list[Layer], shares: np.ndarray) -> tuple[str, float, Callable[[float], str]]:
    """Return the layer of the greatest share, the share, and a word about others above a limit."""
    index = int(np.argmax(shares))

    def more(limit: float) -> str:
        others = int(np.sum(shares >= limit)) - 1
        return f" (and {others} more)" if others else ""

    return layers[index].path, float(shares[index]), more


def _depth(layers: list[Layer], look: Look) -> str | None:
    """Tell whether delta vanishes or explodes between the last hidden layer and the first."""
    hidden = layers[:-1]
    if not hidden or not np.isfinite(look.delta_rms).all():
        return None
    lengths = _log(look.delta_rms) + _log([math.sqrt(math.prod(layer.shape)) for layer in layers])
    if look.delta_rms[-1] > 0 and look.delta_rms[-2] == 0:
        return f"delta is zero below {layers[-1].path}: {_zero_cause(layers, look)}"
    total = lengths[0] - lengths[-2]
    if abs(total) <= HEALTHY_LOG10:
        return None
    word = "vanishes" if total < 0 else "explodes"
    return (
        f"delta {word}: its length in {layers[0].path} is {10**total:.2g} times that in "
        f"{hidden[-1].path}; {_cause(layers, look, lengths)}"
    )


def _zero_cause(layers: list[Layer], look: Look) -> str:
    if look.kernel_rms[-1] == 0:
        return f"the kernel of {layers[-1].path} is zero; use another --initializer"
    return f"{layers[-2].path} has slope 0 everywhere; use another --activation or --initializer"


def _cause(layers: list[Layer], look: Look, lengths: np.ndarray) -> str:
    """Name the term that accounts for most of what delta loses or gains, and where it is worst."""
    factors = np.diff(lengths[:-1][::-1])[::-1]
    slopes = _log(look.slope_rms[:-2])
    gains = _log(look.kernel_rms[1:-1]) + _log([math.sqrt(layer.fan_in) for layer in layers[1:-1]])
    sign = np.sign(factors.sum())
    terms = {"slope": slopes, "gain": gains, "rest": factors - slopes - gains}
    name, logs = max(terms.items(), key=lambda item: sign * item[1].sum())
    worst = int(np.argmax(sign * logs))
    typical, extreme = 10 ** float(np.median(logs)), 10 ** float(logs[worst])
    below, above = layers[worst].path, layers[worst + 1].path
    return {
        "slope": f"the activation's slope is the cause, typically {typical:.2g} (RMS) and "
        f"{extreme:.2g} in {below}; use --activation relu or --norm batch",
        "gain": f"the kernels are the cause, of gain {typical:.2g} typically and {extreme:.2g} in "
        f"{above}, where He initialization has {HE_GAIN:.2f}; use --initializer he_normal",
        "rest": f"norm, pooling, dropout or branches are the cause, by {typical:.2g} a layer and "
        f"{extreme:.2g} between {above} and {below}; change --norm or lower --dropout",
    }[name]


def _log(values: object) -> np.ndarray:
    """Log10 with a floor: zeros count as the smallest float32."""
    return np.log10(np.maximum(np.asarray(values, np.float64), _SMALLEST))
