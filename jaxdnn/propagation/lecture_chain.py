"""The lecture's chain of single neurons: why the weights far from the output hardly learn.

n neurons in a row, n weights w_1 ... w_n (w_1 has an entry for each input) and n biases. Forward,
with x in the place of a_1:

    z_l = w_l a_l + b_l,   a_(l+1) = phi(z_l) for l < n,   a_(n+1) = sigmoid(z_n)

Backward from the cross-entropy with the target y, as on the slides:

    delta_(n+1) = a_(n+1) - y
    delta_l = w_l delta_(l+1) phi'(z_(l-1))        for the sigmoid phi' = a_l (1 - a_l) <= 1/4
    D_l = a_l delta_(l+1)
    w_l <- w_l - rate D_l,   b_l <- b_l - rate delta_(l+1)

All in double precision, whatever JAX's default is, and in three ways that agree: `slide_gradients`,
`autodiff_gradients`, and in `lecture_network.py` the package's own network, loss and optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxdnn.activations import Activation
from jaxdnn.losses import cross_entropy

LECTURE_X = np.array(
    [
        [0.42726183643262816, 0.26491365101710074],
        [0.022738348122339595, 0.07327263834999487],
        [0.24508024911229243, 0.47025690528852293],
        [0.020625885863829768, 0.3328224388374417],
        [-0.0590857100936783, 0.3165621031353404],
    ]
)
"""The lecture's samples, (sample, input); the target of each is 1."""


class Params(NamedTuple):
    """The weights and biases of a chain, or gradients with respect to them.

    Attributes:
      first: (..., input), w_1.
      weights: (..., neuron - 1), w_2 ... w_n.
      biases: (..., neuron), b_1 ... b_n.
    """

    first: Any
    weights: Any
    biases: Any


class Iteration(NamedTuple):
    """What happened in one step, or with a leading axis in each step.

    Attributes:
      x: (input,).
      y: (), the target, 0 or 1.
      a: (neuron,), a_2 ... a_(n+1).
      params: before the update.
      delta: (neuron,), delta_2 ... delta_(n+1).
      gradients: D_1 ... D_n, and for the biases delta_2 ... delta_(n+1).
    """

    x: Any
    y: Any
    a: Any
    params: Params
    delta: Any
    gradients: Params


Gradients = Callable[[Params, Array, Array, Activation], Params]


def start(num_inputs: int, depth: int, *, weight: float, bias: float) -> Params:
    """Return a chain of `depth` >= 1 neurons whose weights are all alike, and its biases too."""
    return Params(np.full(num_inputs, weight), np.full(depth - 1, weight), np.full(depth, bias))


def forward(params: Params, x: Array, phi: Activation) -> tuple[Array, Array]:
    """Return z_1 ... z_n and a_2 ... a_(n+1), each (neuron,)."""

    def neuron(z: Array, layer: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        w, b = layer
        a = phi(z)
        return w * a + b, (z, a)

    first, last_layers = params.first @ x + params.biases[0], (params.weights, params.biases[1:])
    last, (z, a) = lax.scan(neuron, first, last_layers)
    return jnp.append(z, last), jnp.append(a, jax.nn.sigmoid(last))


def backward(params: Params, x: Array, y: Array, phi: Activation) -> Iteration:
    """Go through the chain and back by the slides' formulas."""
    z, a = forward(params, x, phi)
    last = a[-1] - y

    def neuron(delta_next: Array, layer: tuple[Array, Array]) -> tuple[Array, Array]:
        w, z_before = layer
        delta = w * delta_next * phi.derivative(z_before)
        return delta, delta

    _, hidden = lax.scan(neuron, last, (params.weights, z[:-1]), reverse=True)
    delta = jnp.append(hidden, last)
    gradients = Params(x * delta[0], a[:-1] * delta[1:], delta)
    return Iteration(x, y, a, params, delta, gradients)


def slide_gradients(params: Params, x: Array, y: Array, phi: Activation) -> Params:
    """Return the gradients by the slides' formulas."""
    return backward(params, x, y, phi).gradients


def autodiff_gradients(params: Params, x: Array, y: Array, phi: Activation) -> Params:
    """Return the gradients by `jax.grad` of the package's cross-entropy."""

    def loss(params: Params) -> Array:
        z, _ = forward(params, x, phi)
        return cross_entropy(z[-1:, None], y[None].astype(int))[0]

    return jax.grad(loss)(params)


def train(
    params: Params,
    x: np.ndarray,
    y: np.ndarray,
    *,
    phi: Activation,
    learning_rate: float,
    gradients: Gradients = slide_gradients,
) -> Iteration:
    """Train a chain, one sample for each step; return its steps, stacked, as float64 arrays.

    Args:
      params: where it starts.
      x: (step, input).
      y: (step,), 0 or 1.
      phi: of all neurons but the last; a trained or random slope stays at its mean.
      learning_rate: above 0.
      gradients: `slide_gradients` or `autodiff_gradients`.
    """

    def step(params: Params, sample: tuple[Array, Array]) -> tuple[Params, Iteration]:
        grads = gradients(params, *sample, phi)
        after = jax.tree.map(lambda p, g: p - learning_rate * g, params, grads)
        return after, backward(params, *sample, phi)._replace(gradients=grads)

    with jax.enable_x64(True):
        _, steps = lax.scan(step, *jax.tree.map(jnp.asarray, (params, (x, y))))
        return jax.tree.map(np.asarray, steps)
