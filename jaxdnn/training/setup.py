"""From settings and data to the pure functions of a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxdnn import optim
from jaxdnn.config import Config
from jaxdnn.data.dataset import Dataset
from jaxdnn.data.pipeline import make_order, make_prepare, resolve_batch_size
from jaxdnn.data.splits import class_weights
from jaxdnn.data.standard import Standard
from jaxdnn.data.stream import StreamedImages
from jaxdnn.models import BatchStats, Model
from jaxdnn.training.evaluate import (
    Images,
    make_estimate_batch_stats,
    make_predict,
    on_device,
)
from jaxdnn.training.fit import Program
from jaxdnn.training.keys import run_keys, seed_keys, step_keys
from jaxdnn.training.look import Look, layers_of, make_look
from jaxdnn.training.metrics import classification_metrics
from jaxdnn.training.network import make_model
from jaxdnn.training.step import (
    Indices,
    Step,
    TrainState,
    make_indices,
    make_init,
    make_loss,
    make_step,
    make_train,
)
from jaxdnn.training.stream import make_streamed_train
from jaxdnn.training.watch import Watch


@dataclasses.dataclass(frozen=True)
class Setup:
    """What follows from settings and data before anything is trained.

    Attributes:
      config: the settings.
      dataset: the images.
      standard: mean and standard deviation of the training images.
      model: the network.
      batch_size: examples in a step.
      steps_per_epoch: a last partial batch is left out; the order changes with every epoch.
      num_steps: of the whole run.
      schedule: `step -> learning rate`.
      optimizer: the optax chain.
    """

    config: Config
    dataset: Dataset
    standard: Standard
    model: Model
    batch_size: int
    steps_per_epoch: int
    num_steps: int
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation

    @property
    def num_classes(self) -> int:
        """Of the task."""
        return len(self.dataset.class_names)


def make_setup(config: Config, dataset: Dataset) -> Setup:
    """Derive network, schedule and optimizer.

    Raises:
      InputError: a setting does not fit the data.
    """
    num_train = len(dataset.train.labels)
    batch_size = resolve_batch_size(config.train.batch_size, num_train)
    steps_per_epoch = num_train // batch_size
    num_steps = steps_per_epoch * config.train.epochs
    schedule = optim.make_schedule(
        config.optimizer, steps_per_epoch=steps_per_epoch, num_steps=num_steps
    )
    return Setup(
        config=config,
        dataset=dataset,
        standard=dataset.train.standard(),
        model=make_model(config.model, dataset.train.images.shape[1:], len(dataset.class_names)),
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        num_steps=num_steps,
        schedule=schedule,
        optimizer=optim.make_optimizer(config.optimizer, schedule, num_examples=num_train),
    )


def init_state(setup: Setup) -> TrainState:
    """Draw the initial state; it follows from the seed."""
    init_key, _ = seed_keys(setup.config.seed)
    return jax.jit(make_init(setup.model, setup.optimizer))(init_key)


def make_program(setup: Setup) -> Program:
    """Put the data on the device and make the functions that the loop calls."""
    config, dataset = setup.config, setup.dataset
    _, run_key = seed_keys(config.seed)
    order, images = make_order_of(setup), on_device(dataset.train.images)
    indices_of = make_indices(order, key=run_key)
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
        learning_rate=setup.schedule,
        watch=watch,
        waited_seconds=waited_seconds,
    )


def _make_watch(
    setup: Setup,
    train: Callable[[TrainState, int], TrainState],
    images: Images,
    indices_of: Indices,
) -> Watch:
    config = setup.config
    _, steps_key = run_keys(seed_keys(config.seed)[1])
    prepare = make_prepare(config.augment, setup.standard)
    activation = config.model.make_activation()
    layers = layers_of(setup.model, images.shape[1:])
    look = make_look(make_loss(setup.model, _class_weights(setup)), layers, activation)
    labels = jnp.asarray(setup.dataset.train.labels)

    @jax.jit
    def look_at(state: TrainState, images: Array, labels: Array) -> Look:
        prepare_key, apply_key = step_keys(steps_key, state.step)
        return look(state, apply_key, prepare(prepare_key, images), labels)

    @jax.jit
    def look_in_memory(state: TrainState, images: Array, labels: Array, indices: Array) -> Look:
        batch = indices[state.step % setup.steps_per_epoch]
        return look_at(state, images[batch], labels[batch])

    def look_at_next(state: TrainState, indices: Array) -> Look:
        if not isinstance(images, StreamedImages):
            return look_in_memory(state, images, labels, indices)
        batch = np.asarray(indices[int(state.step) % setup.steps_per_epoch])
        return look_at(state, jnp.asarray(images[batch]), labels[batch])

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
) -> tuple[Callable[[TrainState, int], TrainState], Callable[[], float]]:
    """Return `(state, num_steps) -> state`, and how long it has waited for images, in seconds."""
    step, steps_per_epoch = make_step_of(setup), setup.steps_per_epoch
    labels = setup.dataset.train.labels
    if isinstance(images, StreamedImages):
        streamed = make_streamed_train(
            step, order, images, labels, key=key, steps_per_epoch=steps_per_epoch
        )
        return streamed, lambda: streamed.wait_seconds
    train = make_train(step, indices_of, key=key, steps_per_epoch=steps_per_epoch)
    classes = jnp.asarray(labels)
    return lambda state, num_steps: train(state, images, classes, num_steps), lambda: 0.0


def make_step_of(setup: Setup) -> Step:
    """Return one step of the run, `(key, state, uint8 images, labels) -> state`."""
    return make_step(
        setup.model,
        setup.optimizer,
        prepare=make_prepare(setup.config.augment, setup.standard),
        class_weights=_class_weights(setup),
        loss_limit=setup.config.train.divergence_factor * math.log(setup.num_classes),
    )


def _class_weights(setup: Setup) -> Array:
    if not setup.config.weighs_classes:
        return jnp.ones(setup.num_classes)
    return jnp.asarray(class_weights(setup.dataset.train.labels, setup.num_classes), jnp.float32)


def make_order_of(setup: Setup) -> Callable[[Array], Array]:
    """Return `key of an epoch -> (steps, batch) indices of the training images`."""
    return make_order(
        setup.dataset.train.labels,
        batch_size=setup.batch_size,
        balanced=setup.config.balances_batches,
        num_classes=setup.num_classes,
    )


def _make_evaluate(
    setup: Setup, train_images: Images, order: Callable[[Array], Array]
) -> Callable[[TrainState], tuple[dict[str, float], BatchStats]]:
    validation = setup.dataset.validation
    images = on_device(validation.images)
    predict = make_predict(setup.model, setup.standard)
    estimate = None
    if setup.config.model.norm_statistics == "training_set":
        options, shape = setup.config.model, train_images.shape[1:]
        model = make_model(options, shape, setup.num_classes, norm_momentum=0.0)
        batches = np.asarray(order(jax.random.key(setup.config.seed)))
        estimate = make_estimate_batch_stats(model, setup.standard, batches)

    def evaluate(state: TrainState) -> tuple[dict[str, float], BatchStats]:
        batch_stats = state.batch_stats
        if estimate is not None:
            batch_stats = estimate(state.params, batch_stats, train_images)
        logits = predict(state.params, batch_stats, images)
        metrics = classification_metrics(logits, validation.labels)
        return {f"val/{name}": value for name, value in metrics.items()}, batch_stats

    return evaluate
