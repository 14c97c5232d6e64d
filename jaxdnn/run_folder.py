"""The run folder: where a run keeps everything about itself, as plain files.

runs/<name>/config.json        the settings
            dataset.json       classes, preprocessing, counts: enough to predict
            metrics.jsonl      one JSON object for each evaluation, and each measurement of layers
            tensorboard/       the same for TensorBoard
            checkpoints/       latest (to resume) and best (to report)
            predictions.npz    what the network said about each test image
            summary.json       the results
            card.md            the same for people: what it is for, and what it is not
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

import numpy as np
from typing_extensions import TypedDict

from jaxdnn.errors import InputError
from jaxdnn.stored import misfit, parse_json, read_arrays, read_json


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
    card = _File("card.md")

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
    with atomic_write(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator=line_end)
        writer.writerow(header)
        writer.writerows(rows)


class DatasetAbout(TypedDict):
    """What dataset.json holds.

    Attributes:
      origin: where the images came from.
      class_names: by label.
      height: in pixels.
      width: in pixels.
      channels: 1 or 3.
      mean: of the training images, by channel, in [0, 1].
      std: of the same.
      counts: split -> class -> number of images.
      skipped: name and reason of each image that was left out.
      backbone: digest of the weights that the network stands on, kept elsewhere; None for none.
    """

    origin: str
    class_names: list[str]
    height: int
    width: int
    channels: Literal[1, 3]
    mean: list[float]
    std: list[float]
    counts: dict[str, dict[str, int]]
    skipped: list[list[str]]
    backbone: str | None


_SPLITS = ("train", "val", "test")
_SCORES = ("accuracy", "balanced_accuracy", "auc", "loss")
SUMMARY = {
    **{f"{split}/{score}": float | None for split in _SPLITS for score in _SCORES},
    "majority_fraction": float | None,
    "confusion": list[list[int]] | None,
    "most_confused": list[list[int]],
    "class_names": list[str],
    "best_step": int | None,
    "steps": int,
    "num_parameters": int,
    "images_per_second": float | None,
    "wall_seconds": float | None,
    "versions": dict[str, str],
    "recalls": list[float | None],
    "temperature": float | None,
    "shift": list[float],
    "classes_alike": bool,
    "test/ece": float | None,
    "test/ece_calibrated": float | None,
}
"""What summary.json holds at least."""


def read_dataset(folder: RunFolder) -> DatasetAbout:
    """Read dataset.json.

    Raises:
      InputError: it is missing or damaged.
    """
    remedy = f"remove it, and --resume {folder.path} writes it again from the same images"
    about = read_json(folder.dataset, DatasetAbout, remedy=remedy)
    lengths = {len(about["mean"]), len(about["std"])}
    if lengths != {about["channels"]} or min(about["std"]) <= 0 or len(about["class_names"]) < 2:
        raise InputError(
            f"{folder.dataset} is damaged (mean {about['mean']}, std {about['std']}, "
            f"{len(about['class_names'])} classes; expected for each of {about['channels']} "
            f"channels a mean and a std above 0, and two classes or more); {remedy}"
        )
    return about


def read_summary(folder: RunFolder) -> dict[str, Any]:
    """Read summary.json.

    Raises:
      InputError: it is missing or damaged.
    """
    remedy = f"remove it, and --resume {folder.path} measures and writes it again"
    return read_json(folder.summary, SUMMARY, remedy=remedy)


def append_metrics(path: Path, metrics: dict[str, float]) -> None:
    """Add one line of metrics."""
    with path.open("a") as file:
        file.write(json.dumps(without_nan(metrics), allow_nan=False) + "\n")


def read_predictions(folder: RunFolder) -> dict[str, np.ndarray]:
    """Read predictions.npz.

    Raises:
      InputError: it is missing, or not what the run wrote.
    """
    remedy = f"remove it, and --resume {folder.path} writes it again"
    names = ("names", "labels", "logits", "probabilities", "mistakes", "mistake_images")
    names += ("explained", "explained_images", "attributions")
    return read_arrays(folder.predictions, names, remedy=remedy)


class _Line(TypedDict):
    step: int
    epoch: float


_EVALUATED = ("train/loss", "train/accuracy", "val/loss", "learning_rate")
_EVALUATED += ("val/accuracy", "val/balanced_accuracy")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read all complete lines of a metrics file; a missing file has none.

    Raises:
      InputError: it cannot be read, or a line is damaged.
    """
    if not path.exists():
        return []
    lines = []
    try:
        for line in path.read_bytes().splitlines():
            if line.endswith(b"}"):
                lines.append(parse_json(line, _Line))
    except ValueError as error:
        raise InputError(
            f"{path} is damaged (after {len(lines)} good lines: {error}); remove the next line to "
            "go on without it"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); mend it") from error
    return lines


def read_evaluations(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics file that evaluations wrote."""
    lines = [line for line in read_metrics(path) if "train/loss" in line]
    return _alike(path, lines, _EVALUATED)


def read_layer_stats(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics file that hold statistics of layers."""
    lines = [line for line in read_metrics(path) if "train/loss" not in line]
    return _alike(path, lines, lines[0] if lines else ())


def _alike(path: Path, lines: list[dict[str, Any]], names: Iterable[str]) -> list[dict[str, Any]]:
    """Return the lines, of which each must hold numbers, or null, under these names.

    Raises:
      InputError: one does not.
    """
    for line in lines:
        for name in names:
            if misfit(line.get(name, "nothing"), float | None):
                raise InputError(
                    f"{path} is damaged (step {line['step']}: {name} is "
                    f"{line.get(name, 'missing')}, expected a number); remove the line to go on "
                    "without it"
                )
    return lines


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
