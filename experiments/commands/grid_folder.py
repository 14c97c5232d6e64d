"""The folder of a command that trains or measures many networks: begun, stopped, gone on with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from jaxdnn import command_line
from jaxdnn.errors import InputError, Interrupted
from jaxdnn.processes import is_first
from jaxdnn.progress import progress_bar
from jaxdnn.run_folder import write_json
from jaxdnn.stored import read_json

# What a folder can hold -> the file that keeps its settings.
SETTINGS = {"sweep": "grid.json", "race": "race.json"}


def deciding(options: Any) -> dict[str, Any]:
    """Return what decides the numbers, as JSON holds it: not where they go, nor who computes."""
    kept = dataclasses.asdict(options)
    for name in ("out", "progress", "processes"):
        kept.pop(name, None)
    return json.loads(json.dumps(kept))


def open_grid_folder(out: Path, kind: str, settings: dict[str, Any]) -> Path:
    """Make the folder, or open it again where it holds part of the same; return that of its chunks.

    Args:
      out: what the user named; made where it is missing.
      kind: a key of `SETTINGS`.
      settings: what decides the numbers.

    Raises:
      InputError: it holds another of its kind, or cannot be written.
    """
    path, chunks = out / SETTINGS[kind], chunks_of(out)
    remedy = "remove it if the settings are the same as then, or choose another folder"
    if path.exists() and read_json(path, dict[str, Any], remedy=remedy) != settings:
        raise InputError(f"--out {out} holds another {kind}; choose another folder")
    try:
        chunks.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
    except OSError as error:
        raise InputError(f"--out {out} cannot be written ({error.strerror})") from error
    return chunks


def chunks_of(out: Path) -> Path:
    """Return where a folder keeps what is finished."""
    return out / "cells"


def refuse(out: Path, kind: str) -> None:
    """Raise InputError where the folder holds results of that kind."""
    if (out / SETTINGS[kind]).exists():
        raise InputError(f"--out {out} holds a {kind}; choose another folder")


Result = TypeVar("Result")


def run_until_stopped(
    run: Callable[[Callable[[int], Any], Callable[[], bool]], Result],
    *,
    num_networks: int,
    out: Path,
    progress: bool,
) -> Result | None:
    """Run under a progress bar; return None, and say how to go on, where the user stopped it.

    Args:
      run: takes `on_done`, called with a number of finished networks, and `interrupted`.
      num_networks: where the bar ends.
      out: the folder to name to the user.
      progress: show the bar.
    """
    with (
        command_line.StopSignal() as stopped,
        progress_bar(
            total=num_networks, desc="done", unit=" networks", disable=not progress
        ) as bar,
    ):
        try:
            return run(bar.update, stopped)
        except Interrupted:
            if is_first():
                print(f"stopped; the same command goes on where {out} stands")
            return None
