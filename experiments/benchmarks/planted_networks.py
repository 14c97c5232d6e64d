"""Random networks as pure functions of (params, inputs, key), each with one fault or none."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxdnn.activations import Activation, make_activation
from jaxdnn.diagnosis import CAUSES

NUM_CLASSES = 10
_EPSILON = 1e-5
Params = list[dict[str, Any]]
ACTIVATIONS = (
    "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "tanh", "soft_sign", "hard_tanh",
)  # fmt: skip
# A map shows a layer many places of each image, so that fewer will do.
BATCH, NUM_IMAGES = 32, 8
# Fault -> the cause that has to be named.
FAULTS = {
    "weights x 0.1": CAUSES["weights too small"],
    "weights x 10": CAUSES["weights too large"],
    "fan-out for fan-in": CAUSES["fan-out for fan-in"],
    "saturating activation": CAUSES["saturating activation"],
    "zero-initialised layer": CAUSES["zero weights"],
    "dead ReLU biases": CAUSES["dead units"],
    "softmax twice": CAUSES["outputs cannot reach targets"],
    "missing norm": CAUSES["missing norm"],
    "zero-padded 4x4 stack": CAUSES["padding"],
    "dropout at 0.9": CAUSES["dropout"],
}
# A bias of so many times the layer's signal leaves no unit alive.
_DEADLY = 20.0


@dataclasses.dataclass
class Plan:
    """One network: what `make_apply` reads.

    Attributes:
      convolutional: 3x3 convolutions on maps of `side`, rather than dense layers.
      side: height and width of the maps, in pixels.
      widths: units or channels of each layer; the last is replaced by the classes.
      activations: what follows each hidden layer, elementwise.
      norms: `none`, `batch` or `layer`: how each hidden layer's pre-activation is normalised.
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


class Case(NamedTuple):
    """A network with its batch.

    Attributes:
      model: (function of (params, inputs, key), params).
      inputs: (batch, ...).
      targets: (batch,), class indices.
      layer: that has to be named; None for any.
      plan: what was drawn.
    """

    model: Any
    inputs: Array
    targets: Array
    layer: int | None
    plan: Plan


def make_case(seed: int, fault: str | None) -> Case:
    """Draw a network, healthy for `fault` None, and a batch."""
    rng = np.random.default_rng(seed)
    plan = _draw_plan(rng, fault)
    params = make_params(rng, plan)
    shape = (plan.side, plan.side, plan.widths[0]) if plan.convolutional else (plan.widths[0],)
    batch = NUM_IMAGES if plan.convolutional else BATCH
    inputs = jnp.asarray(rng.standard_normal((batch, *shape), np.float32))
    layer = None if fault is None else _plant(rng, plan, params, inputs, fault)
    targets = jnp.asarray(rng.integers(0, NUM_CLASSES, batch))
    return Case((make_apply(plan), params), inputs, targets, layer, plan)


def _draw_plan(rng: np.random.Generator, fault: str | None) -> Plan:
    """Draw a healthy network in which the fault can be planted."""
    stack = fault == "zero-padded 4x4 stack"
    convolutional = bool(rng.random() < 0.4) or stack
    depth = max(int(rng.integers(5, 41)), 8 if stack else 0)
    width = int(2 ** rng.uniform(5, 9))
    if convolutional:
        width, depth = min(width, 64), min(depth, 24)
    residual = bool(rng.random() < 0.3) and not stack and fault != "fan-out for fan-in"
    norms = ("batch", "layer") if fault == "missing norm" else ("none", "batch", "layer")
    norm = "none" if stack or fault == "dead ReLU biases" else str(rng.choice(norms))
    name = "relu" if fault == "dead ReLU biases" else str(rng.choice(ACTIVATIONS))
    hidden = depth - 1
    widths, phi = [width] * depth, make_activation(name)
    plan = Plan(
        convolutional, 4 if stack else 16, widths, [phi] * hidden, [norm] * hidden, residual, {}
    )
    if fault == "fan-out for fan-in":
        ratio = float(2 ** rng.uniform(2, 3))
        other = width * ratio if rng.random() < 0.5 else width / ratio
        widths[int(rng.integers(1, hidden))] = max(4, round(other))
    return plan


def _plant(
    rng: np.random.Generator, plan: Plan, params: Params, inputs: Array, fault: str
) -> int | None:
    """Plant the fault in place; return the layer that has to be named, None for any."""
    layer = int(rng.integers(1, len(params) - 1))
    kernel = params[layer]["kernel"]
    if fault.startswith("weights x"):
        params[layer]["kernel"] = kernel * float(fault.removeprefix("weights x"))
    elif fault == "fan-out for fan-in":
        layer = next(i for i, width in enumerate(plan.widths) if width != plan.widths[0])
        kernel = params[layer]["kernel"]
        params[layer]["kernel"] = kernel * math.sqrt(kernel.shape[-2] / kernel.shape[-1])
    elif fault == "saturating activation":
        plan.activations[layer] = [jax.nn.sigmoid, lambda x: jnp.tanh(10 * x)][rng.integers(2)]
    elif fault == "zero-initialised layer":
        params[layer]["kernel"] = jnp.zeros_like(kernel)
    elif fault == "dead ReLU biases":
        params[layer]["bias"] -= _DEADLY * signal_rms(plan, params, inputs, layer)
    elif fault == "softmax twice":
        plan.softmax, layer = True, len(params) - 1
    elif fault == "missing norm":
        plan.norms[layer] = "none"
    elif fault == "dropout at 0.9":
        plan.dropout[layer] = 0.9
    return None if fault == "zero-padded 4x4 stack" else layer
