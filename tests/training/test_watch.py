"""Watching a run: it changes nothing, it measures what a pen would, and it names what broke."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.config import Config
from jaxdnn.data.dataset import Dataset, Split
from jaxdnn.layers import BlockOptions
from jaxdnn.models import make_mlp
from jaxdnn.options import AugmentOptions, ModelOptions, OptimizerOptions, TrainOptions
from jaxdnn.report import draw_gradients
from jaxdnn.run_folder import RunFolder, read_evaluations, read_looks, read_metrics
from jaxdnn.training.checkpoint import Checkpoints
from jaxdnn.training.early_stopping import EarlyStopping
from jaxdnn.training.fit import Diverged, Interrupted, Progress, fit
from jaxdnn.training.keys import epoch_key, run_keys, seed_keys
from jaxdnn.training.look import layers_of
from jaxdnn.training.program import make_program
from jaxdnn.training.recorder import Recorder, SilentRecorder
from jaxdnn.training.setup import Setup, init_state, make_order_of, make_setup
from jaxdnn.training.watch import Watch, describe_first_bad

EVERY, STEPS_PER_EPOCH = 3, 5


def split(num: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    labels = np.arange(num, dtype=np.int32) % 2
    images = rng.integers(0, 200, (num, 4, 4, 1)) + 50 * labels[:, None, None, None]
    return Split(images.astype(np.uint8), labels, tuple(map(str, range(num))))


DATASET = Dataset(("other", "dog"), split(21, 0), split(8, 1), split(8, 2), (), "random")


OPTIMIZER = OptimizerOptions(momentum=0.9, l2=0.1, clip_norm=1e-3)


def config_of(
    model: ModelOptions, *, every: int = EVERY, optimizer: OptimizerOptions = OPTIMIZER
) -> Config:
    return Config(
        model=model,
        optimizer=optimizer,
        augment=AugmentOptions(noise=0.1, horizontal_flip=0.5),
        train=TrainOptions(
            batch_size=4,
            epochs=2,
            monitor="val/loss",
            checkpoint_seconds=1e6,
            watch_gradients=every,
        ),
    )


MLP = ModelOptions(widths=(6, 4), dropout=0.3, norm="batch")
CONVNET = ModelOptions(model="convnet", widths=(3, 4), norm="layer")
PLAIN = ModelOptions(widths=(6, 4), norm="none", activation="tanh")


def run(setup, program, path, *, stop_after: float = math.inf) -> Progress:
    """Start, or resume where the folder's checkpoint left off; stop at so many questions."""
    path.mkdir(exist_ok=True)
    folder, asked = RunFolder(path), 0

    def interrupted() -> bool:
        nonlocal asked
        asked += 1
        return asked >= stop_after

    progress = Progress(init_state(setup), EarlyStopping(greater_is_better=False))
    with Checkpoints(folder.checkpoints) as checkpoints:
        if checkpoints.step("latest") is not None:
            saved = checkpoints.restore("latest", progress.to_arrays())
            progress = progress.resumed(saved["state"], saved["stopping"])
        start = int(progress.state.step)
        with Recorder(folder, num_steps=10, batch_size=4, start=start, progress=False) as recorder:
            return fit(
                progress,
                program,
                recorder=recorder,
                checkpoints=checkpoints,
                interrupted=interrupted,
            )[0]


def watched(model: ModelOptions) -> tuple[Setup, Watch]:
    setup = make_setup(dataclasses.replace(config_of(model), augment=AugmentOptions()), DATASET)
    watch = make_program(setup).watch
    assert watch is not None
    return setup, watch


def assert_same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.fixture(scope="module")
def plain():
    return watched(PLAIN)


@pytest.mark.parametrize("model", [MLP, CONVNET])
def test_watching_changes_nothing_and_survives_an_interruption(model, tmp_path):
    setup = make_setup(config_of(model), DATASET)
    program = make_program(setup)
    unwatched = dataclasses.replace(program, watch=None)
    expected = run(setup, unwatched, tmp_path / "unwatched")
    actual = run(setup, program, tmp_path / "watched")
    assert_same(actual.state, expected.state)
    found, wanted = (RunFolder(tmp_path / name).metrics for name in ("watched", "unwatched"))
    assert read_evaluations(found) == read_metrics(wanted)
    looks = read_looks(found)
    assert [look["step"] for look in looks] == [1, 3, 6, 9]
    with pytest.raises(Interrupted):
        run(setup, program, tmp_path / "resumed", stop_after=2)
    resumed = run(setup, program, tmp_path / "resumed")
    assert_same(resumed.state, expected.state)
    assert RunFolder(tmp_path / "resumed").metrics.read_text() == found.read_text()
    draw_gradients(RunFolder(tmp_path / "watched"), tmp_path / "gradients.png")
    assert (tmp_path / "gradients.png").read_bytes().startswith(b"\x89PNG")


def test_options_alone_change_no_parameter(plain):
    """Not only the loop: the programs that the two settings make train alike."""
    ends = []
    for every in (0, 3):
        setup = make_setup(config_of(PLAIN, every=every), DATASET)
        program = make_program(setup)
        train = program.train if program.watch is None else program.watch.train
        ends.append(train(init_state(setup), STEPS_PER_EPOCH))
    assert_same(*ends)


def first_batch(setup: Setup) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of step 1."""
    order_key, _ = run_keys(seed_keys(setup.config.seed)[1])
    batch = np.asarray(make_order_of(setup)(epoch_key(order_key, jnp.int32(0))))[0]
    return setup.dataset.train.images[batch].astype(np.float64), setup.dataset.train.labels[batch]


def rms(x) -> float:
    return float(np.sqrt(np.mean(np.asarray(x, np.float64) ** 2)))


def test_a_look_is_the_lectures_backward_pass_by_hand(plain):
    setup, watch = plain
    state = init_state(setup)
    trained = watch.train(jax.tree.map(jnp.copy, state), 1)
    look = watch.look(state, 0)
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
    np.testing.assert_allclose(trained.sums.loss / len(labels), loss, rtol=1e-4)
    delta = (shares - np.eye(2)[labels]) / len(labels)
    found = {2: (delta, logits, hs[2].T @ delta, np.ones_like(delta))}
    for layer in (1, 0):
        slope = 1 - hs[layer + 1] ** 2
        delta = (delta @ kernels[layer + 1].T) * slope
        found[layer] = (delta, np.arctanh(hs[layer + 1]), hs[layer].T @ delta, slope)
    for layer, (delta, z, grad, slope) in found.items():
        np.testing.assert_allclose(look.delta_rms[layer], rms(delta), rtol=1e-4)
        np.testing.assert_allclose(look.pre_activation_rms[layer], rms(z), rtol=1e-4)
        np.testing.assert_allclose(look.kernel_grad_rms[layer], rms(grad), rtol=1e-4)
        np.testing.assert_allclose(look.kernel_rms[layer], rms(kernels[layer]), rtol=1e-5)
        np.testing.assert_allclose(look.slope_rms[layer], rms(slope), rtol=1e-4)


def test_a_look_calculates_in_the_precision_of_the_run():
    looks = []
    for precision in ("float32", "bfloat16"):
        config = config_of(PLAIN)
        train = dataclasses.replace(config.train, precision=precision)
        setup = make_setup(
            dataclasses.replace(config, train=train, augment=AugmentOptions()), DATASET
        )
        watch = make_program(setup).watch
        assert watch is not None
        look = watch.look(init_state(setup), 0)
        looks.append(np.array([look.pre_activation_rms, look.delta_rms]))
    # bfloat16 has 8 binary digits; a few operations lose a few of their last.
    np.testing.assert_allclose(looks[1], looks[0], rtol=16 * 2.0**-8)
    assert (np.abs(looks[1] / looks[0] - 1).max(axis=1) > 2.0**-14).all()


def with_kernel(state, layer: int, change):
    """The state with one hidden kernel changed."""
    params = jax.tree.map(jnp.copy, state.params)
    linear = params["layers"][layer]["linear"]
    linear["kernel"] = change(linear["kernel"])
    return state._replace(params=params)


def test_saturation_is_seen_where_it_is(plain):
    setup, watch = plain
    state = with_kernel(init_state(setup), 1, lambda kernel: 1e4 * kernel)
    look = watch.look(state, 0)
    assert look.saturated_fraction[0] < 0.2
    assert look.saturated_fraction[1] > 0.9


def test_values_beyond_the_squares_of_float32_are_measured(plain):
    setup, watch = plain
    state = with_kernel(init_state(setup), 0, lambda kernel: 1e-25 * kernel)
    look = watch.look(state, 0)
    kernel = np.asarray(state.params["layers"][0]["linear"]["kernel"], np.float64)
    np.testing.assert_allclose(look.kernel_rms[0], rms(kernel), rtol=1e-4)
    assert 1e-28 < look.pre_activation_rms[0] < 1e-23


def test_dead_units_are_seen():
    setup, watch = watched(dataclasses.replace(PLAIN, activation="relu"))
    state = init_state(setup)
    params = jax.tree.map(jnp.copy, state.params)
    bias = params["layers"][1]["linear"]["bias"]
    params["layers"][1]["linear"]["bias"] = bias.at[:3].set(-1e4)
    look = watch.look(state._replace(params=params), 0)
    assert look.dead_fraction[1] >= 0.75
    assert look.dead_fraction[0] < 1
    assert look.dead_fraction[2] == 0


def test_layers_come_in_the_order_of_the_network():
    model = make_mlp((2, 2, 1), 3, widths=(5,) * 12, unit=BlockOptions())
    layers = layers_of(model, (2, 2, 1))
    assert [layer.path for layer in layers] == [f"layers/{i}" for i in range(12)] + ["head"]
    assert [layer.fan_in for layer in layers[:2]] == [4, 5]
    assert layers[-1].shape == (3,)


def test_the_layer_that_overflows_first_is_named(plain):
    setup, watch = plain
    state = with_kernel(init_state(setup), 1, lambda kernel: jnp.full_like(kernel, 3e38))
    said = watch.first_bad_layer(state, 1)
    assert said == "the first layer that is not finite is layers/1, in its pre-activation"


class Kept(SilentRecorder):
    """Keeps the steps that a recorder would write."""

    def __init__(self):
        self.steps = []

    def record_look(self, metrics):
        self.steps.append(metrics["step"])

    def warn(self, kind, text):
        pass


def test_nothing_is_seen_after_the_step_that_diverged():
    model = dataclasses.replace(PLAIN, activation="relu")
    config = config_of(model, every=1, optimizer=OptimizerOptions(learning_rate=1e25))
    setup = make_setup(config, DATASET)
    watch = make_program(setup).watch
    assert watch is not None
    state = watch.train(init_state(setup), STEPS_PER_EPOCH)
    last = int(state.step)
    assert bool(state.diverged)
    assert last < STEPS_PER_EPOCH - 1
    kept = Kept()
    watch.record(kept)
    assert kept.steps == list(range(1, last + 1))


def broken(values, value):
    """The values of all layers, those of the first two replaced."""
    return np.where(np.arange(len(values)) < 2, value, values)


def test_a_gradient_that_overflows_is_named_on_its_way_back(plain):
    setup, watch = plain
    look = watch.look(init_state(setup), 0)
    layers = layers_of(setup.model, (4, 4, 1))
    state = with_kernel(init_state(setup), 0, lambda kernel: kernel * jnp.nan)
    before = look._replace(kernel_grad_rms=broken(look.kernel_grad_rms, np.inf))
    said = describe_first_bad(layers, state, before, look)
    assert "first layer that was not finite is layers/1, in its kernel's gradient" in said
    earlier = before._replace(delta_rms=broken(look.delta_rms, np.nan))
    assert "layers/1, in its delta, one step before" in describe_first_bad(
        layers, state, earlier, look
    )
    said = describe_first_bad(layers, state, look, look)
    assert said.startswith("the first parameter that is not finite is layers/0/linear/kernel")
    assert describe_first_bad(layers, init_state(setup), None, look).startswith("every layer is")


def test_a_run_that_diverges_says_where_and_records_no_step_that_was_not_taken(tmp_path):
    model = dataclasses.replace(PLAIN, activation="relu")
    setup = make_setup(
        config_of(model, every=1, optimizer=OptimizerOptions(learning_rate=1e25)), DATASET
    )
    with pytest.raises(Diverged, match=r"the first layer that is not finite is \S+, in") as caught:
        run(setup, make_program(setup), tmp_path)
    said = str(caught.value)
    assert "\n" not in said
    step = int(said.split("at step ")[1].split(":")[0])
    looks = read_looks(RunFolder(tmp_path).metrics)
    assert [look["step"] for look in looks] == list(range(1, step + 1))
    # What the look at that step saw agrees with the name, and nothing before it was broken.
    bad = said.split("not finite is ")[1].split(",")[0]
    order = ["layers/0", "layers/1", "head"]
    shown = [looks[-1][f"gradients/{path}/pre_activation_rms"] is None for path in order]
    assert order[shown.index(True)] == bad


def test_a_problem_is_told_once_and_in_one_line(tmp_path, capsys):
    model = dataclasses.replace(PLAIN, initializer="zeros")
    setup = make_setup(config_of(model, every=1), DATASET)
    run(setup, make_program(setup), tmp_path)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("warning: step 1: delta is zero below head: the kernel of head is zero")
