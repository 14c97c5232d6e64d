"""The training loop."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdnn.errors import InputError, Interrupted
from jaxdnn.processes import any_process, broadcast_from_first, put
from jaxdnn.training.checkpoint import Checkpoints, all_finite, tree_copy
from jaxdnn.training.early_stopping import EarlyStopping
from jaxdnn.training.recorder import Recorder
from jaxdnn.training.setup import Trainer
from jaxdnn.training.step import TrainState, Variables
from jaxdnn.training.watch import Watch

SECONDS_PER_CALL = 0.5
_IMPORTED = time.monotonic()


class Diverged(InputError):
    """The loss was not finite, or far beyond that of guessing."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
      state: parameters and optimizer state after the last step.
      stopping: the best metric so far, and the evaluations since.
      best: the network at the best step, None before the first evaluation.
    """

    state: TrainState
    stopping: EarlyStopping
    best: Variables | None = None

    def to_arrays(self) -> dict[str, Any]:
        """Return what the latest checkpoint holds."""
        stopping = {
            "best_value": self.stopping.best_value,
            "best_step": -1 if self.stopping.best_step is None else self.stopping.best_step,
            "num_bad": self.stopping.num_bad,
        }
        return {"state": self.state, "stopping": jax.tree.map(self._beside_state, stopping)}

    def _beside_state(self, number: float) -> Array:
        """Put a number where the state's own are: on the devices of all processes."""
        array = np.asarray(number, np.int32 if isinstance(number, int) else np.float32)
        step = self.state.step
        return put(array, step.sharding) if isinstance(step, Array) else jnp.asarray(array)

    def resumed(self, saved: dict[str, Any]) -> Progress:
        """Return this progress with what `to_arrays` gave put back, the best still missing."""
        stopping = saved["stopping"]
        best_step = int(stopping["best_step"])
        known = dataclasses.replace(
            self.stopping,
            best_value=float(stopping["best_value"]),
            best_step=None if best_step < 0 else best_step,
            num_bad=int(stopping["num_bad"]),
        )
        return Progress(saved["state"], known)


@dataclasses.dataclass(frozen=True)
class Timing:
    """How long training took.

    Attributes:
      steps_per_second: without the first call, which compiles.
      first_step_seconds: from the start of the process to the end of the first step; NaN if there
        was none.
    """

    steps_per_second: float
    first_step_seconds: float


def fit(
    progress: Progress,
    trainer: Trainer,
    *,
    recorder: Recorder,
    checkpoints: Checkpoints,
    interrupted: Callable[[], bool],
) -> tuple[Progress, Timing]:
    """Train to the last step, or until patience runs out.

    Every process of a distributed run calls it, and all take the same turns.

    Args:
      progress: where to begin; its state is donated.
      trainer: takes the steps and evaluates.
      recorder: gets the metrics of every evaluation.
      checkpoints: get the latest and the best.
      interrupted: asked between calls; True saves and stops.

    Returns:
      Where training ended, and how fast it was.

    Raises:
      Diverged: with the step; the last good checkpoint is kept.
      Interrupted: after saving.
      InputError: a checkpoint cannot be written.
    """
    step, speed = int(progress.state.step), _Speed()
    watch = trainer.watch
    train = trainer.train if watch is None else watch.train
    saved_at = time.monotonic()
    if checkpoints.step("latest") is None:
        _save(progress, checkpoints, recorder)
    num_steps = 1
    while step < trainer.num_steps and not progress.stopping.should_stop:
        until_evaluation = trainer.evaluate_every - step % trainer.evaluate_every
        started = time.monotonic()
        state = train(progress.state, min(num_steps, until_evaluation))
        if watch is not None:
            watch.record(recorder)
        num_taken = int(state.step) - step  # waits for the device
        speed.add(num_taken, time.monotonic() - started)
        step += num_taken
        progress = dataclasses.replace(progress, state=state)
        _check_diverged(progress, checkpoints, watch)
        recorder.tell_skipped(*map(int, state.skipped))
        recorder.advance(step, *_means(state))
        if step % trainer.evaluate_every == 0 or step == trainer.num_steps:
            progress = _evaluate(progress, trainer, recorder)
        (is_interrupted,) = any_process(interrupted())
        # By the steady clock, however the wall clock jumps.
        is_due = time.monotonic() - saved_at > trainer.checkpoint_seconds
        num_steps, is_due = broadcast_from_first([speed.steps_per_call(), is_due])
        if is_interrupted or is_due:
            _save(progress, checkpoints, recorder)
            saved_at = time.monotonic()
        if is_interrupted:
            checkpoints.wait()
            raise Interrupted
    _save(progress, checkpoints, recorder)
    return progress, speed.timing()


def _evaluate(progress: Progress, trainer: Trainer, recorder: Recorder) -> Progress:
    state, step = progress.state, int(progress.state.step)
    metrics, variables = trainer.evaluate(state)
    loss, accuracy = _means(state)
    recorder.record(
        {
            "step": step,
            "epoch": step / trainer.steps_per_epoch,
            "train/loss": loss,
            "train/accuracy": accuracy,
            **metrics,
            "learning_rate": float(trainer.learning_rate(step, int(state.skipped.num))),
        }
    )
    # In float32, as checkpoints keep it: a resumed run must compare the same numbers.
    stopping = progress.stopping.update(float(np.float32(metrics[trainer.monitor])), step)
    best = progress.best
    if stopping.best_step == step:
        best = tree_copy(variables)
    return dataclasses.replace(progress, stopping=stopping, best=best)


def _means(state: TrainState) -> tuple[float, float]:
    num_examples = max(int(state.sums.num_examples), 1)
    return float(state.sums.loss) / num_examples, float(state.sums.num_correct) / num_examples


def _check_diverged(progress: Progress, checkpoints: Checkpoints, watch: Watch | None) -> None:
    state = progress.state
    if not bool(state.diverged):
        return
    why = "its loss is not finite, or far beyond that of guessing"
    if num_skipped := int(state.skipped.in_a_row):
        why = f"as the {num_skipped - 1} before it, {why}"
    if watch is not None:
        good = checkpoints.restore("latest", progress.to_arrays())["state"]
        why += f"; {watch.first_bad_layer(good, int(state.step))}"
    raise _diverged(why, state, checkpoints)


def _diverged(why: str, state: TrainState, checkpoints: Checkpoints) -> Diverged:
    return Diverged(
        f"training diverged at step {int(state.step)}: {why}; the checkpoint of step "
        f"{checkpoints.step('latest')} is kept; lower --learning-rate, or add --clip-norm 1"
    )


def _save(progress: Progress, checkpoints: Checkpoints, recorder: Recorder) -> None:
    """Save the best and the latest, after those before them and the metrics up to here."""
    state, best_step = progress.state, progress.stopping.best_step
    if not bool(all_finite(state.params)):
        raise _diverged("its parameters are not finite", state, checkpoints)
    checkpoints.wait()
    recorder.sync()
    if progress.best is not None and best_step is not None:
        checkpoints.save("best", best_step, progress.best)
    checkpoints.save("latest", int(state.step), progress.to_arrays())


class _Speed:
    """Measures steps per second, and works out how many steps fill SECONDS_PER_CALL."""

    def __init__(self) -> None:
        self._steps = 0
        self._seconds = 0.0
        self._first_step_seconds = math.nan

    def add(self, num_steps: int, seconds: float) -> None:
        """Count a call; the first one compiles and does not count."""
        if math.isnan(self._first_step_seconds):
            self._first_step_seconds = _seconds_since_start()
        else:
            self._steps += num_steps
            self._seconds += seconds

    def timing(self) -> Timing:
        per_second = self._steps / self._seconds if self._seconds else math.nan
        return Timing(per_second, self._first_step_seconds)

    def steps_per_call(self) -> int:
        if not self._seconds:
            return 1
        return max(1, round(SECONDS_PER_CALL * self._steps / self._seconds))


def _seconds_since_start() -> float:
    """Return the seconds since the process began; where the system does not say, since import."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # After boot; man 5 proc, field 22.
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, AttributeError, ValueError, IndexError):
        return time.monotonic() - _IMPORTED
