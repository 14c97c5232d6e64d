"""What a diagnosis says, as values: verdict, causes, changes, layers, and their printed forms."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import optax
from jax import Array

from jaxdnn.diagnosis import printout
from jaxdnn.diagnosis.attention import AttentionProfile, StreamProfile
from jaxdnn.diagnosis.causes import Cause
from jaxdnn.diagnosis.profile import LayerProfile, ParameterRow
from jaxdnn.diagnosis.recurrence import Recurrence
from jaxdnn.diagnosis.trial import Verdict
from jaxdnn.run_folder import without_nan


@dataclasses.dataclass(frozen=True)
class Prescription:
    """A change that was tried and helped.

    Attributes:
      change: what to do, in words.
      code: the line of Flax that does it.
      before: score of the network as it stands, in [0, 1].
      after: score with the change, in [0, 1].
      name: what programs read; never changed.
      network: `(apply, params)` with the change, `apply(params, inputs)` gives the outputs.
      optimizer: the optax transformation to train with; None where it stays.
      loss: `(outputs, targets) -> scalar`; None where it stays.
      prepare: `(inputs, targets) -> (inputs, targets)`; None where data stay as they are.
    """

    change: str
    code: str
    before: float
    after: float
    name: str
    network: tuple[Callable[..., Any], Any]
    optimizer: optax.GradientTransformation | None
    loss: Callable[[Any, Any], Array] | None
    prepare: Callable[[Any, Any], tuple[Any, Any]] | None


@dataclasses.dataclass(frozen=True)
class RateCurve:
    """What the first steps do at other learning rates.

    Attributes:
      factors: on the learning rate, rising, (rate,).
      losses: after some steps with each, (rate,); NaN where one is not finite.
      stable: the greatest factor up to which the loss does not rise; None where it always does.
      best: the factor with the lowest loss; None where none is finite.
    """

    factors: tuple[float, ...]
    losses: tuple[float, ...]
    stable: float | None
    best: float | None


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What stops a network, and what to change.

    Attributes:
      verdict: `trains`, `at risk` or `will not train`.
      score: in [0, 1]; see `jaxdnn.diagnosis.trial`.
      reason: the numbers behind the verdict, in a line.
      layers: in the order in which they run.
      parameters: every leaf of the parameters, in the order of the tree.
      causes: what is wrong, worst first.
      prescriptions: changes that help, best first.
      loss: mean over the batch, at the start.
      optimizer: that the verdict is for.
      loss_name: what the verdict is for, in words.
      notes: what else to know of the verdict, a sentence each.
      rates: what other learning rates do; None where they were not asked for.
      recurrences: how the gradient passes back through time, in the order in which they run.
      attentions: what each attention looks at, in the order in which they run.
      streams: how alike tokens are behind each residual branch, where there is attention.
    """

    verdict: Verdict
    score: float
    reason: str
    layers: tuple[LayerProfile, ...]
    causes: tuple[Cause, ...]
    prescriptions: tuple[Prescription, ...]
    loss: float
    optimizer: str
    loss_name: str
    notes: tuple[str, ...]
    rates: RateCurve | None = None
    recurrences: tuple[Recurrence, ...] = ()
    attentions: tuple[AttentionProfile, ...] = ()
    streams: tuple[StreamProfile, ...] = ()
    parameters: tuple[ParameterRow, ...] = ()

    def __str__(self) -> str:
        return printout.short_text(self.to_dict())

    def details(self, *, fold: bool = True) -> str:
        """Return all findings, all changes that help, and the table of layers.

        Args:
          fold: show blocks that are alike, such as `blocks/0..11`, as one row.
        """
        return printout.full_text(self.to_dict(), fold=fold)

    def _repr_html_(self) -> str:
        # Only here: matplotlib takes a second to load.
        from jaxdnn.diagnosis.page import fragment

        return fragment(self.to_dict())

    def to_html(self) -> str:
        """Return a page in one piece: pictures, formulas and words for every finding."""
        from jaxdnn.diagnosis.page import page

        return page(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, dicts, numbers and strings; None for what is not finite."""
        plain = dataclasses.replace(self, prescriptions=())
        shown = ("name", "change", "code", "before", "after")
        changes = [{name: getattr(each, name) for name in shown} for each in self.prescriptions]
        return without_nan(dataclasses.asdict(plain) | {"prescriptions": changes})

    def to_json(self) -> str:
        """Return a JSON object with the fields of this class."""
        return json.dumps(self.to_dict(), indent=2)

    def to_short_json(self) -> str:
        """Return what an assistant needs, a JSON object of at most 2,000 characters."""
        return printout.short_json(self.to_dict())

    def to_markdown(self) -> str:
        """Return headings, lists and a table."""
        return printout.markdown(self.to_dict())


def rate_curve_of(factors: np.ndarray, losses: np.ndarray, start: float) -> RateCurve:
    """Read a curve.

    Args:
      factors: on the learning rate, rising, (rate,).
      losses: after some steps with each, (rate,).
      start: the loss before them.
    """
    finite = np.isfinite(losses)
    rises = ~(losses <= start)
    first = int(np.argmax(rises)) if rises.any() else len(factors)
    best = float(factors[finite][np.argmin(losses[finite])]) if finite.any() else None
    stable = float(factors[first - 1]) if first else None
    return RateCurve(tuple(map(float, factors)), tuple(map(float, losses)), stable, best)
