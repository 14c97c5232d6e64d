"""Small data sets and runs that several tests share."""

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np

from jaxdnn.data import Dataset, ImagesInMemory, Reader, Source, Split
from jaxdnn.data.images import StreamedImages
from jaxdnn.run_folder import RunFolder
from jaxdnn.training import Checkpoints, Recorder, TrainState
from jaxdnn.training.checkpoint import tree_copy
from jaxdnn.training.early_stopping import EarlyStopping
from jaxdnn.training.fit import Progress, fit
from jaxdnn.training.run import find_progress
from jaxdnn.training.setup import Trainer


def split(num: int, seed: int, size: int = 2) -> Split:
    """Grey noise of `size` x `size` pixels, brighter where the label is 1."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num, dtype=np.int32) % 2
    images = rng.integers(0, 200, (num, size, size, 1)) + 50 * labels[:, None, None, None]
    return Split(ImagesInMemory(images.astype(np.uint8)), labels, tuple(map(str, range(num))))


def dataset(num_train: int = 21, num: int = 8, size: int = 2) -> Dataset:
    """A data set of two classes, with so many images to train on, and `num` to test on."""
    parts = (split(num_train, 0, size), split(num, 1, size), split(num, 2, size))
    return Dataset(("other", "dog"), *parts, (), "random")


def streamed(dataset: Dataset) -> Dataset:
    """Let the same images be decoded when they are needed."""

    def change(split: Split) -> Split:
        read = split.in_memory().__getitem__
        source = Source("memory", ("0", "1"), split.names, split.labels, np.array([]), read)
        _, size, _, channels = split.images.shape
        reader = Reader(source, size, channels, max_workers=3)
        images = StreamedImages(reader, np.arange(len(split.labels)), dataset.train.pixel_stats())
        return dataclasses.replace(split, images=images)

    return dataclasses.replace(
        dataset,
        train=change(dataset.train),
        validation=change(dataset.validation),
        test=change(dataset.test),
    )


def run(
    state: TrainState,
    trainer: Trainer,
    path: Path,
    *,
    stop_after: float = math.inf,
    greater_is_better: bool = False,
    patience: int | None = None,
) -> Progress:
    """Start from a copy of a state, or go on where the folder's checkpoints left off.

    The run is interrupted at the `stop_after`th time of asking.
    """
    path.mkdir(exist_ok=True)
    folder, asked = RunFolder(path), itertools.count(1)
    stopping = EarlyStopping(greater_is_better=greater_is_better, patience=patience)
    fresh = Progress(tree_copy(state), stopping)
    with Checkpoints(folder.checkpoints) as checkpoints:
        start = find_progress(fresh, checkpoints) or fresh
        with Recorder(
            folder,
            num_steps=trainer.num_steps,
            batch_size=4,
            start=int(start.state.step),
            progress=False,
        ) as recorder:
            return fit(
                start,
                trainer,
                recorder=recorder,
                checkpoints=checkpoints,
                interrupted=lambda: next(asked) >= stop_after,
            )[0]


def data_file(folder, step):
    """The file of a checkpoint that holds most of its arrays."""
    (own,) = (path for path in folder.iterdir() if int(path.name) == step)
    return max((path for path in own.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]
