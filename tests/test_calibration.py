"""Calibration: a planted temperature is found, decisions stay, and errors are those of counting."""

import chex
import numpy as np
import pytest

from jaxdnn.calibration import (
    NUM_BINS,
    Calibration,
    fit_calibration,
    reliability,
    two_or_more,
    weights_of,
)

NUM = 20_000
RNG = np.random.default_rng(0)


def drawn(logits):
    """Labels that occur as often as the softmax of the logits says."""
    gumbel = RNG.gumbel(size=logits.shape)
    return (logits + gumbel).argmax(axis=1)


TRUE = RNG.normal(size=(NUM, 3)) * 2
LABELS = drawn(TRUE)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 1e6])
def test_a_planted_temperature_is_found_whatever_the_scale(temperature):
    found = fit_calibration(TRUE * temperature, LABELS)
    # The likelihood of n examples knows log T to some 1 / sqrt(n).
    assert found.temperature == pytest.approx(temperature, rel=5 / np.sqrt(NUM))
    assert found.shift == ()


def test_a_planted_shift_is_found():
    planted = np.array([1.0, 0.5, -1.5])
    found = fit_calibration((TRUE - planted) * 2, LABELS, shift=True)
    np.testing.assert_allclose(np.array(found.shift) / 2, planted, atol=10 / np.sqrt(NUM))
    assert found.temperature == pytest.approx(2, rel=10 / np.sqrt(NUM))


@pytest.mark.parametrize("shift", [False, True])
def test_one_sigmoid_unit_is_two_logits(shift):
    unit = TRUE[:, :1]
    labels = drawn(two_or_more(unit))
    two = fit_calibration(two_or_more(unit) * 3, labels, shift=shift)
    one = fit_calibration(unit * 3, labels, shift=shift)
    assert one.temperature == pytest.approx(two.temperature, rel=1e-9)
    assert one.shift == pytest.approx(two.shift, rel=1e-9)
    chex.assert_trees_all_close(
        one.probabilities(unit), two.probabilities(two_or_more(unit)), rtol=1e-9
    )
    assert np.array_equal(
        one.moved(unit)[:, 0] > 0, one.probabilities(unit).argmax(axis=1).astype(bool)
    )


def test_a_temperature_changes_no_decision_and_no_logit():
    calibration = Calibration(3.7)
    assert calibration.moved(TRUE) is TRUE
    assert np.array_equal(calibration.probabilities(TRUE).argmax(axis=1), TRUE.argmax(axis=1))


def test_a_shift_decides_where_the_probabilities_are_even():
    calibration = Calibration(0.5, (0.3, -0.3, 0.0))
    moved = calibration.moved(TRUE)
    assert np.array_equal(calibration.probabilities(TRUE).argmax(axis=1), moved.argmax(axis=1))
    assert (moved.argmax(axis=1) != TRUE.argmax(axis=1)).any()


@pytest.mark.parametrize("num", [1, 10, 100])
def test_all_right_is_no_surer_than_the_law_of_succession(num):
    labels = np.arange(num) % 2
    for scale in (1e-3, 8.0, 1e5):
        logits = scale * (2 * np.eye(2)[labels] - 1)
        scores = fit_calibration(logits, labels).probabilities(logits)
        np.testing.assert_allclose(scores.max(axis=1), (num + 1) / (num + 2), rtol=1e-4)


def test_what_says_nothing_is_left_even():
    zeros, labels = np.zeros((10, 4)), np.arange(10) % 4
    assert fit_calibration(zeros, labels) == Calibration(1.0)
    wrong = 5 * np.eye(2)[1 - np.arange(10) % 2]
    scores = fit_calibration(wrong, np.arange(10) % 2).probabilities(wrong)
    np.testing.assert_allclose(scores, 0.5, atol=1e-3)


def test_classes_alike_is_as_if_the_rare_one_had_been_copied():
    logits, labels = TRUE[:400, :2], np.repeat([0, 0, 0, 1], 100)
    copied = np.concatenate([logits, *[logits[labels == 1]] * 2])
    more = np.concatenate([labels, *[labels[labels == 1]] * 2])
    alike = fit_calibration(logits, labels, shift=True, alike=True)
    plain = fit_calibration(copied, more, shift=True)
    # But for the one more image of each class: 1 of 400, or of 600.
    np.testing.assert_allclose(
        alike.probabilities(logits), plain.probabilities(logits), atol=1 / 400
    )
    weights = weights_of(labels, alike=True)
    assert weights.mean() == pytest.approx(1)
    assert weights[labels == 0].sum() == pytest.approx(weights[labels == 1].sum())


def test_the_calibration_error_is_that_of_counting():
    scores, labels = Calibration(0.7).probabilities(TRUE[:500]), LABELS[:500]
    expected = 0.0
    for low in np.arange(NUM_BINS) / NUM_BINS:
        top = scores.max(axis=1)
        inside = (top >= low) & (top < low + 1 / NUM_BINS)
        if inside.any():
            right = (scores.argmax(axis=1) == labels)[inside].mean()
            expected += inside.mean() * abs(right - top[inside].mean())
    assert reliability(scores, labels, np.ones(500)).error == pytest.approx(expected)


def test_true_probabilities_have_no_calibration_error_and_sure_ones_have():
    weights = np.ones(NUM)
    right = reliability(Calibration().probabilities(TRUE), LABELS, weights).error
    # Each bin's share is off by some half over the root of its count.
    assert right < 0.5 * np.sqrt(NUM_BINS / NUM) * 2
    assert reliability(Calibration(0.2).probabilities(TRUE), LABELS, weights).error > 5 * right
