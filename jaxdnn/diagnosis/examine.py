"""The part of a diagnosis that needs no training step: graph, measurement, causes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array

from jaxdnn.diagnosis.adapters import Network, leaf_names, make_network
from jaxdnn.diagnosis.causes import find_causes
from jaxdnn.diagnosis.checks import check_inputs, default_loss, logits_shape, mean_loss
from jaxdnn.diagnosis.gains import Gain, activation_gains
from jaxdnn.diagnosis.graph import Graph, make_graph
from jaxdnn.diagnosis.measure import Loss, Raw, make_pass
from jaxdnn.diagnosis.reduce import Measurement, reduce
from jaxdnn.diagnosis.result import Cause
from jaxdnn.diagnosis.trace import trace
from jaxdnn.errors import InputError


class Examination(NamedTuple):
    """What one pass forward and back shows.

    Attributes:
      network: in training mode.
      graph: of the network.
      loss: `(logits, targets) -> scalar`.
      key: of dropout.
      look: compiled `(params, inputs, targets, key) -> Raw`.
      measured: at the start.
      grads: of the parameters, likewise.
      gains: what each activation does at standard normal values, by station.
      causes: worst first.
    """

    network: Network
    graph: Graph
    loss: Loss
    key: Array
    look: Callable[..., Raw]
    measured: Measurement
    grads: Any
    gains: dict[str, Gain]
    causes: tuple[Cause, ...]

    @property
    def params(self) -> Any:
        """Of the network, at the start."""
        return self.network.params


def examine(
    model: Any,
    inputs: Any,
    targets: Any,
    *,
    loss: Callable[[Any, Any], Array] | None = None,
    seed: int = 0,
) -> Examination:
    """Pass a batch forward and back; arguments and errors as in `jaxdnn.diagnose`."""
    network = make_network(model)
    check_inputs(inputs, targets)
    key = jax.random.key(seed)
    logits = logits_shape(network, inputs, key)
    mean = mean_loss(loss or default_loss(targets, logits), logits, targets)
    program = trace(network.apply, network.params, inputs, key)
    graph = make_graph(program, leaf_names(network.params))
    if not graph.layers:
        raise InputError(
            "no layer was found: no parameter multiplies the inputs; give the model's own forward"
            " function"
        )
    look = make_pass(graph, mean)
    raw = look(network.params, inputs, targets, key)
    measured = reduce(graph, network.params, raw)
    gains = activation_gains(graph, network.params)
    causes = find_causes(graph, measured, gains)
    return Examination(
        network, graph, mean, key, look, measured, jax.device_get(raw.grads), gains, causes
    )
