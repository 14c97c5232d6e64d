"""Which finding is the cause: each is repaired alone, and the network trained for some steps.

A finding whose own repair, alone, makes the network learn stands before one whose repair does not;
among several the smallest edit stands first. Where no single repair is enough, those of two
findings are tried together, and both are said. Then comes what helps many networks: another rate,
another optimizer, and what the lecture teaches. Each fix is tried on a copy before it is printed;
what does not help is not suggested, unless it answers what stops all learning.

What stands in the way of the gradient is confirmed besides: does it recover once the Jacobian of
the layer is the identity?
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
import optax

from jaxdnn.diagnosis.cause_table import Place
from jaxdnn.diagnosis.causes import Cause, find_training_causes
from jaxdnn.diagnosis.edit_fixes import batch_norms, layer_norms, relu_everywhere, shortcuts
from jaxdnn.diagnosis.findings import BLOCKING, CERTAIN, STRUCTURAL
from jaxdnn.diagnosis.fixes import critical_weights, no_decay, step_fixes, wider_layers
from jaxdnn.diagnosis.measure import Exam, host_rms, make_pass
from jaxdnn.diagnosis.profile import log
from jaxdnn.diagnosis.setups import AS_IT_IS, MOST_STEPS, Fix, FixKind, Trials, Tried, both
from jaxdnn.diagnosis.training_causes import Attempt
from jaxdnn.diagnosis.trial import (
    FEW,
    TRAINS,
    FirstStep,
    Scales,
    score_trial,
    take_first_step,
)
from jaxdnn.errors import InputError
from jaxdnn.progress import progress_bar

# Findings that are answered, the strongest first; fewer where a step is slow.
_MOST_ANSWERED, _MOST_ANSWERED_SLOW, _MOST_ANSWERED_HEAVY = 10, 5, 3
# Edits of the forward pass that are compiled for what helps many networks.
_MOST_EDITED, _MOST_EDITED_SLOW, _MOST_EDITED_HEAVY, _MOST_BESIDE = 6, 3, 1, 2
_MOST_PAIRS = 8
# So many trials a search takes mostly; for the progress bar.
_USUAL_TRIALS = 20
# Nothing better is looked for; few examples are learnt sooner than what they stand for.
_GOOD, _GOOD_BY_FEW = 0.6, 0.75
# Size of a change of the rate by hundreds.
_DRASTIC = 4
# Powers of ten of the gradient on its way down that no step makes up for.
_FAR = 6.0
# A score must rise by this share of what is missing to 1.
_HELPS = 0.1
# Findings of at least this strength stop all learning.
_BLOCKS = 0.4 * BLOCKING


class Found(NamedTuple):
    """What a search found.

    Attributes:
      causes: what is wrong, first what to mend first.
      tried: fixes that help, first what to try first.
      rates: factors on the learning rate, and the loss some steps later with each, both (rate,);
        None where rates were not asked for.
    """

    causes: tuple[Cause, ...]
    tried: tuple[Tried, ...]
    rates: tuple[np.ndarray, np.ndarray] | None = None


class Search:
    """One search: what was tried already is not tried again."""

    def __init__(self, trials: Trials, base: Tried, *, progress: bool = False) -> None:
        """Start from the network as it is.

        Args:
          trials: short trainings of the examined network.
          base: what the network as it stands did.
          progress: show a bar on stderr.
        """
        self.trials, self.base = trials, base
        self.exam = trials.exam
        raw = score_trial(base.trial, trials.exam.answers, horizon=trials.horizon)
        # What is learnt by heart already is not what is meant: only answers to that count, unless
        # other examples tell.
        self.by_heart = trials.held_out is None and base.score < TRAINS <= raw
        self.slow = trials.num_steps < trials.horizon
        # Few examples are learnt by heart at a greater rate, and others then not: inputs first.
        self.by_few = False
        self.rates: tuple[np.ndarray, np.ndarray] | None = None
        self.good = _GOOD_BY_FEW if len(self.exam.outputs) < FEW else _GOOD
        self.tried: list[Tried] = []
        self._seen: dict[str, Tried] = {}
        self._bar = progress_bar(
            total=_USUAL_TRIALS, desc="trying fixes", disable=not progress, leave=False
        )

    def helps(self, each: Tried) -> bool:
        """Tell whether a fix made the score rise clearly."""
        return each.score - self.base.score > _HELPS * (1 - self.base.score)

    def merit(self, each: Tried) -> tuple[bool, bool, int, float]:
        """Order fixes: those that make the network train, and well, first; then the smallest."""
        return each.score < TRAINS, each.score < self.good, each.fix.size, -each.score

    def try_all(self, fixes: Iterable[Fix], *, until: float = 2.0) -> list[Tried]:
        """Try fixes, until one scores enough; leave out those that do not fit."""
        done: list[Tried] = []
        for fix in fixes:
            if self.trials.is_late:
                break
            if fix.edits and len(self.exam.graph.program.steps) > MOST_STEPS:
                continue
            if fix.words not in self._seen:
                try:
                    self._seen[fix.words] = self.trials.try_fix(fix)
                except InputError:
                    continue
                self.tried.append(self._seen[fix.words])
                self._bar.update()
            each = self._seen[fix.words]
            done.append(each)
            if each.score >= until:
                break
        return done

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()


def find_fixes(
    trials: Trials, causes: Sequence[Cause], base: Tried, *, progress: bool = False
) -> Found:
    """Find what is wrong and what to change.

    Args:
      trials: short trainings of the examined network.
      causes: what a pass shows, strongest first.
      base: what the network as it stands did.
      progress: show a bar on stderr.
    """
    run = Search(trials, base, progress=progress)
    try:
        answered = _answer(run, causes)
        answered = _combine(run, answered)
        if base.score < TRAINS and not run.by_heart and not trials.is_late:
            answered += _look_wider(run, answered)
    finally:
        run.close()
    return _conclude(run, answered)


@dataclasses.dataclass
class _Answered:
    """A cause with what repairs it.

    Attributes:
      cause: what was found.
      alone: its own repairs that were tried, best first.
      together: whether the network learns with its repair and another's.
    """

    cause: Cause
    alone: list[Tried]
    together: Tried | None = None

    @property
    def score(self) -> float:
        return max((each.score for each in self.alone), default=math.nan)

    @property
    def best(self) -> Tried | None:
        return self.alone[0] if self.alone else None


def _answer(run: Search, causes: Sequence[Cause]) -> list[_Answered]:
    """Repair every finding alone."""
    most = _MOST_ANSWERED_SLOW if run.slow else _MOST_ANSWERED
    most = _MOST_ANSWERED_HEAVY if run.trials.is_heavy else most
    answered: list[_Answered] = []
    done: dict[str, list[Tried]] = {}
    blocked = any(cause.strength >= _BLOCKS for cause in causes)
    for number, cause in enumerate(causes):
        tried: list[Tried] = []
        cured = any(each.score >= run.good for each in answered)
        # What stops all learning leaves nothing to see of other repairs.
        hidden = blocked and cause.strength < _BLOCKS
        hidden = hidden or (run.by_heart and not cause.kind.regardless)
        if number < most and not hidden and not (cured and (blocked or run.slow)):
            index = run.exam.graph.index_of(cause.path)
            for answer in cause.kind.fixes:
                fixes = list(answer(run.exam, index))
                new = run.try_all(fix for fix in fixes if fix.words not in done)
                done.update({each.fix.words: [each] for each in new})
                for fix in fixes:
                    tried += done.get(fix.words, [])
        tried.sort(key=run.merit)
        answered.append(_Answered(cause, tried))
    return answered


def _combine(run: Search, answered: list[_Answered]) -> list[_Answered]:
    """Where no repair is enough alone, repair two findings together, the blocking one first."""
    if run.base.score >= TRAINS or any(each.score >= TRAINS for each in answered) or run.by_heart:
        return answered
    able = sorted(
        (each for each in answered if each.best is not None),
        key=lambda each: (
            each.cause.strength < _BLOCKS,
            -each.cause.strength if each.cause.strength >= _BLOCKS else -each.score,
        ),
    )
    pairs: set[frozenset[str]] = set()
    for first in able[:2]:
        for second in answered:
            if second is first or second.cause.cause == first.cause.cause:
                continue
            # Two changes of the layers are what is tried later, together.
            if Place.OUTSIDE not in (first.cause.kind.place, second.cause.kind.place):
                continue
            index = run.exam.graph.index_of(second.cause.path)
            others = [fix for answer in second.cause.kind.fixes for fix in answer(run.exam, index)]
            for one in first.alone[:2]:
                for fix in others[:2]:
                    same = (one.fix.output and fix.output) or (one.fix.loss and fix.loss)
                    pair = frozenset((one.fix.words, fix.words))
                    if len(pairs) >= _MOST_PAIRS or same or pair in pairs:
                        continue
                    pairs.add(pair)
                    for each in run.try_all([both(one.fix, fix)]):
                        if each.score >= TRAINS:
                            first.together = second.together = each
                            return answered
    return answered


def _look_wider(run: Search, answered: Sequence[_Answered]) -> list[_Answered]:
    """Try what helps many networks: the step first, then weights, activations, norms, shortcuts."""
    exam = run.exam
    first = take_first_step(exam, run.trials.optimizer)
    cured = any(each.score >= run.good for each in answered) or any(e.together for e in answered)
    blocked = [each for each in answered if each.cause.strength >= _BLOCKS and each.best]
    starts = [each.best.fix for each in blocked[:1] if each.best is not None]
    start = starts[0] if starts and not cured else AS_IT_IS
    if cured and (run.slow or blocked):
        return []
    run.by_few = len(exam.outputs) < FEW and any(
        each.best.fix.inputs is not None for each in answered if each.best is not None
    )
    # No step reaches layers that the gradient does not reach.
    taught = run.slow and not cured and _decades(exam) > _FAR and _teach(run, start)
    if not taught:
        tried = run.try_all(_steps(run, start, first, cured), until=run.good)
        if not cured:
            _mend_before_rate(run, answered, tried)
        if not cured and max((each.score for each in tried), default=0.0) < run.good:
            better = max(tried, key=lambda each: each.score, default=run.base)
            if not _teach(run, start) and not run.slow and run.helps(better):
                _teach(run, better.fix, most=_MOST_BESIDE)
    helped = [each for each in run.tried if run.helps(each)]
    attempt = Attempt(exam, first, sorted(helped, key=lambda each: -each.score), run.trials)
    found = []
    for cause in find_training_causes(attempt):
        kinds = _REPAIRED_BY.get(cause.cause, ())
        own = [each for each in run.tried if each.fix.kind in kinds]
        own.sort(key=run.merit)
        found.append(_Answered(cause, own))
    return found


def _teach(run: Search, start: Fix, *, most: int = _MOST_EDITED) -> bool:
    """Try what the lecture teaches on top of another fix; tell whether it is enough."""
    most = _MOST_EDITED_SLOW if run.slow else most
    most = _MOST_EDITED_HEAVY if run.trials.is_heavy else most
    fixes = itertools.islice(_lecture(run.exam), most)
    done = run.try_all(
        (fix if start is AS_IT_IS else both(start, fix) for fix in fixes), until=run.good
    )
    return bool(done) and done[-1].score >= run.good


def _decades(exam: Exam) -> float:
    """How many powers of ten lie between the gradients of the first and of the last layer."""
    first, last = (exam.measured.delta[exam.graph.layers[end].z] for end in (0, -1))
    return abs(log(first) - log(last)) / math.log(10)


def _mend_before_rate(run: Search, answered: Sequence[_Answered], tried: Sequence[Tried]) -> None:
    """Where nothing but a drastic rate helps, mend what is wrong with the loss first, at a rate."""
    cures = [each for each in tried if each.score >= TRAINS]
    if not cures or min(each.fix.size for each in cures) < _DRASTIC:
        return
    for each in answered:
        outside = each.cause.kind.place is Place.OUTSIDE and each.cause.strength >= STRUCTURAL
        raw = run.by_few and each.best is not None and each.best.fix.inputs is not None
        if each.best is None or not (outside or raw):
            continue
        fixes = (both(each.best.fix, rate) for rate in _rate_fixes(run, each.best.fix))
        done = run.try_all(fixes, until=run.good)
        each.together = next((one for one in done if one.score >= TRAINS), None)


# Cause -> kinds of fixes that answer it.
_REPAIRED_BY = {
    "learning rate too small": (FixKind.LEARNING_RATE,),
    "learning rate too large": (FixKind.LEARNING_RATE,),
    "optimizer": (FixKind.OPTIMIZER,),
    "weight decay": (FixKind.DECAY,),
    "too few units": (FixKind.WIDTH,),
    "gradient below epsilon": (FixKind.GRADIENT_SCALE,),
    "step rounded away": (FixKind.PARAMETER_FORMAT,),
}


def _steps(run: Search, start: Fix, first: FirstStep, cured: bool) -> Iterator[Fix]:
    """Other steps: rates from the curve, the format and scale that steps need, Adam."""
    exam = run.exam
    plain = start is AS_IT_IS

    def on_top(fix: Fix) -> Fix:
        return fix if plain else both(start, fix)

    if plain:
        yield from no_decay(first, run.trials.optimizer)
    yield from map(on_top, step_fixes(exam, first))
    yield from map(on_top, _rate_fixes(run, start))
    if not cured:
        for rate in (1e-3, 1e-2)[: 1 if run.slow else 2]:
            yield on_top(
                Fix(
                    "adam", f"Adam at {rate:g} instead of the optimizer",
                    f"optimizer = optax.adam({rate:g})", FixKind.OPTIMIZER, 1,
                    optimizer=optax.adam(rate),
                )
            )  # fmt: skip


def _rate_fixes(run: Search, start: Fix) -> Iterator[Fix]:
    for rate in _rates(run, start):
        yield Fix(
            "learning_rate", f"{rate:.3g} x the learning rate",
            f"learning_rate = {rate:.3g} * learning_rate", FixKind.LEARNING_RATE,
            _DRASTIC if run.by_few and start is AS_IT_IS else _size_of(rate),
            scales=Scales(rate=rate),
        )  # fmt: skip


def _rates(run: Search, start: Fix) -> list[float]:
    """Factors on the learning rate that are worth a trial, the likeliest first."""
    if run.trials.is_late:
        return []
    factors, losses = run.trials.rate_curve(start)
    if start is AS_IT_IS:
        run.rates = factors, losses
    sound = np.where(np.isfinite(losses), losses, np.inf)
    if not np.isfinite(sound).any():
        return []
    best = float(factors[int(np.argmin(sound))])
    # The least rise that will do; and a fall with some room, for other batches are less kind.
    rising = sorted((10.0, best / 10, best / 3, best))
    found = rising if best > 1 else [best / 3, best / 10, best]
    chosen = dict.fromkeys(float(f"{x:.2g}") for x in found)
    return [x for x in chosen if abs(math.log10(x)) > 0.2 and (x > 1) == (best > 1)]


def _size_of(rate: float) -> int:
    """How much a factor on the learning rate changes: one by hundreds is no usual rate any more."""
    return 1 if 0.005 <= rate <= 50 else _DRASTIC


def _lecture(exam: Exam) -> Iterator[Fix]:
    yield from wider_layers(exam)
    weights = critical_weights(exam)
    yield weights
    yield from relu_everywhere(exam)
    yield from batch_norms(exam)
    yield from shortcuts(exam, weights)
    yield from layer_norms(exam)


def _conclude(run: Search, answered: Sequence[_Answered]) -> Found:
    """Put causes and fixes into order."""
    base = run.base.score
    alone = [
        dataclasses.replace(
            each,
            cause=dataclasses.replace(
                each.cause,
                repaired=each.score,
                together=each.together.score if each.together else math.nan,
            ),
        )
        for each in answered
    ]
    trains = base >= TRAINS
    cured = any(each.score >= TRAINS for each in alone)
    blocked = any(e.cause.strength >= _BLOCKS and e.score >= TRAINS for e in alone)
    kept = [each for each in alone if _matters(run, each, trains, cured, blocked)]
    kept.sort(key=lambda each: _rank(run, each))
    own = [each.together or each.best for each in kept]
    helped = [each for each in run.tried if run.helps(each)]
    helped.sort(key=run.merit)
    blocks = bool(kept) and kept[0].cause.strength >= _BLOCKS
    first = [each for each in own[:1] if each is not None and (blocks or run.helps(each))]
    if first and first[0].score < TRAINS and helped and helped[0].score >= TRAINS:
        first = []
    ordered = with_alternative(list({id(each): each for each in [*first, *helped]}.values()))
    return Found(tuple(each.cause for each in kept), tuple(ordered), run.rates)


def with_alternative(ordered: list[Tried]) -> list[Tried]:
    """Return trials with what makes a network learn best, and is another than the first, second.

    Args:
      ordered: trials of fixes that help, first what to try first.
    """
    others = [
        each
        for each in ordered[1:]
        if each.fix.name != ordered[0].fix.name and each.score >= TRAINS
    ]
    if not others:
        return ordered
    best = max(others, key=lambda each: each.score)
    return [ordered[0], best, *(each for each in ordered[1:] if each is not best)]


def _matters(run: Search, each: _Answered, trains: bool, cured: bool, blocked: bool) -> bool:
    """Tell whether a finding is a cause: a repair that changes nothing speaks against it."""
    cause = each.cause
    if cause.kind.regardless:
        return True
    if run.by_heart:
        return False
    if trains:
        return (
            cause.strength >= CERTAIN
            and bool(each.alone)
            and each.score - run.base.score > 0.5 * (1 - run.base.score)
        )
    if cause.strength >= _BLOCKS or each.together is not None:
        return True
    if blocked:
        return False
    return each.score >= TRAINS or not cured or not each.alone


def _rank(run: Search, each: _Answered) -> tuple[float, ...]:
    cause = each.cause
    if cause.strength >= (STRUCTURAL if cause.kind.regardless else _BLOCKS):
        return 0, -cause.strength
    if each.score >= TRAINS:
        assert each.best is not None
        ways = [each.best, each.together] if run.by_few and each.together else [each.best]
        return 1, *min(map(run.merit, ways))
    if each.together is not None:
        good = each.together.score < run.good
        certain = run.by_few or cause.strength >= STRUCTURAL
        return (1, False, good, 3, 0) if certain else (2, -cause.strength)
    return 3, -cause.strength


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
