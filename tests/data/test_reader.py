"""Threads: the same items in order, made before they are asked for, nothing left running."""

import threading
from collections.abc import Iterator

import chex
import numpy as np
import pytest

from jaxdnn.data import Reader, RowCache, Source, UnreadableImage, map_in_order, prefetch
from jaxdnn.errors import InputError


def test_the_items_in_order_and_the_error_in_its_place():
    def items():
        yield from range(5)
        raise ValueError("sixth")

    found = prefetch(items())
    assert [next(found) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="sixth"):
        next(found)
    assert list(prefetch(iter_of([]))) == []
    assert list(prefetch(iter_of([None, 0, None]))) == [None, 0, None]


def iter_of(values):
    yield from values


def test_the_next_is_made_while_the_last_is_used():
    begun = [threading.Event() for _ in range(3)]

    def items():
        for number, event in enumerate(begun):
            event.set()
            yield number

    found = prefetch(items())
    for number in range(3):
        assert next(found) == number
        for event in begun[: number + 2]:
            assert event.wait(10)
        assert not any(event.is_set() for event in begun[number + 2 :])


def test_whoever_stops_taking_closes_what_is_behind():
    closed = threading.Event()

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    behind = items()
    found = prefetch(behind)
    next(found)
    found.close()
    assert closed.is_set()


def test_work_ahead_is_bounded_and_in_order():
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(10_000):
            taken += 1
            yield item

    later = threading.Event()

    def wait_for_the_sixth(item: int) -> int:
        if item == 5:
            later.set()
        assert item or later.wait(10)
        return item

    results = map_in_order(wait_for_the_sixth, items(), max_workers=4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert taken < 100
    results.close()
    assert not [thread for thread in threading.enumerate() if "jaxdnn-data" in thread.name]


def test_an_image_that_cannot_be_read_is_named():
    def refuse(item: int) -> bytes:
        raise UnreadableImage("damaged")

    source = Source("x", ("a",), ["0"], np.zeros(1, np.int32), np.array([""]), refuse)
    with pytest.raises(InputError, match=r"0 in x cannot be read any more \(damaged\)"):
        next(Reader(source, 2, 1).batches([np.arange(1)]))


def test_a_row_that_turns_out_to_be_damaged_is_read_from_where_many_are(tmp_path):
    pixels = np.arange(8, dtype=np.uint8).reshape(2, 2, 2, 1)
    source = Source(
        "x",
        ("a",),
        ["0", "1"],
        np.zeros(2, np.int32),
        np.array(["", ""]),
        pixels.__getitem__,
        read_many=lambda items: [pixels[item] for item in items],
    )
    cache = RowCache(tmp_path / "pixels", num_images=2, row_bytes=4, max_bytes=8)
    cache.write(0, pixels[1])
    cache.flush()
    (tmp_path / "pixels.u8").write_bytes(bytes(4))
    (found,) = Reader(source, 2, 1, cache).batches([np.arange(2)])
    chex.assert_trees_all_equal(found, pixels)
