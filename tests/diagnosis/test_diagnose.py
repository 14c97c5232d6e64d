"""Verdicts, prescriptions, results and the shell command."""

import functools
import json
import sys

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from jaxdnn import assert_trainable, check, diagnose
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


def test_a_prescription_can_be_trained_with_plain_optax_and_takes_other_batches():
    """By what it says of optimizer, loss and data, and by nothing else."""
    prescriptions = vanishing().prescriptions
    assert len(prescriptions) > 1
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


MODULE = """
import jax, jax.numpy as jnp

def make(scale):
    kernels = [scale * jax.random.normal(jax.random.key(i), (8, 8)) for i in range(4)]
    def apply(params, x):
        for kernel in params:
            x = jnp.tanh(x @ kernel)
        return x
    return apply, kernels

def good(): return make(0.5)
def bad(): return make(1e-4)
def broken(): raise RuntimeError("no data")
number = 3
"""


def test_shell_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "some_networks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    # What would help is no matter here.
    monkeypatch.setattr(check, "diagnose", functools.partial(diagnose, try_changes=False))
    options = ["--input", "16,8", "--target", "int:3"]
    good = ["some_networks:good", *options, "--optimizer", "adam:0.01", "--json", "--out", "out"]
    assert check.main(good) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "trains"
    assert (tmp_path / "out" / "diagnosis.json").is_file()
    assert check.main(["some_networks:good", *options, "--optimizer", "sgd:0.01"]) == 1
    assert check.main(["some_networks:bad", *options]) == 2
    capsys.readouterr()
    for wrong in (
        ["some_networks:broken", *options],
        ["some_networks:good"],
        ["some_networks:none", *options],
        ["nowhere:good", *options],
        ["some_networks:good", "--input", "16,x"],
        ["some_networks:good", "--unknown"],
        ["some_networks:number", *options],
        ["some_networks:good", "--data", "some_networks.py"],
        ["some_networks:good", "--data", "nowhere.npz"],
    ):
        assert check.main(wrong) == 3
        assert capsys.readouterr().err.startswith("error: ")
