"""Verdicts, prescriptions and results."""

import json

import chex
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxdnn import assert_trainable, diagnose
from jaxdnn.diagnosis import examine
from jaxdnn.diagnosis.search import bridged_change
from jaxdnn.errors import InputError

from . import zoo

BATCH = zoo.DEEP_INPUTS, zoo.DEEP_TARGETS


def test_healthy_network_trains():
    diagnosis = diagnose(zoo.deep(), *BATCH, optimizer="adam:0.001")
    assert diagnosis.verdict == "trains"
    assert diagnosis.causes == ()
    assert diagnosis.prescriptions == ()
    assert_trainable(zoo.deep(depth=2), *BATCH, optimizer="adam:0.01", try_changes=False)


def test_vanishing_network_does_not_and_critical_weights_help():
    diagnosis = diagnose(zoo.deep(0.1), *BATCH)
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


def test_bridge_takes_delta_past_a_small_layer():
    apply, kernels = zoo.deep()
    kernels[4] = 0.01 * kernels[4]
    exam = examine((apply, kernels), *BATCH)
    at, elsewhere = (bridged_change(exam, index) for index in (4, 6))
    chex.assert_trees_all_close(at, 2, atol=0.5, rtol=0)
    assert abs(elsewhere) < 0.5


def not_scalar(logits, targets):
    return logits * targets[:, None]


@pytest.mark.parametrize(
    ("model", "inputs", "targets", "options", "says"),
    [
        (lambda: zoo.MLP(nnx.Rngs(0)), zoo.normal(0, 6, 5), zoo.TARGETS, {}, "does not take"),
        (lambda: zoo.CNN(nnx.Rngs(0)), jnp.ones((6, 5), int), zoo.TARGETS, {}, "does not take"),
        (lambda: (lambda p, x: (x @ p, x), jnp.eye(4)), zoo.VECTORS, zoo.TARGETS, {}, "tuple"),
        (lambda: zoo.MLP(nnx.Rngs(0)), zoo.VECTORS, zoo.TARGETS, {"loss": not_scalar}, "scalar"),
        (lambda: zoo.MLP(nnx.Rngs(0)), zoo.VECTORS * jnp.nan, zoo.TARGETS, {}, "NaN"),
        (lambda: (lambda p, x: x, {}), zoo.VECTORS, zoo.TARGETS, {}, "no floating-point param"),
        (lambda: (lambda p, x: x + p, jnp.ones(4)), zoo.VECTORS, zoo.TARGETS, {}, "no layer"),
        (lambda: zoo.MLP(nnx.Rngs(0)), zoo.VECTORS, zoo.TARGETS[:5], {}, "examples"),
        (lambda: zoo.MLP(nnx.Rngs(0)), zoo.VECTORS, zoo.TARGETS + 1, {}, "class indices"),
        (lambda: zoo.MLP(nnx.Rngs(0)), zoo.VECTORS, zoo.TARGETS, {"optimizer": "x"}, "optimizer"),
        (lambda: zoo.LinenMLP(), zoo.VECTORS, zoo.TARGETS, {}, "module.init"),
        (lambda: 3, zoo.VECTORS, zoo.TARGETS, {}, "flax.nnx"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_give(model, inputs, targets, options, says):
    with pytest.raises(InputError, match=says) as caught:
        diagnose(model(), inputs, targets, **options)
    assert "\n" not in str(caught.value)
