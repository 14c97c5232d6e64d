"""Settings: what cannot work is refused in one line, and JSON gives the same settings back."""

import ast
import dataclasses
import inspect
import itertools
import json
import math
from typing import Any

import pytest

from jaxdnn.config import Config, differences, load_config, save_config
from jaxdnn.errors import InputError
from jaxdnn.options import (
    AugmentOptions,
    DataOptions,
    ModelOptions,
    OptimizerOptions,
    TrainOptions,
)
from jaxdnn.recipes import RECIPES

CHANGED = Config(
    data=DataOptions(data="photos.zip", positive=("dog", "wolf"), image_size=227, channels=1),
    model=ModelOptions(widths=(5, 3), activation="elu", alpha=0.5, initializer="xavier", gain=2.0),
    optimizer=OptimizerOptions(schedule="cosine_decay", momentum=0.9, nesterov=True, clip_norm=1.0),
    augment=AugmentOptions(rotation=15.0, random_crop=2),
    train=TrainOptions(batch_size="full", patience=3),
    seed=7,
)
EMPTY = Config(data=DataOptions(positive=()), model=ModelOptions(widths=()))


@pytest.mark.parametrize("config", [Config(), CHANGED, EMPTY, *RECIPES.values()])
def test_json_gives_the_same_settings_back(tmp_path, config):
    path = tmp_path / "config.json"
    save_config(config, path)
    loaded = load_config(path)
    assert loaded == config
    assert differences(loaded, config) == []
    assert isinstance(loaded.model.widths, tuple)
    json.loads(path.read_text(), parse_constant=pytest.fail)  # no NaN, no Infinity


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1  # pyrefly: ignore


@pytest.mark.parametrize(
    "stage", [DataOptions, ModelOptions, OptimizerOptions, AugmentOptions, TrainOptions]
)
def test_every_field_is_documented(stage):
    (definition,) = ast.parse(inspect.getsource(stage)).body
    assert isinstance(definition, ast.ClassDef)
    for field, after in itertools.pairwise(definition.body):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(after, ast.Expr) or "Doc(" in ast.unparse(field.annotation)


def test_differences_name_every_setting_that_differs():
    other = dataclasses.replace(CHANGED, seed=8, train=TrainOptions(batch_size=16, patience=3))
    assert differences(CHANGED, other) == ["batch_size: full, 16", "seed: 7, 8"]


def pretrained(**options: Any) -> ModelOptions:
    return ModelOptions(model="efficientnet_lite0", **options)


def changed(name: str, value: Any) -> str:
    """The settings as stored, with one of them changed."""
    stored = dataclasses.asdict(Config())
    (stage,) = (part for part in stored.values() if isinstance(part, dict) and name in part)
    stage[name] = value
    return json.dumps(stored)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "is damaged"),
        ("{", "is damaged"),
        ("[1]", r"is damaged \(the whole is \[1\], expected dict"),
        (changed("epochs", 6.5), r"damaged \(epochs is 6\.5, expected int\); put back"),
        (changed("widths", "512"), r"damaged \(widths is '512', expected tuple\[int"),
        (changed("batch_size", True), "batch_size is True, expected int"),
        (changed("learning_rate", None), "learning_rate is None, expected float"),
        ("{}", "another version"),
        (json.dumps({**dataclasses.asdict(Config()), "speed": 1}), r"another version \(speed\)"),
        (json.dumps({**dataclasses.asdict(Config()), "data": None}), "another version"),
        (json.dumps({**dataclasses.asdict(Config()), "seed": -1}), "--seed is -1"),
    ],
)
def test_what_is_not_a_config_is_refused_in_one_line(tmp_path, content, expected):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(InputError, match=expected) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_a_missing_config_names_the_path(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.json"):
        load_config(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("kind", "field", "bad"),
    [
        (DataOptions, "image_size", [0, -1]),
        (DataOptions, "validation_fraction", [0.0, 1.0, math.nan]),
        (DataOptions, "test_fraction", [0.0, 1.5]),
        (DataOptions, "max_unreadable", [-0.1, 1.1]),
        (ModelOptions, "widths", [(0,), (5, -1)]),
        (ModelOptions, "blocks", [-1]),
        (ModelOptions, "stem", [0, -1]),
        (ModelOptions, "dropout", [-0.1, 1.0, math.nan]),
        (ModelOptions, "norm_momentum", [-0.1, 1.0]),
        (OptimizerOptions, "learning_rate", [-1.0, math.inf, math.nan]),
        (OptimizerOptions, "l2", [-1.0]),
        (OptimizerOptions, "l1", [-1.0]),
        (OptimizerOptions, "warmup_steps", [-1]),
        (OptimizerOptions, "momentum", [-0.1, 1.0]),
        (OptimizerOptions, "decay_steps", [0]),
        (OptimizerOptions, "decay_rate", [0.0, -1.0, math.nan]),
        (OptimizerOptions, "clip_norm", [0.0, -1.0]),
        (AugmentOptions, "brightness", [-0.1, 1.1]),
        (AugmentOptions, "contrast", [-0.1, 1.1]),
        (AugmentOptions, "saturation", [-0.1, 1.1]),
        (AugmentOptions, "horizontal_flip", [-0.1, 1.1]),
        (AugmentOptions, "vertical_flip", [-0.1, 1.1]),
        (AugmentOptions, "random_scale", [-0.1, 0.95]),
        (AugmentOptions, "random_crop", [-1]),
        (AugmentOptions, "rotation", [-1.0, 181.0]),
        (AugmentOptions, "noise", [-0.1, math.nan]),
        (TrainOptions, "batch_size", [0, -5]),
        (TrainOptions, "epochs", [0]),
        (TrainOptions, "patience", [0]),
        (TrainOptions, "evaluate_every", [0]),
        (TrainOptions, "min_improvement", [-0.1]),
        (TrainOptions, "checkpoint_seconds", [-1.0]),
        (TrainOptions, "divergence_factor", [0.5]),
        (Config, "seed", [-1, 2**31]),
    ],
)
def test_a_value_out_of_range_names_its_flag_and_itself(kind, field, bad):
    for value in bad:
        with pytest.raises(InputError) as caught:
            kind(**{field: value})
        message = str(caught.value)
        assert "--" + field.replace("_", "-") in message
        assert (
            " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        ) in message or (not math.isfinite(value))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: DataOptions(data_dir="x"), "--data-dir is for --data tfds:NAME"),
        (lambda: ModelOptions(model="convnet", widths=()), "at least one stage"),
        (lambda: ModelOptions(norm="none", norm_statistics="training_set"), "is for --norm batch"),
        (lambda: ModelOptions(initializer="pretrained"), "needs --pretrained PATH"),
        (lambda: ModelOptions(pretrained="x.npz"), "goes with --initializer pretrained"),
        (lambda: ModelOptions(activation="rellu"), "did you mean 'relu'"),
        (lambda: ModelOptions(activation="relu", alpha=1.0), "has no parameter alpha"),
        (lambda: ModelOptions(activation="rrelu", lower=0.9), "exceeds upper"),
        (lambda: ModelOptions(initializer="he"), None),
        (lambda: ModelOptions(initializer="hee"), "unknown initializer 'hee'"),
        (lambda: ModelOptions(initializer="he_normal", scale=1.0), "has no scale"),
        (lambda: OptimizerOptions(nesterov=True), "give a --momentum above 0"),
        (lambda: OptimizerOptions(optimizer="adam", nesterov=True), None),
        (lambda: OptimizerOptions(schedule="constant", decay_steps=5), "--decay-steps is for"),
        (lambda: OptimizerOptions(schedule="cosine_decay", staircase=True), "--staircase is for"),
        (
            lambda: Config(data=DataOptions(channels=1), augment=AugmentOptions(saturation=0.5)),
            "--saturation needs colour",
        ),
        (lambda: ModelOptions(unfreeze=2), "--unfreeze is for --model efficientnet_lite0, not mlp"),
        (lambda: ModelOptions(dog_head=False, views=1), "--views, --no-dog-head is for"),
        (lambda: pretrained(unfreeze=17), "--unfreeze is 17; give a number from 0 to 16"),
        (lambda: pretrained(head_epochs=1), "no block is trained; add --unfreeze"),
        (lambda: pretrained(pretrained="other.safetensors"), None),
        (lambda: Config(model=pretrained(views=1)), "nothing would change the images"),
        (
            lambda: Config(model=pretrained(), data=DataOptions(image_size=31)),
            "--image-size is 31; .* give 32 or more",
        ),
        (
            lambda: Config(
                model=pretrained(unfreeze=1, head_epochs=2), train=TrainOptions(epochs=2)
            ),
            "--head-epochs is 2 of 2 epochs",
        ),
        (
            lambda: Config(model=pretrained(), train=TrainOptions(flip_test=True)),
            "--flip-test mirrors images",
        ),
    ],
)
def test_options_that_contradict_each_other(make, expected):
    if expected is None:
        make()
        return
    with pytest.raises(InputError, match=expected) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "name", "limit", "beyond"),
    [
        (DataOptions, "max_unreadable", 1.0, 1.001),
        (DataOptions, "image_size", 1, 0),
        (OptimizerOptions, "learning_rate", 0.0, -1e-9),
        (OptimizerOptions, "decay_steps", 1, 0),
        (AugmentOptions, "rotation", 180.0, 180.1),
        (AugmentOptions, "brightness", 1.0, 1.001),
        (TrainOptions, "batch_size", 1, 0),
        (TrainOptions, "epochs", 1, 0),
        (TrainOptions, "patience", 1, 0),
        (TrainOptions, "divergence_factor", 1.0, 0.999),
        (Config, "seed", 2**31 - 1, 2**31),
    ],
)
def test_a_limit_itself_is_allowed_and_what_lies_beyond_is_not(kind, name, limit, beyond):
    assert getattr(kind(**{name: limit}), name) == limit
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')}"):
        kind(**{name: beyond})


def test_options_make_what_they_name():
    options = ModelOptions(activation="prelu", negative_slope=0.1, initializer="xavier", gain=2.0)
    activation = options.make_activation()
    assert activation.name == "parametric_relu"
    assert activation.slope is not None
    assert activation.slope.mean == pytest.approx(0.1)
    assert options.make_initializer().variance((3, 5)) == pytest.approx(4 * 2 / 8)


def test_momentum_defaults_to_the_optimizer_s_own():
    assert OptimizerOptions().resolved_momentum == 0
    assert OptimizerOptions(optimizer="adam").resolved_momentum == 0.9
    assert OptimizerOptions(optimizer="adam", momentum=0.0).resolved_momentum == 0


@pytest.mark.parametrize(
    ("balance", "batch_size", "by_batches", "by_weights"),
    [
        ("none", 8, False, False),
        ("class_weights", 8, False, True),
        ("class_weights", "full", False, True),
        ("batches", 8, True, False),
        ("batches", "full", False, True),  # a full batch has nothing to draw
    ],
)
def test_imbalance_is_handled_in_one_way_or_not_at_all(balance, batch_size, by_batches, by_weights):
    config = Config(data=DataOptions(balance=balance), train=TrainOptions(batch_size=batch_size))
    assert (config.balances_batches, config.weighs_classes) == (by_batches, by_weights)
