"""Checks of what a user gives: one line each that says what to pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxdnn.diagnosis.adapters import Network
from jaxdnn.errors import InputError

Shape = tuple[int, ...]


def check_inputs(inputs: Any, targets: Any) -> None:
    """Check that the inputs are finite and have as many examples as the targets.

    Raises:
      InputError: they are not.
    """
    leaves = jax.tree.leaves(inputs)
    if not leaves or any(not hasattr(leaf, "shape") or leaf.ndim == 0 for leaf in leaves):
        raise InputError("the inputs have no batch axis; give an array (batch, ...)")
    for leaf in leaves:
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not bool(jnp.isfinite(leaf).all()):
            raise InputError("the inputs hold NaN or infinity; give finite numbers")
    sizes = {leaf.shape[0] for leaf in [*leaves, *jax.tree.leaves(targets)] if leaf.ndim}
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
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        shapes = ", ".join(f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(inputs))
        said = " ".join(str(error).split())[:300]
        raise InputError(
            f"the model does not take inputs {shapes}: {said}; give inputs of the shape and type"
            " that it is made for"
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


def default_loss(targets: Any, logits: jax.ShapeDtypeStruct) -> Callable[[Any, Any], Array]:
    """Return cross-entropy for integer targets, squared error for floats.

    Raises:
      InputError: targets and logits do not go together.
    """
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


def _integer_loss(targets: Any, logits: jax.ShapeDtypeStruct) -> Callable[[Any, Any], Array]:
    if logits.shape == (*targets.shape, 1):
        return lambda z, t: optax.sigmoid_binary_cross_entropy(z[..., 0], t.astype(z.dtype)).mean()
    num_classes = logits.shape[-1]
    if logits.shape[:-1] != targets.shape:
        raise InputError(
            f"integer targets {list(targets.shape)} came for logits {list(logits.shape)}; give one"
            " class index for each row of logits, or a loss"
        )
    if int(targets.min()) < 0 or int(targets.max()) >= num_classes:
        raise InputError(
            f"targets from {int(targets.min())} to {int(targets.max())} came for {num_classes}"
            f" logits; give class indices from 0 to {num_classes - 1}"
        )
    return lambda z, t: optax.softmax_cross_entropy_with_integer_labels(z, t).mean()


def mean_loss(
    loss: Callable[[Any, Any], Array], logits: jax.ShapeDtypeStruct, targets: Any
) -> Callable[[Any, Any], Array]:
    """Return the loss as a float32 mean over the batch.

    Raises:
      InputError: it gives neither a scalar nor one number for each example.
    """
    try:
        result = jax.eval_shape(loss, logits, targets)
    except (TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        raise InputError(
            f"the loss does not take logits {list(logits.shape)} and these targets: {said}"
        ) from error
    shape: Shape | None = result.shape if isinstance(result, jax.ShapeDtypeStruct) else None
    if shape not in ((), logits.shape[:1]):
        came = type(result).__name__ if shape is None else f"an array {list(shape)}"
        raise InputError(f"the loss gives {came}; give one that returns a scalar mean")
    return lambda z, t: jnp.mean(loss(z, t).astype(jnp.float32))
