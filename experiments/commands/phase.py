"""Draw the phase diagram of an activation, and the table of all activations.

    python experiments/grad_flow.py phase --activation tanh
    python experiments/grad_flow.py phase --activation my_module:my_function --max-sigma-w2 6

Writes phase.png, phase.svg and phase.csv (one row per point), activations.png, .svg and .csv.
"""

from __future__ import annotations

import csv
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxdnn import activations, command_line
from jaxdnn.errors import InputError
from jaxdnn.memory import check_memory
from jaxdnn.propagation import (
    PhaseDiagram,
    Phi,
    activation_table,
    critical_line,
    find_activation,
    phase_diagram,
    sigma_w2_of,
    write_table,
)
from jaxdnn.report import draw_activation_table, draw_phase_diagram

from .option_checks import check_least, check_positive

PROG = "grad_flow.py phase"
# Name on the picture -> scheme whose sigma_w² it stands for.
MARKED = {"Xavier": "glorot_normal", "LeCun": "lecun_normal", "He": "he_normal"}

# Points at which the integrals of a point of the diagram are taken.
_NODES = 400
_GREATEST = 1e30  # What float32 holds, with room for what is computed.


@dataclasses.dataclass(frozen=True)
class Options:
    """The activation, the grid, and where the pictures go."""

    activation: str
    """Any that deep_dog.py takes, or my_module:my_function from this folder."""
    max_sigma_w2: float = 4.0
    """Greatest fan_in Var w on the picture; above 0."""
    max_sigma_b2: float = 0.5
    """Greatest bias variance; above 0."""
    points: int = 100
    """Points along each axis; 2 or more."""
    table: bool = True
    """Write the table of all activations, too."""
    out: Path = Path("runs/theory")
    """Folder for pictures and tables."""

    def __post_init__(self) -> None:
        names = ("max_sigma_w2", "max_sigma_b2")
        check_positive({name: getattr(self, name) for name in names}, most=_GREATEST)
        check_least({"points": self.points}, 2)
        check_memory(
            f"the integrals of --points {self.points}",
            (self.points, self.points, _NODES),
            "choose fewer",
            itemsize=8,
        )


def main(argv: Sequence[str]) -> int:
    """Draw the diagram and the table; return the exit code."""
    options = command_line.parse(Options, default=None, args=argv, prog=PROG, description=__doc__)
    phi = find_activation(options.activation)
    started = time.monotonic()
    sigma_w2 = options.max_sigma_w2 * np.arange(1, options.points + 1) / options.points
    sigma_b2 = np.linspace(0, options.max_sigma_b2, options.points)
    diagram = phase_diagram(phi, sigma_w2, sigma_b2)
    seconds = time.monotonic() - started
    _make_folder(options.out)
    _write(diagram, options.out / "phase.csv")
    marks = {name: sigma_w2_of(scheme) for name, scheme in MARKED.items()}
    draw_phase_diagram(
        options.activation, diagram, critical_line(phi), marks, options.out / "phase"
    )
    print(f"{options.points}² points in {seconds:.1f} s")
    written = ["phase"]
    if options.table:
        named: dict[str, Phi] = {name: make() for name, make in activations.ACTIVATIONS.items()}
        if ":" in options.activation:
            named[options.activation.partition(":")[2]] = phi
        rows = activation_table(named)
        write_table(rows, options.out / "activations.csv")
        draw_activation_table(rows, options.out / "activations")
        written.append("activations")
    for name in written:
        print("wrote " + ", ".join(str(options.out / (name + s)) for s in (".png", ".svg", ".csv")))
    return 0


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {path} cannot be written ({error.strerror})") from error


def _write(diagram: PhaseDiagram, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sigma_w2", "sigma_b2", "q", "chi1", "c", "xi_c"])
        for i, b in enumerate(diagram.sigma_b2):
            for j, w in enumerate(diagram.sigma_w2):
                numbers = (diagram.q, diagram.chi1, diagram.c, diagram.xi_c)
                writer.writerow([w, b, *(field[i, j] for field in numbers)])
