"""Steps that diverged are left out as if they had not been, and told."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdnn.layers import BlockOptions
from jaxdnn.models import make_mlp
from jaxdnn.training.step import MAX_IN_A_ROW, is_good, make_init, make_step

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
LABELS = jnp.array([0, 1, 2])
GOOD = [jnp.asarray(RNG.uniform(size=(3, 4)), jnp.float32) for _ in range(3)]
NAN = GOOD[0].at[1, 2].set(jnp.nan)


def machine(on_nan):
    """An initial state, and the compiled step of a network with batch norm and momentum."""
    model = make_mlp((4,), 3, widths=(5,), unit=BlockOptions(norm="batch"))
    optimizer = optax.sgd(0.1, momentum=0.9)
    step = make_step(
        model,
        optimizer,
        prepare=lambda key, images: images,
        class_weights=jnp.ones(3),
        loss_limit=1e3,
        on_nan=on_nan,
    )
    state = make_init(model, optimizer)(KEY)
    compiled = jax.jit(step)
    return state, lambda state, images: compiled(KEY, state, images, LABELS)


def run(on_nan, batches):
    state, step = machine(on_nan)
    for images in batches:
        state = step(state, images)
    return state


def assert_same_training(ours, theirs):
    for name in ("params", "batch_stats", "opt_state", "sums"):
        jax.tree.map(np.testing.assert_array_equal, getattr(ours, name), getattr(theirs, name))


def test_what_is_skipped_leaves_no_trace():
    with_bad = run("skip", [GOOD[0], NAN, GOOD[1], NAN, NAN, GOOD[2]])
    assert_same_training(with_bad, run("skip", GOOD))
    assert int(with_bad.step) == 6
    assert tuple(map(int, with_bad.skipped)) == (3, 0, 5)
    assert not bool(with_bad.diverged)


def test_a_network_that_never_diverges_is_trained_as_ever():
    stop, skip = run("stop", GOOD), run("skip", GOOD)
    # Another program: XLA may round it differently.
    for ours, theirs in zip(jax.tree.leaves(skip), jax.tree.leaves(stop), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_the_learning_rate_is_halved_for_good():
    before = run("halve-lr", [GOOD[0], NAN, NAN])
    _, step = machine("halve-lr")
    after = step(before, GOOD[1])
    _, plain = machine("skip")
    reference = plain(before, GOOD[1])
    moved = jax.tree.map(jnp.subtract, after.params, before.params)
    expected = jax.tree.map(jnp.subtract, reference.params, before.params)
    for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b / 4, rtol=1e-3, atol=1e-7)


def test_too_many_in_a_row_end_the_run():
    state, step = machine("skip")
    state = step(state, GOOD[0])
    for number in range(MAX_IN_A_ROW):
        assert not bool(state.diverged), number
        state = step(state, NAN)
    assert bool(state.diverged)
    jax.tree.map(np.testing.assert_array_equal, state.params, run("skip", GOOD[:1]).params)


@pytest.mark.parametrize(
    ("loss", "grad", "expected"),
    [
        (1.0, 1.0, True),
        (1e3, 1e38, True),
        (1001.0, 1.0, False),
        (jnp.nan, 1.0, False),
        (-jnp.inf, jnp.nan, False),
        (1.0, jnp.nan, False),
        (1.0, jnp.inf, False),
    ],
)
def test_a_step_is_good_where_loss_and_every_gradient_are(loss, grad, expected):
    grads = {"a": jnp.zeros((3, 2)), "b": jnp.zeros(5000).at[4321].set(grad)}
    assert bool(is_good(jnp.float32(loss), grads, 1e3)) is expected
