"""[program] The functions that the training loop calls, made once for a run.

[network] From the model's options to the network that they describe.

[setup] From settings and data to the pure functions of a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxdnn import optim
from jaxdnn.config import Config
from jaxdnn.data import (
    Dataset,
    PixelStats,
    StreamedImages,
    class_weights,
    make_order,
    make_prepare,
    resolve_batch_size,
)
from jaxdnn.errors import InputError
from jaxdnn.layers import BlockOptions
from jaxdnn.models import BatchStats, Model, make_convnet, make_mlp
from jaxdnn.options import DeviceOptions, ModelOptions
from jaxdnn.training.evaluate import (
    Images,
    classification_metrics,
    make_estimate_batch_stats,
    make_predict,
    on_device,
)
from jaxdnn.training.feed import make_streamed_train
from jaxdnn.training.keys import run_keys, seed_keys, step_keys
from jaxdnn.training.sharding import (
    Layout,
    choose_devices,
    make_layout,
    one_device,
    share_of_process,
)
from jaxdnn.training.step import (
    Indices,
    Step,
    TrainState,
    make_indices,
    make_init,
    make_loss,
    make_step,
    make_train,
    rate_factor,
)
from jaxdnn.training.watch import Seen, Watch, layers_of, make_look


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
    unit = BlockOptions(
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
    if isinstance(images, StreamedImages):  # Only to know them: each process takes its own.
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
        if not isinstance(images, StreamedImages):
            return look_in_memory(seen, images, labels, indices)
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
    if isinstance(images, StreamedImages):
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
    classes = setup.layout.place(labels)

    def train_in_memory(state: TrainState, num_steps: int, step: int | None = None) -> TrainState:
        return train(state, images, classes, num_steps, step)

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
