"""Weak scaling: as many devices as portions of the batch, each device with the same work."""

from __future__ import annotations

import re
import statistics
import time

import jax

from jaxdnn.config import Config
from jaxdnn.options import DeviceOptions, ModelOptions, OptimizerOptions, TrainOptions
from jaxdnn.training import (
    Setup,
    init_state,
    make_indices,
    make_loop,
    make_order_of,
    make_step_of,
    seed_keys,
)

from .made_up import make_up

PER_DEVICE, NUM_STEPS, ROUNDS = 64, 20, 5
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def table() -> str:
    """Return the rows of the README."""
    lines = [
        "| devices | batch | programs compiled | collectives in a step | ms a step | images/s |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [_row(num) for num in (1, 2, 4, 8)])


def _row(num: int) -> str:
    config = Config(
        model=ModelOptions(widths=(512, 512, 512), norm="layer"),
        optimizer=OptimizerOptions(momentum=0.9),
        train=TrainOptions(batch_size=PER_DEVICE * num),
    )
    num_images = PER_DEVICE * num * NUM_STEPS
    setup = make_up(config, num_images, (28, 28, 1), DeviceOptions(devices=num))
    programs, collectives, seconds = _measure(setup)
    batch = PER_DEVICE * num
    told = ", ".join(f"{count} {kind}" for kind, count in collectives.items()) or "none"
    return (
        f"| {num} | {batch} | {programs} | {told} | {1000 * seconds:.1f} | {batch / seconds:,.0f} |"
    )


def _measure(setup: Setup) -> tuple[int, dict[str, int], float]:
    """Return how many programs were compiled, the collectives in them, and seconds a step."""
    key = seed_keys(0)[1]
    loop = make_loop(make_step_of(setup), key=key, steps_per_epoch=setup.steps_per_epoch)
    indices = make_indices(make_order_of(setup), key=key, layout=setup.layout)(0)
    split = setup.dataset.train
    data = setup.layout.place((split.in_memory(), split.labels))
    compiled = jax.jit(loop, donate_argnums=0)
    text = compiled.lower(init_state(setup), *data, indices, NUM_STEPS).compile().as_text() or ""
    found = {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in COLLECTIVES}
    seconds, state = [], init_state(setup)
    for _ in range(ROUNDS + 1):
        state = state._replace(step=state.step * 0)
        jax.block_until_ready(state)
        began = time.perf_counter()
        state = jax.block_until_ready(compiled(state, *data, indices, NUM_STEPS))
        seconds.append((time.perf_counter() - began) / NUM_STEPS)
    programs = compiled._cache_size()  # pyrefly: ignore[missing-attribute]
    collectives = {kind: count for kind, count in found.items() if count}
    return programs, collectives, statistics.median(seconds[1:])
