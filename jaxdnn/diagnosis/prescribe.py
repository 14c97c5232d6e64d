"""Changes, each tried on a copy before it is printed; what does not help is not suggested.

A change is new parameters, edits of the forward pass, or both. The rehearsal says how good it is:
new parameters run through the program that is compiled already, edits compile another, which takes
most of the time: so both go side by side, and edits only until one makes the network train well.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from jaxdnn.diagnosis.changes import candidates
from jaxdnn.diagnosis.examine import Examination
from jaxdnn.diagnosis.first_step import FirstStep
from jaxdnn.diagnosis.remedies import Change, Tried
from jaxdnn.diagnosis.result import Prescription

# Changes that are shown, and programs that are compiled.
MOST_SHOWN = 5
MOST_EDITS = 6
# Nothing better is looked for, neither among rates nor among edits.
_GOOD = 0.6
# A network that learns all within the rehearsal comes to 0.94: nothing is tried from here on.
WELL = 0.9
# A score must rise by this share of what is missing to 1.
_HELPS = 0.1
Try = Callable[[Change], float]


def try_changes(
    seen: Examination, first: FirstStep, before: float, attempt: Try, *, progress: bool = False
) -> list[Tried]:
    """Try changes and return those that help, best first.

    Args:
      seen: of the network; its parameters are not changed.
      first: the optimizer's first step.
      before: score as it stands.
      attempt: gives the score of a change.
      progress: show a bar on stderr.
    """
    graph, measured = seen.graph, seen.measured
    changes = list(candidates(graph, measured, seen.params, seen.causes, seen.gains, first))
    by_edits = itertools.groupby(changes, key=lambda change: id(change.edits))
    groups = [list(group) for _, group in by_edits]
    edited = [group for group in groups if group[0].edits][:MOST_EDITS]
    rates = [[change] for change in changes if change.kind == "rate"]
    others = [change for change in changes if not change.edits and change.kind != "rate"]
    total = len(rates) + len(others) + sum(map(len, edited))
    bar = tqdm(total=total, desc="trying changes", disable=not progress, leave=False)

    def try_one(change: Change) -> Tried:
        tried = Tried(change, attempt(change))
        bar.update()
        return tried

    with bar, ThreadPoolExecutor(1) as beside:
        later = beside.submit(_try_until_it_trains, edited, try_one)
        tried = [try_one(change) for change in others]
        tried += _try_until_it_trains(rates, try_one)
        tried += later.result()
    helped = [each for each in tried if each.score - before > _HELPS * (1 - before)]
    return sorted(helped, key=lambda each: -each.score)


def prescriptions(tried: Sequence[Tried], before: float) -> tuple[Prescription, ...]:
    """Return the changes to show.

    Args:
      tried: those that help, best first.
      before: score without them.
    """
    return tuple(
        Prescription(change.words, change.code, before, after)
        for change, after in tried[:MOST_SHOWN]
    )


def _try_until_it_trains(
    groups: Sequence[Sequence[Change]], try_one: Callable[[Change], Tried]
) -> list[Tried]:
    tried: list[Tried] = []
    for group in groups:
        tried += map(try_one, group)
        if max(each.score for each in tried) >= _GOOD:
            break
    return tried
