"""Training on images that are decoded while the last step runs.

The order is that of training in memory, a function of the run's key and the step: batches are asked
for by step, and nothing needs to be remembered between two runs.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int

from jaxdnn.data import Images, prefetch
from jaxdnn.errors import InputError
from jaxdnn.training.keys import epoch_key, run_keys
from jaxdnn.training.sharding import Layout, one_device
from jaxdnn.training.step import Order, TrainState, TrainStep, repeat_until, start_of_epoch

CHUNK_BYTES = 32 * 2**20
"""Images of several steps go to the device together, up to so many bytes: each call of the compiled
loop copies the parameters once."""

# step -> (batch,) places of its images
Rows = Callable[[int], Int[np.ndarray, " batch"]]


class Chunk(NamedTuple):
    """The batches of some steps in a row.

    Attributes:
      first: number of the first step.
      end: number of the step after the last.
      images: uint8 (steps * batch, height, width, channel); rows after the last are undefined.
      rows: (steps * batch,) places of the images in their split.
    """

    first: int
    end: int
    images: np.ndarray
    rows: np.ndarray


def make_rows(order: Order, *, key: Array, steps_per_epoch: int) -> Rows:
    """Return `step -> places of its images`, the rows of `make_indices`."""
    order_key, _ = run_keys(key)

    @functools.lru_cache(maxsize=2)
    def of_epoch(epoch: int) -> np.ndarray:
        return np.asarray(order(epoch_key(order_key, jnp.asarray(epoch))))

    return lambda step: of_epoch(step // steps_per_epoch)[step % steps_per_epoch]


def shard_of(rows: Rows, shard: int, num_shards: int, num_microbatches: int = 1) -> Rows:
    """Return one process's slice of every batch; together they are the batch, in order.

    Args:
      rows: `step -> places of its images`.
      shard: index of this process.
      num_shards: number of processes.
      num_microbatches: how many a batch is made of; each of them is shared.

    Raises:
      InputError: the batch does not divide into so many equal slices.
    """
    batch_size = len(rows(0)) // num_microbatches
    if batch_size % num_shards:
        raise InputError(
            f"--batch-size {batch_size} cannot be shared equally by {num_shards} processes; "
            f"expected a multiple of {num_shards}; choose one"
        )
    return lambda step: rows(step).reshape(num_microbatches, num_shards, -1)[:, shard].ravel()


def chunks(
    images: Images, rows: Rows, *, start: int, steps_per_epoch: int
) -> Generator[Chunk, None, None]:
    """Yield the batches from step `start` on, without end; no chunk spans two epochs."""
    batch_size = len(rows(start))
    row_bytes = int(np.prod(images.shape[1:]))
    num_steps = max(1, CHUNK_BYTES // (batch_size * row_bytes))
    num_steps = min(num_steps, steps_per_epoch)
    spans, places = _spans(start, num_steps, steps_per_epoch), []

    def batches() -> Iterator[np.ndarray]:
        for first, end in spans:
            batch = np.concatenate([rows(step) for step in range(first, end)])
            places.append((first, end, batch))
            yield batch

    for decoded in images.batches(batches(), num_rows=num_steps * batch_size):
        first, end, batch = places.pop(0)
        yield Chunk(first, end, decoded, batch)


def _spans(start: int, num_steps: int, steps_per_epoch: int) -> Iterator[tuple[int, int]]:
    """Cut all steps from `start` on at multiples of `num_steps` within each epoch."""
    while True:
        epoch = start // steps_per_epoch * steps_per_epoch
        end = epoch + ((start - epoch) // num_steps + 1) * num_steps
        end = min(end, epoch + steps_per_epoch)
        yield start, end
        start = end


class StreamedTrain:
    """`(state, num_steps, step=None) -> state` like `make_train`'s, from a stream.

    Each process decodes its own part of every batch.

    Args:
      step: `make_step`'s, takes one step.
      order: `key -> (steps, batch)` places of an epoch.
      images: those of the training split, (image, height, width, channel), streamed.
      labels: (image,) classes.
      key: the run's key, from which `keys.py` makes all others.
      steps_per_epoch: optimizer steps, the rows of `order`.
      layout: the devices, of which each gets its part of every batch.
      num_microbatches: how many a batch is made of.

    Attributes:
      wait_seconds: how long the device has had nothing to do because images were not ready.
      next_step: number of the step at which the chunk begins that is being decoded.
    """

    def __init__(
        self,
        step: TrainStep,
        order: Order,
        images: Images,
        labels: np.ndarray,
        *,
        key: Array,
        steps_per_epoch: int,
        layout: Layout | None = None,
        num_microbatches: int = 1,
    ):
        rows = make_rows(order, key=key, steps_per_epoch=steps_per_epoch)
        self._rows = shard_of(rows, jax.process_index(), jax.process_count(), num_microbatches)
        self._loop = _make_loop(step, run_keys(key)[1], steps_per_epoch)
        self._images, self._labels, self._steps_per_epoch = images, labels, steps_per_epoch
        self._layout = layout or one_device()
        sizes = (num_microbatches,) if num_microbatches > 1 else ()
        self._batch_shape = (*sizes, len(self._rows(0)) // num_microbatches)
        self._chunks: Iterator[Chunk] = iter(())
        self._held: _Held | None = None
        self._watcher = ThreadPoolExecutor(1, thread_name_prefix="jaxdnn-watch")
        self._idle_since: Future[float] | None = None
        self.wait_seconds = 0.0
        self.next_step = -1

    def __call__(self, state: TrainState, num_steps: int, step: int | None = None) -> TrainState:
        step = int(state.step) if step is None else step
        last = min(step + num_steps, (step // self._steps_per_epoch + 1) * self._steps_per_epoch)
        while step < last:
            held = self._hold(step)
            until = min(last, held.end)
            state, taken = self._loop(state, held.images, held.labels, held.first, until)
            self._idle_since = self._watcher.submit(_finished_at, taken)
            step = until
            if step == held.end:
                self._hold(step)
        if step % self._steps_per_epoch == 0:
            self._images.keep()
        return state

    def _hold(self, step: int) -> _Held:
        """Put the chunk that holds `step` on the device, while the device is still at work."""
        if self._held is not None and self._held.first <= step < self._held.end:
            return self._held
        if self.next_step != step:  # The first call, or a jump: batches are at hand by step.
            self._chunks = prefetch(
                chunks(self._images, self._rows, start=step, steps_per_epoch=self._steps_per_epoch)
            )
        asked = time.monotonic()
        chunk = next(self._chunks)
        self._count_wait(asked, time.monotonic())
        labels = np.zeros(len(chunk.images), np.int32)
        labels[: len(chunk.rows)] = self._labels[chunk.rows]
        self.next_step = chunk.end
        self._held = _Held(chunk.first, chunk.end, *map(self._place, (chunk.images, labels)))
        return self._held

    def _place(self, rows: np.ndarray) -> Array:
        """Put (step * batch, ...) rows on the devices as (step, [microbatch,] batch, ...)."""
        shape = (-1, *self._batch_shape, *rows.shape[1:])
        return self._layout.join(rows.reshape(shape), axis=len(self._batch_shape))

    def _count_wait(self, asked: float, got: float) -> None:
        if self._idle_since is None:
            self.wait_seconds += got - asked
        elif self._idle_since.done():
            self.wait_seconds += max(0.0, got - max(asked, self._idle_since.result()))


class _Held(NamedTuple):
    first: int
    end: int
    images: Array
    labels: Array


def _finished_at(result: Array) -> float:
    jax.block_until_ready(result)
    return time.monotonic()


def _make_loop(
    step: TrainStep, steps_key: Array, steps_per_epoch: int
) -> Callable[..., tuple[TrainState, Array]]:
    """Return `(state, images, labels, first, last) -> (state, array)`, compiled.

    Images and labels are those of the steps from `first` on. The array, unlike the state, is not
    donated to the next call: something to watch the device by.
    """

    def loop(
        state: TrainState, images: Array, labels: Array, first: Array, last: Array
    ) -> tuple[TrainState, Array]:
        def take_step(state: TrainState) -> TrainState:
            batch, classes = images[state.step - first], labels[state.step - first]
            return step(steps_key, start_of_epoch(state, steps_per_epoch), batch, classes)

        state = repeat_until(last, take_step, state)
        return state, -state.step

    return jax.jit(loop, donate_argnums=0)
