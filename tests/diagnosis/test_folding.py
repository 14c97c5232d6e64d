"""Folded tables: every layer in one row, unlike ones in rows of their own."""

import itertools

import pytest

from jaxdnn.diagnosis.folding import folded


def layer(path, factor=1.0, *, z=1.0, dead=0.0, kind="dense"):
    return {"path": path, "factor": factor, "pre_activation_rms": z, "dead": dead, "kind": kind}


def cell(place, names, delta=1.0):
    parts = [{"name": name, "delta_rms": delta} for name in names]
    return layer(f"rnns/{place}/cell") | {"parts": parts}


def blocks(count):
    return [
        layer(f"blocks/{block}/{name}")
        for block, name in itertools.product(range(count), ("up", "down"))
    ]


def names(layers, named=()):
    return [row.name for row in folded(layers, named)]


def test_blocks_that_are_alike_are_one_row_for_each_of_their_layers():
    whole = [layer("first"), *blocks(12), layer("head")]
    assert names(whole) == ["first", "blocks/0..11/up", "blocks/0..11/down", "head"]


@pytest.mark.parametrize("unlike", [{"factor": 2.5}, {"factor": 0.3}, {"z": 3.0}, {"dead": 0.5}])
def test_a_layer_that_differs_has_a_row_of_its_own(unlike):
    whole = blocks(6)
    whole[4] = layer("blocks/2/up", **unlike)
    assert "blocks/2/up" in names(whole)
    assert "blocks/0..1,3..5/up" in names(whole)


def test_a_layer_with_a_finding_has_a_row_of_its_own():
    assert "blocks/0/down" in names(blocks(5), {"blocks/0/down"})
    assert "blocks/1..4/down" in names(blocks(5), {"blocks/0/down"})


@pytest.mark.parametrize(
    "whole",
    [
        blocks(12),
        [layer(f"layers/{index}") for index in range(0, 10, 2)],
        [layer(f"stages/{a}/blocks/{b}") for a, b in itertools.product(range(2), range(5))],
        [layer(f"Dense_{index}") for index in range(3)] + [layer("Dense_0#2")],
        [layer("only")],
        [layer(f"blocks/{index}", factor=None) for index in range(5)],
        [layer(f"blocks/{index}", 10.0**index) for index in range(5)],
    ],
)
def test_every_layer_is_in_one_row(whole):
    found = [each["path"] for row in folded(whole) for each in row.layers]
    assert sorted(found) == sorted(each["path"] for each in whole)


def test_numbers_with_a_step_are_a_range():
    assert names([layer(f"layers/{index}") for index in range(0, 10, 2)]) == ["layers/0..8"]


def test_few_are_not_folded():
    assert names(blocks(2)) == [each["path"] for each in blocks(2)]


def test_cells_fold_with_their_gates_and_only_with_those_of_the_same_names():
    gates = ("input gate", "forget gate")
    whole = [cell(place, gates, place) for place in range(3)]
    (row,) = folded(whole)
    assert row.name == row.title == "rnns/0..2/cell"
    assert row.parts() == [
        (name, [{"name": name, "delta_rms": place} for place in range(3)]) for name in gates
    ]
    assert len(folded([*whole[:2], cell(2, gates[::-1])])) == 3
    (single,) = folded([cell(place, gates[:1]) for place in range(3)])
    assert single.title == "rnns/0..2/cell (input gate)"
    assert single.parts() == []
