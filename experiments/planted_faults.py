"""Plant one fault in a random network: is its layer named first, and its cause?

    python experiments/planted_faults.py
    python experiments/planted_faults.py --draws 30 --healthy 10

Networks of depth 5 to 40 and width 32 to 512, nine activations, multi-layer perceptrons and
convolutional networks (to 24 layers of 64 channels), with and without norm and residual
connections, Gaussian inputs; ten kinds of faults in turn. Healthy ones, diagnosed for Adam, show
how often the alarm is false.

Writes faults.jsonl and healthy.jsonl, a line a network, and table.md. The same command goes on
where it stopped.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from planted.draws import FAULTS, make_case
from resume import work_through

from jaxdnn import command_line
from jaxdnn.diagnosis.diagnose import diagnose
from jaxdnn.diagnosis.examine import examine
from jaxdnn.errors import Interrupted


@dataclasses.dataclass(frozen=True)
class Arguments:
    """How many networks."""

    draws: int = 300
    """Networks with a fault."""
    healthy: int = 100
    """Networks without one."""
    seed: int = 0
    """Of the first draw with a fault; each has its own."""
    out: Path = Path("runs/planted_faults")
    """Folder of the results."""
    progress: bool = True
    """Show a progress bar."""


@dataclasses.dataclass(frozen=True)
class Draw:
    """One network.

    Attributes:
      seed: of its architecture, weights and inputs.
      fault: planted; None for a healthy one.
    """

    seed: int
    fault: str | None


# Seeds of the healthy networks lie so far from those of the others.
_HEALTHY = 1_000_000


def main() -> int:
    """Run the command; return its exit code."""
    arguments = command_line.parse(
        Arguments, default=Arguments(), args=sys.argv[1:], prog="planted_faults.py",
        description=__doc__,
    )  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    kinds = list(FAULTS)
    seeds = range(arguments.seed, arguments.seed + arguments.draws)
    faulty = [[Draw(seed, kinds[i % len(kinds)])] for i, seed in enumerate(seeds)]
    first = _HEALTHY + arguments.seed
    healthy = [[Draw(seed, None)] for seed in range(first, first + arguments.healthy)]
    with command_line.StopSignal() as stopped:
        try:
            found = work_through(
                faulty,
                name_fault,
                arguments.out / "faults.jsonl",
                stopped,
                progress=arguments.progress,
            )
            alarms = work_through(
                healthy,
                sound_alarm,
                arguments.out / "healthy.jsonl",
                stopped,
                progress=arguments.progress,
            )
        except Interrupted:
            print(f"stopped; the same command goes on where {arguments.out} stands")
            return command_line.INTERRUPTED_EXIT_CODE
    text = markdown(found, alarms)
    (arguments.out / "table.md").write_text(text)
    print(text)
    return 0


def name_fault(draws: Sequence[Draw]) -> Iterator[dict[str, Any]]:
    """Say whether layer and cause of each fault are named first."""
    for draw in draws:
        jax.clear_caches()
        case = make_case(draw.seed, draw.fault)
        first = next(iter(examine(case.model, case.inputs, case.targets).causes), None)
        yield {
            "network": str(case.plan),
            "layer": case.layer,
            "named": None if first is None else [first.path, first.cause, first.evidence],
            "right_layer": first is not None and case.layer in (None, int(first.path)),
            "right_cause": first is not None and first.cause == FAULTS[str(draw.fault)],
        }


def sound_alarm(draws: Sequence[Draw]) -> Iterator[dict[str, Any]]:
    """Diagnose healthy networks."""
    for draw in draws:
        jax.clear_caches()
        case = make_case(draw.seed, None)
        diagnosis = diagnose(
            case.model, case.inputs, case.targets, optimizer="adam:0.001", try_changes=False
        )
        causes = [[cause.path, cause.cause, cause.evidence] for cause in diagnosis.causes]
        yield {
            "network": str(case.plan),
            "verdict": diagnosis.verdict,
            "score": diagnosis.score,
            "causes": causes,
        }


def markdown(found: Sequence[dict[str, Any]], healthy: Sequence[dict[str, Any]]) -> str:
    """Return the shares by fault, what was named wrongly, and the alarms."""
    by_fault: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in found:
        by_fault[row["fault"]].append(row)
    rows = [*by_fault.items(), ("all", list(found))]
    wrong = [row for row in found if not (row["right_layer"] and row["right_cause"])]
    alarms = [row for row in healthy if row["verdict"] != "trains"]
    return "\n".join(
        [
            "| fault | networks | layer named first | cause |",
            "|---|---|---|---|",
            *(
                f"| {fault} | {len(own)} | {_share(own, 'right_layer')} |"
                f" {_share(own, 'right_cause')} |"
                for fault, own in rows
            ),
            "",
            f"Healthy networks not said to train: {len(alarms)} of {len(healthy)}.",
            "",
            *(
                f"- seed {row['seed']}: {row['fault']} in {row['layer']} of {row['network']}:"
                f" {row['named']}"
                for row in wrong
            ),
            *(
                f"- seed {row['seed']}: healthy {row['network']}: {row['verdict']},"
                f" {row['score']:.2f}, {row['causes'][:1]}"
                for row in alarms
            ),
            "",
        ]
    )


def _share(rows: Sequence[dict[str, Any]], key: str) -> str:
    return f"{np.mean([row[key] for row in rows]):.0%}" if rows else "–"


if __name__ == "__main__":
    command_line.run(main)
