"""The model card: intervals by their definition, and a command that asks for the same settings."""

import shlex

import numpy as np
import pytest

from jaxdnn.config import Config
from jaxdnn.options import DataOptions, ModelOptions, TrainOptions
from jaxdnn.recipes import RECIPES
from jaxdnn.report.card import command, escaped, interval, mean_interval
from tests.experiments.conftest import load_program

Z = 1.959964


@pytest.mark.parametrize(("right", "num"), [(0, 5), (3, 5), (90, 100), (100, 100)])
def test_wilsons_bounds_are_the_shares_of_which_the_sample_is_just_believable(right, num):
    for bound in interval(right, num):
        deviation = np.sqrt(bound * (1 - bound) / num)
        if 0 < bound < 1:
            assert abs(right / num - bound) == pytest.approx(Z * deviation)
    low, high = interval(right, num)
    assert low <= right / num <= high


def test_intervals_hold_what_they_promise():
    rng, shares, counts = np.random.default_rng(0), (0.95, 0.7), (40, 25)
    num, hits = 2000, 0
    for _ in range(num):
        drawn = [rng.binomial(n, share) / n for n, share in zip(counts, shares, strict=True)]
        low, high = mean_interval(drawn, list(counts))
        hits += low <= np.mean(shares) <= high
    # The share of 2000 deviates by 0.005; the bounds are an approximation besides.
    assert hits / num == pytest.approx(0.95, abs=0.025)


CONFIGS = [
    *RECIPES.values(),
    Config(data=DataOptions(data="a b/`c`", positive=("dog", "wolf"), streaming=True)),
    Config(model=ModelOptions(widths=(4, 4)), train=TrainOptions(calibration="shift"), seed=7),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_the_command_asks_for_these_settings(config):
    program, path, *args = shlex.split(command(config))
    assert (program, path) == ("python", "experiments/deep_dog.py")
    assert load_program("deep_dog").parse(args)[1].config == config


def test_foreign_names_are_no_markup():
    assert escaped("<b>|*x*_y_`z`\x1b[a](b)") == (
        "&lt;b&gt;\\|\\*x\\*\\_y\\_\\`z\\`\\\\x1b\\[a\\](b)"
    )
