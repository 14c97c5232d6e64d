"""Chart what depth does to gradients, for every initializer, activation and seed at once.

    python experiments/grad_flow.py
    python experiments/grad_flow.py sweep --depth 100 --norm none batch layer
    python experiments/grad_flow.py sweep --activations tanh --depth 10000 --width 64 --seeds 3
    python experiments/grad_flow.py sweep --data photos/ --image-size 64
    python experiments/grad_flow.py sweep --distributed --out shared/flow     in each process

Ctrl-C keeps the finished networks: the same command goes on where it stopped.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jaxdnn import command_line, processes
from jaxdnn.propagation import (
    Combination,
    Comparison,
    Expected,
    Grid,
    Program,
    Table,
    run_grid,
    summary,
    sweep_theory,
    write_csv,
)
from jaxdnn.report import draw_gradient_flow
from jaxdnn.run_folder import write_json
from jaxdnn.xla import use_cores_as_devices

from . import sweep_text
from .grid_folder import cells_of, open_grid_folder, refuse, run_until_stopped
from .option_checks import deciding
from .sweep_options import Options, make_grid

PROG = "grad_flow.py sweep"


def main(argv: Sequence[str]) -> int:
    """Run the sweep; return the exit code."""
    started = time.monotonic()
    use_cores_as_devices()
    options = command_line.parse(
        Options, default=Options(), args=argv, prog=PROG, description=__doc__
    )
    processes.join(options.processes)
    code = _run(options, started)
    processes.leave(code)
    return code


def _run(options: Options, started: float) -> int:
    grid = make_grid(options)
    processes.run_on_first(lambda: _open(options))
    cells = cells_of(options.out)
    # Theory is compiled beside the sweep's program, which leaves cores idle.
    with ThreadPoolExecutor(1) as beside:
        expected = beside.submit(sweep_theory.expect, grid) if processes.is_first() else None
        found = run_until_stopped(
            lambda on_done, interrupted: run_grid(
                grid, cells, on_done=on_done, interrupted=interrupted
            ),
            num_networks=grid.num_networks,
            out=options.out,
            progress=options.progress and processes.is_first(),
        )
    if found is None:
        return command_line.INTERRUPTED_EXIT_CODE
    if expected is not None:
        _report(options, grid, *found, expected.result(), started)
    return 0


def _open(options: Options) -> None:
    open_grid_folder(options.out, "sweep", deciding(options))
    refuse(options.out, "race")


def _report(
    options: Options,
    grid: Grid,
    table: Table,
    programs: Sequence[Program],
    expected: dict[Combination, Expected],
    started: float,
) -> None:
    write_csv(table, grid.seeds, options.out / "grad_flow.csv")
    sweep_theory.write_csv(expected, options.out / "theory.csv")
    flows = summary(table)
    comparisons = _compare(grid, table, expected)
    content = {
        "combinations": [
            key._asdict() | flows[key]._asdict() | comparisons[key]._asdict() for key in flows
        ],
        "num_networks": grid.num_networks,
        "programs": [_without_run(program) for program in programs],
        "program_bytes": max((program.bytes for program in programs), default=0),
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "seconds": time.monotonic() - started,
    }
    write_json(options.out / "summary.json", content)
    draw_gradient_flow(options.out)
    print(sweep_text.table(flows, comparisons))
    print(sweep_text.programs(programs, content["peak_resident_bytes"]))
    print(
        f"{grid.num_networks:,} networks in {time.monotonic() - started:.1f} s; "
        f"everything is in {options.out}"
    )


def _compare(
    grid: Grid, table: Table, expected: dict[Combination, Expected]
) -> dict[Combination, Comparison]:
    phis = {activation.name: activation for activation in grid.activations}
    batch_size = grid.batch_size if grid.batch is None else len(grid.batch.labels)
    return {
        key: sweep_theory.compare(
            expected[key],
            layers["delta_rms"],
            layers["pre_activation_rms"],
            activation=phis[key.activation],
            norm=key.norm,
            width=key.width,
            batch_size=batch_size,
        )
        for key, layers in table.items()
    }


def _without_run(program: Program) -> dict[str, Any]:
    return {name: value for name, value in program._asdict().items() if name != "run"}
