"""From the arrays of a pass to a few numbers for each layer, on the host and in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdnn.diagnosis.graph import Graph
from jaxdnn.diagnosis.measure import Raw
from jaxdnn.propagation import SATURATED


class Forward(NamedTuple):
    """A layer's pre-activation.

    Attributes:
      mean: over batch and units.
      rms: root mean square.
      correlation: mean cosine between neighbouring examples.
    """

    mean: float
    rms: float
    correlation: float


class Slope(NamedTuple):
    """An activation at the values it got.

    Attributes:
      dead: share of units (last axis) with slope 0 in the whole batch.
      saturated: share of units and examples with less than 1 % of the greatest slope.
      rms: root mean square of the slope.
    """

    dead: float
    saturated: float
    rms: float


class Measurement(NamedTuple):
    """What one pass forward and back shows.

    Attributes:
      loss: mean over the batch.
      logits_rms: their root mean square.
      logits_spread: root mean square of the logits minus their mean over the batch.
      forward: of each layer.
      bias_rms: of each layer; 0 without one.
      slopes: by station, named by `station_name`.
      kept: by station, share of entries that a dropout keeps.
      delta: root mean square of the gradient, by number of the value.
      delta_by_example: of each layer, (batch,).
      through: of each layer, root mean square of the gradient of its operand through it alone;
        of its output for look-ups.
      kernel_rms: of each layer.
      kernel_grad_rms: of each layer.
      finite: whether loss and all gradients are.
    """

    loss: float
    logits_rms: float
    logits_spread: float
    forward: tuple[Forward, ...]
    bias_rms: tuple[float, ...]
    slopes: dict[str, Slope]
    kept: dict[str, float]
    delta: dict[int, float]
    delta_by_example: tuple[np.ndarray, ...]
    through: tuple[float, ...]
    kernel_rms: tuple[float, ...]
    kernel_grad_rms: tuple[float, ...]
    finite: bool


@np.errstate(invalid="ignore", over="ignore", divide="ignore")
def reduce(graph: Graph, params: Any, raw: Raw) -> Measurement:
    """Reduce the arrays of a pass to numbers, on the host and in float64."""
    raw, params = jax.device_get((raw, params))
    leaves, grads = jax.tree.leaves(params), jax.tree.leaves(raw.grads)
    kernels = [_slice(leaves[site.leaf[0]], site.leaf[1]) for site in graph.layers]
    kernel_grads = [_slice(grads[site.leaf[0]], site.leaf[1]) for site in graph.layers]
    biases = [raw.biases.get(index, np.zeros(1)) for index in range(len(graph.layers))]
    return Measurement(
        float(raw.loss),
        host_rms(raw.logits),
        host_rms(raw.logits - raw.logits.mean(0, keepdims=True)),
        tuple(_forward(z) for z in raw.pre_activations),
        tuple(host_rms(bias) for bias in biases),
        {name: _slope(slope) for name, slope in raw.slopes.items()},
        {name: float(kept) for name, kept in raw.kept.items()},
        {number: host_rms(delta) for number, delta in raw.deltas.items()},
        tuple(_by_example(raw.deltas[site.z]) for site in graph.layers),
        tuple(host_rms(x) for x in raw.through),
        tuple(host_rms(kernel) for kernel in kernels),
        tuple(host_rms(grad) for grad in kernel_grads),
        bool(np.isfinite(raw.loss) and all(np.isfinite(x).all() for x in grads)),
    )


def host_rms(x: Any) -> float:
    """Root mean square in float64."""
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


def _slice(leaf: Any, part: int | None) -> Any:
    return leaf if part is None else leaf[part]


def _by_example(delta: np.ndarray) -> np.ndarray:
    rows = np.asarray(delta, np.float64).reshape(delta.shape[0], -1)
    return np.sqrt(np.mean(rows**2, axis=1))


def _forward(z: np.ndarray) -> Forward:
    rows = np.asarray(z, np.float64).reshape(z.shape[0], -1)
    lengths = np.sqrt(np.sum(rows**2, axis=1))
    products = np.sum(rows[1:] * rows[:-1], axis=1)
    cosines = products / (lengths[1:] * lengths[:-1])
    return Forward(float(rows.mean()), host_rms(rows), float(cosines.mean()))


def _slope(slope: np.ndarray) -> Slope:
    axes = tuple(range(slope.ndim - 1))
    return Slope(
        float(np.mean(np.all(slope == 0, axis=axes))),
        float(np.mean(slope < SATURATED * slope.max())),
        host_rms(slope),
    )
