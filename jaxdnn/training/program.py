"""The functions that the training loop calls, made once for a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdnn.data import Images, make_prepare
from jaxdnn.models import BatchStats
from jaxdnn.training.evaluate import (
    make_estimate_batch_stats,
    make_predict,
    on_device,
)
from jaxdnn.training.gradient import make_loss
from jaxdnn.training.keys import run_keys, seed_keys, step_keys
from jaxdnn.training.look import Seen, layers_of, make_look
from jaxdnn.training.metrics import classification_metrics
from jaxdnn.training.network import make_model
from jaxdnn.training.setup import Setup, class_weights_of, make_order_of, make_step_of
from jaxdnn.training.sharding import share_of_process
from jaxdnn.training.skip import rate_factor
from jaxdnn.training.step import Indices, TrainState, make_indices, make_train
from jaxdnn.training.stream import make_streamed_train
from jaxdnn.training.watch import Watch


@dataclasses.dataclass(frozen=True)
class Program:
    """What is fixed for a run.

    Attributes:
      train: compiled `(state, num_steps, step=None) -> state`; stays within an epoch.
      evaluate: `state -> (metrics, batch_stats)`: validation metrics and the statistics used.
      num_steps: where training ends at the latest.
      steps_per_epoch: optimizer steps.
      evaluate_every: steps between evaluations.
      checkpoint_seconds: least time between checkpoints.
      monitor: name of the metric that chooses the best.
      learning_rate: `(step, number of skipped steps) -> learning rate`.
      waited_seconds: how long the device has had to wait for images so far.
      watch: what looks into the layers, and trains as `train` does; None if nothing does.
    """

    train: Callable[..., TrainState]
    evaluate: Callable[[TrainState], tuple[dict[str, float], BatchStats]]
    num_steps: int
    steps_per_epoch: int
    evaluate_every: int
    checkpoint_seconds: float
    monitor: str
    learning_rate: Callable[[int, int], Any]
    waited_seconds: Callable[[], float] = lambda: 0.0
    watch: Watch | None = None


def make_program(setup: Setup) -> Program:
    """Put the data on the device and make the functions that the loop calls."""
    config, dataset = setup.config, setup.dataset
    _, run_key = seed_keys(config.seed)
    order, images = make_order_of(setup), on_device(dataset.train.images, setup.layout)
    indices_of = _make_indices(setup, order, images, run_key)
    train, waited_seconds = _make_train(setup, order, indices_of, images, run_key)
    watch = None
    if config.train.watch_gradients:
        watch = _make_watch(setup, train, images, indices_of)
    return Program(
        train=train,
        evaluate=_make_evaluate(setup, images, order),
        num_steps=setup.num_steps,
        steps_per_epoch=setup.steps_per_epoch,
        evaluate_every=setup.steps_per_epoch * config.train.evaluate_every,
        checkpoint_seconds=config.train.checkpoint_seconds,
        monitor=config.train.monitor,
        learning_rate=lambda step, num_skipped: (
            rate_factor(config.train.on_nan, num_skipped) * setup.schedule(step - num_skipped)
        ),
        watch=watch,
        waited_seconds=waited_seconds,
    )


def _make_indices(
    setup: Setup, order: Callable[[Array], Array], images: Images, key: Array
) -> Indices:
    if images.is_streamed:  # Only to know them: each process takes its own.
        return make_indices(order, key=key)
    return make_indices(
        order, key=key, layout=setup.layout, num_portions=setup.config.train.accumulate
    )


def _make_watch(
    setup: Setup,
    train: Callable[..., TrainState],
    images: Images,
    indices_of: Indices,
) -> Watch:
    config = setup.config
    _, steps_key = run_keys(seed_keys(config.seed)[1])
    prepare = make_prepare(config.augment, setup.pixel_stats)
    activation = config.model.make_activation()
    layers = layers_of(setup.model, images.shape[1:])
    dtype = jnp.dtype(config.train.precision)
    loss_of = make_loss(setup.model, class_weights_of(setup), dtype=dtype)
    look = make_look(loss_of, layers, activation, dtype=dtype)
    layout, on_host = setup.layout, setup.dataset.train.labels
    labels = layout.place(on_host)

    @jax.jit
    def look_at(seen: Seen, images: Array, labels: Array) -> tuple[Array, Array]:
        prepare_key, apply_key = step_keys(steps_key, seen.step)
        whole = seen._replace(params=layout.gather(seen.params, len(labels)))
        rows = look(whole, apply_key, prepare(prepare_key, images), labels)
        return layout.keep_whole((~seen.diverged, rows))

    @jax.jit
    def look_in_memory(
        seen: Seen, images: Array, labels: Array, indices: Array
    ) -> tuple[Array, Array]:
        batch = indices[seen.step % setup.steps_per_epoch].ravel()
        return look_at(seen, images[batch], labels[batch])

    def look_at_next(state: TrainState, indices: Array) -> tuple[Array, Array]:
        seen = Seen(state.step, state.diverged, state.params, state.batch_stats)
        if not images.is_streamed:
            return look_in_memory(seen, images.in_memory(), labels, indices)
        batch = np.asarray(indices[int(state.step) % setup.steps_per_epoch])
        mine = batch[share_of_process(len(batch))]
        return look_at(seen, layout.join(images[mine]), layout.join(on_host[mine]))

    return Watch(
        train,
        look_at_next,
        indices_of,
        layers,
        bounded=all(map(math.isfinite, activation.value_range)),
        every=config.train.watch_gradients,
        steps_per_epoch=setup.steps_per_epoch,
    )


def _make_train(
    setup: Setup,
    order: Callable[[Array], Array],
    indices_of: Indices,
    images: Images,
    key: Array,
) -> tuple[Callable[..., TrainState], Callable[[], float]]:
    """Return `(state, num_steps, step=None) -> state`, and the seconds it has waited for images."""
    step, steps_per_epoch = make_step_of(setup), setup.steps_per_epoch
    labels = setup.dataset.train.labels
    if images.is_streamed:
        streamed = make_streamed_train(
            step,
            order,
            images,
            labels,
            key=key,
            steps_per_epoch=steps_per_epoch,
            layout=setup.layout,
            num_portions=setup.config.train.accumulate,
        )
        return streamed, lambda: streamed.wait_seconds
    train = make_train(step, indices_of, key=key, steps_per_epoch=steps_per_epoch)
    array, classes = images.in_memory(), setup.layout.place(labels)

    def train_in_memory(state: TrainState, num_steps: int, step: int | None = None) -> TrainState:
        return train(state, array, classes, num_steps, step)

    return train_in_memory, lambda: 0.0


def _make_evaluate(
    setup: Setup, train_images: Images, order: Callable[[Array], Array]
) -> Callable[[TrainState], tuple[dict[str, float], BatchStats]]:
    validation = setup.dataset.validation
    images = on_device(validation.images, setup.layout)
    predict = make_predict(setup.model, setup.pixel_stats, layout=setup.layout)
    estimate = None
    if setup.config.model.norm_statistics == "training_set":
        options, shape = setup.config.model, train_images.shape[1:]
        model = make_model(options, shape, setup.num_classes, norm_momentum=0.0)
        batches = np.asarray(order(jax.random.key(setup.config.seed)))
        batches = batches.reshape(-1, setup.batch_size // setup.config.train.accumulate)
        estimate = make_estimate_batch_stats(model, setup.pixel_stats, batches, setup.layout)

    def evaluate(state: TrainState) -> tuple[dict[str, float], BatchStats]:
        batch_stats = state.batch_stats
        if estimate is not None:
            batch_stats = estimate(state.params, batch_stats, train_images)
        logits = predict(state.params, batch_stats, images)
        metrics = classification_metrics(logits, validation.labels)
        return {f"val/{name}": value for name, value in metrics.items()}, batch_stats

    return evaluate
