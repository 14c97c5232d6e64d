"""Settings of the XLA compiler, which the commands make before their first computation.

Importing `jaxdnn` makes none: in somebody's own program they are theirs to choose.
"""

import contextlib
import hashlib
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxdnn.errors import InputError

CACHE_BYTES = 2**30
"""Most that is kept of compiled programs; the oldest go first."""

# One convolution then uses all threads, not one: a convnet's step takes 0.7 of the time. XLA stops
# the process at a flag that it does not know, so this is only for versions tried with it.
_CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
_KNOWN_TO = ("0.10.", "0.12.")


def _quick_options() -> dict[str, Any]:
    options: dict[str, Any] = {"xla_backend_optimization_level": 0}
    if version("jaxlib").startswith("0.10."):
        options |= {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
    return options


QUICK: dict[str, Any] = _quick_options()
"""Options for a program that is built soon rather than fast: without LLVM's optimisation in half
the time; where jaxlib can still do without MLIR and in one piece, in a fifth."""


def quick_flags() -> str:
    """Return XLA_FLAGS that make every program of a process such a one."""
    return " ".join(f"--{name}={str(value).lower()}" for name, value in QUICK.items())


_DEVICES = "--xla_force_host_platform_device_count"


def use_cores_as_devices() -> None:
    """Make every CPU core a device of its own, for many small programs side by side.

    Before the first computation, and unless the user has set the number of devices.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _DEVICES not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_DEVICES}={os.cpu_count() or 1}".strip()


def set_flags() -> None:
    """Add our flag to XLA_FLAGS, unless the user has set it or this jaxlib may not know it."""
    name = _CONVOLUTIONS.partition("=")[0]
    flags = os.environ.get("XLA_FLAGS", "")
    if name not in flags and version("jaxlib").startswith(_KNOWN_TO):
        os.environ["XLA_FLAGS"] = f"{flags} {_CONVOLUTIONS}".strip()


def num_threads() -> int:
    """Return how many threads compute on a CPU: sums are split among them, and so rounded.

    PJRT_NPROC or NPROC sets the number; otherwise it is that of the cores that the process may use.
    """
    given = os.environ.get("PJRT_NPROC") or os.environ.get("NPROC", "")
    if given.isdigit() and int(given):
        return int(given)
    with contextlib.suppress(AttributeError):  # Not every system says.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_programs(folder: str) -> None:
    """Keep compiled programs on disk, so that the next start need not compile them again.

    Args:
      folder: where; `auto` for the user's cache folder, or for none if JAX has a setting already
        (JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE); `off` for none.

    Raises:
      InputError: the folder cannot be written.
    """
    import jax

    if folder == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    settings: Any = jax.config
    is_set = settings.jax_compilation_cache_dir or not settings.jax_enable_compilation_cache
    if folder == "auto" and is_set:
        return
    path = (_user_cache() if folder == "auto" else Path(folder)) / _machine()
    try:
        path.mkdir(parents=True, exist_ok=True)
        trim(path, CACHE_BYTES)
    except OSError as error:
        if folder == "auto":  # A home that cannot be written only costs time.
            return
        raise InputError(
            f"--compilation-cache {folder} cannot be written ({error.strerror}); "
            "choose another folder, or off"
        ) from error
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)


def _user_cache() -> Path:
    """Return the folder for compiled programs of this user."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "jaxdnn" / "xla"


def _machine() -> str:
    """Name the kind of processor: a home may be shared by machines that differ in it."""
    processor = platform.machine() + platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine() or 'cpu'}-{hashlib.sha256(processor.encode()).hexdigest()[:12]}"


def trim(folder: Path, most: int) -> None:
    """Remove the oldest files of a folder until the others take at most so many bytes."""
    found = [(path.stat(), path) for path in folder.iterdir() if path.is_file()]
    total = sum(stat.st_size for stat, _ in found)
    for stat, path in sorted(found, key=lambda entry: entry[0].st_mtime):
        if total <= most:
            return
        path.unlink(missing_ok=True)
        total -= stat.st_size
