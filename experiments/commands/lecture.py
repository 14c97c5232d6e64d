"""The lecture's chain of single neurons: why the weights far from the output hardly learn.

    python experiments/grad_flow.py lecture                  five neurons, as on the slides
    python experiments/grad_flow.py lecture --depth 20       what if there are more?
    python experiments/grad_flow.py lecture --activation relu --bias 0 --samples mine.csv

Prints the slides' table and who got how far, and writes both, with two charts, to --out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdnn import command_line, run_folder
from jaxdnn.activations import Activation
from jaxdnn.errors import InputError
from jaxdnn.propagation import (
    TILES_PER_UNIT,
    Iteration,
    Params,
    Walk,
    find_activation,
    lecture_chain,
    lecture_table,
    train_network,
    walks,
)
from jaxdnn.report import draw_lecture

from .lecture_samples import read_samples
from .lecture_text import print_findings, print_table
from .option_checks import check_least

TABLE = "lecture_chain.csv"
PROG = "grad_flow.py lecture"
NETWORK_DEPTH = 10


@dataclasses.dataclass(frozen=True)
class Options:
    """The chain, its samples, and where the results go."""

    depth: int = 5
    """Neurons in the row, and so weights; 1 or more."""
    activation: str = "sigmoid"
    """Of all neurons but the last, which is a sigmoid; any that deep_dog.py takes, or
    my_module:my_function from this folder."""
    weight: float = 1.0
    """Every weight at the start."""
    bias: float = 1.0
    """Every bias at the start; biases are trained, too."""
    learning_rate: float = 1.0
    """Above 0."""
    steps: int | None = None
    """Training steps, one sample each, from the first sample again after the last; default: as many
    as there are samples."""
    samples: Path | None = None
    """CSV file with the header x1,x2,...,y and a row for each sample, y 0 or 1; default: the
    lecture's five."""
    out: Path = Path("runs/lecture_chain")
    """Folder for the table and the charts."""

    def __post_init__(self) -> None:
        check_least({"depth": self.depth, "steps": self.steps}, 1)
        for name in ("weight", "bias"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"--{name} is {getattr(self, name)}; give a finite number")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"--learning-rate is {self.learning_rate}; give a number above 0")


def check_finite(table: Mapping[str, np.ndarray], learning_rate: float) -> None:
    """Raise InputError where a quantity, or the step that follows from it, is not finite."""
    reach = TILES_PER_UNIT * max(1.0, learning_rate) * len(table["y"])
    with np.errstate(over="ignore", invalid="ignore"):
        finite = {
            name: np.isfinite(values * (reach if name[0] == "D" else 1))
            for name, values in table.items()
        }
    broken = [(int(row.argmin()), name) for name, row in finite.items() if not row.all()]
    if broken:
        step, name = min(broken, key=lambda found: found[0])
        raise InputError(
            f"step {step + 1}: {name} leaves the range of float64; give a smaller --weight, "
            "--bias, --learning-rate or --depth, or another --activation"
        )


def open_folder(out: Path) -> Path:
    """Make the folder, or open the one of an earlier lecture; never overwrite another command's."""
    folder = run_folder.create(out)
    if folder.summary.exists() and not (out / TABLE).exists():
        raise InputError(f"--out {out} holds another command's results; choose another folder")
    return out


def column_names(num_steps: int, num_samples: int) -> list[str]:
    """Return `sample1`, `sample2`, ..., and from the second time round `sample1_pass2`, ..."""
    places = (divmod(step, num_samples) for step in range(num_steps))
    return [f"sample{at + 1}" + (f"_pass{past + 1}" if past else "") for past, at in places]


def write_table(table: Mapping[str, np.ndarray], columns: Sequence[str], path: Path) -> None:
    """Write the table in full precision."""
    rows = ([name, *map(repr, values.tolist())] for name, values in table.items())
    run_folder.write_csv(path, ["quantity", *columns], rows, line_end="\n")


def summarise(
    options: Options, num_samples: int, steps: Iteration, everyone: Sequence[Walk]
) -> dict[str, Any]:
    """Return what summary.json holds."""
    goal = max(walk.distance for walk in everyone)
    ends = np.abs(steps.delta[:, [0, -1]])
    ends = ends[ends.all(axis=1)]
    layers = max(1, options.depth - 1)
    factor = float((ends[0, 0] / ends[0, 1]) ** (1 / layers)) if len(ends) else 0.0
    return {
        **dataclasses.asdict(options),
        "samples": str(options.samples or "the lecture's five"),
        "out": str(options.out),
        "num_samples": num_samples,
        "steps": len(steps.y),
        "delta_factor_per_layer": factor,
        "goal_tiles": goal,
        "weights": {
            walk.name: {
                "start": walk.start,
                "end": walk.end,
                "tiles": float(walk.tiles[-1]),
                "steps_to_goal": walk.steps_to(goal),
            }
            for walk in everyone
        },
        "unmoved_in_float32": lecture_table.unmoved_in_float32(steps, options.learning_rate),
        "never_updated": [walk.layer for walk in everyone if not walk.updates.any()],
    }


def differences(
    options: Options, start: Params, x: np.ndarray, y: np.ndarray, phi: Activation, steps: Iteration
) -> dict[str, float]:
    """Return by how much each other route differs from the slides' formulas."""
    fixed = {"phi": phi, "learning_rate": options.learning_rate}
    autodiff = lecture_chain.train(start, x, y, **fixed, gradients=lecture_chain.autodiff_gradients)
    routes = {"jax.grad": _difference(steps, autodiff.params, autodiff.gradients)}
    if options.depth <= NETWORK_DEPTH:
        network = train_network(start, x, y, **fixed)
        routes["the package's network of width 1"] = _difference(steps, *network)
    return routes


def _difference(steps: Iteration, params: Params, gradients: Params) -> float:
    """Return by how much two routes differ, relative to numbers above 1."""
    pairs = zip((*steps.params, *steps.gradients), (*params, *gradients), strict=True)
    return max(float((abs(a - b) / np.maximum(1, abs(a))).max(initial=0)) for a, b in pairs)


def main(argv: Sequence[str]) -> int:
    """Run the experiment; return the exit code."""
    options = command_line.parse(
        Options, default=Options(), args=argv, prog=PROG, description=__doc__
    )
    phi = find_activation(options.activation)
    options = dataclasses.replace(options, activation=phi.name)
    x, y, num_samples = _samples(options)
    start = lecture_chain.start(x.shape[1], options.depth, weight=options.weight, bias=options.bias)
    steps = lecture_chain.train(start, x, y, phi=phi, learning_rate=options.learning_rate)
    table = lecture_table.rows(steps)
    check_finite(table, options.learning_rate)
    out = open_folder(options.out)
    columns = column_names(len(y), num_samples)
    write_table(table, columns, out / TABLE)
    everyone = walks(table, options.learning_rate)
    summary = summarise(options, num_samples, steps, everyone)
    routes = differences(options, start, x, y, phi, steps)
    run_folder.write_json(out / "summary.json", summary | {"differences": routes})
    print_table(table, columns, f"all in {TABLE}")
    print_findings(summary, everyone, phi)
    ways = " and ".join(", ".join(["The slides' formulas", *routes]).rsplit(", ", 1))
    print(f"{ways} agree within {max(routes.values()):.0e}.")
    draw_lecture(out)
    print(f"The table, its charts and summary.json are in {out}")
    return 0


def _samples(options: Options) -> tuple[np.ndarray, np.ndarray, int]:
    """Return x and y of every step, and how many samples there are."""
    x, y = lecture_chain.LECTURE_X, np.ones(len(lecture_chain.LECTURE_X))
    if options.samples is not None:
        x, y = read_samples(options.samples)
    order = np.arange(options.steps or len(y)) % len(y)
    return x[order], y[order], len(y)
