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
`autodiff_gradients`, and `train_network`, by the package's own model, loss and optimizer.

In the classroom a person stands for each weight. All start side by side, and in each training step
a person walks 60 * rate * D floor tiles: 60 tiles are a change of the weight by 1.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from jaxdnn import run_folder
from jaxdnn.activations import Activation
from jaxdnn.layers import BlockOptions
from jaxdnn.losses import cross_entropy
from jaxdnn.models import Model, make_mlp
from jaxdnn.optim import is_kernel, make_optimizer
from jaxdnn.options import OptimizerOptions

TILES_PER_UNIT = 60
MOST_LANES = 7
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
      x: (input,), the example of this step.
      y: (), the target, 0 or 1.
      a: (neuron,), a_2 ... a_(n+1).
      params: weights and biases before the update.
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
      params: weights and biases before the first step.
      x: (step, input).
      y: (step,), 0 or 1.
      phi: activation of every neuron but the last; a trained or random slope stays at its mean.
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
      phi: activation of every neuron but the last.
      learning_rate: above 0.
      dtype: float64, or float32 to see what is lost in it.

    Returns:
      The params before each step and the gradients, stacked.
    """
    # A trained or random slope stays at its mean, as in `train`.
    fixed = dataclasses.replace(phi, function=phi, slope=None)
    depth = len(params.biases)
    widths, block = (1,) * (depth - 1), BlockOptions(activation=fixed)
    model = make_mlp(x.shape[1:], 1, widths=widths, options=block)
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


def write_csv(table: Mapping[str, np.ndarray], columns: Sequence[str], path: Path) -> None:
    """Write a table in full precision; `columns` name the steps."""
    lines = ([name, *map(repr, values.tolist())] for name, values in table.items())
    run_folder.write_csv(path, ["quantity", *columns], lines, line_end="\n")


def read_csv(path: Path) -> dict[str, np.ndarray]:
    """Read what `write_csv` wrote: name of each quantity -> (step,)."""
    with path.open(newline="") as file:
        _, *lines = csv.reader(file)
    return {name: np.array(list(map(float, cells))) for name, *cells in lines}


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


@dataclasses.dataclass(frozen=True)
class Walk:
    """How one weight moved.

    Attributes:
      layer: its number, 1 nearest the input.
      name: `w3`, or of several inputs' weights in the first layer the one that got farthest.
      start: value before the first step.
      updates: (step,), what each step added: -rate * D.
    """

    layer: int
    name: str
    start: float
    updates: np.ndarray

    @property
    def tiles(self) -> np.ndarray:
        """Where it stands, in tiles from its start, before the first and after each step."""
        return TILES_PER_UNIT * np.concatenate([[0.0], np.cumsum(self.updates)])

    @property
    def distance(self) -> float:
        """How far from its start it ends, in tiles."""
        return float(abs(self.tiles[-1]))

    @property
    def end(self) -> float:
        """The weight after the last step."""
        return self.start + float(self.updates.sum())

    def steps_to(self, goal: float) -> float:
        """Return how many steps it needs to get `goal` tiles away, at the pace of these steps."""
        steps = len(self.updates) * goal / self.distance if self.distance else math.inf
        return float(np.ceil(steps))


def walks(table: Mapping[str, np.ndarray], learning_rate: float) -> list[Walk]:
    """Return the walk of each layer's weight, the first layer's first."""
    found: dict[int, Walk] = {}
    for name, weights in table.items():
        if name.startswith("w"):
            layer = int(name[1:].partition("[")[0])
            updates = 0.0 - learning_rate * table["D" + name[1:]]
            walk = Walk(layer, name, float(weights[0]), updates)
            found[layer] = max(found.get(layer, walk), walk, key=lambda walk: walk.distance)
    return list(found.values())


def lanes(everyone: Sequence[Walk]) -> list[Walk]:
    """Choose whom to show, from the output back: the last three, and some evenly spaced."""
    depth = len(everyone)
    if depth <= MOST_LANES:
        return list(everyone)[::-1]
    spaced = np.linspace(0, depth - 4, MOST_LANES - 3).round().astype(int)[::-1]
    return [everyone[index] for index in (depth - 1, depth - 2, depth - 3, *spaced)]


def spans(layers: Sequence[int]) -> str:
    """Return `w1 to w3, w7` for 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"w{run[0]}" + (f" to w{run[-1]}" if run[1:] else "") for run in runs)
