"""Will this network train, which layer stops it, why, and what to change."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import optax
from jax import Array
from jaxtyping import Float

from jaxdnn.diagnosis import prescribe, verdict
from jaxdnn.diagnosis.bands import redrawn_deltas
from jaxdnn.diagnosis.causes import ranked
from jaxdnn.diagnosis.counterfactual import confirm
from jaxdnn.diagnosis.examine import Examination, examine
from jaxdnn.diagnosis.first_step import take_first_step
from jaxdnn.diagnosis.optimizers import make_optimizer
from jaxdnn.diagnosis.probe import Edit, run
from jaxdnn.diagnosis.profile import make_layers
from jaxdnn.diagnosis.rehearsal import Forward, Rehearsal, Scales, make_rehearsal
from jaxdnn.diagnosis.remedies import Change
from jaxdnn.diagnosis.result import Diagnosis
from jaxdnn.diagnosis.training_causes import find_training_causes


def diagnose(
    model: Any,
    inputs: Any,
    targets: Any,
    *,
    loss: Callable[[Any, Any], Array] | None = None,
    optimizer: str | optax.GradientTransformation = "sgd:0.1",
    seed: int = 0,
    horizon: int = verdict.HORIZON,
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
      progress: show a bar on stderr while changes are tried.

    Raises:
      InputError: the model, the inputs or the loss cannot be examined; it says what to give.
    """
    transformation = make_optimizer(optimizer)
    seen = examine(model, inputs, targets, loss=loss, seed=seed)
    rehearse = make_rehearse(seen, transformation, inputs, targets)

    def attempt(change: Change) -> float:
        rehearsed = rehearse(change.params, change.edits, change.scales)
        return verdict.score(rehearsed, horizon=horizon)

    rehearsed = rehearse(seen.params, {}, Scales())
    value = verdict.score(rehearsed, horizon=horizon) if seen.measured.finite else 0.0
    causes, tried = seen.causes, []
    if try_changes and value < prescribe.WELL and (value < verdict.TRAINS or causes):
        first = take_first_step(seen, transformation)
        with ThreadPoolExecutor(1) as beside:
            confirmed = beside.submit(confirm, seen, inputs, targets)
            tried = prescribe.try_changes(seen, first, value, attempt, progress=progress)
            causes = confirmed.result()
        if value < verdict.TRAINS:
            causes = ranked([*causes, *find_training_causes(seen, first, tried)])
    deltas = redrawn_deltas(seen, inputs, targets)
    return Diagnosis(
        verdict=verdict.word(value),
        score=value,
        reason=_reason(seen, deltas, np.asarray(rehearsed.loss)),
        layers=make_layers(seen, deltas),
        causes=causes,
        prescriptions=prescribe.prescriptions(tried, value),
        loss=seen.measured.loss,
        optimizer=optimizer if isinstance(optimizer, str) else "the given optimizer",
    )


def make_rehearse(
    seen: Examination, optimizer: optax.GradientTransformation, inputs: Any, targets: Any
) -> Callable[[Any, Mapping[int, Edit], Scales], Rehearsal]:
    """Return `(params, edits, scales) -> Rehearsal` of changed parameters in an edited network."""

    def make(edits: Mapping[int, Edit]) -> Callable[..., Rehearsal]:
        forward = edited(seen, edits) if edits else seen.network.apply
        return make_rehearsal(
            _narrowed(forward, seen.params), seen.loss, optimizer, num_steps=verdict.NUM_STEPS
        )

    plain = make({})
    # Changes that share their edits share a program. Kept with it, an id stays theirs.
    made: dict[int, tuple[Mapping[int, Edit], Callable[..., Rehearsal]]] = {}

    def rehearse(params: Any, edits: Mapping[int, Edit], scales: Scales) -> Rehearsal:
        if edits and id(edits) not in made:
            made[id(edits)] = edits, make(edits)
        run_it = made[id(edits)][1] if edits else plain
        return run_it(params, inputs, targets, seen.key, scales)

    return rehearse


def _narrowed(forward: Forward, like: Any) -> Forward:
    """Return a network that takes wider parameters than its own, and calculates as before."""

    def narrowed(params: Any, inputs: Any, key: Array | None) -> Array:
        params = jax.tree.map(lambda wide, own: wide.astype(own.dtype), params, like)
        return forward(params, inputs, key)

    return narrowed


def edited(seen: Examination, edits: Mapping[int, Edit]) -> Forward:
    """Return the network with edits, as `(params, inputs, key) -> logits`."""
    program = seen.graph.program

    def forward(params: Any, inputs: Any, key: Array | None) -> Array:
        return run(program, (params, inputs, key), edits)[program.output]

    return forward


def assert_trainable(model: Any, inputs: Any, targets: Any, **options: Any) -> None:
    """Raise AssertionError with the diagnosis unless the verdict is `trains`.

    Args:
      model: as in `diagnose`.
      inputs: likewise.
      targets: likewise.
      **options: likewise.
    """
    diagnosis = diagnose(model, inputs, targets, **options)
    if diagnosis.verdict != "trains":
        raise AssertionError(str(diagnosis))


def _reason(
    seen: Examination, deltas: Float[np.ndarray, "seed layer+1"], losses: np.ndarray
) -> str:
    """Say in numbers what stands behind the verdict."""
    measured = seen.measured
    if not measured.finite:
        return "the loss or its gradient is not finite at the start"
    first, last = (measured.delta[seen.graph.layers[i].z] for i in (0, -1))
    spread = measured.logits_spread / measured.logits_rms if measured.logits_rms else 0.0
    ratio = first / last if last else math.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = deltas[:, 0] / deltas[:, -2]
    return (
        f"loss {losses[0]:.4g} -> {losses[-1]:.4g} in {len(losses) - 1} steps; delta of the first"
        f" layer over the last {ratio:.2g} ({ratios.min():.2g} to {ratios.max():.2g} with such"
        f" weights drawn anew); {spread:.2g} of the logits tell inputs apart"
    )
