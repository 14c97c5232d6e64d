"""Strict settings for every test, several CPU devices, and the development data where it is."""

import gc
import os
from pathlib import Path

# Before jax is imported. What any worker or an earlier run compiled need not be compiled again (the
# same three files then take 7.2 CPU seconds); not in the user's cache.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import pytest

from jaxdnn import xla

# Before the first computation: compilation that is quick rather than good, and simulated devices.
# Tests that use one device pay nothing for the other seven: 17.5 CPU seconds of three files, and
# 17.7 with one device alone. Of two settings of a flag the last one counts.
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8", xla.quick_flags()]
)
# Tracing makes millions of small objects that live on: to look for garbage among them as often as
# Python does takes an eighth of the time.
gc.set_threshold(100_000, 50, 100)
jax.config.update("jax_numpy_dtype_promotion", "standard")
jax.config.update("jax_platforms", "cpu")

CACHE = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
SHARED = Path(__file__).parents[2] / "shared"
CACHE_BYTES = 2**29
RESIDENT_BYTES = 2 * 2**30


def pytest_configure(config: pytest.Config) -> None:
    """Once a run, before there are workers: let the cache not grow for ever."""
    if not hasattr(config, "workerinput") and CACHE.is_dir():
        xla.trim(CACHE, CACHE_BYTES)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder that holds data/ and reference/: developers and CI have it, users do not."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the development data is not on this machine")
    return SHARED


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Let what one file compiled go when programs add up to gigabytes; the next uses some of it."""
    yield
    if _resident_bytes() > RESIDENT_BYTES:
        jax.clear_caches()


def _resident_bytes() -> float:
    statm = Path("/proc/self/statm")
    if not statm.exists():  # Not Linux: better to compile twice.
        return float("inf")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
