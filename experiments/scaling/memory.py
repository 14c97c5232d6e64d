"""What each of eight devices holds of the lecture's network made wide, and needs in a step."""

from __future__ import annotations

import jax

from jaxdnn.config import Config
from jaxdnn.options import DeviceOptions, ModelOptions, OptimizerOptions, TrainOptions
from jaxdnn.training import (
    Setup,
    make_indices,
    make_init,
    make_loop,
    make_order_of,
    make_step_of,
    seed_keys,
)

from .made_up import make_up

SHAPE, WIDTHS, BATCH = (227, 227, 1), (4096, 4096), 128
GIB = 2**30


def table() -> str:
    """Return the rows of the README."""
    lines = [
        "| optimizer | kept as | parameters and optimizer state, GiB | of the whole | "
        "peak of a step, GiB | of the whole |",
        "|---|---|---|---|---|---|",
    ]
    for optimizer in ("sgd", "adam"):
        whole = _measure(optimizer, fsdp=False)
        cut = _measure(optimizer, fsdp=True)
        for name, (state, peak) in (("whole on each", whole), ("`--fsdp`", cut)):
            lines.append(
                f"| {optimizer} | {name} | {state / GIB:.2f} | 1/{whole[0] / state:.1f} | "
                f"{peak / GIB:.2f} | 1/{whole[1] / peak:.1f} |"
            )
    return "\n".join(lines)


def _measure(optimizer: str, *, fsdp: bool) -> tuple[float, float]:
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
    setup = make_up(config, 2 * BATCH, SHAPE, DeviceOptions(fsdp=fsdp))
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
