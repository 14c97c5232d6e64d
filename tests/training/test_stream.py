"""Training from a stream: the same batches and the same weights, nothing lost, nothing twice."""

import dataclasses
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.config import Config
from jaxdnn.data.dataset import Dataset
from jaxdnn.data.reader import Reader
from jaxdnn.data.source import Source
from jaxdnn.data.stream import StreamedImages
from jaxdnn.errors import InputError
from jaxdnn.options import AugmentOptions, DataOptions, ModelOptions, OptimizerOptions, TrainOptions
from jaxdnn.training import stream
from jaxdnn.training.feed import chunks, make_rows, shard_of
from jaxdnn.training.keys import seed_keys
from jaxdnn.training.setup import (
    Program,
    Setup,
    init_state,
    make_order_of,
    make_program,
    make_setup,
)
from jaxdnn.training.step import TrainState, make_indices, make_train

from .test_fit import DATASET

EPOCHS = 3


def streamed(dataset: Dataset) -> Dataset:
    """Let the same images be decoded when they are needed."""

    def change(split):
        read = split.in_memory().__getitem__
        source = Source("memory", ("0", "1"), split.names, split.labels, np.array([]), read)
        reader = Reader(source, split.images.shape[1:], max_workers=3)
        images = StreamedImages(reader, np.arange(len(split.labels)), dataset.train.pixel_stats())
        return dataclasses.replace(split, images=images)

    return dataclasses.replace(
        dataset,
        train=change(dataset.train),
        validation=change(dataset.validation),
        test=change(dataset.test),
    )


def setup_of(
    dataset: Dataset, balance: Any = "none", norm_statistics: Any = "running", batch_size: int = 4
) -> Setup:
    config = Config(
        data=DataOptions(balance=balance),
        model=ModelOptions(widths=(4,), dropout=0.3, norm_statistics=norm_statistics),
        optimizer=OptimizerOptions(momentum=0.9),
        augment=AugmentOptions(noise=0.1),
        train=TrainOptions(batch_size=batch_size, epochs=EPOCHS),
    )
    return make_setup(config, dataset)


def trained(setup: Setup, program: Program, *calls: int) -> TrainState:
    """Take so many steps in each call, from the beginning."""
    state = init_state(setup)
    for num_steps in calls:
        state = program.train(state, num_steps)
    return state


def assert_same(ours: TrainState, theirs: TrainState):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("chunk_bytes", "balance"), [(1, "none"), (40, "batches")])
def test_training_from_a_stream_is_training_in_memory(chunk_bytes, balance, monkeypatch):
    monkeypatch.setattr(stream, "CHUNK_BYTES", chunk_bytes)
    whole = trained(setup := setup_of(DATASET, balance), make_program(setup), *[100] * EPOCHS)
    program = make_program(setup := setup_of(streamed(DATASET), balance))
    ours = trained(setup, program, 1, 3, 100, 2, 2, 100, 100)
    assert int(ours.step) == int(whole.step) == 5 * EPOCHS
    # The same sums in another program: XLA may round them differently.
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    begun = trained(setup, program, 100, 2)
    assert int(begun.step) == 7
    trained(setup, program, 100, 100)  # Another run in between: what is held must not matter.
    for _ in range(2):
        begun = program.train(begun, 100)
    assert_same(begun, ours)


@pytest.mark.parametrize("balance", ["none", "batches"])
def test_both_take_the_same_batches(balance):
    setup = setup_of(DATASET, balance)
    taken = []

    def step(_, state, images, labels):
        jax.debug.callback(lambda *batch: taken.append(batch), images, labels, ordered=True)
        return state._replace(step=state.step + 1)

    order, options = make_order_of(setup), {"key": seed_keys(0)[1], "steps_per_epoch": 5}
    images, labels = map(jnp.asarray, (DATASET.train.images, DATASET.train.labels))
    whole = make_train(step, make_indices(order, key=options["key"]), **options)
    stream_of = streamed(DATASET).train.images
    assert isinstance(stream_of, StreamedImages)
    parts = stream.make_streamed_train(step, order, stream_of, DATASET.train.labels, **options)
    for train in (lambda state, num: whole(state, images, labels, num), parts):
        state = init_state(setup)
        for _ in range(3):
            state = train(state, 5)
        jax.block_until_ready(state)
    jax.effects_barrier()
    assert len(taken) == 2 * 15
    for ours, theirs in zip(taken[15:], taken[:15], strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.parametrize("norm_statistics", ["running", "training_set"])
def test_evaluation_from_a_stream_is_that_in_memory(norm_statistics):
    setups = [
        setup_of(data, norm_statistics=norm_statistics) for data in (DATASET, streamed(DATASET))
    ]
    found = [make_program(setup).evaluate(init_state(setup)) for setup in setups]
    assert found[0][0] == found[1][0]
    jax.tree.map(np.testing.assert_array_equal, found[0][1], found[1][1])


def test_a_step_that_diverges_is_the_last(monkeypatch):
    monkeypatch.setattr(stream, "CHUNK_BYTES", 40)
    setup = setup_of(streamed(DATASET))
    state = init_state(setup)
    bad = jax.tree.map(lambda leaf: leaf + np.nan, state.params)
    state = make_program(setup).train(state._replace(params=bad), 100)
    assert int(state.step) == 1
    assert bool(state.diverged)


def seen(setup: Setup, shard: int, num_shards: int, *turns: int) -> list[list[int]]:
    """Return the images of each step of the first epoch, by identity, as one process sees them.

    Every turn takes so many steps and then starts anew at the next step, as a resumed run does.
    """
    images, (_, key) = setup.dataset.train.images, seed_keys(0)
    assert isinstance(images, StreamedImages)
    rows = make_rows(make_order_of(setup), key=key, steps_per_epoch=setup.steps_per_epoch)
    rows, found, step = shard_of(rows, shard, num_shards), [], 0
    for turn in turns:
        arriving = chunks(images, rows, start=step, steps_per_epoch=setup.steps_per_epoch)
        taken: list[list[int]] = []
        while len(taken) < turn:
            chunk = next(arriving)
            used = chunk.images[: len(chunk.rows)].reshape(chunk.end - chunk.first, -1)
            taken += used.view("<u4").tolist()
        found += taken[:turn]
        step += turn
    return found


@pytest.fixture(scope="module")
def numbered() -> Setup:
    """A thousand images whose four bytes are their number."""
    pixels = np.arange(1000, dtype="<u4").view(np.uint8).reshape(1000, 2, 2, 1)
    split = dataclasses.replace(
        DATASET.train, images=pixels, labels=np.arange(1000, dtype=np.int32) % 2
    )
    split = dataclasses.replace(split, names=tuple(map(str, range(1000))))
    return setup_of(streamed(dataclasses.replace(DATASET, train=split)), batch_size=40)


@pytest.mark.parametrize("num_shards", [1, 2, 4])
@pytest.mark.parametrize("turns", [(25,), (11, 14), (1, 23, 1)])
def test_nothing_is_lost_and_nothing_seen_twice(numbered, num_shards, turns, monkeypatch):
    monkeypatch.setattr(stream, "CHUNK_BYTES", 600)
    of_shards = [seen(numbered, shard, num_shards, *turns) for shard in range(num_shards)]
    assert sorted(np.concatenate(of_shards, axis=None).tolist()) == list(range(1000))
    by_step = np.concatenate(of_shards, axis=1)
    np.testing.assert_array_equal(by_step, seen(numbered, 0, 1, 25))


def test_a_batch_that_cannot_be_shared_equally_is_refused(numbered):
    with pytest.raises(InputError, match=r"--batch-size 40 .* 3 processes; expected a multiple"):
        seen(numbered, 0, 3, 1)


def test_waiting_is_told():
    def slow(item):
        gate.wait(0.05)
        return DATASET.train.images[item]

    gate = threading.Event()
    dataset = streamed(DATASET)
    images = dataset.train.images
    assert isinstance(images, StreamedImages)
    reader = dataclasses.replace(
        images.reader, source=dataclasses.replace(images.reader.source, read=slow), max_workers=1
    )
    slow_images = dataclasses.replace(images, reader=reader)
    train = dataclasses.replace(dataset.train, images=slow_images)
    program = make_program(setup_of(dataclasses.replace(dataset, train=train)))
    program.train(init_state(setup_of(DATASET)), 1)
    assert program.waited_seconds() > 4 * 0.05
