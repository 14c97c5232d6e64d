"""What is measured: each row is one piece of work that several contenders do.

Ours is the package's own step, its compiled epoch and its sweep, as a training run uses them.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import bench_pytorch as pytorch
import jax
import jax.numpy as jnp
import numpy as np
import torch
from timing import OURS, Work

from jaxdnn import backbone, optim
from jaxdnn.activations import make_activation
from jaxdnn.config import Config
from jaxdnn.data import Dataset, load
from jaxdnn.initializers import make_initializer
from jaxdnn.layers import BlockOptions
from jaxdnn.models import Model, make_convnet, make_mlp
from jaxdnn.options import AugmentOptions, ModelOptions, OptimizerOptions
from jaxdnn.propagation import Architecture, make_sweep
from jaxdnn.recipes import DEEP, RECIPES
from jaxdnn.run_folder import RunFolder
from jaxdnn.training import (
    Recorder,
    init_state,
    make_init,
    make_loss,
    make_setup,
    make_step,
    make_trainer,
)

HOOKS = "PyTorch with hooks"
WATCHED = "jaxdnn, watched"
EAGER, COMPILED = "PyTorch eager", "torch.compile"
BATCH_SIZE = 128
OPTIMIZER = OptimizerOptions(learning_rate=1e-3, momentum=0.9, schedule="constant")


class Row(NamedTuple):
    """One piece of work.

    Attributes:
      title: what it is, with everything that is the same for all contenders.
      unit: what is timed: a `step`, an `epoch` or a `call`.
      contenders: name -> what runs it; ours first.
      flops: floating-point operations of one unit, counted by formula.
      target: least ratio to ours that is asked of each of `rivals`.
      rivals: contenders that the target is about.
      notes: what else a reader must know.
      more_rounds: factor on their number, for a ratio of which single percents count.
    """

    title: str
    unit: str
    contenders: Mapping[str, Work]
    flops: float
    target: float
    rivals: Sequence[str] = (EAGER, COMPILED)
    notes: Sequence[str] = ()
    more_rounds: int = 1


def make_step_work(
    model: Model, optimizer: OptimizerOptions, inputs: np.ndarray, labels: np.ndarray
) -> Work:
    """Return the work of training steps on one float32 batch: compiled, the state donated."""
    schedule = optim.make_schedule(optimizer, steps_per_epoch=1, num_steps=1)
    chain = optim.make_optimizer(optimizer, schedule, num_examples=len(labels))
    step = make_step(
        make_loss(model, jnp.ones(2)),
        chain,
        prepare=lambda key, batch: batch,
        loss_limit=np.inf,
    )
    compiled = jax.jit(step, donate_argnums=1)
    state = jax.jit(make_init(model, chain))(jax.random.key(0))
    key, images, classes = jax.random.key(1), jnp.asarray(inputs), jnp.asarray(labels)

    def work(num_steps: int) -> None:
        nonlocal state
        for _ in range(num_steps):
            state = compiled(key, state, images, classes)
        jax.block_until_ready(state)

    return work


def make_epoch_work(config: Config, dataset: Dataset) -> Work:
    """Return the work of whole epochs: one compiled program, from uint8 images on the device."""
    setup = make_setup(config, dataset)
    program, state = make_trainer(setup), init_state(setup)

    def work(num_epochs: int) -> None:
        nonlocal state
        for _ in range(num_epochs):
            state = program.train(state, setup.steps_per_epoch)
        jax.block_until_ready(state)

    return work


def make_watched_epoch_work(config: Config, dataset: Dataset, folder: Path) -> Work:
    """Return the work of `make_epoch_work` with `watch_gradients`, its files and warnings."""
    setup = make_setup(config, dataset)
    program, state = make_trainer(setup), init_state(setup)
    watch = program.watch
    assert watch is not None
    recorder = Recorder(RunFolder(folder), num_steps=1, batch_size=1, start=0, progress=False)

    def work(num_epochs: int) -> None:
        nonlocal state
        for _ in range(num_epochs):
            state = watch.train(state, setup.steps_per_epoch)
            watch.record(recorder)
        jax.block_until_ready(state)

    return work


def make_matmul_work(size: int) -> Work:
    """Return the work of float32 matrix products, size x size."""
    left, right = jax.random.normal(jax.random.key(0), (2, size, size))
    product = jax.jit(jnp.matmul)

    def work(num_products: int) -> None:
        for _ in range(num_products):
            jax.block_until_ready(product(left, right))

    return work


def make_sweep_work(architecture: Architecture, batch_size: int) -> Work:
    """Return the work of all activations on the He networks of one seed, by the compiled sweep.

    A call runs one seed on every device.
    """
    sweep = make_sweep(
        [make_initializer("he_normal")],
        [make_activation(name) for name in pytorch.ACTIVATIONS],
        architecture,
        batch_size=batch_size,
    )
    devices = jax.device_count()
    indices, seeds = jnp.zeros(devices, jnp.int32), jnp.arange(devices)

    def work(num_calls: int) -> None:
        for call in range(num_calls):
            jax.block_until_ready(sweep(indices, seeds + call * devices))

    return work


def mlp_flops(sizes: Sequence[int], batch_size: int) -> float:
    """Return the matrix-multiply FLOPs of a training step; the first layer's input needs none.

    Forward, kernel gradients and input gradients take 2 * batch * in * out for each layer.
    """
    products = [num_in * num_out for num_in, num_out in pairwise(sizes)]
    return batch_size * (6.0 * sum(products) - 2.0 * products[0])


def mlp_step(sizes: Sequence[int], target: float) -> Row:
    """Make the row of a training step of a ReLU network without norm."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(BATCH_SIZE, sizes[0])).astype(np.float32)
    labels = rng.integers(0, sizes[-1], BATCH_SIZE).astype(np.int32)
    model = make_mlp(sizes[:1], sizes[-1], widths=sizes[1:-1], options=BlockOptions(norm="none"))
    contenders = {OURS: make_step_work(model, OPTIMIZER, inputs, labels)}
    for name, compiled in {EAGER: False, COMPILED: True}.items():
        network = pytorch.make_mlp(sizes, batch_norm=False)
        step = pytorch.make_step(network, OPTIMIZER, compiled=compiled)
        contenders[name] = pytorch.make_step_work(step, inputs, labels)
    return Row(
        title=f"MLP {'-'.join(map(str, sizes))}, training step, batch {BATCH_SIZE}, ReLU, no norm",
        unit="step",
        contenders=contenders,
        flops=mlp_flops(sizes, BATCH_SIZE),
        target=target,
    )


def convnet_step(side: int, widths: Sequence[int], stem: int) -> Row:
    """Make the row of a training step of the residual convnet; nothing is asked of it."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(BATCH_SIZE, side, side, 1)).astype(np.float32)
    labels = rng.integers(0, 2, BATCH_SIZE).astype(np.int32)
    options = BlockOptions(norm="batch")
    model = make_convnet((side, side, 1), 2, widths=widths, stem=stem, options=options)
    contenders = {OURS: make_step_work(model, OPTIMIZER, inputs, labels)}
    for name, compiled in {EAGER: False, COMPILED: True}.items():
        network = pytorch.make_convnet(widths, 2, channels=1, stem=stem)
        step = pytorch.make_step(network, OPTIMIZER, compiled=compiled)
        contenders[name] = pytorch.make_step_work(step, np.moveaxis(inputs, -1, 1), labels)
    return Row(
        title=(
            f"convnet {'-'.join(map(str, widths))} on {side}×{side}, training step, "
            f"batch {BATCH_SIZE}, ReLU, batch norm; PyTorch in channels_last"
        ),
        unit="step",
        contenders=contenders,
        flops=convnet_flops(side, widths, stem),
        target=0.0,
    )


def convnet_flops(side: int, widths: Sequence[int], stem: int) -> float:
    """Return the FLOPs of a training step's convolutions; the first one's input needs none."""
    size, products = -(-side // stem), []
    for num_in, width in pairwise([stem**2, *widths]):
        products += [9 * size**2 * num_in * width] + [9 * size**2 * width**2] * 2
        size = -(-size // 2)
    return BATCH_SIZE * (6.0 * sum(products) - 2.0 * products[0])


def gradient_flow_grid(depth: int, width: int) -> Row:
    """Make the row of the sweep's grid: nine activations of a seed for every device."""
    num_seeds = jax.device_count()
    architecture = Architecture(depth=depth, width=width)
    num_activations = len(pytorch.ACTIVATIONS)
    products = (depth - 1) * width**2 + width * pytorch.NUM_CLASSES
    return Row(
        title=(
            f"gradient flow, {num_activations} activations of {num_seeds} seeds, {depth} layers of "
            f"{width}, batch {BATCH_SIZE}, forward, backward, statistics of every layer"
        ),
        unit="call",
        contenders={
            OURS: make_sweep_work(architecture, BATCH_SIZE),
            HOOKS: pytorch.make_hooks_work(architecture, BATCH_SIZE, num_seeds),
        },
        flops=num_seeds * num_activations * BATCH_SIZE * (6.0 * products - 2.0 * width**2),
        target=2.5,
        rivals=(HOOKS,),
    )


def epoch(augment: AugmentOptions, how: str) -> Row:
    """Make the row of an epoch over the silhouettes: shuffle, batch, normalise and train."""
    config = Config(
        model=ModelOptions(widths=DEEP.model.widths, norm="batch"),
        optimizer=OPTIMIZER,
        augment=augment,
    )
    dataset = load(config.data, seed=config.seed)
    num, height, width, channels = dataset.train.images.shape
    sizes = (height * width * channels, *config.model.widths, len(dataset.class_names))
    contenders, note = torch_epochs(config, dataset, sizes)
    return Row(
        title=(
            f"epoch of {num} images {height}×{width}, uint8 to trained, {how}; "
            f"MLP {'-'.join(map(str, sizes))}, batch {BATCH_SIZE}, ReLU, batch norm"
        ),
        unit="epoch",
        contenders={OURS: make_epoch_work(config, dataset), **contenders},
        flops=(num // BATCH_SIZE) * mlp_flops(sizes, BATCH_SIZE),
        target=3.0,
        rivals=(f"{EAGER}, DataLoader", f"{COMPILED}, DataLoader"),
        notes=(note,),
    )


def watched_epoch(recipe: str, every: int) -> Row:
    """Make the row of a recipe's epoch, watched and not; PyTorch takes no part."""
    config = RECIPES[recipe]
    watched = dataclasses.replace(
        config, train=dataclasses.replace(config.train, watch_gradients=every)
    )
    dataset = load(config.data, seed=config.seed)
    sizes = (dataset.train.images[0].size, *config.model.widths, len(dataset.class_names))
    folder = Path(tempfile.mkdtemp())
    return Row(
        title=f"epoch of the recipe {recipe}, and the same with --watch-gradients {every}",
        unit="epoch",
        contenders={
            OURS: make_epoch_work(config, dataset),
            WATCHED: make_watched_epoch_work(watched, dataset, folder),
        },
        flops=(len(dataset.train.labels) // BATCH_SIZE) * mlp_flops(sizes, BATCH_SIZE),
        target=0.0,
        rivals=(),
        notes=("asked of the watched epoch: at most 1.03 times the time; 6 times the rounds",),
        more_rounds=6,
    )


def torch_epochs(
    config: Config, dataset: Dataset, sizes: Sequence[int]
) -> tuple[dict[str, Work], str]:
    """Make PyTorch's epochs: eager and compiled, from its DataLoader and indexed by hand."""
    images = torch.from_numpy(dataset.train.in_memory()).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(dataset.train.labels).long()
    pixel_stats = dataset.train.pixel_stats()
    prepare = (
        pytorch.make_standardise(pixel_stats)
        if config.augment == AugmentOptions()
        else pytorch.make_augment(config.augment, pixel_stats)
    )
    eager, compiled = (
        pytorch.make_step(
            pytorch.make_mlp(sizes, batch_norm=True),
            config.optimizer,
            compiled=compiled,
            prepare=prepare,
        )
        for compiled in (False, True)
    )
    loader, seconds = pytorch.fastest_loader(eager, images, labels, BATCH_SIZE)
    note = "an epoch of PyTorch eager by DataLoader workers: " + ", ".join(
        f"{workers} {1e3 * value:.0f} ms" for workers, value in seconds.items()
    )
    works: dict[str, Work] = {}
    for name, step in {EAGER: eager, COMPILED: compiled}.items():
        works[f"{name}, DataLoader"] = pytorch.make_loader_epoch(step, loader)
        works[f"{name}, indexed by hand"] = pytorch.make_indexing_epoch(
            step, images, labels, BATCH_SIZE
        )
    return works, f"{note}; the faster takes part"


def features(batch_size: int, size: int) -> Row:
    """Return the row of a pretrained network's features, of 8-bit pixels on the device."""
    name = "data/efficientnet_lite0/efficientnet_lite0.safetensors"
    images = np.random.default_rng(0).integers(0, 256, (batch_size, size, size, 3), np.uint8)
    folded, lower = backbone.fold_norms(backbone.load_weights()), backbone.make_lower(0)
    placed = jnp.asarray(images)
    ours = jax.jit(lambda folded, pixels: lower(folded, backbone.scale_pixels(pixels)))
    with resources.as_file(resources.files("jaxdnn").joinpath(name)) as file:
        theirs = pytorch.make_efficientnet_lite0(file)
    error = float(
        np.abs(np.asarray(ours(folded, placed)) - theirs(torch.from_numpy(images)).numpy()).max()
    )

    def work(num_calls: int) -> None:
        for _ in range(num_calls):
            ours(folded, placed).block_until_ready()

    return Row(
        title=f"features of EfficientNet-Lite0, {size}x{size}, batch {batch_size}, float32",
        unit="call",
        contenders={OURS: work, EAGER: pytorch.make_features_work(theirs, images)},
        flops=float((ours.lower(folded, placed).cost_analysis() or {}).get("flops", 0.0)),
        target=1.0,
        rivals=(EAGER,),
        notes=(f"the features differ by {error:.1e} at most",),
    )


ROWS: dict[str, Callable[[], Row]] = {
    "wide-mlp": lambda: mlp_step((51529, 512, 128, 2), target=1.3),
    "deep-mlp": lambda: mlp_step((784, 512, 512, 512, 2), target=2.0),
    "convnet": lambda: convnet_step(28, (32, 64, 128), stem=2),
    "gradient-flow": lambda: gradient_flow_grid(50, 256),
    "epoch": lambda: epoch(AugmentOptions(), "no augmentation"),
    "watch": lambda: watched_epoch("deep", every=50),
    "features": lambda: features(16, 227),
    "epoch-augmented": lambda: epoch(DEEP.augment, "augmented as in the deep recipe"),
}
