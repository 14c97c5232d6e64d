"""Chart what depth does to gradients, for every initializer, activation and seed at once.

    python experiments/grad_flow.py
    python experiments/grad_flow.py sweep --depth 100 --norm none batch layer
    python experiments/grad_flow.py sweep --activations tanh --depth 10000 --width 64 --seeds 3
    python experiments/grad_flow.py sweep --data photos/ --image-size 64
    python experiments/grad_flow.py sweep --distributed --out shared/flow     in each process

Ctrl-C keeps the finished networks: the same command goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import resource
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np

from jaxdnn import command_line, processes
from jaxdnn.data import load, normalise_images
from jaxdnn.initializers import Initializer, make_initializer, parameters_of
from jaxdnn.norms import Norm
from jaxdnn.options import DataOptions, ProcessOptions
from jaxdnn.propagation import (
    OUTSIDE,
    Architecture,
    Batch,
    Combination,
    CompiledSweep,
    Flow,
    Grid,
    Precision,
    find_activation,
    run_grid,
    sweep_theory,
    table,
)
from jaxdnn.report import draw_gradient_flow
from jaxdnn.run_folder import write_json
from jaxdnn.xla import use_cores_as_devices

from .grid_folder import chunks_of, deciding, open_grid_folder, refuse, run_until_stopped
from .option_checks import check_least, check_named, check_networks, check_seeds

PROG = "grad_flow.py sweep"
MARKS = {
    "!": "differs from theory by more than the seeds allow",
    "~": "outside theory, in all layers or some",
}
HEADER = f"{'':30}{'norm':>6}{'depth':>7}{'factor':>9}{'5-95 %':>15}{'theory':>9}{'total':>10}"


@dataclasses.dataclass(frozen=True)
class Options:
    """The grid: every combination of what is listed."""

    data: DataOptions = dataclasses.field(default_factory=lambda: DataOptions(data="gaussian"))
    initializers: tuple[str, ...] = (
        "zeros",
        "normal",
        "glorot_normal",
        "glorot_uniform",
        "lecun_normal",
        "he_normal",
        "he_uniform",
        "orthogonal",
    )
    """Any that deep_dog.py takes, Xavier and MSRA by those names too."""
    activations: tuple[str, ...] = (
        "sigmoid",
        "tanh",
        "relu",
        "leaky_relu",
        "elu",
        "selu",
        "gelu",
        "silu",
        "softplus",
    )
    """Any that deep_dog.py takes, or my_module:my_function from this folder."""
    norm: tuple[Norm, ...] = ("none",)
    """Normalisation of the pre-activations: none, batch, layer."""
    depth: tuple[int, ...] = (50,)
    """Layers with weights, the output's included; 2 or more."""
    width: int = 256
    """Units of each hidden layer."""
    batch_size: int = 128
    """Inputs that are passed through; 2 or more."""
    seeds: int = 8
    """How many networks of each kind."""
    seed: int = 0
    """The first seed."""
    residual: bool = False
    """Add each hidden layer's input to its output."""
    loss: Literal["cross_entropy", "mean_squared_error", "linear"] = "cross_entropy"
    """Whose gradient is sent back; linear: the mean logit of the right class."""
    precision: Precision = "float32"
    """Number format of weights, signals and gradients."""
    scale: float | None = None
    """Of the initializers normal, truncated_normal and uniform; default 0.01."""
    gain: float | None = None
    """Factor on the standard deviation of all initializers but zeros; default 1."""
    out: Path = Path("runs/grad_flow")
    """Folder for tables and charts."""
    processes: ProcessOptions = dataclasses.field(default_factory=ProcessOptions)
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        check_least({"width": self.width, "seeds": self.seeds}, 1)
        check_least({"batch_size": self.batch_size}, 2)
        check_least({"seed": self.seed}, 0)
        names = ("initializers", "activations", "norm", "depth")
        check_named({name: getattr(self, name) for name in names})
        for depth in self.depth:
            Architecture(depth, self.width)
            check_seeds(self.seed, self.seeds)
            check_networks(
                depth=depth,
                width=self.width,
                batch_size=self.batch_size,
                seeds=self.seeds,
                kinds=len(self.initializers) * len(self.activations) * len(self.norm),
            )


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
    grid = _make_grid(options)
    processes.run_on_first(lambda: _open(options))
    chunks = chunks_of(options.out)
    # Theory is compiled at the same time as the sweep's program, which leaves cores idle.
    with ThreadPoolExecutor(1) as background:
        expected = background.submit(sweep_theory.expect, grid) if processes.is_first() else None
        found = run_until_stopped(
            lambda on_done, interrupted: run_grid(
                grid, chunks, on_done=on_done, interrupted=interrupted
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
    networks: table.Table,
    programs: Sequence[CompiledSweep],
    expected: dict[Combination, sweep_theory.Expected],
    started: float,
) -> None:
    table.write_csv(networks, grid.seeds, options.out / "grad_flow.csv")
    sweep_theory.write_csv(expected, options.out / "theory.csv")
    flows = table.summary(networks)
    comparisons = sweep_theory.compare_all(grid, networks, expected)
    content = {
        "combinations": [
            key._asdict() | flows[key]._asdict() | comparisons[key]._asdict() for key in flows
        ],
        "num_networks": grid.num_networks,
        "programs": [
            {name: value for name, value in each._asdict().items() if name != "run"}
            for each in programs
        ],
        "program_bytes": max((program.bytes for program in programs), default=0),
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "seconds": time.monotonic() - started,
    }
    write_json(options.out / "summary.json", content)
    draw_gradient_flow(options.out)
    print(_table(flows, comparisons))
    print(_programs(programs, content["peak_resident_bytes"]))
    print(
        f"{grid.num_networks:,} networks in {time.monotonic() - started:.1f} s; "
        f"everything is in {options.out}"
    )


def _make_grid(options: Options) -> Grid:
    """Turn options into a grid; data are loaded here."""
    schemes = [_initializer(name, options) for name in options.initializers]
    phis = [find_activation(name) for name in options.activations]
    batch, num_outputs = _batch(options)
    architectures = [
        Architecture(
            depth=depth,
            width=options.width,
            norm=norm,
            residual=options.residual,
            num_outputs=num_outputs,
            loss=options.loss,
            precision=options.precision,
        )
        for depth, norm in itertools.product(options.depth, options.norm)
    ]
    seeds = range(options.seed, options.seed + options.seeds)
    return Grid(schemes, phis, architectures, seeds, batch, options.batch_size)


def _initializer(name: str, options: Options) -> Initializer:
    """Return the scheme with what of --scale and --gain it takes."""
    given = {"scale": options.scale, "gain": options.gain}
    return make_initializer(name, **{each: given[each] for each in parameters_of(name)})


def _batch(options: Options) -> tuple[Batch | None, int]:
    """Return images to pass through, or None for Gaussian inputs; and the number of classes."""
    if options.data.data == "gaussian":
        return None, 10
    progress = options.progress and processes.is_first()
    dataset = load(options.data, seed=options.seed, progress=progress)
    num = min(options.batch_size, len(dataset.train.labels))
    picks = np.random.default_rng(options.seed).permutation(len(dataset.train.labels))[:num]
    pixel_stats = dataset.train.pixel_stats()
    images = normalise_images(jnp.asarray(dataset.train.images[picks]), pixel_stats)
    labels = jnp.asarray(dataset.train.labels[picks])
    return Batch(images.reshape(num, -1), labels), len(dataset.class_names)


def _table(
    flows: Mapping[Combination, Flow], comparisons: Mapping[Combination, sweep_theory.Comparison]
) -> str:
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


def _mark(comparison: sweep_theory.Comparison) -> str:
    if comparison.agrees is False:
        return "!"
    return "~" if comparison.note.startswith(OUTSIDE) else " "


def _line(key: Combination, flow: Flow, comparison: sweep_theory.Comparison) -> str:
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


def _programs(compiled: Sequence[CompiledSweep], peak_resident_bytes: int) -> str:
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
