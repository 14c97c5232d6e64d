"""Will it train? The verdict before training against what training then shows.

    python experiments/will_it_train.py
    python experiments/will_it_train.py --networks 100 --repair 10

Small networks (six activations, five initializers, 5 to 60 layers of 64, none, batch, layer norm or
residual, SGD or Adam) are judged at their start by the score of `jaxdnn.diagnose` and by rules with
fixed thresholds, and then trained on the silhouettes for a fixed number of steps. One has learned
where its loss is below 0.9 of that of guessing the class frequencies. Of those that did not,
`--repair` many get the first prescription of `diagnose`, and for comparison one random change of
initializer, activation or norm, and are trained again.

Writes networks.jsonl and repairs.jsonl, a line a network, and table.md. The same command goes on
where it stopped.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
from benchmarks.resume import item_of, work_through
from trainability.family import Member, draw_groups
from trainability.repair import make_repair
from trainability.table import markdown
from trainability.trial import load_task, make_trial

from jaxdnn import command_line
from jaxdnn.errors import Interrupted


@dataclasses.dataclass(frozen=True)
class Arguments:
    """How many networks, and for how long."""

    networks: int = 600
    """How many networks are judged and trained, five at a time; at most 960."""
    repair: int = 60
    """How many of those that failed are repaired."""
    steps: int = 300
    """Optimizer steps of the training."""
    seed: int = 0
    """Of the draw, the weights and the order of the images."""
    out: Path = Path("runs/will_it_train")
    """Folder of the results."""
    progress: bool = True
    """Show a progress bar."""


def main() -> int:
    """Run the command; return its exit code."""
    arguments = command_line.parse(
        Arguments,
        default=Arguments(),
        args=sys.argv[1:],
        prog="will_it_train.py",
        description=__doc__,
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    task = load_task()
    groups = draw_groups(arguments.networks, arguments.seed)
    with command_line.StopSignal() as stopped:
        try:
            trained = work_through(
                groups,
                make_trial(task, arguments.steps),
                arguments.out / "networks.jsonl",
                stopped,
                progress=arguments.progress,
            )
            order = np.random.default_rng(arguments.seed).permutation(len(trained))
            failed = [trained[place] for place in order if not trained[place]["learned"]]
            repaired = work_through(
                [[item_of(Member, row)] for row in failed[: arguments.repair]],
                make_repair(task, arguments.steps),
                arguments.out / "repairs.jsonl",
                stopped,
                progress=arguments.progress,
            )
        except Interrupted:
            print(f"stopped; the same command goes on where {arguments.out} stands")
            return command_line.INTERRUPTED_EXIT_CODE
    text = markdown(trained, repaired, horizon=arguments.steps)
    (arguments.out / "table.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    command_line.run(main)
