"""Initializers: the textbook variances, theory against samples."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.errors import InputError
from jaxdnn.initializers import INITIALIZERS, fans, make_initializer

SHAPES = {"dense": (300, 200), "wide": (40, 900), "convolution": (3, 3, 20, 40)}
SIGMAS = 5


def kernel_fans(shape):
    """Written out: a convolution window of 3 x 3 sees 9 times its input channels."""
    return {"dense": (300, 200), "wide": (40, 900), "convolution": (180, 360)}[shape]


# Distribution, and Var(w) as the papers give it: (fan_in, fan_out, gain) -> variance.
CASES = {
    "normal": ("normal", lambda n_in, n_out, gain: (0.01 * gain) ** 2),
    "truncated_normal": ("truncated", lambda n_in, n_out, gain: (0.01 * gain) ** 2),
    "uniform": ("uniform", lambda n_in, n_out, gain: (0.01 * gain) ** 2 / 3),
    "glorot_normal": ("truncated", lambda n_in, n_out, gain: gain**2 * 2 / (n_in + n_out)),
    "glorot_uniform": ("uniform", lambda n_in, n_out, gain: gain**2 * 2 / (n_in + n_out)),
    "he_normal": ("truncated", lambda n_in, n_out, gain: gain**2 * 2 / n_in),
    "he_uniform": ("uniform", lambda n_in, n_out, gain: gain**2 * 2 / n_in),
    "lecun_normal": ("truncated", lambda n_in, n_out, gain: gain**2 / n_in),
    "lecun_uniform": ("uniform", lambda n_in, n_out, gain: gain**2 / n_in),
}
SCHEMES = {name: variance for name, (_, variance) in CASES.items()}
UNIFORM, TRUNCATED = (
    [name for name, (distribution, _) in CASES.items() if distribution == wanted]
    for wanted in ("uniform", "truncated")
)
each_shape = pytest.mark.parametrize("shape", SHAPES)


def truncated_moments(cut: float = 2.0) -> tuple[float, float]:
    """Variance and kurtosis of the standard normal distribution cut at ± `cut`."""
    density = math.exp(-(cut**2) / 2) / math.sqrt(2 * math.pi)
    inside = math.erf(cut / math.sqrt(2))
    second = 1 - 2 * cut * density / inside
    fourth = 3 * second - 2 * cut**3 * density / inside
    return second, fourth / second**2


def kurtosis(name: str) -> float:
    if name in UNIFORM:
        return 9 / 5
    return truncated_moments()[1] if name in TRUNCATED else 3.0


def draw(name, shape, seed=0, **parameters) -> np.ndarray:
    initializer = make_initializer(name, **parameters)
    return np.asarray(initializer(jax.random.key(seed), SHAPES.get(shape, shape)), np.float64)


def test_every_scheme_is_tested():
    assert {*SCHEMES, "zeros", "orthogonal"} == set(INITIALIZERS)


@each_shape
@pytest.mark.parametrize("name", SCHEMES)
def test_variance_is_the_textbook_s_promised_and_realised(name, shape):
    for gain in (0.5, 3.0, 1.0):
        expected = SCHEMES[name](*kernel_fans(shape), gain)
        promised = make_initializer(name, gain=gain).variance(SHAPES[shape])
        assert promised == pytest.approx(expected, rel=1e-9)
    kernel = draw(name, shape)
    num = kernel.size  # 60,000, 36,000 and 7,200
    # Standard errors: of the mean sqrt(Var / n); of the mean square Var * sqrt((kurtosis - 1) / n).
    assert abs(kernel.mean()) < SIGMAS * math.sqrt(expected / num)
    error = SIGMAS * math.sqrt((kurtosis(name) - 1) / num)
    assert np.mean(kernel**2) == pytest.approx(expected, rel=error)


@each_shape
@pytest.mark.parametrize("name", UNIFORM)
def test_uniform_stays_within_its_bound_and_fills_it(name, shape):
    bound = math.sqrt(3 * SCHEMES[name](*kernel_fans(shape), 1.0))
    kernel = draw(name, shape)
    assert np.abs(kernel).max() <= bound * (1 + 1e-6)
    for sign in (-1, 1):  # no entry within 40 / n of the end: probability e^-20
        assert (sign * kernel).max() > bound * (1 - 40 / kernel.size)


@pytest.mark.parametrize("name", TRUNCATED)
def test_normal_schemes_are_cut_at_two_of_their_undisturbed_deviations(name):
    std = math.sqrt(SCHEMES[name](*kernel_fans("dense"), 1.0))
    bound = 2 * std / math.sqrt(truncated_moments()[0])
    largest = np.abs(draw(name, "dense")).max()
    assert bound * 0.99 < largest <= bound * (1 + 1e-6)


@pytest.mark.parametrize("name", [*SCHEMES, "orthogonal"])
def test_gain_multiplies_every_weight(name):
    shape = (30, 20)
    chex.assert_trees_all_close(
        draw(name, shape, gain=3.0), 3 * draw(name, shape), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", ["normal", "truncated_normal", "uniform"])
def test_scale_multiplies_every_weight(name):
    shape = (30, 20)
    chex.assert_trees_all_close(
        draw(name, shape, scale=0.05), 5 * draw(name, shape), rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize("name", [*SCHEMES, "orthogonal"])
def test_the_key_alone_decides(name):
    shape = (8, 6)
    chex.assert_trees_all_equal(draw(name, shape), draw(name, shape))
    assert (draw(name, shape, seed=1) != draw(name, shape)).all()


@each_shape
def test_orthogonal_columns_or_rows_are_orthonormal_times_gain(shape):
    kernel = draw("orthogonal", shape, gain=1.5)
    matrix = kernel.reshape(-1, kernel.shape[-1])
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    chex.assert_trees_all_close(tall.T @ tall, 1.5**2 * np.eye(tall.shape[1]), atol=1e-5)
    # Squared lengths are fixed, so that the mean square is exact.
    promised = make_initializer("orthogonal", gain=1.5).variance(SHAPES[shape])
    assert promised == pytest.approx(1.5**2 / tall.shape[0], rel=1e-9)
    assert np.mean(kernel**2) == pytest.approx(promised, rel=1e-5)
    assert abs(kernel.mean()) < SIGMAS * math.sqrt(promised / kernel.size)


def test_zeros():
    assert not draw("zeros", "convolution").any()
    assert make_initializer("zero").variance((3, 4)) == 0


def test_fans_count_the_window():
    assert fans((7, 5)) == (7, 5)
    assert fans((3, 2, 7, 5)) == (42, 30)
    with pytest.raises(InputError, match="at least 2 axes"):
        fans((7,))


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("xavier", "glorot_normal"),
        ("Xavier-Uniform", "glorot_uniform"),
        ("msra", "he_normal"),
        ("MSRA_uniform", "he_uniform"),
        ("he", "he_normal"),
        ("lecun", "lecun_normal"),
    ],
)
def test_aliases(alias, name):
    assert make_initializer(alias).name == name


def test_an_unknown_name_lists_all_names():
    with pytest.raises(InputError) as caught:
        make_initializer("xaver_normal")
    assert all(name in str(caught.value) for name in INITIALIZERS)
    assert "xavier_normal" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        ("glorot_normal", {"scale": 1.0}, "has no scale"),
        ("zeros", {"gain": 1.0}, "has no gain"),
        ("normal", {"scale": 0.0}, "scale is 0.0; give a positive"),
        ("he_normal", {"gain": -1.0}, "gain is -1.0"),
        ("he_normal", {"gain": math.nan}, "gain is nan"),
        ("he_normal", {"gain": math.inf}, "gain is inf"),
    ],
)
def test_wrong_parameters_are_named(name, parameters, expected):
    with pytest.raises(InputError, match=expected):
        make_initializer(name, **parameters)


def test_dtype_is_the_one_asked_for():
    key = jax.random.key(0)
    chex.assert_type(make_initializer("he_normal")(key, (4, 3)), jnp.float32)
    chex.assert_type(make_initializer("uniform")(key, (4, 3), jnp.bfloat16), jnp.bfloat16)
