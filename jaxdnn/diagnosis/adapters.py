"""What people have, as one pure function: modules of Flax, Equinox and Haiku, pairs, functions.

A library is told by the names of its classes and not imported before: whoever has a model of it has
it. Of Flax, which takes as long to import as all of ours, that is so too.
Each model is called as its own users call it. What its signature leaves open is asked of it: a flag
that it misses, a stream of random numbers, an axis for its norms.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxdnn.errors import InputError

if TYPE_CHECKING:
    from flax import linen, nnx

# (params, inputs, key) -> outputs
Forward = Callable[[Any, Any, Array | None], Any]
# How public code spells "this is a training step", and what to say then.
_FLAGS = {
    "train": True,
    "training": True,
    "is_training": True,
    "is_train": True,
    "deterministic": False,
    "use_running_average": False,
    "inference": False,
    "eval_mode": False,
}
# How it spells a key for random numbers.
_KEYS = {"key", "rng", "rngs", "prng", "prng_key", "rng_key", "dropout_key", "dropout_rng", "seed"}
_MISSING = re.compile(r"missing .*argument[s]?:? (.*)$")
_UNBOUND = re.compile(r"unbound axis name[: ]+'?(\w+)'?")


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


def convert(model: Any, inputs: Any, key: Array) -> Network:
    """Take in a model.

    Args:
      model: what `jaxdnn.diagnose` takes.
      inputs: a batch for it; what comes without parameters is initialised with it.
      key: for that.

    Raises:
      InputError: the model is of another kind.
    """
    parts = tuple(model) if isinstance(model, tuple | list) else (model,)
    first = parts[0] if parts else None
    if _is_of(first, "flax"):
        from flax import linen, nnx

        if isinstance(first, nnx.GraphDef):
            return _from_nnx(nnx.merge(*parts))
        if isinstance(first, nnx.Module) and len(parts) == 1:
            return _from_nnx(first)
        if isinstance(first, linen.Module) and len(parts) <= 2:
            return _from_linen(first, *parts[1:], inputs=inputs, key=key)
    if _is_of(first, "equinox") and len(parts) <= 2:
        return _from_equinox(first, *parts[1:])
    if _is_of(model, "haiku"):
        return _from_haiku(model, None, inputs, key)
    if _is_of(first, "haiku") and len(parts) in (2, 3):
        return _from_haiku(first, parts[1:], inputs, key)
    if len(parts) == 2 and isinstance(first, tuple | list) and len(first) == 2:
        # (init, apply) of a pair such as stax makes, and its parameters.
        return _from_function(first[1], parts[1])
    if len(parts) == 2 and callable(first) and _holds_numbers(parts[1]):
        return _from_function(first, parts[1])
    raise InputError(
        f"a model of type {type(model).__name__} came; give a module of flax.nnx, Linen, Equinox or"
        " Haiku, or (function of (params, inputs), params)"
    )


def _holds_numbers(params: Any) -> bool:
    """Tell parameters, which may be a module that can be called, from a function."""
    return not callable(params) or any(map(_is_weight, jax.tree.leaves(params)))


def _is_of(thing: Any, library: str) -> bool:
    """Tell whether a thing's class comes from a library, by name."""
    return any(base.__module__.partition(".")[0] == library for base in type(thing).__mro__)


def _called(call: Callable[..., Any], first: tuple[Any, ...], inputs: Any, key: Any) -> Any:
    """Call a model as its signature says.

    Args:
      call: takes what is in `first`, then the inputs, and by name flags and a key.
      first: such as the parameters.
      inputs: one array, or several as a tuple or a dictionary.
      key: for random numbers; None to let the model do without where it can.
    """
    names = _parameters(call)
    flags: dict[str, Any] = {name: _FLAGS[name] for name in names if name in _FLAGS}
    flags |= {name: _key(key) for name in _key_names(call, skip=len(first) + 1)}
    given, named = _spread(call, inputs, len(first))
    try:
        return call(*first, *given, **named, **flags)
    except TypeError as error:
        # The signature may hide what the function inside asks for.
        missing = [name for name in _asked_for(error) if name not in flags]
        if not missing or not all(name in _FLAGS or name in _KEYS for name in missing):
            raise
        flags |= {name: _FLAGS.get(name, _key(key)) for name in missing}
    return call(*first, *given, **named, **flags)


def _key(key: Any) -> Any:
    return jax.random.key(0) if key is None else key


def _asked_for(error: TypeError) -> list[str]:
    found = _MISSING.search(str(error))
    return re.findall(r"'(\w+)'", found.group(1)) if found else []


def _parameters(call: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(call).parameters
    except (TypeError, ValueError):
        return {}


def _key_names(call: Callable[..., Any], skip: int) -> list[str]:
    """Names of the parameters that ask for a key, by name or annotation."""
    found = []
    for place, (name, parameter) in enumerate(_parameters(call).items()):
        said = str(parameter.annotation)
        asks = name in _KEYS or "PRNGKey" in said or said.endswith("Key")
        by_name = parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.VAR_KEYWORD)
        if place >= skip and asks and by_name and parameter.kind is not parameter.VAR_POSITIONAL:
            found.append(name)
    return found


def _spread(
    call: Callable[..., Any], inputs: Any, skip: int
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Hand several inputs over one by one where the signature names as many."""
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = [
        name for name, each in _parameters(call).items() if name not in {*_FLAGS, *_KEYS, "self"}
    ]
    if isinstance(inputs, Mapping) and len(taken) > 1 and set(inputs) <= set(taken):
        return (), inputs
    required = [
        name
        for name, each in list(_parameters(call).items())[skip:]
        if name in taken and each.kind in plain and each.default is inspect.Parameter.empty
    ]
    if isinstance(inputs, tuple) and len(required) == len(inputs) > 1:
        return inputs, {}
    return (inputs,), {}


def _with_axis(forward: Forward) -> Forward:
    """Give a model whose norms reduce over a named axis that axis, of size 1."""

    def apply(params: Any, inputs: Any, key: Array | None) -> Any:
        try:
            return forward(params, inputs, key)
        except NameError as error:
            found = _UNBOUND.search(str(error))
            if found is None:
                raise
        named = jax.vmap(
            lambda _: forward(params, inputs, key), axis_name=found.group(1), axis_size=1,
            in_axes=None,
        )  # fmt: skip
        return jax.tree.map(lambda x: x[0], named(None))

    return apply


def _from_nnx(model: nnx.Module) -> Network:
    from flax import nnx

    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def forward(trains: bool) -> Forward:
        def apply(plain: Any, inputs: Any, key: Array | None) -> Any:
            module = nnx.merge(graphdef, _like(params, plain), _fresh(rest, key), copy=True)
            if trains:
                module.train()
            streams = nnx.Rngs(_key(key)) if "rngs" in _parameters(module.__call__) else None
            if streams is None:
                return _called(module, (), inputs, key)
            return _called(_partial(module, rngs=streams), (), inputs, key)

        return _with_axis(apply)

    other = forward(True) if _evaluates(model) else None
    return Network(nnx.to_pure_dict(params), forward(False), other)


def _partial(call: Callable[..., Any], **fixed: Any) -> Callable[..., Any]:
    """A function with some arguments given, whose signature no longer shows them."""

    def called(*arguments: Any, **named: Any) -> Any:
        return call(*arguments, **named, **fixed)

    own = inspect.signature(call)
    left = [each for name, each in own.parameters.items() if name not in fixed]
    signed: Any = called
    signed.__signature__ = own.replace(parameters=left)
    return signed


def _evaluates(model: nnx.Module) -> bool:
    """Tell whether a norm or a dropout inside is in evaluation mode."""
    from flax import nnx

    modes = ("deterministic", "use_running_average")
    return any(
        getattr(module, mode, None) is True for _, module in nnx.iter_graph(model) for mode in modes
    )


def _like(state: nnx.State, params: Any) -> nnx.State:
    """Put plain arrays into a state of the model's own structure."""
    from flax import nnx

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


def _from_linen(module: linen.Module, variables: Any = None, *, inputs: Any, key: Array) -> Network:
    def streams(key: Array) -> dict[str, Array]:
        # Linen takes that of `params` for every stream that it is not given.
        return {"params": key, "dropout": key, "default": key}

    if variables is None:
        call = _partial_signature(lambda *a, **k: module.init(streams(key), *a, **k), module)
        variables = _called(call, (), inputs, key)
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise InputError(
            "the Linen module's variables have no 'params'; give (module, module.init(key, inputs))"
        )
    rest = {name: tree for name, tree in variables.items() if name != "params"}

    def apply(params: Any, inputs: Any, key: Array | None) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            return module.apply(
                {"params": params, **rest}, *arguments, rngs=streams(_key(key)),
                mutable=list(rest) or ["batch_stats"], **named,
            )  # fmt: skip

        outputs, _ = _called(_partial_signature(call, module), (), inputs, key)
        return outputs

    params = variables["params"]
    return Network(jax.tree.map(lambda x: x, _plain(params)), _with_axis(apply))


def _partial_signature(call: Callable[..., Any], module: Any) -> Callable[..., Any]:
    """Let a function show the signature of a module's own call."""
    signed: Any = call
    signed.__signature__ = inspect.signature(type(module).__call__.__get__(module))
    return signed


def _plain(tree: Any) -> Any:
    """Make dictionaries of a frozen one and all inside."""
    if isinstance(tree, Mapping):
        return {name: _plain(inside) for name, inside in tree.items()}
    return tree


def _from_equinox(model: Any, state: Any = None) -> Network:
    """Equinox: a module is a tree, and takes one example; batches go through `vmap`."""
    takes_key = bool(_key_names(model.__call__, skip=1))
    axis = next(
        (
            each.axis_name
            for each in jax.tree.leaves(model, is_leaf=lambda x: hasattr(x, "axis_name"))
            if isinstance(getattr(each, "axis_name", None), str)
        ),
        "batch",
    )

    kept = jax.tree.flatten(state)[::-1]
    leaves, structure = jax.tree.flatten(model)
    trains = [_is_weight(leaf) for leaf in leaves]

    def apply(params: Any, inputs: Any, key: Array | None) -> Any:
        weights = iter(jax.tree.leaves(params))
        whole = structure.unflatten(
            next(weights) if is_weight else leaf
            for leaf, is_weight in zip(leaves, trains, strict=True)
        )
        rows = len(jax.tree.leaves(inputs)[0])
        keys = jax.random.split(_key(key), rows)
        # A state can be used once: each call gets one of its own.
        before = () if state is None else (jax.tree.unflatten(*kept),)

        def one(x: Any, own: Array) -> Any:
            given, named = _spread(whole.__call__, x, 0)
            if takes_key:
                named = {**named, "key": own}
            outputs = whole(*given, *before, **named)
            return outputs[0] if before else outputs

        return jax.vmap(one, axis_name=axis)(inputs, keys)

    weights = (leaf if w else None for leaf, w in zip(leaves, trains, strict=True))
    return Network(structure.unflatten(weights), apply)


def _is_weight(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _from_haiku(
    transformed: Any, given: tuple[Any, ...] | None, inputs: Any, key: Array
) -> Network:
    """Haiku: `init` and `apply` of a transformed function, with or without state and key."""
    names = list(_parameters(transformed.apply))
    has_state, has_key = "state" in names, "rng" in names
    if given is None:
        made = _called(transformed.init, (key,), inputs, key)
        given = tuple(made) if has_state else (made,)
    if len(given) != 1 + has_state:
        wanted = "(transformed, params, state)" if has_state else "(transformed, params)"
        raise InputError(f"a Haiku transform came with {len(given)} trees; give {wanted}")
    params, *state = given

    def apply(params: Any, inputs: Any, key: Array | None) -> Any:
        first = (params, *state, *([_key(key)] if has_key else []))
        outputs = _called(transformed.apply, first, inputs, key)
        return outputs[0] if has_state else outputs

    return Network(_plain(params), _with_axis(apply))


def _from_function(function: Callable[..., Any], params: Any) -> Network:
    def apply(params: Any, inputs: Any, key: Array | None) -> Any:
        kinds = [each.kind for each in _parameters(function).values()]
        if inspect.Parameter.VAR_KEYWORD in kinds and "rng" not in _parameters(function):
            # Pairs in the manner of stax take a key so, and their dropout asks for it.
            try:
                return _called(function, (params,), inputs, key)
            except ValueError as error:
                if "rng" not in str(error):
                    raise
            return function(params, inputs, rng=_key(key))
        return _called(function, (params,), inputs, key)

    return Network(params, _with_axis(apply))
