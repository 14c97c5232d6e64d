"""The loop: a run that is interrupted and resumed is the run that was not."""

import dataclasses
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.config import Config
from jaxdnn.errors import Interrupted
from jaxdnn.options import AugmentOptions, ModelOptions, OptimizerOptions, TrainOptions
from jaxdnn.run_folder import RunFolder, read_metrics
from jaxdnn.training import Checkpoints, TrainState, init_state, make_setup, make_trainer
from jaxdnn.training import fit as loop
from jaxdnn.training.fit import Diverged, Progress
from jaxdnn.training.setup import Trainer

from .runs import dataset, run

STEPS_PER_EPOCH, EPOCHS = 5, 4
CONFIG = Config(
    model=ModelOptions(widths=(4,), dropout=0.3, norm="batch"),
    optimizer=OptimizerOptions(momentum=0.9, l2=0.1),
    augment=AugmentOptions(noise=0.1, horizontal_flip=0.5),
    train=TrainOptions(batch_size=4, epochs=EPOCHS, monitor="val/loss", checkpoint_seconds=1e6),
)


@pytest.fixture(scope="module")
def made() -> tuple[TrainState, Trainer]:
    setup = make_setup(CONFIG, dataset())
    return init_state(setup), make_trainer(setup)


@pytest.fixture(scope="module")
def state(made) -> TrainState:
    return made[0]


@pytest.fixture(scope="module")
def trainer(made) -> Trainer:
    return made[1]


def assert_same(actual: Progress, expected: Progress):
    chex.assert_trees_all_equal((actual.state, actual.best), (expected.state, expected.best))
    assert actual.stopping == expected.stopping


@pytest.fixture(scope="module")
def whole(state, trainer, tmp_path_factory) -> tuple[Progress, RunFolder]:
    path = tmp_path_factory.mktemp("whole")
    return run(state, trainer, path), RunFolder(path)


def test_a_run_takes_every_step_and_records_every_evaluation(whole):
    progress, folder = whole
    assert int(progress.state.step) == STEPS_PER_EPOCH * EPOCHS
    metrics = read_metrics(folder.metrics)
    assert [line["step"] for line in metrics] == [5, 10, 15, 20]
    assert [line["epoch"] for line in metrics] == [1, 2, 3, 4]
    losses = [line["val/loss"] for line in metrics]
    assert progress.stopping.best_step == metrics[int(np.argmin(losses))]["step"]
    for line in metrics:
        # One epoch for each decay step, the default.
        assert line["learning_rate"] == pytest.approx(0.1 * 0.98 ** line["epoch"], rel=1e-5)
    with Checkpoints(folder.checkpoints) as checkpoints:
        assert checkpoints.step("latest") == 20
        assert checkpoints.step("best") == progress.stopping.best_step


@pytest.mark.slow
def test_resuming_in_the_middle_of_an_epoch_changes_nothing(state, trainer, whole, tmp_path):
    for stop_after in (2, 3):  # the first two calls take one step each
        with pytest.raises(Interrupted):
            run(state, trainer, tmp_path, stop_after=stop_after)
        with Checkpoints(RunFolder(tmp_path).checkpoints) as checkpoints:
            step = checkpoints.step("latest")
            assert step is not None
        assert stop_after == 3 or step % STEPS_PER_EPOCH > 0
    resumed = run(state, trainer, tmp_path)
    assert_same(resumed, whole[0])
    assert read_metrics(RunFolder(tmp_path).metrics) == read_metrics(whole[1].metrics)


@pytest.mark.slow
def test_a_run_with_every_option_resumes_to_the_bit_and_keeps_what_it_evaluated(tmp_path):
    config = dataclasses.replace(
        CONFIG,
        augment=AugmentOptions(noise=0.1, cutout=1),
        train=dataclasses.replace(
            CONFIG.train,
            batch_size=2,
            accumulate=2,
            precision="bfloat16",
            on_nan="halve-lr",
            watch_gradients=3,
            label_smoothing=0.1,
            mixup=0.2,
            ema_decay=0.6,
            flip_test=True,
        ),
    )
    setup = make_setup(config, dataset())
    state, trainer = init_state(setup), make_trainer(setup)
    whole = run(state, trainer, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(state, trainer, tmp_path / "again", stop_after=3)
    assert_same(run(state, trainer, tmp_path / "again"), whole)
    *_, last = read_metrics(RunFolder(tmp_path / "whole").metrics)
    assert last["step"] == STEPS_PER_EPOCH * EPOCHS
    metrics, evaluated = trainer.evaluate(whole.state)
    assert metrics["val/loss"] == last["val/loss"]
    chex.assert_trees_all_equal(evaluated, whole.state.evaluated)
    if whole.stopping.best_step == last["step"]:
        chex.assert_trees_all_equal(whole.best, evaluated)
    plain, _ = trainer.evaluate(whole.state._replace(average=None))
    assert metrics["val/loss"] != plain["val/loss"]


@pytest.mark.parametrize("seconds", [0.0, 1e3])
def test_how_many_steps_a_call_takes_does_not_show(
    state, trainer, whole, tmp_path, monkeypatch, seconds
):
    monkeypatch.setattr(loop, "SECONDS_PER_CALL", seconds)
    assert_same(run(state, trainer, tmp_path), whole[0])


def test_a_finished_run_has_nothing_to_do(state, trainer, whole):
    progress, folder = whole
    before = folder.metrics.read_bytes()
    assert_same(run(state, trainer, folder.path, stop_after=1), progress)
    assert folder.metrics.read_bytes() == before


def scripted(trainer: Trainer, values: list[float]) -> tuple[Trainer, dict[int, Any]]:
    """The trainer with these validation losses, and the parameters that each was for."""
    evaluated: dict[int, Any] = {}

    def evaluate(state):
        step = int(state.step)
        # jnp.copy, because a NumPy view of a buffer keeps it from being donated.
        evaluated[step] = jax.tree.map(jnp.copy, state.variables)
        value = values[step // STEPS_PER_EPOCH - 1]
        return {"val/loss": value, "val/balanced_accuracy": 0.5}, state.variables

    return dataclasses.replace(trainer, evaluate=evaluate), evaluated


@pytest.mark.slow
def test_patience_stops_and_the_best_weights_are_kept(state, trainer, tmp_path):
    script, evaluated = scripted(trainer, [3.0, 2.0, math.nan, 1.0])
    progress = run(state, script, tmp_path, patience=1)
    assert int(progress.state.step) == 15
    assert progress.stopping.best_step == 10
    chex.assert_trees_all_equal(progress.best, evaluated[10])
    with Checkpoints(RunFolder(tmp_path).checkpoints) as checkpoints:
        assert (checkpoints.step("latest"), checkpoints.step("best")) == (15, 10)
        chex.assert_trees_all_equal(checkpoints.restore("best", evaluated[10]), evaluated[10])
    again = run(state, script, tmp_path, patience=1)
    assert_same(again, progress)


@pytest.mark.slow
def test_a_resumed_run_counts_equal_metrics_as_the_whole_run_does(state, trainer, tmp_path):
    # 0.7 is less in float32: if only the checkpoint rounded it, 0.7 again would be worse or better.
    script, _ = scripted(trainer, [0.7] * EPOCHS)
    for greater in (True, False):
        path = tmp_path / str(greater)
        with pytest.raises(Interrupted):
            run(state, script, path, stop_after=5, greater_is_better=greater)
        progress = run(state, script, path, greater_is_better=greater)
        assert (progress.stopping.best_step, progress.stopping.num_bad) == (5, 3)


def test_without_any_finite_metric_there_is_no_best(state, trainer, tmp_path):
    script, _ = scripted(trainer, [math.nan] * EPOCHS)
    progress = run(state, script, tmp_path)
    assert progress.best is None
    assert progress.stopping.best_step is None
    assert int(progress.state.step) == 20


def test_evaluation_comes_every_so_many_epochs_and_at_the_end(state, trainer, tmp_path):
    rarely = dataclasses.replace(trainer, evaluate_every=3 * STEPS_PER_EPOCH)
    run(state, rarely, tmp_path)
    assert [line["step"] for line in read_metrics(RunFolder(tmp_path).metrics)] == [15, 20]


def test_divergence_names_its_step_and_keeps_the_last_good_checkpoint(state, trainer, tmp_path):
    def train(state, num_steps):
        assert not bool(state.diverged)
        state = trainer.train(state, num_steps)
        return state._replace(diverged=state.step >= 2)

    with pytest.raises(Diverged, match=r"at step 2: .*checkpoint of step 0 is kept") as caught:
        run(state, dataclasses.replace(trainer, train=train), tmp_path)
    assert "\n" not in str(caught.value)
    with Checkpoints(RunFolder(tmp_path).checkpoints) as checkpoints:
        assert checkpoints.step("latest") == 0


def test_parameters_that_are_not_finite_are_never_saved(state, trainer, tmp_path):
    def train(state, num_steps):
        state = trainer.train(state, num_steps)
        return state._replace(params=jax.tree.map(lambda leaf: leaf * jnp.nan, state.params))

    broken = dataclasses.replace(trainer, train=train)
    with pytest.raises(Diverged, match="parameters are not finite"):
        run(state, broken, tmp_path, stop_after=1)
    with Checkpoints(RunFolder(tmp_path).checkpoints) as checkpoints:
        assert checkpoints.step("latest") == 0
