"""Watching a run: statistics of every layer between its calls, warnings, and where it broke.

    delta = dL/dz,   z the pre-activation of a layer, L the mean loss without penalties

delta is the gradient with respect to a probe of zeros (`models.py`). Nothing here is clipped. The
program that trains is the one of a run that nobody watches, called for fewer steps at a time: the
trained parameters are the same to the bit.

On its way from the last hidden layer to the first, the length of delta is multiplied in each layer
by its slope, by the gain of the kernel above, and by the rest (norm, pooling, dropout, branches):

    |delta_l| / |delta_(l+1)| = rms(phi'(z_l)) * rms(W_(l+1)) sqrt(fan_in) * rest

Of what is wrong only ratios and logarithms tell: the scale of the loss and the width of a layer do
not count.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from jaxdnn.activations import Activation
from jaxdnn.models import Model, Params
from jaxdnn.propagation import HEALTHY_LOG10, dead_fraction, rms, saturated_fraction
from jaxdnn.training.checkpoint import Flat, flatten
from jaxdnn.training.recorder import Recorder
from jaxdnn.training.step import Loss, Train, TrainState, Variables

# More dead features than this, or more saturated units, and a layer passes little.
DEAD_FRACTION = 0.9
SATURATED_FRACTION = 0.5
HE_GAIN = math.sqrt(2)
_SMALLEST = float(np.finfo(np.float32).tiny)


class Layer(NamedTuple):
    """What is fixed of a layer.

    Attributes:
      path: such as `layers/0`.
      shape: axes of its pre-activation, without the batch.
      fan_in: inputs of each unit.
    """

    path: str
    shape: tuple[int, ...]
    fan_in: int


class LayerStats(NamedTuple):
    """Statistics of every layer in one batch, on the host; the output comes last.

    Attributes:
      delta_rms: root mean square of dL/dz.
      pre_activation_rms: root mean square of z.
      dead_fraction: share of features with phi' = 0 for every example and place; 0 in the output.
      saturated_fraction: share of all z with |phi'| < 1 % of its maximum; 0 in the output.
      kernel_grad_rms: root mean square of dL/dW.
      kernel_rms: root mean square of W.
      slope_rms: root mean square of phi'(z); 1 in the output.
    """

    delta_rms: Float[np.ndarray, " layer"]
    pre_activation_rms: Float[np.ndarray, " layer"]
    dead_fraction: Float[np.ndarray, " layer"]
    saturated_fraction: Float[np.ndarray, " layer"]
    kernel_grad_rms: Float[np.ndarray, " layer"]
    kernel_rms: Float[np.ndarray, " layer"]
    slope_rms: Float[np.ndarray, " layer"]


def layers_of(model: Model, image_shape: tuple[int, ...]) -> list[Layer]:
    """Return the layers in the order of the network, for images (height, width, channel)."""
    params, batch_stats = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes: dict[str, tuple[int, ...]] = {}

    def note(*args: Any) -> None:
        # Here, because JAX sorts the dicts that its functions return.
        shapes.update({path: z.shape[1:] for path, z in model.apply(*args).pre_activations.items()})

    jax.eval_shape(note, params, batch_stats, image)
    flat = flatten(params)
    return [
        Layer(path, shape, _kernel_of(flat, path).size // shape[-1])
        for path, shape in shapes.items()
    ]


def _kernel_of(flat: Flat, path: str) -> Array:
    """Return the kernel of a layer from flat parameters, or from their gradients."""
    name = f"{path}/linear/kernel"
    return flat[name if name in flat else f"{path}/kernel"]


def make_measure(
    loss_of: Loss, layers: list[Layer], activation: Activation, *, dtype: Any = jnp.float32
) -> Callable[[Variables, Array, Array, Array], Array]:
    """Return `(variables, key, images, labels) -> (statistic, layer)`, the rows of `LayerStats`.

    One array, for every array that leaves the device takes its time. Images are float32.

    Args:
      loss_of: mean loss of a batch and the network's output; the key is its own.
      layers: in the order of the network, the output last.
      activation: phi of all layers but the output.
      dtype: what the network calculates in.
    """

    def measure(variables: Variables, key: Array, images: Array, labels: Array) -> Array:
        zeros = {layer.path: jnp.zeros((len(labels), *layer.shape), dtype) for layer in layers}

        def loss(params: Params, probes: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
            now = variables._replace(params=params)
            value, found = loss_of(now, key, images, labels, probes)
            return value, found.pre_activations

        (grads, deltas), zs = jax.grad(loss, (0, 1), has_aux=True)(variables.params, zeros)
        zs, deltas = jax.tree.map(lambda x: x.astype(jnp.float32), (zs, deltas))
        params, grads = flatten(variables.params), flatten(grads)

        def column(path: str) -> dict[str, Array]:
            z, trained = zs[path], params.get(f"{path}/slope")
            dead = saturated = jnp.zeros(())
            slope_rms = jnp.ones(())
            if path != layers[-1].path:
                # A trained slope is that of the parameters, a random one its mean.
                slope = jax.jvp(lambda z: activation(z, trained), (z,), (jnp.ones_like(z),))[1]
                max_slope = max(map(abs, activation.derivative_range))
                dead, saturated = dead_fraction(slope), saturated_fraction(slope, max_slope)
                slope_rms = _rms(slope)
            return {
                "delta_rms": _rms(deltas[path]),
                "pre_activation_rms": _rms(z),
                "dead_fraction": dead,
                "saturated_fraction": saturated,
                "kernel_grad_rms": _rms(_kernel_of(grads, path)),
                "kernel_rms": _rms(_kernel_of(params, path)),
                "slope_rms": slope_rms,
            }

        columns = [column(layer.path) for layer in layers]
        rows = [[column[name] for column in columns] for name in LayerStats._fields]
        return jnp.stack([jnp.stack(row) for row in rows])

    return measure


def _rms(x: Array) -> Array:
    """Return `rms(x)` in one pass over x, where its squares fit float32."""
    plain = jnp.sqrt(jnp.vdot(x, x) / x.size)
    return lax.cond((plain > 1e-15) & (plain < 1e15), lambda x: plain, rms, x)


class Pending(NamedTuple):
    """Statistics of a step that are not recorded yet.

    Attributes:
      step: its number, from 1 on.
      is_taken: whether training had not stopped before it.
      rows: (statistic, layer) on its batch, with the parameters before it. Like `is_taken` they may
        still be on their way.
    """

    step: int
    is_taken: Array
    rows: Array


@dataclasses.dataclass(frozen=True)
class Watch:
    """Trains as `take_steps` does, and measures step 1 and every step that `every` divides.

    Attributes:
      take_steps: compiled `(state, num_steps, step) -> state`; stays within an epoch.
      measure_next: compiled `(state, indices of the epoch) -> is the next step taken, (statistic,
        layer)` at that step; see `make_measure`.
      indices_of: `epoch -> indices`.
      layers: in the order of the network, the output last.
      bounded: whether the activation has bounds on both sides.
      every: steps between measurements.
      steps_per_epoch: optimizer steps.
    """

    take_steps: Train
    measure_next: Callable[[TrainState, Array], tuple[Array, Array]]
    indices_of: Callable[[int], Array]
    layers: list[Layer]
    bounded: bool
    every: int
    steps_per_epoch: int
    _pending: list[Pending] = dataclasses.field(default_factory=list, init=False)

    def train(self, state: TrainState, num_steps: int) -> TrainState:
        """Take up to `num_steps` steps, not beyond the epoch; the state is donated."""
        step, size = int(state.step), self.steps_per_epoch
        indices, last = self._indices_at(step), min(step + num_steps, (step // size + 1) * size)
        while step < last:
            if self._is_due(step + 1):
                self._pending.append(Pending(step + 1, *self.measure_next(state, indices)))
            until = step + 1
            while until < last and not self._is_due(until + 1):
                until += 1
            # Nothing here waits for the device: it goes from one call to the next.
            state, step = self.take_steps(state, until - step, step), until
        return state

    def _is_due(self, step: int) -> bool:
        return step == 1 or step % self.every == 0

    def _indices_at(self, step: int) -> Array:
        return self.indices_of(step // self.steps_per_epoch)

    def measure(self, state: TrainState, step: int) -> LayerStats:
        """Measure the step that comes next, after `step` steps, and wait for the result."""
        _, rows = self.measure_next(state, self._indices_at(step))
        return LayerStats(*np.asarray(rows))

    def record(self, recorder: Recorder) -> None:
        """Record what was measured since the last call, and warn of what is wrong in it.

        The device may still take the steps after the last of it: so this costs no time of its own.
        A run that diverged took fewer steps than it was asked for; nothing is known of those after.
        """
        pending = self._pending.copy()
        self._pending.clear()
        for each in pending:
            if not each.is_taken:
                break
            stats = LayerStats(*np.asarray(each.rows))
            when = {"step": each.step, "epoch": each.step / self.steps_per_epoch}
            recorder.record_layers(when | metrics_of(self.layers, stats))
            problems = find_problems(self.layers, stats, bounded=self.bounded)
            for kind, text in problems.items():
                recorder.warn(kind, f"step {each.step}: {text}")

    def first_bad_layer(self, state: TrainState, step: int) -> str:
        """Say which layer was the first not to be finite when the loss of step `step` was not.

        Training is repeated up to there: it is the same training. It stops at that step anyway.

        Args:
          state: before that step; donated.
          step: the number of the step that diverged.
        """
        before = None
        if (taken := int(state.step)) < step - 1:
            while (taken := int(state.step)) < step - 2:
                state = self.take_steps(state, step - 2 - taken, taken)
            before = self.measure(state, step - 2)
            state = self.take_steps(state, 1, step - 2)
        elif taken >= step:
            raise ValueError(f"step {step} lies before the state of step {taken}")
        return describe_first_bad(self.layers, state, before, self.measure(state, step - 1))


def metrics_of(layers: list[Layer], stats: LayerStats) -> dict[str, float]:
    """Return `gradients/PATH/STATISTIC -> value`; the output has no activation to speak of."""
    of_activation = ("dead_fraction", "saturated_fraction", "slope_rms")
    return {
        f"gradients/{layer.path}/{name}": float(values[index])
        for index, layer in enumerate(layers)
        for name, values in stats._asdict().items()
        if layer is not layers[-1] or name not in of_activation
    }


def find_problems(layers: list[Layer], stats: LayerStats, *, bounded: bool) -> dict[str, str]:
    """Return `kind of problem -> one line with the layer and the cause`.

    Args:
      layers: in the order of the network, the output last.
      stats: numbers that are not finite are no problem of depth.
      bounded: whether the activation has bounds on both sides, so that it can saturate.
    """
    found = {
        "dead": _dead(layers, stats),
        "saturated": _saturated(layers, stats) if bounded else None,
        "depth": _depth(layers, stats),
    }
    return {kind: text for kind, text in found.items() if text is not None}


def _dead(layers: list[Layer], stats: LayerStats) -> str | None:
    index = int(np.argmax(stats.dead_fraction))
    named = _above(layers, stats.dead_fraction, DEAD_FRACTION, "dead")
    return named and (
        f"{named}: {stats.dead_fraction[index]:.0%} of its features have slope 0 for every "
        "image of the batch, so that no gradient moves them; lower --learning-rate, or use "
        "--activation leaky_relu"
    )


def _saturated(layers: list[Layer], stats: LayerStats) -> str | None:
    index = int(np.argmax(stats.saturated_fraction))
    named = _above(layers, stats.saturated_fraction, SATURATED_FRACTION, "saturated")
    return named and (
        f"{named}: the slope of {stats.saturated_fraction[index]:.0%} of its units is "
        "under 1 % of the steepest, because its pre-activations have an RMS of "
        f"{stats.pre_activation_rms[index]:.2g}; use --norm batch, or lower --gain"
    )


def _above(layers: list[Layer], shares: np.ndarray, limit: float, word: str) -> str | None:
    """Name the layer of the greatest share, if that is above the limit, and count the others."""
    num = int(np.sum(shares >= limit))
    more = f" (and {num - 1} more)" if num > 1 else ""
    return f"{layers[int(np.argmax(shares))].path} is {word}{more}" if num else None


def _depth(layers: list[Layer], stats: LayerStats) -> str | None:
    """Tell whether delta vanishes or explodes between the last hidden layer and the first."""
    hidden = layers[:-1]
    if not hidden or not np.isfinite(stats.delta_rms).all():
        return None
    lengths = _log(stats.delta_rms) + _log([math.sqrt(math.prod(layer.shape)) for layer in layers])
    if stats.delta_rms[-1] > 0 and stats.delta_rms[-2] == 0:
        return f"delta is zero below {layers[-1].path}: {_zero_cause(layers, stats)}"
    total = lengths[0] - lengths[-2]
    if abs(total) <= HEALTHY_LOG10:
        return None
    word = "vanishes" if total < 0 else "explodes"
    return (
        f"delta {word}: its length in {layers[0].path} is {10**total:.2g} times that in "
        f"{hidden[-1].path}; {_cause(layers, stats, lengths)}"
    )


def _zero_cause(layers: list[Layer], stats: LayerStats) -> str:
    if stats.kernel_rms[-1] == 0:
        return f"the kernel of {layers[-1].path} is zero; use another --initializer"
    return f"{layers[-2].path} has slope 0 everywhere; use another --activation or --initializer"


def _cause(layers: list[Layer], stats: LayerStats, lengths: np.ndarray) -> str:
    """Name the term that accounts for most of what delta loses or gains, and where it is worst."""
    factors = np.diff(lengths[:-1][::-1])[::-1]
    slopes = _log(stats.slope_rms[:-2])
    gains = _log(stats.kernel_rms[1:-1]) + _log([math.sqrt(layer.fan_in) for layer in layers[1:-1]])
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


def describe_first_bad(
    layers: list[Layer], state: TrainState, before: LayerStats | None, stats: LayerStats
) -> str:
    """Name the first layer that is not finite, and where in it.

    Args:
      layers: in the order of the network, the output last.
      state: before the step that diverged.
      before: statistics at the step before that, if there was one.
      stats: at the step that diverged.
    """
    paths = [layer.path for layer in layers]
    broken = [name for name, leaf in flatten(state.params).items() if not np.isfinite(leaf).all()]
    if broken and before is not None and (bad := _first_on_the_way_back(paths, before)):
        return f"the first layer that was not finite is {bad}, one step before"
    if broken:
        return f"the first parameter that is not finite is {broken[0]}, before that step"
    bad = np.flatnonzero(~np.isfinite(stats.pre_activation_rms))
    if bad.size:
        return f"the first layer that is not finite is {paths[bad[0]]}, in its pre-activation"
    largest = int(np.argmax(stats.pre_activation_rms))
    return (
        f"every layer is finite; the pre-activations of {paths[largest]} are the largest, of RMS "
        f"{float(stats.pre_activation_rms[largest]):.2g}"
    )


def _first_on_the_way_back(paths: list[str], stats: LayerStats) -> str | None:
    """Name the first layer with a gradient that is not finite, from the output on."""
    for path, delta, grad in reversed(
        list(zip(paths, stats.delta_rms, stats.kernel_grad_rms, strict=True))
    ):
        if not np.isfinite(delta):
            return f"{path}, in its delta"
        if not np.isfinite(grad):
            return f"{path}, in its kernel's gradient"
    return None
