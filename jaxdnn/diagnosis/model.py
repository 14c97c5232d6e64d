"""What a user gives (model, batch, loss) as one pure function of the parameters, and checked.

Whatever is not a parameter (running averages, counters, random streams) is closed over, read, and
its changes are discarded: the user's model stays as it was. An error is one line that says what to
pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxdnn.diagnosis.adapters import Forward, Network, convert
from jaxdnn.errors import InputError

# (logits, targets) -> scalar, or numbers of which the mean is taken
Loss = Callable[[Any, Any], Array]


def make_network(
    model: Any,
    inputs: Any = None,
    key: Array | None = None,
    *,
    outputs: Callable[..., Any] | None = None,
) -> Network:
    """Take in a model.

    Args:
      model: as `jaxdnn.diagnose` takes it.
      inputs: a batch; what comes without parameters is initialised with it.
      key: for that; by default that of seed 0.
      outputs: takes the logits out of what the model returns.

    Raises:
      InputError: the model is of another kind, or has no parameters.
    """
    key = jax.random.key(0) if key is None else key
    network = _numbers_alone(convert(model, inputs, key))
    if outputs is not None:
        network = _picked(network, outputs)
    leaves = jax.tree.leaves(network.params)
    if not any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        raise InputError(
            "the model has no floating-point parameters; give one that is initialised, or for a"
            " function (function, params)"
        )
    return network


def _picked(network: Network, outputs: Callable[..., Any]) -> Network:
    """Take of what a network gives what is to be judged."""

    def picked(apply: Forward) -> Forward:
        return lambda params, inputs, key: outputs(apply(params, inputs, key))

    return Network(
        network.params, picked(network.apply), network.in_training and picked(network.in_training)
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
            f"the model returns a {type(logits).__name__}; say which part are the logits:"
            f" outputs=lambda out: out[{_first_part(logits)!r}]"
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


def _first_part(outputs: Any) -> Any:
    """The key or index of the first floating-point array; 0 where there is none."""
    parts = outputs.items() if isinstance(outputs, Mapping) else enumerate(outputs or ())
    found = (
        name
        for name, part in parts
        if isinstance(part, jax.ShapeDtypeStruct) and jnp.issubdtype(part.dtype, jnp.floating)
    )
    return next(found, 0)


def make_loss(loss: Loss | None, targets: Any, logits: jax.ShapeDtypeStruct) -> Loss:
    """Return `(logits, targets) -> scalar`, a float32 mean over the batch.

    Args:
      loss: `(logits, targets) -> scalar`, or numbers of which the mean is taken; None for
        cross-entropy of integer targets and the squared error of floats.
      targets: what the loss takes besides the logits, the batch axis first.
      logits: shape and type of what the model gives.

    Raises:
      InputError: targets and logits do not go together, or the loss gives
        anything but floats.
    """
    own = loss or _default_loss(targets, logits)
    try:
        result = jax.eval_shape(own, logits, targets)
    except Exception as error:  # As above.
        raise InputError(
            f"the loss does not take logits {list(logits.shape)} and these targets:"
            f" {_one_line(error)}"
        ) from error
    if not isinstance(result, jax.ShapeDtypeStruct):
        raise InputError(
            f"the loss gives a {type(result).__name__}; give one that returns a scalar, such as"
            " loss=lambda outputs, targets: my_loss(outputs, targets)[0]"
        )
    if not jnp.issubdtype(result.dtype, jnp.floating):
        raise InputError(f"the loss gives {result.dtype}; give one that returns a float")
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
