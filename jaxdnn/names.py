"""Names: those that a user types, and those that come from files, made fit to be shown."""

import contextlib
import difflib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

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


# Controls, what turns the direction of text or has no width, halves of characters, and line ends.
_UNFIT = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
_JOINERS = "\u200c\u200d"  # Part of the spelling of Persian, of Hindi, and of emoji.


def printable(text: str) -> str:
    """Return foreign text as one line for people, in Unicode's composed form.

    What could steer a terminal, turn other text around or hide is written as its escape, such as
    `\\x1b` or `\\u202e`; so are the bytes of a file's name that are not UTF-8.
    """
    if not text.isprintable():
        with contextlib.suppress(UnicodeEncodeError):  # A locale of its own may have split UTF-8.
            text = text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
        text = "".join(_escaped(c) if _is_unfit(c) else c for c in text)
    return unicodedata.normalize("NFC", text)


def printable_lines(text: str) -> str:
    """Return foreign text of several lines, each of them `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def _is_unfit(c: str) -> bool:
    return unicodedata.category(c) in _UNFIT and c not in _JOINERS


def _escaped(c: str) -> str:
    is_byte = "\udc80" <= c <= "\udcff"  # As Python keeps those that are no text.
    return f"\\x{ord(c) - 0xDC00:02x}" if is_byte else ascii(c)[1:-1]


def shown_apart(names: Sequence[str]) -> list[str]:
    """Return each of several different names as `printable`, and no two that look the same.

    Those that would are shown in quotes, with an escape for every character that is not ASCII.
    """
    shown = [printable(name) for name in names]
    while True:
        alike = Counter(map(_looks, shown))
        quoted = [
            ascii(name) if alike[_looks(s)] > 1 else s for s, name in zip(shown, names, strict=True)
        ]
        if quoted == shown:
            return shown
        shown = quoted


def _looks(shown: str) -> str:
    if shown.isascii() and shown.startswith(("'", '"')):
        return shown
    return " ".join("".join(c for c in shown if c not in _JOINERS).split())
