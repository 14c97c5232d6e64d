"""Many devices: the same run, cut over them, and nothing moved that need not be."""

import dataclasses
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.config import Config
from jaxdnn.data import Dataset
from jaxdnn.errors import InputError
from jaxdnn.options import (
    AugmentOptions,
    DeviceOptions,
    ModelOptions,
    OptimizerOptions,
    TrainOptions,
)
from jaxdnn.training import (
    Setup,
    init_state,
    make_indices,
    make_loop,
    make_order_of,
    make_setup,
    make_step_of,
    make_trainer,
    seed_keys,
)
from jaxdnn.training.sharding import choose_devices, make_layout

from .runs import dataset, streamed

NUM_STEPS = 25
DATASET = dataset(160, 16)
CONFIG = Config(
    model=ModelOptions(widths=(128, 128), dropout=0.2, norm="batch"),
    optimizer=OptimizerOptions(learning_rate=0.05, momentum=0.5, l2=0.1),
    augment=AugmentOptions(noise=0.1, horizontal_flip=0.5),
    train=TrainOptions(batch_size=16, epochs=10, monitor="val/loss"),
)


def with_train(config: Config, **changes) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def with_model(config: Config, **changes) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))


def trained(config: Config, dataset: Dataset = DATASET, num_steps: int = NUM_STEPS, **devices):
    """Return the mean loss of each step, and the state after so many."""
    setup = make_setup(config, dataset, DeviceOptions(**devices))
    trainer, state, losses = make_trainer(setup), init_state(setup), []
    for step in range(num_steps):
        before = 0.0 if step % setup.steps_per_epoch == 0 else float(state.sums.loss)
        state = trainer.train(state, 1)
        losses.append(float(state.sums.loss) - before)
    return np.array(losses) / setup.batch_size, state


# Under fsdp the kernel of 128 x 128 is gathered, that of 128 x 512 stays sharded.
MIXED = with_train(
    with_model(CONFIG, widths=(128, 128, 512)), label_smoothing=0.1, mixup=0.2, ema_decay=0.9
)


@functools.cache
def mixed(devices, fsdp):
    return trained(MIXED, devices=devices, fsdp=fsdp)


@pytest.fixture(scope="module")
def on_one():
    return mixed(1, False)


@pytest.fixture(scope="module")
def in_one_piece():
    config = with_model(CONFIG, norm="layer", dropout=0.0)
    return trained(with_train(config, batch_size=32), num_steps=12, devices=1)


@pytest.mark.parametrize(
    ("devices", "fsdp"),
    [*(pytest.param(num, False, marks=pytest.mark.slow) for num in (2, 8)), (8, True)],
)
def test_the_same_seed_gives_the_same_losses_on_any_number_of_devices(on_one, devices, fsdp):
    losses, state = mixed(devices, fsdp)
    chex.assert_trees_all_close(losses, on_one[0], rtol=1e-5)
    chex.assert_trees_all_close(state.batch_stats, on_one[1].batch_stats, rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_close(state.evaluated, on_one[1].evaluated, rtol=1e-3, atol=1e-5)
    for leaf in jax.tree.leaves(state):
        assert len(leaf.sharding.device_set) == devices
    kernel = state.params["layers"][2]["linear"]["kernel"]
    assert kernel.addressable_shards[0].data.size == 128 * 512 // (devices if fsdp else 1)


def test_fsdp_leaves_each_device_an_eighth_of_what_is_large():
    _, state = mixed(8, True)
    assert state.average is not None
    kernel, momentum, average = (
        tree["layers"][1]["linear"]["kernel"]
        for tree in (state.params, state.opt_state[1].trace, state.average.sums.params)
    )
    for leaf in (kernel, momentum, average):
        chex.assert_shape(leaf, (128, 128))
        assert leaf.addressable_shards[0].data.size == 128 * 128 // 8
    # Neither a small array nor one that no axis of which eight devices can share is cut.
    assert state.params["layers"][0]["norm"]["scale"].sharding.is_fully_replicated
    layout = make_layout(jax.devices(), fsdp=True)
    assert layout.state_shardings(jnp.zeros((129, 1001))).is_fully_replicated
    assert not layout.state_shardings(jnp.zeros((51529, 64))).is_fully_replicated


@pytest.mark.parametrize(
    ("devices", "change"),
    [
        (8, streamed),
        pytest.param(1, dataclasses.replace, marks=pytest.mark.slow),
        pytest.param(1, streamed, marks=pytest.mark.slow),
        pytest.param(8, dataclasses.replace, marks=pytest.mark.slow),
    ],
)
def test_accumulating_equals_a_batch_so_many_times_larger(devices, change, in_one_piece):
    config, large = with_model(CONFIG, norm="layer", dropout=0.0), in_one_piece
    parts = with_train(config, batch_size=8, accumulate=4)
    losses, state = trained(parts, change(DATASET), num_steps=12, devices=devices)
    chex.assert_trees_all_close(losses, large[0], rtol=1e-5)
    chex.assert_trees_all_close(state.params, large[1].params, rtol=1e-3, atol=1e-5)
    assert int(state.sums.num_examples) == int(large[1].sums.num_examples)
    assert int(state.sums.num_correct) == int(large[1].sums.num_correct)


def test_bfloat16_is_only_the_arithmetic(on_one):
    exact = on_one[0][:20]
    losses, state = trained(with_train(MIXED, precision="bfloat16"), num_steps=20, devices=1)
    leaves = jax.tree.leaves((state.variables, state.sums.loss))
    chex.assert_type(leaves, jnp.float32)
    # bfloat16 has 8 bits: numbers differ by up to 2^-9, but differ they do.
    chex.assert_trees_all_close(losses[:5], exact[:5], rtol=0.02)
    assert np.abs(losses / exact - 1).max() > 1e-5


def compiled(setup: Setup) -> str:
    """Compile the training loop; return its HLO."""
    key, images = seed_keys(0)[1], setup.dataset.train.in_memory()
    loop = make_loop(make_step_of(setup), key=key, steps_per_epoch=setup.steps_per_epoch)
    indices = make_indices(make_order_of(setup), key=key, layout=setup.layout)(0)
    data = setup.layout.place((images, setup.dataset.train.labels))
    lowered = jax.jit(loop, donate_argnums=0).lower(init_state(setup), *data, indices, 1)
    text = lowered.compile().as_text()
    assert text is not None
    return text


COLLECTIVE = re.compile(
    r"= (\(.*?\)|\S+) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\("
)
ARRAY = re.compile(r"(f32|s32|u32|u8|pred|bf16)\[([\d,]*)\]")


def collectives(hlo: str) -> dict[str, list[int]]:
    """Return the kind of each collective -> how many numbers it moves in each of its arrays."""
    found: dict[str, list[int]] = {}
    for shapes, kind in COLLECTIVE.findall(hlo):
        for _, sizes in ARRAY.findall(shapes):
            count = int(np.prod([int(size) for size in sizes.split(",") if size]))
            found.setdefault(kind, []).append(count)
    return found


def sizes_of(params) -> list[int]:
    return sorted(leaf.size for leaf in jax.tree.leaves(params))


def test_a_step_moves_its_gradient_and_nothing_else():
    setup = make_setup(with_model(CONFIG, norm="layer"), DATASET, DeviceOptions())
    found = collectives(compiled(setup))
    assert found.keys() == {"all-reduce"}
    # Every gradient once; apart from them only the sums of losses and of correct answers.
    moved = sorted(found["all-reduce"])
    scalars = [size for size in moved if size == 1]
    assert len(scalars) <= 2
    assert moved[len(scalars) :] == sizes_of(init_state(setup).params)


@pytest.mark.slow
def test_batch_norm_adds_sums_over_the_batch_and_nothing_else():
    setup = make_setup(CONFIG, DATASET, DeviceOptions())
    found = collectives(compiled(setup))
    assert found.keys() == {"all-reduce"}
    params = sizes_of(init_state(setup).params)
    moved = sorted(found["all-reduce"])
    assert sum(moved) < 1.2 * sum(params)
    assert [size for size in moved if size > 128] == [size for size in params if size > 128]


def moved_under_fsdp(setup: Setup, more_than: int) -> dict[str, list[int]]:
    """Return what a step moves, without what is small."""
    hlo = compiled(setup)
    found = collectives(hlo)
    # XLA:CPU has no reduce-scatter: it sums, and every device slices its part out of the sum.
    assert found.keys() in ({"all-reduce", "all-gather"}, {"all-gather", "reduce-scatter"})
    assert re.search(r"dynamic-slice\(|reduce-scatter\(", hlo)
    return {
        kind: sorted(size for size in sizes if size > more_than) for kind, sizes in found.items()
    }


@pytest.mark.slow
def test_fsdp_gathers_a_kernel_and_scatters_its_gradient():
    setup = make_setup(with_model(CONFIG, norm="layer"), DATASET, DeviceOptions(fsdp=True))
    moved = moved_under_fsdp(setup, 512)
    assert moved == {"all-gather": [128 * 128], "all-reduce": [128 * 128]}


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["layer", "none", "batch"])
def test_fsdp_leaves_a_kernel_cut_that_is_much_larger_than_the_batch(norm):
    # 256 * 512 > 4 * 16 * (256 + 512): 16 inputs go to each layer, a gradient comes back.
    config = with_model(CONFIG, norm=norm, widths=(512, 512))
    setup = make_setup(config, dataset(64, 16, size=16), DeviceOptions(fsdp=True))
    moved = moved_under_fsdp(setup, 1024)
    assert moved == {"all-gather": [16 * 256, 16 * 512], "all-reduce": [16 * 512]}


@pytest.mark.slow
def test_fsdp_with_kernels_that_stay_cut_trains_as_one_device_does():
    config = with_train(with_model(CONFIG, widths=(512, 512)), batch_size=16)
    alone = trained(config, num_steps=5, devices=1)
    together = trained(config, num_steps=5, fsdp=True)
    chex.assert_trees_all_close(together[0], alone[0], rtol=1e-5)
    kernel = together[1].params["layers"][1]["linear"]["kernel"]
    assert kernel.addressable_shards[0].data.size == 512 * 512 // 8


def test_only_devices_that_can_share_a_batch_are_used():
    assert len(choose_devices(16)) == 8
    assert len(choose_devices(12)) == 6
    assert len(choose_devices(7)) == 7
    assert len(choose_devices(11)) == 1
    assert len(choose_devices(16, most=3)) == 2
    with pytest.raises(InputError, match=r"--devices is 9, there are 8 in 1 process; give"):
        choose_devices(16, most=9)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"devices": 0}, "--devices is 0"),
        ({"coordinator": "a:1"}, "--coordinator needs --distributed"),
        ({"distributed": True, "coordinator": "a:1"}, "without --num-processes, --process-index"),
        (
            {"distributed": True, "coordinator": "a:1", "num_processes": 2, "process_index": 2},
            "--process-index is 2 of 2",
        ),
        (
            {"distributed": True, "coordinator": "a", "num_processes": 2, "process_index": 0},
            "give HOST:PORT",
        ),
    ],
)
def test_bad_devices_get_one_line(options, expected):
    with pytest.raises(InputError, match=expected):
        DeviceOptions(**options)
