"""The activation that a user names: the package's, or `my_module:my_function` from the folder."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from jaxdnn.activations import make_activation
from jaxdnn.errors import InputError
from jaxdnn.propagation.nonlinearity import Phi


def find_activation(name: str) -> Phi:
    """Return the activation called `name`.

    Args:
      name: of one of the package's, or `module:function`, an elementwise function of jax.numpy in a
        module of the current directory or of the Python path.

    Raises:
      InputError: there is no such activation, module or function.
    """
    if ":" not in name:
        return make_activation(name)
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(
            f"--activation {name}: cannot import {module_name} ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}); run from the folder "
            f"that holds {module_name.partition('.')[0]}.py"
        ) from error
    function = vars(module).get(attribute)
    if not callable(function):
        there = ", ".join(key for key, value in vars(module).items() if callable(value))
        raise InputError(
            f"--activation {name}: {module_name} has no function {attribute!r}; it has "
            f"{there or 'none'}"
        )
    return function
