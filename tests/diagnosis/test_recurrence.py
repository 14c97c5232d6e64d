"""Recurrences: written once however long, equal to what they are written out, closed forms."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxdnn import diagnose
from jaxdnn.diagnosis.findings import NAMED
from jaxdnn.diagnosis.gates import find_gates
from jaxdnn.diagnosis.measure import examine
from jaxdnn.diagnosis.program import trace
from jaxdnn.diagnosis.replay import run
from jaxdnn.diagnosis.setups import Trials
from jaxdnn.diagnosis.time_causes import (
    exploding_through_time,
    longer_memory,
    orthogonal_recurrence,
    slow_state,
    vanishing_through_time,
)

BATCH, LENGTH, FEATURES, UNITS = 8, 6, 3, 5
KEY = jax.random.key(0)
SEQUENCES = jax.random.normal(KEY, (BATCH, LENGTH, FEATURES))


def simple_params(units=UNITS):
    x, h, out = jax.random.split(KEY, 3)
    return {
        "x": jax.random.normal(x, (FEATURES, units)) / math.sqrt(FEATURES),
        "h": jax.random.normal(h, (units, units)) / math.sqrt(units),
        "out": jax.random.normal(out, (units, 2)),
    }


def cell(params, h, x):
    return jnp.tanh(x @ params["x"] + h @ params["h"])


def scanned(params, xs, *, reverse=False, every=False):
    """The last state, or all of them, of a recurrence by `lax.scan`."""

    def step(h, x):
        h = cell(params, h, x)
        return h, h

    start = jnp.zeros((len(xs), params["h"].shape[0]))
    last, states = jax.lax.scan(step, start, xs.swapaxes(0, 1), reverse=reverse)
    return (states.swapaxes(0, 1) if every else last) @ params["out"]


def written_out(params, xs):
    h = jnp.zeros((len(xs), params["h"].shape[0]))
    for step in range(xs.shape[1]):
        h = cell(params, h, xs[:, step])
    return h @ params["out"]


def counted(params, xs):
    """Carries an index, sees it, and a state that stays as it was."""

    def step(carry, x):
        h, fixed, index = carry
        h = cell(params, h, x * (1 + index)) + fixed
        return (h, fixed, index + 1), None

    start = jnp.zeros((len(xs), UNITS)), jnp.full((len(xs), UNITS), 0.1), 0
    return jax.lax.scan(step, start, xs.swapaxes(0, 1))[0][0] @ params["out"]


def two_ways(params, xs):
    forth, back = scanned(params, xs, every=True), scanned(params, xs, reverse=True, every=True)
    return jnp.concatenate([forth, back], -1).mean(1)


NETWORKS = {
    "last": scanned,
    "reverse": lambda params, xs: scanned(params, xs, reverse=True),
    "every": lambda params, xs: scanned(params, xs, every=True),
    "counted": counted,
    "two ways": two_ways,
    "remat": lambda params, xs: jax.checkpoint(scanned)(params, xs),
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_loop_computes_what_the_network_does(name):
    network, params = NETWORKS[name], simple_params()
    program = trace(lambda p, x, key: network(p, x), params, SEQUENCES, None)
    assert program.loops

    def written(params):
        return run(program, (params, SEQUENCES, None), {})[program.output]

    chex.assert_trees_all_close(written(params), network(params, SEQUENCES), rtol=1e-5, atol=1e-6)
    ours, own = (
        jax.grad(lambda p, f=f: jnp.sum(jnp.sin(f(p))))(params)
        for f in (written, lambda p: network(p, SEQUENCES))
    )
    chex.assert_trees_all_close(ours, own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["last", "two ways"])
def test_a_program_is_as_long_for_ten_time_steps_as_for_a_thousand(name):
    network = NETWORKS[name]
    counts = {
        len(trace(lambda p, x, _: network(p, x), simple_params(), xs, None).steps)
        for xs in (jnp.ones((2, 10, FEATURES)), jnp.ones((2, 1000, FEATURES)))
    }
    assert len(counts) == 1


def test_a_loop_shows_what_its_steps_written_out_show():
    labels = jnp.arange(BATCH) % 2
    params = simple_params()
    loop, plain = (examine((f, params), SEQUENCES, labels) for f in (scanned, written_out))
    assert [layer.path for layer in loop.graph.layers] == ["x", "h", "out"]
    by_path = {}
    for index, layer in enumerate(plain.graph.layers):
        delta = plain.measured.delta[layer.z]
        by_path.setdefault(layer.path.partition("#")[0], []).append((delta, index))
    for index, layer in enumerate(loop.graph.layers):
        greatest, place = max(by_path[layer.path])
        np.testing.assert_allclose(loop.measured.delta[layer.z], greatest, rtol=1e-4)
        np.testing.assert_allclose(
            loop.measured.delta_by_example[index],
            plain.measured.delta_by_example[place],
            rtol=1e-4,
        )
        sizes = [plain.measured.signals[each].rms for _, each in by_path[layer.path]]
        np.testing.assert_allclose(
            # Written out, the first state is a zero and no layer.
            loop.measured.signals[index].rms,
            np.sqrt(np.sum(np.square(sizes)) / (1 if layer.path == "out" else LENGTH)),
            rtol=1e-4,
        )
    chex.assert_trees_all_close(loop.grads, plain.grads, rtol=1e-4, atol=1e-6)


def rotating(gain):
    """A linear recurrence whose weights are a gain times a rotation."""
    rotation = jax.nn.initializers.orthogonal()(KEY, (UNITS, UNITS))
    params = simple_params() | {"h": gain * rotation}

    def network(params, xs):
        def step(h, x):
            return x @ params["x"] + h @ params["h"], None

        start = jnp.zeros((len(xs), UNITS))
        return jax.lax.scan(step, start, xs.swapaxes(0, 1))[0] @ params["out"]

    return network, params


@pytest.mark.parametrize("gain", [0.9, 1.0, 1.5])
def test_a_gain_at_every_time_step_is_the_factor(gain):
    xs = jnp.ones((4, 20, FEATURES))
    (found,) = examine(rotating(gain), xs, jnp.arange(4) % 2).recurrences
    np.testing.assert_allclose(found.passed, gain ** np.arange(1, 21), rtol=1e-4)
    np.testing.assert_allclose(found.factor, gain, rtol=1e-4)
    steps = math.ceil(-1 / math.log(gain)) if gain < 1 else 21
    assert found.horizon == (steps if steps <= 20 else None)
    assert found.kept is None
    assert set(found.layers) == {"x", "h"}


def gated(bias, *, keeps_rest):
    """A state of which a sigmoid of a constant keeps its share, or the rest."""
    params = simple_params() | {"bias": jnp.full(UNITS, bias), "f": jnp.zeros((FEATURES, UNITS))}

    def network(params, xs):
        def step(h, x):
            gate = jax.nn.sigmoid(x @ params["f"] + params["bias"])
            new = jnp.tanh(x @ params["x"])
            h = (1 - gate) * h + gate * new if keeps_rest else gate * h + new
            return h, None

        start = jnp.zeros((len(xs), UNITS))
        return jax.lax.scan(step, start, xs.swapaxes(0, 1))[0] @ params["out"]

    return network, params


@pytest.mark.parametrize("keeps_rest", [False, True])
def test_what_a_gate_keeps_is_the_factor(keeps_rest):
    exam = examine(gated(1.0, keeps_rest=keeps_rest), SEQUENCES, jnp.arange(BATCH) % 2)
    (found,) = exam.recurrences
    share = 1 / (1 + math.e ** (1.0 if keeps_rest else -1.0))
    assert found.kept == pytest.approx(share, rel=1e-5)
    np.testing.assert_allclose(found.factor, share, rtol=1e-4)
    (gate,) = find_gates(exam.graph.program, 0)
    assert gate.rises is not keeps_rest
    assert gate.logits is not None


class Recurrent(nnx.Module):
    def __init__(self, cell, units):
        rngs = nnx.Rngs(0)
        self.below = nnx.RNN(cell(4, units, rngs=rngs))
        self.above = nnx.RNN(cell(units, units, rngs=rngs))
        self.head = nnx.Linear(units, 3, rngs=rngs)

    def __call__(self, xs):
        return self.head(self.above(self.below(xs))[:, -1])


CELLS = {
    "lstm": nnx.LSTMCell,
    "fused lstm": nnx.OptimizedLSTMCell,
    "gru": nnx.GRUCell,
    "simple": nnx.SimpleCell,
}


@pytest.mark.parametrize(
    "name",
    ["gru", *(pytest.param(name, marks=pytest.mark.slow) for name in CELLS if name != "gru")],
)
def test_stock_cells_have_a_row_for_each_kernel_and_no_finding(name):
    xs = jax.random.normal(KEY, (32, 12, 4))
    found = diagnose(
        Recurrent(CELLS[name], 16), xs, xs[:, -3:].sum(1)[:, :3].argmax(-1), optimizer="adam:0.01"
    )
    assert found.verdict == "trains"
    assert not found.causes
    assert len(found.recurrences) == 2
    kernels = jax.tree.leaves_with_path(nnx.state(Recurrent(CELLS[name], 16), nnx.Param))
    assert len(found.layers) == sum(leaf.ndim == 2 for _, leaf in kernels)


class Remembering(nnx.Module):
    def __init__(self, cell):
        rngs = nnx.Rngs(0)
        self.rnn = nnx.RNN(cell(4, 32, rngs=rngs))
        self.head = nnx.Linear(32, 4, rngs=rngs)

    def __call__(self, xs):
        return self.head(self.rnn(xs)[:, -1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_what_is_told_first_and_asked_last_needs_a_longer_memory(name):
    xs = jax.random.normal(KEY, (64, 60, 4))
    labels = xs[:, 0].argmax(-1)
    # Nothing but the first step tells anything.
    found = diagnose(Remembering(CELLS[name]), xs.at[:, 1:].set(0), labels, optimizer="adam:0.01")
    assert found.verdict != "trains"
    assert found.causes[0].cause == "gradient vanishes through time"
    assert found.prescriptions[0].name == "open_gates"


@pytest.mark.parametrize(
    ("name", "answer"),
    [pytest.param("gru", longer_memory, marks=pytest.mark.slow), ("simple", slow_state)],
)
def test_what_answers_forgetting_makes_the_memory_as_long_as_the_sequence(name, answer):
    xs = jax.random.normal(KEY, (4, 60, 4))
    labels = xs[:, 0].argmax(-1)
    exam = examine(Remembering(CELLS[name]), xs, labels)
    (finding,) = vanishing_through_time(exam)
    assert finding.strength > NAMED
    (fix,) = answer(exam, finding.layer)
    changed = Trials(exam, optax.sgd(0.1)).setup(fix)
    (better,) = examine((changed.forward, exam.params), xs, labels).recurrences
    assert exam.recurrences[0].passed[-1] < 1e-6
    assert better.passed[-1] > 0.05


def test_weights_that_grow_the_gradient_through_time_are_named():
    network, params = rotating(1.4)
    xs = jax.random.normal(KEY, (16, 30, FEATURES))
    exam = examine((network, params), xs, xs[:, 0].argmax(-1) % 2)
    (finding,) = exploding_through_time(exam)
    assert finding.layer == exam.graph.index_of("h")
    (fix,) = orthogonal_recurrence(exam, finding.layer)
    np.testing.assert_allclose(fix.params["h"] @ fix.params["h"].T, np.eye(UNITS), atol=1e-5)
    chex.assert_trees_all_equal(fix.params["x"], params["x"])
