"""Early stopping: what counts as better, and when patience runs out."""

import math

import pytest

from jaxdnn.training.early_stopping import EarlyStopping


def after(values, **given):
    stopping = EarlyStopping(**{"greater_is_better": True, **given})
    for step, value in enumerate(values, start=1):
        stopping = stopping.update(value, 10 * step)
    return stopping


@pytest.mark.parametrize("sign", [1, -1])
def test_the_best_is_the_greatest_or_the_least(sign):
    values = [sign * value for value in (0.5, 0.7, 0.6, 0.7, 0.2)]
    stopping = after(values, greater_is_better=sign > 0)
    assert stopping.best_value == sign * 0.7
    assert stopping.best_step == 20  # the first of equals
    assert stopping.num_bad == 3


def test_nan_is_never_the_best_and_costs_patience():
    stopping = after([math.nan, math.nan])
    assert stopping.best_step is None
    assert math.isnan(stopping.best_value)
    assert stopping.num_bad == 2
    assert after([math.nan, math.nan], patience=2).should_stop
    stopping = after([math.nan, -5.0, math.nan])
    assert (stopping.best_value, stopping.best_step, stopping.num_bad) == (-5.0, 20, 1)


def test_a_first_infinity_counts_and_is_beaten_by_anything_finite():
    stopping = after([math.inf, 3.0, math.inf], greater_is_better=False)
    assert (stopping.best_value, stopping.best_step) == (3.0, 20)


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_patience_counts_evaluations_without_improvement(patience):
    values = [1.0, 2.0] + [1.5] * (patience - 1)
    assert not after(values, patience=patience).should_stop
    assert after([*values, 1.5], patience=patience).should_stop
    assert not after([*values, 2.5], patience=patience).should_stop  # counted again


def test_without_patience_nothing_stops():
    assert not after([1.0] + [0.0] * 1000).should_stop


def test_a_fresh_start_never_stops():
    assert not EarlyStopping(greater_is_better=True, patience=1).should_stop


@pytest.mark.parametrize("greater_is_better", [True, False])
def test_improvement_is_measured_from_the_best_and_must_exceed_the_minimum(greater_is_better):
    sign = 1 if greater_is_better else -1
    given = {"greater_is_better": greater_is_better, "min_improvement": 0.25}
    # Each is better than the last by less than the minimum; only the sum exceeds it.
    stopping = after([sign * value for value in (1.0, 1.125, 1.25, 1.375)], **given)
    assert (stopping.best_value, stopping.best_step, stopping.num_bad) == (sign * 1.375, 40, 0)
    stopping = after([sign * value for value in (1.0, 1.125, 1.25)], **given)
    assert (stopping.best_value, stopping.num_bad) == (sign * 1.0, 2)


def test_update_leaves_the_old_state():
    old = after([1.0])
    old.update(2.0, 20)
    assert old == after([1.0])
