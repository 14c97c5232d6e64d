"""Random networks as pure functions of (params, inputs, key)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxdnn.activations import Activation

NUM_CLASSES = 10
_EPSILON = 1e-5
Params = list[dict[str, Any]]


@dataclasses.dataclass
class Plan:
    """One network: what `make_apply` reads.

    Attributes:
      convolutional: 3x3 convolutions on maps of `side`, rather than dense layers.
      side: of the map.
      widths: units or channels of each layer; the last is replaced by the classes.
      activations: of each hidden layer.
      norms: `none`, `batch` or `layer`, of each hidden layer's pre-activation.
      residual: whether each hidden layer is added to what it saw.
      dropout: rate by hidden layer.
      softmax: whether the network ends in one.
    """

    convolutional: bool
    side: int
    widths: list[int]
    activations: list[Callable[[Array], Array]]
    norms: list[str]
    residual: bool
    dropout: dict[int, float]
    softmax: bool = False

    def __str__(self) -> str:
        phi = self.activations[0]
        name = phi.name if isinstance(phi, Activation) else "planted"
        kind = "convnet" if self.convolutional else "mlp"
        residual = ", residual" if self.residual else ""
        size = f"{len(self.widths)} x {self.widths[0]}"
        return f"{kind} {size}, {name}, norm {self.norms[0]}{residual}"


def make_params(rng: np.random.Generator, plan: Plan) -> Params:
    """Draw kernels with the gain that keeps delta."""
    gain = _gain(plan.activations[0])
    params, num_in = [], plan.widths[0]
    for layer, width in enumerate(plan.widths):
        is_last = layer == len(plan.widths) - 1
        window = (3, 3) if plan.convolutional and not is_last else ()
        shape = (*window, num_in, NUM_CLASSES if is_last else width)
        std = gain / math.sqrt(math.prod(shape[:-1]))
        kernel = rng.standard_normal(shape, np.float32) * np.float32(std)
        params.append({"kernel": jnp.asarray(kernel), "bias": jnp.zeros(shape[-1])})
        num_in = width
    return params


def _gain(phi: Callable[[Array], Array]) -> float:
    """Return 1 / sqrt(E phi'(z)²), z standard normal."""
    z = jnp.linspace(-6, 6, 4001)
    weight = jnp.exp(-(z**2) / 2)
    slope = jax.jvp(phi, (z,), (jnp.ones_like(z),))[1]
    return float(jnp.sqrt(weight.sum() / (weight * slope**2).sum()))


def make_apply(plan: Plan) -> Callable[[Params, Array, Array], Array]:
    """Return the network, `(params, inputs, key) -> logits`."""

    def apply(params: Params, x: Array, key: Array) -> Array:
        for layer in range(len(plan.activations)):
            x = _hidden(plan, layer, params[layer], x, key)
        x = x.mean((1, 2)) if plan.convolutional else x
        logits = _linear(params[-1], x)
        return jax.nn.softmax(logits) if plan.softmax else logits

    return apply


def signal_rms(plan: Plan, params: Params, x: Array, layer: int) -> float:
    """Return the root mean square of a hidden layer's pre-activation."""
    for below in range(layer):
        x = _hidden(plan, below, params[below], x, jax.random.key(0))
    return float(jnp.sqrt(jnp.mean(_linear(params[layer], x) ** 2)))


def _hidden(plan: Plan, layer: int, params: dict[str, Any], x: Array, key: Array) -> Array:
    z = _normalise(_linear(params, x), plan.norms[layer])
    a = plan.activations[layer](z)
    if layer in plan.dropout:
        rate = plan.dropout[layer]
        mask = jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, a.shape)
        a = jnp.where(mask, a / (1 - rate), 0)
    return x + a if plan.residual and x.shape == a.shape else a


def _linear(params: dict[str, Any], x: Array) -> Array:
    kernel, bias = params["kernel"], params["bias"]
    if kernel.ndim == 2:
        return x @ kernel + bias
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions) + bias


def _normalise(z: Array, norm: str) -> Array:
    if norm == "none":
        return z
    axes = tuple(range(z.ndim - 1)) if norm == "batch" else (z.ndim - 1,)
    variance = z.var(axes, keepdims=True)
    return (z - z.mean(axes, keepdims=True)) * lax.rsqrt(variance + _EPSILON)
