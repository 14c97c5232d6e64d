"""Names: one spelling for many, and an error that lists what there is."""

import pytest

from jaxdnn.errors import InputError
from jaxdnn.names import resolve

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
