"""The results as the README's table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdnn.diagnosis import verdict

from .judge import RULES, auc, score_of

Rows = Sequence[dict[str, Any]]


def markdown(trained: Rows, repaired: Rows, *, horizon: int) -> str:
    """Return AUCs, the verdicts against what happened, and the repairs.

    Args:
      trained: rows of networks.jsonl.
      repaired: rows of repairs.jsonl.
      horizon: steps of the training.
    """
    scores = [score_of(row, num_steps=verdict.NUM_STEPS, horizon=horizon) for row in trained]
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
        own = [row["learned"] for row in trained if verdict.word(row["score"]) == word]
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
