"""Models of every library that people have, by the call that its own users would write."""

import functools
from typing import Any

import chex
import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from flax.core import freeze
from jax.example_libraries import stax

from jaxdnn import diagnose
from jaxdnn.diagnosis import examine, find_causes
from jaxdnn.diagnosis.model import make_network
from jaxdnn.errors import InputError

from . import zoo

KEY = jax.random.key(0)
ROWS, FEATURES, CLASSES = 16, 8, 3
X = zoo.normal(0, ROWS, FEATURES)
IMAGES = zoo.normal(1, ROWS, 3, 6, 6)
SEQUENCES = zoo.normal(2, ROWS, 5, 4)
LABELS = jnp.arange(ROWS) % CLASSES
KERNEL = zoo.normal(3, FEATURES, CLASSES)


class Convolution(eqx.Module):
    conv: eqx.nn.Conv2d
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(3, 4, 3, key=first)
        self.dropout = eqx.nn.Dropout(0.5)
        self.head = eqx.nn.Linear(64, CLASSES, key=second)

    def __call__(self, x, *, key=None):
        x = jax.nn.relu(self.conv(x)).reshape(-1)
        return self.head(self.dropout(x, key=key))


class Normed(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    head: eqx.nn.Linear

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.first = eqx.nn.Linear(FEATURES, 4, key=first)
        self.norm = eqx.nn.BatchNorm(4, axis_name="rows", mode="batch")
        self.head = eqx.nn.Linear(4, CLASSES, key=second)

    def __call__(self, x, state):
        x, state = self.norm(self.first(x), state)
        return self.head(jax.nn.relu(x)), state


class Cell(eqx.Module):
    cell: eqx.nn.GRUCell
    head: eqx.nn.Linear

    def __init__(self, key):
        self.cell = eqx.nn.GRUCell(4, 8, key=key)
        self.head = eqx.nn.Linear(8, CLASSES, key=key)

    def __call__(self, xs):
        h, _ = jax.lax.scan(lambda h, x: (self.cell(x, h), None), jnp.zeros(8), xs)
        return self.head(h)


def two_layers(x):
    return hk.nets.MLP([16, CLASSES])(x)


def with_state(x, is_training):
    h = hk.BatchNorm(True, True, 0.9)(hk.Linear(8)(x), is_training)
    return hk.Linear(CLASSES)(hk.dropout(hk.next_rng_key(), 0.2, jax.nn.relu(h)))


def stax_pair(*middle):
    init, apply = stax.serial(stax.Dense(16), stax.Relu, *middle, stax.Dense(CLASSES))
    return (init, apply), init(KEY, (-1, FEATURES))[1]


class Flagged(linen.Module):
    @linen.compact
    def __call__(self, x, train: bool):
        x = linen.BatchNorm(use_running_average=not train)(linen.Dense(8)(x))
        return linen.Dense(CLASSES)(linen.Dropout(0.1, deterministic=not train)(linen.relu(x)))


class Two(linen.Module):
    @linen.compact
    def __call__(self, a, b, *, deterministic=True):
        return linen.Dense(CLASSES)(jnp.concatenate([a, b], -1))


class OverAnAxis(linen.Module):
    @linen.compact
    def __call__(self, x):
        norm = linen.BatchNorm(use_running_average=False, axis_name="data")
        return linen.Dense(CLASSES)(norm(linen.Dense(4)(x)))


class Streams(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(FEATURES, CLASSES, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, *, rngs):
        return self.linear(self.dropout(x, rngs=rngs))


class Required(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(FEATURES, CLASSES, rngs=rngs)

    def __call__(self, x, is_train: bool):
        return self.linear(x) if is_train else self.linear(0 * x)


def over_an_axis():
    module = OverAnAxis()
    init = jax.vmap(lambda _: module.init(KEY, X), axis_name="data", axis_size=1, in_axes=None)
    return module, jax.tree.map(lambda x: x[0], init(None))


def plain():
    return nnx.Sequential(nnx.Linear(FEATURES, CLASSES, rngs=nnx.Rngs(0)))


transformed = hk.transform(two_layers)
stateful = hk.transform_with_state(with_state)
keyless = hk.without_apply_rng(transformed)
MODELS: dict[str, Any] = {
    "equinox": lambda: (eqx.nn.MLP(FEATURES, CLASSES, 16, 2, key=KEY), X),
    "equinox dropout": lambda: (Convolution(KEY), IMAGES),
    "equinox state": lambda: (eqx.nn.make_with_state(Normed)(KEY), X),
    "equinox scan": lambda: (Cell(KEY), SEQUENCES),
    "haiku": lambda: ((transformed, transformed.init(KEY, X)), X),
    "haiku alone": lambda: (transformed, X),
    "haiku state": lambda: ((stateful, *stateful.init(KEY, X, is_training=True)), X),
    "haiku state alone": lambda: (stateful, X),
    "haiku without key": lambda: ((keyless, keyless.init(KEY, X)), X),
    "stax": lambda: (stax_pair(), X),
    "stax apply": lambda: ((stax_pair()[0][1], stax_pair()[1]), X),
    "stax dropout": lambda: (stax_pair(stax.Dropout(0.8)), X),
    "linen alone": lambda: (Flagged(), X),
    "linen frozen": lambda: ((Two(), freeze(Two().init(KEY, X, X))), (X, X)),
    "linen by name": lambda: (Two(), {"a": X, "b": X}),
    "linen axis": lambda: (over_an_axis(), X),
    "nnx split": lambda: (nnx.split(plain()), X),
    "nnx split in three": lambda: (nnx.split(plain(), nnx.Param, ...), X),
    "nnx rngs": lambda: (Streams(nnx.Rngs(0)), X),
    "nnx flag": lambda: (Required(nnx.Rngs(0)), X),
    "third is no key": lambda: ((lambda p, x, noise=None: x @ p, KERNEL), X),
    "third is a number": lambda: ((lambda p, x, temperature=1.0: x @ p / temperature, KERNEL), X),
    "key by name": lambda: (
        (lambda p, x, *, rng: x @ p + jax.random.normal(rng, (CLASSES,)), KERNEL),
        X,
    ),
    "flag of a function": lambda: ((lambda p, x, train=False: x @ p, KERNEL), X),
    "two inputs": lambda: ((lambda p, a, b: (a + b) @ p, KERNEL), (X, X)),
    "a tuple": lambda: ((lambda p, xs: (xs[0] + xs[1]) @ p, KERNEL), (X, X)),
    "a dictionary": lambda: ((lambda p, batch: batch["x"] @ p, KERNEL), {"x": X}),
}


# One of each library, and of each way to call it; the others in the wide run.
FAST = {
    "equinox", "haiku state", "stax dropout", "linen alone", "linen axis", "nnx rngs", "nnx split",
    "third is no key", "two inputs",
}  # fmt: skip


def wide(names):
    return [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in names]


@functools.cache
def taken(name):
    model, inputs = MODELS[name]()
    return make_network(model, inputs, KEY), inputs


@pytest.mark.parametrize("name", wide(MODELS))
def test_every_model_is_a_pure_function_of_all_its_parameters(name):
    network, inputs = taken(name)
    slopes = jax.grad(lambda params: jnp.sum(network.apply(params, inputs, KEY) ** 2))
    grads = jax.tree.leaves(jax.jit(slopes)(network.params))
    assert len(grads) == len(jax.tree.leaves(network.params)) > 0
    # What the norm of the axis takes away is a bias.
    still = sum(not np.any(grad) for grad in grads)
    assert still <= ("axis" in name)
    first, again = (network.apply(network.params, inputs, KEY) for _ in range(2))
    chex.assert_shape(first, (ROWS, CLASSES))
    chex.assert_trees_all_equal(first, again)


@pytest.mark.parametrize(
    "name", wide(["equinox dropout", "haiku state", "stax dropout", "nnx rngs"])
)
def test_the_key_decides_the_masks(name):
    network, inputs = taken(name)
    one, other = (network.apply(network.params, inputs, jax.random.key(n)) for n in (0, 1))
    assert not np.allclose(one, other)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("equinox", lambda: jax.vmap(MODELS["equinox"]()[0])(X)),
        ("haiku", lambda: transformed.apply(transformed.init(KEY, X), KEY, X)),
        ("linen frozen", lambda: Two().apply(Two().init(KEY, X, X), X, X)),
        ("nnx split", lambda: plain()(X)),
    ],
)
def test_outputs_are_those_of_the_librarys_own_call(name, expected):
    network, inputs = taken(name)
    own = network.apply(network.params, inputs, KEY)
    chex.assert_trees_all_close(own, expected(), rtol=1e-5)


@pytest.mark.parametrize("name", wide(["equinox state", "equinox scan", "haiku state"]))
def test_norms_and_cells_of_other_libraries_are_no_finding(name):
    (model, inputs) = MODELS[name]()
    diagnosis = diagnose(model, inputs, LABELS, optimizer="adam:0.01")
    assert (diagnosis.verdict, diagnosis.causes) == ("trains", ())


def test_layers_have_the_names_of_the_users_own_model():
    def paths_of(name):
        model, inputs = MODELS[name]()
        return [layer.path for layer in examine(model, inputs, LABELS).graph.layers]

    paths = {name: paths_of(name) for name in ("equinox dropout", "haiku", "nnx split")}
    assert paths == {
        "equinox dropout": ["conv", "head"],
        "haiku": ["mlp/~/linear_0", "mlp/~/linear_1"],
        "nnx split": ["layers/0"],
    }


def test_the_line_that_a_refusal_says_works_when_it_is_copied():
    model = (lambda p, x: {"mask": x > 0, "logits": x @ p}, KERNEL)
    with pytest.raises(InputError) as refused:
        examine(model, X, LABELS)
    line = str(refused.value).split("outputs=")[1]
    picked = eval(line)  # The line is the test.
    assert examine(model, X, LABELS, outputs=picked).outputs.shape == (ROWS, CLASSES)


def test_a_loss_by_example_or_by_entry_is_averaged():
    def loss(outputs, targets):
        return (outputs - targets[:, None]) ** 2

    targets = zoo.normal(5, ROWS)
    exam = examine((lambda p, x: x @ p, KERNEL), X, targets, loss=loss)
    expected = np.mean((np.asarray(X @ KERNEL) - np.asarray(targets)[:, None]) ** 2)
    chex.assert_trees_all_close(exam.measured.loss, expected, rtol=1e-5)


def test_norms_that_have_seen_nothing_are_taken_in_evaluation_mode():
    """With one place left, means that are all zero hide which axis the channels are."""
    model = nnx.Sequential(
        nnx.Conv(3, 8, (6, 6), padding="VALID", rngs=nnx.Rngs(0)),
        nnx.BatchNorm(8, use_running_average=True, rngs=nnx.Rngs(0)),
        lambda x: nnx.relu(x).reshape(len(x), -1),
        nnx.Linear(8, CLASSES, rngs=nnx.Rngs(1)),
    )
    exam = examine(model, IMAGES.transpose(0, 2, 3, 1), LABELS)
    assert "foreign running averages" not in {each.cause for each in find_causes(exam)}


def test_parameters_may_be_a_module_that_can_be_called():
    params, rest = eqx.partition(Convolution(KEY), eqx.is_inexact_array)

    def apply(params, images):
        return jax.vmap(eqx.combine(params, rest))(images, key=jax.random.split(KEY, ROWS))

    def loss(params, batch):
        return jnp.mean(apply(params, batch) ** 2)

    assert examine((apply, params), IMAGES, LABELS).outputs.shape == (ROWS, CLASSES)
    assert examine(loss, params, IMAGES).outputs.shape == (ROWS, CLASSES)
