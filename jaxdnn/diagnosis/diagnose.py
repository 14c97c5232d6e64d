"""Will this network train, which layer stops it, why, and what to change."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import optax
from jax import Array
from jaxtyping import Float

from jaxdnn.diagnosis.causes import find_causes, find_training_causes, ranked
from jaxdnn.diagnosis.fixes import Tried
from jaxdnn.diagnosis.measure import Exam, examine
from jaxdnn.diagnosis.profile import layer_profiles, redrawn_deltas
from jaxdnn.diagnosis.result import Diagnosis, Prescription
from jaxdnn.diagnosis.search import confirm, try_fixes
from jaxdnn.diagnosis.trial import HORIZON, TRAINS, Scales, Trials, parse_optimizer, verdict_of

# A network that learns all within the trial comes to 0.94: nothing is tried from here on.
_WELL = 0.9
_MOST_SHOWN = 5


def diagnose(
    model: Any,
    inputs: Any,
    targets: Any,
    *,
    loss: Callable[[Any, Any], Array] | None = None,
    optimizer: str | optax.GradientTransformation = "sgd:0.1",
    seed: int = 0,
    horizon: int = HORIZON,
    try_changes: bool = True,
    progress: bool = False,
) -> Diagnosis:
    """Examine a network as it stands; it is not changed.

        from jaxdnn import diagnose
        print(diagnose(model, images, labels, optimizer="adam:0.001"))

    Args:
      model: a Flax NNX module, (Linen module, variables), or (function `(params, inputs) ->
        logits`, params).
      inputs: a batch of at least two examples, the batch axis first.
      targets: class indices, or floats of the shape of the logits; with `loss` anything.
      loss: `(logits, targets) -> scalar or (batch,)`; by default cross-entropy for integers, mean
        squared error for floats.
      optimizer: such as `sgd:0.1` or `adam:0.001`, or an optax transformation.
      seed: of dropout.
      horizon: steps that the training may take.
      try_changes: look for prescriptions, and confirm the first cause, unless all goes well.
      progress: show a bar on stderr while fixes are tried.

    Raises:
      InputError: the model, the inputs or the loss cannot be examined; it says what to give.
    """
    transformation = parse_optimizer(optimizer)
    exam = examine(model, inputs, targets, loss=loss, seed=seed)
    causes = find_causes(exam)
    trials = Trials(exam, transformation, horizon=horizon)
    trial = trials.program({})(exam.params, Scales())
    score = trials.score(trial) if exam.measured.finite else 0.0
    prescriptions: tuple[Prescription, ...] = ()
    if try_changes and score < _WELL and (score < TRAINS or causes):
        with ThreadPoolExecutor(1) as beside:
            confirmed = beside.submit(confirm, exam, causes)
            attempt = try_fixes(trials, causes, score, progress=progress)
            causes = confirmed.result()
        if score < TRAINS:
            causes = ranked([*causes, *find_training_causes(attempt)])
        prescriptions = tuple(_prescription(each, score) for each in attempt.tried[:_MOST_SHOWN])
    deltas = redrawn_deltas(exam)
    return Diagnosis(
        verdict=verdict_of(score),
        score=score,
        reason=_reason(exam, deltas, np.asarray(trial.loss)),
        layers=layer_profiles(exam, deltas),
        causes=causes,
        prescriptions=prescriptions,
        loss=exam.measured.loss,
        optimizer=optimizer if isinstance(optimizer, str) else "the given optimizer",
    )


def _prescription(tried: Tried, before: float) -> Prescription:
    return Prescription(tried.fix.words, tried.fix.code, before, tried.score)


def assert_trainable(model: Any, inputs: Any, targets: Any, **options: Any) -> None:
    """Raise AssertionError with the diagnosis unless the verdict is `trains`.

    Arguments as those of `diagnose`.
    """
    diagnosis = diagnose(model, inputs, targets, **options)
    if diagnosis.verdict != "trains":
        raise AssertionError(str(diagnosis))


def _reason(exam: Exam, deltas: Float[np.ndarray, "seed layer+1"], losses: np.ndarray) -> str:
    """Say in numbers what stands behind the verdict."""
    measured = exam.measured
    if not measured.finite:
        return "the loss or its gradient is not finite at the start"
    first, last = (measured.delta[exam.graph.layers[i].z] for i in (0, -1))
    spread = measured.logits_spread / measured.logits_rms if measured.logits_rms else 0.0
    ratio = first / last if last else math.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = deltas[:, 0] / deltas[:, -2]
    return (
        f"loss {losses[0]:.4g} -> {losses[-1]:.4g} in {len(losses) - 1} steps; delta of the first"
        f" layer over the last {ratio:.2g} ({ratios.min():.2g} to {ratios.max():.2g} with such"
        f" weights drawn anew); {spread:.2g} of the logits tell inputs apart"
    )
