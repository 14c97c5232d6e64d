"""The loop: a run that is interrupted and resumed is the run that was not."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.config import Config
from jaxdnn.data.dataset import Dataset, Split
from jaxdnn.options import AugmentOptions, ModelOptions, OptimizerOptions, TrainOptions
from jaxdnn.run_folder import RunFolder, read_metrics
from jaxdnn.training import fit as loop
from jaxdnn.training.checkpoint import Checkpoints
from jaxdnn.training.early_stopping import EarlyStopping
from jaxdnn.training.fit import Diverged, Interrupted, Progress, fit
from jaxdnn.training.recorder import Recorder
from jaxdnn.training.setup import Program, init_state, make_program, make_setup

STEPS_PER_EPOCH, EPOCHS = 5, 4


def split(num: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    labels = np.arange(num, dtype=np.int32) % 2
    images = rng.integers(0, 200, (num, 2, 2, 1)) + 50 * labels[:, None, None, None]
    return Split(images.astype(np.uint8), labels, tuple(map(str, range(num))))


DATASET = Dataset(("other", "dog"), split(21, 0), split(8, 1), split(8, 2), (), "random")
CONFIG = Config(
    model=ModelOptions(widths=(4,), dropout=0.3, norm="batch"),
    optimizer=OptimizerOptions(momentum=0.9, l2=0.1),
    augment=AugmentOptions(noise=0.1, horizontal_flip=0.5),
    train=TrainOptions(batch_size=4, epochs=EPOCHS, monitor="val/loss", checkpoint_seconds=1e6),
)


@pytest.fixture(scope="module")
def setup():
    return make_setup(CONFIG, DATASET)


@pytest.fixture(scope="module")
def program(setup) -> Program:
    return make_program(setup)


class Stop:
    """Interrupts at the nth time of asking."""

    def __init__(self, after: float):
        self._left = after

    def __call__(self) -> bool:
        self._left -= 1
        return self._left <= 0


def run(setup, program, path, *, stop_after=math.inf, **stopping) -> Progress:
    """Start, or resume where the folder's checkpoint left off."""
    folder = RunFolder(path)
    path.mkdir(exist_ok=True)
    progress = Progress(
        init_state(setup), EarlyStopping(**{"greater_is_better": False, **stopping})
    )
    with Checkpoints(folder.checkpoints) as checkpoints:
        if checkpoints.step("latest") is not None:
            saved = checkpoints.restore("latest", progress.to_arrays())
            progress = progress.resumed(saved["state"], saved["stopping"])
            if progress.stopping.best_step is not None:
                like = {"params": progress.state.params, "batch_stats": progress.state.batch_stats}
                best = checkpoints.restore("best", like)
                progress = progress.with_best(best["params"], best["batch_stats"])
        start = int(progress.state.step)
        with Recorder(folder, num_steps=20, batch_size=4, start=start, progress=False) as recorder:
            return fit(
                progress,
                program,
                recorder=recorder,
                checkpoints=checkpoints,
                interrupted=Stop(stop_after),
            )[0]


def assert_same(actual: Progress, expected: Progress):
    for ours, theirs in ((actual.state, expected.state), (actual.best, expected.best)):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert actual.stopping == expected.stopping


@pytest.fixture(scope="module")
def whole(setup, program, tmp_path_factory) -> tuple[Progress, RunFolder]:
    path = tmp_path_factory.mktemp("whole")
    return run(setup, program, path), RunFolder(path)


def test_a_run_takes_every_step_and_records_every_evaluation(setup, whole):
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


def test_resuming_in_the_middle_of_an_epoch_changes_nothing(setup, program, whole, tmp_path):
    for stop_after in (2, 2, 2, 3):  # the first two calls take one step each
        with pytest.raises(Interrupted):
            run(setup, program, tmp_path, stop_after=stop_after)
        with Checkpoints(RunFolder(tmp_path).checkpoints) as checkpoints:
            step = checkpoints.step("latest")
            assert step is not None
        assert stop_after == 3 or step % STEPS_PER_EPOCH > 0
    resumed = run(setup, program, tmp_path)
    assert_same(resumed, whole[0])
    assert read_metrics(RunFolder(tmp_path).metrics) == read_metrics(whole[1].metrics)


@pytest.mark.parametrize("seconds", [0.0, 1e3])
def test_how_many_steps_a_call_takes_does_not_show(
    setup, program, whole, tmp_path, monkeypatch, seconds
):
    monkeypatch.setattr(loop, "SECONDS_PER_CALL", seconds)
    assert_same(run(setup, program, tmp_path), whole[0])


def test_a_finished_run_has_nothing_to_do(setup, program, whole):
    progress, folder = whole
    before = folder.metrics.read_bytes()
    assert_same(run(setup, program, folder.path, stop_after=1), progress)
    assert folder.metrics.read_bytes() == before


def scripted(program: Program, values: list[float]) -> tuple[Program, dict[int, Any]]:
    """The program with these validation losses, and the parameters that each was for."""
    seen: dict[int, Any] = {}

    def evaluate(state):
        step = int(state.step)
        # jnp.copy, because a NumPy view of a buffer keeps it from being donated.
        seen[step] = jax.tree.map(jnp.copy, (state.params, state.batch_stats))
        value = values[step // STEPS_PER_EPOCH - 1]
        return {"val/loss": value, "val/balanced_accuracy": 0.5}, state.batch_stats

    return dataclasses.replace(program, evaluate=evaluate), seen


def test_patience_stops_and_the_best_weights_are_kept(setup, program, tmp_path):
    script, seen = scripted(program, [3.0, 2.0, math.nan, 1.0])
    progress = run(setup, script, tmp_path, patience=1)
    assert int(progress.state.step) == 15
    assert progress.stopping.best_step == 10
    jax.tree.map(np.testing.assert_array_equal, progress.best, seen[10])
    with Checkpoints(RunFolder(tmp_path).checkpoints) as checkpoints:
        assert (checkpoints.step("latest"), checkpoints.step("best")) == (15, 10)
        saved = checkpoints.restore("best", {"params": seen[10][0], "batch_stats": seen[10][1]})
    jax.tree.map(np.testing.assert_array_equal, (saved["params"], saved["batch_stats"]), seen[10])
    again = run(setup, script, tmp_path, patience=1)
    assert_same(again, progress)


def test_a_resumed_run_counts_equal_metrics_as_the_whole_run_does(setup, program, tmp_path):
    # 0.7 is less in float32: if only the checkpoint rounded it, 0.7 again would be worse or better.
    script, _ = scripted(program, [0.7] * EPOCHS)
    for greater in (True, False):
        path = tmp_path / str(greater)
        with pytest.raises(Interrupted):
            run(setup, script, path, stop_after=5, greater_is_better=greater)
        progress = run(setup, script, path, greater_is_better=greater)
        assert (progress.stopping.best_step, progress.stopping.num_bad) == (5, 3)


def test_without_any_finite_metric_there_is_no_best(setup, program, tmp_path):
    script, _ = scripted(program, [math.nan] * EPOCHS)
    progress = run(setup, script, tmp_path)
    assert progress.best is None
    assert progress.stopping.best_step is None
    assert int(progress.state.step) == 20


def test_evaluation_comes_every_so_many_epochs_and_at_the_end(setup, program, tmp_path):
    rarely = dataclasses.replace(program, evaluate_every=3 * STEPS_PER_EPOCH)
    run(setup, rarely, tmp_path)
    assert [line["step"] for line in read_metrics(RunFolder(tmp_path).metrics)] == [15, 20]


def test_divergence_names_its_step_and_keeps_the_last_good_checkpoint(setup, program, tmp_path):
    def train(state, num_steps):
        assert not bool(state.diverged)
        state = program.train(state, num_steps)
        return state._replace(diverged=state.step >= 2)

    with pytest.raises(Diverged, match=r"at step 2: .*checkpoint of step 0 is kept") as caught:
        run(setup, dataclasses.replace(program, train=train), tmp_path)
    assert "\n" not in str(caught.value)
    with Checkpoints(RunFolder(tmp_path).checkpoints) as checkpoints:
        assert checkpoints.step("latest") == 0


def test_parameters_that_are_not_finite_are_never_saved(setup, program, tmp_path):
    def train(state, num_steps):
        state = program.train(state, num_steps)
        return state._replace(params=jax.tree.map(lambda leaf: leaf * jnp.nan, state.params))

    broken = dataclasses.replace(program, train=train)
    with pytest.raises(Diverged, match="parameters are not finite"):
        run(setup, broken, tmp_path, stop_after=1)
    with Checkpoints(RunFolder(tmp_path).checkpoints) as checkpoints:
        assert checkpoints.step("latest") == 0
