"""Trees of arrays as `path -> array`, and what is done to all of their arrays at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Flat = dict[str, Array]


def flatten(tree: Any) -> Flat:
    """Return `path -> leaf`, with paths joined by `/`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def unflatten(flat: Flat, like: Any) -> Any:
    """Return a tree of the structure of `like` with the leaves of `flat`."""
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in flatten(like)])


tree_copy: Callable[[Any], Any] = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
"""Copies a tree of arrays, all in one program."""

all_finite: Callable[[Any], Array] = jax.jit(
    lambda tree: jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
)
