"""Names: one spelling for many, and an error that lists what there is."""

import os
import random
import sys
import unicodedata

import pytest

from jaxdnn.errors import InputError
from jaxdnn.names import printable, printable_lines, resolve, shown_apart

from .hostile_files import ESCAPES

KNOWN = ("leaky_relu", "tanh")
ALIASES = {"leaky": "leaky_relu"}


@pytest.mark.parametrize("typed", ["leaky_relu", "Leaky-ReLU", "leaky", "LEAKY"])
def test_spelling_and_aliases_lead_to_one_name(typed):
    assert resolve(typed, KNOWN, ALIASES, "activation") == "leaky_relu"


def test_known_names_may_be_an_iterator():
    assert resolve("tanh", iter(KNOWN), {}, "activation") == "tanh"
    with pytest.raises(InputError, match=r"there are leaky_relu, tanh$"):
        resolve("relu6", iter(KNOWN), {}, "activation")


def test_error_lists_the_names_the_closest_first():
    with pytest.raises(InputError) as caught:
        resolve("tahn", KNOWN, ALIASES, "activation")
    message = str(caught.value)
    assert "unknown activation 'tahn'" in message
    assert all(name in message for name in KNOWN)
    assert "did you mean 'tanh'?" in message
    assert "\n" not in message


def test_nothing_is_suggested_where_nothing_is_close():
    with pytest.raises(InputError) as caught:
        resolve("qqq", KNOWN, ALIASES, "activation")
    assert "did you mean" not in str(caught.value)


def test_an_alias_of_an_absent_name_is_an_error():
    with pytest.raises(InputError):
        resolve("leaky", ("tanh",), ALIASES, "activation")


@pytest.mark.parametrize(
    ("foreign", "shown"),
    [
        ("dog", "dog"),
        (
            "\u72ac \u0441\u043e\u0431\u0430\u043a\u0430",
            "\u72ac \u0441\u043e\u0431\u0430\u043a\u0430",
        ),
        ("cafe\u0301", "caf\u00e9"),
        ("a\nb\tc", r"a\nb\tc"),
        (ESCAPES, r"\x1b[31m\u202egnp\x07"),
        ("a\u2028b\u200bc\ufeff", r"a\u2028b\u200bc\ufeff"),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("\ud800x", r"\ud800x"),
        ("caf\u00e9".encode().decode("ascii", "surrogateescape"), "caf\u00e9"),
    ],
)
def test_foreign_text_is_one_line_that_steers_nothing(foreign, shown):
    assert printable(foreign) == printable(shown) == shown
    assert printable_lines(f"{foreign}\n{foreign}").count("\n") >= 1


def test_any_text_becomes_printable():
    drawn = random.Random(0)
    for _ in range(300):
        foreign = "".join(chr(drawn.randrange(sys.maxunicode + 1)) for _ in range(8))
        shown = printable(foreign)
        kinds = {unicodedata.category(c) for c in shown if c not in "\u200c\u200d"}
        assert not kinds & {"Cc", "Cf", "Cs", "Zl", "Zp"}
        shown.encode("utf-8")


@pytest.mark.parametrize(
    "names",
    [
        ("\u00e9", "e\u0301"),
        ("\u00e9", "e\u0301", "'\\xe9'", r"\xe9"),
        ("dog", "dog ", " dog", "d\u200dog", "'dog'"),
        ("a\x01", r"a\x01", "a\x02"),
        (os.fsdecode(b"\xc4\xe3"), os.fsdecode(b"\xc4\xe4"), "\ufffd\ufffd"),
    ],
)
def test_names_that_look_the_same_are_shown_apart(names):
    shown = shown_apart(names)
    assert len({" ".join(each.replace("\u200d", "").split()) for each in shown}) == len(names)
    assert all(printable(each) == each for each in shown)
    assert shown_apart(["cat", "dog"]) == ["cat", "dog"]
