"""Measure every recipe over seeds: the table of results in the README.

    python experiments/benchmarks/results.py
    python experiments/benchmarks/results.py --photos photos.zip     also on grey photographs
    python experiments/benchmarks/results.py --cifar ~/tensorflow_datasets      also on CIFAR-10

Each run is `deep_dog.py` in a process of its own, timed from start to finish. What is in --out
already is not run again.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from jaxdnn import command_line
from jaxdnn.progress import progress_bar
from jaxdnn.recipes import RECIPES
from jaxdnn.run_folder import write_json

DEEP_DOG = Path(__file__).parents[1] / "deep_dog.py"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    recipes: tuple[str, ...] = tuple(RECIPES)
    """Recipes to run."""
    seeds: int = 3
    """Runs of each, with the seeds 0, 1, ..."""
    photos: Path | None = None
    """A folder or zip of photographs, dog or other, to be run at 227 x 227 in grey too."""
    photo_epochs: int = 10
    """Epochs on the photographs of the recipes that take more."""
    cifar: Path | None = None
    """Where CIFAR-10 is prepared by TFDS, to be run as dog or other in colour too: every recipe at
    the images' size, or its own, for all its epochs."""
    photos_only: bool = False
    """Leave the silhouettes out."""
    out: Path = Path("runs/results")
    """Folder for the runs and the table."""


def run_one(arguments: Arguments, data: str, recipe: str, seed: int) -> dict[str, Any]:
    """Run a recipe, or read what it left before; return its summary with `process_seconds`."""
    out = arguments.out / f"{data}-{recipe}-{seed}"
    kept = out / "process.json"
    if not kept.exists():
        command = [sys.executable, str(DEEP_DOG), recipe, "--seed", str(seed), "--out", str(out)]
        command += data_options(arguments, data, recipe)
        started = time.monotonic()
        done = subprocess.run([*command, "--no-progress"], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip() or f"{command} failed")
        write_json(kept, {"seconds": time.monotonic() - started})
    summary = json.loads((out / "summary.json").read_text())
    return summary | {"process_seconds": json.loads(kept.read_text())["seconds"]}


def data_options(arguments: Arguments, data: str, recipe: str) -> list[str]:
    """Return the options that name the data, and bound what may take too long on it."""
    if data == "silhouettes":
        return []
    if data == "cifar10":
        source = ["--data", "tfds:cifar10", "--data-dir", str(arguments.cifar)]
    else:
        epochs = min(arguments.photo_epochs, RECIPES[recipe].train.epochs)
        source = ["--data", str(arguments.photos), "--image-size", "227", "--channels", "1"]
        source += ["--epochs", str(epochs)]
    return [*source, "--positive", "dog"]


def row(data: str, recipe: str, runs: list[dict[str, Any]]) -> str:
    """Return a line of the table: medians, with the range over the seeds."""

    def spread(name: str, digits: int = 3) -> str:
        values = sorted(run[name] for run in runs)
        low, median, high = values[0], statistics.median(values), values[-1]
        return f"{median:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"

    cells = (
        spread("test/balanced_accuracy"),
        spread("test/accuracy"),
        spread("test/auc"),
        spread("majority_fraction"),
        spread("process_seconds", 0),
    )
    return f"| {data} | `{recipe}` | {' | '.join(cells)} |"


def main() -> int:
    """Run everything and print the table."""
    arguments = command_line.parse(
        Arguments, default=Arguments(), args=sys.argv[1:], prog="results.py", description=__doc__
    )
    kinds = [] if arguments.photos_only else ["silhouettes"]
    kinds += ["photos"] if arguments.photos else []
    kinds += ["cifar10"] if arguments.cifar else []
    lines = [
        "| data | recipe | balanced accuracy | accuracy | AUC | commonest answer | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    num_runs = len(kinds) * len(arguments.recipes) * arguments.seeds
    with progress_bar(total=num_runs, desc="training", unit=" runs") as bar:
        for data in kinds:
            for recipe in arguments.recipes:
                runs = []
                for seed in range(arguments.seeds):
                    bar.set_description(f"{data} {recipe} {seed}")
                    runs.append(run_one(arguments, data, recipe, seed))
                    bar.update()
                lines.append(row(data, recipe, runs))
    table = "\n".join(lines)
    (arguments.out / "results.md").write_text(table + "\n")
    print(table)
    return 0


if __name__ == "__main__":
    command_line.run(main)
