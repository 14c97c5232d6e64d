"""Our side: the package's own step and its compiled epoch, as a training run uses them."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxdnn import optim
from jaxdnn.config import Config
from jaxdnn.data import Dataset
from jaxdnn.models import Model
from jaxdnn.options import OptimizerOptions
from jaxdnn.run_folder import RunFolder
from jaxdnn.training import Recorder, init_state, make_init, make_setup, make_step, make_trainer

from .timing import Work


def make_step_work(
    model: Model, optimizer: OptimizerOptions, inputs: np.ndarray, labels: np.ndarray
) -> Work:
    """Return the work of training steps on one float32 batch: compiled, the state donated."""
    schedule = optim.make_schedule(optimizer, steps_per_epoch=1, num_steps=1)
    chain = optim.make_optimizer(optimizer, schedule, num_examples=len(labels))
    step = make_step(
        model,
        chain,
        prepare=lambda key, batch: batch,
        class_weights=jnp.ones(2),
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
