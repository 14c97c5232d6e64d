"""Names that a user types: aliases, and an error that lists what there is."""

import difflib
from collections.abc import Iterable, Mapping

from jaxdnn.errors import InputError


def resolve(name: str, known: Iterable[str], aliases: Mapping[str, str], what: str) -> str:
    """Return the canonical name; spelling ignores case and takes `-` for `_`.

    Args:
      name: what the user typed.
      known: the canonical names.
      aliases: alias -> canonical name.
      what: what is being named, for the error.

    Raises:
      InputError: no such name; the message lists the names, the closest first.
    """
    known = list(known)
    typed = name.lower().replace("-", "_")
    canonical = aliases.get(typed, typed)
    if canonical in known:
        return canonical
    close = difflib.get_close_matches(typed, [*known, *aliases], n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise InputError(f"unknown {what} {name!r}: {hint}there are {', '.join(known)}")
