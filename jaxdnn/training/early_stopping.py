"""Early stopping: when a validation metric no longer improves, and which step was the best.

Prechelt, "Early Stopping - But When?", 1998.
"""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """The scores so far. Each `update` returns a new one.

    Attributes:
      greater_is_better: whether the metric is to rise (accuracy) or to fall (loss).
      patience: evaluations without improvement before `should_stop`; None: never.
      min_improvement: a smaller change does not count; at least 0.
      best_value: best metric so far; NaN before the first that counts.
      best_step: step of the best evaluation; None before the first.
      num_bad: number of evaluations since then.
    """

    greater_is_better: bool
    patience: int | None = None
    min_improvement: float = 0.0
    best_value: float = math.nan
    best_step: int | None = None
    num_bad: int = 0

    def update(self, value: float, step: int) -> EarlyStopping:
        """Return what is known after one more evaluation. NaN never counts as an improvement."""
        if self.improves(value):
            return dataclasses.replace(self, best_value=value, best_step=step, num_bad=0)
        return dataclasses.replace(self, num_bad=self.num_bad + 1)

    def improves(self, value: float) -> bool:
        """Tell whether `value` is better than the best by more than `min_improvement`."""
        if math.isnan(value):
            return False
        if self.best_step is None:
            return True
        gain = value - self.best_value if self.greater_is_better else self.best_value - value
        return gain > self.min_improvement

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.num_bad >= self.patience
