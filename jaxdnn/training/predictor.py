"""Prediction with a trained network: from its run folder alone, or with ImageNet's weights."""

# Apart from the face because who predicts reads this, and nothing of how to train.

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdnn import backbone
from jaxdnn.calibration import Calibration
from jaxdnn.config import Config, load_config
from jaxdnn.data import PixelStats, Resampling, normalise_images
from jaxdnn.errors import InputError
from jaxdnn.losses import probabilities
from jaxdnn.models import BatchStats, Params
from jaxdnn.run_folder import DatasetAbout, RunFolder, read_dataset, read_summary
from jaxdnn.training.checkpoint import Checkpoints
from jaxdnn.training.features import make_frozen
from jaxdnn.training.provenance import check_unchanged
from jaxdnn.training.setup import make_model, weights_digest
from jaxdnn.training.step import Variables
from jaxdnn.transfer import dog_label

# A photograph by itself waits for a whole batch.
_PRETRAINED_BATCH = 16


class Network(NamedTuple):
    """A network as two pure functions, from stored pixels to logits.

    Attributes:
      normalise: uint8 images (batch, height, width, channel) -> what the network is given; the mean
        of the training images becomes 0.
      logits: (variables, normalised images) -> (batch, output).
    """

    normalise: Callable[[Array], Array]
    logits: Callable[[Any, Array], Array]


def make_network(config: Config, about: DatasetAbout) -> tuple[Network, Variables]:
    """Make the network of a run; return it with the shapes of its variables.

    Args:
      config: the run's settings.
      about: its data.
    """
    shape = (about["height"], about["width"], about["channels"])
    names, flip = about["class_names"], config.train.flip_test
    model = make_model(config.model, shape, len(names), dog=dog_label(names))
    like = Variables(*jax.eval_shape(model.init, jax.random.key(0)))
    pixel_stats = PixelStats(tuple(about["mean"]), tuple(about["std"]))

    def logits(variables: Variables, images: Array) -> Array:
        found = model.apply(*variables, images).logits
        if flip:
            found = (found + model.apply(*variables, images[:, :, ::-1]).logits) / 2
        return found

    if not config.model.has_backbone:
        return Network(lambda images: normalise_images(images, pixel_stats), logits), like
    frozen = make_frozen(config.model)
    return Network(backbone.scale_pixels, lambda own, images: logits(own, frozen(images))), like


class Trained(NamedTuple):
    """The best of a run, as its folder holds it.

    Attributes:
      network: from pixels to logits.
      variables: its best weights.
      calibration: from logits to probabilities; of an unfinished run none was fitted.
      config: its settings.
      about: the data that it was trained on.
    """

    network: Network
    variables: Variables
    calibration: Calibration
    config: Config
    about: DatasetAbout


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


def load_trained(folder: RunFolder) -> Trained:
    """Load the best weights of a run.

    Raises:
      InputError: the folder holds no evaluated run, or it is damaged.
    """
    config, about = load_config(folder.config), read_dataset(folder)
    _check_backbone(config, about, folder)
    network, like = make_network(config, about)
    if not (folder.checkpoints / "best").is_dir():
        raise InputError(f"{folder.path} holds no trained network yet; let the run finish an epoch")
    with Checkpoints(folder.checkpoints) as checkpoints:
        check_unchanged(checkpoints.about_newest("best"), config, about, folder)
        best = checkpoints.restore("best", like)
    calibration = Calibration()
    if folder.summary.exists():
        found = read_summary(folder)
        calibration = Calibration(found["temperature"] or 1.0, tuple(found["shift"]))
    return Trained(network, best, calibration, config, about)


def load_predictor(folder: RunFolder) -> Predictor:
    """Load what scores images with the best weights of a run; probabilities are calibrated.

    Raises:
      InputError: the folder holds no evaluated run, or it is damaged.
    """
    network, variables, calibration, config, about = load_trained(folder)
    logits_of = jax.jit(lambda weights, x: network.logits(weights, network.normalise(x)))

    def predict(images: np.ndarray) -> np.ndarray:
        logits = np.asarray(logits_of(variables, jnp.asarray(images)))
        if not np.isfinite(logits).all():
            raise InputError(
                f"{folder.path} gives answers that are not finite: its training diverged; train "
                "again with a lower --learning-rate, or add --clip-norm 1"
            )
        return calibration.probabilities(logits)

    return Predictor(
        tuple(about["class_names"]),
        about["height"],
        about["channels"],
        predict,
        resampling=config.data.resampling,
        batch_size=_PRETRAINED_BATCH if config.model.has_backbone else 64,
    )


def _check_backbone(config: Config, about: DatasetAbout, folder: RunFolder) -> None:
    """Check that the frozen weights are those that a run was trained on."""
    if config.model.has_backbone and weights_digest(config.model) != about["backbone"]:
        raise InputError(
            f"the weights that {folder.path} stands on are not those it was trained with; expected "
            f"a SHA-256 of {about['backbone']}; put back the file of --pretrained, or the package "
            "of that time"
        )


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
