"""Gradient flow as a library: the moments of one network, on arrays."""

from __future__ import annotations

from typing import Any

import jax
from jax import Array

from jaxdnn.activations import Activation
from jaxdnn.initializers import Initializer, make_initializer
from jaxdnn.propagation.find_activation import as_activation, find_activation
from jaxdnn.propagation.moments import Moments, Phi
from jaxdnn.propagation.plain_network import Architecture, Batch, draw_kernels, flow, gaussian_batch


def gradient_flow(
    key: Array,
    inputs: Array | None = None,
    labels: Array | None = None,
    *,
    initializer: str | Initializer = "he_normal",
    activation: str | Activation | Phi = "relu",
    depth: int = 20,
    width: int = 512,
    batch_size: int = 128,
    **architecture: Any,
) -> Moments:
    """Initialize one network, pass a batch forward and back, and measure every layer.

        from jaxdnn import gradient_flow
        moments = gradient_flow(jax.random.key(0), initializer="xavier", activation="sigmoid")
        plt.semilogy(moments.delta_rms)

    Args:
      key: draws the kernels, and the batch where none is given.
      inputs: (batch, input) floats; by default standard normal, as wide as the hidden layers.
      labels: (batch,) class indices; by default uniform.
      initializer: a name, or an `Initializer`.
      activation: a name, an `Activation`, or an elementwise function of jax.numpy.
      depth: kernels, the output's included; at least 2.
      width: units of each hidden layer.
      batch_size: of the default inputs.
      **architecture: `norm`, `residual`, `num_outputs`, `loss` and `precision` of
        `jaxdnn.propagation.plain_network.Architecture`.

    Returns:
      Moments whose arrays have one entry for each layer, the first nearest the input.

    References:
      Glorot and Bengio, "Understanding the Difficulty of Training Deep Feedforward Neural
      Networks", 2010.
    """
    shape = Architecture(depth=depth, width=width, **architecture)
    batch_key, kernel_key = jax.random.split(key)
    size, num_inputs = (batch_size, width) if inputs is None else inputs.shape
    drawn = gaussian_batch(batch_key, size, num_inputs, shape.num_outputs)
    batch = Batch(
        drawn.inputs if inputs is None else inputs, drawn.labels if labels is None else labels
    )
    if isinstance(initializer, str):
        initializer = make_initializer(initializer)
    if isinstance(activation, str):
        phi = find_activation(activation)
    else:
        phi = as_activation(activation, getattr(activation, "__name__", "activation"))
    kernels = draw_kernels(initializer, kernel_key, num_inputs, shape)
    return flow(kernels, batch, phi, max(map(abs, phi.derivative_range)), shape)
