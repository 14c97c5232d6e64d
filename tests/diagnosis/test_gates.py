"""Gates: the right name for each unit in any library and order, and numbers equal to NumPy's."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxdnn import diagnose
from jaxdnn.diagnosis.gates import find_gates, find_parts
from jaxdnn.diagnosis.layer_causes import heavy_bias
from jaxdnn.diagnosis.measure import examine

BATCH, LENGTH, FEATURES, UNITS = 8, 6, 3, 5
KEY = jax.random.key(0)
SEQUENCES = jax.random.normal(KEY, (BATCH, LENGTH, FEATURES))
LABELS = jnp.arange(BATCH) % 2
LSTM = ("input gate", "forget gate", "candidate", "output gate")
GRU = ("reset gate", "update gate", "candidate")
sigmoid = jax.nn.sigmoid


def weights(parts, bias=0.0):
    x, h, out = jax.random.split(KEY, 3)
    return {
        "x": jax.random.normal(x, (FEATURES, parts * UNITS)),
        "h": jax.random.normal(h, (UNITS, parts * UNITS)) / math.sqrt(UNITS),
        "b": jnp.full(parts * UNITS, bias),
        "out": jax.random.normal(out, (UNITS, 2)),
    }


def split(z, parts):
    return jnp.split(z, parts, -1)


def sliced(z, parts):
    return [z[:, n * UNITS : (n + 1) * UNITS] for n in range(parts)]


def stacked(z, parts):
    z = z.reshape(len(z), parts, UNITS)
    return [z[:, n] for n in range(parts)]


def interleaved(z, parts):
    z = z.reshape(len(z), UNITS, parts)
    return [z[..., n] for n in range(parts)]


def lstm(order=LSTM, cut=split):
    """An LSTM whose kernel makes the gates in this order."""

    def network(params, xs):
        def step(carry, x):
            h, c = carry
            pieces = cut(x @ params["x"] + (h @ params["h"] + params["b"]), 4)
            z = dict(zip(order, pieces, strict=True))
            c = sigmoid(z["forget gate"]) * c
            c = c + sigmoid(z["input gate"]) * jnp.tanh(z["candidate"])
            return (sigmoid(z["output gate"]) * jnp.tanh(c), c), None

        start = jnp.zeros((len(xs), UNITS), xs.dtype)
        return jax.lax.scan(step, (start, start), xs.swapaxes(0, 1))[0][0] @ params["out"]

    return network


def names_of(exam):
    """Path -> names of the parts."""
    paths = {index: layer.path for index, layer in enumerate(exam.graph.layers)}
    return {
        paths[index]: tuple(part.name for part in parts)
        for index, parts in exam.measured.parts.items()
    }


def parts_of(exam, path):
    return exam.measured.parts[[layer.path for layer in exam.graph.layers].index(path)]


def named(network, params, xs=SEQUENCES):
    return names_of(examine((network, params), xs, LABELS))


ORDERS = list(itertools.permutations(LSTM))


@pytest.mark.parametrize(
    "order", [ORDERS[0], ORDERS[9], *(pytest.param(o, marks=pytest.mark.slow) for o in ORDERS[1:9])]
)
def test_gates_are_named_by_what_they_do_in_whatever_order(order):
    assert named(lstm(order), weights(4)) == {"x": order, "h": order}


@pytest.mark.parametrize("cut", [sliced, stacked, interleaved])
def test_however_a_kernel_is_cut_the_names_are_the_same(cut):
    # Interleaved units stand in the order of each part's first.
    assert named(lstm(cut=cut), weights(4)) == {"x": LSTM, "h": LSTM}


def in_numpy(params):
    """All gates and pre-activations of the LSTM, (time, batch, unit) by name."""
    params = {name: np.asarray(value, np.float64) for name, value in params.items()}
    xs = np.asarray(SEQUENCES, np.float64)
    h = c = np.zeros((BATCH, UNITS))
    seen = {name: [] for name in ("x", "h", *LSTM)}
    for t in range(LENGTH):
        of_x, of_h = xs[:, t] @ params["x"], h @ params["h"] + params["b"]
        z = np.split(of_x + of_h, 4, -1)
        i, f, o = (1 / (1 + np.exp(-z[place])) for place in (0, 1, 3))
        c = f * c + i * np.tanh(z[2])
        h = o * np.tanh(c)
        for name, value in zip(seen, (of_x, of_h, i, f, np.tanh(z[2]), o), strict=True):
            seen[name].append(value)
    return {name: np.array(values) for name, values in seen.items()}


def test_means_and_sizes_are_those_computed_by_hand():
    params = weights(4, bias=0.3)
    exam = examine((lstm(), params), SEQUENCES, LABELS)
    by_hand = in_numpy(params)
    slopes = {name: by_hand[name] * (1 - by_hand[name]) / 0.25 for name in LSTM}
    slopes["candidate"] = 1 - by_hand["candidate"] ** 2
    for index, layer in enumerate(exam.graph.layers[:2]):
        for place, part in enumerate(exam.measured.parts[index]):
            z = by_hand[layer.path][..., place * UNITS : (place + 1) * UNITS]
            np.testing.assert_allclose(part.pre_activation_mean, z.mean(), rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(part.pre_activation_rms, np.sqrt((z**2).mean()), rtol=1e-5)
            assert part.saturated == np.mean(slopes[part.name] < 0.01)
            if part.name == "candidate":
                assert part.gate is None
            else:
                assert part.gate == pytest.approx(by_hand[part.name].mean(), rel=1e-5)
    assert exam.recurrences[0].kept == pytest.approx(by_hand["forget gate"].mean(), rel=1e-5)


def test_squares_of_the_parts_gradients_add_up_to_the_layers():
    exam = examine((lstm(), weights(4)), SEQUENCES, LABELS)
    for index, parts in exam.measured.parts.items():
        whole = exam.measured.delta[exam.graph.layers[index].z]
        squares = sum(part.units * part.delta_rms**2 for part in parts)
        np.testing.assert_allclose(squares, 4 * UNITS * whole**2, rtol=1e-6)


def test_the_gradient_of_a_gate_is_that_of_a_kernel_of_its_own():
    """One kernel cut into four, and the four by themselves: two routes to each gate's delta."""
    params = weights(4)

    def in_four(own, xs):
        def step(carry, x):
            h, c = carry
            i, f, g, o = (x @ own[f"x{n}"] + h @ own[f"h{n}"] for n in range(4))
            c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
            return (sigmoid(o) * jnp.tanh(c), c), None

        start = jnp.zeros((len(xs), UNITS), xs.dtype)
        return jax.lax.scan(step, (start, start), xs.swapaxes(0, 1))[0][0] @ own["out"]

    cut = {name: split(params[name], 4) for name in "xh"}
    own = {f"{name}{n}": part for name, parts in cut.items() for n, part in enumerate(parts)}
    own["out"] = params["out"]
    fused = examine((lstm(), params), SEQUENCES, LABELS)
    four = examine((in_four, own), SEQUENCES, LABELS)
    assert names_of(four) == {f"{x}{n}": (name,) for n, name in enumerate(LSTM) for x in "xh"}
    for place, part in enumerate(parts_of(fused, "h")):
        (single,) = parts_of(four, f"h{place}")
        for name in ("pre_activation_rms", "saturated", "gate"):
            left, right = getattr(part, name), getattr(single, name)
            assert left == right or left == pytest.approx(right, rel=1e-4)
        # The strongest time step of one gate need not be that of all four.
        assert part.delta_rms <= single.delta_rms * (1 + 1e-4)


def test_gates_that_are_shut_are_saturated_and_no_unit_of_a_healthy_cell_is_dead():
    shut, well = (
        diagnose((lstm(), weights(4, bias)), SEQUENCES, LABELS, try_changes=False).layers[0]
        for bias in (-30.0, 0.0)
    )
    assert [part.saturated for part in shut.parts] == [1.0] * 4
    assert shut.saturated == 1.0
    assert max(part.gate for part in shut.parts if part.gate is not None) < 1e-6
    assert well.dead == 0
    assert well.saturated == pytest.approx(np.mean([part.saturated for part in well.parts]))


def test_the_bias_of_a_gate_is_a_fault_only_where_it_shuts_the_gate():
    def biases(gate, value):
        params = weights(4)
        place = slice(LSTM.index(gate) * UNITS, (LSTM.index(gate) + 1) * UNITS)
        params["b"] = params["b"].at[place].set(value)
        exam = examine((lstm(), params), SEQUENCES, LABELS)
        return [each for dead in (True, False) for each in heavy_bias(exam, dead=dead)]

    assert biases("forget gate", 3.0) == biases("forget gate", 30.0) == []
    assert biases("output gate", 3.0) == []
    assert len(biases("output gate", -30.0)) == 1


def scanned_gru(combine):
    """A GRU, `combine(update gate, state, candidate)` in any form."""

    def network(params, xs):
        def step(h, x):
            of_x, of_h = split(x @ params["x"], 3), split(h @ params["h"], 3)
            r, u = (sigmoid(of_x[place] + of_h[place]) for place in range(2))
            return combine(u, h, jnp.tanh(of_x[2] + r * of_h[2])), None

        start = jnp.zeros((len(xs), UNITS), xs.dtype)
        return jax.lax.scan(step, start, xs.swapaxes(0, 1))[0] @ params["out"]

    params = weights(3)
    del params["b"]
    return network, params


FORMS = {
    "keeps": (lambda u, h, n: u * h + (1 - u) * n, True),
    "keeps the rest": (lambda u, h, n: (1 - u) * h + u * n, False),
    "from the candidate": (lambda u, h, n: n + u * (h - n), True),
    "from the state": (lambda u, h, n: h + u * (n - h), False),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_gru_has_the_same_names_and_keeps_the_same_share(form):
    combine, keeps = FORMS[form]
    exam = examine(scanned_gru(combine), SEQUENCES, LABELS)
    assert names_of(exam) == {"x": GRU, "h": GRU}
    kept = exam.recurrences[0].kept
    assert kept is not None
    assert exam.measured.parts[0][1].gate == pytest.approx(kept if keeps else 1 - kept, rel=1e-5)
    (gate,) = find_gates(exam.graph.program, 0)
    assert gate.rises is keeps
    assert gate.logits is not None


def padded(params, xs):
    """A state that stays where a sequence has ended, and begins anew where another does."""
    # Of which one depends on the inputs.
    ends, resets = jnp.arange(len(xs)) + 1 + (xs[:, 0, 0] > 9), jnp.arange(len(xs)) % 3

    def step(carry, x):
        t, h, c = carry
        old_h, old_c = h, c
        h, c = (jnp.where((resets == t)[:, None], 0.0, each) for each in (h, c))
        i, f, g, o = split(x @ params["x"] + h @ params["h"] + params["b"], 4)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        h = sigmoid(o) * jnp.tanh(c)
        goes_on = (t < ends)[:, None]
        return (t + 1, jnp.where(goes_on, h, old_h), jnp.where(goes_on, c, old_c)), None

    start = jnp.zeros((len(xs), UNITS), xs.dtype)
    return jax.lax.scan(step, (0, start, start), xs.swapaxes(0, 1))[0][1] @ params["out"]


def projected_before(params, xs):
    """What the inputs give is computed for all time steps at once."""

    def step(carry, of_x):
        h, c = carry
        i, f, g, o = split(of_x + h @ params["h"], 4)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        return (sigmoid(o) * jnp.tanh(c), c), None

    start = jnp.zeros((len(xs), UNITS), xs.dtype)
    of_xs = xs.swapaxes(0, 1) @ params["x"] + params["b"]
    return jax.lax.scan(step, (start, start), of_xs)[0][0] @ params["out"]


def normed(params, xs):
    """Pre-activations and the new state are normalised."""

    def norm(z):
        z = z - z.mean(-1, keepdims=True)
        return z * jax.lax.rsqrt(jnp.square(z).mean(-1, keepdims=True) + 1e-6)

    def step(carry, x):
        h, c = carry
        i, f, g, o = split(norm(x @ params["x"]) + norm(h @ params["h"]) + params["b"], 4)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        return (sigmoid(o) * jnp.tanh(norm(c)), c), None

    start = jnp.zeros((len(xs), UNITS), xs.dtype)
    return jax.lax.scan(step, (start, start), xs.swapaxes(0, 1))[0][0] @ params["out"]


@pytest.mark.parametrize("network", [padded, projected_before, normed])
def test_padding_early_projection_and_norms_hide_no_gate(network):
    exam = examine((network, weights(4)), SEQUENCES, LABELS)
    assert names_of(exam) == {"x": LSTM, "h": LSTM}
    for index, parts in exam.measured.parts.items():
        whole = exam.measured.delta[exam.graph.layers[index].z]
        assert sum(p.delta_rms**2 for p in parts) == pytest.approx(4 * whole**2, rel=1e-5)


def without_gate(params, xs):
    def step(h, x):
        first, second = split(x @ params["x"] + h @ params["h"], 2)
        return jnp.tanh(first) * jnp.cos(second), None

    start = jnp.zeros((len(xs), UNITS), xs.dtype)
    return jax.lax.scan(step, start, xs.swapaxes(0, 1))[0] @ params["out"]


def leaky(params, xs):
    def step(h, x):
        return 0.9 * h + 0.1 * jnp.tanh(x @ params["x"] + h @ params["h"]), None

    start = jnp.zeros((len(xs), UNITS), xs.dtype)
    return jax.lax.scan(step, start, xs.swapaxes(0, 1))[0] @ params["out"]


def test_what_cannot_be_told_is_numbered_and_what_has_no_gate_has_no_part():
    parts = ("part 1 of 2", "part 2 of 2")
    params = weights(2)
    del params["b"]
    assert named(without_gate, params) == {"x": parts, "h": parts}
    params = weights(1)
    del params["b"]
    assert named(leaky, params) == {}


def gated_mlp(params, xs):
    value, gate = split((xs.mean(1) @ params["x"]) + params["b"], 2)
    return (value * sigmoid(gate)) @ params["out"]


def attention(params, xs):
    query, key, value = split(xs @ params["x"] + params["b"], 3)
    scores = jax.nn.softmax(query @ key.swapaxes(1, 2), -1)
    return (scores @ value).mean(1) @ params["out"]


@pytest.mark.parametrize(("network", "parts"), [(gated_mlp, 2), (attention, 3)])
def test_outside_of_a_loop_there_are_no_gates(network, parts):
    assert named(network, weights(parts)) == {}


def test_a_split_outside_does_not_cut_what_a_loop_beside_it_takes():
    params = weights(4) | {"first": jax.random.normal(KEY, (FEATURES, 2 * FEATURES))}

    def network(params, xs):
        value, gate = split(xs @ params["first"], 2)
        return lstm()(params, value * sigmoid(gate))

    assert named(network, params) == {"x": LSTM, "h": LSTM}


class InFlax(nnx.Module):
    def __init__(self, cell):
        rngs = nnx.Rngs(0)
        self.rnn = nnx.RNN(cell(FEATURES, UNITS, rngs=rngs))
        self.head = nnx.Linear(UNITS, 2, rngs=rngs)

    def __call__(self, xs):
        return self.head(self.rnn(xs)[:, -1])


class InLinen(linen.Module):
    cell: type

    @linen.compact
    def __call__(self, xs):
        outputs = linen.RNN(self.cell(UNITS))(xs)
        return linen.Dense(2)(jnp.asarray(outputs)[:, -1])


def in_linen(cell):
    model = InLinen(cell)
    return model, model.init(KEY, SEQUENCES)


def in_equinox(name):
    eqx = pytest.importorskip("equinox", reason="a cell of Equinox is asked for")

    class Model(eqx.Module):
        cell: eqx.Module
        head: eqx.nn.Linear

        def __call__(self, xs):
            zeros = jnp.zeros(UNITS)
            start = (zeros, zeros) if name == "LSTMCell" else zeros
            last, _ = jax.lax.scan(lambda s, x: (self.cell(x, s), None), start, xs)
            return self.head(last[0] if name == "LSTMCell" else last)

    cell = getattr(eqx.nn, name)(FEATURES, UNITS, key=KEY)
    return Model(cell, eqx.nn.Linear(UNITS, 2, key=KEY))


def in_haiku(name):
    hk = pytest.importorskip("haiku", reason="a core of Haiku is asked for")

    def network(xs):
        core = getattr(hk, name)(UNITS)
        outputs, _ = hk.dynamic_unroll(core, xs.swapaxes(0, 1), core.initial_state(len(xs)))
        return hk.Linear(2)(outputs[-1])

    model = hk.without_apply_rng(hk.transform(network))
    return model, model.init(KEY, SEQUENCES)


def of_own(kernels, names):
    """A kernel for each gate and each of input and state."""
    return {path: (name,) for path, name in zip(kernels.split(), names, strict=True)}


SINGLE = [name for name in ("input gate", "forget gate", "candidate", "output gate") for _ in "xh"]
CELLS = {
    "linen optimized lstm": (
        lambda: in_linen(linen.OptimizedLSTMCell),
        dict.fromkeys(("OptimizedLSTMCell_0/hf", "OptimizedLSTMCell_0/if"), LSTM),
    ),
    "linen lstm": (
        lambda: in_linen(linen.LSTMCell),
        of_own("ii hi if hf ig hg io ho", SINGLE),
    ),
    "linen gru": (
        lambda: in_linen(linen.GRUCell),
        of_own("ir hr iz hz in hn", [name for name in GRU for _ in "xh"]),
    ),
    "nnx lstm": (lambda: InFlax(nnx.LSTMCell), of_own("ii hi if_ hf ig hg io ho", SINGLE)),
    "nnx optimized lstm": (
        lambda: InFlax(nnx.OptimizedLSTMCell),
        dict.fromkeys(("dense_i", "dense_h"), LSTM),
    ),
    "nnx gru": (lambda: InFlax(nnx.GRUCell), dict.fromkeys(("dense_i", "dense_h"), GRU)),
    "nnx simple": (lambda: InFlax(nnx.SimpleCell), {}),
    "equinox lstm": (
        lambda: in_equinox("LSTMCell"),
        dict.fromkeys(("weight_ih", "weight_hh"), LSTM),
    ),
    "equinox gru": (lambda: in_equinox("GRUCell"), dict.fromkeys(("weight_ih", "weight_hh"), GRU)),
    "haiku lstm": (
        lambda: in_haiku("LSTM"),
        {"linear": ("input gate", "candidate", "forget gate", "output gate")},
    ),
    # Two kernels are cut out of one leaf.
    "haiku gru": (
        lambda: in_haiku("GRU"),
        {
            "w_i": ("update gate", "reset gate", "candidate"),
            "w_h": ("update gate", "reset gate"),
            "w_h#2": ("candidate",),
        },
    ),
}


# One of each library; the others are slow.
FEW = ("linen optimized lstm", "nnx gru", "equinox gru", "haiku lstm")


@pytest.mark.parametrize(
    "name",
    [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in CELLS if name not in FEW)],
)
def test_cells_of_every_library_have_the_right_names(name):
    make, expected = CELLS[name]
    found = names_of(examine(make(), SEQUENCES, LABELS))
    ends = {path.rpartition("/")[2]: parts for path, parts in found.items()}
    assert ends == {path.rpartition("/")[2]: parts for path, parts in expected.items()}


def test_two_cells_in_one_loop_have_each_their_gates():
    def network(params, xs):
        def step(states, x):
            new = []
            for place, (h, c) in enumerate(states):
                i, f, g, o = split(x @ params[f"x{place}"] + h @ params[f"h{place}"], 4)
                c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
                x = sigmoid(o) * jnp.tanh(c)
                new.append((x, c))
            return new, None

        start = jnp.zeros((len(xs), UNITS), xs.dtype)
        last, _ = jax.lax.scan(step, [(start, start)] * 2, xs.swapaxes(0, 1))
        return last[1][0] @ params["out"]

    lower, upper = weights(4), weights(4)
    params = {"x0": lower["x"], "h0": lower["h"], "x1": upper["h"], "h1": upper["h"]}
    found = named(network, params | {"out": lower["out"]})
    assert found == dict.fromkeys(("x0", "h0", "x1", "h1"), LSTM)


def test_numbers_in_half_precision_are_those_of_single_precision_rounded():
    def measured(kind):
        params, xs = (
            jax.tree.map(lambda x: x.astype(kind), each) for each in (weights(4), SEQUENCES)
        )
        return examine((lstm(), params), xs, LABELS)

    whole, half = measured(jnp.float32), measured(jnp.bfloat16)
    assert names_of(whole) == names_of(half)
    for of_whole, of_half in zip(parts_of(whole, "x"), parts_of(half, "x"), strict=True):
        assert of_half.pre_activation_rms == pytest.approx(of_whole.pre_activation_rms, rel=0.02)
        assert of_half.delta_rms == pytest.approx(of_whole.delta_rms, rel=0.1)


def test_a_graph_without_a_loop_is_not_searched():
    exam = examine((gated_mlp, weights(2)), SEQUENCES, LABELS)
    assert find_parts(exam.graph) == {}
    assert exam.measured.parts == {}


def test_gates_stand_beneath_their_kernel_wherever_layers_are_shown():
    found = diagnose((lstm(), weights(4)), SEQUENCES, LABELS, try_changes=False)
    lines = found.details().splitlines()
    place = next(index for index, line in enumerate(lines) if line.startswith("h "))
    assert [line[2:15].strip() for line in lines[place + 1 : place + 5]] == list(LSTM)
    assert "open 0." in lines[place + 2]
    assert "open" not in lines[place + 3]
    markdown, html = found.to_markdown(), found.to_html()
    for name in LSTM:
        assert markdown.count(f"| &emsp;{name} (") == 2
        assert html.count(f"<tr class='part'><td>{name}</td>") == 2
    columns = {line.count("|") for line in markdown.splitlines() if line.startswith("|")}
    assert len(columns) == 1
    for name in LSTM:
        assert name not in found.to_short_json()
    kept = found.to_dict()["layers"][0]["parts"]
    assert [part["name"] for part in kept] == list(LSTM)


def test_a_kernel_that_is_one_gate_has_its_name_beside_it():
    found = diagnose(in_linen(linen.GRUCell), SEQUENCES, LABELS, try_changes=False)
    assert "GRUCell_0/hz (update gate)" in found.details()
    assert "`GRUCell_0/hz` (update gate; open 0." in found.to_markdown()
    assert "<code>GRUCell_0/hz</code> update gate" in found.to_html()
