"""Training from a stream: the same batches and the same weights, nothing lost, nothing twice."""

import dataclasses
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdnn.config import Config
from jaxdnn.data import Dataset, ImagesInMemory
from jaxdnn.data.images import StreamedImages
from jaxdnn.errors import InputError
from jaxdnn.options import AugmentOptions, DataOptions, ModelOptions, OptimizerOptions, TrainOptions
from jaxdnn.training import (
    Setup,
    TrainState,
    feed,
    init_state,
    make_indices,
    make_order_of,
    make_setup,
    make_trainer,
    seed_keys,
)
from jaxdnn.training.feed import StreamedTrain, chunks, make_rows, shard_of
from jaxdnn.training.setup import Trainer
from jaxdnn.training.step import make_train

from .runs import dataset, streamed

DATASET = dataset()
EPOCHS = 3


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


def trained(setup: Setup, trainer: Trainer, *calls: int) -> TrainState:
    """Take so many steps in each call, from the beginning."""
    state = init_state(setup)
    for num_steps in calls:
        state = trainer.train(state, num_steps)
    return state


@pytest.mark.parametrize(
    ("chunk_bytes", "balance"), [pytest.param(1, "none", marks=pytest.mark.slow), (40, "batches")]
)
def test_training_from_a_stream_is_training_in_memory(chunk_bytes, balance, monkeypatch):
    monkeypatch.setattr(feed, "CHUNK_BYTES", chunk_bytes)
    whole = trained(setup := setup_of(DATASET, balance), make_trainer(setup), *[100] * EPOCHS)
    trainer = make_trainer(setup := setup_of(streamed(DATASET), balance))
    ours = trained(setup, trainer, 1, 3, 100, 2, 2, 100, 100)
    assert int(ours.step) == int(whole.step) == 5 * EPOCHS
    # The same sums in another program: XLA may round them differently.
    chex.assert_trees_all_close(ours, whole, rtol=1e-4, atol=1e-6)
    begun = trained(setup, trainer, 100, 2)
    assert int(begun.step) == 7
    trained(setup, trainer, 100, 100)  # Another run in between: what is held must not matter.
    for _ in range(2):
        begun = trainer.train(begun, 100)
    chex.assert_trees_all_equal(begun, ours)


@pytest.mark.parametrize("balance", ["none", "batches"])
def test_both_take_the_same_batches(balance):
    setup = setup_of(DATASET, balance)
    taken = []

    def step(_, state, images, labels):
        jax.debug.callback(lambda *batch: taken.append(batch), images, labels, ordered=True)
        return state._replace(step=state.step + 1)

    order, options = make_order_of(setup), {"key": seed_keys(0)[1], "steps_per_epoch": 5}
    images, labels = map(jnp.asarray, (DATASET.train.in_memory(), DATASET.train.labels))
    whole = make_train(step, make_indices(order, key=options["key"]), images, labels, **options)
    stream_of = streamed(DATASET).train.images
    assert isinstance(stream_of, StreamedImages)
    parts = StreamedTrain(step, order, stream_of, DATASET.train.labels, **options)
    for train in (whole, parts):
        state = init_state(setup)
        for _ in range(3):
            state = train(state, 5)
        jax.block_until_ready(state)
    jax.effects_barrier()
    assert len(taken) == 2 * 15
    chex.assert_trees_all_equal(taken[15:], taken[:15])


@pytest.mark.parametrize("norm_statistics", ["running", "training_set"])
def test_evaluation_from_a_stream_is_that_in_memory(norm_statistics):
    setups = [
        setup_of(data, norm_statistics=norm_statistics) for data in (DATASET, streamed(DATASET))
    ]
    found = [make_trainer(setup).evaluate(init_state(setup)) for setup in setups]
    chex.assert_trees_all_equal(*found)


def test_a_step_that_diverges_is_the_last(monkeypatch):
    monkeypatch.setattr(feed, "CHUNK_BYTES", 40)
    setup = setup_of(streamed(DATASET))
    state = init_state(setup)
    bad = jax.tree.map(lambda leaf: leaf + np.nan, state.params)
    state = make_trainer(setup).train(state._replace(params=bad), 100)
    assert int(state.step) == 1
    assert bool(state.diverged)


def visited(setup: Setup, shard: int, num_shards: int, *turns: int) -> list[list[int]]:
    """Return the images of each step of the first epoch, by identity, as one process sees them.

    Every turn takes so many steps and then starts again at the next step, as a resumed run does.
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
        DATASET.train, images=ImagesInMemory(pixels), labels=np.arange(1000, dtype=np.int32) % 2
    )
    split = dataclasses.replace(split, names=tuple(map(str, range(1000))))
    return setup_of(streamed(dataclasses.replace(DATASET, train=split)), batch_size=40)


@pytest.mark.parametrize("num_shards", [1, 2, 4])
@pytest.mark.parametrize("turns", [(25,), (11, 14), (1, 23, 1)])
def test_nothing_is_lost_and_nothing_seen_twice(numbered, num_shards, turns, monkeypatch):
    monkeypatch.setattr(feed, "CHUNK_BYTES", 600)
    of_shards = [visited(numbered, shard, num_shards, *turns) for shard in range(num_shards)]
    assert sorted(np.concatenate(of_shards, axis=None).tolist()) == list(range(1000))
    by_step = np.concatenate(of_shards, axis=1)
    chex.assert_trees_all_equal(by_step, np.array(visited(numbered, 0, 1, 25)))


def test_a_batch_that_cannot_be_shared_equally_is_refused(numbered):
    with pytest.raises(InputError, match=r"--batch-size 40 .* 3 processes; expected a multiple"):
        visited(numbered, 0, 3, 1)


def test_waiting_is_told(monkeypatch):
    read = []

    def slow(item):
        read.append(item)
        return DATASET.train.images[item]

    # An image takes a second of a clock that only moves while one is read.
    clock = types.SimpleNamespace(monotonic=lambda: len(read))
    monkeypatch.setattr(feed, "time", clock)
    images = streamed(DATASET).train.images
    assert isinstance(images, StreamedImages)
    reader = dataclasses.replace(
        images.reader, source=dataclasses.replace(images.reader.source, read=slow), max_workers=1
    )
    images = dataclasses.replace(images, reader=reader)
    setup = setup_of(DATASET)
    train = StreamedTrain(
        lambda key, state, *batch: state._replace(step=state.step + 1),
        make_order_of(setup),
        images,
        DATASET.train.labels,
        key=seed_keys(0)[1],
        steps_per_epoch=5,
    )
    train(init_state(setup), 1)
    assert train.wait_seconds >= 4


# Several processes that share an epoch, killed in the middle.

NUM, NUM_TRAIN, BATCH, SEED = 400, 320, 8, 5

PROCESS = f"""
import sys
import jax, numpy as np
jax.config.update("jax_platforms", "cpu")
from jaxdnn.data import load, make_order
from jaxdnn.options import DataOptions
from jaxdnn.training import seed_keys
from jaxdnn.training.feed import chunks, make_rows, shard_of

folder, shard, num_shards, start = sys.argv[1], *map(int, sys.argv[2:])
dataset = load(DataOptions(data=folder, positive=(), channels=1, validation_fraction=0.1,
                           test_fraction=1 / 9, streaming=True, cache_gib=1), seed={SEED})
labels, images = dataset.train.labels, dataset.train.images
order = make_order(labels, batch_size={BATCH}, balanced=False, num_classes=2)
steps = len(labels) // {BATCH}
rows = make_rows(order, key=seed_keys({SEED})[1], steps_per_epoch=steps)
for chunk in chunks(images, shard_of(rows, shard, num_shards), start=start, steps_per_epoch=1):
    if chunk.first == steps:
        break
    numbers = chunk.images[:len(chunk.rows)].reshape(len(chunk.rows), -1).view("<u4").ravel()
    print(*numbers, flush=True)
    if chunk.first == start + 11:
        sys.stdin.read()  # At work until it is told to go on, or killed.
"""


def photographs(folder: Path) -> None:
    """Images whose four pixels are their number."""
    for number in range(NUM):
        pixels = np.array([number], "<u4").view(np.uint8).reshape(2, 2)
        file = folder / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)


def start(folder: Path, num: int, step: int) -> list[subprocess.Popen]:
    """Start so many processes at a step."""
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, folder, str(shard), str(num), str(step)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for shard in range(num)
    ]


def numbers(text: str) -> list[list[int]]:
    return [[int(number) for number in line.split()] for line in text.splitlines()]


@pytest.mark.slow
def test_processes_that_are_killed_are_gone_on_from_by_any_number_of_others(tmp_path):
    photographs(tmp_path)
    step = 11  # What a checkpoint holds; the step after it is under way, and visited again.
    killed, before = start(tmp_path, 2, 0), []
    for process in killed:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(step + 1)]
        before.append(numbers("".join(lines))[:step])
    for process in killed:
        process.kill()
        process.communicate()
    resumed = start(tmp_path, 4, step)
    after = [numbers(process.communicate()[0]) for process in resumed]
    assert [process.returncode for process in resumed] == [0] * 4
    visited = [*np.concatenate(before, axis=1).tolist(), *np.concatenate(after, axis=1).tolist()]
    assert np.shape(visited) == (NUM_TRAIN // BATCH, BATCH)
    assert len(np.unique(visited)) == NUM_TRAIN
    assert set(np.ravel(visited)) <= set(range(NUM))
