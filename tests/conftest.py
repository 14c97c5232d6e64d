"""Strict settings for every test, several CPU devices, and the development data where it is."""

import os

# Before jax is imported: simulated devices, and compilation that is quick rather than good.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
)

from pathlib import Path

# What any worker or an earlier run compiled need not be compiled again; not in the user's cache.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "standard")
jax.config.update("jax_platforms", "cpu")

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder that holds data/ and reference/: developers and CI have it, users do not."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the development data is not on this machine")
    return SHARED


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """What one file compiled is of no use to the next, and adds up to gigabytes."""
    yield
    jax.clear_caches()
