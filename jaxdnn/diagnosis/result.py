"""What a diagnosis says, for people, notebooks and programs."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, Literal

from jaxdnn.run_folder import without_nan

Verdict = Literal["trains", "at risk", "will not train"]
CauseName = Literal[
    "weights too small",
    "weights too large",
    "zero weights",
    "fan-out for fan-in",
    "saturating activation",
    "dead units",
    "bias too large",
    "softmax twice",
    "missing norm",
    "dropout",
    "padding",
    "gain too small everywhere",
    "gain too large everywhere",
    "not finite",
    "underflow",
    "inputs look alike",
    "signal too large",
    "gradient below epsilon",
    "step rounded away",
    "learning rate too small",
    "learning rate too large",
]
# Rows of the printed table beyond which its middle is left out.
_MOST_ROWS = 24


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer, the first nearest the input.

    Attributes:
      path: in the user's own model.
      kind: `dense`, `conv` or `embedding`.
      fan_in: summands of a pre-activation.
      fan_out: pre-activations that an input reaches.
      pre_activation_mean: over batch and units.
      pre_activation_rms: root mean square.
      correlation: mean cosine between the pre-activations of two examples.
      delta_rms: root mean square of dL/dz.
      delta_rms_by_example: the same for each example.
      delta_band: the least and the greatest delta_rms with weights of the same scale drawn anew.
      factor: delta_rms over that of the layer above (of the logits for the last).
      factor_band: as delta_band.
      terms: log of the factor as a sum; see `jaxdnn.diagnosis.terms`.
      dead: share of units with slope 0 in the whole batch; 0 without an activation.
      saturated: share with less than 1 % of the greatest slope.
      kernel_rms: root mean square of the weights.
      kernel_grad_rms: of their gradient.
      kernel_grad_ratio: that over kernel_rms.
    """

    path: str
    kind: str
    fan_in: float
    fan_out: float
    pre_activation_mean: float
    pre_activation_rms: float
    correlation: float
    delta_rms: float
    delta_rms_by_example: tuple[float, ...]
    delta_band: tuple[float, float]
    factor: float
    factor_band: tuple[float, float]
    terms: dict[str, float]
    dead: float
    saturated: float
    kernel_rms: float
    kernel_grad_rms: float
    kernel_grad_ratio: float


@dataclasses.dataclass(frozen=True)
class Cause:
    """Something wrong with a layer.

    Attributes:
      path: of the layer.
      cause: what it is.
      evidence: the numbers that say so.
      strength: deviation over the spread of healthy networks.
      recovery: log10 of the factor by which the first layer's delta changes once the Jacobian of
        this layer is the identity; NaN where that was not tried.
    """

    path: str
    cause: CauseName
    evidence: str
    strength: float
    recovery: float = math.nan


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
      score: in [0, 1]; see `jaxdnn.diagnosis.verdict`.
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
    layers: tuple[Layer, ...]
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
        from jaxdnn.report import fragment

        return fragment(self.to_dict())

    def to_html(self) -> str:
        """Return a page in one piece: pictures, formulas and words for every finding."""
        from jaxdnn.report import page

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
