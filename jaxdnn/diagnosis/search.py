"""Which fixes to try, in which order, and what confirms a cause.

Each fix is tried on a copy before it is printed; what does not help is not suggested. New
parameters run through the program that is compiled already, edits compile another, which takes most
of the time: so both go side by side, and edits only until one makes the network train well.

A cause is confirmed by a counterfactual: does the gradient recover once the Jacobian of the layer
is the identity?
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax

from jaxdnn.diagnosis.causes import Cause, Place
from jaxdnn.diagnosis.edit_fixes import batch_norms, layer_norms, relu_everywhere, shortcuts
from jaxdnn.diagnosis.fixes import Fix, FixGroup, FixKind, Tried, critical_weights, step_fixes
from jaxdnn.diagnosis.measure import Exam, host_rms, make_pass
from jaxdnn.diagnosis.profile import log
from jaxdnn.diagnosis.training_causes import Attempt
from jaxdnn.diagnosis.trial import FirstStep, Trials, take_first_step
from jaxdnn.progress import progress_bar

# Causes that are answered, the worst first, and programs that are compiled.
_MOST_ANSWERED = 2
_MOST_EDITED = 6
# Nothing better is looked for, neither among rates nor among edits.
_GOOD = 0.6
# A score must rise by this share of what is missing to 1.
_HELPS = 0.1


def _candidates(exam: Exam, causes: Sequence[Cause], first: FirstStep) -> Iterator[FixGroup]:
    """What answers the causes first, then what helps many networks."""
    for cause in causes[:_MOST_ANSWERED]:
        index = exam.graph.index_of(cause.path)
        if index is not None:
            for answer in cause.kind.fixes:
                yield from answer(exam, index)
    weights = critical_weights(exam)
    yield FixGroup({}, (weights, *step_fixes(exam, first)))
    yield from shortcuts(exam, weights)
    yield from batch_norms(exam)
    yield from relu_everywhere(exam)
    yield from layer_norms(exam)


def try_fixes(
    trials: Trials, causes: Sequence[Cause], before: float, *, progress: bool = False
) -> Attempt:
    """Try fixes; keep those that help, best first.

    Args:
      trials: short trainings of the examined network.
      causes: what is wrong, worst first.
      before: score of the network as it stands, in [0, 1].
      progress: show a bar on stderr.
    """
    exam = trials.exam
    first = take_first_step(exam, trials.optimizer)
    groups = list(_candidates(exam, causes, first))
    edited = [group for group in groups if group.edits][:_MOST_EDITED]
    plain = [fix for group in groups if not group.edits for fix in group.fixes]
    rates = [FixGroup({}, (fix,)) for fix in plain if fix.kind is FixKind.LEARNING_RATE]
    others = tuple(fix for fix in plain if fix.kind is not FixKind.LEARNING_RATE)
    total = len(plain) + sum(len(group.fixes) for group in edited)
    bar = progress_bar(total=total, desc="trying fixes", disable=not progress, leave=False)

    def try_group(group: FixGroup) -> list[Tried]:
        run = trials.program(group.edits)

        def try_one(fix: Fix) -> Tried:
            tried = Tried(fix, group.edits, trials.score(run(fix.params, fix.scales)))
            bar.update()
            return tried

        return [try_one(fix) for fix in group.fixes]

    with bar, ThreadPoolExecutor(1) as background:
        later = background.submit(_try_until_it_trains, edited, try_group)
        tried = try_group(FixGroup({}, others))
        tried += _try_until_it_trains(rates, try_group)
        tried += later.result()
    helped = [each for each in tried if each.score - before > _HELPS * (1 - before)]
    return Attempt(exam, first, sorted(helped, key=lambda each: -each.score))


def _try_until_it_trains(
    groups: Sequence[FixGroup], try_group: Callable[[FixGroup], list[Tried]]
) -> list[Tried]:
    tried: list[Tried] = []
    for group in groups:
        tried += try_group(group)
        if max(each.score for each in tried) >= _GOOD:
            break
    return tried


def confirm(exam: Exam, causes: Sequence[Cause]) -> tuple[Cause, ...]:
    """Return the causes, the first with what bridging its layer does to the first layer's delta."""
    if not causes:
        return ()
    first, *others = causes
    index = _way(exam, first)
    change = math.nan if index is None else bridged_change(exam, index)
    return (dataclasses.replace(first, recovery=change), *others)


def bridged_change(exam: Exam, index: int) -> float:
    """Return log10 of the first layer's delta with the way to a layer bridged, over without."""
    lowest = exam.graph.layers[0].z
    forward_and_back = make_pass(exam.graph, exam.loss, bridged=index)
    arrays = forward_and_back(exam.params, exam.inputs, exam.targets, exam.key)
    bridged = host_rms(jax.device_get(arrays.deltas[lowest]))
    return (log(bridged) - log(exam.measured.delta[lowest])) / math.log(10)


def _way(exam: Exam, cause: Cause) -> int | None:
    """The layer whose way down holds the fault; None where none does, or nothing lies below it."""
    index = exam.graph.index_of(cause.path)
    place = cause.kind.place
    if index is None or place not in (Place.LAYER, Place.ABOVE):
        return None
    upper = exam.graph.above(index) if place is Place.ABOVE else index
    return upper if upper is not None and exam.graph.edges[upper].below is not None else None
