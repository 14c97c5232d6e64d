"""Strict settings for every test, several CPU devices, and the development data where it is."""

import os

# Before jax is imported: simulated devices, and compilation that is quick rather than good.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
)

from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "standard")
jax.config.update("jax_platforms", "cpu")
# What a test compiles stays out of the user's cache.
jax.config.update("jax_enable_compilation_cache", False)

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
