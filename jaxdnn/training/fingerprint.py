"""A fingerprint of arrays that says whether they are still what was saved.

    sum over i of s_i   and   sum over i of (2 i + 1) s_i   modulo 2^32,
    s_i = scramble(bits_i xor c i)

To scramble is one-to-one, and an odd number has an inverse, so that whatever happens to a single
number changes both sums for certain; several changes cancel by chance once in 2^64. Sums of whole
numbers do not depend on their order: the devices compute them, each of its part, however an array
is cut.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def fingerprint(flat: Mapping[str, Array]) -> Array:
    """Return (array, 3) uint32: of each array in the order of names its two sums and its kind."""
    arrays = [flat[name] for name in sorted(flat)]
    kinds = [f"{name} {flat[name].dtype} {tuple(flat[name].shape)}" for name in sorted(flat)]
    codes = np.array([zlib.crc32(kind.encode()) for kind in kinds], np.uint32)
    return _sums(arrays, codes)


@jax.jit
def _sums(arrays: list[Array], codes: Array) -> Array:
    sums = jnp.stack([_sums_of(array) for array in arrays])
    return jnp.concatenate([sums, codes[:, None]], axis=1)


def _sums_of(array: Array) -> Array:
    places = _places(array.shape)
    scrambled = _scramble(_bits(array) ^ (places * jnp.uint32(0x9E3779B1)))
    weighed = scrambled * (2 * places + 1)
    return jnp.stack([jnp.sum(each, dtype=jnp.uint32) for each in (scrambled, weighed)])


def _bits(array: Array) -> Array:
    """Return the bits of every number, as uint32."""
    if array.dtype == bool or array.dtype.itemsize < 4:
        narrow = array.astype(jnp.uint8) if array.dtype == bool else array
        kind = jnp.dtype(f"uint{8 * narrow.dtype.itemsize}")
        return lax.bitcast_convert_type(narrow, kind).astype(jnp.uint32)
    return lax.bitcast_convert_type(array, jnp.uint32)


def _places(shape: tuple[int, ...]) -> Array:
    """Return the place of every number; without a reshape, which would move parts of arrays."""
    places, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        places += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return places


def _scramble(x: Array) -> Array:
    """Mix the bits of each number (the finalizer of Appleby's MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
