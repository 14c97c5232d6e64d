"""Frozen features: the same rows however they come, and what is kept of them."""

import dataclasses
import io
import itertools
import zipfile
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from jaxdnn import backbone
from jaxdnn.config import Config
from jaxdnn.data import load
from jaxdnn.errors import InputError, Interrupted
from jaxdnn.options import AugmentOptions, DataOptions, ModelOptions, OptimizerOptions, TrainOptions
from jaxdnn.run_folder import RunFolder
from jaxdnn.training import init_state, load_predictor, make_setup, make_trainer, train
from jaxdnn.training.features import draw_view, plain_view, with_features
from tests.training.runs import flip_a_bit

RNG = np.random.default_rng(0)
SIZE, NUM_VIEWS = 32, 2
FILE = (
    Path(backbone.__file__).parent
    / "data"
    / "efficientnet_lite0"
    / "efficientnet_lite0.safetensors"
)
CONFIG = Config(
    data=DataOptions(
        image_size=SIZE,
        channels=3,
        streaming=True,
        resampling="bicubic",
        validation_fraction=0.25,
        test_fraction=0.25,
    ),
    model=ModelOptions(model="efficientnet_lite0", widths=(), views=NUM_VIEWS),
    optimizer=OptimizerOptions(learning_rate=0.01, momentum=0.9),
    augment=AugmentOptions(horizontal_flip=0.5, rotation=20.0, noise=0.05),
    train=TrainOptions(batch_size=4, epochs=2, monitor="val/loss"),
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A zip of twelve pictures of each of two classes."""
    path = tmp_path_factory.mktemp("photos") / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(24):
            stream = io.BytesIO()
            noise = RNG.integers(0, 256, (5, 6, 3), np.uint8)
            Image.fromarray(noise).resize((48, 40)).save(stream, "PNG")
            archive.writestr(f"{('cat', 'dog')[number % 2]}/{number:02}.png", stream.getvalue())
    return path


@pytest.fixture
def config(photos, tmp_path):
    """Settings for a copy of the pictures, so that what is kept with them is this test's own."""
    path = tmp_path / "photos.zip"
    path.write_bytes(photos.read_bytes())
    data = dataclasses.replace(CONFIG.data, data=str(path), positive=("dog",))
    return dataclasses.replace(CONFIG, data=data)


def changed(config, **options):
    """Change settings of the network, the images or the run."""
    for stage in ("data", "model", "optimizer", "augment", "train"):
        own = {name for name in options if hasattr(getattr(config, stage), name)}
        new = dataclasses.replace(
            getattr(config, stage), **{name: options.pop(name) for name in own}
        )
        config = dataclasses.replace(config, **{stage: new})
    return dataclasses.replace(config, **options)


def computed(config, **options):
    setup = make_setup(config, load(config.images, seed=config.seed))
    return with_features(setup, **options)


def rows_of(config, **options):
    setup, about = computed(config, **options)
    return [images.in_memory() for images in setup.inputs.splits], about


def kept(config, ending="u8"):
    path = Path(config.data.data)
    return sorted(path.with_name(f".{path.name}.jaxdnn").glob(f"features-*.{ending}"))


def test_rows_are_what_the_frozen_blocks_make_of_the_images(config):
    setup, about = computed(config)
    train, validation, test = (images.in_memory() for images in setup.inputs.splits)
    assert [rows.shape for rows in (train, validation, test)] == [
        (14, 1 + NUM_VIEWS, 1280),
        (4, 1, 1280),
        (6, 1, 1280),
    ]
    assert about["features_computed"] == 14 * 3 + 4 + 6
    assert about["frozen_parameters"] == 3_371_008
    folded = backbone.fold_norms(backbone.load_weights())
    pixels = jnp.asarray(setup.dataset.test.images[np.arange(6)])
    expected = jax.jit(backbone.make_lower(0))(folded, backbone.scale_pixels(pixels))
    chex.assert_trees_all_close(plain_view(jnp.asarray(test)), expected, rtol=2e-3, atol=2e-3)
    assert all(np.abs(train[:, 0] - train[:, view]).max() > 0.1 for view in (1, 2))
    assert np.abs(train[:, 1] - train[:, 2]).max() > 0.1


def test_what_is_kept_is_found_again_to_the_bit(config):
    rows, _ = rows_of(config)
    again, about = rows_of(config)
    assert (about["features_computed"], about["features_cached"]) == (0, 52)
    chex.assert_trees_all_equal(again, rows)


def test_a_row_is_the_same_in_whatever_batch_it_comes(config):
    rows, _ = rows_of(config)
    for path in kept(config, "sums"):
        sums = np.fromfile(path, np.uint32)
        sums[::3] = 0
        sums.tofile(path)
    again, about = rows_of(config)
    assert 0 < about["features_computed"] < 52
    chex.assert_trees_all_equal(again, rows)


def test_a_damaged_row_is_computed_anew(config):
    rows, _ = rows_of(config)
    for path in kept(config):
        path.write_bytes(flip_a_bit(path.read_bytes()))
    again, about = rows_of(config)
    assert 1 <= about["features_computed"] <= len(kept(config))
    chex.assert_trees_all_equal(again, rows)


def test_a_view_follows_from_the_seed_and_another_seed_keeps_the_plain_rows(config):
    rows, _ = rows_of(config)
    uncached, about = rows_of(changed(config, cache_gib=0.0))
    assert about["features_computed"] == 52
    chex.assert_trees_all_equal(uncached, rows)
    _, about = rows_of(dataclasses.replace(config, seed=1))
    assert about["features_computed"] == 14 * NUM_VIEWS


@pytest.mark.parametrize(
    ("options", "num_computed"),
    [
        ({"resampling": "bilinear"}, 52),
        pytest.param({"channels": 1}, 52, marks=pytest.mark.slow),
        pytest.param({"image_size": 40}, 52, marks=pytest.mark.slow),
        ({"rotation": 10.0}, 28),
        pytest.param({"views": NUM_VIEWS + 1}, 14, marks=pytest.mark.slow),
    ],
)
def test_only_what_depends_on_a_setting_is_computed_again(config, options, num_computed):
    rows_of(config)
    _, about = rows_of(changed(config, **options))
    assert about["features_computed"] == num_computed


def test_an_interrupted_pass_goes_on_where_it_was(config):
    asked = itertools.count(1)
    with pytest.raises(Interrupted):
        computed(config, interrupted=lambda: next(asked) == 2)
    rows, about = rows_of(config)
    assert about["features_cached"] == 14
    chex.assert_trees_all_equal(rows, rows_of(changed(config, cache_gib=0.0))[0])


def test_a_step_draws_any_view_and_evaluation_takes_the_plain_one():
    rows = jnp.arange(3, dtype=jnp.float16)[None, :, None] * jnp.ones((300, 1, 2), jnp.float16)
    drawn = draw_view(jax.random.key(0), rows)
    chex.assert_shape(drawn, (300, 2))
    # Each of three views with probability 1/3: 100 of 300, a standard deviation of 8.2.
    assert all(abs(int((drawn[:, 0] == view).sum()) - 100) < 41 for view in range(3))
    chex.assert_trees_all_equal(draw_view(jax.random.key(0), rows), drawn)
    chex.assert_trees_all_equal(plain_view(rows), jnp.zeros((300, 2)))


def run(config, path, **options):
    path.mkdir(exist_ok=True)
    return train(config, RunFolder(path), progress=False, **options)


@pytest.mark.parametrize("unfreeze", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_goes_on_to_the_bit_and_its_predictor_gives_its_predictions(
    config, tmp_path, unfreeze
):
    weights = tmp_path / "other.safetensors"
    tensors = load_file(FILE)
    tensors["_bn1.bias"] = tensors["_bn1.bias"] + 0.1
    save_file(tensors, weights)
    config = changed(config, unfreeze=unfreeze, pretrained=str(weights))
    whole = run(config, tmp_path / "whole")
    asked = itertools.count(1)
    # The rows are there by now, so that it is asked only between calls of the loop.
    with pytest.raises(Interrupted):
        run(config, tmp_path / "again", interrupted=lambda: next(asked) == 3)
    again = run(config, tmp_path / "again")
    assert again["params_sha256"] == whole["params_sha256"]
    folder = RunFolder(tmp_path / "whole")
    with np.load(folder.predictions) as arrays:
        expected = arrays["probabilities"]
    predictor = load_predictor(folder)
    assert (predictor.resampling, predictor.image_size, predictor.channels) == ("bicubic", SIZE, 3)
    test = load(config.images, seed=config.seed).test.images
    found = predictor.predict(test[np.arange(len(expected))])
    chex.assert_trees_all_close(found, expected, atol=2e-4)
    weights.write_bytes(FILE.read_bytes())
    with pytest.raises(InputError, match="not those it was trained with"):
        load_predictor(folder)


def test_only_the_last_blocks_move_and_only_once_the_head_was_trained(config):
    config = changed(config, unfreeze=1, head_epochs=1, momentum=None)
    setup, _ = computed(config)
    trainer, start = make_trainer(setup), init_state(setup)
    assert set(start.params["backbone"]["blocks"]) == {"15"}
    params, batch_stats = jax.tree.map(np.asarray, (start.params, start.batch_stats))
    state = trainer.train(start, setup.steps_per_epoch)
    chex.assert_trees_all_equal(state.params["backbone"], params["backbone"])
    assert np.abs(state.params["head"]["kernel"] - params["head"]["kernel"]).max() > 0
    state = trainer.train(state, setup.steps_per_epoch)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, params)
    assert min(map(float, jax.tree.leaves(moved))) > 0
    chex.assert_trees_all_equal(state.batch_stats, batch_stats)


def test_rows_that_do_not_fit_in_memory_are_refused_before_they_are_made(config):
    with pytest.raises(InputError, match=r"24 images and views.*GiB; lower --unfreeze") as raised:
        computed(changed(config, unfreeze=2, views=0, max_memory_gib=1e-6))
    assert "\n" not in str(raised.value)
