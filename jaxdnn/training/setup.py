"""From settings and data to the pure functions of a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxdnn import optim
from jaxdnn.config import Config
from jaxdnn.data import (
    Dataset,
    PixelStats,
    class_weights,
    make_order,
    make_prepare,
    resolve_batch_size,
)
from jaxdnn.models import Model
from jaxdnn.options import DeviceOptions
from jaxdnn.training.keys import seed_keys
from jaxdnn.training.network import make_model
from jaxdnn.training.sharding import (
    Layout,
    choose_devices,
    make_layout,
    one_device,
)
from jaxdnn.training.step import (
    Step,
    TrainState,
    make_init,
    make_step,
)


@dataclasses.dataclass(frozen=True)
class Setup:
    """What follows from settings and data before anything is trained.

    Attributes:
      config: the settings.
      dataset: the images.
      standard: mean and standard deviation of the training images.
      model: the network.
      batch_size: examples in a step, those of all its portions.
      steps_per_epoch: a last partial batch is left out; the order changes with every epoch.
      num_steps: of the whole run.
      schedule: `step -> learning rate`.
      optimizer: the optax chain.
      layout: of the devices.
    """

    config: Config
    dataset: Dataset
    pixel_stats: PixelStats
    model: Model
    batch_size: int
    steps_per_epoch: int
    num_steps: int
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    layout: Layout

    @property
    def num_classes(self) -> int:
        """Of the task."""
        return len(self.dataset.class_names)


def make_setup(config: Config, dataset: Dataset, devices: DeviceOptions | None = None) -> Setup:
    """Derive network, schedule and optimizer.

    Args:
      config: the settings.
      dataset: the images.
      devices: what to run on; by default one device.

    Raises:
      InputError: a setting does not fit the data or the devices.
    """
    num_train, num_portions = len(dataset.train.labels), config.train.accumulate
    portion = resolve_batch_size(config.train.batch_size, num_train // num_portions)
    batch_size = portion * num_portions
    steps_per_epoch = num_train // batch_size
    num_steps = steps_per_epoch * config.train.epochs
    schedule = optim.make_schedule(
        config.optimizer, steps_per_epoch=steps_per_epoch, num_steps=num_steps
    )
    return Setup(
        config=config,
        dataset=dataset,
        pixel_stats=dataset.train.pixel_stats(),
        model=make_model(config.model, dataset.train.images.shape[1:], len(dataset.class_names)),
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        num_steps=num_steps,
        schedule=schedule,
        optimizer=optim.make_optimizer(config.optimizer, schedule, num_examples=num_train),
        layout=one_device() if devices is None else _make_layout(devices, portion),
    )


def _make_layout(options: DeviceOptions, batch_size: int) -> Layout:
    return make_layout(choose_devices(batch_size, most=options.devices), fsdp=options.fsdp)


def init_state(setup: Setup) -> TrainState:
    """Draw the initial state; it follows from the seed.

    It is drawn into its shardings: no device ever holds more of it than its part.
    """
    init_key, _ = seed_keys(setup.config.seed)
    init, layout = make_init(setup.model, setup.optimizer), setup.layout
    if layout.is_single:
        return jax.jit(init)(init_key)
    shardings = layout.state_shardings(jax.eval_shape(init, init_key))
    return jax.jit(init, out_shardings=shardings)(init_key)


def make_step_of(setup: Setup) -> Step:
    """Return one step of the run, `(key, state, uint8 images, labels) -> state`."""
    return make_step(
        setup.model,
        setup.optimizer,
        prepare=make_prepare(setup.config.augment, setup.pixel_stats),
        class_weights=class_weights_of(setup),
        loss_limit=setup.config.train.divergence_factor * math.log(setup.num_classes),
        layout=setup.layout,
        num_portions=setup.config.train.accumulate,
        dtype=jnp.dtype(setup.config.train.precision),
        on_nan=setup.config.train.on_nan,
    )


def class_weights_of(setup: Setup) -> Array:
    """Return the weight of each class in the loss."""
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
