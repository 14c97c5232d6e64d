"""What many devices, large states and second starts cost: the tables of scale in the README.

    python experiments/benchmarks/scale.py weak      1, 2, 4, 8 simulated devices, equal shares
    python experiments/benchmarks/scale.py memory    a device's part of a large state, with --fsdp
    python experiments/benchmarks/scale.py saving    how long 50 million parameters stop training
    python experiments/benchmarks/scale.py start     time to the first step, cold and warm

Simulated devices share the cores of this machine: they show that a program is sharded as it should
be, not that it gets faster.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxdnn import command_line
from jaxdnn.config import Config
from jaxdnn.data import Dataset, ImagesInMemory, Split
from jaxdnn.names import resolve
from jaxdnn.options import DeviceOptions, ModelOptions, OptimizerOptions, TrainOptions
from jaxdnn.training import (
    Checkpoints,
    Setup,
    init_state,
    make_indices,
    make_init,
    make_loop,
    make_order_of,
    make_setup,
    make_step_of,
    seed_keys,
)

DEVICES = "--xla_force_host_platform_device_count=8"
DEEP_DOG = Path(__file__).parents[1] / "deep_dog.py"
# weak
PER_DEVICE, NUM_STEPS, WEAK_ROUNDS = 64, 20, 5
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# memory
SHAPE, WIDTHS, BATCH = (227, 227, 1), (4096, 4096), 128
GIB = 2**30
# saving
NUM_PARAMETERS, NUM_LAYERS, SAVE_ROUNDS, INTERVAL_SECONDS = 50_000_000, 5, 5, 30.0
# start
START_ROUNDS = 3


def main() -> int:
    """Run the measurement that the first argument names; return its exit code."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print((__doc__ or "").strip())
        return 0
    if sys.argv[1] in ("weak", "memory"):
        # Before the first computation, when the number of devices is fixed.
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}".strip()
    commands: dict[str, Callable[[], str]] = {
        "weak": weak_scaling,
        "memory": memory_of_a_device,
        "saving": time_to_save,
        "start": time_to_start,
    }
    print(commands[resolve(sys.argv[1], commands, {}, "command")]())
    return 0


def weak_scaling() -> str:
    """Train on more and more devices, each with the same share of a growing batch."""
    lines = [
        "| devices | batch | programs compiled | collectives in a step | ms a step | images/s |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [_weak_row(num) for num in (1, 2, 4, 8)])


def _weak_row(num: int) -> str:
    config = Config(
        model=ModelOptions(widths=(512, 512, 512), norm="layer"),
        optimizer=OptimizerOptions(momentum=0.9),
        train=TrainOptions(batch_size=PER_DEVICE * num),
    )
    num_images = PER_DEVICE * num * NUM_STEPS
    setup = _make_up(config, num_images, (28, 28, 1), DeviceOptions(devices=num))
    programs, collectives, seconds = _time_steps(setup)
    batch = PER_DEVICE * num
    counts = ", ".join(f"{count} {kind}" for kind, count in collectives.items()) or "none"
    times = f"{1000 * seconds:.1f} | {batch / seconds:,.0f}"
    return f"| {num} | {batch} | {programs} | {counts} | {times} |"


def _time_steps(setup: Setup) -> tuple[int, dict[str, int], float]:
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
    for _ in range(WEAK_ROUNDS + 1):
        state = state._replace(step=state.step * 0)
        jax.block_until_ready(state)
        began = time.perf_counter()
        state = jax.block_until_ready(compiled(state, *data, indices, NUM_STEPS))
        seconds.append((time.perf_counter() - began) / NUM_STEPS)
    programs = compiled._cache_size()  # pyrefly: ignore[missing-attribute]
    collectives = {kind: count for kind, count in found.items() if count}
    return programs, collectives, statistics.median(seconds[1:])


def _make_up(
    config: Config, num: int, shape: tuple[int, int, int], devices: DeviceOptions
) -> Setup:
    """Return the setup of a run on so many random images of this shape, dog or other."""
    draw = np.random.default_rng(0)

    def split(num: int) -> Split:
        images = ImagesInMemory(draw.integers(0, 256, (num, *shape), dtype=np.uint8))
        return Split(images, np.arange(num, dtype=np.int32) % 2, tuple(map(str, range(num))))

    dataset = Dataset(("other", "dog"), split(num), split(16), split(16), (), "made up")
    return make_setup(config, dataset, devices)


def memory_of_a_device() -> str:
    """Compile the lecture's network, made wide, for eight devices; read what each of them needs."""
    lines = [
        "| optimizer | kept as | parameters and optimizer state, GiB | of the whole | "
        "peak of a step, GiB | of the whole |",
        "|---|---|---|---|---|---|",
    ]
    for optimizer in ("sgd", "adam"):
        replicated = _bytes_of(optimizer, fsdp=False)
        sharded = _bytes_of(optimizer, fsdp=True)
        for name, (state, peak) in (("replicated", replicated), ("`--fsdp`", sharded)):
            lines.append(
                f"| {optimizer} | {name} | {state / GIB:.2f} | 1/{replicated[0] / state:.1f} | "
                f"{peak / GIB:.2f} | 1/{replicated[1] / peak:.1f} |"
            )
    return "\n".join(lines)


def _bytes_of(optimizer: str, *, fsdp: bool) -> tuple[float, float]:
    """Return the bytes of a device's part of the state, and of all that a step needs there.

    Nothing is allocated: the sizes are those of the compiled program.
    """
    chosen = {
        "sgd": OptimizerOptions(momentum=0.9),
        "adam": OptimizerOptions(optimizer="adam", learning_rate=1e-3),
    }[optimizer]
    config = Config(
        model=ModelOptions(widths=WIDTHS, norm="none"),
        optimizer=chosen,
        train=TrainOptions(batch_size=BATCH),
    )
    setup = _make_up(config, 2 * BATCH, SHAPE, DeviceOptions(fsdp=fsdp))
    state = _abstract_state(setup)
    own = sum(
        leaf.dtype.itemsize * jax.numpy.prod(jax.numpy.array(leaf.sharding.shard_shape(leaf.shape)))
        for leaf in jax.tree.leaves(state)
    )
    key = seed_keys(0)[1]
    loop = make_loop(make_step_of(setup), key=key, steps_per_epoch=setup.steps_per_epoch)
    indices = make_indices(make_order_of(setup), key=key, layout=setup.layout)(0)
    split = setup.dataset.train
    data = setup.layout.place((split.in_memory(), split.labels))
    compiled = jax.jit(loop, donate_argnums=0).lower(state, *data, indices, 1).compile()
    sizes = compiled.memory_analysis()
    assert sizes is not None
    return float(own), float(sizes.argument_size_in_bytes + sizes.temp_size_in_bytes)


def _abstract_state(setup: Setup) -> jax.ShapeDtypeStruct:
    shapes = jax.eval_shape(make_init(setup.model, setup.optimizer), jax.random.key(0))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        setup.layout.state_shardings(shapes),
    )


def time_to_save() -> str:
    """Save 50 million parameters and their optimizer's state; time how long the loop stands."""
    lines = [
        "| state | MB | loop stopped by a save, s | of 30 s | the save itself, s |",
        "|---|---|---|---|---|",
    ]
    for name, copies in (("parameters, momentum", 2), ("parameters, Adam's two moments", 3)):
        stopped, saved = _time_saves(copies)
        megabytes = 4 * copies * NUM_PARAMETERS / 1e6
        worst, median = max(stopped), statistics.median(stopped)
        lines.append(
            f"| {name}, and the best parameters | {megabytes + 200:,.0f} | "
            f"{median:.2f} (worst {worst:.2f}) | {worst / INTERVAL_SECONDS:.1%} | "
            f"{statistics.median(saved):.1f} |"
        )
    return "\n".join(lines)


def _time_saves(copies: int) -> tuple[list[float], list[float]]:
    """Return how long the loop waits, and how long until everything is on disk, each round."""
    size = NUM_PARAMETERS // NUM_LAYERS
    params = {str(n): jax.random.normal(jax.random.key(n), (size,)) for n in range(NUM_LAYERS)}
    state = {"params": params} | {
        f"moment_{n}": jax.tree.map(lambda leaf, n=n: leaf * n, params) for n in range(1, copies)
    }
    change = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    stopped, saved = [], []
    with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder)) as checkpoints:
        for step in range(SAVE_ROUNDS + 1):
            best = jax.tree.map(jnp.copy, state["params"])
            jax.block_until_ready((state, best))
            began = time.perf_counter()
            checkpoints.save("best", step, {"params": best})
            checkpoints.save("latest", step, state)
            # The next step may begin when the state can be changed.
            state = jax.block_until_ready(change(state))
            stopped.append(time.perf_counter() - began)
            checkpoints.wait()
            saved.append(time.perf_counter() - began)
    return stopped[1:], saved[1:]


def time_to_start() -> str:
    """Start twice: the first compiles, the second finds its programs in the cache folder."""
    lines = [
        "| recipe | first start, s to the first step | second start | sooner |",
        "|---|---|---|---|",
    ]
    for recipe in ("deep", "conv"):
        pairs = [_first_and_second(recipe) for _ in range(START_ROUNDS)]
        firsts, seconds = ([pair[n] for pair in pairs] for n in (0, 1))
        times = [first / second for first, second in pairs]
        lines.append(
            f"| `{recipe}` | {_spread(firsts, 1)} | {_spread(seconds, 1)} | {_spread(times, 2)}x |"
        )
    return "\n".join(lines)


def _spread(values: list[float], digits: int) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def _first_and_second(recipe: str) -> tuple[float, float]:
    """Return `first_step_seconds` of two starts that share a folder of compiled programs."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first", "second"):
            out = Path(folder) / name
            command = [sys.executable, str(DEEP_DOG), recipe, "--epochs", "1", "--out", str(out)]
            command += ["--no-progress", "--compilation-cache", str(Path(folder) / "cache")]
            if recipe == "conv":
                command += ["--widths", "8", "16", "32"]  # As much to compile, less to train.
            subprocess.run(command, check=True, capture_output=True)
            found.append(json.loads((out / "summary.json").read_text())["first_step_seconds"])
    return found[0], found[1]


if __name__ == "__main__":
    command_line.run(main)
