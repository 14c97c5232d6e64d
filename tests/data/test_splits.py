"""Splits and labels: proportional, repeatable, independent of what is not theirs."""

import chex
import numpy as np
import pytest
from numpy.random import mtrand

from jaxdnn.data import Source
from jaxdnn.data.splits import (
    DOG_SYNSETS,
    binarise_labels,
    class_weights,
    stratified_split,
    train_validation_test,
)
from jaxdnn.errors import InputError


def shuffled_labels(*counts: int) -> np.ndarray:
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return np.random.default_rng(0).permutation(labels)


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.25, 0.5, 0.999])
def test_a_split_is_a_partition_in_proportion(fraction):
    counts = (2, 3, 10, 57, 400)
    labels = shuffled_labels(*counts)
    kept, drawn = stratified_split(labels, fraction, 3)
    assert sorted([*kept, *drawn]) == list(range(len(labels)))
    assert (np.diff(kept) > 0).all()
    assert (np.diff(drawn) > 0).all()
    for count, num_drawn in zip(counts, np.bincount(labels[drawn], minlength=5), strict=True):
        assert 1 <= num_drawn <= count - 1
        assert abs(num_drawn - fraction * count) <= 0.5 or num_drawn in (1, count - 1)


def test_the_seed_decides_and_nothing_else():
    labels = shuffled_labels(50, 50)
    _, drawn = stratified_split(labels, 0.2, 1)
    mtrand.seed(5)
    _, again = stratified_split(labels, 0.2, 1)
    _, other = stratified_split(labels, 0.2, 2)
    chex.assert_trees_all_equal(drawn, again)
    assert set(drawn) != set(other)


def test_what_is_drawn_of_a_class_does_not_depend_on_the_others():
    alone = np.zeros(40, np.int32)
    beside = np.concatenate([alone, np.ones(17, np.int32)])
    _, drawn = stratified_split(alone, 0.3, 9)
    _, drawn_beside = stratified_split(beside, 0.3, 9)
    chex.assert_trees_all_equal(drawn, drawn_beside[drawn_beside < 40])


def test_every_item_is_drawn_equally_often():
    num_seeds, num_items, fraction = 2000, 20, 0.25
    labels = np.zeros(num_items, np.int32)
    times = np.zeros(num_items)
    for seed in range(num_seeds):
        times[stratified_split(labels, fraction, seed)[1]] += 1
    # Binomial with 2,000 trials: five standard deviations allow 1 failure in 10^5 such tests.
    deviation = np.sqrt(num_seeds * fraction * (1 - fraction))
    assert np.abs(times - num_seeds * fraction).max() < 5 * deviation


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_fraction_outside_0_to_1_is_refused(fraction):
    with pytest.raises(InputError, match=r"split fraction .*more than 0 and less than 1"):
        stratified_split(shuffled_labels(5, 5), fraction, 0)


def test_a_class_of_one_image_cannot_be_split():
    with pytest.raises(InputError, match=r"class cat has 1 image to split"):
        stratified_split(shuffled_labels(5, 1), 0.5, 0, class_names=("dog", "cat"))


def test_class_weights_make_the_classes_weigh_the_same():
    labels = shuffled_labels(30, 10, 60)
    weights = class_weights(labels, 3)
    chex.assert_type(weights, np.float32)
    chex.assert_trees_all_close(weights * np.bincount(labels), 100 / 3, rtol=1e-6)
    chex.assert_trees_all_close(weights[labels].mean(), 1, rtol=1e-6)
    with pytest.raises(InputError, match=r"no items of class 3"):
        class_weights(labels, 4)


def source_with(splits: list[str]) -> Source:
    return Source(
        name="here",
        class_names=("cat", "dog"),
        item_names=[str(i) for i in range(len(splits))],
        labels=np.arange(len(splits), dtype=np.int32) % 2,
        splits=np.array(splits, dtype="U10"),
        read=lambda index: b"",
    )


def parts_of(splits: list[str], seed: int = 0) -> tuple[np.ndarray, ...]:
    return train_validation_test(
        source_with(splits), validation_fraction=0.25, test_fraction=0.2, seed=seed
    )


def test_the_sources_own_splits_are_kept():
    splits = ["train"] * 40 + ["validation"] * 6 + ["test"] * 4
    train, validation, test = parts_of(splits)
    chex.assert_trees_all_equal(train, np.arange(40))
    chex.assert_trees_all_equal(validation, np.arange(40, 46))
    chex.assert_trees_all_equal(test, np.arange(46, 50))


def test_missing_splits_are_drawn_from_the_training_images():
    train, validation, test = parts_of([""] * 40)
    assert (len(train), len(validation), len(test)) == (24, 8, 8)
    assert sorted([*train, *validation, *test]) == list(range(40))
    train, validation, test = parts_of(["train"] * 40 + ["test"] * 4)
    assert (len(train), len(validation)) == (30, 10)
    chex.assert_trees_all_equal(test, np.arange(40, 44))


def test_a_source_without_training_images_is_refused():
    with pytest.raises(InputError, match=r"no training images in here, only 3 to validate and 2"):
        parts_of(["validation"] * 3 + ["test"] * 2)


CHIHUAHUA, PUG, DHOLE, TABBY = "n02085620", "n02110958", "n02115913", "n02123045"


def test_there_are_118_dogs_and_no_wolf_among_them():
    assert len(DOG_SYNSETS) == 118
    assert {CHIHUAHUA, PUG} <= DOG_SYNSETS
    assert not {DHOLE, TABBY, "n02114367", "n02116738"} & DOG_SYNSETS


@pytest.mark.parametrize(
    "class_names",
    [
        ("Cat", "Dog"),
        (TABBY, PUG),
        (f"{DHOLE}-dhole", f"{CHIHUAHUA}-chihuahua", f"{PUG}-pug"),
        ("cat", "dog", PUG),
    ],
)
def test_dog_is_a_class_of_any_case_and_all_of_imagenet_s_dogs(class_names):
    labels = np.arange(len(class_names), dtype=np.int32)
    found, names = binarise_labels(labels, class_names, ("dog",))
    assert names == ("other", "dog")
    expected = [name.lower() == "dog" or name[:9] in (PUG, CHIHUAHUA) for name in class_names]
    chex.assert_trees_all_equal(found, np.array(expected))


def test_long_lists_of_classes_are_cut():
    names = [f"class_{i}" for i in range(1000)]
    with pytest.raises(InputError, match=r"class_19, … \(980 more\)") as caught:
        binarise_labels(np.arange(1000, dtype=np.int32), names, ("x",))
    assert len(str(caught.value)) < 500
