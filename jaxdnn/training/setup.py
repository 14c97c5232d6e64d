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
from jaxdnn.data.pipeline import (
    Standard,
    make_order,
    make_prepare,
    measure_standard,
    resolve_batch_size,
)
from jaxdnn.data.splits import class_weights
from jaxdnn.errors import InputError
from jaxdnn.layers import UnitOptions
from jaxdnn.models import BatchStats, Model, make_convnet, make_mlp
from jaxdnn.options import ModelOptions
from jaxdnn.training.evaluate import make_estimate_batch_stats, make_predict
from jaxdnn.training.fit import Program
from jaxdnn.training.metrics import classification_metrics
from jaxdnn.training.step import TrainState, make_init, make_step, make_train


def make_model(
    options: ModelOptions,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    norm_momentum: float | None = None,
) -> Model:
    """Make the network that the options describe.

    Args:
      options: its architecture.
      input_shape: (height, width, channel).
      num_classes: of the task.
      norm_momentum: instead of the options' own.

    Raises:
      InputError: one sigmoid unit for more than two classes.
    """
    if options.head == "sigmoid" and num_classes != 2:
        raise InputError(
            f"--head sigmoid tells two classes apart, the data has {num_classes}; "
            "name the positive ones with --positive, or use --head softmax"
        )
    unit = UnitOptions(
        activation=options.make_activation(),
        kernel_init=options.make_initializer(),
        bias_init=options.bias_init,
        norm=options.norm,
        norm_momentum=options.norm_momentum if norm_momentum is None else norm_momentum,
        dropout=options.dropout,
    )
    num_outputs = 1 if options.head == "sigmoid" else num_classes
    if options.model == "convnet":
        return make_convnet(
            input_shape,
            num_outputs,
            widths=options.widths,
            blocks=options.blocks,
            stem=options.stem,
            unit=unit,
        )
    return make_mlp(input_shape, num_outputs, widths=options.widths, unit=unit)


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
        standard=measure_standard(dataset.train.images),
        model=make_model(config.model, dataset.train.images.shape[1:], len(dataset.class_names)),
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        num_steps=num_steps,
        schedule=schedule,
        optimizer=optim.make_optimizer(config.optimizer, schedule, num_examples=num_train),
    )


def init_state(setup: Setup) -> TrainState:
    """Draw the initial state; it follows from the seed."""
    init_key, _ = jax.random.split(jax.random.key(setup.config.seed))
    return jax.jit(make_init(setup.model, setup.optimizer))(init_key)


def make_program(setup: Setup) -> Program:
    """Put the data on the device and make the functions that the loop calls."""
    config, dataset = setup.config, setup.dataset
    _, run_key = jax.random.split(jax.random.key(config.seed))
    train_images, train_labels = map(jnp.asarray, (dataset.train.images, dataset.train.labels))
    step = make_step(
        setup.model,
        setup.optimizer,
        prepare=make_prepare(config.augment, setup.standard),
        class_weights=_class_weights(setup),
        loss_limit=config.train.divergence_factor * math.log(setup.num_classes),
    )
    order = _make_order(setup)
    train = make_train(step, order, key=run_key, steps_per_epoch=setup.steps_per_epoch)
    return Program(
        train=lambda state, num_steps: train(state, train_images, train_labels, num_steps),
        evaluate=_make_evaluate(setup, train_images, order),
        num_steps=setup.num_steps,
        steps_per_epoch=setup.steps_per_epoch,
        evaluate_every=setup.steps_per_epoch * config.train.evaluate_every,
        checkpoint_seconds=config.train.checkpoint_seconds,
        monitor=config.train.monitor,
        learning_rate=setup.schedule,
    )


def _class_weights(setup: Setup) -> Array:
    if not setup.config.weighs_classes:
        return jnp.ones(setup.num_classes)
    return jnp.asarray(class_weights(setup.dataset.train.labels, setup.num_classes), jnp.float32)


def _make_order(setup: Setup) -> Callable[[Array], Array]:
    return make_order(
        setup.dataset.train.labels,
        batch_size=setup.batch_size,
        balanced=setup.config.balances_batches,
        num_classes=setup.num_classes,
    )


def _make_evaluate(
    setup: Setup, train_images: Array, order: Callable[[Array], Array]
) -> Callable[[TrainState], tuple[dict[str, float], BatchStats]]:
    validation = setup.dataset.validation
    images = jnp.asarray(validation.images)
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
