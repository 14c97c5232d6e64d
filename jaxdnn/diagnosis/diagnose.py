"""The diagnosis: will this network train, which layer stops it, why, and what to change."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxdnn.diagnosis import printout
from jaxdnn.diagnosis.case import Case, open_case
from jaxdnn.diagnosis.causes import Cause, find_causes, find_rounding, ranked
from jaxdnn.diagnosis.findings import BLOCKING, STRUCTURAL
from jaxdnn.diagnosis.loss_door import is_loss_function
from jaxdnn.diagnosis.measure import Exam, examine_later, measure
from jaxdnn.diagnosis.model import check_inputs
from jaxdnn.diagnosis.profile import layer_profiles, parameter_rows, redrawn_deltas
from jaxdnn.diagnosis.reach import frozen
from jaxdnn.diagnosis.result import Diagnosis, Prescription, rate_curve_of
from jaxdnn.diagnosis.search import Found, confirm, find_fixes
from jaxdnn.diagnosis.setups import AS_IT_IS, Trials, Tried, step_as_it_is
from jaxdnn.diagnosis.trial import (
    BY_HEART,
    FEW,
    HOLDS,
    HORIZON,
    TRAINS,
    Scales,
    Trial,
    parse_optimizer,
    shares,
    still_grows,
    take_first_step,
    verdict_of,
)
from jaxdnn.errors import InputError

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
    outputs: Callable[[Any], Any] | None = None,
    horizon: int = HORIZON,
    held_out: tuple[Any, Any] | None = None,
    budget: float = math.inf,
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

    Two doors: `diagnose(model, inputs, targets)`, and for whatever has a loss function of its
    own `diagnose(loss_fn, params, batch)` with `loss_fn(params, batch[, key])` that gives a scalar,
    or (scalar, anything).

    Args:
      model: a loss function; or a Flax NNX module or what `nnx.split` makes of it; a Linen module,
        alone or as (module, variables); an Equinox module, alone or as (module, state); a Haiku
        transform, alone or with its parameters and state; or (function `(params, inputs) ->
        logits`, params). Flags of training and keys are given where the signature names them.
      inputs: the parameters for a loss function; otherwise a batch of at least two examples, the
        batch axis first; several inputs as a tuple or a dictionary are handed over one by one where
        the signature names as many.
      targets: the batch for a loss function, any tree of arrays; otherwise class indices, or floats
        of the shape of the logits; with `loss` anything.
      loss: `(logits, targets) -> scalar`, or numbers of which the mean is taken; by default
        cross-entropy for integers, mean squared error for floats.
      optimizer: such as `sgd:0.1` or `adam:0.001`, or an optax transformation.
      seed: decides the masks of dropout and all other random draws of the model; 0 or more.
      outputs: takes the logits out of what the model returns, where that is more.
      horizon: steps that the training may take.
      held_out: (inputs, targets) of another batch; what is learnt from the first must hold there,
        before and after a change.
      budget: seconds after which nothing more is tried; the answer is the best that was found. The
        examination itself and the first ten steps are always made.
      try_changes: look for prescriptions, and confirm the first cause, unless all goes well.
      progress: show a bar on stderr while fixes are tried.

    Raises:
      InputError: the model, the inputs or the loss cannot be examined; it says what to give.
    """
    deadline = _deadline(budget)
    transformation = parse_optimizer(optimizer)
    case = open_case(model, inputs, targets, loss=loss, outputs=outputs, seed=seed)
    _check_held_out(model, held_out)
    look = _look(case, transformation, horizon=horizon, held_out=held_out, deadline=deadline)
    judged = _judge(look)
    found = _search(look, judged, progress=progress) if try_changes else Found(judged.causes, ())
    names = (
        printout.optimizer_name(optimizer),
        printout.loss_name(model if is_loss_function(model) else loss, targets),
    )
    return _tell(look, judged, found, names, budget)


def _deadline(budget: float) -> float:
    if not budget > 0:
        raise InputError(f"budget is {budget}; give a positive number of seconds")
    return time.monotonic() + budget


def _check_held_out(model: Any, held_out: tuple[Any, Any] | None) -> None:
    if held_out is None:
        return
    if is_loss_function(model):
        raise InputError(
            "held_out= came with a loss function; it is for (apply, params), inputs and targets"
        )
    check_inputs(*held_out)


class _Look(NamedTuple):
    """What a pass and a short training show.

    Attributes:
      trials: of the examined network.
      base: what it did as it stands.
      causes: what the pass shows, strongest first.
      redrawn: deltas with other weights of the same size.
    """

    trials: Trials
    base: Tried
    causes: tuple[Cause, ...]
    redrawn: np.ndarray


def _look(
    case: Case,
    optimizer: optax.GradientTransformation,
    *,
    horizon: int,
    held_out: tuple[Any, Any] | None,
    deadline: float,
) -> _Look:
    """Measure and train side by side."""
    step = step_as_it_is(case, optimizer)
    with ThreadPoolExecutor(1) as background:
        built = background.submit(step.build, case.params, case.inputs, case.targets, case.key)
        exam = measure(case)
        trials = Trials(
            exam, optimizer, horizon=horizon, held_out=held_out, deadline=deadline, step=step
        )
        trial = background.submit(trials.try_fix, AS_IT_IS)
        causes = find_causes(exam)
        redrawn = redrawn_deltas(exam)
        built.result()
        base = trial.result()
    if any(jnp.result_type(leaf).itemsize < _WHOLE for leaf in jax.tree.leaves(exam.params)):
        causes = ranked([*causes, *find_rounding(exam, take_first_step(exam, optimizer))])
    return _Look(trials, base, causes, redrawn)


class _Judged(NamedTuple):
    """What is to be thought of a network.

    Attributes:
      score: in [0, 1].
      shown: the exam whose layers are told of.
      causes: what is wrong and does not go away by itself.
    """

    score: float
    shown: Exam
    causes: tuple[Cause, ...]


def _judge(look: _Look) -> _Judged:
    exam, causes = look.trials.exam, look.causes
    score = _score_of(look.base.score if exam.measured.finite else 0.0, causes)
    shown = _once_awake(exam, look.trials) if score >= TRAINS else exam
    return _Judged(score, shown, causes if shown is exam else _still_there(causes, shown))


def _search(look: _Look, judged: _Judged, *, progress: bool) -> Found:
    """Look for what helps, and confirm the first cause, unless all goes well."""
    score, causes = judged.score, judged.causes
    if score >= TRAINS and (score >= _WELL or not causes):
        return Found(tuple(cause for cause in causes if cause.kind.regardless), ())
    found = find_fixes(look.trials, causes, look.base._replace(score=score), progress=progress)
    if look.trials.is_late or look.trials.is_heavy:
        return found
    return found._replace(causes=confirm(look.trials.exam, found.causes))


def _tell(
    look: _Look, judged: _Judged, found: Found, names: tuple[str, str], budget: float
) -> Diagnosis:
    """Put together what is told; `names` are those of optimizer and loss."""
    trials, (score, shown, _) = look.trials, judged
    exam = trials.exam
    is_later = shown is not exam
    changes = found.tried[:_MOST_SHOWN]
    return Diagnosis(
        verdict=verdict_of(score),
        score=score,
        reason=_reason(exam, look.base.trial, score, trials.horizon),
        layers=layer_profiles(shown, redrawn_deltas(shown) if is_later else look.redrawn),
        parameters=parameter_rows(shown),
        causes=found.causes,
        prescriptions=tuple(_prescription(trials, each, score) for each in changes),
        loss=exam.measured.loss,
        optimizer=names[0],
        loss_name=names[1],
        notes=(
            *_notes(exam, look.base),
            *([_AWAKE.format(_WAKING)] if is_later else []),
            *_late(trials, budget, score),
        ),
        rates=None if found.rates is None else rate_curve_of(*found.rates, exam.measured.loss),
        recurrences=exam.recurrences,
        attentions=shown.measured.attentions,
        streams=shown.measured.streams,
    )


# Bytes of a parameter of single precision.
_WHOLE = 4


def _score_of(score: float, causes: Sequence[Cause]) -> float:
    """Lower a score where what is learnt is not what is meant."""
    strengths = [cause.strength for cause in causes if cause.kind.regardless]
    if max(strengths, default=0.0) < STRUCTURAL:
        return score
    return 0.0 if max(strengths) >= BLOCKING else min(score, BY_HEART)


# Steps after which weights and gates that begin at zero let a gradient through.
_WAKING = 10
_AWAKE = (
    "the rows of layers are those after {} steps: at the start some get no gradient, as where"
    " weights or gates begin at zero"
)


def _once_awake(exam: Exam, trials: Trials) -> Exam:
    """The exam after some steps, where layers that had no gradient at the start have one then."""
    asleep = _asleep(exam)
    if not asleep or not exam.measured.finite:
        return exam
    later = examine_later(exam, trials.params_after(_WAKING))
    return later if later.measured.finite and _asleep(later) < asleep else exam


def _still_there(causes: Sequence[Cause], later: Exam) -> tuple[Cause, ...]:
    """The causes that do not go away by themselves."""
    if not causes:
        return ()
    left = {(cause.cause, cause.path) for cause in find_causes(later)}
    return tuple(c for c in causes if c.kind.regardless or (c.cause, c.path) in left)


def _asleep(exam: Exam) -> int:
    return sum(exam.measured.delta[layer.z] == 0 for layer in exam.graph.layers)


def _late(trials: Trials, budget: float, score: float) -> Iterator[str]:
    # Of a network that learns nothing more was to be tried.
    if trials.is_late and score < TRAINS:
        yield f"the budget of {budget:g} s ended the search: more may help than was tried"


# Outputs that differ by less, in units of their spread, are the same in both modes.
_SAME_OUTPUTS = 0.05


def _notes(exam: Exam, base: Tried) -> Iterator[str]:
    """Say what the batch, the mode and the length of the trial leave open."""
    num = len(exam.outputs)
    if exam.answers.from_start:
        yield (
            "the loss has no targets, and one answer to all would lower it without end: what"
            " counts is how far it falls below its start"
        )
    if base.held_out < HOLDS:
        yield (
            f"of the batch that is held out {max(base.held_out, 0):.0%} of what there is to learn"
            " is learnt: the first is learnt by heart"
        )
    if num < FEW:
        yield f"{num} examples are learnt by heart in any case: {2 * FEW} would tell more"
    share = shares(base.trial, exam.answers)
    if base.score < TRAINS and still_grows(share) and not base.held_out < HOLDS:
        steps = int((len(share) - 1) * 0.5 / share[-1])
        yield f"starts late: at this pace half is learnt after about {steps} steps"
    yield from (finding.evidence for finding in frozen(exam))
    if exam.network.in_training is not None:
        trained = exam.network.in_training(exam.params, exam.inputs, exam.key)
        spread = float(np.std(exam.outputs)) or 1.0
        off = (
            float(np.sqrt(np.mean((np.asarray(trained, np.float64) - exam.outputs) ** 2))) / spread
        )
        if off > _SAME_OUTPUTS:
            yield (
                "judged in evaluation mode, as it came; in training mode its outputs differ by"
                f" {off:.2g} of their spread"
            )


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


def _reason(exam: Exam, trial: Trial, score: float, horizon: int) -> str:
    """Say in numbers what stands behind the verdict."""
    measured = exam.measured
    return printout.reason(
        trial,
        exam.answers,
        score=score,
        horizon=horizon,
        finite=measured.finite,
        alike=measured.logits_spread / measured.logits_rms if measured.logits_rms else 0.0,
    )
