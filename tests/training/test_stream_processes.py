"""Several processes that share an epoch, killed in the middle: nothing lost, nothing twice."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NUM, NUM_TRAIN, BATCH, SEED = 400, 320, 8, 5

PROCESS = f"""
import sys
import jax, numpy as np
jax.config.update("jax_platforms", "cpu")
from jaxdnn.data.dataset import load
from jaxdnn.data.pipeline import make_order
from jaxdnn.training.keys import seed_keys
from jaxdnn.training.feed import chunks, make_rows, shard_of

folder, shard, num_shards, start = sys.argv[1], *map(int, sys.argv[2:])
dataset = load(folder, data_dir=None, positive=(), image_size=None, channels=1,
               validation_fraction=0.1, test_fraction=1 / 9, seed={SEED}, streaming=True,
               cache_bytes=1e9, max_workers=2)
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
    step = 11  # What a checkpoint holds; the step after it is under way, and seen again.
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
    seen = [*np.concatenate(before, axis=1).tolist(), *np.concatenate(after, axis=1).tolist()]
    assert np.shape(seen) == (NUM_TRAIN // BATCH, BATCH)
    assert len(np.unique(seen)) == NUM_TRAIN
    assert set(np.ravel(seen)) <= set(range(NUM))
