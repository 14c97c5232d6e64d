"""Plant one fault in a random network: is its layer named first, and its cause?

    python experiments/benchmarks/planted_faults.py
    python experiments/benchmarks/planted_faults.py --draws 30 --healthy 10

Networks of depth 5 to 40 and width 32 to 512, nine activations, multi-layer perceptrons and
convolutional networks (to 24 layers of 64 channels), with and without norm and residual
connections, Gaussian inputs; ten kinds of faults in turn. Networks without a fault, diagnosed for
Adam, show how often the alarm is false: each that is not said to train is trained on its batch, as
long as the verdict speaks of. The alarm was false if its loss then comes half the way down from
that of the best constant answer; if not, the network was not healthy.

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
from planted_networks import FAULTS, Case, make_case
from resume import work_through

from jaxdnn import command_line
from jaxdnn.diagnosis import (
    HORIZON,
    TrainingStep,
    diagnose,
    examine,
    find_causes,
    make_trial,
    parse_optimizer,
)
from jaxdnn.errors import Interrupted


@dataclasses.dataclass(frozen=True)
class Arguments:
    """How many networks."""

    draws: int = 300
    """Networks with a fault."""
    healthy: int = 110
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
      seed: decides architecture, weights and inputs; 0 or more.
      fault: a key of `FAULTS`; None for a healthy network.
    """

    seed: int
    fault: str | None


# Seeds of the networks without a fault lie so far from those of the others.
_HEALTHY = 1_000_000
_OPTIMIZER = "adam:0.001"
# From the loss of guessing down to 0: what the verdict `trains` promises.
HALF_THE_WAY = 0.5


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
            found, alarms = (
                work_through(
                    draws, work, arguments.out / name, stopped, progress=arguments.progress
                )
                for draws, work, name in (
                    (faulty, name_fault, "faults.jsonl"),
                    (healthy, sound_alarm, "healthy.jsonl"),
                )
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
        causes = find_causes(examine(case.model, case.inputs, case.targets))
        first = next(iter(causes), None)
        yield {
            "network": str(case.plan),
            "layer": case.layer,
            "named": None if first is None else [first.path, first.cause, first.evidence],
            "right_layer": first is not None
            and (case.layer is None or first.path == str(case.layer)),
            "right_cause": first is not None and first.kind is FAULTS[str(draw.fault)],
        }


def sound_alarm(draws: Sequence[Draw]) -> Iterator[dict[str, Any]]:
    """Diagnose networks without a fault, and train those that are not said to train."""
    for draw in draws:
        jax.clear_caches()
        case = make_case(draw.seed, None)
        diagnosis = diagnose(
            case.model, case.inputs, case.targets, optimizer=_OPTIMIZER, try_changes=False
        )
        causes = [[cause.path, cause.cause, cause.evidence] for cause in diagnosis.causes]
        yield {
            "network": str(case.plan),
            "verdict": diagnosis.verdict,
            "score": diagnosis.score,
            "causes": causes,
            "share_learnt": None if diagnosis.verdict == "trains" else share_learnt(case),
        }


def share_learnt(case: Case) -> float:
    """Train on the batch for the verdict's horizon; return how far down the loss came.

    Returns:
      0 for the loss of the best constant answer, or NaN, and 1 for a loss of 0.
    """
    exam = examine(case.model, case.inputs, case.targets)
    step = TrainingStep(exam.network.apply, exam.loss, parse_optimizer(_OPTIMIZER))
    train = make_trial(step, num_steps=HORIZON)
    trial, _ = train(exam.params, case.inputs, case.targets, exam.key)
    loss = trial.loss
    counts = np.bincount(case.targets)
    share = counts[counts > 0] / counts.sum()
    best = -float(share @ np.log(share))
    return float(np.nan_to_num(np.clip(1 - loss[-50:].mean() / best, 0, 1)))


def markdown(found: Sequence[dict[str, Any]], healthy: Sequence[dict[str, Any]]) -> str:
    """Return the shares by fault, what was named wrongly, and the alarms."""
    by_fault: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in found:
        by_fault[row["fault"]].append(row)
    rows = [*by_fault.items(), ("all", list(found))]
    wrong = [row for row in found if not (row["right_layer"] and row["right_cause"])]
    alarms = [row for row in healthy if row["verdict"] != "trains"]
    false = [row for row in alarms if row["share_learnt"] >= HALF_THE_WAY]
    num_healthy = len(healthy) - len(alarms) + len(false)
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
            f"Networks without a planted fault: {len(healthy)}. Not said to train: {len(alarms)};"
            f" trained nevertheless, {len(alarms) - len(false)} of them did not learn. Healthy"
            f" networks with a false alarm: {len(false)} of {num_healthy}.",
            "",
            *(
                f"- seed {row['seed']}: {row['fault']} in {row['layer']} of {row['network']}:"
                f" {row['named']}"
                for row in wrong
            ),
            *(
                f"- seed {row['seed']}: no fault in {row['network']}: {row['verdict']},"
                f" {row['score']:.2f}, {row['causes'][:1]}; came {row['share_learnt']:.0%} of the"
                " way"
                for row in alarms
            ),
            "",
        ]
    )


def _share(rows: Sequence[dict[str, Any]], key: str) -> str:
    return f"{np.mean([row[key] for row in rows]):.0%}" if rows else "–"


if __name__ == "__main__":
    command_line.run(main)
