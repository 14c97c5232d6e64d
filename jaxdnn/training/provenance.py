"""What a run was when a checkpoint was saved, kept with it, and compared before anything goes on.

Settings are kept as they are, of dataset.json a digest of every key, of metrics.jsonl its length
and digest: what somebody or the disk has changed in a run folder since is named, not believed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxdnn.config import Config
from jaxdnn.errors import InputError
from jaxdnn.run_folder import RunFolder
from jaxdnn.stored import digest


def provenance(config: Config, dataset: Mapping[str, Any], metrics: Path) -> dict[str, Any]:
    """Return what is kept with a checkpoint.

    Args:
      config: the settings.
      dataset: what dataset.json holds.
      metrics: path of metrics.jsonl; it may be missing.
    """
    return {
        "config": _plain(dataclasses.asdict(config)),
        "dataset": {name: digest(_plain(value)) for name, value in dataset.items()},
        "metrics": _measured(metrics.read_bytes() if metrics.exists() else b""),
    }


def check_unchanged(
    about: Mapping[str, Any], config: Config, dataset: Mapping[str, Any], folder: RunFolder
) -> None:
    """Compare settings and data set with what was kept.

    Args:
      about: what `provenance` gave then; what is not in it is not compared.
      config: the settings of now.
      dataset: what dataset.json holds now.
      folder: of the run.

    Raises:
      InputError: they differ; it says in what.
    """
    now = _plain(dataclasses.asdict(config))
    if differs := list(_differences(now, about.get("config", now))):
        raise InputError(
            f"{folder.config} is not what the run was saved with ({'; '.join(differs)}); put that "
            "back, or train again"
        )
    kept = about.get("dataset", {})
    changed = [name for name in kept if digest(_plain(dataset.get(name))) != kept[name]]
    if changed:
        raise InputError(
            f"{folder.dataset} is not what the run was saved with ({', '.join(changed)} differ); "
            f"remove it, and --resume {folder.path} writes it again from the same images"
        )


def keeps_metrics(about: Mapping[str, Any], metrics: Path) -> bool:
    """Tell whether metrics.jsonl still begins as it was when the checkpoint was saved."""
    before = about.get("metrics", _measured(b""))
    content = metrics.read_bytes() if metrics.exists() else b""
    return _measured(content[: before["bytes"]]) == before


def _measured(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _plain(content: Any) -> Any:
    """Return content as JSON gives it back."""
    return json.loads(json.dumps(content))


def _differences(now: Any, before: Any, name: str = "") -> Iterator[str]:
    if not (isinstance(now, dict) and isinstance(before, dict)):
        if now != before:
            yield f"{name}: {now}, saved with {before}"
        return
    for key in dict.fromkeys([*now, *before]):
        yield from _differences(now.get(key), before.get(key), key)
