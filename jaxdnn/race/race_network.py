"""One network of a race: trained as a run of its own would, watched, and measured before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxdnn.activations import make_activation
from jaxdnn.data import Dataset, PixelStats, make_prepare
from jaxdnn.losses import cross_entropy, predictions
from jaxdnn.models import BatchStats, Params
from jaxdnn.propagation import LOSSES, Kernels, measure, rms
from jaxdnn.race.race import Curves, Race, Start
from jaxdnn.training import (
    Setup,
    Sums,
    TrainState,
    epoch_key,
    make_order_of,
    make_step_of,
    run_keys,
    seed_keys,
    start_state,
    step_keys,
)


class Lane(NamedTuple):
    """What the networks of one seed share: uint8 training images, labels, and the run's key."""

    images: Array
    labels: Array
    pixel_stats: PixelStats
    key: Array


# What a network starts from.
Weights = tuple[Params, BatchStats]


def make_lane(dataset: Dataset, seed: int) -> Lane:
    """Put on the device what the networks of one seed share."""
    _, run_key = seed_keys(seed)
    images, labels = map(jnp.asarray, (dataset.train.in_memory(), dataset.train.labels))
    return Lane(images, labels, dataset.train.pixel_stats(), run_key)


def orders(race: Race, setup: Setup, lane: Lane) -> Array:
    """Return the images of every step, and of the one after the last: (step, batch)."""
    order = make_order_of(setup)
    order_key, _ = run_keys(lane.key)
    epochs = jnp.arange(race.num_steps // setup.steps_per_epoch + 1)
    found = lax.map(lambda epoch: order(epoch_key(order_key, epoch)), epochs)
    return found.reshape(-1, setup.batch_size)


def make_run(race: Race, setup: Setup) -> Callable[[Weights, Lane, Array], Curves]:
    """Return `(weights, lane, orders) -> Curves` of the network that the setup describes.

    The weights may hold more than that network has.
    """
    own_params = jax.eval_shape(setup.model.init, jax.random.key(0))[0]
    look_at = _make_look(setup)

    def run(weights: Weights, lane: Lane, orders: Array) -> Curves:
        own = dataclasses.replace(setup, pixel_stats=lane.pixel_stats)
        step, prepare = make_step_of(own), make_prepare(own.config.augment, own.pixel_stats)
        _, steps_key = run_keys(lane.key)

        def take_step(state: TrainState) -> TrainState:
            batch = orders[state.step]
            return step(steps_key, state, lane.images[batch], lane.labels[batch])

        def look(state: TrainState) -> Curves:
            batch = orders[state.step]
            prepare_key, apply_key = step_keys(steps_key, state.step)
            images = prepare(prepare_key, lane.images[batch])
            return look_at(state, images, lane.labels[batch], apply_key)

        def window(state: TrainState, last: Array) -> tuple[TrainState, Curves]:
            state = lax.while_loop(
                lambda state: (state.step < last) & ~state.diverged,
                take_step,
                state._replace(sums=Sums.zero()),
            )
            return state, _recorded(state, look(state))

        params, batch_stats = weights
        state = start_state(_part(params, own_params), batch_stats, setup.optimizer)
        ends = jnp.asarray(race.recorded_steps[1:], jnp.int32)
        _, curves = lax.scan(window, state, ends)
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), look(state), curves)

    return run


def _make_look(setup: Setup) -> Callable[[TrainState, Array, Array, Array], Curves]:
    """Return `(state, images, labels, key) -> Curves` of one batch, as the next step sees it."""
    model, widths = setup.model, setup.config.model.widths
    paths = ("layers/0", f"layers/{len(widths) - 1}")
    zeros = {path: jnp.zeros((setup.batch_size, widths[0])) for path in paths}

    def look(state: TrainState, images: Array, labels: Array, key: Array) -> Curves:
        def loss_of(probes: dict[str, Array]) -> tuple[Array, Array]:
            output = model.apply(
                state.params, state.batch_stats, images, training=True, key=key, probes=probes
            )
            accuracy = jnp.mean((predictions(output.logits) == labels).astype(jnp.float32))
            return jnp.mean(cross_entropy(output.logits, labels)), accuracy

        (loss, accuracy), deltas = jax.value_and_grad(loss_of, has_aux=True)(zeros)
        return Curves(loss, accuracy, *(rms(deltas[path]) for path in paths))

    return look


def _recorded(state: TrainState, seen: Curves) -> Curves:
    """Put the sums since the last record in place of the next batch's loss and accuracy."""
    num = state.sums.num_examples.astype(jnp.float32)
    loss = jnp.where(state.diverged, jnp.nan, state.sums.loss / num)
    accuracy = jnp.where(state.diverged, jnp.nan, state.sums.num_correct / num)
    return seen._replace(loss=loss, accuracy=accuracy)


def _part(tree: Any, like: Any) -> Any:
    """Return what `tree` holds of the nested dicts `like`."""
    if not isinstance(like, dict):
        return tree
    return {name: _part(tree[name], inner) for name, inner in like.items()}


def make_start(race: Race, setup: Setup) -> Callable[[Array | int, Weights, Lane, Array], Start]:
    """Return `(activation index, weights, lane, orders) -> Start`."""
    phis = [make_activation(name) for name in race.activations]
    steepest = jnp.array([max(map(abs, phi.derivative_range)) for phi in phis])

    def start(which: Array | int, weights: Weights, lane: Lane, orders: Array) -> Start:
        images = make_prepare(race.config.augment, lane.pixel_stats)(
            lane.key, lane.images[orders[0]]
        )
        moments = measure(
            _kernels(weights[0]),
            images.reshape(setup.batch_size, -1),
            lane.labels[orders[0]],
            lambda z: lax.switch(which, phis, z),
            steepest=steepest[which],
            loss=LOSSES["cross_entropy"],
            norm=race.config.model.norm,
        )
        return Start(moments.delta_rms, moments.dead_fraction)

    return start


def _kernels(params: Params) -> Kernels:
    layers, head = params["layers"], params["head"]
    first, *hidden = (layers[index]["linear"]["kernel"] for index in range(len(layers)))
    width = first.shape[-1]
    stacked = jnp.stack(hidden) if hidden else jnp.zeros((0, width, width))
    return Kernels(first, stacked, head["kernel"])
