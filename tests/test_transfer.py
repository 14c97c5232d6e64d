"""A network on top of a pretrained one: cut anywhere it is the whole, and it starts as that was."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn import backbone
from jaxdnn.layers import BlockOptions
from jaxdnn.losses import probabilities
from jaxdnn.transfer import dog_label, is_of_backbone, make_transfer

RNG = np.random.default_rng(0)
WEIGHTS = backbone.load_weights()
FEATURES = jnp.float32(RNG.uniform(size=(3, 1280)))


@pytest.fixture(scope="module")
def whole():
    """Scaled images, grey and in colour alike, and the whole network's features of them."""
    images = jnp.broadcast_to(RNG.normal(size=(2, 45, 38, 1)), (2, 45, 38, 3)).astype(jnp.float32)
    output = jax.jit(backbone.make_efficientnet_lite0().apply)(*WEIGHTS, images)
    return images, output


CUTS = [1, 11, *(pytest.param(num, marks=pytest.mark.slow) for num in (0, 2, 5, 6, 9, 13, 15, 16))]


@pytest.mark.parametrize("num_blocks", CUTS)
def test_cut_at_any_block_the_two_parts_are_the_whole(whole, num_blocks):
    images, expected = whole
    lower = jax.jit(backbone.make_lower(num_blocks))
    folded = backbone.fold_norms(WEIGHTS)
    x = lower(folded, images)
    assert x.shape == (2, *backbone.cut_shape(num_blocks, 45, 38))
    chex.assert_trees_all_close(lower(folded, images[..., :1]), x, rtol=1e-4, atol=1e-4)
    model = make_transfer(WEIGHTS, 2, num_blocks=num_blocks)
    params, batch_stats = model.init(jax.random.key(0))
    found = jax.jit(model.apply, static_argnames="training")(params, batch_stats, x, training=True)
    chex.assert_trees_all_close(found.features, expected.features, rtol=1e-4, atol=3e-5)
    logits = backbone.classify(WEIGHTS, found.features)
    chex.assert_trees_all_close(logits, expected.logits, rtol=1e-4, atol=3e-4)
    # In training too the running averages stay those of ImageNet.
    chex.assert_trees_all_equal(found.batch_stats, batch_stats)


def test_every_parameter_is_frozen_or_trained():
    params = jax.tree.leaves(WEIGHTS[0])
    total = sum(leaf.size for leaf in params) - sum(
        x.size for x in jax.tree.leaves(WEIGHTS[0]["head"])
    )
    for num_blocks in (0, 1, 16):
        trained = jax.eval_shape(
            make_transfer(WEIGHTS, 2, num_blocks=num_blocks).init, jax.random.key(0)
        )
        num = sum(
            leaf.size
            for path, leaf in jax.tree_util.tree_leaves_with_path(trained[0])
            if is_of_backbone(path)
        )
        assert num + backbone.num_frozen(num_blocks) == total


@pytest.mark.parametrize("widths", [(), (8,)])
@pytest.mark.parametrize("num_outputs", [1, 2])
@pytest.mark.parametrize("dog", [0, 1])
def test_the_head_starts_as_imagenets_own_breeds(dog, num_outputs, widths):
    options = BlockOptions(norm="batch", bias_init=0.3)
    model = make_transfer(
        WEIGHTS, num_outputs, num_blocks=0, widths=widths, options=options, dog=dog
    )
    logits = model.apply(*model.init(jax.random.key(0)), FEATURES).logits
    expected = probabilities(backbone.dog_logits(backbone.classify(WEIGHTS, FEATURES)))
    expected = expected if dog == 1 else expected[:, ::-1]
    chex.assert_trees_all_close(probabilities(logits), expected, rtol=1e-4, atol=1e-6)


def test_without_dogs_the_head_knows_nothing():
    model = make_transfer(WEIGHTS, 3, num_blocks=0)
    params, _ = model.init(jax.random.key(0))
    assert set(params) == {"head"}
    assert float(jnp.abs(params["head"]["kernel"]).min()) > 0


@pytest.mark.parametrize(
    ("class_names", "label"),
    [
        (("other", "dog"), 1),
        (("Dogs", "muffins"), 0),
        (("cat", "fox"), None),
        (("dog", "dogs"), None),
        (("cat", "dog", "fox"), None),
    ],
)
def test_dogs_are_known_by_the_name_of_their_class(class_names, label):
    assert dog_label(class_names) == label
