"""Networks that are sound but for their steps or their number format."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdnn.diagnosis import (
    Scales,
    Trials,
    diagnose,
    examine,
    find_causes,
    make_scanned_trial,
    make_trial,
)
from jaxdnn.diagnosis.causes import find_training_causes
from jaxdnn.diagnosis.findings import CERTAIN, FACTOR_SPREAD, NAMED
from jaxdnn.diagnosis.fixes import Fix, FixKind, Tried, step_fixes
from jaxdnn.diagnosis.profile import NUM_SEEDS, bands, redrawn_deltas
from jaxdnn.diagnosis.training_causes import Attempt
from jaxdnn.diagnosis.trial import take_first_step
from tests.diagnosis.zoo import normal

DEPTH, WIDTH, BATCH = 8, 32, 32
INPUTS, TARGETS = normal(50, BATCH, WIDTH), jnp.arange(BATCH) % 4


def cross_entropy(logits, targets):
    logits = logits.astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def times(factor):
    return lambda logits, targets: factor * cross_entropy(logits, targets)


def network(gain=2.0, phi=jax.nn.relu, dtype=jnp.float32, param_dtype=jnp.float32, depth=DEPTH):
    """A network with weights of variance gain / fan_in, that calculates in `dtype`."""
    kernels = [normal(i, WIDTH, WIDTH) * np.sqrt(gain / WIDTH) for i in range(depth)]

    def apply(params, x):
        x = x.astype(dtype)
        for kernel in params[:-1]:
            x = phi(x @ kernel.astype(dtype))
        return x @ params[-1].astype(dtype)

    return apply, [kernel.astype(param_dtype) for kernel in kernels]


def causes(diagnosis):
    return [cause.cause for cause in diagnosis.causes]


@pytest.mark.parametrize(
    ("optimizer", "factor", "cause", "kind"),
    [
        ("sgd:0.1", 1e-12, "learning rate too small", "the learning rate"),
        ("sgd:0.1", 1e6, "learning rate too large", "the learning rate"),
        ("adam:1", 1.0, "learning rate too large", "the learning rate"),
        ("adam:0.001", 1e-12, "gradient below epsilon", "epsilon"),
    ],
)
def test_a_wrong_step_is_named_and_the_right_one_prescribed(optimizer, factor, cause, kind):
    diagnosis = diagnose(network(), INPUTS, TARGETS, loss=times(factor), optimizer=optimizer)
    assert diagnosis.verdict == "will not train"
    assert causes(diagnosis)[0] == cause
    (best, *_) = (each for each in diagnosis.prescriptions if kind in each.change)
    assert best.after > 0.6


def test_the_scale_of_the_loss_is_nothing_to_adam_and_the_rate_to_sgd():
    def scored(rate, factor):
        options = {"loss": times(factor), "try_changes": False}
        return diagnose(network(), INPUTS, TARGETS, optimizer=rate, **options).score_trial

    assert scored("adam:0.001", 1e-3) == pytest.approx(scored("adam:0.001", 1e3), rel=0.02)
    assert scored("sgd:1e-04", 1e3) == pytest.approx(scored("sgd:0.1", 1.0), rel=1e-3)


def test_first_step_of_sgd_and_of_adam_in_closed_form():
    exam = examine(network(), INPUTS, TARGETS, loss=times(1e-6))
    grads, kernels = (np.array(tree, np.float64) for tree in (exam.grads, exam.params))

    def rms(x):
        return np.sqrt(np.mean(x**2, axis=(1, 2)))

    sgd = take_first_step(exam, optax.sgd(0.1))
    np.testing.assert_allclose(sgd.relative, 0.1 * rms(grads) / rms(kernels), rtol=1e-5)
    assert all(map(math.isnan, sgd.shortfall))
    # Clipping by length acts only on gradients longer than these: it makes nothing relative.
    clipped = take_first_step(exam, optax.chain(optax.clip_by_global_norm(10.0), optax.sgd(0.1)))
    assert all(map(math.isnan, clipped.shortfall))
    # The first step of Adam is rate x g / (|g| + epsilon).
    rate, epsilon = 0.01, 1e-6
    adam = take_first_step(exam, optax.adam(rate, eps=epsilon))
    unit = grads / np.sqrt(np.sum(grads**2))
    steps = [rms(rate * g / (np.abs(g) + epsilon)) for g in (grads, unit)]
    np.testing.assert_allclose(adam.relative, steps[0] / rms(kernels), rtol=1e-4)
    np.testing.assert_allclose(adam.shortfall, steps[1] / steps[0], rtol=1e-4)


def test_steps_below_half_a_digit_are_lost():
    def lost(step):
        """Share of float16 ones that keep their value: the next below is 1 - 2^-11."""
        kernel = jnp.ones((4, 4), jnp.float16)
        exam = examine((lambda params, x: x.astype(jnp.float16) @ params, kernel), *DATA)
        grads = np.full((4, 4), step, np.float16)
        return take_first_step(dataclasses.replace(exam, grads=grads), optax.sgd(1.0)).lost[0]

    assert lost(2.0**-11) == 0
    assert lost(2.0**-13) == 1


DATA = normal(0, 4, 4), jnp.arange(4)


def test_trials_by_call_and_in_one_program_agree():
    options = {"loss": cross_entropy, "optimizer": optax.adam(0.01), "num_steps": 5}
    (apply, kernels), key = network(), jax.random.key(0)
    arguments = kernels, INPUTS, TARGETS, key
    called = make_trial(lambda p, x, _: apply(p, x), **options)(*arguments)
    scanned = make_scanned_trial(lambda p, x, _: apply(p, x), **options)(*arguments)
    for one, other in zip(called, scanned, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)


def test_a_loss_scale_changes_nothing_in_float32_and_saves_float16():
    def learnt(optimizer, dtype, scale):
        apply, kernels = network(dtype=dtype)
        trial = make_trial(lambda p, x, _: apply(p, x), times(1e-6), optimizer, num_steps=20)
        loss = trial(kernels, INPUTS, TARGETS, jax.random.key(0), Scales(loss=scale)).loss
        return loss[0] / loss[-1]

    sgd, adam = optax.sgd(3e4), optax.adam(0.01, eps=1e-20)
    plain, scaled = (learnt(sgd, jnp.float32, scale) for scale in (1.0, 2.0**20))
    assert plain > 1.5
    assert scaled == pytest.approx(plain, rel=1e-3)
    # Of 1e-6 times this gradient float16 holds next to nothing.
    assert learnt(adam, jnp.float16, 2.0**20) > 10 * learnt(adam, jnp.float16, 1.0)


def test_float16_ends_where_the_signal_of_float32_passes_its_end():
    deep = {"gain": 32.0, "depth": 12}
    exact = examine(network(**deep), INPUTS, TARGETS)
    _, kernels = network(**deep)
    diagnosis = diagnose(network(dtype=jnp.float16, **deep), INPUTS, TARGETS, loss=cross_entropy)
    assert diagnosis.verdict == "will not train"
    first = diagnosis.causes[0]
    assert first.cause == "not finite"
    x, sizes = INPUTS, []
    for kernel in kernels:
        x = x @ kernel
        sizes.append(float(jnp.abs(x).max()))
        x = jax.nn.relu(x)
    assert int(first.path) == next(i for i, size in enumerate(sizes) if size > 65504)
    # ReLU with gain 32: every layer multiplies by sqrt(16).
    assert "grow by 4" in first.evidence or "grow by 3.9" in first.evidence
    assert "not finite" not in [cause.cause for cause in find_causes(exact)]


def test_a_loss_scale_is_found_beside_a_delta_that_overflows():
    exam = examine(network(), INPUTS, TARGETS)
    first = take_first_step(exam, optax.sgd(0.1))
    numbers = [layer.z for layer in exam.graph.layers]
    deltas = [math.inf, 2.0**-10, 1e-40, *[math.nan] * (DEPTH - 3)]
    mixed = exam.measured._replace(delta=dict(zip(numbers, deltas, strict=True)))
    fixes = step_fixes(dataclasses.replace(exam, measured=mixed), first)
    (scale,) = [each.scales.loss for each in fixes if each.kind is FixKind.LOSS_SCALE]
    assert scale == 2.0**10


def test_underflow_is_named_where_delta_falls_below_the_format():
    small = {"gain": 0.1, "phi": jnp.tanh}
    exact = examine(network(**small), INPUTS, TARGETS)
    narrow = examine(network(dtype=jnp.float16, **small), INPUTS, TARGETS, loss=cross_entropy)
    assert "underflow" not in [cause.cause for cause in find_causes(exact)]
    deltas = [exact.measured.delta[layer.z] for layer in exact.graph.layers]
    below = [i for i, delta in enumerate(deltas) if delta < 2.0**-14]
    (named,) = [cause for cause in find_causes(narrow) if cause.cause == "underflow"]
    assert int(named.path) == max(below)


def test_coarse_parameters_are_named_and_float32_ones_prescribed():
    coarse = network(param_dtype=jnp.bfloat16)
    options = {"loss": cross_entropy, "optimizer": "adam:0.0003"}
    diagnosis = diagnose(coarse, INPUTS, TARGETS, **options)
    assert "step rounded away" in causes(diagnosis)
    assert any("float32" in each.change for each in diagnosis.prescriptions)
    assert diagnose(network(), INPUTS, TARGETS, **options).score_trial > diagnosis.score_trial


def test_inputs_that_grow_alike_are_named():
    diagnosis = diagnose(network(phi=jax.nn.sigmoid, depth=16), INPUTS, TARGETS)
    assert diagnosis.verdict == "will not train"
    assert "inputs look alike" in causes(diagnosis)


def test_a_signal_that_grows_is_named_before_the_rate_that_would_cure_it():
    """Blocks x + relu(W x) of He's weights."""

    def apply(params, x):
        for kernel in params[:-1]:
            x = x + jax.nn.relu(x @ kernel)
        return x @ params[-1]

    kernels = [normal(i, WIDTH, WIDTH) * np.sqrt(2 / WIDTH) for i in range(20)]
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
    exam = examine(network(), INPUTS, TARGETS)
    first = take_first_step(exam, optax.sgd(1e-6))
    rate = Fix("", "", exam.params, Scales(rate=1e5), FixKind.LEARNING_RATE)
    network_fix = Fix("", "", exam.params)
    tried = [Tried(rate, {}, 0.6), Tried(network_fix, {}, network_score)]
    (cause,) = find_training_causes(Attempt(exam, first, tried))
    assert cause.cause == "learning rate too small"
    assert cause.strength == pytest.approx(strength)


def test_wider_parameters_change_nothing_but_the_steps():
    """The network itself still calculates in bfloat16."""
    kernel, types = normal(3, WIDTH, 4).astype(jnp.bfloat16), set()

    def apply(params, x):
        types.add(params.dtype)
        return x.astype(jnp.bfloat16) @ params

    exam = examine((apply, kernel), INPUTS, TARGETS, loss=cross_entropy)
    run = Trials(exam, optax.sgd(1e-3)).program({})
    coarse, fine = (
        run(kernel.astype(dtype), Scales()).loss for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert types == {jnp.dtype(jnp.bfloat16)}
    assert fine[0] == coarse[0]
    assert fine[-1] < coarse[-1]


def test_a_single_output_has_no_angle():
    apply, kernels = network()
    # Of rectified units with weights of one sign every output has the same one.
    single = [*kernels[:-1], jnp.abs(kernels[-1][:, :1])]
    diagnosis = diagnose((apply, single), INPUTS, normal(51, BATCH, 1), optimizer="sgd:1e-06")
    assert causes(diagnosis) == ["learning rate too small"]


def test_weights_that_are_not_finite_are_named():
    apply, kernels = network()
    kernels[3] = kernels[3].at[0, 0].set(jnp.nan)
    diagnosis = diagnose((apply, kernels), INPUTS, TARGETS)
    assert diagnosis.verdict == "will not train"
    assert (diagnosis.causes[0].path, diagnosis.causes[0].cause) == ("3", "not finite")
    assert "weights" in diagnosis.causes[0].evidence


def test_a_band_has_the_scale_of_the_weights_and_shows_what_is_not_chance():
    def examined(change):
        apply, kernels = network(phi=lambda z: z)
        kernels[-1] = change(kernels[-1])
        exam = examine((apply, kernels), INPUTS, TARGETS)
        return exam, bands(exam.graph, redrawn_deltas(exam))

    exam, found = examined(lambda kernel: kernel)
    assert len(found) == DEPTH
    assert NUM_SEEDS > 1
    # A factor of variance 1 / WIDTH around sqrt(2), and 5 standard deviations to either side.
    spread = 5 * math.sqrt(2) / math.sqrt(WIDTH)
    for band in found[:-1]:
        assert math.sqrt(2) - spread < band.factor[0] < band.factor[1] < math.sqrt(2) + spread
    # The gradient of cross-entropy sums to zero over the classes: equal columns let none through.
    exam, found = examined(lambda kernel: jnp.full_like(kernel, kernel.std()))
    deltas = [exam.measured.delta[layer.z] for layer in exam.graph.layers]
    assert deltas[-2] / deltas[-1] < 1e-3 * found[-2].factor[0]
