"""The run folder: where a run keeps everything about itself, as plain files.

runs/<name>/config.json        the settings
            dataset.json       classes, preprocessing, counts: enough to predict
            metrics.jsonl      one JSON object for each evaluation, and each measurement of layers
            tensorboard/       the same for TensorBoard
            checkpoints/       latest (to resume) and best (to report)
            predictions.npz    what the network said about each test image
            summary.json       the results
            run.lock           held while a process is at work here
            *.png              charts
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import math
import os
import socket
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from jaxdnn.errors import InputError


class _File:
    """Below the path of the run."""

    def __init__(self, name: str):
        self._name = name

    def __get__(self, folder: RunFolder, _: type[RunFolder] | None = None) -> Path:
        return folder.path / self._name


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths of a run, by name; what each holds is said above."""

    path: Path

    config = _File("config.json")
    dataset = _File("dataset.json")
    metrics = _File("metrics.jsonl")
    checkpoints = _File("checkpoints")
    tensorboard = _File("tensorboard")
    predictions = _File("predictions.npz")
    lock = _File("run.lock")
    summary = _File("summary.json")

    def chart(self, name: str) -> Path:
        """The chart called `name`, a PNG."""
        return self.path / f"{name}.png"


def create(path: Path) -> RunFolder:
    """Make a new run folder.

    Raises:
      InputError: it holds a run already, or something that a run would overwrite or remove, or it
        cannot be written.
    """
    folder = RunFolder(path.absolute())
    if folder.config.exists():
        raise InputError(
            f"{path} holds a run already: continue it with --resume {path}, or choose another --out"
        )
    for other in (folder.metrics, folder.checkpoints, folder.predictions, folder.summary):
        if os.path.lexists(other):
            raise InputError(
                f"{path} holds {other.name}, but no config.json of a run; expected a new folder; "
                "move it, or choose another --out"
            )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    _check_writable(path)
    return folder


def open_existing(path: Path) -> RunFolder:
    """Open the folder of a run that was started before.

    Raises:
      InputError: it holds no run, or cannot be written.
    """
    folder = RunFolder(path.absolute())
    if not folder.config.is_file():
        raise InputError(f"{path} holds no run (no config.json); name a folder that --out made")
    return folder


@contextlib.contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Keep the folder to this process while it works on the run; a kill releases it, too.

    Raises:
      InputError: another process is at work on it, or it cannot be written.
    """
    _check_writable(folder.path)
    with folder.lock.open("a+") as file:
        try:
            lock_file(file)
        except OSError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise InputError(
                f"{folder.path} is being worked on by {owner}; wait for it, stop it, or choose "
                "another folder"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def lock_file(file: IO[str]) -> None:
    """Lock an open file until it is closed.

    Raises:
      OSError: it is locked.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        windows: Any = msvcrt
        windows.locking(file.fileno(), windows.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _check_writable(path: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> InputError:
    reason = error.strerror or type(error).__name__
    return InputError(f"{path} cannot be written ({reason}); choose another folder with --out")


def free_name(parent: Path, name: str) -> Path:
    """Return `parent/name`, or `parent/name-2`, `-3`, ... where those hold runs already."""
    path, number = parent / name, 1
    while path.exists():
        number += 1
        path = parent / f"{name}-{number}"
    return path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a path to write to, then move it: a reader, or a crash, never sees half a file."""
    draft = path.with_name(path.name + ".part")
    try:
        yield draft
        sync_file(draft)  # Or a machine that stops may keep the new name without the content.
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def sync_file(path: Path) -> None:
    """Bring what has been written to a file to the disk, if there is one."""
    if path.is_file():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def write_json(path: Path, content: Any) -> None:
    """Write JSON in one piece. NaN becomes null."""
    with atomic_write(path) as draft:
        draft.write_text(json.dumps(without_nan(content), indent=2, allow_nan=False) + "\n")


def write_csv(
    path: Path,
    header: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    line_end: Literal["\n", "\r\n"] = "\r\n",
) -> None:
    """Write a table in one piece."""
    with atomic_write(path) as draft, draft.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator=line_end)
        writer.writerow(header)
        writer.writerows(rows)


def append_metrics(path: Path, metrics: dict[str, float]) -> None:
    """Add one line of metrics."""
    with path.open("a") as file:
        file.write(json.dumps(without_nan(metrics), allow_nan=False) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read all complete lines of a metrics file; a missing file has none."""
    if not path.exists():
        return []
    complete = [line for line in path.read_text().splitlines() if line.endswith("}")]
    try:
        return [json.loads(line) for line in complete]
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); remove it to go on without it") from error


def read_evaluations(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics file that evaluations wrote."""
    return [line for line in read_metrics(path) if "train/loss" in line]


def read_layer_stats(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics file that hold statistics of layers."""
    return [line for line in read_metrics(path) if "train/loss" not in line]


def keep_metrics_until(path: Path, step: int) -> None:
    """Drop the lines after `step`: a resumed run writes them again."""
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    with atomic_write(path) as draft:
        draft.write_text("".join(json.dumps(line) + "\n" for line in kept))


def without_nan(content: Any) -> Any:
    """Return nested dicts and lists with None for every float that is not finite."""
    if isinstance(content, dict):
        return {name: without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
