"""Results as plain values for JSON, and as a Markdown table."""

from __future__ import annotations

from typing import Any

from .rows import OURS, Row
from .timing import Spread, ratios

HEADER = """\
| | fastest | median | slowest | ours is faster by (range over the rounds) | share of peak |
|---|---:|---:|---:|---:|---:|"""

BUSY = 0.05
DOUBT = " (in doubt: measure again on an idle machine)"


def quiet(elsewhere: float | None) -> bool:
    """Tell whether other programs left the cores alone, as far as is known."""
    return elsewhere is None or elsewhere < BUSY


def summarise(
    row: Row,
    seconds: dict[str, list[float]],
    failures: dict[str, str],
    *,
    peak: float,
    elsewhere: float | None,
) -> dict[str, Any]:
    """Return a row's results as JSON values.

    Args:
      row: what was measured.
      seconds: per unit, for each contender and round.
      failures: contender that does not run -> why.
      peak: of matrix products, in FLOP/s.
      elsewhere: share of the cores that other programs took.
    """
    factors = {name: ratios(times, seconds[OURS]) for name, times in seconds.items()}
    met = all(factors[name].median >= row.target for name in row.rivals if name in factors)
    rate = row.flops / Spread.of(seconds[OURS]).median
    return {
        "title": row.title,
        "unit": row.unit,
        "contenders": {
            name: {
                "milliseconds": Spread.of([1e3 * value for value in times])._asdict(),
                "ratio": factors[name]._asdict(),
            }
            for name, times in seconds.items()
        },
        "failures": failures,
        "notes": list(row.notes),
        "target": row.target,
        "target_met": met,
        "used_elsewhere": elsewhere,
        "gflops": row.flops / 1e9,
        "share_of_peak": rate / peak,
    }


def markdown(result: dict[str, Any]) -> str:
    """Return one row's results as a table with its heading and notes."""
    lines = [f"**{result['title']}** (ms per {result['unit']})", "", HEADER]
    for name, measured in result["contenders"].items():
        lines.append(_line(name, measured, result["share_of_peak"]))
    verdict = f"target {result['target']:g}x: {'met' if result['target_met'] else 'NOT met'}"
    elsewhere = result["used_elsewhere"]
    remarks = [
        *([f"other programs took {elsewhere:.0%} of the cores"] if elsewhere is not None else []),
        f"{verdict if result['target'] else 'no target'}{'' if quiet(elsewhere) else DOUBT}",
        *(f"{name} failed: {reason}" for name, reason in result["failures"].items()),
        *result["notes"],
    ]
    return "\n".join([*lines, "", "; ".join(remarks)])


def _line(name: str, measured: dict[str, Any], share: float) -> str:
    times, ratio = Spread(**measured["milliseconds"]), Spread(**measured["ratio"])
    factor = f"{ratio.median:.2f}x ({ratio.min:.2f} to {ratio.max:.2f})"
    cells = [name, *(f"{value:.2f}" for value in times)]
    cells += ["", f"{share:.0%}"] if name == OURS else [factor, ""]
    return f"| {' | '.join(cells)} |"


def report(results: dict[str, Any]) -> str:
    """Return all results as Markdown, the machine first."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    peak = ", ".join(f"{name} {rate:.0f}" for name, rate in results["peak_gflops"].items())
    head = [
        f"{results['cores']} cores, load average {results['load_average']:.2f} at the start; "
        f"float32; {results['rounds']} interleaved rounds; {versions}",
        f"Matrix-multiply peak, GFLOP/s: {peak}",
    ]
    rows = [markdown(row) for row in results["rows"].values()]
    return "\n\n".join(["# jaxdnn against PyTorch", *head, *rows]) + "\n"
