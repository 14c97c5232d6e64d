"""What a look says about a network, on looks whose problem is known because it was planted."""

import math

import numpy as np
import pytest

from jaxdnn.training.watch import Layer, Look, find_problems

DEPTH, WIDTH = 12, 64


def layers(widths=(WIDTH,) * DEPTH) -> list[Layer]:
    paths = [*(f"layers/{i}" for i in range(len(widths))), "head"]
    sizes = [WIDTH, *widths, 2]
    return [Layer(path, (sizes[i + 1],), sizes[i]) for i, path in enumerate(paths)]


def healthy(*, slope=0.7071, gain=1.4142, rest=1.0, widths=(WIDTH,) * DEPTH) -> Look:
    """A look at a network whose every layer multiplies the length of delta by slope gain rest."""
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
    return Look(*values)


def problems(look: Look, *, bounded=False, widths=(WIDTH,) * DEPTH) -> dict[str, str]:
    return find_problems(layers(widths), look, bounded=bounded)


def planted(typical: float, odd: float, index: int) -> np.ndarray:
    values = np.full(DEPTH + 1, typical)
    values[index] = odd
    return values


@pytest.mark.parametrize("widths", [(WIDTH,) * DEPTH, (4096, 512, 64, 8), (8, 4096), (7,), ()])
def test_a_healthy_network_has_no_problem_whatever_its_widths(widths):
    assert problems(healthy(widths=widths), bounded=True, widths=widths) == {}


def test_the_scale_of_the_loss_is_no_problem():
    look = healthy()
    for scale in (1e-20, 1e20):
        scaled = look._replace(delta_rms=look.delta_rms * scale)
        assert problems(scaled) == {}


@pytest.mark.parametrize(
    ("look", "expected"),
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
def test_depth_is_told_with_its_cause_and_layer(look, expected):
    found = problems(look)
    assert found.keys() == {"depth"}
    for words in expected:
        assert words in found["depth"]
    assert "\n" not in found["depth"]


def test_a_change_of_a_hundred_is_the_limit():
    for total, is_found in ((-1.9, False), (-2.1, True), (1.9, False), (2.1, True)):
        per_layer = 10 ** (total / (DEPTH - 1))
        assert bool(problems(healthy(slope=1.0, gain=per_layer))) == is_found


def test_dead_and_saturated_layers_are_named():
    look = healthy()
    shares = planted(0.0, 0.97, 3)
    assert "layers/3 is dead: 97%" in problems(look._replace(dead_fraction=shares))["dead"]
    both = shares + planted(0.0, 0.95, 5)
    assert "layers/3 is dead (and 1 more)" in problems(look._replace(dead_fraction=both))["dead"]
    saturated = look._replace(saturated_fraction=shares)
    assert problems(saturated, bounded=False) == {}
    assert "layers/3 is saturated" in problems(saturated, bounded=True)["saturated"]


def test_a_loss_that_is_not_finite_is_no_problem_of_depth():
    look = healthy()
    assert problems(look._replace(delta_rms=look.delta_rms * np.nan)) == {}
