"""Does the gradient recover once a layer's Jacobian is the identity?"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from jaxdnn.diagnosis.examine import Examination
from jaxdnn.diagnosis.measure import make_pass
from jaxdnn.diagnosis.reduce import host_rms
from jaxdnn.diagnosis.result import Cause
from jaxdnn.diagnosis.terms import log

# Faults of what follows a layer's pre-activation; the others lie in its weights or bias.
_ABOVE = {"saturating activation", "dead units", "bias too large", "missing norm", "dropout"}
# Nothing that a Jacobian changes.
_OF_FORMATS = {"not finite", "underflow"}


def confirm(seen: Examination, inputs: Any, targets: Any) -> tuple[Cause, ...]:
    """Return the causes, the first with what bridging its layer does to the first layer's delta.

    Args:
      seen: of the network.
      inputs: the batch.
      targets: of the batch.
    """
    if not seen.causes:
        return ()
    first, *others = seen.causes
    cut = None if first.cause in _OF_FORMATS else _way(seen, first)
    change = math.nan if cut is None else bridged_change(seen, inputs, targets, cut)
    return (dataclasses.replace(first, recovery=change), *others)


def bridged_change(seen: Examination, inputs: Any, targets: Any, cut: int) -> float:
    """Return log10 of the first layer's delta with the way to layer `cut` bridged, over without."""
    lowest = seen.graph.layers[0].z
    forward_and_back = make_pass(seen.graph, seen.loss, cut=cut)
    raw = forward_and_back(seen.params, inputs, targets, seen.key)
    bridged = host_rms(jax.device_get(raw.deltas[lowest]))
    return (log(bridged) - log(seen.measured.delta[lowest])) / math.log(10)


def _way(seen: Examination, cause: Cause) -> int | None:
    """The layer whose way down holds the fault; None where nothing lies below it."""
    index = [site.path for site in seen.graph.layers].index(cause.path)
    upper = seen.graph.above(index) if cause.cause in _ABOVE else index
    return upper if upper is not None and seen.graph.links[upper].below is not None else None
