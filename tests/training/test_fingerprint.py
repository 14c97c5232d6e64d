"""The fingerprint of arrays: every change is seen, and how they lie on the devices is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxdnn.training.checkpoint import fingerprint
from jaxdnn.training.sharding import make_layout

RNG = np.random.default_rng(0)


def arrays():
    return {
        "kernel": jnp.asarray(RNG.normal(size=(16, 8)), jnp.float32),
        "half": jnp.asarray(RNG.normal(size=(24,)), jnp.bfloat16),
        "count": jnp.int32(7),
        "flags": jnp.asarray(RNG.integers(0, 2, 16), bool),
    }


def seen(flat):
    return np.asarray(fingerprint(flat))


def test_any_single_bit_is_seen():
    flat = arrays()
    before = seen(flat)
    assert before.shape == (4, 3)
    bits = np.asarray(flat["kernel"]).view(np.uint32)
    for _ in range(64):
        place, bit = RNG.integers(0, bits.size), RNG.integers(0, 32)
        changed = bits.copy()
        changed.reshape(-1)[place] ^= np.uint32(1) << np.uint32(bit)
        after = seen(flat | {"kernel": jnp.asarray(changed.view(np.float32))})
        # In both sums of the one array, and nowhere else.
        rows = sorted(flat).index("kernel")
        assert (after[rows, :2] != before[rows, :2]).all()
        np.testing.assert_array_equal(np.delete(after, rows, 0), np.delete(before, rows, 0))


@pytest.mark.parametrize("name", ["half", "count", "flags"])
def test_every_kind_of_number_is_looked_at(name):
    flat = arrays()
    changed = flat[name].reshape(-1)
    changed = changed.at[-1].set(~changed[-1] if name == "flags" else changed[-1] * 2)
    after = seen(flat | {name: changed.reshape(flat[name].shape)})
    assert (after != seen(flat)).any()


def test_what_an_array_is_called_and_where_its_numbers_stand_counts():
    flat = {"a": jnp.arange(12.0).reshape(3, 4), "b": jnp.zeros(2)}
    before = seen(flat)
    for changed in (
        {"a": flat["a"].reshape(4, 3), "b": flat["b"]},
        {"c": flat["a"], "b": flat["b"]},
        {"a": flat["a"][::-1], "b": flat["b"]},
        {"a": flat["a"], "b": jnp.zeros(2, jnp.int32)},
        {"a": flat["a"], "b": -flat["b"]},
    ):
        assert (seen(changed) != before).any()


def test_it_does_not_depend_on_the_devices():
    flat, layout = arrays(), make_layout(jax.devices())
    whole = seen(flat)
    for spec in (PartitionSpec("batch"), PartitionSpec(None, "batch")):
        cut = jax.device_put(flat["kernel"], NamedSharding(layout.mesh, spec))
        np.testing.assert_array_equal(seen(flat | {"kernel": cut}), whole)
