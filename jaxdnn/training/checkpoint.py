"""Checkpoints: the latest, to resume from, and the best, to report, each under its own rule.

A checkpoint is flat, `path -> array`, with paths such as `params/layers/0/linear/kernel`, so that
it can be read without the program that wrote it. One more entry is the fingerprint of all others:
what the disk has changed since, by a single bit, is not taken for what was saved.

At any moment at most one latest and one best are being written, and two of each are kept: whenever
the machine stops, a latest and the best that it knows of are undamaged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import sys
import threading
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from jaxdnn.errors import InputError
from jaxdnn.processes import any_process
from jaxdnn.stored import SEAL, seal

KINDS = ("latest", "best")
FINGERPRINT = "fingerprint"
_NUM_KEPT = 2
# Orbax's threads wait for each other, and for the directories if those are made in the background,
# by the wall clock: one that jumps ends the save, or stops it for as long as the jump was.
_ASYNC = ocp.options.AsyncOptions(timeout_secs=10**9, create_directories_asynchronously=False)
_DISK_ERRORS = (
    "No space left on device",
    "File too large",
    "Read-only file system",
    "Permission denied",
    "Disk quota exceeded",
    "Input/output error",
)

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


class Damaged(Exception):
    """A checkpoint is missing, cannot be read, or is not what was saved."""


class Mismatch(Damaged):
    """A checkpoint is of another network."""


class Checkpoints:
    """The checkpoints of one run, written in the background by all its processes. A context.

    Args:
      folder: holds `latest` and `best`.
      about: returns what is kept with every checkpoint, as JSON: what the run is by then.
      tidy: remove what a killed run left half-written; only where no other can be writing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        about: Callable[[], Mapping[str, Any]] = dict,
        tidy: bool = False,
    ):
        # Orbax reports every save as a warning, and what `wait` explains as an error; asyncio tells
        # of each of its readers that failed when the first had.
        self._levels = {name: logging.getLogger(name).level for name in ("absl", "asyncio")}
        for name in self._levels:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._about = about
        self._checkpointers = {kind: _open(folder / kind, tidy) for kind in KINDS}
        self._pending: list[Any] = []
        self._excepthook, threading.excepthook = threading.excepthook, self._on_exception

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            for checkpointer in self._checkpointers.values():
                with contextlib.suppress(Exception):  # It raises again what `wait` has explained.
                    checkpointer.close()
            threading.excepthook = self._excepthook
            for name, level in self._levels.items():
                logging.getLogger(name).setLevel(level)

    def save(self, kind: str, step: int, tree: Any) -> None:
        """Start to save a tree of arrays as the `latest` or `best`.

        Nothing happens where that step is saved already.

        Raises:
          InputError: the disk is full, or cannot be written; perhaps by what was begun before.
        """
        if any(pending == kind for pending, *_ in self._pending):
            self.wait()
        if self.step(kind) == step:
            return
        # A copy, because the training step reuses (donates) the state's memory.
        copy = tree_copy(flatten(tree))
        with self._explained(kind, step), ocp.Context(async_options=_ASYNC):
            saving = self._checkpointers[kind].save_async(
                step, copy | {FINGERPRINT: fingerprint(copy)}, custom_metadata=seal(self._about())
            )
            self._pending.append((kind, step, saving))

    def steps(self, kind: str) -> list[int]:
        """Return the steps of the `latest` or `best` checkpoints, the newest first."""
        return sorted((saved.step for saved in self._checkpointers[kind].checkpoints), reverse=True)

    def step(self, kind: str) -> int | None:
        """Return the step of the newest `latest` or `best` checkpoint, None if there is none."""
        return next(iter(self.steps(kind)), None)

    def restore(self, kind: str, like: Any = None) -> Any:
        """Return the newest `latest` or `best`, see `read`, once it has been written.

        Raises:
          InputError: there is none, it cannot be read, or its shapes differ.
        """
        self.wait()
        step = self.step(kind)
        if step is None:
            where = self._checkpointers[kind].directory
            raise InputError(f"{where} holds no checkpoint; train again")
        try:
            return self.read(kind, step, like)
        except Mismatch as mismatch:
            raise InputError(
                f"{mismatch}; resume with the settings that the run was started with"
            ) from mismatch
        except Damaged as damage:
            raise InputError(
                f"the {kind} checkpoint at step {step} is damaged ({damage}); train again"
            ) from damage

    def read(self, kind: str, step: int, like: Any = None) -> Any:
        """Return a checkpoint as a tree of the structure, shapes and shardings of `like`.

        Without `like`, whatever it holds as `path -> array`.

        Raises:
          Damaged: in the eyes of any process.
        """
        found, damage = {}, None
        try:
            found = self._read(kind, step, None if like is None else flatten(like))
        except Damaged as error:
            damage = error
        if any_process(damage is not None)[0]:
            raise damage or Damaged("another process cannot read it")
        return found if like is None else unflatten(found, like)

    def _read(self, kind: str, step: int, like: Flat | None) -> Flat:
        if step not in self.steps(kind):
            raise Damaged("it is missing")
        with _abandoned_readers_silent():
            loaded, damage = self._load(kind, step, like)
        if damage:
            raise Damaged(damage)
        kept = loaded.pop(FINGERPRINT, None)
        if kept is None or not np.array_equal(np.asarray(kept), np.asarray(fingerprint(loaded))):
            raise Damaged("its content is not what was saved")
        self.about(kind, step)
        return loaded

    def _load(self, kind: str, step: int, like: Flat | None) -> tuple[Any, str]:
        """Return what was loaded, and why it could not be, in one line."""
        checkpointer = self._checkpointers[kind]
        try:
            saved: Any = checkpointer.metadata(step).metadata
            if like is not None:
                _check_shapes(like, {name: saved[name] for name in saved if name != FINGERPRINT})
            wanted: Any = {name: _abstract(saved[name], (like or {}).get(name)) for name in saved}
            return checkpointer.load(step, wanted), ""
        except Damaged:
            raise
        except Exception as error:  # TensorStore reports damage by many types, at great length.
            return None, _first_line(error)

    def about(self, kind: str, step: int) -> dict[str, Any]:
        """Return what was said about the run when this checkpoint was saved.

        Raises:
          Damaged: it cannot be read, or is not what was said.
        """
        try:
            about: Any = self._checkpointers[kind].metadata(step).custom_metadata or {}
        except Exception as error:  # As many types as in `_load`.
            raise Damaged(_first_line(error)) from error
        if about.get(SEAL) not in (None, seal(about)[SEAL]):
            raise Damaged("what it says of the run is not what was saved")
        return about

    def about_newest(self, kind: str) -> dict[str, Any]:
        """Return what the newest undamaged checkpoint says of the run; nothing if there is none."""
        for step in self.steps(kind):
            with contextlib.suppress(Damaged):
                return self.about(kind, step)
        return {}

    def forget_after(self, kind: str, step: int) -> None:
        """Remove the checkpoints after this step."""
        for later in self.steps(kind):
            if later > step:
                self._checkpointers[kind].delete(later)

    def wait(self) -> None:
        """Wait for what is being written.

        Raises:
          InputError: it could not be.
        """
        pending, self._pending = self._pending, []
        for kind, step, saving in pending:
            with self._explained(kind, step):
                saving.result()

    def _on_exception(self, raised: threading.ExceptHookArgs) -> None:
        """Keep Orbax's threads from printing tracebacks of what `wait` explains."""
        frames = traceback.extract_tb(raised.exc_traceback)
        if not any("orbax" in frame.filename for frame in frames):
            self._excepthook(raised)

    @contextlib.contextmanager
    def _explained(self, kind: str, step: int) -> Iterator[None]:
        """Turn whatever goes wrong in a save into an InputError of one line."""
        try:
            yield
        except Exception as error:
            kept = [other for other in self.steps("latest") if other != step]
            mend = "make room on the disk, or mend its permissions, and "
            raise InputError(
                f"the {kind} checkpoint of step {step} cannot be written ({_reason(error)}); "
                f"{f'that of step {kept[0]}' if kept else 'nothing'} is kept: "
                f"{'' if isinstance(error, TimeoutError) else mend}go on with --resume"
            ) from error


def read_best(folder: Path) -> dict[str, np.ndarray]:
    """Return `path -> array` of the best checkpoint below a run's `checkpoints` folder.

    Raises:
      InputError: there is none, or it is damaged.
    """
    if not (folder / "best").is_dir():
        raise InputError(f"{folder} holds no best checkpoint: the run has not been evaluated yet")
    with Checkpoints(folder) as checkpoints:
        return jax.tree.map(np.asarray, checkpoints.restore("best"))


def _open(folder: Path, tidy: bool) -> ocp.training.Checkpointer:
    newest: Any = ocp.training.preservation_policies.LatestN(_NUM_KEPT)
    return ocp.training.Checkpointer(
        str(folder.absolute()),
        preservation_policy=newest,
        cleanup_tmp_directories=tidy,
    )


def _abstract(saved: Any, like: Any) -> jax.ShapeDtypeStruct:
    """Describe an array to be read to where `like` is, or to a device of this process."""
    sharding = getattr(like, "sharding", None)
    if sharding is None:
        sharding = SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(saved.shape, saved.dtype, sharding=sharding)


def _check_shapes(expected: Flat, saved: dict[str, Any]) -> None:
    for name in expected.keys() | saved.keys():
        ours = tuple(expected[name].shape) if name in expected else "nothing"
        theirs = tuple(saved[name].shape) if name in saved else "nothing"
        if ours != theirs:
            raise Mismatch(
                f"checkpoint and network differ at {name}: {theirs} saved, {ours} expected"
            )


def _reason(error: Exception) -> str:
    """Return what the system said, from among what TensorStore and Orbax said about it."""
    if isinstance(error, TimeoutError):  # Orbax waits by the wall clock.
        return "it took too long, or the clock jumped"
    said = next((known for known in _DISK_ERRORS if known in str(error)), "")
    return said or _first_line(error)


def _first_line(error: Exception) -> str:
    """Return the type and the beginning of what an exception says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"


@contextlib.contextmanager
def _abandoned_readers_silent() -> Iterator[None]:
    """Drop what Orbax's readers complain of when they are collected unfinished, or finish late.

    One damaged file ends the loading; the readers of the others then write tracebacks to stderr. On
    a slow machine some still read when the loop that waits for them has long been closed: of those
    nothing is said for the rest of the process.
    """
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        gc.collect()
        is_set = isinstance(hook, _LateReadersDropped)
        sys.unraisablehook = hook if is_set else _LateReadersDropped(hook)


@dataclasses.dataclass(frozen=True)
class _LateReadersDropped:
    """Passes on to `hook` whatever is raised where nobody can catch it, but for late readers."""

    hook: Callable[[Any], Any]

    def __call__(self, raised: Any) -> None:
        if str(raised.exc_value) != "Event loop is closed":
            self.hook(raised)


def fingerprint(flat: Mapping[str, Array]) -> Array:
    """Return what says whether arrays are still what was saved.

        sum over i of s_i   and   sum over i of (2 i + 1) s_i   modulo 2^32,
        s_i = scramble(bits_i xor c i)

    To scramble is one-to-one, and an odd number has an inverse, so that whatever happens to a
    single number changes both sums for certain; several changes cancel by chance once in 2^64. Sums
    of whole numbers do not depend on their order: the devices compute them, each of its part,
    however an array is sharded.

    Returns:
      (array, 3) uint32: of each array in the order of names its two sums and its kind.
    """
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
