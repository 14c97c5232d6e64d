"""Networks that are sound but for their steps or their number format."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdnn.diagnosis import AS_IT_IS, Scales, Trials, diagnose, examine, find_causes
from jaxdnn.diagnosis.causes import find_training_causes
from jaxdnn.diagnosis.findings import CERTAIN, FACTOR_SPREAD, NAMED
from jaxdnn.diagnosis.setups import Fix, FixKind
from jaxdnn.diagnosis.training_causes import Attempt
from jaxdnn.diagnosis.trial import take_first_step

from . import zoo

INPUTS, TARGETS = zoo.DEEP_INPUTS, zoo.DEEP_TARGETS


def causes(diagnosis):
    return [cause.cause for cause in diagnosis.causes]


@pytest.mark.parametrize(
    ("optimizer", "factor", "cause", "kind"),
    [
        pytest.param(
            "sgd:0.1", 1e-12, "learning rate too small", "the learning rate", marks=pytest.mark.slow
        ),
        ("sgd:0.1", 1e6, "learning rate too large", "the learning rate"),
        pytest.param(
            "adam:1", 1.0, "learning rate too large", "the learning rate", marks=pytest.mark.slow
        ),
        ("adam:0.001", 1e-12, "gradient below epsilon", "epsilon"),
    ],
)
def test_a_wrong_step_is_named_and_the_right_one_prescribed(optimizer, factor, cause, kind):
    diagnosis = diagnose(zoo.deep(), INPUTS, TARGETS, loss=zoo.times(factor), optimizer=optimizer)
    assert diagnosis.verdict == "will not train"
    assert causes(diagnosis)[0] == cause
    (best, *_) = (each for each in diagnosis.prescriptions if kind in each.change)
    assert best.after > 0.6


@pytest.mark.slow
def test_the_scale_of_the_loss_is_nothing_to_adam_and_the_rate_to_sgd():
    def scored(rate, factor):
        options = {"loss": zoo.times(factor), "try_changes": False}
        return diagnose(zoo.deep(depth=4), INPUTS, TARGETS, optimizer=rate, **options).score

    chex.assert_trees_all_close(scored("adam:0.001", 1e-3), scored("adam:0.001", 1e3), rtol=0.02)
    chex.assert_trees_all_close(scored("sgd:1e-04", 1e3), scored("sgd:0.1", 1.0), rtol=1e-3)


@pytest.mark.slow
def test_float16_ends_where_the_signal_of_float32_passes_its_end():
    deep = {"gain": 32.0, "depth": 12}
    exact = examine(zoo.deep(**deep), INPUTS, TARGETS)
    _, kernels = zoo.deep(**deep)
    diagnosis = diagnose(
        zoo.deep(dtype=jnp.float16, **deep), INPUTS, TARGETS, loss=zoo.cross_entropy
    )
    assert diagnosis.verdict == "will not train"
    first = diagnosis.causes[0]
    assert first.cause == "not finite"
    x, sizes = INPUTS, []
    for kernel in kernels:
        x = x @ kernel
        sizes.append(float(jnp.abs(x).max()))
        x = jax.nn.relu(x)
    assert first.path == str(next(i for i, size in enumerate(sizes) if size > 65504))
    # ReLU with gain 32: every layer multiplies by sqrt(16).
    assert "grow by 4" in first.evidence or "grow by 3.9" in first.evidence
    assert "not finite" not in [cause.cause for cause in find_causes(exact)]


def test_underflow_is_named_where_delta_falls_below_the_format():
    small = {"gain": 0.1, "phi": jnp.tanh}
    exact = examine(zoo.deep(**small), INPUTS, TARGETS)
    narrow = examine(zoo.deep(dtype=jnp.float16, **small), INPUTS, TARGETS, loss=zoo.cross_entropy)
    assert "underflow" not in [cause.cause for cause in find_causes(exact)]
    deltas = [exact.measured.delta[layer.z] for layer in exact.graph.layers]
    below = [i for i, delta in enumerate(deltas) if delta < 2.0**-14]
    (named,) = [cause for cause in find_causes(narrow) if cause.cause == "underflow"]
    assert named.path == str(max(below))


def test_coarse_parameters_are_named_and_float32_ones_prescribed():
    coarse = zoo.deep(param_dtype=jnp.bfloat16)
    options = {"loss": zoo.cross_entropy, "optimizer": "adam:0.0001"}
    diagnosis = diagnose(coarse, INPUTS, TARGETS, **options)
    assert "step rounded away" in causes(diagnosis)
    assert any("float32" in each.change for each in diagnosis.prescriptions)
    fine = diagnose(zoo.deep(), INPUTS, TARGETS, try_changes=False, **options)
    assert fine.score > diagnosis.score


def test_inputs_that_grow_alike_are_named():
    diagnosis = diagnose(zoo.deep(phi=jax.nn.sigmoid, depth=16), INPUTS, TARGETS)
    assert diagnosis.verdict == "will not train"
    assert "inputs look alike" in causes(diagnosis)


@pytest.mark.slow
def test_a_signal_that_grows_is_named_before_the_rate_that_would_cure_it():
    """Blocks x + relu(W x) of He's weights."""

    def apply(params, x):
        for kernel in params[:-1]:
            x = x + jax.nn.relu(x @ kernel)
        return x @ params[-1]

    kernels = [zoo.normal(i, zoo.WIDTH, zoo.WIDTH) * np.sqrt(2 / zoo.WIDTH) for i in range(20)]
    diagnosis = diagnose((apply, kernels), INPUTS, INPUTS, optimizer="sgd:0.1")
    assert diagnosis.verdict == "will not train"
    found = causes(diagnosis)
    assert "signal too large" in found
    rate = found.index("learning rate too large") if "learning rate too large" in found else 99
    assert found.index("signal too large") < rate
    assert "branches" in diagnosis.prescriptions[0].change


@pytest.mark.parametrize(
    ("network_score", "strength"),
    [(0.2, CERTAIN), (0.6, math.log(1e5) / FACTOR_SPREAD), (0.9, NAMED)],
)
def test_a_rate_ranks_by_what_changes_of_the_network_do(network_score, strength):
    exam = examine(zoo.deep(), INPUTS, TARGETS)
    first = take_first_step(exam, optax.sgd(1e-6))
    rate = Fix("", "", "", FixKind.LEARNING_RATE, 1, scales=Scales(rate=1e5))
    trials = Trials(exam, optax.sgd(1e-6), horizon=1)
    trial = trials.try_fix(AS_IT_IS)
    tried = [
        trial._replace(fix=fix, score=score)
        for fix, score in ((rate, 0.6), (Fix("", "", ""), network_score))
    ]
    (cause,) = find_training_causes(Attempt(exam, first, tried, trials))
    assert cause.cause == "learning rate too small"
    chex.assert_trees_all_close(cause.strength, strength, rtol=1e-6)


@pytest.mark.slow
def test_a_single_output_has_no_angle():
    apply, kernels = zoo.deep()
    # Of rectified units with weights of one sign every output has the same one.
    single = [*kernels[:-1], jnp.abs(kernels[-1][:, :1])]
    diagnosis = diagnose(
        (apply, single), INPUTS, zoo.normal(51, zoo.BATCH, 1), optimizer="sgd:1e-06"
    )
    assert causes(diagnosis) == ["learning rate too small"]


def test_weights_that_are_not_finite_are_named():
    apply, kernels = zoo.deep()
    kernels[3] = kernels[3].at[0, 0].set(jnp.nan)
    diagnosis = diagnose((apply, kernels), INPUTS, TARGETS)
    assert diagnosis.verdict == "will not train"
    assert (diagnosis.causes[0].path, diagnosis.causes[0].cause) == ("3", "not finite")
    assert "weights" in diagnosis.causes[0].evidence
