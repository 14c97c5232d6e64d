"""The lecture's chain by the package's own model, loss and optimizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from jaxdnn.activations import Activation
from jaxdnn.layers import BlockOptions
from jaxdnn.losses import cross_entropy
from jaxdnn.models import Model, make_mlp
from jaxdnn.optim import is_kernel, make_optimizer
from jaxdnn.options import OptimizerOptions
from jaxdnn.propagation.lecture_chain import Params


def train_network(
    params: Params,
    x: np.ndarray,
    y: np.ndarray,
    *,
    phi: Activation,
    learning_rate: float,
    dtype: Any = np.float64,
) -> tuple[Params, Params]:
    """Train the same chain as a network of width 1, by the package's model, loss and optimizer.

    The network is not compiled as a loop over its layers: this is for depths below a hundred.

    Args:
      params: where it starts; all weights are alike, and all biases.
      x: (step, input).
      y: (step,), 0 or 1.
      phi: of all neurons but the last.
      learning_rate: above 0.
      dtype: float64, or float32 to see what is lost in it.

    Returns:
      The params before each step and the gradients, stacked.
    """
    # A trained or random slope stays at its mean, as in `train`.
    fixed = dataclasses.replace(phi, function=phi, slope=None)
    depth = len(params.biases)
    widths, unit = (1,) * (depth - 1), BlockOptions(activation=fixed)
    model = make_mlp(x.shape[1:], 1, widths=widths, unit=unit)
    options = OptimizerOptions(learning_rate=learning_rate, schedule="constant")
    optimizer = make_optimizer(options, optax.constant_schedule(learning_rate), num_examples=1)
    step = _make_step(model, optimizer)
    with jax.enable_x64(np.dtype(dtype) == np.float64):
        network = _to_network(model, params, dtype)
        samples = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
        _, history = lax.scan(step, (network, optimizer.init(network)), samples)
        before, grads = (_from_network(tree, depth) for tree in history)
        return before, grads


def _make_step(
    model: Model, optimizer: optax.GradientTransformation
) -> Callable[[Any, tuple[Array, Array]], tuple[Any, Any]]:
    """Return `((network, optimizer state), (x, y)) -> (the same, (network, gradients) before)`."""

    def loss(network: Any, x: Array, y: Array) -> Array:
        return cross_entropy(model.apply(network, {}, x[None]).logits, y[None].astype(int))[0]

    def step(state: Any, sample: tuple[Array, Array]) -> tuple[Any, Any]:
        network, optimizer_state = state
        grads = jax.grad(loss)(network, *sample)
        updates, optimizer_state = optimizer.update(grads, optimizer_state, network)
        return (optax.apply_updates(network, updates), optimizer_state), (network, grads)

    return step


def _to_network(model: Model, params: Params, dtype: Any) -> Any:
    """Return the network's tree, its weights alike, and its biases too."""
    shapes, _ = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map_with_path(
        lambda path, leaf: jnp.full(
            leaf.shape, (params.first if is_kernel(path) else params.biases)[0], dtype
        ),
        shapes,
    )


def _from_network(tree: Any, depth: int) -> Params:
    """Take weights and biases, all with a leading axis of steps, out of a network's tree."""
    layers = [*(tree["layers"][index]["linear"] for index in range(depth - 1)), tree["head"]]
    first, *kernels = [np.asarray(layer["kernel"])[..., 0] for layer in layers]
    biases = np.concatenate([np.asarray(layer["bias"]) for layer in layers], axis=-1)
    return Params(first, np.concatenate([first[:, :0], *kernels], axis=-1), biases)
