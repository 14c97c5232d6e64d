"""The diagnosis: will this network train, which layer stops it, why, and what to change."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import optax
from jax import Array
from jaxtyping import Float

from jaxdnn.diagnosis.causes import Cause, find_causes
from jaxdnn.diagnosis.measure import Exam, examine
from jaxdnn.diagnosis.profile import LayerProfile, layer_profiles, redrawn_deltas
from jaxdnn.diagnosis.search import confirm, find_fixes
from jaxdnn.diagnosis.setups import Fix, Trials, Tried
from jaxdnn.diagnosis.trial import (
    HORIZON,
    TRAINS,
    Scales,
    Verdict,
    parse_optimizer,
    verdict_of,
)
from jaxdnn.run_folder import without_nan

# A network that learns all within the trial comes to 0.94: nothing is tried from here on.
_WELL = 0.9
_MOST_SHOWN = 5
# Rows of the printed table beyond which its middle is left out.
_MOST_ROWS = 24


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
class Diagnosis:
    """What stops a network, and what to change.

    Attributes:
      verdict: `trains`, `at risk` or `will not train`.
      score: in [0, 1]; see `jaxdnn.diagnosis.trial`.
      reason: the numbers behind the verdict, in a line.
      layers: in the order in which they run.
      causes: what is wrong, worst first.
      prescriptions: changes that help, best first.
      loss: mean over the batch, at the start.
      optimizer: that the verdict is for.
    """

    verdict: Verdict
    score: float
    reason: str
    layers: tuple[LayerProfile, ...]
    causes: tuple[Cause, ...]
    prescriptions: tuple[Prescription, ...]
    loss: float
    optimizer: str

    def __str__(self) -> str:
        return "\n".join([self._headline(), *self._table(), *self._findings()])

    def _headline(self) -> str:
        return f"{self.verdict} (score {self.score:.2f}, {self.optimizer}): {self.reason}"

    def _table(self) -> list[str]:
        width = max([5, *(len(layer.path) for layer in self.layers)])
        rows = [
            f"{'layer':{width}}  {'delta':>9}  {'factor':>8}  {'redrawn':>16}  {'z':>8}  dead"
            "  mostly"
        ]
        for layer in self.layers:
            term = max(layer.terms, key=lambda name: abs(layer.terms[name]))
            rows.append(
                f"{layer.path:{width}}  {layer.delta_rms:9.2e}  {layer.factor:8.3g}"
                f"  {_span(layer.factor_band):>16}"
                f"  {layer.pre_activation_rms:8.3g}  {layer.dead:4.0%}"
                f"  {term} {layer.terms[term]:+.2f}"
            )
        if len(rows) <= _MOST_ROWS:
            return rows
        half = _MOST_ROWS // 2
        return [*rows[:half], f"... {len(rows) - 2 * half} more", *rows[-half:]]

    def _findings(self) -> list[str]:
        causes = [f"cause: {c.path}: {c.cause}: {c.evidence}{_confirmed(c)}" for c in self.causes]
        changes = [
            f"try: {p.change} (score {p.before:.2f} -> {p.after:.2f}): {p.code}"
            for p in self.prescriptions
        ]
        return [*causes, *changes]

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

    def to_markdown(self) -> str:
        """Return headings, lists and a table."""
        head = "| layer | delta RMS | factor | redrawn | " + " | ".join(self.layers[0].terms) + " |"
        rule = "|---" * (4 + len(self.layers[0].terms)) + "|"
        rows = [
            f"| `{layer.path}` | {layer.delta_rms:.2e} | {layer.factor:.3g} |"
            f" {_span(layer.factor_band)} | "
            + " | ".join(f"{term:+.2f}" for term in layer.terms.values())
            + " |"
            for layer in self.layers
        ]
        findings = [f"- {line}" for line in self._findings()]
        return "\n".join([f"# {self._headline()}", "", *findings, "", head, rule, *rows, ""])


def _span(band: tuple[float, float]) -> str:
    return f"{band[0]:.3g} to {band[1]:.3g}"


def _confirmed(cause: Cause) -> str:
    if math.isnan(cause.recovery):
        return ""
    return f"; with its Jacobian the identity the first layer's delta is 10^{cause.recovery:+.1f} x"


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

        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxdnn import diagnose
        >>> def network(params, x):
        ...     *hidden, last = params
        ...     for kernel in hidden:
        ...         x = jnp.tanh(x @ kernel)
        ...     return x @ last
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> params = [jax.random.normal(key, (16, 16)) / 4 for key in keys]
        >>> images = jax.random.normal(jax.random.key(1), (64, 16))
        >>> labels = images.argmax(axis=1)
        >>> diagnose((network, params), images, labels, optimizer="adam:0.01").verdict
        'trains'

    Args:
      model: a Flax NNX module, (Linen module, variables), or (function `(params, inputs) ->
        logits`, params).
      inputs: a batch of at least two examples, the batch axis first.
      targets: class indices, or floats of the shape of the logits; with `loss` anything.
      loss: `(logits, targets) -> scalar or (batch,)`; by default cross-entropy for integers, mean
        squared error for floats.
      optimizer: such as `sgd:0.1` or `adam:0.001`, or an optax transformation.
      seed: decides the masks of dropout and all other random draws of the model; 0 or more.
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
    base = trials.try_fix(_AS_IT_IS)
    score = base.score if exam.measured.finite else 0.0
    tried: tuple[Tried, ...] = ()
    if try_changes:
        if score < TRAINS or (score < _WELL and causes):
            causes, tried = find_fixes(
                trials, causes, base._replace(score=score), progress=progress
            )
            causes = confirm(exam, causes)
        else:
            causes = tuple(cause for cause in causes if cause.kind.regardless)
    deltas = redrawn_deltas(exam)
    return Diagnosis(
        verdict=verdict_of(score),
        score=score,
        reason=_reason(exam, deltas, np.asarray(base.trial.loss)),
        layers=layer_profiles(exam, deltas),
        causes=causes,
        prescriptions=tuple(_prescription(trials, each, score) for each in tried[:_MOST_SHOWN]),
        loss=exam.measured.loss,
        optimizer=optimizer if isinstance(optimizer, str) else "the given optimizer",
    )


_AS_IT_IS = Fix("as_it_is", "the network as it is", "")


def _prescription(trials: Trials, tried: Tried, before: float) -> Prescription:
    fix, setup = tried.fix, tried.setup

    def apply(params: Any, inputs: Any, key: Array | None = None) -> Any:
        return setup.forward(params, inputs, key)

    def prepare(inputs: Any, targets: Any) -> tuple[Any, Any]:
        return (
            inputs if fix.inputs is None else fix.inputs(inputs),
            targets if fix.targets is None else fix.targets(targets),
        )

    rescaled = fix.scales != Scales()
    return Prescription(
        fix.words,
        fix.code,
        before,
        tried.score,
        fix.name,
        (apply, setup.params),
        _scaled(setup.optimizer, fix.scales) if rescaled or fix.optimizer is not None else None,
        fix.loss,
        prepare if fix.inputs is not None or fix.targets is not None else None,
    )


def _scaled(
    optimizer: optax.GradientTransformation, scales: Scales
) -> optax.GradientTransformation:
    """An optimizer with factors on gradient and step."""
    parts = [optax.scale(scales.gradient)] if scales.gradient != 1 else []
    parts.append(optimizer)
    if scales.rate != 1:
        parts.append(optax.scale(scales.rate))
    return optax.chain(*parts) if len(parts) > 1 else optimizer


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
        f" layer over the last {ratio:.2g} ({ratios.min():.2g} to {ratios.max():.2g} with random"
        f" weights of the same scale); {spread:.2g} of the logits tell inputs apart"
    )
