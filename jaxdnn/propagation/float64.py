"""Double precision inside a function, whatever JAX's default is outside."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxdnn.propagation.nonlinearity import make_nonlinearity

P = ParamSpec("P")
R = TypeVar("R")


def in_float64(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function of an activation and numbers, and run it in double precision.

    The first argument is an activation, `(phi, *numbers, **options)`; its kinks are found here.
    Numbers and arrays become float64 arrays, options are part of the program. Works under jit, vmap
    and jvp (grad only where double precision is on outside). What is returned stays float64:
    outside, combine it with numpy (`float`, `np.asarray`), since JAX would cut it to its default
    precision.
    """
    options = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    compiled: Any = jax.jit(function, static_argnums=0, static_argnames=options)

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        phi, *numbers = cast(tuple[Any, ...], args)
        given = {
            name: value if name in options else _convert(value) for name, value in kwargs.items()
        }
        with jax.enable_x64(True):
            return compiled(make_nonlinearity(phi), *map(_convert, numbers), **given)

    return wrapped


def _convert(value: object) -> object:
    if isinstance(value, jax.Array):
        return value.astype(jnp.float64)
    return jnp.asarray(np.asarray(value, np.float64))
