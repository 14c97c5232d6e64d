"""What is wrong with a network: each finding as an entry of the table of causes says it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator

from jaxdnn.diagnosis import hidden_causes
from jaxdnn.diagnosis.attention import find_attentions
from jaxdnn.diagnosis.attention_causes import COLLAPSES
from jaxdnn.diagnosis.cause_table import CAUSES, CauseKind
from jaxdnn.diagnosis.findings import NAMED, Category, Finding
from jaxdnn.diagnosis.measure import Exam
from jaxdnn.diagnosis.training_causes import Attempt
from jaxdnn.diagnosis.trial import FirstStep


@dataclasses.dataclass(frozen=True)
class Cause:
    """Something wrong with a layer.

    Attributes:
      path: where the layer is in the model, such as `layers/3`; empty for what is not about one.
      cause: name of its kind, a key of `CAUSES`.
      evidence: the numbers that say so.
      strength: deviation over the spread of healthy networks; 3 or more.
      category: what the fault is of.
      code: the name as one word, which never changes.
      line: of the user's program, as `file:line`; None where unknown.
      repaired: score of the network with this alone repaired, in [0, 1]; NaN where not tried.
      together: score with this and another finding repaired; NaN where this alone is enough, or
        both are not.
      recovery: log10 of the factor by which the first layer's delta changes once the Jacobian of
        this layer is the identity; NaN where that was not tried.
    """

    path: str
    cause: str
    evidence: str
    strength: float
    category: Category
    code: str
    line: str | None = None
    repaired: float = math.nan
    together: float = math.nan
    recovery: float = math.nan

    @property
    def kind(self) -> CauseKind:
        """Its entry in the table."""
        return CAUSES[self.cause]


def find_causes(exam: Exam) -> tuple[Cause, ...]:
    """Return what one pass shows to be wrong, worst first."""
    found = [cause for kind in CAUSES.values() for cause in _causes(exam, kind, kind.find(exam))]
    if any(cause.cause in COLLAPSES for cause in found):
        asking = {
            exam.graph.layers[index].path
            for each in find_attentions(exam.graph)
            for index in (each.asked, each.seen)
            if index is not None
        }
        found = [each for each in found if each.cause not in _SCALES or each.path not in asking]
    return ranked(found)


def find_rounding(exam: Exam, first: FirstStep) -> tuple[Cause, ...]:
    """Return the parameters whose format is too coarse for the steps, at most one."""
    findings = hidden_causes.rounded_steps(exam, first)
    return tuple(_causes(exam, CAUSES["step rounded away"], findings))


def find_training_causes(attempt: Attempt) -> tuple[Cause, ...]:
    """Return why a network does not train that may be sound at its start, worst first."""
    return ranked(
        cause
        for kind in CAUSES.values()
        for cause in _causes(attempt.exam, kind, kind.find_in_training(attempt))
    )


def _causes(exam: Exam, kind: CauseKind, findings: Iterable[Finding]) -> Iterator[Cause]:
    for finding in findings:
        if finding.strength >= NAMED:
            path = "" if finding.layer is None else exam.graph.layers[finding.layer].path
            yield Cause(
                path,
                kind.name,
                finding.evidence,
                finding.strength,
                finding.category or kind.category,
                kind.name.replace(" ", "_"),
                _line(exam, finding),
            )


def _line(exam: Exam, finding: Finding) -> str | None:
    """The line that a finding names, otherwise where the user's own code calls the layer."""
    if finding.line is not None or finding.layer is None:
        return finding.line
    line = exam.graph.program.steps[exam.graph.layers[finding.layer].step].line
    return str(line) if line is not None and line.is_own else None


def ranked(causes: Iterable[Cause]) -> tuple[Cause, ...]:
    """Return causes, the worst first, without what another one of the same place says better."""
    found = sorted(causes, key=lambda cause: -cause.strength)
    said = {(cause.cause, cause.path) for cause in found}
    return tuple(
        cause for cause in found if (_SAID_BY.get(cause.cause, ""), cause.path) not in said
    )


# What a collapse of attention says better, of queries and keys.
_SCALES = ("weights too large", "weights too small")
# What follows from another finding, which tells more.
_SAID_BY = {"outputs cannot reach targets": "softmax over one unit"}
