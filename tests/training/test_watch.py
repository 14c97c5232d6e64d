"""Watching a run: it changes nothing, it measures what a pen would, and it names what broke."""

import dataclasses
import math
from typing import Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.config import Config
from jaxdnn.errors import Interrupted
from jaxdnn.layers import BlockOptions
from jaxdnn.models import make_mlp
from jaxdnn.options import AugmentOptions, ModelOptions, OptimizerOptions, TrainOptions
from jaxdnn.report.training_charts import draw_gradients
from jaxdnn.run_folder import RunFolder, read_evaluations, read_layer_stats, read_metrics
from jaxdnn.training import (
    Recorder,
    Setup,
    TrainState,
    epoch_key,
    init_state,
    make_order_of,
    make_setup,
    make_trainer,
    run_keys,
    seed_keys,
)
from jaxdnn.training.fit import Diverged
from jaxdnn.training.setup import Trainer
from jaxdnn.training.watch import (
    Layer,
    LayerStats,
    Watch,
    describe_first_bad,
    find_problems,
    layers_of,
)

from .runs import dataset, run

EVERY, STEPS_PER_EPOCH = 3, 5
DATASET = dataset(size=4)
OPTIMIZER = OptimizerOptions(momentum=0.9, l2=0.1, clip_norm=1e-3)
MLP = ModelOptions(widths=(6, 4), dropout=0.3, norm="batch")
CONVNET = ModelOptions(model="convnet", widths=(3, 4), norm="layer")
PLAIN = ModelOptions(widths=(6, 4), norm="none", activation="tanh")
RELU = dataclasses.replace(PLAIN, activation="relu")


def make(
    model: ModelOptions,
    *,
    every: int = EVERY,
    optimizer: OptimizerOptions = OPTIMIZER,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> tuple[Setup, Trainer, TrainState]:
    """Make ready a run of ten steps; it augments its images if it drops units out."""
    noisy = AugmentOptions(noise=0.1, horizontal_flip=0.5)
    config = Config(
        model=model,
        optimizer=optimizer,
        augment=noisy if model.dropout else AugmentOptions(),
        train=TrainOptions(
            batch_size=4,
            epochs=2,
            monitor="val/loss",
            checkpoint_seconds=1e6,
            watch_gradients=every,
            precision=precision,
        ),
    )
    setup = make_setup(config, DATASET)
    return setup, make_trainer(setup), init_state(setup)


def watch_of(trainer: Trainer) -> Watch:
    assert trainer.watch is not None
    return trainer.watch


@pytest.fixture(scope="module")
def plain():
    return make(PLAIN)


@pytest.fixture(scope="module")
def fragile():
    """A run that diverges after a few steps."""
    return make(RELU, every=1, optimizer=OptimizerOptions(learning_rate=1e25))


@pytest.mark.slow
@pytest.mark.parametrize("model", [MLP, CONVNET])
def test_watching_changes_nothing_and_survives_an_interruption(model, tmp_path):
    _, trainer, state = make(model)
    unwatched = dataclasses.replace(trainer, watch=None)
    expected = run(state, unwatched, tmp_path / "unwatched")
    actual = run(state, trainer, tmp_path / "watched")
    chex.assert_trees_all_equal(actual.state, expected.state)
    found, wanted = (RunFolder(tmp_path / name).metrics for name in ("watched", "unwatched"))
    assert read_evaluations(found) == read_metrics(wanted)
    assert [line["step"] for line in read_layer_stats(found)] == [1, 3, 6, 9]
    with pytest.raises(Interrupted):
        run(state, trainer, tmp_path / "resumed", stop_after=2)
    resumed = run(state, trainer, tmp_path / "resumed")
    chex.assert_trees_all_equal(resumed.state, expected.state)
    assert RunFolder(tmp_path / "resumed").metrics.read_text() == found.read_text()


def test_options_alone_change_no_parameter(plain):
    """Not only the loop: the programs that the two settings make train alike."""
    _, trainer, state = plain
    _, unwatched, _ = make(PLAIN, every=0)
    assert unwatched.watch is None
    expected = unwatched.train(jax.tree.map(jnp.copy, state), STEPS_PER_EPOCH)
    actual = watch_of(trainer).train(jax.tree.map(jnp.copy, state), STEPS_PER_EPOCH)
    chex.assert_trees_all_equal(actual, expected)


def first_batch(setup: Setup) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of step 1."""
    order_key, _ = run_keys(seed_keys(setup.config.seed)[1])
    batch = np.asarray(make_order_of(setup)(epoch_key(order_key, jnp.int32(0))))[0]
    return setup.dataset.train.images[batch].astype(np.float64), setup.dataset.train.labels[batch]


def rms(x) -> float:
    return float(np.sqrt(np.mean(np.asarray(x, np.float64) ** 2)))


def test_statistics_are_those_of_the_lectures_backward_pass_by_hand(plain):
    setup, trainer, state = plain
    trained = watch_of(trainer).train(jax.tree.map(jnp.copy, state), 1)
    stats = watch_of(trainer).measure(state, 0)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.params)
    kernels = [params["layers"][i]["linear"]["kernel"] for i in (0, 1)] + [params["head"]["kernel"]]
    pixels, labels = first_batch(setup)
    hs = [
        ((pixels / 255 - setup.pixel_stats.mean) / setup.pixel_stats.std).reshape(len(labels), -1)
    ]
    for kernel in kernels[:-1]:
        hs.append(np.tanh(hs[-1] @ kernel))
    logits = hs[-1] @ kernels[-1]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = -np.log(shares[np.arange(len(labels)), labels]).mean()
    chex.assert_trees_all_close(float(trained.sums.loss / len(labels)), loss, rtol=1e-4)
    delta = (shares - np.eye(2)[labels]) / len(labels)
    found = {2: (delta, logits, hs[2].T @ delta, np.ones_like(delta))}
    for layer in (1, 0):
        slope = 1 - hs[layer + 1] ** 2
        delta = (delta @ kernels[layer + 1].T) * slope
        found[layer] = (delta, np.arctanh(hs[layer + 1]), hs[layer].T @ delta, slope)
    for layer, (delta, z, grad, slope) in found.items():
        expected = {
            "delta_rms": rms(delta),
            "pre_activation_rms": rms(z),
            "kernel_grad_rms": rms(grad),
            "kernel_rms": rms(kernels[layer]),
            "slope_rms": rms(slope),
            "dead_fraction": 0.0,
        }
        actual = {name: float(getattr(stats, name)[layer]) for name in expected}
        chex.assert_trees_all_close(actual, expected, rtol=1e-4)


def test_statistics_have_the_precision_of_the_run(plain):
    _, trainer, state = plain
    _, rounded, _ = make(PLAIN, precision="bfloat16")
    exact, rough = (
        np.array([stats.pre_activation_rms, stats.delta_rms])
        for stats in (watch_of(each).measure(state, 0) for each in (trainer, rounded))
    )
    # bfloat16 has 8 binary digits; a few operations lose a few of their last.
    chex.assert_trees_all_close(rough, exact, rtol=16 * 2.0**-8)
    assert (np.abs(rough / exact - 1).max(axis=1) > 2.0**-14).all()


def with_kernel(state, layer: int, change):
    """The state with one hidden kernel changed."""
    params = jax.tree.map(jnp.copy, state.params)
    linear = params["layers"][layer]["linear"]
    linear["kernel"] = change(linear["kernel"])
    return state._replace(params=params)


def test_saturation_is_seen_where_it_is(plain):
    _, trainer, state = plain
    stats = watch_of(trainer).measure(with_kernel(state, 1, lambda kernel: 1e4 * kernel), 0)
    assert stats.saturated_fraction[0] < 0.2
    assert stats.saturated_fraction[1] > 0.9


def test_values_beyond_the_squares_of_float32_are_measured(plain):
    _, trainer, state = plain
    state = with_kernel(state, 0, lambda kernel: 1e-25 * kernel)
    stats = watch_of(trainer).measure(state, 0)
    kernel = np.asarray(state.params["layers"][0]["linear"]["kernel"], np.float64)
    chex.assert_trees_all_close(float(stats.kernel_rms[0]), rms(kernel), rtol=1e-4)
    assert 1e-28 < stats.pre_activation_rms[0] < 1e-23


def test_dead_units_are_seen(fragile):
    _, trainer, state = fragile
    params = jax.tree.map(jnp.copy, state.params)
    bias = params["layers"][1]["linear"]["bias"]
    params["layers"][1]["linear"]["bias"] = bias.at[:3].set(-1e4)
    stats = watch_of(trainer).measure(state._replace(params=params), 0)
    assert stats.dead_fraction[1] >= 0.75
    assert stats.dead_fraction[0] < 1
    assert stats.dead_fraction[2] == 0


def test_layers_come_in_the_order_of_the_network():
    model = make_mlp((2, 2, 1), 3, widths=(5,) * 12, options=BlockOptions())
    layers = layers_of(model, (2, 2, 1))
    assert [layer.path for layer in layers] == [f"layers/{i}" for i in range(12)] + ["head"]
    assert [layer.fan_in for layer in layers[:2]] == [4, 5]
    assert layers[-1].shape == (3,)


def test_the_layer_that_overflows_first_is_named(plain):
    _, trainer, state = plain
    state = with_kernel(state, 1, lambda kernel: jnp.full_like(kernel, 3e38))
    said = watch_of(trainer).first_bad_layer(state, 1)
    assert said == "the first layer that is not finite is layers/1, in its pre-activation"


@pytest.mark.slow
def test_what_was_recorded_is_drawn(plain, tmp_path):
    _, trainer, state = plain
    run(state, trainer, tmp_path)
    draw_gradients(RunFolder(tmp_path), tmp_path / "gradients.png")
    assert (tmp_path / "gradients.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_seen_after_the_step_that_diverged(fragile, tmp_path):
    _, trainer, state = fragile
    state = watch_of(trainer).train(jax.tree.map(jnp.copy, state), STEPS_PER_EPOCH)
    last = int(state.step)
    assert bool(state.diverged)
    assert last < STEPS_PER_EPOCH - 1
    folder = RunFolder(tmp_path)
    with Recorder(folder, num_steps=10, batch_size=4, start=0, progress=False) as recorder:
        watch_of(trainer).record(recorder)
    assert [line["step"] for line in read_layer_stats(folder.metrics)] == list(range(1, last + 1))


def broken(values, value):
    """The values of all layers, those of the first two replaced."""
    return np.where(np.arange(len(values)) < 2, value, values)


def test_a_gradient_that_overflows_is_named_on_its_way_back(plain):
    setup, trainer, first = plain
    stats = watch_of(trainer).measure(first, 0)
    layers = layers_of(setup.model, (4, 4, 1))
    state = with_kernel(first, 0, lambda kernel: kernel * jnp.nan)
    before = stats._replace(kernel_grad_rms=broken(stats.kernel_grad_rms, np.inf))
    said = describe_first_bad(layers, state, before, stats)
    assert "first layer that was not finite is layers/1, in its kernel's gradient" in said
    earlier = before._replace(delta_rms=broken(stats.delta_rms, np.nan))
    said = describe_first_bad(layers, state, earlier, stats)
    assert "layers/1, in its delta, one step before" in said
    said = describe_first_bad(layers, state, stats, stats)
    assert said.startswith("the first parameter that is not finite is layers/0/linear/kernel")
    assert describe_first_bad(layers, first, None, stats).startswith("every layer is")


def test_a_run_that_diverges_says_where_and_records_no_step_that_was_not_taken(fragile, tmp_path):
    _, trainer, state = fragile
    with pytest.raises(Diverged, match=r"the first layer that is not finite is \S+, in") as caught:
        run(state, trainer, tmp_path)
    said = str(caught.value)
    assert "\n" not in said
    step = int(said.split("at step ")[1].split(":")[0])
    lines = read_layer_stats(RunFolder(tmp_path).metrics)
    assert [line["step"] for line in lines] == list(range(1, step + 1))
    # What was measured at that step agrees with the name, and nothing before it was broken.
    bad = said.split("not finite is ")[1].split(",")[0]
    order = ["layers/0", "layers/1", "head"]
    shown = [lines[-1][f"gradients/{path}/pre_activation_rms"] is None for path in order]
    assert order[shown.index(True)] == bad


def test_a_problem_is_told_once_and_in_one_line(plain, tmp_path, capsys):
    _, trainer, state = plain
    zeros = state._replace(params=jax.tree.map(jnp.zeros_like, state.params))
    run(zeros, trainer, tmp_path)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("warning: step 1: delta is zero below head: the kernel of head is zero")


# What statistics say about a network whose problem is known, because it was planted.

DEPTH, WIDTH = 12, 64


def layers(widths=(WIDTH,) * DEPTH) -> list[Layer]:
    paths = [*(f"layers/{i}" for i in range(len(widths))), "head"]
    sizes = [WIDTH, *widths, 2]
    return [Layer(path, (sizes[i + 1],), sizes[i]) for i, path in enumerate(paths)]


def healthy(*, slope=0.7071, gain=1.4142, rest=1.0, widths=(WIDTH,) * DEPTH) -> LayerStats:
    """Statistics of a network whose every layer multiplies delta's length by slope gain rest."""
    num = len(widths) + 1
    slopes, gains, rests = (np.broadcast_to(x, num).astype(float) for x in (slope, gain, rest))
    lengths = np.ones(num)
    for i in range(num - 2, -1, -1):
        lengths[i] = lengths[i + 1] * slopes[i] * gains[i + 1] * rests[i]
    known = layers(widths)
    delta = lengths / [math.sqrt(math.prod(layer.shape)) for layer in known]
    kernels = gains / [math.sqrt(layer.fan_in) for layer in known]
    zeros = np.zeros(num)
    values = (delta, np.ones(num), zeros, zeros + 0.3, delta, kernels, slopes)
    return LayerStats(*values)


def problems(stats: LayerStats, *, bounded=False, widths=(WIDTH,) * DEPTH) -> dict[str, str]:
    return find_problems(layers(widths), stats, bounded=bounded)


def planted(typical: float, odd: float, index: int) -> np.ndarray:
    values = np.full(DEPTH + 1, typical)
    values[index] = odd
    return values


@pytest.mark.parametrize("widths", [(WIDTH,) * DEPTH, (4096, 512, 64, 8), (8, 4096), (7,), ()])
def test_a_healthy_network_has_no_problem_whatever_its_widths(widths):
    assert problems(healthy(widths=widths), bounded=True, widths=widths) == {}


def test_the_scale_of_the_loss_is_no_problem():
    stats = healthy()
    for scale in (1e-20, 1e20):
        scaled = stats._replace(delta_rms=stats.delta_rms * scale)
        assert problems(scaled) == {}


@pytest.mark.parametrize(
    ("stats", "expected"),
    [
        (healthy(slope=0.25), ["vanishes", "activation's slope is the cause", "0.25"]),
        (healthy(gain=0.5), ["vanishes", "the kernels are the cause", "0.5 typically"]),
        (healthy(gain=4.0), ["explodes", "the kernels are the cause", "4 typically"]),
        (healthy(gain=planted(1.4, 1e-4, 5)), ["vanishes", "kernels", "0.0001 in layers/5"]),
        (healthy(gain=planted(1.4, 1e4, 7)), ["explodes", "kernels", "in layers/7"]),
        (healthy(slope=planted(0.7, 1e-4, 4)), ["vanishes", "slope", "0.0001 in layers/4"]),
        (
            healthy(rest=planted(1.0, 1e-4, 3)),
            ["vanishes", "norm, pooling, dropout or branches", "between layers/4 and layers/3"],
        ),
    ],
)
def test_depth_is_told_with_its_cause_and_layer(stats, expected):
    found = problems(stats)
    assert found.keys() == {"depth"}
    for words in expected:
        assert words in found["depth"]
    assert "\n" not in found["depth"]


def test_a_change_of_a_hundred_is_the_limit():
    for total, is_found in ((-1.9, False), (-2.1, True), (1.9, False), (2.1, True)):
        per_layer = 10 ** (total / (DEPTH - 1))
        assert bool(problems(healthy(slope=1.0, gain=per_layer))) == is_found


def test_dead_and_saturated_layers_are_named():
    stats = healthy()
    shares = planted(0.0, 0.97, 3)
    assert "layers/3 is dead: 97%" in problems(stats._replace(dead_fraction=shares))["dead"]
    both = shares + planted(0.0, 0.95, 5)
    assert "layers/3 is dead (and 1 more)" in problems(stats._replace(dead_fraction=both))["dead"]
    saturated = stats._replace(saturated_fraction=shares)
    assert problems(saturated, bounded=False) == {}
    assert "layers/3 is saturated" in problems(saturated, bounded=True)["saturated"]


def test_a_loss_that_is_not_finite_is_no_problem_of_depth():
    stats = healthy()
    assert problems(stats._replace(delta_rms=stats.delta_rms * np.nan)) == {}
