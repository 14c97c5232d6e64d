"""The activation that a user means: the package's by name, or a function of the user's own."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdnn.activations import Activation, Range, make_activation
from jaxdnn.errors import InputError
from jaxdnn.propagation.nonlinearity import SEARCHED, Phi, make_nonlinearity

# Points within |x| <= 32 at which a user's function is looked at.
_NUM_POINTS = 2**16 + 1


def find_activation(name: str) -> Activation:
    """Return the activation called `name`.

    Args:
      name: of one of the package's, or `module:function`, an elementwise function of jax.numpy in a
        module of the current directory or of the Python path.

    Raises:
      InputError: there is no such activation, module or function, or it is not finite everywhere.
    """
    if ":" not in name:
        return make_activation(name)
    module_name, _, attribute = name.partition(":")
    module = _import(name, module_name)
    function = vars(module).get(attribute)
    if not callable(function):
        there = ", ".join(key for key, value in vars(module).items() if callable(value))
        raise InputError(
            f"activation {name}: {module_name} has no function {attribute!r}; it has "
            f"{there or 'none'}"
        )
    return as_activation(function, name)


def _import(name: str, module_name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except Exception as error:
        raise InputError(
            f"activation {name}: cannot import {module_name} ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}); run from the folder "
            f"that holds {module_name.partition('.')[0]}.py"
        ) from error


def as_activation(function: Phi, name: str) -> Activation:
    """Return a function as an activation, its ranges measured within |x| <= 32.

    Args:
      function: elementwise, in jax.numpy, keeps the dtype of its argument; or an `Activation`.
      name: for tables and messages.

    Raises:
      InputError: it is not such a function, or not finite somewhere.
    """
    if isinstance(function, Activation):
        return function
    make_nonlinearity(function)

    with jax.enable_x64(True):
        x = jnp.linspace(-SEARCHED, SEARCHED, _NUM_POINTS)
        values, slopes = jax.jvp(function, (x,), (jnp.ones_like(x),))
        return Activation(name, function, _range(values), _range(slopes))


def _range(values: Array) -> Range:
    return float(values.min()), float(values.max())
