"""Where a run goes on: at its newest checkpoint that is whole, together with the best it knows of.

A run that starts anew repeats itself to the bit, so that nothing is lost for good even where every
checkpoint is damaged; only time.
"""

from __future__ import annotations

import sys

from jaxdnn.errors import InputError
from jaxdnn.processes import is_first
from jaxdnn.training.checkpoint import Checkpoints, Damaged, Mismatch
from jaxdnn.training.fit import Progress
from jaxdnn.training.flat import flatten, unflatten


def find_progress(fresh: Progress, checkpoints: Checkpoints) -> Progress | None:
    """Return where the newest whole checkpoint left off, None to begin anew.

    What is damaged, and what came after, is removed with a line on stderr.

    Args:
      fresh: the progress of a new run, whose arrays have the shapes and shardings expected.
      checkpoints: of the run.

    Raises:
      InputError: all of them are of another network.
    """
    steps, damages = checkpoints.steps("latest"), []
    for step in steps:
        try:
            found = _restore(fresh, checkpoints, step)
        except Damaged as damage:
            damages.append(damage)
            continue
        best_step = found.stopping.best_step
        _tell(steps, damages, f"going on from step {step}")
        checkpoints.forget_after("latest", step)
        checkpoints.forget_after("best", -1 if best_step is None else best_step)
        return found
    if damages and all(isinstance(damage, Mismatch) for damage in damages):
        raise InputError(f"{damages[0]}; resume with the settings that the run was started with")
    _tell(steps, damages, "beginning anew")
    for kind in ("latest", "best"):
        checkpoints.forget_after(kind, -1)
    return None


def _restore(fresh: Progress, checkpoints: Checkpoints, step: int) -> Progress:
    like = fresh.to_arrays()
    saved = unflatten(checkpoints.read("latest", step, flatten(like)), like)
    found = fresh.resumed(saved["state"], saved["stopping"])
    best_step = found.stopping.best_step
    if best_step is None:
        return found
    like = {"params": fresh.state.params, "batch_stats": fresh.state.batch_stats}
    try:
        best = unflatten(checkpoints.read("best", best_step, flatten(like)), like)
    except Damaged as damage:
        raise Damaged(f"the best that it knows of, of step {best_step}: {damage}") from damage
    return found.with_best(best["params"], best["batch_stats"])


def _tell(steps: list[int], damages: list[Damaged], then: str) -> None:
    for step, damage in zip(steps, damages, strict=False):
        if is_first():
            print(
                f"the latest checkpoint at step {step} is damaged ({damage}); {then}",
                file=sys.stderr,
            )
