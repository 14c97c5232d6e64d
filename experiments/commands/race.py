"""Train every initializer, activation and seed side by side, on the embedded silhouettes.

    python experiments/grad_flow.py race
    python experiments/grad_flow.py race --activations tanh --depth 60 --epochs 30
    python experiments/grad_flow.py race --norm batch --learning-rate 0.1

Who learns, who starts late, who never does, next to what the sweep says before training. Each
network is the one that deep_dog.py trains with the same settings, without augmentation and at a
constant learning rate. Ctrl-C keeps the finished networks: the same command goes on.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdnn import activations, command_line, initializers
from jaxdnn.config import Config
from jaxdnn.data import Dataset, load
from jaxdnn.errors import InputError
from jaxdnn.names import resolve
from jaxdnn.norms import Norm
from jaxdnn.options import ModelOptions, OptimizerOptions, TrainOptions
from jaxdnn.propagation import Architecture, Combination, Flow
from jaxdnn.race import Outcome, Race, Results, guess_loss, race_summary, run_race, write_race_csv
from jaxdnn.report import draw_race
from jaxdnn.run_folder import write_json
from jaxdnn.training import Setup, make_setup

from .grid_folder import deciding, open_grid_folder, refuse, run_until_stopped
from .option_checks import check_least, check_named, check_networks, check_seeds

PROG = "grad_flow.py race"
DEFAULT_EPOCHS = 10
NUM_RECORDS = 20


@dataclasses.dataclass(frozen=True)
class Options:
    """Who takes part: every combination of what is listed."""

    initializers: tuple[str, ...] = (
        "zeros",
        "normal",
        "glorot_normal",
        "lecun_normal",
        "he_normal",
        "orthogonal",
    )
    """Any that deep_dog.py takes, Xavier and MSRA by those names too; none is pretrained."""
    activations: tuple[str, ...] = ("sigmoid", "tanh", "relu", "selu")
    """Any that deep_dog.py takes."""
    norm: Norm = "none"
    """Normalisation of the pre-activations: none, batch, layer."""
    depth: int = 30
    """Layers with weights, the output's included; 2 or more."""
    width: int = 64
    """Units of each hidden layer."""
    batch_size: int = 128
    """Images for each step."""
    learning_rate: float = 0.01
    """Of stochastic gradient descent, constant."""
    epochs: int | None = None
    """Passes over the training images; default 10."""
    steps: int | None = None
    """Optimizer steps, instead of --epochs."""
    record_every: int | None = None
    """Steps between two points of a curve; default: a twentieth of all."""
    seeds: int = 3
    """How many networks of each kind."""
    seed: int = 0
    """The first seed."""
    out: Path = Path("runs/race")
    """Folder for table and charts."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        names = ("seeds", "epochs", "steps", "record_every")
        check_least({name: getattr(self, name) for name in names}, 1)
        if self.epochs is not None and self.steps is not None:
            raise InputError("--epochs and --steps both say how long; give one of them")
        check_named({"initializers": self.initializers, "activations": self.activations})
        Architecture(self.depth, self.width)
        check_seeds(self.seed, self.seeds)
        check_networks(
            depth=self.depth,
            width=self.width,
            batch_size=self.batch_size,
            seeds=self.seeds,
            kinds=len(self.initializers) * len(self.activations),
        )


def main(argv: Sequence[str]) -> int:
    """Run the race; return the exit code."""
    started = time.monotonic()
    options = command_line.parse(
        Options, default=Options(), args=argv, prog=PROG, description=__doc__
    )
    race, setup = _make_race(options)
    refuse(options.out, "sweep")
    chunks = open_grid_folder(options.out, "race", deciding(options))
    results = run_until_stopped(
        lambda on_done, interrupted: run_race(
            race, setup, chunks, load=_load, on_done=on_done, interrupted=interrupted
        ),
        num_networks=race.num_networks,
        out=options.out,
        progress=options.progress,
    )
    if results is None:
        return command_line.INTERRUPTED_EXIT_CODE
    _report(options, race, results, guess_loss(setup.dataset.train.labels), started)
    return 0


def _report(options: Options, race: Race, results: Results, guess: float, started: float) -> None:
    write_race_csv(race, results, options.out / "race.csv")
    outcomes = race_summary(race, results, guess)
    content = {
        "combinations": [
            key._asdict() | outcome._asdict() | flow._asdict() for key, outcome, flow in outcomes
        ],
        "guess_loss": guess,
        "num_networks": race.num_networks,
        "num_steps": race.num_steps,
        "seconds": time.monotonic() - started,
    }
    write_json(options.out / "summary.json", content)
    draw_race(options.out)
    _print_table(outcomes, guess)
    print(
        f"{race.num_networks:,} networks of {race.num_steps:,} steps in "
        f"{time.monotonic() - started:.1f} s; everything is in {options.out}"
    )


def _make_race(options: Options) -> tuple[Race, Setup]:
    """Turn options into a race; the setup is that of its first seed."""
    config = Config(
        model=ModelOptions(widths=(options.width,) * (options.depth - 1), norm=options.norm),
        optimizer=OptimizerOptions(learning_rate=options.learning_rate, schedule="constant"),
        train=TrainOptions(batch_size=options.batch_size, epochs=options.epochs or DEFAULT_EPOCHS),
        seed=options.seed,
    )
    setup = make_setup(config, _load(config))
    num_steps = options.steps or setup.num_steps
    race = Race(
        config=config,
        initializers=_canonical(
            options.initializers, initializers.INITIALIZERS, initializers.ALIASES, "initializer"
        ),
        activations=_canonical(
            options.activations, activations.ACTIVATIONS, activations.ALIASES, "activation"
        ),
        seeds=range(options.seed, options.seed + options.seeds),
        num_steps=num_steps,
        record_every=options.record_every or -(-num_steps // NUM_RECORDS),
    )
    return race, setup


def _load(config: Config) -> Dataset:
    return load(config.data, seed=config.seed)


def _canonical(
    names: Sequence[str], known: dict[str, Any], aliases: dict[str, str], what: str
) -> tuple[str, ...]:
    """Resolve names; each once."""
    return tuple(dict.fromkeys(resolve(name, known, aliases, what) for name in names))


def _print_table(outcomes: Sequence[tuple[Combination, Outcome, Flow]], guess: float) -> None:
    print(f"{'':30}{'before':>10}{'loss':>9}  learned (guessing: {guess:.4f})")
    for key, outcome, flow in outcomes:
        kind = f"{key.initializer:16}{key.activation:14}"
        print(f"{kind}{flow.verdict:>10}{_loss(outcome):>9}  {_when(outcome)}")


def _loss(outcome: Outcome) -> str:
    return "" if math.isnan(outcome.final_loss) else f"{outcome.final_loss:.4f}"


def _when(outcome: Outcome) -> str:
    if outcome.learned:
        return f"from step {outcome.steps_to_learn}"
    return "never: diverged" if math.isnan(outcome.final_loss) else "never"
