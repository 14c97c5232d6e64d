"""What a step does whose loss or gradient is not finite: it is left out, if the run says so."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

OnNan = Literal["stop", "skip", "halve-lr"]

MAX_IN_A_ROW = 25
"""So many skipped steps in a row are no accident; the run stops."""

Tree = TypeVar("Tree")


class Skipped(NamedTuple):
    """The steps that were left out.

    Attributes:
      num: in all.
      in_a_row: up to now.
      last: number of the last one, from 1 on; 0 for none.
    """

    num: Array
    in_a_row: Array
    last: Array

    @classmethod
    def none(cls) -> Skipped:
        """Return that nothing was left out."""
        return cls(*(jnp.zeros((), jnp.int32) for _ in cls._fields))

    def after(self, step: Array, is_good: Array) -> Skipped:
        """Return what is known after one more step.

        Args:
          step: its number, from 1 on.
          is_good: whether it was taken.
        """
        return Skipped(
            self.num + ~is_good,
            jnp.where(is_good, 0, self.in_a_row + 1),
            jnp.where(is_good, self.last, step),
        )


def is_good(loss: Array, grads: Any, loss_limit: float) -> Array:
    """Tell whether a loss is within its limit and every gradient finite."""
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads)]
    return (loss <= loss_limit) & jnp.stack(finite).all()


def choose(condition: Array, ours: Tree, theirs: Tree) -> Tree:
    """Return one tree or the other, without what is not finite in the one left out."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), ours, theirs)


def rate_factor(on_nan: OnNan, num_skipped: Array | int) -> Array | float:
    """Return what the learning rate is multiplied by after so many skipped steps."""
    return 0.5**num_skipped if on_nan == "halve-lr" else 1.0
