"""Verdicts, prescriptions and results."""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen, nnx

from jaxdnn import assert_trainable, diagnose
from jaxdnn.diagnosis.model import leaf_names, make_network
from jaxdnn.diagnosis.trial import AT_RISK, BY_HEART
from jaxdnn.errors import InputError

from . import zoo

BATCH = zoo.DEEP_INPUTS, zoo.DEEP_TARGETS


@functools.cache
def vanishing():
    return diagnose(zoo.deep(0.1), *BATCH)


def test_healthy_network_trains():
    diagnosis = diagnose(zoo.deep(), *BATCH, optimizer="adam:0.001")
    assert diagnosis.verdict == "trains"
    assert diagnosis.causes == ()
    assert diagnosis.prescriptions == ()
    assert_trainable(zoo.deep(depth=2), *BATCH, optimizer="adam:0.01", try_changes=False)


def test_vanishing_network_does_not_and_critical_weights_help():
    diagnosis = vanishing()
    assert diagnosis.verdict == "will not train"
    assert diagnosis.causes[0].cause == "gain too small everywhere"
    best = diagnosis.prescriptions[0]
    assert best.after > best.before + 0.1
    assert any("critical" in p.change for p in diagnosis.prescriptions)
    assert "will not train" in str(diagnosis)
    assert "<svg" in diagnosis._repr_html_()
    assert "| layer |" in diagnosis.to_markdown()
    shown = json.loads(diagnosis.to_json())
    assert {"verdict", "score", "layers", "causes", "prescriptions"} <= shown.keys()
    assert {"path", "delta_rms", "factor", "terms"} <= shown["layers"][0].keys()
    assert {"path", "cause", "evidence"} <= shown["causes"][0].keys()
    assert {"change", "before", "after"} <= shown["prescriptions"][0].keys()
    with pytest.raises(AssertionError, match="will not train"):
        assert_trainable(zoo.deep(0.1), *BATCH, try_changes=False)


def test_what_does_not_hold_for_a_batch_held_out_is_learnt_by_heart():
    rows, others = (zoo.normal(seed, 400, zoo.WIDTH) for seed in (0, 1))
    names = jnp.arange(80) % 3
    apply, kernels = zoo.deep(depth=2)

    def judged(inputs, targets, held_out=None, optimizer="adam:0.01"):
        options = {"optimizer": optimizer, "try_changes": False, "horizon": 200}
        three = [*kernels[:-1], kernels[-1][:, :3]]
        return diagnose((apply, three), inputs, targets, held_out=held_out, **options)

    assert judged(rows[:80], names).verdict == "trains"
    by_heart = judged(rows[:80], names, (others[:80], names))
    assert by_heart.verdict == "at risk"
    assert "by heart" in by_heart.notes[0]
    # It learns what it is shown, which one that stands still does not.
    still = judged(rows[:80], names, (others[:80], names), optimizer="adam:1e-9")
    assert still.score <= AT_RISK < by_heart.score < BY_HEART
    first, second = ((x[:, 0] > 0).astype(int) for x in (rows, others))
    assert judged(rows, first, (others, second)).verdict == "trains"


def test_a_prescription_can_be_trained_with_plain_optax_and_takes_other_batches():
    """By what it says of optimizer, loss and data, and by nothing else."""
    prescriptions = vanishing().prescriptions
    assert prescriptions
    for each in prescriptions[:3]:
        apply, params = each.network
        inputs, targets = BATCH if each.prepare is None else each.prepare(*BATCH)
        loss, optimizer = each.loss or zoo.cross_entropy, each.optimizer or optax.sgd(0.1)

        @jax.jit
        def step(
            params, state, apply=apply, loss=loss, optimizer=optimizer, batch=(inputs, targets)
        ):
            value, grads = jax.value_and_grad(lambda p: loss(apply(p, batch[0]), batch[1]))(params)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state, value

        state, losses = optimizer.init(params), []
        for _ in range(200):
            params, state, value = step(params, state)
            losses.append(float(value))
        assert losses[-1] < 0.7 * losses[0], each.change
        chex.assert_shape(apply(params, inputs[:5]), (5, zoo.WIDTH))


def test_a_prescription_carries_none_where_it_changes_nothing():
    weights = next(p for p in vanishing().prescriptions if p.name == "critical_weights")
    assert (weights.optimizer, weights.loss, weights.prepare) == (None, None, None)
    shown = json.loads(vanishing().to_json())["prescriptions"][0]
    assert {"name", "change", "code", "before", "after"} == shown.keys()


def not_scalar(logits, targets):
    return logits, targets


@pytest.mark.parametrize(
    ("model", "inputs", "targets", "options", "says"),
    [
        (lambda: zoo.MLP(nnx.Rngs(0)), zoo.normal(0, 6, 5), zoo.TARGETS, {}, "does not take"),
        (lambda: zoo.CNN(nnx.Rngs(0)), jnp.ones((6, 5), int), zoo.TARGETS, {}, "does not take"),
        (lambda: (lambda p, x: (x @ p, x), jnp.eye(4)), zoo.VECTORS, zoo.TARGETS, {}, "tuple"),
        (lambda: zoo.MLP(nnx.Rngs(0)), zoo.VECTORS, zoo.TARGETS, {"loss": not_scalar}, "scalar"),
        (lambda: (lambda p, x: x, {}), zoo.VECTORS, zoo.TARGETS, {}, "no floating-point param"),
        (lambda: (lambda p, x: x + p, jnp.ones(4)), zoo.VECTORS, zoo.TARGETS, {}, "no layer"),
        (lambda: zoo.MLP(nnx.Rngs(0)), zoo.VECTORS, zoo.TARGETS[:5], {}, "examples"),
        (lambda: zoo.MLP(nnx.Rngs(0)), zoo.VECTORS, zoo.TARGETS, {"optimizer": "x"}, "optimizer"),
        (lambda: (zoo.LinenMLP(), {}), zoo.VECTORS, zoo.TARGETS, {}, "module.init"),
        (lambda: zoo.LinenMLP(), zoo.VECTORS, zoo.TARGETS, {"budget": 0}, "budget"),
        (lambda: 3, zoo.VECTORS, zoo.TARGETS, {}, "flax.nnx"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_give(model, inputs, targets, options, says):
    with pytest.raises(InputError, match=says) as caught:
        diagnose(model(), inputs, targets, **options)
    assert "\n" not in str(caught.value)


def changed(inputs=lambda x: x, targets=lambda t: t):
    model = zoo.MLP(nnx.Rngs(0))
    return diagnose(model, inputs(zoo.VECTORS), targets(zoo.TARGETS), try_changes=False)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"inputs": lambda x: x * jnp.nan}, "not finite"),
        pytest.param(
            {"inputs": lambda x: x.at[2, 1].set(jnp.inf)}, "not finite", marks=pytest.mark.slow
        ),
        ({"targets": lambda t: t + 1}, "wrong labels"),
    ],
)
def test_data_that_cannot_be_learnt_are_a_finding_and_no_error(change, cause):
    diagnosis = changed(**change)
    assert diagnosis.verdict == "will not train"
    assert cause in [each.cause for each in diagnosis.causes]
    assert diagnosis.score == 0


def test_the_curve_of_rates_says_which_are_stable():
    """One number under a squared error of curvature 2: stable below a rate of 1."""

    def network(params, x):
        return x @ params

    diagnosis = diagnose(
        (network, jnp.ones((1, 1))), jnp.ones((8, 1)), jnp.zeros((8, 1)), optimizer="sgd:1e-6"
    )
    curve = diagnosis.rates
    assert curve is not None
    assert curve.stable is not None
    assert 1e-6 * curve.stable < 1 < 1e-6 * curve.factors[curve.factors.index(curve.stable) + 1]
    assert curve.best == curve.factors[curve.losses.index(min(curve.losses))]


class Noisy(linen.Module):
    """Draws from a stream of a name of its own."""

    @linen.compact
    def __call__(self, x):
        noise = jax.random.normal(self.make_rng("noise"), x.shape)
        return linen.Dense(3)(x + 0.1 * noise)


def test_a_stream_of_any_name_is_given_a_key():
    module, x = Noisy(), jnp.ones((4, 8))
    variables = module.init({"params": jax.random.key(0), "noise": jax.random.key(1)}, x)
    apply = make_network((module, variables)).apply
    first, second, again = (apply(variables["params"], x, jax.random.key(n)) for n in (0, 1, 0))
    chex.assert_trees_all_equal(first, again)
    assert not jnp.allclose(first, second)


def test_what_stands_among_the_parameters_and_is_no_array_changes_nothing():
    kernel, x = jax.random.normal(jax.random.key(0), (8, 3)), jnp.ones((4, 8))

    def apply(params, inputs):
        assert params["name"] == "float32"
        return params["scale"] * (inputs @ params["kernel"])[:, :: params["stride"]]

    odd = {"kernel": kernel, "scale": 0.5, "stride": 2, "name": "float32", "key": jax.random.key(1)}
    network = make_network((apply, odd))
    assert leaf_names(network.params) == ["kernel", "scale"]
    logits = jax.jit(network.apply)(network.params, x, None)
    chex.assert_trees_all_close(logits, apply(odd, x))
    grads = jax.grad(lambda params: network.apply(params, x, None).sum())(network.params)
    chex.assert_trees_all_close(grads["scale"], (x @ kernel)[:, ::2].sum(), rtol=1e-5)


def test_a_budget_that_is_spent_ends_the_search_with_what_is_known():
    diagnosis = diagnose(zoo.deep(0.1), *BATCH, budget=1e-9)
    assert diagnosis.verdict == "will not train"
    assert diagnosis.causes[0].cause == "gain too small everywhere"
    assert diagnosis.prescriptions == ()
    assert "budget of 1e-09 s" in diagnosis.notes[-1]
