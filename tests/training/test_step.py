"""One step against a step by hand, many steps in one program against single ones, and steps that
diverged, which are left out as if they had not been.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdnn.layers import BlockOptions
from jaxdnn.models import make_mlp
from jaxdnn.training.step import (
    MAX_IN_A_ROW,
    Skipped,
    Sums,
    TrainState,
    Variables,
    is_good,
    make_indices,
    make_init,
    make_loss,
    make_step,
    make_train,
    mix,
)

NUM, BATCH, STEPS = 12, 3, 4  # images, batch size, steps in an epoch
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.integers(0, 256, (NUM, 2, 2, 1), np.uint8))
LABELS = jnp.arange(NUM) % 3
KEY = jax.random.key(0)
ORDER = jnp.asarray(RNG.permutation(NUM).reshape(STEPS, BATCH), jnp.int32)
LEARNING_RATE = 0.5


def rows(images) -> np.ndarray:
    return np.asarray(images, np.float64).reshape(len(images), -1) / 255


def prepare(key, images):
    return images.astype(jnp.float32) / 255


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def classifier(weights=(1.0, 1.0, 1.0), *, prepare=prepare, limit=1e3, rate=LEARNING_RATE, **given):
    """The init and step of a linear classifier, or of one hidden layer where options are given."""
    options = BlockOptions(**given) if given else None
    model = make_mlp((2, 2, 1), 3, widths=(4,) if given else (), options=options)
    optimizer = optax.sgd(rate)
    loss_of = make_loss(model, jnp.array(weights))
    step = make_step(loss_of, optimizer, prepare=prepare, loss_limit=limit)
    return jax.jit(make_init(model, optimizer))(jax.random.key(1)), step


def trainer(step, order=lambda key: ORDER, *, images=IMAGES, labels=LABELS):
    indices_of = make_indices(order, key=KEY)
    return make_train(step, indices_of, images, labels, key=KEY, steps_per_epoch=STEPS)


def steps_of(train, state, *counts):
    """Train in calls of so many steps each, from a copy, because the state is donated."""
    state = jax.tree.map(jnp.copy, state)
    for count in counts:
        state = train(state, count)
    return state


def by_hand(parameters, indices, weights=(1.0, 1.0, 1.0)):
    """One SGD step of the linear classifier in float64; the loss and correct answers before it."""
    kernel, bias = parameters
    x, labels = rows(IMAGES[indices]), np.asarray(LABELS[indices])
    shares = softmax(x @ kernel + bias)
    w = np.asarray(weights)[labels]
    losses = -np.log(shares[np.arange(len(x)), labels])
    delta = w[:, None] * (shares - np.eye(3)[labels]) / len(x)
    new = kernel - LEARNING_RATE * x.T @ delta, bias - LEARNING_RATE * delta.sum(axis=0)
    return new, np.mean(w * losses), np.sum(shares.argmax(axis=1) == labels)


def start(state):
    head = state.params["head"]
    return np.asarray(head["kernel"], np.float64), np.asarray(head["bias"], np.float64)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 1.0, 3.0)])
def test_steps_and_sums_are_those_by_hand(weights):
    state, step = classifier(weights)
    end = steps_of(trainer(step), state, 3)
    parameters = start(state)
    loss_sum, num_correct = 0.0, 0
    for indices in np.asarray(ORDER)[:3]:
        parameters, loss, correct = by_hand(parameters, indices, weights)
        loss_sum, num_correct = loss_sum + BATCH * loss, num_correct + correct
    chex.assert_trees_all_close(start(end), parameters, rtol=1e-4, atol=1e-6)
    assert float(end.sums.loss) == pytest.approx(loss_sum, rel=1e-5)
    assert int(end.sums.num_correct) == num_correct
    assert int(end.sums.num_examples) == 3 * BATCH
    assert int(end.step) == 3
    assert not bool(end.diverged)


def test_a_class_of_weight_0_teaches_nothing():
    state, step = classifier((0.0, 1.0, 1.0))
    zeros = jnp.flatnonzero(LABELS == 0)[:BATCH]
    end = steps_of(trainer(step, lambda key: jnp.tile(zeros, (STEPS, 1))), state, 1)
    chex.assert_trees_all_equal(end.params, state.params)
    assert float(end.sums.loss) == 0


def test_calls_within_an_epoch_do_not_show_and_the_program_is_traced_once():
    @chex.assert_max_traces(n=1)
    def noisy(key, images):
        return images / 255 + 0.1 * jax.random.normal(key, images.shape)

    state, step = classifier(prepare=noisy, norm="batch", dropout=0.5)
    train = trainer(step)
    whole = steps_of(train, state, 4)
    for counts in ((1, 1, 1, 1), (2, 2), (3, 1), (1, 100)):
        chex.assert_trees_all_equal(steps_of(train, state, *counts), whole)


def test_a_call_ends_with_the_epoch_and_sums_start_again():
    state, step = classifier()
    train = trainer(step)
    epoch = steps_of(train, state, 100)
    assert (int(epoch.step), int(epoch.sums.num_examples)) == (STEPS, NUM)
    more = steps_of(train, state, 100, 1)
    assert (int(more.step), int(more.sums.num_examples)) == (STEPS + 1, BATCH)
    _, loss, correct = by_hand(start(epoch), np.asarray(ORDER)[0])
    assert float(more.sums.loss) == pytest.approx(BATCH * loss, rel=1e-5)
    assert int(more.sums.num_correct) == correct


def test_divergence_stops_at_its_step():
    bad_step = 2
    images = jnp.full_like(IMAGES, 100).at[ORDER[bad_step, 1]].set(255)  # read as NaN

    def poisoned(key, images):
        return jnp.where(images == 255, jnp.nan, images / 255)

    state, step = classifier(prepare=poisoned)
    train = trainer(step, images=images)
    end = train(state, STEPS)
    assert bool(end.diverged)
    assert int(end.step) == bad_step + 1
    chex.assert_trees_all_equal(train(jax.tree.map(jnp.copy, end), STEPS), end)


def test_a_loss_beyond_the_limit_is_divergence():
    state, _ = classifier()
    losses, parameters = [], start(state)
    for indices in np.asarray(ORDER):
        parameters, loss, _ = by_hand(parameters, indices)
        losses.append(loss)
    worst = int(np.argmax(losses))
    limit = sorted(losses)[-2] / 2 + losses[worst] / 2
    end = steps_of(trainer(classifier(limit=limit)[1]), state, STEPS)
    assert bool(end.diverged)
    assert int(end.step) == worst + 1
    end = steps_of(trainer(classifier(limit=losses[worst] * 1.001)[1]), state, STEPS)
    assert not bool(end.diverged)


def noting_state(num_steps):
    """A state whose parameters are a log of the images that each step was given."""
    log = jnp.full((num_steps, BATCH), -1)
    return TrainState(jnp.int32(0), log, {}, {}, Sums.zero(), jnp.bool_(False), Skipped.none())


def note(key, state, images, labels):
    return state._replace(step=state.step + 1, params=state.params.at[state.step].set(labels))


def test_every_epoch_has_an_order_of_its_own_with_every_image():
    def shuffle(key):
        return jax.random.permutation(key, NUM).reshape(STEPS, BATCH)

    train = trainer(note, shuffle, labels=jnp.arange(NUM))
    state = noting_state(3 * STEPS)
    for _ in range(3):
        state = train(state, 100)
    epochs = np.asarray(state.params).reshape(3, NUM)
    for epoch in epochs:
        assert sorted(epoch) == list(range(NUM))
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[1] != epochs[2]).any()
    again = noting_state(3 * STEPS)
    for count in (1, 2, 1, 3, 1, 4):
        again = train(again, count)
    chex.assert_trees_all_equal(np.asarray(again.params).reshape(3, NUM), epochs)


def test_every_step_has_randomness_of_its_own():
    drawn = []

    def spy(key, images):
        jax.debug.callback(lambda bits: drawn.append(int(bits)), jax.random.bits(key))
        return images / 255

    state, step = classifier(prepare=spy)
    train = trainer(step)
    steps_of(train, state, STEPS, STEPS)
    jax.effects_barrier()
    assert len(set(drawn)) == 2 * STEPS
    first = list(drawn)
    steps_of(train, state, 1, STEPS, STEPS)
    jax.effects_barrier()
    assert drawn[len(first) :] == first


CLASSES = jnp.array([0, 1, 2])
DECAY = 0.7
BATCHES = [jnp.asarray(RNG.uniform(size=(3, 4)), jnp.float32) for _ in range(3)]
NAN = BATCHES[0].at[1, 2].set(jnp.nan)


@functools.cache
def machine(on_nan):
    """An initial state, and the compiled step of a network with batch norm and momentum."""
    model = make_mlp((4,), 3, widths=(5,), options=BlockOptions(norm="batch"))
    optimizer = optax.sgd(0.1, momentum=0.9)
    step = make_step(
        make_loss(model, jnp.ones(3)),
        optimizer,
        prepare=lambda key, images: images,
        loss_limit=1e3,
        on_nan=on_nan,
        ema_decay=DECAY,
    )
    state = make_init(model, optimizer, averages=True)(KEY)
    compiled = jax.jit(step)
    return state, lambda state, images: compiled(KEY, state, images, CLASSES)


def run(on_nan, batches):
    state, step = machine(on_nan)
    for images in batches:
        state = step(state, images)
    return state


def assert_same_training(ours, theirs):
    for name in ("params", "batch_stats", "opt_state", "sums", "average"):
        chex.assert_trees_all_equal(getattr(ours, name), getattr(theirs, name))


def test_what_is_skipped_leaves_no_trace():
    with_bad = run("skip", [BATCHES[0], NAN, BATCHES[1], NAN, NAN, BATCHES[2]])
    assert_same_training(with_bad, run("skip", BATCHES))
    assert int(with_bad.step) == 6
    assert tuple(map(int, with_bad.skipped)) == (3, 0, 5)
    assert not bool(with_bad.diverged)


def test_a_network_that_never_diverges_is_trained_as_ever():
    stop, skip = run("stop", BATCHES), run("skip", BATCHES)
    # Another program: XLA may round it differently.
    chex.assert_trees_all_close(skip, stop, rtol=1e-5, atol=1e-7)


def test_the_learning_rate_is_halved_for_good():
    before = run("halve-lr", [BATCHES[0], NAN, NAN])
    _, step = machine("halve-lr")
    after = step(before, BATCHES[1])
    _, plain = machine("skip")
    reference = plain(before, BATCHES[1])
    moved = jax.tree.map(jnp.subtract, after.params, before.params)
    expected = jax.tree.map(jnp.subtract, reference.params, before.params)
    quarter = jax.tree.map(lambda leaf: leaf / 4, expected)
    chex.assert_trees_all_close(moved, quarter, rtol=1e-3, atol=1e-7)


def test_too_many_in_a_row_end_the_run():
    state, step = machine("skip")
    state = step(state, BATCHES[0])
    for number in range(MAX_IN_A_ROW):
        assert not bool(state.diverged), number
        state = step(state, NAN)
    assert bool(state.diverged)
    chex.assert_trees_all_equal(state.params, run("skip", BATCHES[:1]).params)


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


def test_the_average_is_that_of_the_networks_after_each_step():
    """sum of decay^(steps since) times the network, over the same sum of ones; statistics too."""
    state, step = machine("stop")
    networks = []
    for images in BATCHES:
        state = step(state, images)
        networks.append(jax.tree.map(np.float64, state.variables))
    powers = DECAY ** np.arange(len(networks))[::-1]

    def averaged(*leaves):
        return sum(p * leaf for p, leaf in zip(powers, leaves, strict=True)) / powers.sum()

    expected = jax.tree.map(averaged, *networks)
    chex.assert_trees_all_close(state.evaluated, expected, rtol=1e-5, atol=1e-7)
    assert (
        float(
            jnp.abs(state.evaluated.params["head"]["kernel"] - state.params["head"]["kernel"]).max()
        )
        > 0
    )
    first = step(machine("stop")[0], BATCHES[0])
    chex.assert_trees_all_close(first.evaluated, first.variables, rtol=1e-6)


def test_to_average_changes_nothing_in_training():
    state, step = machine("stop")
    plain = state._replace(average=None)
    for images in BATCHES:
        state, plain = step(state, images), step(plain, images)
    chex.assert_trees_all_equal(plain, state._replace(average=None))
    assert plain.evaluated is not None
    chex.assert_trees_all_equal(plain.evaluated, plain.variables)


LINEAR = make_mlp((4,), 3, widths=())
WEIGHTS = jnp.array([1.0, 2.0, 0.5])


def loss_and_gradient(images, labels, **given):
    """Of a linear classifier on given images; the loss is weighed by class."""
    params, stats = LINEAR.init(KEY)
    loss_of = make_loss(LINEAR, WEIGHTS, **given)
    return jax.jit(
        jax.value_and_grad(lambda p: loss_of(Variables(p, stats), KEY, images, labels)[0])
    )(params)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_neither_smoothing_nor_mixup_at_0_changes_a_bit(dtype):
    plain = loss_and_gradient(BATCHES[0], CLASSES, dtype=dtype)
    same = loss_and_gradient(BATCHES[0], CLASSES, dtype=dtype, label_smoothing=0.0, mixup=0.0)
    chex.assert_trees_all_equal(plain, same)


def test_a_smoothed_loss_is_the_mean_over_the_labels_that_it_may_be():
    """(1 - s) loss(label) + s / k sum over all classes of loss(class), each under its weight."""
    share = 0.3
    found = loss_and_gradient(BATCHES[0], CLASSES, label_smoothing=share)
    plain = loss_and_gradient(BATCHES[0], CLASSES)
    each = [loss_and_gradient(BATCHES[0], jnp.full(3, label)) for label in range(3)]
    expected = jax.tree.map(lambda p, *e: (1 - share) * p + share * sum(e) / 3, plain, *each)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_loss_of_mixed_images_is_the_convex_combination_of_both_labels_losses():
    images = jnp.asarray(RNG.uniform(size=(16, 4)), jnp.float32)
    labels = jnp.asarray(RNG.integers(0, 3, 16))
    _, mix_key = jax.random.split(KEY)
    mixed, targets = mix(mix_key, images, jnp.eye(16), 0.4)
    others = np.asarray(jnp.where(jnp.eye(16) > 0, 0, targets).argmax(1))
    share = float((targets * (1 - jnp.eye(16))).sum(1).max())
    found = loss_and_gradient(images, labels, mixup=0.4)
    own, partner = loss_and_gradient(mixed, labels), loss_and_gradient(mixed, labels[others])
    # Where an image meets itself, both labels are one.
    expected = jax.tree.map(lambda a, b: (1 - share) * a + share * b, own, partner)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


def test_mixed_images_are_shares_of_two_and_the_greater_share_keeps_its_label():
    images = jnp.asarray(RNG.uniform(size=(16, 2, 2, 1)), jnp.float32)
    shares = []
    for key in jax.random.split(KEY, 200):
        mixed, targets = mix(key, images, jnp.eye(16), 1.0)
        chex.assert_trees_all_close(mixed, jnp.einsum("ij,j...->i...", targets, images), atol=1e-6)
        chex.assert_trees_all_close(targets.sum(0), jnp.ones(16), rtol=1e-5)
        chex.assert_trees_all_close(targets.sum(1), jnp.ones(16), rtol=1e-5)
        assert (targets.diagonal() >= 0.5).all()
        shares.append(float(1 - targets.diagonal().min()))
    # The lesser part of a stick broken anywhere: uniform in [0, 1/2], mean 1/4, variance 1/48.
    assert np.mean(shares) == pytest.approx(1 / 4, abs=4 * np.sqrt(1 / 48 / 200))
