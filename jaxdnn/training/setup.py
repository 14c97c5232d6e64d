"""A run made ready: from settings and data to the pure functions that the training loop calls."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxdnn import optim
from jaxdnn.backbone import NUM_FEATURES, Weights, cut_shape, load_weights
from jaxdnn.config import Config
from jaxdnn.data import (
    Dataset,
    Images,
    PixelStats,
    class_weights,
    make_order,
    make_prepare,
    normalise_images,
    resolve_batch_size,
)
from jaxdnn.errors import InputError
from jaxdnn.layers import BlockOptions
from jaxdnn.memory import check_memory
from jaxdnn.models import Model, make_convnet, make_mlp
from jaxdnn.options import MOST, DeviceOptions, ModelOptions, check
from jaxdnn.training.evaluate import (
    Normalise,
    classification_metrics,
    make_estimate_batch_stats,
    make_predict,
    on_device,
)
from jaxdnn.training.feed import StreamedTrain
from jaxdnn.training.keys import run_keys, seed_keys, step_keys
from jaxdnn.training.sharding import (
    Layout,
    choose_devices,
    make_layout,
    one_device,
    share_of_process,
)
from jaxdnn.training.step import (
    Loss,
    Order,
    Prepare,
    Train,
    TrainState,
    TrainStep,
    Variables,
    make_indices,
    make_init,
    make_loss,
    make_step,
    make_train,
    rate_factor,
)
from jaxdnn.training.watch import Layer, Watch, layers_of, make_measure
from jaxdnn.transfer import dog_label, is_of_backbone, make_transfer


def make_model(
    options: ModelOptions,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    norm_momentum: float | None = None,
    dog: int | None = None,
) -> Model:
    """Make the network that the options describe; on a backbone, what stands above its cut.

    Args:
      options: architecture, activation, initializer and regularisation.
      input_shape: (height, width, channel) of the images.
      num_classes: at least two.
      norm_momentum: instead of the options' own.
      dog: label of the class of dogs, where there are two and a backbone may know it.

    Raises:
      InputError: one sigmoid unit for more than two classes.
    """
    if options.head == "sigmoid" and num_classes != 2:
        raise InputError(
            f"--head sigmoid separates two classes, the data has {num_classes}; "
            "name the positive ones with --positive, or use --head softmax"
        )
    num_outputs = 1 if options.head == "sigmoid" else num_classes
    _check_size(options, input_shape, num_outputs)
    block_options = BlockOptions(
        activation=options.make_activation(),
        kernel_init=options.make_initializer(),
        bias_init=options.bias_init,
        norm=options.norm,
        norm_momentum=options.norm_momentum if norm_momentum is None else norm_momentum,
        dropout=options.dropout,
    )
    if options.has_backbone:
        return make_transfer(
            backbone_weights(options),
            num_outputs,
            num_blocks=options.unfreeze,
            widths=options.widths,
            options=block_options,
            dog=dog if options.dog_head else None,
        )
    if options.model == "convnet":
        return make_convnet(
            input_shape,
            num_outputs,
            widths=options.widths,
            blocks=options.blocks,
            stem=options.stem,
            options=block_options,
        )
    return make_mlp(input_shape, num_outputs, widths=options.widths, options=block_options)


def backbone_weights(options: ModelOptions) -> Weights:
    """Read the backbone's weights that the options name, by default the package's."""
    return load_weights(None if options.pretrained is None else Path(options.pretrained))


def weights_digest(options: ModelOptions) -> str | None:
    """Return the SHA-256 of the backbone's weights; None where there is none."""
    if not options.has_backbone:
        return None
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(backbone_weights(options)):
        total.update(np.ascontiguousarray(leaf, "<f4").tobytes())
    return total.hexdigest()


def _check_size(options: ModelOptions, input_shape: tuple[int, ...], num_outputs: int) -> None:
    """Check that the kernels will not take too much memory.

    Raises:
      InputError: they would.
    """
    if options.has_backbone:
        sizes = [NUM_FEATURES, *options.widths, num_outputs]
        num = sum(a * b for a, b in itertools.pairwise(sizes))
    elif options.model == "convnet":
        sizes = [input_shape[-1], *options.widths]
        num = sum(9 * a * b for a, b in itertools.pairwise(sizes))
        num += sum(2 * options.blocks * 9 * width**2 for width in options.widths)
    else:
        sizes = [math.prod(input_shape), *options.widths, num_outputs]
        num = sum(a * b for a, b in itertools.pairwise(sizes))
    widths = " ".join(map(str, options.widths[:4])) + (" ..." if len(options.widths) > 4 else "")
    check_memory(f"the kernels of --widths {widths}", (num,), "choose smaller --widths")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the network is given: the images, or what the frozen part of it makes of them.

    Attributes:
      train, validation, test: for each image, in the order of its split.
      prepare: `(key, batch of them) -> float32 batch` in training; the key is one for the batch,
        or one for each.
      normalise: `batch of them -> float32 batch` in evaluation.
    """

    train: Images
    validation: Images
    test: Images
    prepare: Prepare
    normalise: Normalise

    @property
    def splits(self) -> tuple[Images, Images, Images]:
        """Those of all three."""
        return self.train, self.validation, self.test


def _pixels(config: Config, dataset: Dataset, pixel_stats: PixelStats) -> Inputs:
    return Inputs(
        *(split.images for split in (dataset.train, dataset.validation, dataset.test)),
        prepare=make_prepare(config.augment, pixel_stats),
        normalise=functools.partial(normalise_images, pixel_stats=pixel_stats),
    )


@dataclasses.dataclass(frozen=True)
class Setup:
    """What follows from settings and data before anything is trained.

    Attributes:
      config: the settings.
      dataset: images and labels of the three splits.
      pixel_stats: mean and standard deviation of the training images.
      inputs: what the network is given. Where it has a backbone, only `with_features` of
        `features.py` puts them there; before, they are the images.
      input_shape: of one example, as the network gets it.
      model: the network, as pure functions.
      batch_size: examples in a step, those of all its microbatches.
      steps_per_epoch: a last partial batch is left out; the order changes with every epoch.
      num_steps: optimizer steps, if nothing stops the run early.
      schedule: `step -> learning rate`.
      optimizer: the optax chain.
      layout: the devices and what is kept where.
    """

    config: Config
    dataset: Dataset
    pixel_stats: PixelStats
    inputs: Inputs
    input_shape: tuple[int, ...]
    model: Model
    batch_size: int
    steps_per_epoch: int
    num_steps: int
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    layout: Layout

    @property
    def num_classes(self) -> int:
        """How many classes there are to tell apart."""
        return len(self.dataset.class_names)


def make_setup(config: Config, dataset: Dataset, devices: DeviceOptions | None = None) -> Setup:
    """Derive network, schedule and optimizer.

    Args:
      config: the settings.
      dataset: images and labels of the three splits.
      devices: what to run on; by default one device.

    Raises:
      InputError: a setting does not fit the data or the devices.
    """
    num_train, num_microbatches = len(dataset.train.labels), config.train.accumulate
    microbatch = resolve_batch_size(config.train.batch_size, num_train, accumulate=num_microbatches)
    batch_size = microbatch * num_microbatches
    steps_per_epoch = num_train // batch_size
    num_steps = steps_per_epoch * config.train.epochs
    check(
        num_steps <= MOST,
        f"--epochs {config.train.epochs} of {steps_per_epoch:,} steps are {num_steps:,} steps; "
        f"expected at most {MOST:,}; choose fewer --epochs",
    )
    schedule = optim.make_schedule(
        config.optimizer, steps_per_epoch=steps_per_epoch, num_steps=num_steps
    )
    layout = one_device()
    if devices is not None:
        layout = make_layout(choose_devices(microbatch, most=devices.devices), fsdp=devices.fsdp)
    pixel_stats, image_shape = dataset.train.pixel_stats(), dataset.train.images.shape[1:]
    return Setup(
        config=config,
        dataset=dataset,
        pixel_stats=pixel_stats,
        inputs=_pixels(config, dataset, pixel_stats),
        input_shape=_input_shape(config.model, image_shape),
        model=_make_model_for(config.model, dataset),
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        num_steps=num_steps,
        schedule=schedule,
        optimizer=optim.make_optimizer(
            config.optimizer,
            schedule,
            num_examples=num_train,
            slow=_slow(config, schedule, steps_per_epoch),
        ),
        layout=layout,
    )


def _make_model_for(
    options: ModelOptions, dataset: Dataset, *, norm_momentum: float | None = None
) -> Model:
    return make_model(
        options,
        dataset.train.images.shape[1:],
        len(dataset.class_names),
        norm_momentum=norm_momentum,
        dog=dog_label(dataset.class_names),
    )


def _input_shape(options: ModelOptions, image_shape: tuple[int, ...]) -> tuple[int, ...]:
    return cut_shape(options.unfreeze, *image_shape[:2]) if options.has_backbone else image_shape


def _slow(config: Config, schedule: optax.Schedule, steps_per_epoch: int) -> optim.Slow | None:
    """Return at which rate a backbone is trained; None where there is none, or nothing of it."""
    options = config.model
    if not options.unfreeze:
        return None
    starts, factor = options.head_epochs * steps_per_epoch, options.resolved_unfreeze_rate
    return optim.Slow(
        is_of_backbone,
        lambda step: jnp.where(jnp.asarray(step) < starts, 0.0, factor) * schedule(step),
    )


def init_state(setup: Setup) -> TrainState:
    """Draw the initial state; it follows from the seed.

    It is drawn into its shardings: no device ever holds more of it than its part.
    """
    init_key, _ = seed_keys(setup.config.seed)
    averages, layout = setup.config.train.ema_decay > 0, setup.layout
    init = make_init(setup.model, setup.optimizer, averages=averages)
    if layout.is_single:
        return jax.jit(init)(init_key)
    shardings = layout.state_shardings(jax.eval_shape(init, init_key))
    return jax.jit(init, out_shardings=shardings)(init_key)


def make_step_of(setup: Setup) -> TrainStep:
    """Return one step, `(key, state, uint8 images, labels) -> state`."""
    return make_step(
        _make_loss_of(setup),
        setup.optimizer,
        prepare=setup.inputs.prepare,
        loss_limit=setup.config.train.divergence_factor * math.log(setup.num_classes),
        layout=setup.layout,
        num_microbatches=setup.config.train.accumulate,
        on_nan=setup.config.train.on_nan,
        ema_decay=setup.config.train.ema_decay,
    )


def _make_loss_of(setup: Setup) -> Loss:
    """Return the loss of a batch in training."""
    options = setup.config.train
    return make_loss(
        setup.model,
        _class_weights(setup),
        dtype=jnp.dtype(options.precision),
        label_smoothing=options.label_smoothing,
        mixup=options.mixup,
    )


def _class_weights(setup: Setup) -> Array:
    """Return the weight of each class in the loss."""
    if not setup.config.weighs_classes:
        return jnp.ones(setup.num_classes)
    return jnp.asarray(class_weights(setup.dataset.train.labels, setup.num_classes), jnp.float32)


def make_order_of(setup: Setup) -> Order:
    """Return `key of an epoch -> (steps, batch) indices of the training images`."""
    return make_order(
        setup.dataset.train.labels,
        batch_size=setup.batch_size,
        balanced=setup.config.balances_batches,
        num_classes=setup.num_classes,
    )


# state -> validation metrics, and the network that was measured
Evaluate = Callable[[TrainState], tuple[dict[str, float], Variables]]


@dataclasses.dataclass(frozen=True)
class Trainer:
    """What the training loop calls, and the numbers that it goes by.

    Attributes:
      train: compiled `(state, num_steps, step=None) -> state`; stays within an epoch.
      evaluate: `state -> (metrics, variables)`: validation metrics and the network measured.
      num_steps: where training ends at the latest.
      steps_per_epoch: optimizer steps.
      evaluate_every: steps between evaluations.
      checkpoint_seconds: least time between checkpoints.
      monitor: name of the metric that chooses the best.
      learning_rate: `(step, number of skipped steps) -> learning rate`.
      waited_seconds: how long the device has had to wait for images so far.
      watch: what measures the layers, and trains as `train` does; None if nothing does.
    """

    train: Train
    evaluate: Evaluate
    num_steps: int
    steps_per_epoch: int
    evaluate_every: int
    checkpoint_seconds: float
    monitor: str
    learning_rate: Callable[[int, int], Any]
    waited_seconds: Callable[[], float] = lambda: 0.0
    watch: Watch | None = None


def make_trainer(setup: Setup) -> Trainer:
    """Put the data on the devices and make the functions that the loop calls."""
    options = setup.config.train
    _, run_key = seed_keys(setup.config.seed)
    images = on_device(setup.inputs.train, setup.layout)
    train, indices_of, waited_seconds = _make_train(setup, images, run_key)
    watch = None
    if options.watch_gradients:
        layers = layers_of(setup.model, setup.input_shape)
        watch = Watch(
            take_steps=train,
            measure_next=_make_measure(setup, layers, images, run_key),
            indices_of=indices_of,
            layers=layers,
            bounded=all(map(math.isfinite, setup.config.model.make_activation().value_range)),
            every=options.watch_gradients,
            steps_per_epoch=setup.steps_per_epoch,
        )
    return Trainer(
        train=train,
        evaluate=_make_evaluate(setup, images),
        num_steps=setup.num_steps,
        steps_per_epoch=setup.steps_per_epoch,
        evaluate_every=setup.steps_per_epoch * options.evaluate_every,
        checkpoint_seconds=options.checkpoint_seconds,
        monitor=options.monitor,
        learning_rate=lambda step, num_skipped: (
            rate_factor(options.on_nan, num_skipped) * setup.schedule(step - num_skipped)
        ),
        waited_seconds=waited_seconds,
        watch=watch,
    )


def _make_train(
    setup: Setup, images: Images, key: Array
) -> tuple[Train, Callable[[int], Array], Callable[[], float]]:
    """Return what trains, `epoch -> indices`, and the seconds that the device has waited so far."""
    step, order, labels = make_step_of(setup), make_order_of(setup), setup.dataset.train.labels
    run: dict[str, Any] = {"key": key, "steps_per_epoch": setup.steps_per_epoch}
    shared: dict[str, Any] = {
        "layout": setup.layout,
        "num_microbatches": setup.config.train.accumulate,
    }
    if images.is_streamed:
        streamed = StreamedTrain(step, order, images, labels, **run, **shared)
        # The indices only to know them: each process takes its own.
        return streamed, make_indices(order, key=key), lambda: streamed.wait_seconds
    indices_of = make_indices(order, key=key, **shared)
    train = make_train(step, indices_of, images.in_memory(), setup.layout.place(labels), **run)
    return train, indices_of, lambda: 0.0


# step, diverged and variables of a state: the fewer arrays are asked for, the sooner it starts
_Now = tuple[Array, Array, Variables]


def _make_measure(
    setup: Setup, layers: list[Layer], images: Images, key: Array
) -> Callable[[TrainState, Array], tuple[Array, Array]]:
    """Return `(state, indices) -> is the next step taken, (statistic, layer) at that step`."""
    config, layout, on_host = setup.config, setup.layout, setup.dataset.train.labels
    dtype = jnp.dtype(config.train.precision)
    measure = make_measure(
        _make_loss_of(setup), layers, config.model.make_activation(), dtype=dtype
    )
    prepare = setup.inputs.prepare
    _, steps_key = run_keys(key)
    labels = layout.place(on_host)

    @jax.jit
    def at_batch(now: _Now, images: Array, labels: Array) -> tuple[Array, Array]:
        step, diverged, variables = now
        prepare_key, apply_key = step_keys(steps_key, step)
        gathered = variables._replace(params=layout.gather(variables.params, len(labels)))
        rows = measure(gathered, apply_key, prepare(prepare_key, images), labels)
        return layout.replicate((~diverged, rows))

    @jax.jit
    def in_memory(now: _Now, images: Array, labels: Array, indices: Array) -> tuple[Array, Array]:
        batch = indices[now[0] % setup.steps_per_epoch].ravel()
        return at_batch(now, images[batch], labels[batch])

    def at_next(state: TrainState, indices: Array) -> tuple[Array, Array]:
        now = state.step, state.diverged, state.variables
        if not images.is_streamed:
            return in_memory(now, images.in_memory(), labels, indices)
        batch = np.asarray(indices[int(state.step) % setup.steps_per_epoch])
        mine = batch[share_of_process(len(batch))]
        return at_batch(now, layout.join(images[mine]), layout.join(on_host[mine]))

    return at_next


def _make_evaluate(setup: Setup, train_images: Images) -> Evaluate:
    validation, options = setup.dataset.validation, setup.config.model
    images, normalise = on_device(setup.inputs.validation, setup.layout), setup.inputs.normalise
    predict = make_predict(
        setup.model, normalise, layout=setup.layout, flip=setup.config.train.flip_test
    )
    estimate = None
    if options.norm_statistics == "training_set":
        model = _make_model_for(options, setup.dataset, norm_momentum=0.0)
        batches = np.asarray(make_order_of(setup)(jax.random.key(setup.config.seed)))
        batches = batches.reshape(-1, setup.batch_size // setup.config.train.accumulate)
        estimate = make_estimate_batch_stats(model, normalise, batches, setup.layout)

    def evaluate(state: TrainState) -> tuple[dict[str, float], Variables]:
        variables = state.evaluated
        if estimate is not None:
            variables = variables._replace(batch_stats=estimate(variables, train_images))
        metrics = classification_metrics(predict(variables, images), validation.labels)
        return {f"val/{name}": value for name, value in metrics.items()}, variables

    return evaluate
