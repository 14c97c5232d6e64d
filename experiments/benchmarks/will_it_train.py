"""Will it train? The verdict before training against what training then shows.

    python experiments/benchmarks/will_it_train.py
    python experiments/benchmarks/will_it_train.py --networks 100 --repair 10

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
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from resume import item_of, work_through
from trainability import (
    RULES,
    Member,
    Task,
    another,
    choice_of,
    draw_groups,
    load_task,
    make_forward,
    make_judge_and_train,
    make_model,
    make_train,
    mean_loss,
    start,
)

from jaxdnn import command_line
from jaxdnn.diagnosis import (
    AS_IT_IS,
    Answers,
    Fix,
    Trial,
    Trials,
    Tried,
    examine,
    find_causes,
    find_fixes,
    parse_optimizer,
    score_trial,
    verdict_of,
)
from jaxdnn.errors import Interrupted

Rows = Sequence[dict[str, Any]]


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
                make_judge_and_train(task, arguments.steps),
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


def make_repair(
    task: Task, num_steps: int
) -> Callable[[Sequence[Member]], Iterator[dict[str, Any]]]:
    """Return what repairs a member, by prescription and by chance, and trains it again."""

    def learns(forward: Callable[..., Any], params: Any, member: Member, fix: Fix) -> bool:
        train = make_train(forward, num_steps, loss=fix.loss, optimizer=fix.optimizer)
        images = task.images if fix.inputs is None else fix.inputs(task.images)
        labels = task.labels if fix.targets is None else fix.targets(task.labels)
        key = jax.random.key(member.seed)
        return bool(train(params, choice_of(member), images, labels, key, fix.scales) < task.bound)

    def repair(member: Member) -> dict[str, Any]:
        jax.clear_caches()
        began = time.monotonic()
        forward, best = prescribed(member, task, num_steps)
        words, score, repaired = "nothing", None, False
        if best is not None:
            words, score = best.fix.words, float(best.score)
            repaired = learns(forward, best.setup.params, member, best.fix)
        changed = another(member, np.random.default_rng(member.seed))
        by_chance = learns(make_forward(changed.style), start(changed, task), changed, AS_IT_IS)
        return {
            "prescription": words,
            "score": score,
            "repaired": repaired,
            "by_chance": by_chance,
            "seconds": round(time.monotonic() - began, 1),
        }

    return lambda members: map(repair, members)


def prescribed(
    member: Member, task: Task, num_steps: int
) -> tuple[Callable[..., Any], Tried | None]:
    """Return the first prescription, if there is one, and the forward function that it gives."""
    model = make_model(member), start(member, task)
    exam = examine(model, *task.first_batch, loss=mean_loss)
    trials = Trials(exam, parse_optimizer(member.optimizer), horizon=num_steps)
    before = trials.try_fix(AS_IT_IS)
    best = next(iter(find_fixes(trials, find_causes(exam), before).tried), None)
    if best is None or not (best.fix.edits or best.fix.output):
        return make_forward(member.style), best
    return lambda params, inputs, _: best.setup.forward(params, inputs, exam.key), best


def markdown(trained: Rows, repaired: Rows, *, horizon: int) -> str:
    """Return AUCs, the verdicts against what happened, and the repairs.

    Args:
      trained: rows of networks.jsonl.
      repaired: rows of repairs.jsonl.
      horizon: steps of the training.
    """
    scores = [score_of(row, num_steps=horizon, horizon=horizon) for row in trained]
    trained = [row | {"score": score} for row, score in zip(trained, scores, strict=True)]
    learned = np.array([row["learned"] for row in trained])
    lines = [
        f"{len(trained)} networks, of which {learned.sum()} learned.",
        "",
        "| said before training | all | SGD | Adam |",
        "|---|---|---|---|",
        _aucs("score of the diagnosis", trained, lambda row: row["score"]),
        *(_aucs(rule, trained, lambda row, rule=rule: -row["rules"][rule]) for rule in RULES),
        "",
        "(Area under the ROC curve; 0.5 is guessing.)",
        "",
        "| verdict | networks | learned |",
        "|---|---|---|",
    ]
    for word in ("trains", "at risk", "will not train"):
        own = [row["learned"] for row in trained if verdict_of(row["score"]) == word]
        lines.append(f"| {word} | {len(own)} | {_share(own)} |")
    lines += [
        "",
        f"Of {len(repaired)} that did not learn, learned after the first prescription "
        f"{_share([row['repaired'] for row in repaired])}, after one random change "
        f"{_share([row['by_chance'] for row in repaired])}.",
        "",
    ]
    return "\n".join(lines)


def _aucs(name: str, rows: Rows, value: Any) -> str:
    cells = []
    for prefix in ("", "sgd", "adam"):
        own = [row for row in rows if row["optimizer"].startswith(prefix)]
        learned = np.array([row["learned"] for row in own])
        values = np.array([float(value(row)) for row in own])
        both = learned.any() and not learned.all()
        cells.append(f"{auc(values, learned):.3f}" if both else "–")
    return f"| {name} | " + " | ".join(cells) + " |"


def _share(found: Sequence[bool]) -> str:
    return f"{np.mean(found):.0%}" if found else "–"


def score_of(row: dict[str, Any], *, num_steps: int, horizon: int) -> float:
    """Return the score of a row's trial, or of its first steps."""
    trial = Trial(*(np.array(row[name][: num_steps + 1]) for name in Trial._fields))
    return score_trial(trial, Answers(row["guess_loss"], 0.0, 0.0), horizon=horizon)


def auc(scores: Float[np.ndarray, " network"], learned: np.ndarray) -> float:
    """Return the chance that a network that learned scores above one that did not; ties half.

    References:
      Hanley and McNeil, "The Meaning and Use of the Area under a ROC Curve", 1982.
    """
    above = scores[learned][:, None] - scores[~learned]
    return float(((above > 0) + 0.5 * (above == 0)).mean())


if __name__ == "__main__":
    command_line.run(main)
