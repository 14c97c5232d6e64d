"""One layer of a trained network is spoilt; the network as it was trained has no finding."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdnn.diagnosis import examine
from jaxdnn.diagnosis.findings import BLOCKING, NAMED
from jaxdnn.diagnosis.hidden_causes import (
    Reading,
    exchanged_weights,
    mis_scaled_weights,
    recovery,
    rounded_steps,
    transposed_weights,
    untrained_layer,
)
from jaxdnn.diagnosis.running_averages import foreign_averages
from jaxdnn.diagnosis.trial import take_first_step

from . import zoo

SLOW = pytest.mark.slow
FEATURES, WIDTH, CLASSES, ROWS = 8, 24, 4, 256
WEIGHTS = {
    "transposed": transposed_weights,
    "exchanged": exchanged_weights,
    "x 30": mis_scaled_weights,
    "/ 30": mis_scaled_weights,
    "untrained": untrained_layer,
    "zero": untrained_layer,
}
INPUTS = zoo.normal(0, ROWS, FEATURES)
TARGETS = jnp.argmax(jnp.tanh(INPUTS @ zoo.normal(1, FEATURES, 16)) @ zoo.normal(2, 16, 4), 1)


def apply(params, x):
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return x @ params[-1]["kernel"] + params[-1]["bias"]


def fresh(seed=0):
    """Kernels as LeCun draws them: normal, cut at two standard deviations."""
    widths = [FEATURES, *[WIDTH] * 4, CLASSES]
    keys = jax.random.split(jax.random.key(seed), len(widths) - 1)
    draw = jax.nn.initializers.lecun_normal()
    return [
        {"kernel": draw(key, (a, b)), "bias": jnp.zeros(b)}
        for key, a, b in zip(keys, widths[:-1], widths[1:], strict=True)
    ]


@pytest.fixture(scope="module")
def trained():
    optimizer = optax.adam(0.01)

    def step(carry, _):
        params, state = carry
        grads = jax.grad(lambda p: zoo.cross_entropy(apply(p, INPUTS), TARGETS))(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    params = fresh()
    return jax.lax.scan(step, (params, optimizer.init(params)), None, 150)[0][0]


def spoilt(params, fault, layer=2):
    params = [dict(each) for each in params]
    kernel = params[layer]["kernel"]
    if fault == "transposed":
        params[layer]["kernel"] = kernel.T
    elif fault == "exchanged":
        params[layer], params[layer + 1] = params[layer + 1], params[layer]
    elif fault == "untrained":
        params[layer] = fresh(5)[layer]
    elif fault == "untrained kernel":
        params[layer]["kernel"] = fresh(5)[layer]["kernel"]
    else:
        params[layer]["kernel"] = kernel * {"x 30": 30, "/ 30": 1 / 30, "zero": 0}[fault]
    return params


def path_of(exam, finding):
    return None if finding.layer is None else exam.graph.layers[finding.layer].path


def found(params, *finders):
    exam = examine((apply, params), INPUTS, TARGETS)
    return [
        (finder, path_of(exam, each), each.strength)
        for finder in finders
        for each in finder(exam)
        if each.strength >= NAMED
    ]


@pytest.mark.parametrize(
    "fault",
    [pytest.param(each, marks=SLOW if each in ("/ 30", "zero") else ()) for each in WEIGHTS],
)
def test_a_spoilt_layer_is_named_first(trained, fault):
    """All finders look; the one whose cure regains the most is the right one."""
    named = found(spoilt(trained, fault), *dict.fromkeys(WEIGHTS.values()))
    finder, path, _ = max(named, key=lambda each: each[2])
    assert (finder, path) == (WEIGHTS[fault], "2")


@pytest.mark.slow
def test_a_kernel_alone_shows_that_it_was_not_trained(trained):
    """Its bias is trained, but its entries end where the initialiser's do."""
    named = found(spoilt(trained, "untrained kernel"), untrained_layer)
    assert [path for _, path, _ in named] == ["2"]


@pytest.mark.slow
def test_a_layer_that_starts_at_zero_is_no_finding():
    assert found(spoilt(fresh(), "zero"), untrained_layer) == []


@pytest.mark.parametrize("is_trained", [True, False])
def test_sound_weights_have_no_finding(trained, is_trained):
    """Neither after training nor before, when exchanging layers changes nothing that is known."""
    assert found(trained if is_trained else fresh(), *dict.fromkeys(WEIGHTS.values())) == []


@pytest.mark.slow
def test_a_fresh_head_on_trained_layers_is_no_finding(trained):
    assert found([*trained[:-1], fresh(7)[-1]], untrained_layer) == []


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e4])
def test_recovery_does_not_depend_on_the_scale_of_a_loss(scale):
    loaded, cured = Reading(2.0 * scale, 2.2 * scale), Reading(0.5 * scale, 4.0 * scale)
    chex.assert_trees_all_close(recovery(loaded, cured), BLOCKING + 75.0)
    assert recovery(cured, loaded) == 0
    # What knows nothing afterwards is not cured, however much its loss fell.
    assert recovery(Reading(9.0 * scale, 9.0 * scale), Reading(scale, scale)) == 0


@pytest.mark.parametrize(("dtype", "is_named"), [(jnp.bfloat16, True), (jnp.float32, False)])
def test_steps_that_a_format_rounds_away_are_named(dtype, is_named):
    params = jax.tree.map(lambda x: x.astype(dtype), fresh())
    exam = examine((apply, params), INPUTS, TARGETS)
    named = list(rounded_steps(exam, take_first_step(exam, optax.adam(1e-4))))
    assert bool(named) == is_named


STATS = [(jnp.full(WIDTH, float(i) - 1), jnp.full(WIDTH, 0.5 + i)) for i in range(2)]


def normed(stats):
    """A network in evaluation mode: its running averages are constants."""

    def network(params, x):
        for layer, (mean, variance) in zip(params[:2], stats, strict=True):
            z = x @ layer["kernel"] + layer["bias"]
            x = jnp.tanh((z - mean) * jax.lax.rsqrt(variance + 1e-5) * layer["scale"])
        return x @ params[-1]["kernel"]

    return network


def test_running_averages_of_other_data_are_named():
    """Those that the batch itself gives are right, and a wrong one is named by its layer."""
    params = [layer | {"scale": jnp.ones(layer["bias"].shape)} for layer in fresh()]
    params = [*params[:2], params[-1]]
    own, x = [], INPUTS
    for layer in params[:2]:
        z = x @ layer["kernel"]
        own.append((z.mean(0), z.var(0)))
        x = jnp.tanh((z - z.mean(0)) / jnp.sqrt(z.var(0) + 1e-5))
    wrong = [own[0], (own[1][0] + 5, own[1][1] * 20)]
    for stats, paths in ((own, []), (wrong, ["1"])):
        exam = examine((normed(stats), params), INPUTS, TARGETS)
        assert [path_of(exam, each) for each in foreign_averages(exam)] == paths


@pytest.mark.slow
def test_normalisation_in_the_network_is_compared_with_the_inputs():
    """Constants by which a function standardises its inputs are running averages, too."""

    def network(params, x):
        return apply(params, (x - 100 * jnp.arange(1.0, FEATURES + 1)) / jnp.full(FEATURES, 9.0))

    exam = examine((network, fresh()), INPUTS, TARGETS)
    (finding,) = foreign_averages(exam)
    assert finding.layer is None
    assert np.isfinite(finding.strength)
