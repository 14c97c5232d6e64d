"""Where a run goes on when its checkpoints are damaged, or a kill came between two of them."""

import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdnn.errors import InputError
from jaxdnn.models import make_mlp
from jaxdnn.stored import seal
from jaxdnn.training import Checkpoints, TrainState, make_init
from jaxdnn.training.early_stopping import EarlyStopping
from jaxdnn.training.fit import Progress
from jaxdnn.training.run import find_progress
from jaxdnn.training.sharding import make_layout

from .runs import data_file, flip_a_bit, truncate

BEST_OF = {1: None, 2: 2, 3: 3}
"""Step of a latest -> step of the best that it knows of."""


def state_at(step: int, width: int = 40) -> TrainState:
    model = make_mlp((50,), 2, widths=(width,))
    state = make_init(model, optax.sgd(0.1, momentum=0.9))(jax.random.key(step))
    return state._replace(step=jnp.int32(step))


def progress_at(step: int, width: int = 40) -> Progress:
    best_step, stopping = BEST_OF.get(step), EarlyStopping(greater_is_better=False)
    if best_step is None:
        return Progress(state_at(step, width), stopping)
    stopping = stopping.update(1 / step, best_step)
    return Progress(state_at(step, width), stopping, state_at(best_step, width).variables)


def save(checkpoints: Checkpoints, progress: Progress, *kinds: str):
    """Save as the loop does, or only some of it, as a kill would."""
    checkpoints.wait()
    if progress.best is not None and "best" in kinds:
        assert progress.stopping.best_step is not None
        checkpoints.save("best", progress.stopping.best_step, progress.best)
    if "latest" in kinds:
        checkpoints.save("latest", int(progress.state.step), progress.to_arrays())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    with Checkpoints(path) as checkpoints:
        for step in BEST_OF:
            save(checkpoints, progress_at(step), "best", "latest")
    return path


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def found_in(folder, width: int = 40) -> Progress | None:
    with Checkpoints(folder, tidy=True) as checkpoints:
        found = find_progress(progress_at(0, width), checkpoints)
        last = None if found is None else int(found.state.step)
        assert checkpoints.step("latest") == last
        if found is not None:
            assert checkpoints.step("best") == found.stopping.best_step
    return found


def assert_is(found: Progress | None, step: int):
    assert found is not None
    expected = progress_at(step)
    ours, theirs = (found.state, found.best), (expected.state, expected.best)
    chex.assert_trees_all_equal(ours, theirs, strict=True)
    assert found.stopping.best_step == expected.stopping.best_step
    np.testing.assert_equal(found.stopping.best_value, np.float32(expected.stopping.best_value))


def damage(folder, kind, step, how):
    path = data_file(folder / kind, step)
    path.write_bytes(how(path.read_bytes()))


def test_the_newest_is_gone_on_with_and_nothing_is_said(folder, capsys):
    assert_is(found_in(folder), 3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("latest", flip_a_bit),
        pytest.param("best", truncate, marks=pytest.mark.slow),
        pytest.param("latest", truncate, marks=pytest.mark.slow),
        pytest.param("best", flip_a_bit, marks=pytest.mark.slow),
    ],
)
def test_damage_leads_to_the_one_before_and_is_told(folder, kind, how, capsys):
    damage(folder, kind, 3, how)
    assert_is(found_in(folder), 2)
    said = capsys.readouterr().err
    assert "checkpoint at step 3 is damaged" in said
    assert "going on from step 2" in said
    assert said.count("\n") == 1
    with Checkpoints(folder) as checkpoints:  # The place of the damaged one is free again.
        save(checkpoints, progress_at(3), "best", "latest")
    assert_is(found_in(folder), 3)


def test_where_every_checkpoint_is_damaged_a_run_starts_again_and_says_so(folder, capsys):
    for step in (2, 3):
        damage(folder, "latest", step, flip_a_bit)
    assert found_in(folder) is None
    said = capsys.readouterr().err
    assert said.count("starting again") == said.count("\n") == 2
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps("latest") == checkpoints.steps("best") == []
        save(checkpoints, progress_at(1), "latest")
    assert_is(found_in(folder), 1)


@pytest.mark.parametrize("written", [pytest.param("best", marks=pytest.mark.slow), "latest"])
def test_a_kill_between_the_two_never_pairs_a_latest_with_another_best(tmp_path, written):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, progress_at(2), "best", "latest")
        save(checkpoints, progress_at(3), written)
    assert_is(found_in(tmp_path), 2)


def test_another_network_is_an_error_and_nothing_is_removed(folder):
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(InputError, match=r"differ at .*: .* saved, .* expected; resume with"):
            find_progress(progress_at(0, width=41), checkpoints)
        assert checkpoints.steps("latest") == [3, 2]


def test_what_a_run_is_stands_beside_every_checkpoint(tmp_path):
    about = {"config": {"seed": 3}, "versions": {"jax": jax.__version__}}
    with Checkpoints(tmp_path, about=lambda: about) as checkpoints:
        save(checkpoints, progress_at(1), "latest")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.about("latest", 1) == seal(about)


@pytest.mark.parametrize("fsdp", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_run_goes_on_with_another_number_of_devices(tmp_path, fsdp):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, progress_at(3), "best", "latest")
    layout = make_layout(jax.devices(), fsdp=fsdp)
    fresh = Progress(layout.place_state(state_at(0)), EarlyStopping(greater_is_better=False))
    with Checkpoints(tmp_path) as checkpoints:
        found = find_progress(fresh, checkpoints)
    assert_is(found, 3)
    assert found is not None
    for leaf, like in zip(jax.tree.leaves(found.state), jax.tree.leaves(fresh.state), strict=True):
        assert leaf.sharding == like.sharding
    with Checkpoints(tmp_path / "back") as checkpoints:
        save(checkpoints, found, "best", "latest")
    assert_is(found_in(tmp_path / "back"), 3)
