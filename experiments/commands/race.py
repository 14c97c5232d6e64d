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
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jaxdnn import activations, command_line, initializers
from jaxdnn.config import Config
from jaxdnn.data.dataset import Dataset
from jaxdnn.errors import InputError, Interrupted
from jaxdnn.layers import Norm
from jaxdnn.names import resolve
from jaxdnn.options import ModelOptions, OptimizerOptions, TrainOptions
from jaxdnn.propagation.race import Outcome, Race, guess_loss, run_race, summary, write_csv
from jaxdnn.propagation.sweep import Architecture
from jaxdnn.propagation.table import Combination
from jaxdnn.propagation.verdict import Flow
from jaxdnn.report.race import draw_race
from jaxdnn.run_folder import write_json
from jaxdnn.training.run import load_data
from jaxdnn.training.setup import Setup, make_setup

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
        for name in ("seeds", "epochs", "steps", "record_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} is {value}; give 1 or more")
        if self.epochs is not None and self.steps is not None:
            raise InputError("--epochs and --steps both say how long; give one of them")
        for name in ("initializers", "activations"):
            if not getattr(self, name):
                raise InputError(f"--{name} is empty; name at least one")
        Architecture(self.depth, self.width)

    def to_json(self) -> dict[str, Any]:
        """Return what decides the numbers."""
        kept = dataclasses.asdict(self)
        del kept["out"], kept["progress"]
        return json.loads(json.dumps(kept))


def main(argv: Sequence[str]) -> int:
    """Run the race; return the exit code."""
    started = time.monotonic()
    options = command_line.parse(
        Options, default=Options(), args=argv, prog=PROG, description=__doc__
    )
    race, setup = make_race(options)
    _open_folder(options)
    with (
        command_line.StopSignal() as stopped,
        tqdm(total=race.num_networks, unit=" networks", disable=not options.progress) as bar,
    ):
        try:
            results = run_race(
                race,
                setup,
                options.out / "cells",
                load=_load,
                on_done=bar.update,
                interrupted=stopped,
            )
        except Interrupted:
            print(f"stopped; the same command goes on where {options.out} stands")
            return command_line.INTERRUPTED_EXIT_CODE
    write_csv(race, results, options.out / "race.csv")
    guess = guess_loss(setup.dataset.train.labels)
    outcomes = summary(race, results, guess)
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
    return 0


def make_race(options: Options) -> tuple[Race, Setup]:
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
    return load_data(config, progress=False)


def _canonical(
    names: Sequence[str], known: dict[str, Any], aliases: dict[str, str], what: str
) -> tuple[str, ...]:
    """Resolve names; each once."""
    return tuple(dict.fromkeys(resolve(name, known, aliases, what) for name in names))


def _open_folder(options: Options) -> None:
    """Make the folder, or open it again where it holds part of the same race."""
    path = options.out / "race.json"
    if path.exists() and json.loads(path.read_text()) != options.to_json():
        raise InputError(f"--out {options.out} holds another race; choose another folder")
    if (options.out / "grid.json").exists():
        raise InputError(f"--out {options.out} holds a sweep; choose another folder")
    try:
        (options.out / "cells").mkdir(parents=True, exist_ok=True)
        write_json(path, options.to_json())
    except OSError as error:
        raise InputError(f"--out {options.out} cannot be written ({error.strerror})") from error


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
