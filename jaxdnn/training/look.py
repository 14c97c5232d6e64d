"""A look into every layer of a network in training: what one batch does on its way there and back.

    delta = dL/dz,   z the pre-activation of a layer, L the mean loss without penalties

delta is the gradient with respect to a probe of zeros (`models.py`). Nothing here is clipped, and
nothing is changed: a look is a program of its own, beside that of the steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from jaxdnn.activations import Activation
from jaxdnn.models import BatchStats, Model, Params
from jaxdnn.propagation import SATURATED, rms
from jaxdnn.training.flat import Flat, flatten
from jaxdnn.training.gradient import Loss


class Look(NamedTuple):
    """Statistics of every layer in one batch, on the host; the output comes last.

    Attributes:
      delta_rms: root mean square of dL/dz.
      pre_activation_rms: of z.
      dead_fraction: share of features with phi' = 0 for every example and place; 0 in the output.
      saturated_fraction: share of all z with |phi'| < 1 % of its maximum; 0 in the output.
      kernel_grad_rms: of dL/dW.
      kernel_rms: of W.
      slope_rms: of phi'; 1 in the output.
    """

    delta_rms: Float[np.ndarray, " layer"]
    pre_activation_rms: Float[np.ndarray, " layer"]
    dead_fraction: Float[np.ndarray, " layer"]
    saturated_fraction: Float[np.ndarray, " layer"]
    kernel_grad_rms: Float[np.ndarray, " layer"]
    kernel_rms: Float[np.ndarray, " layer"]
    slope_rms: Float[np.ndarray, " layer"]


class Seen(NamedTuple):
    """What a look takes of the state of training: the fewer arrays, the sooner it starts.

    Attributes:
      step: steps taken.
      diverged: whether the last of them was the run's last.
      params: of the network.
      batch_stats: of its batch norms.
    """

    step: Array
    diverged: Array
    params: Params
    batch_stats: BatchStats


class Layer(NamedTuple):
    """What is fixed of a layer.

    Attributes:
      path: such as `layers/0`.
      shape: of its pre-activation, without the batch.
      fan_in: inputs of each unit.
    """

    path: str
    shape: tuple[int, ...]
    fan_in: int


def layers_of(model: Model, image_shape: tuple[int, ...]) -> list[Layer]:
    """Return the layers in the order of the network.

    Args:
      model: a network.
      image_shape: (height, width, channel).
    """
    params, batch_stats = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes: dict[str, tuple[int, ...]] = {}

    def note(*args: Any) -> None:
        # Here, because JAX sorts the dicts that its functions return.
        shapes.update({path: z.shape[1:] for path, z in model.apply(*args).pre_activations.items()})

    jax.eval_shape(note, params, batch_stats, image)
    flat = flatten(params)
    return [
        Layer(path, shape, kernel_of(flat, path).size // shape[-1])
        for path, shape in shapes.items()
    ]


def kernel_of(flat: Flat, path: str) -> Array:
    """Return the kernel of a layer from flat parameters, or from their gradients."""
    name = f"{path}/linear/kernel"
    return flat[name if name in flat else f"{path}/kernel"]


def make_look(
    loss_of: Loss, layers: list[Layer], activation: Activation, *, dtype: Any = jnp.float32
) -> Callable[[Seen, Array, Array, Array], Array]:
    """Return `(seen, key, float32 images, labels) -> (statistic, layer)`, the rows of a `Look`.

    One array, for every array that leaves the device takes its time.

    Args:
      loss_of: of a batch; the key is its own.
      layers: of the network, the output last.
      activation: of all layers but the output.
      dtype: what the network calculates in.
    """
    paths = [layer.path for layer in layers]
    output = paths[-1]

    def look(seen: Seen, key: Array, images: Array, labels: Array) -> Array:
        zeros = {layer.path: jnp.zeros((len(labels), *layer.shape), dtype) for layer in layers}

        def loss(params: Params, probes: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
            value, found = loss_of(params, seen.batch_stats, key, images, labels, probes)
            return value, found.pre_activations

        (grads, deltas), zs = jax.grad(loss, (0, 1), has_aux=True)(seen.params, zeros)
        zs, deltas = jax.tree.map(lambda x: x.astype(jnp.float32), (zs, deltas))
        params, grads = flatten(seen.params), flatten(grads)
        columns = [
            _reduce(
                zs[path],
                None if path == output else _slope(activation, params, path, zs[path]),
                deltas[path],
                kernel_of(grads, path),
                kernel_of(params, path),
                activation,
            )
            for path in paths
        ]
        rows = [[column[name] for column in columns] for name in Look._fields]
        return jnp.stack([jnp.stack(row) for row in rows])

    return look


def _slope(activation: Activation, params: Flat, path: str, z: Array) -> Array:
    """Return phi'(z); a trained slope is that of the parameters, a random one its mean."""
    trained = params.get(f"{path}/slope")
    return jax.jvp(lambda z: activation(z, trained), (z,), (jnp.ones_like(z),))[1]


def _reduce(
    z: Array,
    slope: Array | None,
    delta: Array,
    kernel_grad: Array,
    kernel: Array,
    activation: Activation,
) -> dict[str, Array]:
    """Reduce one layer to scalars, by the names of a `Look`."""
    dead = saturated = jnp.zeros(())
    slope_rms = jnp.ones(())
    if slope is not None:
        steepest = max(map(abs, activation.derivative_range))
        dead = jnp.mean(jnp.all(slope == 0, axis=range(z.ndim - 1)).astype(jnp.float32))
        saturated = jnp.mean((jnp.abs(slope) < SATURATED * steepest).astype(jnp.float32))
        slope_rms = _rms(slope)
    return {
        "delta_rms": _rms(delta),
        "pre_activation_rms": _rms(z),
        "dead_fraction": dead,
        "saturated_fraction": saturated,
        "kernel_grad_rms": _rms(kernel_grad),
        "kernel_rms": _rms(kernel),
        "slope_rms": slope_rms,
    }


def _rms(x: Array) -> Array:
    """Return `rms(x)` in one pass over x, where its squares fit float32."""
    plain = jnp.sqrt(jnp.vdot(x, x) / x.size)
    return lax.cond((plain > 1e-15) & (plain < 1e15), lambda x: plain, rms, x)
