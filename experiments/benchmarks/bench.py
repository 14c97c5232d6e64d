"""Measure jaxdnn against PyTorch on this machine: same network, same batch, same optimizer.

python experiments/benchmarks/bench.py                          all rows
python experiments/benchmarks/bench.py --quick                  with fewer and shorter turns
python experiments/benchmarks/bench.py --only deep-mlp epoch    some of them
python experiments/benchmarks/bench.py data                     reading photographs instead

PyTorch takes part eager and under torch.compile. All work in float32 on all cores, with SGD and
momentum. Ours is the code that a training run uses: the package's step, its compiled
epoch, its sweep. As in the sweep every core is a JAX device; the other rows use only the first,
which computes on all cores all the same.
PyTorch's step uses its fused SGD, its epoch a DataLoader over the same arrays with as many workers
as prove faster, and, as the hardest rival, batches indexed by hand. Its augmentation is written for
whole batches.

Everything runs in one process, and the contenders take turns: a machine's speed drifts with heat
and with what else it does, by more than the differences that matter here, but hardly from one turn
to the next. So ratios are taken within each round, and their median is reported with its range. A
turn begins with a pause and a unit that is not timed, so that nobody pays for another's threads or
cold caches. All have as many threads as there are cores. Where other programs want those cores,
PyTorch lost far more than JAX, and the ratios flatter us: each row says how much of the machine
others took. Measure when it is idle.

The share of peak is the matrix-multiply FLOP/s that ours reaches, counted by formula (6 * batch *
in * out for each layer, less 2 * batch * in * out for the first, whose input needs no gradient),
over the best of JAX and PyTorch at 2048x2048 matrices.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any, Literal

import bench_data
from timing import (
    HINT,
    OURS,
    Effort,
    Elsewhere,
    Spread,
    describe_machine,
    interleave,
    make_folder,
    ratios,
)

from jaxdnn import command_line
from jaxdnn.errors import InputError
from jaxdnn.xla import use_cores_as_devices

PROG = "bench.py"
PEAK_SIZE = 2048

HEADER = """\
| | fastest | median | slowest | ours is faster by (range over the rounds) | share of peak |
|---|---:|---:|---:|---:|---:|"""
BUSY = 0.05
DOUBT = " (in doubt: measure again on an idle machine)"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The command line."""

    out: Path = Path("runs/bench")
    """Folder for bench.json and bench.md; a table that is there is replaced."""
    only: tuple[
        Literal[
            "wide-mlp",
            "deep-mlp",
            "convnet",
            "gradient-flow",
            "epoch",
            "epoch-augmented",
            "watch",
            "features",
        ],
        ...,
    ] = ()
    """Rows to measure; default all."""
    quick: bool = False
    """Fewer and shorter turns: rough figures, to see that everything runs."""


def main() -> int:
    """Run the command; return its exit code."""
    if sys.argv[1:2] == ["data"]:
        return bench_data.main(sys.argv[2:], f"{PROG} data")
    arguments = command_line.parse(
        Arguments, default=None, args=sys.argv[1:], prog=PROG, description=__doc__
    )
    use_cores_as_devices()
    if importlib.util.find_spec("torch") is None:
        raise InputError(HINT)
    make_folder(arguments.out)
    measure_all(arguments)
    print(f"everything is in {arguments.out}")
    return 0


def measure_all(arguments: Arguments) -> None:
    """Measure, print and save row by row, so that an interruption loses only one."""
    # Only here: without PyTorch the command says so, and loading it takes seconds.
    import bench_pytorch as pytorch
    from bench_rows import ROWS

    pytorch.use_all_cores()
    effort = Effort(rounds=5, turn_seconds=0.1) if arguments.quick else Effort(15, 0.5)
    results = describe_machine() | {"rounds": effort.rounds, "rows": {}}
    results["peak_gflops"] = measure_peak(effort)
    print(report(results))
    for name in arguments.only or ROWS:
        peak = 1e9 * max(results["peak_gflops"].values())
        results["rows"][name] = measure_row(name, effort, peak)
        gc.collect()
        print(markdown(results["rows"][name]), end="\n\n", flush=True)
        (arguments.out / "bench.json").write_text(json.dumps(results, indent=2) + "\n")
        (arguments.out / "bench.md").write_text(report(results))


def measure_peak(effort: Effort) -> dict[str, float]:
    """Return the best GFLOP/s of each framework at large float32 matrix products."""
    import bench_pytorch as pytorch
    import bench_rows

    works = {
        "JAX": bench_rows.make_matmul_work(PEAK_SIZE),
        "PyTorch": pytorch.make_matmul_work(PEAK_SIZE),
    }
    seconds = interleave(works, effort)
    return {name: 2e-9 * PEAK_SIZE**3 / min(times) for name, times in seconds.items()}


def measure_row(name: str, effort: Effort, peak: float) -> dict[str, Any]:
    """Build a row, warm its contenders up, and time them in turn."""
    from bench_rows import ROWS

    print(f"measuring {name} ...", file=sys.stderr, flush=True)
    row = ROWS[name]()
    working, failures = warm_up(row.contenders)
    elsewhere = Elsewhere()
    seconds = interleave(working, effort._replace(rounds=row.more_rounds * effort.rounds))
    return summarise(row, seconds, failures, peak=peak, elsewhere=elsewhere.share())


def warm_up(contenders: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the contenders that run, and what the others failed with (no C++ compiler, say)."""
    working, failures = {}, {}
    for name, work in contenders.items():
        try:
            work(3)
            working[name] = work
        except RuntimeError as error:
            if name == OURS:
                raise
            failures[name] = str(error).strip().splitlines()[0]
    return working, failures


def quiet(elsewhere: float | None) -> bool:
    """Tell whether other programs left the cores alone, as far as is known."""
    return elsewhere is None or elsewhere < BUSY


def summarise(
    row: Any,
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
      peak: rate that matrix products reach on this machine, in FLOP/s.
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


if __name__ == "__main__":
    command_line.run(main)
