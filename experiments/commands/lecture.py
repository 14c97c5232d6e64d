"""The lecture's chain of single neurons: why the weights far from the output hardly learn.

    python experiments/grad_flow.py lecture                  five neurons, as on the slides
    python experiments/grad_flow.py lecture --depth 20       what if there are more?
    python experiments/grad_flow.py lecture --activation relu --bias 0 --samples mine.csv

Prints the slides' table and who got how far, and writes both, with two charts, to --out.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdnn import command_line, run_folder
from jaxdnn.activations import Activation
from jaxdnn.errors import InputError
from jaxdnn.memory import check_memory
from jaxdnn.propagation import find_activation
from jaxdnn.propagation import lecture as chain
from jaxdnn.report import draw_lecture

from .option_checks import check_least, check_positive

TABLE = "lecture_chain.csv"
PROG = "grad_flow.py lecture"
# A network deeper than this is not compiled to be compared.
NETWORK_DEPTH = 10
# What is longer is printed without its middle.
MOST_ROWS = 10
MOST_COLUMNS = 7

# Numbers of a neuron at a step: weight and bias, their gradients, signals, as tables and in JAX.
_COLUMNS = 16


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
        check_positive({"learning_rate": self.learning_rate})
        check_memory(
            f"the table of --depth {self.depth} --steps {self.steps}",
            (self.depth, self.steps or 1, _COLUMNS),
            "choose a smaller one",
            itemsize=8,
        )


def main(argv: Sequence[str]) -> int:
    """Run the experiment; return the exit code."""
    options = command_line.parse(
        Options, default=Options(), args=argv, prog=PROG, description=__doc__
    )
    phi = find_activation(options.activation)
    options = dataclasses.replace(options, activation=phi.name)
    x, y, num_samples = _samples(options)
    start = chain.start(x.shape[1], options.depth, weight=options.weight, bias=options.bias)
    steps = chain.train(start, x, y, phi=phi, learning_rate=options.learning_rate)
    table = chain.rows(steps)
    _check_finite(table, options.learning_rate)
    out = _open_folder(options.out)
    columns = _column_names(len(y), num_samples)
    chain.write_csv(table, columns, out / TABLE)
    everyone = chain.walks(table, options.learning_rate)
    summary = _summarise(options, num_samples, steps, everyone)
    routes = _differences(options, start, x, y, phi, steps)
    run_folder.write_json(out / "summary.json", summary | {"differences": routes})
    _print_table(table, columns, f"all in {TABLE}")
    _print_findings(summary, everyone, phi)
    ways = " and ".join(", ".join(["The slides' formulas", *routes]).rsplit(", ", 1))
    print(f"{ways} agree within {max(routes.values()):.0e}.")
    draw_lecture(out)
    print(f"The table, its charts and summary.json are in {out}")
    return 0


def _samples(options: Options) -> tuple[np.ndarray, np.ndarray, int]:
    """Return x and y of every step, and how many samples there are."""
    x, y = chain.LECTURE_X, np.ones(len(chain.LECTURE_X))
    if options.samples is not None:
        x, y = _read_samples(options.samples)
    order = np.arange(options.steps or len(y)) % len(y)
    return x[order], y[order], len(y)


def _read_samples(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return x (sample, input) and y (sample,) of a CSV file.

    Raises:
      InputError: it cannot be read, or a cell is missing or not a number.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file)
            header = [name.strip() for name in next(lines, [])]
            rows = [(lines.line_num, cells) for cells in lines if cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file of comma-separated rows"
        raise InputError(f"--samples {path} cannot be read: {reason}") from error
    expected = [*(f"x{number}" for number in range(1, len(header))), "y"]
    if len(header) < 2 or header != expected:
        raise InputError(
            f"--samples {path}: the header is {','.join(header)!r}; name the columns x1,x2,...,y"
        )
    if not rows:
        raise InputError(f"--samples {path} has no rows below its header; give at least one sample")
    table = np.array([_read_row(f"--samples {path}, row {row}", header, c) for row, c in rows])
    return table[:, :-1], table[:, -1]


def _read_row(where: str, header: Sequence[str], cells: Sequence[str]) -> list[float]:
    if len(cells) > len(header):
        raise InputError(f"{where} has {len(cells)} cells; the header has {len(header)}")
    filled = itertools.zip_longest(header, cells, fillvalue="")
    return [_read_cell(f"{where}, column {name}", name, cell.strip()) for name, cell in filled]


def _read_cell(where: str, name: str, cell: str) -> float:
    if not cell:
        raise InputError(f"{where} is missing; fill it in (the header is row 1)")
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where} is {cell!r}; give a finite number (the header is row 1)")
    if name == "y" and value not in (0, 1):
        raise InputError(f"{where} is {cell}; the target y is 0 or 1 (the header is row 1)")
    return value


def _check_finite(table: Mapping[str, np.ndarray], learning_rate: float) -> None:
    """Raise InputError where a quantity, or the step that follows from it, is not finite."""
    reach = chain.TILES_PER_UNIT * max(1.0, learning_rate) * len(table["y"])
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


def _open_folder(out: Path) -> Path:
    """Make the folder, or open the one of an earlier lecture; never overwrite another command's."""
    folder = run_folder.create(out)
    if folder.summary.exists() and not (out / TABLE).exists():
        raise InputError(f"--out {out} holds another command's results; choose another folder")
    return out


def _column_names(num_steps: int, num_samples: int) -> list[str]:
    """Return `sample1`, `sample2`, ..., and from the second time round `sample1_pass2`, ..."""
    places = (divmod(step, num_samples) for step in range(num_steps))
    return [f"sample{at + 1}" + (f"_pass{past + 1}" if past else "") for past, at in places]


def _summarise(
    options: Options, num_samples: int, steps: chain.Iteration, everyone: Sequence[chain.Walk]
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
        "unmoved_in_float32": chain.unmoved_in_float32(steps, options.learning_rate),
        "never_updated": [walk.layer for walk in everyone if not walk.updates.any()],
    }


def _differences(
    options: Options,
    start: chain.Params,
    x: np.ndarray,
    y: np.ndarray,
    phi: Activation,
    steps: chain.Iteration,
) -> dict[str, float]:
    """Return by how much each other route differs from the slides' formulas."""
    fixed = {"phi": phi, "learning_rate": options.learning_rate}
    autodiff = chain.train(start, x, y, **fixed, gradients=chain.autodiff_gradients)
    routes = {"jax.grad": _difference(steps, autodiff.params, autodiff.gradients)}
    if options.depth <= NETWORK_DEPTH:
        network = chain.train_network(start, x, y, **fixed)
        routes["the package's network of width 1"] = _difference(steps, *network)
    return routes


def _difference(steps: chain.Iteration, params: chain.Params, gradients: chain.Params) -> float:
    """Return by how much two routes differ, relative to numbers above 1."""
    pairs = zip((*steps.params, *steps.gradients), (*params, *gradients), strict=True)
    return max(float((abs(a - b) / np.maximum(1, abs(a))).max(initial=0)) for a, b in pairs)


def _print_table(table: Mapping[str, np.ndarray], columns: Sequence[str], rest: str) -> None:
    """Print the table, without the middle of what is long; `rest` says where that is."""
    shown = _ends(range(len(columns)), MOST_COLUMNS)
    _print_row("", ["..." if at is None else columns[at] for at in shown])
    for _, block in itertools.groupby(table, key=lambda name: re.split(r"[\d\[]", name)[0]):
        for name in _ends(list(block), MOST_ROWS):
            if name is None:
                print(f"  ... ({rest})")
            else:
                cells = ["..." if at is None else _cell(table[name][at]) for at in shown]
                _print_row(name, cells)


def _ends(items: Sequence[Any], most: int) -> list[Any]:
    if len(items) <= most:
        return list(items)
    return [*items[: most // 2], None, *items[-(most // 2) :]]


def _print_row(name: str, cells: Sequence[str]) -> None:
    print(f"{name:8}" + "".join(f"{cell:>15}" for cell in cells))


def _cell(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:.9f}" if 1e-4 <= abs(value) < 1e3 else f"{value:.6e}"


def _print_findings(
    summary: dict[str, Any], everyone: Sequence[chain.Walk], phi: Activation
) -> None:
    """Print who walked how far, and what stood in the way."""
    _print_walks(everyone, summary["goal_tiles"])
    if summary["depth"] > 1 and summary["delta_factor_per_layer"]:
        print(
            f"On its way back delta is multiplied by w phi'(z) at each neuron, here by "
            f"{summary['delta_factor_per_layer']:.3g} on average; phi' of {phi.name} is at most "
            f"{phi.derivative_range[1]:.3g}."
        )
    unmoved, zero = summary["unmoved_in_float32"], summary["never_updated"]
    if unmoved != zero:
        names = chain.spans(unmoved)
        print(f"In float32 {names} would not move at all: rounding takes each update away.")
    if zero:
        print(f"D is exactly 0 for {chain.spans(zero)}: a neuron is dead, or D is below 1e-307.")


def _print_walks(everyone: Sequence[chain.Walk], goal: float) -> None:
    print(f"\nOn floor tiles, {chain.TILES_PER_UNIT} to a change of a weight by 1:")
    print(f"{'':8}{'first step':>15}{'last step':>15}{'from start':>15}{'steps to the flag':>20}")
    for walk in chain.lanes(everyone):
        first, last = (f"{chain.TILES_PER_UNIT * walk.updates[at]:+.3g}" for at in (0, -1))
        left = _steps_left(walk, goal)
        print(f"{walk.name:8}{first:>15}{last:>15}{walk.distance:>15.3g}{left:>20}")
    if goal > 0:
        print("(The flag is where the weight stands that got farthest; the pace is that so far.)")


def _steps_left(walk: chain.Walk, goal: float) -> str:
    pace = walk.steps_to(goal)
    if goal > 0 and walk.distance == goal:
        return "is there"
    if math.isinf(pace):
        return "never"
    return f"{pace:,.0f}" if pace < 1e6 else f"{pace:.1e}"
