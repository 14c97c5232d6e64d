"""Checkpoints: the latest, to resume from, and the best, to report, each under its own rule.

A checkpoint is flat, `path -> array`, with paths such as `params/layers/0/linear/kernel`, so that
it can be read without the program that wrote it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from orbax.checkpoint import v1 as ocp

from jaxdnn.errors import InputError

# Orbax reports every save at the level of a warning.
logging.getLogger("absl").setLevel(logging.ERROR)

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


class Checkpoints:
    """The checkpoints of one run, written in the background. A context manager."""

    def __init__(self, folder: Path):
        self._checkpointers = {kind: _open(folder / kind) for kind in ("latest", "best")}
        self._pending: dict[str, Any] = {}

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(self, kind: str, step: int, tree: Any) -> None:
        """Start to save a tree of arrays as the `latest` or `best`, replacing the one before.

        Nothing happens where that step is saved already.
        """
        self._wait(kind)
        if self.step(kind) == step:
            return
        checkpointer = self._checkpointers[kind]
        # A copy, because the training step reuses (donates) the state's memory.
        copy = jax.tree.map(jnp.copy, flatten(tree))
        self._pending[kind] = checkpointer.save_async(step, copy)

    def step(self, kind: str) -> int | None:
        """Return the step of the `latest` or `best` checkpoint, None if there is none."""
        latest = self._checkpointers[kind].latest
        return None if latest is None else latest.step

    def restore(self, kind: str, like: Any) -> Any:
        """Return the `latest` or `best` tree.

        Args:
          kind: which.
          like: a tree of the structure and shapes expected; arrays or their abstract shapes.

        Raises:
          InputError: there is none, it cannot be read, or its shapes differ.
        """
        return unflatten(self.restore_flat(kind, flatten(like)), like)

    def restore_flat(self, kind: str, like: Flat | None = None) -> Flat:
        """Return the `latest` or `best` as `path -> array`; checked against `like` where given."""
        step = self.step(kind)
        if step is None:
            raise InputError(
                f"{self._checkpointers[kind].directory} holds no checkpoint; train anew"
            )
        try:
            saved: Any = self._checkpointers[kind].metadata(step).metadata
            if like is not None:
                _check_shapes(like, saved)
            loaded: Any = self._checkpointers[kind].load(step, jax.tree.map(_abstract, saved))
            return loaded
        except InputError:
            raise
        except Exception as error:  # TensorStore reports damage by many types, at great length.
            reason = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            raise InputError(
                f"the {kind} checkpoint at step {step} is damaged ({reason})"
            ) from error

    def close(self) -> None:
        """Wait for what is being written."""
        for kind, checkpointer in self._checkpointers.items():
            self._wait(kind)
            checkpointer.close()

    def _wait(self, kind: str) -> None:
        pending = self._pending.pop(kind, None)
        if pending is not None:
            pending.result()


def read_best(folder: Path) -> dict[str, np.ndarray]:
    """Return `path -> array` of the best checkpoint below a run's `checkpoints` folder.

    Raises:
      InputError: there is none, or it is damaged.
    """
    if not (folder / "best").is_dir():
        raise InputError(f"{folder} holds no best checkpoint: the run has not been evaluated yet")
    with Checkpoints(folder) as checkpoints:
        return jax.tree.map(np.asarray, checkpoints.restore_flat("best"))


def _open(folder: Path) -> ocp.training.Checkpointer:
    newest_only: Any = ocp.training.preservation_policies.LatestN(1)
    return ocp.training.Checkpointer(str(folder.absolute()), preservation_policy=newest_only)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check_shapes(expected: Flat, saved: dict[str, Any]) -> None:
    for name in expected.keys() | saved.keys():
        ours = tuple(expected[name].shape) if name in expected else "nothing"
        theirs = tuple(saved[name].shape) if name in saved else "nothing"
        if ours != theirs:
            raise InputError(
                f"checkpoint and network differ at {name}: {theirs} saved, {ours} expected; "
                "resume with the settings that the run was started with"
            )


all_finite: Callable[[Any], Array] = jax.jit(
    lambda tree: jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
)
