"""Measure jaxdnn against PyTorch on this machine: same network, same batch, same optimizer.

python experiments/bench.py                        all rows
python experiments/bench.py --quick                the same with fewer and shorter turns
python experiments/bench.py --only deep-mlp epoch  some of them
python experiments/bench.py data                   reading photographs, instead of computing

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
PyTorch was seen to lose far more than JAX, and the ratios flatter us: each row says how much of the
machine others took. Measure when it is idle.

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

from benchmarks import machine
from commands import bench_data

from jaxdnn import command_line
from jaxdnn.errors import InputError
from jaxdnn.xla import use_cores_as_devices

PROG = "bench.py"
PEAK_SIZE = 2048


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
        raise InputError(machine.HINT)
    machine.make_folder(arguments.out)
    measure_all(arguments)
    print(f"everything is in {arguments.out}")
    return 0


def measure_all(arguments: Arguments) -> None:
    """Measure, print and save row by row, so that an interruption loses only one."""
    # Only here: without PyTorch the command says so, and loading it takes seconds.
    from benchmarks import pytorch, table
    from benchmarks.rows import ROWS
    from benchmarks.timing import Effort

    pytorch.use_all_cores()
    effort = Effort(rounds=5, turn_seconds=0.1) if arguments.quick else Effort(15, 0.5)
    results = machine.describe() | {"rounds": effort.rounds, "rows": {}}
    results["peak_gflops"] = measure_peak(effort)
    print(table.report(results))
    for name in arguments.only or ROWS:
        peak = 1e9 * max(results["peak_gflops"].values())
        results["rows"][name] = measure_row(name, effort, peak)
        gc.collect()
        print(table.markdown(results["rows"][name]), end="\n\n", flush=True)
        (arguments.out / "bench.json").write_text(json.dumps(results, indent=2) + "\n")
        (arguments.out / "bench.md").write_text(table.report(results))


def measure_peak(effort: Any) -> dict[str, float]:
    """Return the best GFLOP/s of each framework at large float32 matrix products."""
    from benchmarks import ours, pytorch
    from benchmarks.timing import interleave

    works = {
        "JAX": ours.make_matmul_work(PEAK_SIZE),
        "PyTorch": pytorch.make_matmul_work(PEAK_SIZE),
    }
    seconds = interleave(works, effort)
    return {name: 2e-9 * PEAK_SIZE**3 / min(times) for name, times in seconds.items()}


def measure_row(name: str, effort: Any, peak: float) -> dict[str, Any]:
    """Build a row, warm its contenders up, and time them in turn."""
    from benchmarks import rows, table
    from benchmarks.timing import Elsewhere, interleave

    print(f"measuring {name} ...", file=sys.stderr, flush=True)
    row = rows.ROWS[name]()
    working, failures = warm_up(row.contenders, rows.OURS)
    elsewhere = Elsewhere()
    seconds = interleave(working, effort._replace(rounds=row.more_rounds * effort.rounds))
    return table.summarise(row, seconds, failures, peak=peak, elsewhere=elsewhere.share())


def warm_up(contenders: Any, ours: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the contenders that run, and what the others failed with (no C++ compiler, say)."""
    working, failures = {}, {}
    for name, work in contenders.items():
        try:
            work(3)
            working[name] = work
        except RuntimeError as error:
            if name == ours:
                raise
            failures[name] = str(error).strip().splitlines()[0]
    return working, failures


if __name__ == "__main__":
    command_line.run(main)
