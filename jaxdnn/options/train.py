"""How long to train, in what portions, and when to stop."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxdnn.options.checks import check, check_choices, check_range


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How long, in what portions, and when to stop."""

    batch_size: int | Literal["full"] = 128
    """Images for each step: 1 (stochastic), n (mini-batch), or `full` (the whole training set)."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one step, as of a batch so many times larger; batch
    norm and dropout see one of them at a time."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the network's arithmetic in training; parameters, statistics and loss stay float32."""
    epochs: int = 10
    """Passes over the training images, at most."""
    monitor: Literal["val/loss", "val/accuracy", "val/balanced_accuracy", "val/auc"] = (
        "val/balanced_accuracy"
    )
    """Metric that chooses the best weights and decides on stopping."""
    patience: int | None = None
    """Evaluations without improvement before training stops; default: never stops early."""
    min_improvement: float = 0.0
    """Least change of the monitored metric that counts as an improvement."""
    evaluate_every: int = 1
    """Epochs between evaluations."""
    checkpoint_seconds: float = 10.0
    """Least time between two checkpoints; one is always written at the end."""
    divergence_factor: float = 1000.0
    """A step has diverged when its loss is not finite or exceeds so many times that of guessing."""
    on_nan: Literal["stop", "skip", "halve-lr"] = "stop"
    """When a step diverges: stop; or leave its update out and go on, with half the learning rate
    from there if so asked. 25 such steps in a row stop the run in any case."""
    watch_gradients: int = 0
    """Steps between looks at what every layer does to signals and gradients; 0: none."""

    def __post_init__(self) -> None:
        check_choices(self)
        check(
            self.batch_size == "full" or self.batch_size >= 1,
            f"--batch-size is {self.batch_size}; give 1 or more, or full",
        )
        check(
            self.batch_size != "full" or self.accumulate == 1,
            f"--accumulate is {self.accumulate}, but --batch-size full is one batch; "
            "give a number of images",
        )
        for name in ("accumulate", "epochs", "patience", "evaluate_every"):
            check_range(self, name, 1)
        for name in ("min_improvement", "checkpoint_seconds", "watch_gradients"):
            check_range(self, name, 0)
        check_range(self, "divergence_factor", 1)
