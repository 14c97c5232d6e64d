"""What a user gives (model, batch, loss) as one pure function of the parameters, and checked.

Whatever is not a parameter (running averages, counters, random streams) is closed over, read, and
its changes are discarded: the user's model stays as it was. An error is one line that says what to
pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen, nnx
from jax import Array

from jaxdnn.errors import InputError

# (logits, targets) -> scalar or (batch,)
Loss = Callable[[Any, Any], Array]
# (params, inputs, key) -> logits
Forward = Callable[[Any, Any, Array | None], Any]
# How public code spells "this is a training step", and what to say then.
_FLAGS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


class Network(NamedTuple):
    """A network in the mode in which it came.

    Attributes:
      params: a tree of floating-point arrays, named as in the user's model.
      apply: `(params, inputs, key) -> logits`; `key` None leaves random streams as they are.
      in_training: the same in training mode, where it came in evaluation mode; otherwise None.
    """

    params: Any
    apply: Forward
    in_training: Forward | None = None


def make_network(model: Any) -> Network:
    """Take in a model.

    Args:
      model: a Flax NNX module, a pair (Flax Linen module, its variables), or a pair
        (function `(params, inputs) -> logits`, params); the function may take a third argument, a
        key.

    Raises:
      InputError: the model is of another kind, or has no parameters.
    """
    network = _numbers_alone(_convert(model))
    leaves = jax.tree.leaves(network.params)
    if not any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
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


def _numbers_alone(network: Network) -> Network:
    """Close over what stands among the parameters and cannot be trained: counts, names, keys."""
    leaves, structure = jax.tree.flatten(network.params)
    trains = [_is_number(leaf) for leaf in leaves]
    if all(trains) and all(hasattr(leaf, "dtype") for leaf in leaves):
        return network

    def whole(apply: Forward) -> Forward:
        def applied(params: Any, inputs: Any, key: Array | None) -> Any:
            numbers = iter(jax.tree.leaves(params))
            filled = [
                next(numbers) if is_number else leaf
                for leaf, is_number in zip(leaves, trains, strict=True)
            ]
            return apply(structure.unflatten(filled), inputs, key)

        return applied

    numbers = [
        jnp.asarray(leaf) if is_number else None
        for leaf, is_number in zip(leaves, trains, strict=True)
    ]
    in_training = network.in_training and whole(network.in_training)
    return Network(structure.unflatten(numbers), whole(network.apply), in_training)


def _is_number(leaf: Any) -> bool:
    kind = getattr(leaf, "dtype", None)
    if kind is None:
        return isinstance(leaf, float | complex)
    return jnp.issubdtype(kind, jnp.inexact)


def _training_flags(call: Callable[..., Any]) -> dict[str, bool]:
    """Those arguments of `call` that tell it to train."""
    return {name: _FLAGS[name] for name in inspect.signature(call).parameters if name in _FLAGS}


def _from_nnx(model: nnx.Module) -> Network:
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    flags = _training_flags(model.__call__)

    def forward(trains: bool) -> Forward:
        def apply(plain: Any, inputs: Any, key: Array | None) -> Any:
            module = nnx.merge(graphdef, _like(params, plain), _fresh(rest, key), copy=True)
            if trains:
                module.train()
            return module(inputs, **flags)

        return apply

    other = forward(True) if _evaluates(model) else None
    return Network(nnx.to_pure_dict(params), forward(False), other)


def _evaluates(model: nnx.Module) -> bool:
    """Tell whether a norm or a dropout inside is in evaluation mode."""
    modes = ("deterministic", "use_running_average")
    return any(
        getattr(module, mode, None) is True for _, module in nnx.iter_graph(model) for mode in modes
    )


def _like(state: nnx.State, params: Any) -> nnx.State:
    """Put plain arrays into a state of the model's own structure."""
    leaves = dict(nnx.to_flat_state(nnx.State(params)))
    flat = [(path, var.replace(leaves[path])) for path, var in nnx.to_flat_state(state)]
    return nnx.from_flat_state(flat)


def _fresh(rest: nnx.State, key: Array | None) -> nnx.State:
    """Make every random stream start from `key`."""
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
    flags: dict[str, Any] = dict(_training_flags(module.__call__))

    def apply(params: Any, inputs: Any, key: Array | None) -> Any:
        key = jax.random.key(0) if key is None else key
        logits, _ = module.apply(
            {"params": params, **rest},
            inputs,
            # Linen takes that of `params` for every stream that it is not given.
            rngs={"dropout": key, "default": key, "params": key},
            mutable=list(rest) or ["batch_stats"],
            **flags,
        )
        return logits

    return Network(variables["params"], apply)


def _from_function(function: Callable[..., Any], params: Any) -> Network:
    takes_key = len(inspect.signature(function).parameters) > 2

    def apply(params: Any, inputs: Any, key: Array | None) -> Any:
        if not takes_key:
            return function(params, inputs)
        return function(params, inputs, jax.random.key(0) if key is None else key)

    return Network(params, apply)


def leaf_names(params: Any) -> list[str]:
    """Return the path of every parameter, such as `layers/3/linear/kernel`."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]


def check_inputs(inputs: Any, targets: Any) -> None:
    """Check that the inputs have as many examples as the targets.

    Raises:
      InputError: they are not.
    """
    leaves = jax.tree.leaves(inputs)
    if not leaves or any(not hasattr(leaf, "shape") or leaf.ndim == 0 for leaf in leaves):
        raise InputError("the inputs have no batch axis; give an array (batch, ...)")
    every = [*leaves, *jax.tree.leaves(targets)]
    sizes = {leaf.shape[0] for leaf in every if getattr(leaf, "ndim", 0)}
    if len(sizes) != 1:
        raise InputError(
            f"inputs and targets have {' and '.join(map(str, sorted(sizes)))} examples; give as"
            " many of each"
        )
    if min(sizes) < 2:
        raise InputError("one example came; give a batch of at least two")


def logits_shape(network: Network, inputs: Any, key: Array) -> jax.ShapeDtypeStruct:
    """Return shape and type of the logits without computing them.

    Raises:
      InputError: the model does not take the inputs, or returns anything but one float array.
    """
    try:
        logits = jax.eval_shape(network.apply, network.params, inputs, key)
    except Exception as error:  # The user's own code may raise anything.
        shapes = ", ".join(f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(inputs))
        remedy = "give inputs of the shape and type that it is made for"
        if _takes_integers(network, inputs, key):
            remedy = "it takes whole numbers: give integers (in a shell --input-type int:WORDS)"
        raise InputError(
            f"the model does not take inputs {shapes}: {_one_line(error)}; {remedy}"
        ) from error
    if not isinstance(logits, jax.ShapeDtypeStruct):
        raise InputError(
            f"the model returns a {type(logits).__name__}; give one that returns one array of"
            " logits, such as (lambda p, x: model.apply(p, x)[0], params)"
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating) or logits.ndim == 0:
        raise InputError(
            f"the model returns {logits.dtype}{list(logits.shape)}; give one that returns"
            " floating-point logits (batch, ...)"
        )
    return logits


def _takes_integers(network: Network, inputs: Any, key: Array) -> bool:
    """Whether a model that refused these inputs takes whole numbers of the same shapes."""
    whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.int32), inputs)
    try:
        jax.eval_shape(network.apply, network.params, whole, key)
    except Exception:
        return False
    return True


def make_loss(loss: Loss | None, targets: Any, logits: jax.ShapeDtypeStruct) -> Loss:
    """Return `(logits, targets) -> scalar`, a float32 mean over the batch.

    Args:
      loss: `(logits, targets) -> scalar or (batch,)`; None for cross-entropy of integer targets and
        the squared error of floats.
      targets: what the loss takes besides the logits, the batch axis first.
      logits: shape and type of what the model gives.

    Raises:
      InputError: targets and logits do not go together, or the loss gives neither a scalar nor one
        number for each example.
    """
    own = loss or _default_loss(targets, logits)
    try:
        result = jax.eval_shape(own, logits, targets)
    except Exception as error:  # As above.
        raise InputError(
            f"the loss does not take logits {list(logits.shape)} and these targets:"
            f" {_one_line(error)}"
        ) from error
    shape = result.shape if isinstance(result, jax.ShapeDtypeStruct) else None
    if shape not in ((), logits.shape[:1]):
        came = type(result).__name__ if shape is None else f"an array {list(shape)}"
        raise InputError(f"the loss gives {came}; give one that returns a scalar mean")
    return lambda z, t: jnp.mean(own(z, t).astype(jnp.float32))


def _default_loss(targets: Any, logits: jax.ShapeDtypeStruct) -> Loss:
    if not hasattr(targets, "dtype"):
        raise InputError(f"targets of type {type(targets).__name__} came; give an array, or a loss")
    if jnp.issubdtype(targets.dtype, jnp.integer) or targets.dtype == bool:
        return _integer_loss(targets, logits)
    if targets.shape != logits.shape:
        raise InputError(
            f"float targets {list(targets.shape)} came for logits {list(logits.shape)}; give the"
            " same shape, or a loss"
        )
    return lambda predicted, wanted: jnp.mean((predicted - wanted) ** 2)


def _integer_loss(targets: Any, logits: jax.ShapeDtypeStruct) -> Loss:
    if logits.shape == (*targets.shape, 1):
        return lambda z, t: optax.sigmoid_binary_cross_entropy(z[..., 0], t.astype(z.dtype)).mean()
    if logits.shape[:-1] != targets.shape:
        raise InputError(
            f"integer targets {list(targets.shape)} came for logits {list(logits.shape)}; give one"
            " class index for each row of logits, or a loss"
        )
    return lambda z, t: optax.softmax_cross_entropy_with_integer_labels(z, t).mean()


def _one_line(error: Exception) -> str:
    """The message of an error of somebody else's code."""
    return " ".join(str(error).split())[:300]
