"""The compiled grid: the same numbers as single runs, chunks, verdicts, table."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn import gradient_flow
from jaxdnn.activations import make_activation
from jaxdnn.errors import InputError, Interrupted
from jaxdnn.initializers import make_initializer
from jaxdnn.propagation import Architecture, Combination, Grid, make_sweep, run_grid
from jaxdnn.propagation.sweep import pair_chunks
from jaxdnn.propagation.table import STATISTICS, read_csv, summarise, write_csv
from tests.propagation.cases import slow_but

INITIALIZERS = [make_initializer(name) for name in ("lecun", "he", "orthogonal")]
ACTIVATIONS = [make_activation(name) for name in ("tanh", "relu")]
ARCHITECTURE = Architecture(depth=4, width=8, num_outputs=3)
SEEDS = range(3, 6)


def grid(**changes):
    return Grid(INITIALIZERS, ACTIVATIONS, [ARCHITECTURE], SEEDS, batch_size=6, **changes)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    done = []
    folder = tmp_path_factory.mktemp("cells")
    table, [program] = run_grid(grid(), folder, on_done=done.append, interrupted=lambda: False)
    assert program.bytes > 0
    assert sum(done) == grid().num_networks == 18
    return table


@pytest.mark.parametrize("row", slow_but(range(3), 0))
def test_grid_gives_the_numbers_of_single_runs(table, row):
    initializer, seed, activation = INITIALIZERS[row], SEEDS[row], ACTIVATIONS[row % 2]
    layers = table[Combination(initializer.name, activation.name, "none", 4, 8)]
    options = {"initializer": initializer, "activation": activation, "depth": 4, "width": 8}
    single = jax.jit(lambda key: gradient_flow(key, **options, batch_size=6, num_outputs=3))
    alone = single(jax.random.key(seed))._asdict()
    chex.assert_trees_all_close(
        {name: layers[name][row] for name in STATISTICS},
        {name: alone[name] for name in STATISTICS},
        rtol=1e-5,
        atol=1e-7,
    )


def test_side_by_side_gives_the_same_numbers(table):
    pairs = [(index, seed) for index in range(len(INITIALIZERS)) for seed in SEEDS]
    num = jax.device_count() * -(-len(pairs) // jax.device_count())
    indices, seeds = np.array((pairs * num)[:num], np.int32).T
    sweep = make_sweep(INITIALIZERS, ACTIVATIONS, ARCHITECTURE, batch_size=6, side_by_side=True)
    together = sweep(jnp.asarray(indices), jnp.asarray(seeds))._asdict()
    for pair, (index, seed) in enumerate(pairs):
        for a, activation in enumerate(ACTIVATIONS):
            key = Combination(INITIALIZERS[index].name, activation.name, "none", 4, 8)
            row = SEEDS.index(seed)
            chex.assert_trees_all_close(
                {name: together[name][pair, a] for name in STATISTICS},
                {name: table[key][name][row] for name in STATISTICS},
                rtol=1e-4,
                atol=1e-6,
            )


@pytest.mark.slow  # The command's test is the short version.
def test_interrupted_grid_goes_on_without_what_is_finished(table, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxdnn.propagation.sweep.OPERATIONS_PER_CALL", 0)
    asked = []

    def stop_at_second():
        asked.append(True)
        return len(asked) == 2

    with pytest.raises(Interrupted):
        run_grid(grid(), tmp_path, on_done=ignore, interrupted=stop_at_second)
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(kept) == 1
    again, _ = run_grid(grid(), tmp_path, on_done=ignore, interrupted=lambda: False)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in kept} == kept
    chex.assert_trees_all_equal(again, table)


def ignore(_):
    """Take what is reported, and do nothing."""


def test_chunks_hold_every_pair_once_and_fill_up_the_last():
    chunks = pair_chunks(2, range(5, 8), 4)
    pairs = [tuple(pair) for chunk in chunks for pair in chunk.T.tolist()]
    assert pairs[:6] == [(i, s) for i in (0, 1) for s in (5, 6, 7)]
    assert pairs[6:] == [(1, 7)] * 2


def test_table_survives_the_file(table, tmp_path):
    write_csv(table, SEEDS, tmp_path / "grad_flow.csv")
    header = (tmp_path / "grad_flow.csv").read_text().splitlines()[0]
    assert header == (
        "initializer,activation,norm,depth,width,seed,layer,pre_activation_mean,"
        "pre_activation_rms,delta_rms,kernel_grad_rms,dead_fraction,saturated_fraction,correlation"
    )
    again = read_csv(tmp_path / "grad_flow.csv")
    chex.assert_trees_all_equal(again, table)


def test_verdict_of_made_up_gradients():
    layers, alive = np.arange(11), np.zeros((2, 12))

    def words(factor, **changes):
        deltas = np.stack([factor ** (10.0 - layers)] * 2)
        return summarise(np.c_[deltas, [1.0, 1.0]], changes.get("dead", alive))

    for factor, verdict in ((0.5, "vanishes"), (0.9, "healthy"), (1.1, "healthy"), (2, "explodes")):
        flow = words(factor)
        assert flow.factor_low == pytest.approx(factor)
        assert flow.factor_median == pytest.approx(factor)
        assert flow.factor_high == pytest.approx(factor)
        assert flow.log10_total == pytest.approx(10 * np.log10(factor))
        assert flow.verdict == verdict
    dead = alive.copy()
    dead[:, 4] = 1
    assert words(1.0, dead=dead).verdict == "dead"
    assert summarise(np.zeros((2, 12)), alive).verdict == "dead"


def test_gradients_that_leave_float32_vanish_or_explode():
    alive = np.zeros((1, 4))
    assert summarise(np.array([[0.0, 1e-30, 1e-3, 1.0]]), alive).verdict == "vanishes"
    assert summarise(np.array([[np.inf, 1e30, 1e-3, 1.0]]), alive).verdict == "explodes"
    # A signal that overflows on its way forward leaves nothing to be said of the way back.
    lost = summarise(np.full((1, 4), np.nan), alive)
    assert lost.verdict == "explodes"
    assert np.isnan(lost.log10_total)


def test_architecture_refuses_what_cannot_be():
    for (depth, width), message in (((1, 4), "--depth is 1"), ((3, 0), "--width is 0")):
        with pytest.raises(InputError, match=message):
            Architecture(depth, width)
    with pytest.raises(InputError, match="cross_entropy"):
        Architecture(3, 4, loss="hinge")
