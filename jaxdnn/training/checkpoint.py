"""Checkpoints: the latest, to resume from, and the best, to report, each under its own rule.

A checkpoint is flat, `path -> array`, with paths such as `params/layers/0/linear/kernel`, so that
it can be read without the program that wrote it. One more entry is the digest of all others: what
the disk has changed since, by a single bit, is not taken for what was saved.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import logging
import sys
from collections.abc import Callable, Iterator
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

DIGEST = "sha256"
# The latest two, so that there is one to go on from where the newest is damaged.
_KEPT = {"latest": 2, "best": 1}


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
        self._checkpointers = {kind: _open(folder / kind, num) for kind, num in _KEPT.items()}
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
        self._pending[kind] = checkpointer.save_async(step, copy | {DIGEST: _digest(copy)})

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
        """Return the `latest` or `best` as `path -> array`; checked against `like` where given.

        Where the newest is damaged, it is removed with a line on stderr, and the one before it is
        returned.
        """
        checkpointer = self._checkpointers[kind]
        steps = sorted((saved.step for saved in checkpointer.checkpoints), reverse=True)
        if not steps:
            raise InputError(f"{checkpointer.directory} holds no checkpoint; train anew")
        damages = []
        for step in steps:
            try:
                found = self._read(kind, step, like)
            except _Damaged as damage:
                damages.append(f"the {kind} checkpoint at step {step} is damaged ({damage})")
                continue
            for damaged, reason in zip(steps, damages, strict=False):
                print(f"{reason}; going on from step {step}", file=sys.stderr)
                checkpointer.delete(damaged)
            return found
        raise InputError("; ".join(damages))

    def _read(self, kind: str, step: int, like: Flat | None) -> Flat:
        with _abandoned_readers_silent():
            loaded, damage = self._load(kind, step, like)
        if damage:
            raise _Damaged(damage)
        digest = loaded.pop(DIGEST, None)
        if digest is None or not np.array_equal(np.asarray(digest), _digest(loaded)):
            raise _Damaged("its content is not what was saved")
        return loaded

    def _load(self, kind: str, step: int, like: Flat | None) -> tuple[Any, str]:
        """Return what was loaded, and why it could not be, in one line."""
        checkpointer = self._checkpointers[kind]
        try:
            saved: Any = checkpointer.metadata(step).metadata
            if like is not None:
                _check_shapes(like, {name: saved[name] for name in saved if name != DIGEST})
            return checkpointer.load(step, jax.tree.map(_abstract, saved)), ""
        except InputError:
            raise
        except Exception as error:  # TensorStore reports damage by many types, at great length.
            return None, f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"

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


@contextlib.contextmanager
def _abandoned_readers_silent() -> Iterator[None]:
    """Drop what Orbax's readers complain of when they are collected unfinished.

    One damaged file ends the loading; the readers of the others then write tracebacks to stderr.
    """
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        gc.collect()
        sys.unraisablehook = hook


class _Damaged(Exception):
    """A checkpoint cannot be read, or is not what was saved."""


def _open(folder: Path, num_kept: int) -> ocp.training.Checkpointer:
    newest: Any = ocp.training.preservation_policies.LatestN(num_kept)
    return ocp.training.Checkpointer(str(folder.absolute()), preservation_policy=newest)


def _digest(flat: Flat) -> np.ndarray:
    """Return the SHA-256 of paths, types, shapes and bits, as 32 uint8."""
    content = hashlib.sha256()
    for name in sorted(flat):
        array = np.ascontiguousarray(flat[name])
        content.update(f"{name} {array.dtype} {array.shape}".encode())
        content.update(array.reshape(-1).view(np.uint8).data)
    return np.frombuffer(content.digest(), np.uint8)


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
