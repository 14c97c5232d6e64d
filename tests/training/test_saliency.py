"""Saliency: what a network says is shared out among the pixels, nothing lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.layers import BlockOptions
from jaxdnn.models import make_convnet, make_mlp
from jaxdnn.training import saliency
from jaxdnn.training.predictor import Network
from jaxdnn.training.saliency import (
    by_turns,
    class_scores,
    explain,
    integrated_gradients,
    most_confident,
)

RNG = np.random.default_rng(0)


def network_of(model):
    return Network(
        lambda images: images.astype(jnp.float32) / 128 - 1,
        lambda variables, images: model.apply(*variables, images).logits,
    )


@pytest.mark.parametrize(
    ("channels", "outputs"),
    [(3, 2), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((1, 1), (1, 5)))],
)
def test_attributions_add_up_to_the_difference_of_scores(channels, outputs):
    options, shape = BlockOptions(norm="batch"), (8, 8, channels)
    for model in (
        make_mlp(shape, outputs, widths=(16, 16), options=options),
        make_convnet(shape, outputs, widths=(4, 8), options=options),
    ):
        variables, network = model.init(jax.random.key(0)), network_of(model)
        images = RNG.integers(0, 256, (4, *shape), np.uint8)
        classes = np.arange(4) % max(outputs, 2)
        found = explain(network, variables, images, classes)
        assert found.shape == (4, 8, 8)
        normalised = network.normalise(jnp.asarray(images))
        scores = class_scores(network.logits(variables, normalised))
        at_zero = class_scores(network.logits(variables, jnp.zeros_like(normalised)))
        expected = np.asarray(scores - at_zero)[np.arange(4), classes]
        spread = float(np.abs(found).sum(axis=(1, 2)).max())
        # The midpoint rule misses each kink by at most its own step.
        np.testing.assert_allclose(found.sum(axis=(1, 2)), expected, atol=spread / 32)


def test_of_a_linear_score_it_is_weight_times_value():
    weights, image = RNG.normal(size=(2, 5, 4, 3)).astype(np.float32)

    def score(images):
        return jnp.sum(images * weights, axis=(1, 2, 3))

    found = integrated_gradients(score, jnp.asarray(image))
    np.testing.assert_allclose(found, weights * image, rtol=1e-5, atol=1e-6)


def test_scores_are_logits_less_the_mean_of_the_others():
    logits = jnp.asarray(RNG.normal(size=(3, 4)).astype(np.float32))
    expected = [[row[c] - np.delete(row, c).mean() for c in range(4)] for row in np.asarray(logits)]
    np.testing.assert_allclose(class_scores(logits), expected, rtol=1e-4, atol=1e-6)


def test_it_stops_when_its_time_is_over(monkeypatch):
    monkeypatch.setattr(saliency, "SECONDS", -1.0)
    model = make_mlp((2, 2, 1), 2, widths=())
    images = np.zeros((3, 2, 2, 1), np.uint8)
    classes = np.zeros(3, int)
    variables = model.init(jax.random.key(0))
    assert explain(network_of(model), variables, images, classes).shape == (1, 2, 2)
    assert explain(network_of(model), variables, images[:0], classes[:0]).shape == (0, 2, 2)


def test_the_most_confident_first_and_groups_by_turns():
    scores = np.array([[0.6, 0.4], [0.1, 0.9], [0.7, 0.3], [0.2, 0.8]])
    among = np.array([True, True, False, True])
    assert most_confident(scores, among).tolist() == [1, 3, 0]
    groups = np.array([1, 1, 0, 1, 0])
    assert by_turns(np.array([3, 1, 0, 4, 2]), groups).tolist() == [4, 3, 2, 1, 0]
