"""Every activation of the sweep against theory, and what the comparison flags."""

import chex
import jax
import numpy as np
import pytest

from jaxdnn.activations import make_activation
from jaxdnn.initializers import make_initializer
from jaxdnn.propagation import Architecture, Batch, Grid, run_grid, sweep_theory
from jaxdnn.propagation.sweep_theory import compare, expect

ACTIVATIONS = ("sigmoid", "tanh", "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "softplus")
NORMS = ("none", "batch", "layer")
OUTSIDE = {("gelu", "batch"), ("silu", "batch"), ("softplus", "batch")}


# Activations, initializers, norms, units; and how little is flagged.
WIDE = [
    (("relu", "gelu"), ("lecun_normal",), NORMS[:2], 384),
    pytest.param((ACTIVATIONS, ("lecun_normal", "he_normal"), NORMS, 1024), marks=pytest.mark.slow),
]
FLAGGED = {384: 0.05, 1024: 0.03}


@pytest.fixture(scope="module", params=WIDE, ids=["narrow", "wide"])
def wide(request):
    """Eight seeds of five hidden layers, on 64 Gaussian inputs."""
    activations, initializers, norms, width = request.param
    return Grid(
        [make_initializer(name) for name in initializers],
        [make_activation(name) for name in activations],
        [Architecture(depth=6, width=width, norm=norm) for norm in norms],
        range(8),
        batch_size=64,
    )


@pytest.fixture(scope="module")
def expected(wide):
    return expect(wide)


@pytest.fixture(scope="module")
def table(wide, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    return run_grid(wide, folder, on_done=lambda num: None, interrupted=lambda: False)[0]


def comparison(expected, table, key, factor=1.0):
    """Compare after multiplying the measured factor per layer."""
    delta = table[key]["delta_rms"]
    changed = delta * factor ** np.arange(delta.shape[1])[::-1]
    phi = make_activation(key.activation)
    signal = table[key]["pre_activation_rms"]
    settings = {"norm": key.norm, "width": key.width, "batch_size": 64}
    return compare(expected[key], changed, signal, activation=phi, **settings)


def test_wide_networks_of_every_kind_are_as_theory_says(wide, expected, table):
    assert len(table) == len(wide.initializers) * len(wide.activations) * len(wide.architectures)
    for key in table:
        found = comparison(expected, table, key)
        outside = (key.activation, key.norm) in OUTSIDE
        assert found.agrees is (None if outside else True), (key, found)
        assert found.note.startswith("outside theory") == outside


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_few_percent_off_are_flagged(expected, table, sign):
    """Where no norm adds 2/64: seven degrees of freedom make 7.9 standard errors of the mean."""
    for key in table:
        if key.norm == "none" and key.activation not in ("gelu", "silu"):
            found = comparison(expected, table, key, 1 + sign * FLAGGED[key.width])
            assert found.agrees is False, (key, found)
            assert "of the expected one" in found.note


def test_forward_signal_is_as_expected(expected, table):
    """Eight seeds: q of a layer varies by √(5/width) at most, and the layers' deviations add up."""
    for key, layers in table.items():
        mean_square = (layers["pre_activation_rms"][:, :-1] ** 2).mean(0)
        tolerance = 4 * np.sqrt(5 * np.arange(1, 6) / key.width / 8)
        off = np.abs(mean_square / expected[key].pre_activation_rms ** 2 - 1)
        assert (off < tolerance).all(), (key, off)


def test_first_kernel_has_its_own_variance():
    """Xavier's variance depends on both fans: 2 sigma / (10 + 1024) for the first kernel."""
    batch = Batch(2.0 * jax.numpy.ones((64, 10)), jax.numpy.zeros(64, int))
    schemes, phis = [make_initializer("glorot_normal")], [make_activation("relu")]
    grid = Grid(schemes, phis, [Architecture(depth=3, width=1024)], range(8), batch)
    (found,) = expect(grid).values()
    first = 4.0 * 10 * 2 / (10 + 1024)
    chex.assert_trees_all_close(
        found.pre_activation_rms**2, np.array([first, first / 2]), rtol=1e-9
    )
    chex.assert_trees_all_close(found.factor, np.array([np.sqrt(0.5), np.nan]), rtol=1e-9)


def test_what_cannot_be_told_is_not_flagged(expected, table):
    key = next(iter(table))
    delta, signal = (table[key][name] for name in ("delta_rms", "pre_activation_rms"))
    phi = make_activation(key.activation)
    cases = (
        (0 * delta, signal, "no two"),
        (delta, 0 * signal, "no two"),
        (delta[:1], signal[:1], "one seed"),
    )
    for deltas, signals, reason in cases:
        settings = {"norm": key.norm, "width": key.width, "batch_size": 64}
        found = compare(expected[key], deltas, signals, activation=phi, **settings)
        assert found.agrees is None
        assert reason in found.note


def test_layers_that_the_part_along_the_signal_reaches_are_outside():
    """A share that doubles per layer from 1/1024 on passes 1 % in the fourth layer."""
    factor, along = np.full(10, 0.5), np.full(10, 0.5 * np.sqrt(2))
    factor[-1] = along[-1] = np.nan
    expected = sweep_theory.Expected(np.ones(10), factor, along)
    spread = np.exp(1e-3 * np.random.default_rng(0).standard_normal((5, 11)))
    deltas = 0.5 ** np.arange(10, -1, -1.0) * spread
    settings = {"norm": "none", "width": 1024, "batch_size": 64}
    phi = make_activation("relu")
    # What the lower layers do is not asked.
    for change in (1.0, 2.0):
        deltas[:, :6] *= change
        found = compare(expected, deltas, np.ones((5, 11)), activation=phi, **settings)
        assert found.agrees is True
        assert found.note.startswith("outside theory up to layer 6")
    deltas[:, :8] *= 2
    assert compare(expected, deltas, np.ones((5, 11)), activation=phi, **settings).agrees is False


def test_table_is_read_as_written(expected, tmp_path):
    path = tmp_path / "theory.csv"
    sweep_theory.write_csv(expected, path)
    found = sweep_theory.read_csv(path)
    assert list(found) == list(expected)
    for key, each in found.items():
        chex.assert_trees_all_equal(each, expected[key])
