"""A network that did not learn, changed and trained again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxdnn.diagnosis import (
    Change,
    Scales,
    Tried,
    edited,
    examine,
    make_optimizer,
    make_rehearse,
    take_first_step,
    try_changes,
    verdict,
)

from .family import Member, another, choice_of, make_forward, make_model
from .judge import mean_loss
from .train import make_train
from .trial import Task, start


def make_repair(
    task: Task, num_steps: int
) -> Callable[[Sequence[Member]], Iterator[dict[str, Any]]]:
    """Return what repairs a member, by prescription and by chance, and trains it again."""

    def learns(
        forward: Callable[..., Any], params: Any, member: Member, scales: Scales | None = None
    ) -> bool:
        train = make_train(forward, num_steps)
        key = jax.random.key(member.seed)
        loss = train(params, choice_of(member), task.images, task.labels, key, scales or Scales())
        return bool(loss < task.bound)

    def repair(member: Member) -> dict[str, Any]:
        jax.clear_caches()
        began = time.monotonic()
        forward, best = prescribed(member, task, num_steps)
        words, score, repaired = "nothing", None, False
        if best is not None:
            words, score = best.change.words, float(best.score)
            repaired = learns(forward, best.change.params, member, best.change.scales)
        changed = another(member, np.random.default_rng(member.seed))
        by_chance = learns(make_forward(changed.style), start(changed, task), changed)
        return {
            "prescription": words,
            "score": score,
            "repaired": repaired,
            "by_chance": by_chance,
            "seconds": round(time.monotonic() - began, 1),
        }

    return lambda members: map(repair, members)


def prescribed(
    member: Member, task: Task, num_steps: int
) -> tuple[Callable[..., Any], Tried | None]:
    """Return the first prescription, if there is one, and the forward function that it gives."""
    params, batch = start(member, task), task.first_batch
    seen = examine((make_model(member), params), *batch, loss=mean_loss)
    optimizer = make_optimizer(member.optimizer)
    rehearse = make_rehearse(seen, optimizer, *batch)

    def attempt(change: Change) -> float:
        rehearsed = rehearse(change.params, change.edits, change.scales)
        return verdict.score(rehearsed, horizon=num_steps)

    before = attempt(Change("nothing", "", params, {}))
    best = next(iter(try_changes(seen, take_first_step(seen, optimizer), before, attempt)), None)
    if best is None or not best.change.edits:
        return make_forward(member.style), best
    program = edited(seen, best.change.edits)
    return lambda params, inputs, _: program(params, inputs, seen.key), best
