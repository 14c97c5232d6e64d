"""Checks of single settings; what fails says what came, the rule and the remedy."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jaxdnn.errors import InputError


def check(condition: bool, message: str) -> None:
    """Raise InputError with this message unless the condition holds."""
    if not condition:
        raise InputError(message)


def check_range(options: object, name: str, low: float, high: float = math.inf) -> None:
    """Check low <= value <= high for one field, None allowed."""
    value = getattr(options, name)
    flag = "--" + name.replace("_", "-")
    bound = f"from {low} to {high}" if high < math.inf else f"of {low} or more"
    fits = value is None or (math.isfinite(value) and low <= value <= high)
    check(fits, f"{flag} is {value}; give a number {bound}")


def check_choices(options: Any) -> None:
    """Check every field whose type lists its values."""
    for name, hint in get_type_hints(type(options)).items():
        parts = get_args(hint) if get_origin(hint) is not Literal else (hint,)
        literals = [part for part in parts if get_origin(part) is Literal]
        choices = [choice for part in literals for choice in get_args(part)]
        types = tuple(part for part in parts if isinstance(part, type))
        value = getattr(options, name)
        if choices and value not in choices and not isinstance(value, types):
            flag = "--" + name.replace("_", "-")
            names = [
                *map(str, choices),
                *(f"any {kind.__name__}" for kind in types if kind in (int, float)),
            ]
            raise InputError(f"{flag} is {value!r}; choose one of {', '.join(names)}")
