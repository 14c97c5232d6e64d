"""The zoo: networks in the manner of public ones, and how their own users would train them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from flax import linen, nnx
from jax import Array
from zoo_images import IMAGES
from zoo_sequences import SEQUENCES
from zoo_shapes import SHAPES
from zoo_tasks import KEY, Call, Entry

from jaxdnn.diagnosis import parse_optimizer

ZOO: dict[str, Entry] = {**IMAGES, **SEQUENCES, **SHAPES}
# `(params, key) -> scalar`.
Objective = Callable[[Any, Array], Array]


def train(entry: Entry, call: Call, *, num_steps: int = 1000) -> tuple[float, int]:
    """Train with plain optax; return the last loss and the steps, fewer where it has learnt.

    Args:
      entry: says with which optimizer, and what has to be learnt.
      call: what `entry.make` returns.
      num_steps: at most.
    """
    params, objective = objective_of(entry, call)
    optimizer = parse_optimizer(entry.optimizer)
    enough = learnt(entry, call)

    @jax.jit
    def step(params: Any, state: Any, key: Array) -> tuple[Any, Any, Array]:
        loss, grads = jax.value_and_grad(objective)(params, key)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, loss, recent = optimizer.init(params), jnp.inf, []
    for index in range(num_steps):
        params, state, loss = step(params, state, jax.random.fold_in(KEY, index))
        recent = [*recent[-9:], float(loss)]
        if len(recent) == 10 and sum(recent) / 10 < enough:
            return sum(recent) / 10, index + 1
    return float(loss), num_steps


def learnt(entry: Entry, call: Call) -> float:
    """The loss below which a network has learnt: half of that of the best constant."""
    if entry.learnt is not None:
        return entry.learnt
    targets = call.arguments[2]
    if jnp.issubdtype(targets.dtype, jnp.integer):
        shares = jnp.bincount(targets.reshape(-1)) / targets.size
        return float(-jax.scipy.special.xlogy(shares, shares).sum()) / 2
    if "loss" in call.options:
        return 0.35  # Of two classes of which neither is rare.
    return float(jnp.var(targets, axis=0).mean()) / 2


def objective_of(entry: Entry, call: Call) -> tuple[Any, Objective]:
    """Return parameters and what is minimised, in the idiom of the entry's library."""
    model, inputs, targets = call.arguments
    if entry.library == "door":
        with_key = len(inspect.signature(model).parameters) > 2

        def scalar(params: Any, key: Array) -> Array:
            said = model(params, targets, *([key] if with_key else []))
            return said[0] if isinstance(said, tuple) else said

        return inputs, scalar
    params, forward = _FORWARDS[entry.library](model, inputs, entry.flags)
    loss = call.options.get("loss") or _default_loss
    outputs = call.options.get("outputs") or (lambda said: said)
    return params, lambda params, key: loss(outputs(forward(params, key)), targets).mean()


def _default_loss(outputs: Array, targets: Array) -> Array:
    if jnp.issubdtype(targets.dtype, jnp.integer):
        return optax.softmax_cross_entropy_with_integer_labels(outputs, targets)
    return (outputs - targets) ** 2


def _given(inputs: Any) -> tuple[Any, ...]:
    """What a model takes one by one; the inputs of a dictionary stand in the model's own order."""
    if isinstance(inputs, dict):
        return tuple(inputs.values())
    return inputs if isinstance(inputs, tuple) else (inputs,)


def _nnx(model: Any, inputs: Any, flags: Any) -> tuple[Any, Any]:
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def forward(params: Any, key: Array) -> Any:
        return nnx.merge(graphdef, params, rest, copy=True)(*_given(inputs), **flags)

    return params, forward


def _linen(model: Any, inputs: Any, flags: Any) -> tuple[Any, Any]:
    streams = {"params": KEY, "dropout": KEY}
    if isinstance(model, linen.Module):
        model = model, model.init(streams, *_given(inputs), **flags)
    module, variables = model
    rest = {name: tree for name, tree in variables.items() if name != "params"}

    def forward(params: Any, key: Array) -> Any:
        own = {"params": params, **rest}
        streams = {"dropout": key}
        out, _ = module.apply(own, *_given(inputs), rngs=streams, mutable=list(rest), **flags)
        return out

    return variables["params"], forward


def _equinox(model: Any, inputs: Any, flags: Any) -> tuple[Any, Any]:
    params, rest = eqx.partition(model, eqx.is_inexact_array)

    def forward(params: Any, key: Array) -> Any:
        return jax.vmap(eqx.combine(params, rest))(*_given(inputs), **flags)

    return params, forward


def _haiku(model: Any, inputs: Any, flags: Any) -> tuple[Any, Any]:
    if hasattr(model, "init"):
        model = model, model.init(KEY, *_given(inputs), **flags)
    transformed, params, *state = model
    takes_key = "rng" in inspect.signature(transformed.apply).parameters

    def forward(params: Any, key: Array) -> Any:
        given = (params, *state, *([key] if takes_key else []))
        outputs = transformed.apply(*given, *_given(inputs), **flags)
        return outputs[0] if state else outputs

    return params, forward


def _plain(model: Any, inputs: Any, flags: Any) -> tuple[Any, Any]:
    apply, params = model
    return params, lambda params, key: apply(params, *_given(inputs), **flags)


_FORWARDS: dict[str, Callable[[Any, Any, Any], tuple[Any, Any]]] = {
    "nnx": _nnx,
    "linen": _linen,
    "equinox": _equinox,
    "haiku": _haiku,
    "stax": _plain,
    "plain": _plain,
}
