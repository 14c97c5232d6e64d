"""What is examined, before anything of it is computed: a network, its batch, its graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array

from jaxdnn.diagnosis.graph import Graph, make_graph
from jaxdnn.diagnosis.loss_door import is_loss_function, open_loss
from jaxdnn.diagnosis.model import (
    Loss,
    Network,
    check_inputs,
    leaf_names,
    logits_shape,
    make_loss,
    make_network,
)
from jaxdnn.diagnosis.program import trace
from jaxdnn.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A network with a batch.

    Attributes:
      network: the model as a pure function, in training mode.
      graph: its layers and what lies between them.
      outline: layers and ways with every scan in one piece; `graph` itself where there is none.
      loss: `(logits, targets) -> scalar`.
      inputs: an array or a tree of arrays, the batch axis first.
      targets: what the loss takes besides the logits.
      key: a typed key, from which dropout draws.
      examples: whether rows are examples that have nothing to do with each other.
      tied: for each column of the outputs the number of its kind, where the same weights make
        several, (column,); otherwise None.
    """

    network: Network
    graph: Graph
    outline: Graph
    loss: Loss
    inputs: Any
    targets: Any
    key: Array
    examples: bool
    tied: np.ndarray | None

    @property
    def params(self) -> Any:
        """The parameters as they came."""
        return self.network.params

    @property
    def names(self) -> list[str]:
        """Path of every parameter leaf."""
        return leaf_names(self.network.params)


def open_case(
    model: Any,
    inputs: Any,
    targets: Any,
    *,
    loss: Loss | None = None,
    outputs: Callable[[Any], Any] | None = None,
    seed: int = 0,
) -> Case:
    """Trace a network, and find its layers; arguments and errors as in `jaxdnn.diagnose`."""
    key = jax.random.key(seed)
    examples, tied = not is_loss_function(model), None
    if not examples:
        if loss is not None or outputs is not None:
            raise InputError(
                "loss= or outputs= came with a loss function; give (loss_fn, params, batch) alone"
            )
        network, inputs, targets, loss, tied = open_loss(model, inputs, targets, key)
        model = network.apply, network.params
    check_inputs(inputs, targets)
    network = make_network(model, inputs, key, outputs=outputs)
    mean_loss = make_loss(loss, targets, logits_shape(network, inputs, key))
    names = leaf_names(network.params)
    program = trace(network.apply, network.params, inputs, key)
    graph = make_graph(program, names)
    if not graph.layers:
        raise InputError(
            "no layer was found: no parameter multiplies the inputs; give the model's own forward"
            " function"
        )
    outline = graph
    if any(step.name == "slice_of_scan" for step in program.steps):
        folded = trace(network.apply, network.params, inputs, key, unroll=False)
        outline = make_graph(folded, names)
    return Case(network, graph, outline, mean_loss, inputs, targets, key, examples, tied)
