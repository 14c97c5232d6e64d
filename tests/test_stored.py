"""Files that are read back: what does not fit is named, and nothing else is believed."""

import json
import zipfile
from typing import Any, Literal

import chex
import numpy as np
import pytest
from typing_extensions import TypedDict

from jaxdnn.errors import InputError
from jaxdnn.stored import misfit, read_arrays, read_json, seal


class Point(TypedDict):
    """An object with some keys."""

    name: str
    place: list[float]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (3, int),
        (3, float),
        (None, float | None),
        ("full", int | Literal["full"]),
        ([1, 2], tuple[int, ...]),
        ([], list[str]),
        ({"a": {"b": 1}}, dict[str, dict[str, int]]),
        ({"name": "a", "place": [1, 2.5], "more": None}, Point),
        ({"a/b": None}, {"a/b": int | None}),
        (object(), Any),
    ],
)
def test_what_is_of_the_type_fits(value, kind):
    assert misfit(value, kind) == ""


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (True, int, "the whole is True, expected int"),
        (1, bool, "expected bool"),
        (6.5, int, "6.5, expected int"),
        (float("nan"), float, "nan, expected float"),
        (float("inf"), float | None, "inf, expected float | None"),
        ("half", int | Literal["full"], "'half', expected int | 'full'"),
        (True, Literal[1, 3], "expected 1 | 3"),
        ([1, "b"], list[int], "[1] is 'b', expected int"),
        ({"a": {"b": []}}, dict[str, dict[str, int]], "a.b is [], expected int"),
        ({"name": "a"}, Point, "key place is missing"),
        ({"name": 1, "place": []}, Point, "name is 1, expected str"),
        ([], Point, "expected an object"),
        ("x" * 999, int, "..., expected int"),
    ],
)
def test_what_is_not_of_the_type_is_named(value, kind, expected):
    assert expected in misfit(value, kind)
    assert len(misfit(value, kind)) < 200


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"name": "\xff"}', b"[" * 100_000, b"9" * 10_000, b"null", b'{"name": 1}'],
)
def test_a_file_that_is_not_what_it_should_be_gets_one_line(tmp_path, content):
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"some\.json is damaged \(.*\); do this") as caught:
        read_json(path, Point, remedy="do this")
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        read_json(path, Point, remedy="do this")


def test_a_sealed_object_is_believed_only_as_it_was_written(tmp_path):
    path, whole = tmp_path / "some.json", seal({"name": "a", "place": [0.1, 1e-300]})
    path.write_text(json.dumps(whole, indent=2))
    assert read_json(path, Point, remedy="") == whole
    path.write_text(json.dumps({**whole, "name": "b"}))
    with pytest.raises(InputError, match="was changed after it was written"):
        read_json(path, Point, remedy="")


def test_arrays_come_back_and_any_damage_is_one_line(tmp_path):
    path, arrays = tmp_path / "some.npz", {"a": np.arange(300), "b": np.ones((2, 3))}
    np.savez_compressed(path, **arrays)
    chex.assert_trees_all_equal(read_arrays(path, ("a", "b"), remedy=""), arrays)
    with pytest.raises(InputError, match=r"no array c\); do this"):
        read_arrays(path, ("a", "c"), remedy="do this")
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    for damaged in (whole[:50], whole[:-9], b"", b"text", flipped(whole, members[0])):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"is damaged \(.+\); do this"):
            read_arrays(path, ("a", "b"), remedy="do this")
    np.save(tmp_path / "one.npy", arrays["a"])
    with pytest.raises(InputError, match="a single array"):
        read_arrays(tmp_path / "one.npy", (), remedy="")


def flipped(content: bytes, member: zipfile.ZipInfo) -> bytes:
    """Flip a bit within what a member of an archive holds."""
    at = member.header_offset + 60 + member.compress_size // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
