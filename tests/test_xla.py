"""Where compiled programs are kept."""

import os
from typing import Any

import chex
import jax
import jax.numpy as jnp
import pytest

from jaxdnn import xla
from jaxdnn.errors import InputError

CONFIG: Any = jax.config


@pytest.fixture
def restored():
    """Nothing is set at first; afterwards JAX's own settings are as they were."""
    names = (
        "jax_compilation_cache_dir",
        "jax_enable_compilation_cache",
        "jax_persistent_cache_min_compile_time_secs",
    )
    before = {name: getattr(CONFIG, name) for name in names}
    CONFIG.update("jax_compilation_cache_dir", None)
    CONFIG.update("jax_enable_compilation_cache", True)
    yield
    for name, value in before.items():
        CONFIG.update(name, value)


def test_by_default_programs_are_kept_in_the_users_cache(restored, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(xla.sys, "platform", "linux")
    xla.keep_programs("auto")
    assert CONFIG.jax_compilation_cache_dir.startswith(str(tmp_path / "jaxdnn" / "xla"))
    assert os.path.isdir(CONFIG.jax_compilation_cache_dir)


def test_what_the_user_told_jax_holds(restored, tmp_path):
    CONFIG.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    xla.keep_programs("auto")
    assert CONFIG.jax_compilation_cache_dir == str(tmp_path / "own")
    xla.keep_programs(str(tmp_path / "other"))
    assert CONFIG.jax_compilation_cache_dir.startswith(str(tmp_path / "other"))
    xla.keep_programs("off")
    assert not CONFIG.jax_enable_compilation_cache


def test_a_folder_that_cannot_be_made_matters_only_if_it_was_asked_for(
    restored, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(xla.sys, "platform", "linux")
    xla.keep_programs("auto")
    with pytest.raises(InputError, match=r"--compilation-cache .*file.* cannot be written"):
        xla.keep_programs(str(tmp_path / "file"))


def test_the_oldest_programs_go_first(tmp_path):
    for age in range(5):
        path = tmp_path / str(age)
        path.write_bytes(bytes(100))
        os.utime(path, (1e9 - age, 1e9 - age))
    xla.trim(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_flags_of_the_user_stay_and_ours_comes_once(monkeypatch):
    monkeypatch.setattr(xla, "version", lambda package: "0.10.2")
    monkeypatch.setenv("XLA_FLAGS", "--own=1")
    xla.set_flags()
    xla.set_flags()
    assert os.environ["XLA_FLAGS"] == f"--own=1 {xla._CONVOLUTIONS}"
    xla.use_cores_as_devices()
    assert f"{xla._DEVICES}={os.cpu_count()}" in os.environ["XLA_FLAGS"]


def test_a_version_that_may_not_know_the_flag_is_spared(monkeypatch):
    monkeypatch.setattr(xla, "version", lambda package: "0.99.0")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    xla.set_flags()
    assert "XLA_FLAGS" not in os.environ


def test_the_number_of_threads_is_that_of_xla(monkeypatch):
    for name in ("PJRT_NPROC", "NPROC"):
        monkeypatch.delenv(name, raising=False)
    assert 1 <= xla.num_threads() <= (os.cpu_count() or 1)
    monkeypatch.setenv("NPROC", "5")
    assert xla.num_threads() == 5
    monkeypatch.setenv("PJRT_NPROC", "3")
    assert xla.num_threads() == 3


def test_a_program_built_quickly_computes_what_another_does():
    def function(x):
        return jax.nn.softmax(jnp.tanh(x @ x.T)).sum(0)

    x = jax.random.normal(jax.random.key(0), (16, 16))
    quick, usual = (jax.jit(function, compiler_options=each)(x) for each in (xla.QUICK, None))
    chex.assert_trees_all_close(quick, usual, rtol=1e-5)


def test_flags_and_options_of_quick_programs_are_the_same():
    flags = dict(flag.removeprefix("--").split("=") for flag in xla.quick_flags().split())
    assert flags == {name: str(value).lower() for name, value in xla.QUICK.items()}
    assert set(xla.quick_flags().split()) <= set(os.environ["XLA_FLAGS"].split())
