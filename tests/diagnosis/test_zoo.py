"""Architectures in the manner of public ones: taken as they come, named as what they are."""

import math

import jax
import pytest

from jaxdnn import diagnose
from jaxdnn.diagnosis import examine
from jaxdnn.diagnosis.profile import parameter_rows

from ..experiments.conftest import load_program

zoo = load_program("benchmarks/zoo_networks").ZOO
# Of every library one or two, and of every kind that has been taken for another.
FEW = ("vit", "gru", "s4", "graph_network", "rezero", "mlp_stax")


def examined(name):
    call = zoo[name].make()
    return examine(*call.arguments, **call.options)


@pytest.fixture(scope="module")
def exams():
    return {name: examined(name) for name in FEW}


def check_rows(exam):
    rows = parameter_rows(exam)
    assert [row.path for row in rows] == exam.names
    layers = {layer.path for layer in exam.graph.layers}
    assert all((row.layer in layers) == (row.role in ("kernel", "bias")) for row in rows)
    assert not [row.path for row in rows if row.role == "unused"]
    assert exam.measured.finite


@pytest.mark.parametrize(
    "name", [pytest.param("vit", marks=pytest.mark.slow), *(name for name in FEW if name != "vit")]
)
def test_every_parameter_has_a_row(name, exams):
    check_rows(exams[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(zoo) - set(FEW)))
def test_every_parameter_of_every_network_has_a_row(name):
    check_rows(examined(name))


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("vit", {"cls": "token", "pos_embedding": "table", "encoder_norm/scale": "gain"}),
        ("s4", {"layers/0/d": "gain", "layers/0/log_a": "gain (exp, neg, mul)"}),
        ("rezero", {"blocks/0/alpha": "gain", "blocks/0/up/bias": "bias"}),
        ("gru", {"cell/weight_hh": "kernel", "cell/bias_n": "shift"}),
    ],
)
def test_what_is_trained_besides_kernels_is_named_as_what_it_is(name, roles, exams):
    found = {row.path: row.role for row in parameter_rows(exams[name])}
    assert roles.items() <= found.items()


def ways(exam):
    return {(each.kind, each.label) for edge in exam.graph.edges for each in edge.segments}


def test_what_lies_between_is_named_as_what_it_is_or_by_its_primitive(exams):
    assert "attention" in {kind for kind, _ in ways(exams["vit"])}
    for name in set(FEW) - {"vit"}:
        assert "attention" not in {kind for kind, _ in ways(exams[name])}
    sums = {label for kind, label in ways(exams["graph_network"]) if kind == "other"}
    assert any(label.startswith("scatter") for label in sums)


def test_weights_that_begin_at_zero_are_read_once_they_let_a_gradient_through():
    call = zoo["rezero"].make()
    found = diagnose(*call.arguments, optimizer=zoo["rezero"].optimizer)
    assert found.verdict == "trains"
    assert not found.causes
    assert all(math.isfinite(layer.factor) and layer.delta_rms > 0 for layer in found.layers)
    assert any("after 10 steps" in note for note in found.notes)
    assert "alpha" in found.details()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(zoo))
def test_a_healthy_network_is_said_to_train_and_nothing_is_found(name):
    call, optimizer = zoo[name].make(), zoo[name].optimizer
    found = diagnose(*call.arguments, optimizer=optimizer, **call.options)
    assert found.verdict == "trains"
    assert [cause.cause for cause in found.causes] == []
    jax.clear_caches()
