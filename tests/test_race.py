"""The race: the losses of single runs, the deltas of the sweep, and who has learned."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from jaxdnn import run_folder
from jaxdnn.activations import make_activation
from jaxdnn.config import Config
from jaxdnn.data import load as load_images
from jaxdnn.data import normalise_images
from jaxdnn.errors import Interrupted
from jaxdnn.norms import Norm
from jaxdnn.options import DataOptions, ModelOptions, OptimizerOptions, TrainOptions
from jaxdnn.propagation import measure
from jaxdnn.race import (
    LEARNED,
    Race,
    guess_loss,
    initial_states,
    judge,
    make_lane,
    make_race,
    race_summary,
    run_race,
)
from jaxdnn.run_folder import read_metrics
from jaxdnn.training import init_state, make_setup, train

BATCH_SIZE, EPOCHS = 512, 2
# 6980 training images.
STEPS_PER_EPOCH = 13


def config(norm: Norm = "none"):
    return Config(
        data=DataOptions(),
        model=ModelOptions(widths=(8, 8, 8), norm=norm),
        optimizer=OptimizerOptions(learning_rate=0.1, schedule="constant"),
        train=TrainOptions(batch_size=BATCH_SIZE, epochs=EPOCHS),
    )


def load(config):
    return load_images(config.data, seed=config.seed)


@pytest.fixture(scope="module")
def race():
    return Race(
        config("batch"),
        initializers=("glorot_normal", "orthogonal", "zeros"),
        activations=("tanh", "parametric_relu"),
        seeds=range(3, 5),
        num_steps=EPOCHS * STEPS_PER_EPOCH,
        record_every=STEPS_PER_EPOCH,
    )


def setup_of(race):
    own = dataclasses.replace(race.config, seed=race.seeds[0])
    return make_setup(own, load(own))


@pytest.fixture(scope="module")
def finished(race, tmp_path_factory):
    """(results, setup, folder) of the race."""
    folder, done = tmp_path_factory.mktemp("cells"), []
    setup = setup_of(race)
    results = run_race(
        race, setup, folder, load=load, on_done=done.append, interrupted=lambda: False
    )
    assert sum(done) == race.num_networks == 12
    return results, setup, folder


def losses_alone(config, path):
    """The loss of every epoch, from a run of its own."""
    folder = run_folder.create(path)
    train(config, folder, progress=False)
    return [line["train/loss"] for line in read_metrics(folder.metrics)]


@pytest.mark.parametrize(
    ("i", "a", "s"),
    [
        (0, 0, 0),
        pytest.param(1, 1, 1, marks=pytest.mark.slow),
    ],
    ids=["tanh", "parametric"],
)
def test_single_run_gives_the_same_losses(i, a, s, race, finished, tmp_path):
    own = race.config_of(race.initializers[i], race.activations[a], race.seeds[s])
    alone = losses_alone(own, tmp_path / "run")
    assert len(alone) == EPOCHS
    chex.assert_trees_all_close(finished[0]["loss"][i, a, s, 1:], np.array(alone), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "activation"), [("none", "relu"), ("layer", "relu"), ("batch", "randomized_relu")]
)
def test_single_run_of_another_kind_gives_the_same_losses(norm, activation, race, tmp_path):
    normed = dataclasses.replace(
        race,
        config=config(norm),
        initializers=("he_normal",),
        activations=(activation,),
        seeds=range(1),
    )
    (tmp_path / "cells").mkdir()
    results = run_race(
        normed,
        setup_of(normed),
        tmp_path / "cells",
        load=load,
        on_done=ignore,
        interrupted=lambda: False,
    )
    alone = losses_alone(normed.config_of("he_normal", activation, 0), tmp_path / "run")
    chex.assert_trees_all_close(results["loss"][0, 0, 0, 1:], np.array(alone), rtol=1e-5)


def ignore(_):
    """Take what is reported, and do nothing."""


def test_networks_start_as_those_of_single_runs(race, finished):
    params, _ = initial_states(race, finished[1])
    own = race.config_of("orthogonal", "parametric_relu", 4)
    alone = init_state(make_setup(own, finished[1].dataset)).params
    here = jax.tree.map(lambda leaf: leaf[1, 1], params)
    chex.assert_trees_all_close(here, alone, rtol=1e-5, atol=1e-6)


def test_deltas_at_the_start_are_those_of_the_sweep(race, finished):
    results = finished[0]
    # Two routes: probes through the network, and the sweep's layer-by-layer formulas.
    for a in range(len(race.activations)):
        start = results["start_delta_rms"][:, a]
        first, last = results["delta_first_rms"][:, a, :, 0], results["delta_last_rms"][:, a, :, 0]
        chex.assert_trees_all_close(first, start[..., 0], rtol=1e-4)
        chex.assert_trees_all_close(last, start[..., -2], rtol=1e-4)
        assert (first[:2] > 0).all()


def test_first_record_is_the_loss_of_the_first_batch(race, finished):
    results, setup, _ = finished
    state = init_state(dataclasses.replace(setup, config=race.config_of("zeros", "tanh", 3)))
    logits = setup.model.apply(
        jax.tree.map(np.zeros_like, state.params),
        state.batch_stats,
        normalise_images(setup.dataset.train.images[:4], setup.pixel_stats),
    ).logits
    # All weights zero: two equal logits.
    chex.assert_trees_all_equal(logits, np.zeros((4, 2), np.float32))
    chex.assert_trees_all_close(results["loss"][2, 0, :, 0], np.log(2), rtol=1e-6)


def test_together_gives_the_same_numbers_and_compiles_once(race, finished, monkeypatch):
    results, setup, _ = finished
    states = jax.tree.map(lambda leaf: leaf[0], initial_states(race, setup))
    lane = make_lane(setup.dataset, race.seeds[0])
    monkeypatch.setattr("jaxdnn.race.measure", chex.assert_max_traces(measure, n=1))
    program = make_race(race, setup, side_by_side=True)
    for which in (0, 1):
        history, start = program(which, states, lane)
        chex.assert_trees_all_close(history.loss, results["loss"][:, which, 0], rtol=1e-4)
        deltas = results["start_delta_rms"][:, which, 0]
        chex.assert_trees_all_close(start.delta_rms, deltas, rtol=1e-4)


@pytest.mark.slow  # The command's test is the short version.
def test_interrupted_race_goes_on_without_what_is_finished(race, finished, tmp_path):
    few = dataclasses.replace(race, initializers=("glorot_normal",), seeds=range(3, 4))
    asked = []

    def stop_at_second():
        asked.append(True)
        return len(asked) == 2

    def run(interrupted):
        setup = finished[1]
        return run_race(few, setup, tmp_path, load=load, on_done=ignore, interrupted=interrupted)

    with pytest.raises(Interrupted):
        run(stop_at_second)
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert kept.keys() == {"tanh-3.npz"}
    again = run(lambda: False)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in kept} == kept
    chex.assert_trees_all_equal(again["loss"][0, :, 0], finished[0]["loss"][0, :, 0])


@pytest.mark.slow
def test_diverged_networks_end_in_nan(race, finished):
    wild = dataclasses.replace(
        config(), optimizer=OptimizerOptions(learning_rate=1e25, schedule="constant")
    )
    few = dataclasses.replace(race, config=wild, activations=("tanh",), num_steps=3, record_every=1)
    setup = make_setup(wild, finished[1].dataset)
    states = jax.tree.map(lambda leaf: leaf[0], initial_states(few, setup))
    history, _ = make_race(few, setup)(0, states, make_lane(setup.dataset, 3))
    # Step 0 stands for the weights at the start, step 1 for a loss that was still theirs.
    assert np.isfinite(history.loss[0, :2]).all()
    assert np.isnan(history.loss[0, 2:]).all()


STEPS = np.array([0, 10, 20, 30])


@pytest.mark.parametrize(
    ("losses", "learned", "steps_to_learn"),
    [
        ([2.0, 0.5, 0.4, 0.3], True, 10),
        ([2.0, 0.5, 0.95, 0.3], True, 30),
        ([2.0, 0.5, 0.4, 0.95], False, None),
        ([2.0, 1.0, 1.0, 1.0], False, None),
        ([2.0, 0.5, 0.4, np.nan], False, None),
    ],
)
def test_learned_means_below_guessing_to_the_end(losses, learned, steps_to_learn):
    assert 0.5 < LEARNED < 0.95
    outcome = judge(np.array([losses] * 3), STEPS, 1.0)
    assert (outcome.learned, outcome.steps_to_learn) == (learned, steps_to_learn)


def test_learned_is_said_of_the_median_seed():
    good, bad, diverged = [1.0, 0.1, 0.1, 0.1], [1.0] * 4, [1.0, np.nan, np.nan, np.nan]
    assert judge(np.array([good, good, bad]), STEPS, 1.0).learned
    assert judge(np.array([good, good, diverged]), STEPS, 1.0).learned
    assert not judge(np.array([good, diverged, diverged]), STEPS, 1.0).learned


def test_guessing_is_the_entropy_of_the_classes():
    assert guess_loss(np.array([0, 1] * 5)) == pytest.approx(np.log(2))
    labels = np.array([0] * 9 + [1])
    expected = np.mean(-np.log(np.where(labels, 0.1, 0.9)))
    assert guess_loss(labels) == pytest.approx(expected)


def test_summary_says_what_the_sweep_says(race, finished):
    results, setup, _ = finished
    lines = race_summary(race, results, guess_loss(setup.dataset.train.labels))
    assert len(lines) == 6
    verdicts = {(key.initializer, key.activation): flow.verdict for key, _, flow in lines}
    for activation in race.activations:
        assert make_activation(activation).name == activation
        assert verdicts["zeros", activation] == "dead"
        assert verdicts["glorot_normal", activation] == "healthy"
