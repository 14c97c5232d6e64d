"""What a diagnosis says, for people, notebooks and programs."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from jaxdnn.diagnosis.causes import Cause
from jaxdnn.diagnosis.profile import LayerProfile
from jaxdnn.diagnosis.trial import Verdict
from jaxdnn.run_folder import without_nan

# Rows of the printed table beyond which its middle is left out.
_MOST_ROWS = 24


@dataclasses.dataclass(frozen=True)
class Prescription:
    """A change that was tried and helped.

    Attributes:
      change: in words.
      code: the line of Flax that does it.
      before: score without it.
      after: score with it.
    """

    change: str
    code: str
    before: float
    after: float


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What stops a network, and what to change.

    Attributes:
      verdict: `trains`, `at risk` or `will not train`.
      score: in [0, 1]; see `jaxdnn.diagnosis.trial`.
      reason: the numbers behind the verdict, in a line.
      layers: in the order in which they run.
      causes: worst first.
      prescriptions: best first.
      loss: at the start.
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
            f"{'layer':{width}}  {'delta':>9}  {'factor':>8}  {'drawn anew':>16}  {'z':>8}  dead"
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
        return without_nan(dataclasses.asdict(self))

    def to_json(self) -> str:
        """Return a JSON object with the fields of this class."""
        return json.dumps(self.to_dict(), indent=2)

    def to_markdown(self) -> str:
        """Return headings, lists and a table."""
        head = (
            "| layer | delta RMS | factor | drawn anew | " + " | ".join(self.layers[0].terms) + " |"
        )
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
