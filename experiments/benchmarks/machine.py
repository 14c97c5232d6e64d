"""The machine and the versions that figures depend on, and where they are written."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import Any

from benchmarks.timing import num_cores
from jaxdnn.errors import InputError

HINT = "bench.py needs PyTorch: pip install -e '.[bench]' (a CPU build of it is enough)"
_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "torch", "opencv-python-headless")


def describe() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "cores": num_cores(),
        "load_average": os.getloadavg()[0],
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def make_folder(path: Path) -> None:
    """Make the output folder; raise InputError where it cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / "bench.md").touch()
    except OSError as error:
        raise InputError(f"--out {path} cannot be written ({error}); choose another") from error
