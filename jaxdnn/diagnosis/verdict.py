"""From a rehearsal to a score and a word.

    best  = loss of the best answer that does not look at the inputs, at each step
    gain  = best - shrunk loss, at least 0: what is learnt of telling inputs apart (rehearsal.py)
    T     = steps until all is learnt = steps x best / (gain at the end - gain at the start)
          = steps until the loss is down at the best, at the pace of its logarithm, where nothing is
            gained; infinite where it has long been there
    score = horizon / (horizon + T (1 + log(loss at the start / best) / 4))

The score is 1/2 where the network would just come all the way within the horizon, 1/3 where it
would come half the way. What it learns by heart of one batch counts, for that is what a gradient
that arrives can do; what it gains over its own start does not, for large random logits come down
without anything being learnt, and the batch is then learnt by heart with the help of large weights:
hence the last factor. It and the two bounds were set on 96 networks like those of
experiments/will_it_train.py, none of them among those it reports; factors from 1/4 to 1 rank as
well. A network whose gradient vanishes stays at the best constant, and one whose gradient explodes
turns non-finite or moves away: both score 0. The optimizer's own scaling, its epsilon and the
precision enter as they do in training.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from jaxdnn.diagnosis.rehearsal import Rehearsal
from jaxdnn.diagnosis.result import Verdict

# Steps that a training run is taken to have.
HORIZON = 1000
NUM_STEPS = 60
TRAINS = 1 / 3
AT_RISK = 0.1
# A loss that starts so many times above the best constant may first have to come down.
_FAR = 2.0
# A loss of so many times the best constant's is down at it.
_THERE = 1.05
_START_WEIGHT = 0.25


def score(rehearsal: Rehearsal, *, horizon: int = HORIZON) -> float:
    """Return the score in [0, 1]; 0 where anything turned non-finite.

    Args:
      rehearsal: with arrays on the host.
      horizon: steps that the training may take.
    """
    loss, shrunk, constant = (np.asarray(x, np.float64) for x in rehearsal[:3])
    if not (np.isfinite(loss).all() and np.isfinite(constant).all()):
        return 0.0
    best = np.minimum(constant, float(rehearsal.zero_loss))
    late = max(1, len(loss) // 4)
    gain = np.maximum(best - shrunk, 0)
    ahead = float(gain[-late:].mean() - gain[0])
    to_learn = max(float(best.min()), 1e-12)
    steps = (len(loss) - 1) * to_learn / ahead if ahead > 0 else _steps_down(loss / to_learn, late)
    far = max(float(np.log(max(loss[0], 1e-12) / to_learn)), 0.0)
    return horizon / (horizon + steps * (1 + _START_WEIGHT * far))


def _steps_down(ratio: Float[np.ndarray, " step"], late: int) -> float:
    """Return the steps until a loss of `ratio` times the best constant's is down there."""
    height = np.log(np.maximum(ratio, 1e-12))
    pace = (height[:late].mean() - height[-late:].mean()) / (len(height) - late)
    arrived = bool((ratio[len(ratio) // 2 :] < _THERE).all())
    if ratio[0] < _FAR or pace <= 0 or arrived:
        return np.inf
    return len(height) - 1 + max(float(height[-late:].mean()), 0.0) / pace


def word(value: float) -> Verdict:
    """Return the verdict of a score."""
    if value >= TRAINS:
        return "trains"
    return "at risk" if value >= AT_RISK else "will not train"
