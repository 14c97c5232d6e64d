"""Networks of three kinds as one pure function of their parameters.

Whatever is not a parameter (running averages, counters, random streams) is closed over, read, and
its changes are discarded: the user's model stays as it was.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, nnx
from jax import Array

from jaxdnn.errors import InputError

# How public code spells "this is a training step", and what to say then.
_FLAGS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


class Network(NamedTuple):
    """A network in training mode.

    Attributes:
      params: a tree of floating-point arrays, named as in the user's model.
      apply: `(params, inputs, key) -> logits`; `key` None leaves random streams as they are.
      kind: `nnx`, `linen` or `function`.
    """

    params: Any
    apply: Callable[[Any, Any, Array | None], Any]
    kind: str


def make_network(model: Any) -> Network:
    """Take in a model.

    Args:
      model: a Flax NNX module, a pair (Flax Linen module, its variables), or a pair
        (function `(params, inputs) -> logits`, params); the function may take a third argument, a
        key.

    Raises:
      InputError: the model is of another kind, or has no parameters.
    """
    network = _convert(model)
    leaves = jax.tree.leaves(network.params)
    if not any(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves):
        raise InputError(
            "the model has no floating-point parameters; give one that is initialised, or for a"
            " function (function, params)"
        )
    return network


def _convert(model: Any) -> Network:
    if isinstance(model, nnx.Module):
        return _from_nnx(model)
    if isinstance(model, tuple | list) and len(model) == 2:
        first, second = model
        if isinstance(first, linen.Module):
            return _from_linen(first, second)
        if callable(first):
            return _from_function(first, second)
    if isinstance(model, linen.Module):
        raise InputError("a Linen module came alone; give (module, module.init(key, inputs))")
    raise InputError(
        f"a model of type {type(model).__name__} came; give a flax.nnx module, (linen module,"
        " variables) or (function of (params, inputs), params)"
    )


def training_flags(call: Callable[..., Any]) -> dict[str, bool]:
    """Return the arguments that tell `call` to train, among those that it takes."""
    return {name: _FLAGS[name] for name in inspect.signature(call).parameters if name in _FLAGS}


def _from_nnx(model: nnx.Module) -> Network:
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    flags = training_flags(model.__call__)

    def apply(params: Any, inputs: Any, key: Array | None) -> Any:
        module = nnx.merge(graphdef, params, _fresh(rest, key), copy=True)
        module.train()
        return module(inputs, **flags)

    return Network(_plain(params), lambda p, x, key: apply(_like(params, p), x, key), "nnx")


def _plain(state: nnx.State) -> Any:
    return nnx.to_pure_dict(state)


def _like(state: nnx.State, params: Any) -> nnx.State:
    """Put plain arrays into a state of the model's own structure."""
    leaves = dict(nnx.to_flat_state(nnx.State(params)))
    flat = [(path, var.replace(leaves[path])) for path, var in nnx.to_flat_state(state)]
    return nnx.from_flat_state(flat)


def _fresh(rest: nnx.State, key: Array | None) -> nnx.State:
    """Draw every random stream anew from `key`."""
    if key is None:
        return rest
    salt = jax.random.bits(key)

    def renew(leaf: Any) -> Any:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.fold_in(leaf, salt) if is_key else leaf

    return jax.tree.map(renew, rest)


def _from_linen(module: linen.Module, variables: Any) -> Network:
    if not isinstance(variables, dict) or "params" not in variables:
        raise InputError(
            "the Linen module's variables have no 'params'; give (module, module.init(key, inputs))"
        )
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    flags: dict[str, Any] = dict(training_flags(module.__call__))

    def apply(params: Any, inputs: Any, key: Array | None) -> Any:
        key = jax.random.key(0) if key is None else key
        logits, _ = module.apply(
            {"params": params, **rest},
            inputs,
            rngs={"dropout": key, "default": key},
            mutable=list(rest) or ["batch_stats"],
            **flags,
        )
        return logits

    return Network(variables["params"], apply, "linen")


def _from_function(function: Callable[..., Any], params: Any) -> Network:
    takes_key = len(inspect.signature(function).parameters) > 2

    def apply(params: Any, inputs: Any, key: Array | None) -> Any:
        if not takes_key:
            return function(params, inputs)
        return function(params, inputs, jax.random.key(0) if key is None else key)

    return Network(params, apply, "function")


def leaf_names(params: Any) -> list[str]:
    """Return the path of every parameter, such as `layers/3/linear/kernel`."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
