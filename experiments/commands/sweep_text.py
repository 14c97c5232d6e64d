"""What the sweep prints: a line for each combination, and what the programs took."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from jaxdnn.propagation import OUTSIDE, Combination, Comparison, Flow, Program

MARKS = {
    "!": "differs from theory by more than the seeds allow",
    "~": "outside theory, in all layers or some",
}
HEADER = f"{'':30}{'norm':>6}{'depth':>7}{'factor':>9}{'5-95 %':>15}{'theory':>9}{'total':>10}"


def table(flows: Mapping[Combination, Flow], comparisons: Mapping[Combination, Comparison]) -> str:
    """Return a line for each combination, and below why some differ from theory or are outside."""
    lines = [HEADER, *(_line(key, flow, comparisons[key]) for key, flow in flows.items())]
    for mark, meaning in MARKS.items():
        notes = {key: each.note for key, each in comparisons.items() if _mark(each) == mark}
        if notes:
            lines.append(f"{mark}  {meaning}:")
            lines += [
                f"   {key.activation} with {key.initializer}, norm {key.norm}, depth {key.depth}: "
                f"{note}"
                for key, note in notes.items()
            ]
    return "\n".join(lines)


def _mark(comparison: Comparison) -> str:
    if comparison.agrees is False:
        return "!"
    return "~" if comparison.note.startswith(OUTSIDE) else " "


def _line(key: Combination, flow: Flow, comparison: Comparison) -> str:
    total = "" if math.isnan(flow.log10_total) else f"1e{flow.log10_total:+.1f}"
    known = not math.isnan(flow.factor_median)
    factor = f"{flow.factor_median:.4f}" if known else ""
    band = f"{flow.factor_low:.3f}-{flow.factor_high:.3f}" if known else ""
    theory = comparison.factor_theory
    expected = "" if math.isnan(theory) else f"{theory:.4f}"
    return (
        f"{key.initializer:16}{key.activation:14}{key.norm:>6}{key.depth:>7}{factor:>9}{band:>15}"
        f"{expected:>9}{_mark(comparison)}{total:>9}  {flow.verdict}"
    )


def programs(compiled: Sequence[Program], peak_resident_bytes: int) -> str:
    """Return what the programs took: time to compile, memory."""
    if not compiled:
        return "everything was there already; no program was compiled"
    times = ", ".join(
        f"{each.compile_seconds:.1f} s (depth {each.depth:,}, norm {each.norm})"
        for each in compiled
    )
    largest = max(each.bytes for each in compiled)
    return (
        f"compiled in {times}; {largest / 2**20:,.0f} MiB in the largest program, "
        f"{peak_resident_bytes / 2**20:,.0f} MiB in the process"
    )
