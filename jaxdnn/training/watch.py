"""Watching a run: looks between its calls, warnings, and the layer at which it broke.

The program that trains is the one of a run that nobody watches, called for fewer steps at a time:
the trained parameters are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax import Array

from jaxdnn.training.flat import flatten
from jaxdnn.training.gradient_problems import find_problems
from jaxdnn.training.look import Layer, Look
from jaxdnn.training.recorder import Recorder
from jaxdnn.training.step import Indices, TrainState


class Pending(NamedTuple):
    """A look at the gradients of a step that is not recorded yet.

    Attributes:
      step: its number, from 1 on.
      is_taken: whether training had not stopped before it.
      rows: of the look at its batch, with the parameters before it. Like `is_taken` they may still
        be on their way.
    """

    step: int
    is_taken: Array
    rows: Array


def metrics_of(layers: list[Layer], look: Look) -> dict[str, float]:
    """Return `gradients/PATH/STATISTIC -> value`; the output has no activation to speak of."""
    of_activation = ("dead_fraction", "saturated_fraction", "slope_rms")
    return {
        f"gradients/{layer.path}/{name}": float(values[index])
        for index, layer in enumerate(layers)
        for name, values in look._asdict().items()
        if layer is not layers[-1] or name not in of_activation
    }


class Watch:
    """Trains as `train` does, and looks at step 1 and at every step that `every` divides.

    Args:
      train: compiled `(state, num_steps, step) -> state`; stays within an epoch.
      look: compiled `(state, indices of the epoch) -> is the next step taken, (statistic, layer)`
        at that step; see `make_look`.
      indices_of: `epoch -> indices`.
      layers: of the network, the output last.
      bounded: whether the activation has bounds on both sides.
      every: steps between looks.
      steps_per_epoch: optimizer steps.
    """

    def __init__(
        self,
        train: Callable[..., TrainState],
        look: Callable[[TrainState, Array], tuple[Array, Array]],
        indices_of: Indices,
        layers: list[Layer],
        *,
        bounded: bool,
        every: int,
        steps_per_epoch: int,
    ):
        self._train = train
        self._look = look
        self._indices_of = indices_of
        self._layers = layers
        self._bounded = bounded
        self._every = every
        self._steps_per_epoch = steps_per_epoch
        self._pending: list[Pending] = []

    def train(self, state: TrainState, num_steps: int) -> TrainState:
        """Take up to `num_steps` steps, not beyond the epoch; the state is donated."""
        step, size = int(state.step), self._steps_per_epoch
        epoch = step // size
        last = min(step + num_steps, (epoch + 1) * size)
        while step < last:
            if self._is_due(step + 1):
                self._pending.append(Pending(step + 1, *self._look(state, self._indices_of(epoch))))
            until = step + 1
            while until < last and not self._is_due(until + 1):
                until += 1
            # Nothing here waits for the device: it goes from one call to the next.
            state, step = self._train(state, until - step, step), until
        return state

    def _is_due(self, step: int) -> bool:
        return step == 1 or step % self._every == 0

    def look(self, state: TrainState, step: int) -> Look:
        """Look at the step that comes next, after `step` steps, and wait for what is seen."""
        _, rows = self._look(state, self._indices_of(step // self._steps_per_epoch))
        return Look(*np.asarray(rows))

    def record(self, recorder: Recorder) -> None:
        """Record the looks since the last call, and warn of what is wrong in them.

        The device may still take the steps after the last look: so this costs no time of its own.
        A run that diverged took fewer steps than it was asked for; it saw nothing after them.
        """
        pending, self._pending = self._pending, []
        for each in pending:
            if not each.is_taken:
                break
            look = Look(*np.asarray(each.rows))
            when = {"step": each.step, "epoch": each.step / self._steps_per_epoch}
            recorder.record_look(when | metrics_of(self._layers, look))
            problems = find_problems(self._layers, look, bounded=self._bounded)
            for kind, text in problems.items():
                recorder.warn(kind, f"step {each.step}: {text}")

    def first_bad_layer(self, state: TrainState, step: int) -> str:
        """Say which layer was the first not to be finite when the loss of step `step` was not.

        Training is repeated up to there: it is the same training. It stops at that step anyway.

        Args:
          state: before that step; donated.
          step: the number of the step that diverged.
        """
        before = None
        if (taken := int(state.step)) < step - 1:
            state = self._repeat(state, step - 2)
            before = self.look(state, step - 2)
            state = self._train(state, 1, step - 2)
        elif taken >= step:
            raise ValueError(f"step {step} lies before the state of step {taken}")
        return describe_first_bad(self._layers, state, before, self.look(state, step - 1))

    def _repeat(self, state: TrainState, step: int) -> TrainState:
        while (taken := int(state.step)) < step:
            state = self._train(state, step - taken, taken)
        return state


def describe_first_bad(
    layers: list[Layer], state: TrainState, before: Look | None, look: Look
) -> str:
    """Name the first layer that is not finite, and where in it.

    Args:
      layers: of the network, the output last.
      state: before the step that diverged.
      before: the look at the step before that, if there was one.
      look: at the step that diverged.
    """
    paths = [layer.path for layer in layers]
    broken = [name for name, leaf in flatten(state.params).items() if not np.isfinite(leaf).all()]
    if broken and before is not None and (bad := _first_on_the_way_back(paths, before)):
        return f"the first layer that was not finite is {bad}, one step before"
    if broken:
        return f"the first parameter that is not finite is {broken[0]}, before that step"
    bad = np.flatnonzero(~np.isfinite(look.pre_activation_rms))
    if bad.size:
        return f"the first layer that is not finite is {paths[bad[0]]}, in its pre-activation"
    largest = int(np.argmax(look.pre_activation_rms))
    return (
        f"every layer is finite; the pre-activations of {paths[largest]} are the largest, of RMS "
        f"{float(look.pre_activation_rms[largest]):.2g}"
    )


def _first_on_the_way_back(paths: list[str], look: Look) -> str | None:
    """Name the first layer with a gradient that is not finite, from the output on."""
    for path, delta, grad in reversed(
        list(zip(paths, look.delta_rms, look.kernel_grad_rms, strict=True))
    ):
        if not np.isfinite(delta):
            return f"{path}, in its delta"
        if not np.isfinite(grad):
            return f"{path}, in its kernel's gradient"
    return None
