"""Changes, each tried on a copy before it is printed; what does not help is not suggested.

A change is new parameters, edits of the forward pass, or both. The rehearsal says how good it is:
new parameters run through the program that is compiled already, edits compile another, which takes
most of the time: so both go side by side, and edits only until one makes the network train.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from jaxdnn.diagnosis.changes import candidates
from jaxdnn.diagnosis.examine import Examination
from jaxdnn.diagnosis.remedies import Change
from jaxdnn.diagnosis.result import Prescription
from jaxdnn.diagnosis.verdict import TRAINS

# Changes that are shown, and changes that compile a program of their own.
MOST_SHOWN = 5
MOST_EDITS = 4
# A score must rise by this share of what is missing to 1.
_HELPS = 0.1
Try = Callable[[Change], float]


class Tried(NamedTuple):
    """A change that was tried.

    Attributes:
      change: what was done.
      score: with it.
    """

    change: Change
    score: float


def prescribe(seen: Examination, before: float, attempt: Try) -> tuple[Prescription, ...]:
    """Try changes and return those that help, best first.

    Args:
      seen: of the network; its parameters are not changed.
      before: score as it stands.
      attempt: gives the score of a change.
    """
    return tuple(
        Prescription(change.words, change.code, before, after)
        for change, after in try_changes(seen, before, attempt)[:MOST_SHOWN]
    )


def try_changes(seen: Examination, before: float, attempt: Try) -> list[Tried]:
    """Return the changes that help, best first; arguments as in `prescribe`."""
    changes = list(candidates(seen.graph, seen.measured, seen.params, seen.causes, seen.gains))
    edited = [change for change in changes if change.edits]
    with ThreadPoolExecutor(1) as beside:
        by_edits = beside.submit(_try_until_it_trains, edited[:MOST_EDITS], attempt)
        tried = [Tried(each, attempt(each)) for each in changes if not each.edits]
        tried += by_edits.result()
    helped = [each for each in tried if each.score - before > _HELPS * (1 - before)]
    return sorted(helped, key=lambda each: -each.score)


def _try_until_it_trains(changes: Sequence[Change], attempt: Try) -> list[Tried]:
    tried: list[Tried] = []
    for change in changes:
        tried.append(Tried(change, attempt(change)))
        if tried[-1].score >= TRAINS:
            break
    return tried
