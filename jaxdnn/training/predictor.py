"""Prediction with a trained network: from its run folder alone, or with ImageNet's weights."""

# Apart from the face because who predicts reads this, and nothing of how to train.

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdnn import backbone
from jaxdnn.config import Config, load_config
from jaxdnn.data import ImagesInMemory, PixelStats, Resampling, normalise_images
from jaxdnn.errors import InputError
from jaxdnn.losses import probabilities
from jaxdnn.models import BatchStats, Params
from jaxdnn.run_folder import DatasetAbout, RunFolder, read_dataset
from jaxdnn.training.checkpoint import Checkpoints
from jaxdnn.training.evaluate import Normalise, make_predict
from jaxdnn.training.features import make_frozen
from jaxdnn.training.provenance import check_unchanged
from jaxdnn.training.setup import make_model, weights_digest
from jaxdnn.training.step import Variables
from jaxdnn.transfer import dog_label

# A photograph by itself waits for a whole batch.
_PRETRAINED_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained network with its preprocessing.

    Attributes:
      class_names: by column of the probabilities.
      image_size: height and width of the images that it takes.
      channels: 1 (grey) or 3 (colour).
      predict: uint8 images (num, height, width, channel) -> probabilities (num, class).
      resampling: how images are to be resized.
      batch_size: images that are to be given at a time, so that the network is compiled once.
    """

    class_names: tuple[str, ...]
    image_size: int
    channels: int
    predict: Callable[[np.ndarray], np.ndarray]
    resampling: Resampling = "bilinear"
    batch_size: int = 64


def load_predictor(folder: RunFolder) -> Predictor:
    """Load the best weights of a run.

    Raises:
      InputError: the folder holds no evaluated run, or it is damaged.
    """
    config, about = load_config(folder.config), read_dataset(folder)
    shape = (about["height"], about["width"], about["channels"])
    model = make_model(
        config.model, shape, len(about["class_names"]), dog=dog_label(about["class_names"])
    )
    like = Variables(*jax.eval_shape(model.init, jax.random.key(0)))
    if not (folder.checkpoints / "best").is_dir():
        raise InputError(f"{folder.path} holds no trained network yet; let the run finish an epoch")
    with Checkpoints(folder.checkpoints) as checkpoints:
        check_unchanged(checkpoints.about_newest("best"), config, about, folder)
        best = checkpoints.restore("best", like)
    normalise = _normalise(config, about, folder)
    logits = make_predict(model, normalise, flip=config.train.flip_test)

    def predict(images: np.ndarray) -> np.ndarray:
        scores = np.asarray(
            probabilities(jnp.asarray(logits(best, ImagesInMemory(jnp.asarray(images)))))
        )
        if not np.isfinite(scores).all():
            raise InputError(
                f"{folder.path} gives answers that are not finite: its training diverged; train "
                "again with a lower --learning-rate, or add --clip-norm 1"
            )
        return scores

    return Predictor(
        tuple(about["class_names"]),
        shape[0],
        shape[2],
        predict,
        resampling=config.data.resampling,
        batch_size=_PRETRAINED_BATCH if config.model.has_backbone else 64,
    )


def _normalise(config: Config, about: DatasetAbout, folder: RunFolder) -> Normalise:
    """Return what makes the network's inputs of images: of pixels, or by its frozen blocks."""
    if not config.model.has_backbone:
        stats = PixelStats(tuple(about["mean"]), tuple(about["std"]))
        return functools.partial(normalise_images, pixel_stats=stats)
    if weights_digest(config.model) != about["backbone"]:
        raise InputError(
            f"the weights that {folder.path} stands on are not those it was trained with; expected "
            f"a SHA-256 of {about['backbone']}; put back the file of --pretrained, or the package "
            "of that time"
        )
    return make_frozen(config.model)


def load_pretrained_predictor(*, channels: Literal[1, 3] = 3) -> Predictor:
    """Load the network that tells dogs from other photographs without training.

    It is EfficientNet-Lite0 with ImageNet's weights; the probability of a dog is the sum over
    ImageNet's 118 breeds.

    Args:
      channels: 1 to look at all photographs in grey, 3 in colour.
    """
    model = backbone.make_efficientnet_lite0()
    variables = backbone.load_weights()

    @jax.jit
    def scores(variables: tuple[Params, BatchStats], images: Array) -> Array:
        logits = model.apply(*variables, backbone.scale_pixels(images)).logits
        return probabilities(backbone.dog_logits(logits))

    def predict(images: np.ndarray) -> np.ndarray:
        return np.asarray(scores(variables, jnp.asarray(images)))

    return Predictor(
        ("other", "dog"),
        backbone.IMAGE_SIZE,
        channels,
        predict,
        resampling="bicubic",
        batch_size=_PRETRAINED_BATCH,
    )
