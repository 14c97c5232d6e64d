"""Checkpoints: bit for bit, one of each kind, and one clear line for what cannot be read."""

import asyncio
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxdnn.errors import InputError
from jaxdnn.layers import BlockOptions
from jaxdnn.models import make_mlp
from jaxdnn.training import Checkpoints, make_init
from jaxdnn.training.checkpoint import all_finite, fingerprint, flatten, read_best, unflatten
from jaxdnn.training.sharding import make_layout

from .runs import data_file, flip_a_bit, truncate


def train_state(width=4, seed=0):
    model = make_mlp((3,), 2, widths=(width,), options=BlockOptions(norm="batch"))
    return make_init(model, optax.adam(0.1))(jax.random.key(seed))


def test_flat_paths_name_every_leaf_and_lead_back():
    state = train_state()
    flat = flatten(state)
    assert "params/layers/0/linear/kernel" in flat
    assert "batch_stats/layers/0/norm/mean" in flat
    assert len(flat) == len(jax.tree.leaves(state))
    backwards = dict(reversed(flat.items()))
    chex.assert_trees_all_equal(unflatten(backwards, state), state, strict=True)


def test_a_state_comes_back_bit_for_bit_in_another_process_s_place(tmp_path):
    state = train_state()
    odd = jnp.array([jnp.nan, jnp.inf, -0.0, 1e-45, jnp.pi], jnp.float32)
    tree = {"state": state, "odd": odd, "flag": jnp.bool_(True), "step": jnp.int32(2**31 - 1)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save("latest", 7, tree)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.step("latest") == 7
        assert checkpoints.step("best") is None
        like = jax.eval_shape(lambda: tree)
        restored = checkpoints.restore("latest", like)
    assert jax.tree.structure(restored) == jax.tree.structure(tree)
    chex.assert_trees_all_equal(restored, tree, strict=True)
    chex.assert_trees_all_equal(jnp.signbit(restored["odd"]), jnp.signbit(odd))


def test_each_kind_keeps_its_newest(tmp_path):
    trees = [{"w": jnp.full(3, float(step))} for step in range(6)]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save("best", 1, trees[1])
        for step in (2, 3, 5):
            checkpoints.save("latest", step, trees[step])
        checkpoints.save("latest", 5, trees[0])  # saved already: nothing happens
    for kind, step, num_kept in (("latest", 5, 2), ("best", 1, 1)):
        assert len(list((tmp_path / kind).iterdir())) == num_kept
        with Checkpoints(tmp_path) as checkpoints:
            assert checkpoints.step(kind) == step
            chex.assert_trees_all_equal(
                checkpoints.restore(kind, trees[0]), trees[step], strict=True
            )


def test_a_state_may_be_donated_right_after_saving(tmp_path):
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    tree = {"w": jnp.arange(200_000.0)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save("latest", 1, tree)
        overwritten = overwrite(tree["w"]).block_until_ready()
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore("latest", {"w": overwritten})
    chex.assert_trees_all_equal(restored, {"w": jnp.arange(200_000.0)}, strict=True)


def test_what_differs_is_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save("latest", 1, {"a": {"kernel": jnp.ones((2, 3))}, "bias": jnp.ones(3)})
    others = {
        r"a/kernel: \(2, 3\) saved, \(2, 4\) expected": {"a": {"kernel": (2, 4)}, "bias": (3,)},
        r"bias: \(3,\) saved, nothing expected": {"a": {"kernel": (2, 3)}},
        r"c: nothing saved, \(5,\) expected": {"a": {"kernel": (2, 3)}, "bias": (3,), "c": (5,)},
    }
    with Checkpoints(tmp_path) as checkpoints:
        for expected, shapes in others.items():
            like = jax.tree.map(jnp.zeros, shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))
            with pytest.raises(InputError, match=expected) as caught:
                checkpoints.restore("latest", like)
            assert "\n" not in str(caught.value)


def test_without_a_checkpoint_there_is_nothing_to_restore(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError, match="no checkpoint"):
        checkpoints.restore("best", {"w": jnp.ones(2)})
    with pytest.raises(InputError, match="holds no best checkpoint"):
        read_best(tmp_path / "elsewhere")


def test_read_best_needs_no_structure(tmp_path):
    state = train_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save("best", 3, {"params": state.params})
    best = read_best(tmp_path)
    assert all(isinstance(leaf, np.ndarray) for leaf in best.values())
    chex.assert_trees_all_equal(best, flatten({"params": state.params}), strict=True)


def random_tree(seed):
    return {"w": jnp.asarray(np.random.default_rng(seed).normal(size=(50, 40)), jnp.float32)}


def test_a_flipped_bit_is_never_taken_for_what_was_saved(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save("best", 4, random_tree(4))
    path = data_file(tmp_path / "best", 4)
    path.write_bytes(flip_a_bit(path.read_bytes()))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError, match="step 4 is damaged"):
        checkpoints.restore("best", random_tree(0))


def empty(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [truncate, empty])
@pytest.mark.parametrize("part", ["data", "metadata"])
def test_damaged_files_give_one_line(tmp_path, damage, part):
    tree = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(50, 40)), jnp.float32)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save("latest", 1, tree)
    files = [path for path in (tmp_path / "latest").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    chosen = [largest] if part == "data" else [path for path in files if path != largest]
    for path in chosen:
        path.write_bytes(damage(path.read_bytes()))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError) as caught:
        checkpoints.restore("latest", tree)
    assert "\n" not in str(caught.value)
    assert "checkpoint" in str(caught.value)


SAVE_WHILE_THE_CLOCK_JUMPS = """
import random, sys, time
from pathlib import Path
import jax.numpy as jnp
from jaxdnn.errors import InputError
from jaxdnn.training import Checkpoints

now, drawn = time.time, random.Random(1)
with Checkpoints(Path(sys.argv[1])) as checkpoints:
    time.time = lambda: now() + drawn.choice([-36e3, 0.0, 0.0, 36e3])
    for step in range(30):
        try:
            checkpoints.save("latest", step, {"a": jnp.full(100, float(step)), "b": jnp.ones(9)})
            checkpoints.wait()
            print(step)
        except InputError as error:
            print(error)
    time.time = now
"""


@pytest.mark.slow
def test_a_clock_that_jumps_to_and_fro_stops_no_save_for_good(tmp_path):
    """It is written, or one line says that it is not; what counts as written can be read."""
    command = [sys.executable, "-c", SAVE_WHILE_THE_CLOCK_JUMPS, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True).stdout
    lines = said.splitlines()
    assert len(lines) == 30
    assert all(line.isdigit() or "or the clock jumped" in line for line in lines)
    written = [int(line) for line in lines if line.isdigit()]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.step("latest") == written[-1]
        assert checkpoints.restore("latest")["a"][0] == written[-1]


class Unheard:
    """Raises where nobody can catch it."""

    def __init__(self, act):
        self.act = act

    def __del__(self):
        self.act()


def test_of_a_reader_that_comes_late_to_a_closed_loop_nothing_is_said(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: told.append(str(raised.exc_value)))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save("best", 4, random_tree(4))
    path = data_file(tmp_path / "best", 4)
    path.write_bytes(truncate(path.read_bytes()))
    for _ in range(2):
        with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError, match="is damaged"):
            checkpoints.restore("best", random_tree(0))
    closed = asyncio.new_event_loop()
    closed.close()
    Unheard(lambda: closed.call_soon_threadsafe(int))
    Unheard(lambda: int("seven"))
    assert len(told) == 1
    assert "seven" in told[0]


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_one_bad_number_among_many_is_found(bad):
    # More than 4096: XLA:CPU loses NaN in larger maximum reductions.
    good = {"a": jnp.ones(5000), "b": jnp.ones((3, 2)), "count": jnp.int32(1)}
    assert bool(all_finite(good))
    for name, index in (("a", 4321), ("b", (2, 1))):
        assert not bool(all_finite({**good, name: good[name].at[index].set(bad)}))


RNG = np.random.default_rng(0)


def arrays():
    return {
        "kernel": jnp.asarray(RNG.normal(size=(16, 8)), jnp.float32),
        "half": jnp.asarray(RNG.normal(size=(24,)), jnp.bfloat16),
        "count": jnp.int32(7),
        "flags": jnp.asarray(RNG.integers(0, 2, 16), bool),
    }


def checksums(flat):
    return np.asarray(fingerprint(flat))


def test_any_single_bit_is_seen():
    flat = arrays()
    before = checksums(flat)
    assert before.shape == (4, 3)
    bits = np.asarray(flat["kernel"]).view(np.uint32)
    for _ in range(64):
        place, bit = RNG.integers(0, bits.size), RNG.integers(0, 32)
        changed = bits.copy()
        changed.reshape(-1)[place] ^= np.uint32(1) << np.uint32(bit)
        after = checksums(flat | {"kernel": jnp.asarray(changed.view(np.float32))})
        # In both sums of the one array, and nowhere else.
        rows = sorted(flat).index("kernel")
        assert (after[rows, :2] != before[rows, :2]).all()
        chex.assert_trees_all_equal(np.delete(after, rows, 0), np.delete(before, rows, 0))


@pytest.mark.parametrize("name", ["half", "count", "flags"])
def test_every_kind_of_number_is_looked_at(name):
    flat = arrays()
    changed = flat[name].reshape(-1)
    changed = changed.at[-1].set(~changed[-1] if name == "flags" else changed[-1] * 2)
    after = checksums(flat | {name: changed.reshape(flat[name].shape)})
    assert (after != checksums(flat)).any()


def test_what_an_array_is_called_and_where_its_numbers_stand_counts():
    flat = {"a": jnp.arange(12.0).reshape(3, 4), "b": jnp.zeros(2)}
    before = checksums(flat)
    for changed in (
        {"a": flat["a"].reshape(4, 3), "b": flat["b"]},
        {"c": flat["a"], "b": flat["b"]},
        {"a": flat["a"][::-1], "b": flat["b"]},
        {"a": flat["a"], "b": jnp.zeros(2, jnp.int32)},
        {"a": flat["a"], "b": -flat["b"]},
    ):
        assert (checksums(changed) != before).any()


def test_it_does_not_depend_on_the_devices():
    flat, layout = arrays(), make_layout(jax.devices())
    whole = checksums(flat)
    for spec in (PartitionSpec("batch"), PartitionSpec(None, "batch")):
        cut = jax.device_put(flat["kernel"], NamedSharding(layout.mesh, spec))
        chex.assert_trees_all_equal(checksums(flat | {"kernel": cut}), whole)
