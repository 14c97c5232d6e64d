"""How weights are updated."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxdnn.options.checks import check, check_choices, check_range


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """How weights are updated: one optax chain."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """Stochastic gradient descent, or Adam."""
    learning_rate: float = 0.1
    """Before decay."""
    momentum: float | None = None
    """sgd: share of the last update that is added to the next, default 0. adam: decay of its first
    moment, default 0.9."""
    nesterov: bool = False
    """Look ahead along the momentum."""
    schedule: Literal["constant", "exponential_decay", "inverse_time_decay", "cosine_decay"] = (
        "exponential_decay"
    )
    """Learning rate over the steps: constant; times decay_rate^(step / decay_steps); over
    1 + decay_rate * step; a half cosine down to 0 at the last step."""
    decay_rate: float = 0.98
    """Of exponential_decay (a factor) and inverse_time_decay (a rate for each step)."""
    decay_steps: int | None = None
    """exponential_decay: steps for each factor of decay_rate; default one epoch."""
    staircase: bool = False
    """exponential_decay: in stairs of decay_steps, not smoothly."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from 0."""
    l2: float = 0.0
    """lambda of the penalty lambda / 2m * sum w², over kernels; m: number of training images."""
    l1: float = 0.0
    """lambda of the penalty lambda / 2m * sum |w|, over kernels."""
    clip_norm: float | None = None
    """Greatest global norm of the gradient, penalties included; default: not clipped."""

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("learning_rate", "l2", "l1", "warmup_steps"):
            check_range(self, name, 0)
        check(
            self.momentum is None or 0 <= self.momentum < 1,
            f"--momentum is {self.momentum}; give a share in [0, 1)",
        )
        check(
            not self.nesterov or self.resolved_momentum > 0,
            "--nesterov looks ahead along the momentum; give a --momentum above 0",
        )
        check_range(self, "decay_steps", 1)
        check(self.decay_rate > 0, f"--decay-rate is {self.decay_rate}; give a number above 0")
        exponential = self.schedule == "exponential_decay"
        for name in ("decay_steps", "staircase"):
            flag = "--" + name.replace("_", "-")
            check(
                exponential or not getattr(self, name),
                f"{flag} is for --schedule exponential_decay, not {self.schedule}; leave it out",
            )
        check(
            self.clip_norm is None or self.clip_norm > 0,
            f"--clip-norm is {self.clip_norm}; give a number above 0",
        )

    @property
    def resolved_momentum(self) -> float:
        """The momentum, by default the optimizer's own."""
        if self.momentum is not None:
            return self.momentum
        return 0.9 if self.optimizer == "adam" else 0.0
