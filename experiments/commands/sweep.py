"""Chart what depth does to gradients, for every initializer, activation and seed at once.

    python experiments/grad_flow.py
    python experiments/grad_flow.py sweep --depth 100 --norm none batch layer
    python experiments/grad_flow.py sweep --activations tanh --depth 10000 --width 64 --seeds 3
    python experiments/grad_flow.py sweep --data photos/ --image-size 64

Ctrl-C keeps the finished networks: the same command goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxdnn import activations, command_line, initializers
from jaxdnn.config import Config
from jaxdnn.data.pipeline import measure_standard, standardise
from jaxdnn.errors import InputError, Interrupted
from jaxdnn.layers import Norm
from jaxdnn.names import resolve
from jaxdnn.options import DataOptions
from jaxdnn.propagation.grid import Grid, run_grid
from jaxdnn.propagation.sweep import Architecture, Batch, Precision
from jaxdnn.propagation.table import Combination, Table, summary, write_csv
from jaxdnn.propagation.verdict import Flow
from jaxdnn.report.gradient_flow import draw_all
from jaxdnn.run_folder import write_json
from jaxdnn.training.run import load_data
from jaxdnn.xla import use_cores_as_devices

PROG = "grad_flow.py sweep"


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
    """Any that deep_dog.py takes."""
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
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        for name in ("width", "seeds"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} is {getattr(self, name)}; give 1 or more")
        if self.batch_size < 2:
            raise InputError(f"--batch-size is {self.batch_size}; give 2 or more")
        if self.seed < 0:
            raise InputError(f"--seed is {self.seed}; give 0 or more")
        for name in ("initializers", "activations", "norm", "depth"):
            if not getattr(self, name):
                raise InputError(f"--{name} is empty; name at least one")
        for depth in self.depth:
            Architecture(depth, self.width)

    def to_json(self) -> dict[str, Any]:
        """Return what decides the numbers."""
        kept = dataclasses.asdict(self)
        del kept["out"], kept["progress"]
        return json.loads(json.dumps(kept))


def main(argv: Sequence[str]) -> int:
    """Run the sweep; return the exit code."""
    started = time.monotonic()
    use_cores_as_devices()
    options = command_line.parse(
        Options, default=Options(), args=argv, prog=PROG, description=__doc__
    )
    grid = _grid(options)
    _open_folder(options)
    with (
        command_line.StopSignal() as stopped,
        tqdm(total=grid.num_networks, unit=" networks", disable=not options.progress) as bar,
    ):
        try:
            table, program_bytes = run_grid(
                grid, options.out / "cells", on_done=bar.update, interrupted=stopped
            )
        except Interrupted:
            print(f"stopped; the same command goes on where {options.out} stands")
            return command_line.INTERRUPTED_EXIT_CODE
    _report(options, table, program_bytes, started)
    return 0


def _grid(options: Options) -> Grid:
    schemes = [_initializer(name, options) for name in options.initializers]
    phis = [activations.make_activation(name) for name in options.activations]
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


def _initializer(name: str, options: Options) -> initializers.Initializer:
    canonical = resolve(name, initializers.INITIALIZERS, initializers.ALIASES, "initializer")
    takes_scale = canonical in ("normal", "truncated_normal", "uniform")
    return initializers.make_initializer(
        canonical,
        scale=options.scale if takes_scale else None,
        gain=options.gain if canonical != "zeros" else None,
    )


def _open_folder(options: Options) -> None:
    """Make the folder, or open it again where it holds part of the same grid."""
    path = options.out / "grid.json"
    if path.exists() and json.loads(path.read_text()) != options.to_json():
        raise InputError(f"--out {options.out} holds another sweep; choose another folder")
    try:
        (options.out / "cells").mkdir(parents=True, exist_ok=True)
        write_json(path, options.to_json())
    except OSError as error:
        raise InputError(f"--out {options.out} cannot be written ({error.strerror})") from error


def _batch(options: Options) -> tuple[Batch | None, int]:
    """Return images to pass through, or None for Gaussian inputs; and the number of classes."""
    if options.data.data == "gaussian":
        return None, 10
    dataset = load_data(Config(data=options.data, seed=options.seed), progress=options.progress)
    num = min(options.batch_size, len(dataset.train.labels))
    picks = np.random.default_rng(options.seed).permutation(len(dataset.train.labels))[:num]
    standard = measure_standard(dataset.train.images)
    images = standardise(jnp.asarray(dataset.train.images[picks]), standard)
    labels = jnp.asarray(dataset.train.labels[picks])
    return Batch(images.reshape(num, -1), labels), len(dataset.class_names)


def _report(options: Options, table: Table, program_bytes: int, started: float) -> None:
    seeds = range(options.seed, options.seed + options.seeds)
    write_csv(table, seeds, options.out / "grad_flow.csv")
    flows = summary(table)
    content = {
        "combinations": [key._asdict() | flow._asdict() for key, flow in flows.items()],
        "num_networks": len(table) * options.seeds,
        "program_bytes": program_bytes,
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "seconds": time.monotonic() - started,
    }
    write_json(options.out / "summary.json", content)
    draw_all(options.out)
    print(f"{'':30}{'norm':>6}{'depth':>7}{'factor':>9}{'5-95 %':>15}{'total':>10}")
    for key, flow in flows.items():
        print(_line(key, flow))
    print(
        f"{content['num_networks']:,} networks in {time.monotonic() - started:.1f} s, "
        f"{program_bytes / 2**20:,.0f} MiB in the program; everything is in {options.out}"
    )


def _line(key: Combination, flow: Flow) -> str:
    total = "" if math.isnan(flow.log10_total) else f"1e{flow.log10_total:+.1f}"
    known = not math.isnan(flow.factor_median)
    factor = f"{flow.factor_median:.4f}" if known else ""
    band = f"{flow.factor_low:.3f}-{flow.factor_high:.3f}" if known else ""
    return (
        f"{key.initializer:16}{key.activation:14}{key.norm:>6}{key.depth:>7}{factor:>9}{band:>15}"
        f"{total:>10}  {flow.verdict}"
    )
