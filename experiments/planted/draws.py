"""Drawing a network and planting a fault in it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdnn.activations import make_activation

from .networks import NUM_CLASSES, Params, Plan, make_apply, make_params, signal_rms

ACTIVATIONS = (
    "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "tanh", "soft_sign", "hard_tanh",
)  # fmt: skip
# A map shows a layer many places of each image, so that fewer will do.
BATCH, NUM_IMAGES = 32, 8
# Fault -> the cause that has to be named.
FAULTS = {
    "weights x 0.1": "weights too small",
    "weights x 10": "weights too large",
    "fan-out for fan-in": "fan-out for fan-in",
    "saturating activation": "saturating activation",
    "zero-initialised layer": "zero weights",
    "dead ReLU biases": "dead units",
    "softmax twice": "softmax twice",
    "missing norm": "missing norm",
    "zero-padded 4x4 stack": "padding",
    "dropout at 0.9": "dropout",
}
# A bias of so many times the layer's signal leaves no unit alive.
_DEADLY = 20.0


class Case(NamedTuple):
    """A network with its batch.

    Attributes:
      model: (function of (params, inputs, key), params).
      inputs: (batch, ...).
      targets: (batch,), class indices.
      layer: that has to be named; None for any.
      plan: of the network.
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
