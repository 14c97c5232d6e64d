"""What is said of a network before it is trained: our score, and rules with fixed thresholds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxdnn.diagnosis import Rehearsal, make_scanned_rehearsal, verdict
from jaxdnn.losses import cross_entropy

from .family import Choice, chosen_optimizer, make_forward

# Rule -> (gradient norm of every kernel, share of zero entries) -> will it fail?
RULES: dict[str, Callable[[np.ndarray, float], bool]] = {
    "first over last gradient < 1e-3, first < 1e-4": lambda norms, zeros: bool(
        norms[0] < 1e-3 * norms[-1] and norms[0] < 1e-4
    ),
    "any gradient < 1e-7 or > 1e4": lambda norms, zeros: bool(
        (norms < 1e-7).any() or not (norms <= 1e4).all()
    ),
    "70 % of the gradient zero": lambda norms, zeros: zeros >= 0.7,
}


def mean_loss(logits: Array, labels: Array) -> Array:
    """Return the mean cross-entropy."""
    return jnp.mean(cross_entropy(logits, labels))


class Judgement(NamedTuple):
    """What is seen of a network before it is trained.

    Attributes:
      rehearsal: on the first batch.
      norms: of every kernel's gradient.
      zeros: share of the gradient's entries that are zero.
    """

    rehearsal: Rehearsal
    norms: Array
    zeros: Array


def make_judge(style: str, num_steps: int) -> Callable[..., Judgement]:
    """Return `(params, choice, inputs, labels) -> Judgement`.

    Args:
      style: of the network.
      num_steps: of the rehearsal.
    """
    forward = make_forward(style)

    def judge(params: Any, choice: Choice, inputs: Array, labels: Array) -> Judgement:
        rehearsal = make_scanned_rehearsal(
            lambda params, inputs, _: forward(params, inputs, choice),
            mean_loss,
            chosen_optimizer(choice.optimizer),
            num_steps=num_steps,
        )(params, inputs, labels, jax.random.key(0))
        grads = jax.grad(lambda params: mean_loss(forward(params, inputs, choice), labels))(params)
        return Judgement(rehearsal, *_norms_and_zeros(grads))

    return judge


def report(judgement: Judgement) -> dict[str, Any]:
    """Return a judgement on the host as plain numbers, with the word of every rule."""
    norms, zeros = np.asarray(judgement.norms), float(judgement.zeros)
    fails = {name: rule(norms, zeros) for name, rule in RULES.items()}
    steps = judgement.rehearsal._asdict()
    return {"rules": fails} | {name: np.asarray(x).tolist() for name, x in steps.items()}


def _norms_and_zeros(grads: Any) -> tuple[Array, Array]:
    """Return the gradient norm of every kernel, and the share of zero entries."""
    hidden = jnp.sqrt(jnp.sum(grads["hidden"] ** 2, axis=(1, 2)))
    first, last = (jnp.linalg.norm(grads[name])[None] for name in ("first", "last"))
    entries = jnp.concatenate([leaf.ravel() for leaf in grads.values()])
    return jnp.concatenate([first, hidden, last]), jnp.mean(entries == 0)


def score_of(row: dict[str, Any], *, num_steps: int, horizon: int) -> float:
    """Return the verdict's score of a row's rehearsal, or of its first steps."""
    loss, shrunk, constant = (
        np.array(row[name][: num_steps + 1]) for name in Rehearsal._fields[:3]
    )
    rehearsal = Rehearsal(loss, shrunk, constant, np.array(row["zero_loss"]))
    return verdict.score(rehearsal, horizon=horizon)


def auc(scores: Float[np.ndarray, " network"], learned: np.ndarray) -> float:
    """Return the chance that a network that learned scores above one that did not; ties half.

    References:
      Hanley and McNeil, "The Meaning and Use of the Area under a ROC Curve", 1982.
    """
    above = scores[learned][:, None] - scores[~learned]
    return float(((above > 0) + 0.5 * (above == 0)).mean())
