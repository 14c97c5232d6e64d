"""Files that are read back: each is checked for what it must hold before anything believes it.

What a reader expects is written as a type: a TypedDict, or a dict of key to type, for an object
with certain keys, and within it int, float (finite), str, bool, None, list, tuple, dict, Literal
and unions of these.
"""

from __future__ import annotations

import hashlib
import json
import math
import types
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
from typing_extensions import is_typeddict

from jaxdnn.errors import InputError

SEAL = "sha256"
"""Key of the digest over all other keys of an object."""
_SHOWN = 60
_DAMAGES = (
    *(ValueError, EOFError, TypeError, SyntaxError, zipfile.BadZipFile, zlib.error),
    # Encrypted, or compressed in a way that Python does not know.
    *(RuntimeError, NotImplementedError),
)


def read_json(path: Path, kind: Any, *, remedy: str) -> Any:
    """Read a JSON file that holds what `kind` says; a seal, where there is one, must be whole.

    Args:
      path: in UTF-8.
      kind: the type expected, see above.
      remedy: what the user can do where it holds anything else.

    Raises:
      InputError: it cannot be read, or says something else; it names file, key, found, expected.
    """
    try:
        return parse_json(path.read_bytes(), kind)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); {remedy}") from error


def parse_json(text: bytes, kind: Any) -> Any:
    """Parse what `read_json` reads.

    Raises:
      ValueError: it is no JSON, or says something else.
    """
    try:
        content = json.loads(text.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if wrong := misfit(content, kind):
        raise ValueError(wrong)
    if isinstance(content, dict) and content.get(SEAL, seal(content)[SEAL]) != seal(content)[SEAL]:
        raise ValueError("it was changed after it was written")
    return content


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the object with a digest over its other keys; of what JSON can hold."""
    rest = {name: value for name, value in content.items() if name != SEAL}
    return {**rest, SEAL: digest(rest)}


def digest(content: Any) -> str:
    """Return the SHA-256 of what JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def misfit(value: Any, kind: Any, place: str = "") -> str:
    """Say where parsed JSON is not of a type: found and expected; '' where it is."""
    if is_typeddict(kind):
        return _misfit_of_object(value, get_type_hints(kind), place)
    if isinstance(kind, dict):
        return _misfit_of_object(value, kind, place)
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        fits = any(not misfit(value, part) for part in parts)
        return "" if fits else _unexpected(value, kind, place)
    if origin is Literal:
        fits = any(value == part and type(value) is type(part) for part in parts)
        return "" if fits else _unexpected(value, kind, place)
    if origin in (list, tuple) and isinstance(value, list):
        each = ((f"{place}[{i}]", item) for i, item in enumerate(value))
        return next(filter(None, (misfit(item, parts[0], where) for where, item in each)), "")
    if origin is dict and isinstance(value, dict):
        each = ((f"{place}.{name}".lstrip("."), item) for name, item in value.items())
        return next(filter(None, (misfit(item, parts[1], where) for where, item in each)), "")
    return "" if origin is None and _is_a(value, kind) else _unexpected(value, kind, place)


def _misfit_of_object(value: Any, kinds: Mapping[str, Any], place: str) -> str:
    if not isinstance(value, dict):
        return _unexpected(value, "an object", place)
    for name, hint in kinds.items():
        where = f"{place}.{name}".lstrip(".")
        if name not in value:
            return f"key {where} is missing"
        if wrong := misfit(value[name], hint, where):
            return wrong
    return ""


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of a plain type; a bool is no number, and a float is finite."""
    if kind is Any:
        return True
    if kind is None or kind is type(None):
        return value is None
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, kind)


def _unexpected(value: Any, kind: Any, place: str) -> str:
    found = repr(value) if len(repr(value)) <= _SHOWN else f"{repr(value)[:_SHOWN]}..."
    return f"{place or 'the whole'} is {found}, expected {_words(kind)}"


def _words(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " | ".join(map(_words, parts))
    if origin is Literal:
        return " | ".join(map(repr, parts))
    if kind is type(None):
        return "None"
    return str(kind) if isinstance(kind, str) or origin else kind.__name__


def read_arrays(path: Path, names: Sequence[str], *, remedy: str) -> dict[str, np.ndarray]:
    """Read arrays of an .npz file.

    Args:
      path: the file; nothing in it is run.
      names: arrays that it must hold.
      remedy: what the user can do where it does not.

    Raises:
      InputError: it cannot be read, or lacks one.
    """
    try:
        with path.open("rb") as file:
            kept = np.load(file, allow_pickle=False)
            if isinstance(kept, np.ndarray):
                raise ValueError("a single array, not an .npz")
            with kept:
                arrays = dict(kept)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path} cannot be read ({reason}); {remedy}") from error
    except _DAMAGES as error:
        said = " ".join(str(error).split())[:_SHOWN]
        raise InputError(f"{path} is damaged ({said or 'cut short'}); {remedy}") from error
    if missing := [name for name in names if name not in arrays]:
        raise InputError(f"{path} is damaged (no array {', '.join(missing)}); {remedy}")
    return arrays
