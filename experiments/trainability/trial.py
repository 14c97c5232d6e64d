"""Networks judged at their start and then trained."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdnn.config import DataOptions
from jaxdnn.data import load, normalise_images
from jaxdnn.race import LEARNED, guess_loss

from .family import Member, choice_of, draw_params, make_forward
from .judge import make_judge, report
from .train import BATCH_SIZE, make_train

# Steps of the rehearsal that are kept, for a look at other lengths than the verdict's.
NUM_REHEARSED = 60


class Task(NamedTuple):
    """The data, and what counts as learned.

    Attributes:
      images: (example, pixel), standardised.
      labels: (example,).
      num_classes: of the labels.
      bound: of the final loss of a network that learned.
    """

    images: jax.Array
    labels: jax.Array
    num_classes: int
    bound: float

    @property
    def first_batch(self) -> tuple[jax.Array, jax.Array]:
        """Images and labels that a network is judged on."""
        return self.images[:BATCH_SIZE], self.labels[:BATCH_SIZE]


def load_task() -> Task:
    """Load the silhouettes, all ten classes, flat and standardised."""
    dataset = load(DataOptions(positive=()), seed=0)
    images = normalise_images(jnp.asarray(dataset.train.in_memory()), dataset.train.pixel_stats())
    labels = dataset.train.labels
    return Task(
        images.reshape(len(labels), -1),
        jnp.asarray(labels),
        len(dataset.class_names),
        LEARNED * guess_loss(np.asarray(labels)),
    )


def start(member: Member, task: Task) -> dict[str, jax.Array]:
    """Return the parameters of a member before training."""
    return draw_params(member, task.images.shape[1], task.num_classes)


def make_trial(
    task: Task, num_steps: int
) -> Callable[[Sequence[Member]], Iterator[dict[str, Any]]]:
    """Return what judges members at their start and then trains them, side by side.

    They have one program, activation and optimizer.
    """

    # The groups come in the order of their programs.
    @functools.lru_cache(maxsize=1)
    def programs(program: tuple[int, str]) -> tuple[Callable[..., Any], Callable[..., Any]]:
        jax.clear_caches()
        judge = make_judge(program[1], NUM_REHEARSED)
        train = make_train(make_forward(program[1]), num_steps)
        return (
            jax.jit(jax.vmap(judge, in_axes=(0, None, None, None))),
            jax.jit(jax.vmap(train, in_axes=(0, None, None, None, 0))),
        )

    def trial(members: Sequence[Member]) -> Iterator[dict[str, Any]]:
        judge, train = programs(members[0].program)
        choice = choice_of(members[0])
        params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(start(m, task) for m in members))
        said = jax.device_get(judge(params, choice, *task.first_batch))
        keys = jax.vmap(jax.random.key)(jnp.array([member.seed for member in members]))
        losses = train(params, choice, task.images, task.labels, keys)
        for index, loss in enumerate(losses.tolist()):
            own = jax.tree.map(lambda leaf, index=index: leaf[index], said)
            yield report(own) | {"final_loss": loss, "learned": bool(loss < task.bound)}

    return trial
