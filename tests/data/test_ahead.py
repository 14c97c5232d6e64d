"""One item ahead: the same items in order, made before they are asked for, nothing left running."""

import threading

import pytest

from jaxdnn.data.ahead import prefetch


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
