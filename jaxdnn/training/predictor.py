"""Prediction with a trained network, from its run folder alone."""

# Apart from the face because who predicts reads this, and nothing of how to train.

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdnn.config import load_config
from jaxdnn.data import ImagesInMemory, PixelStats
from jaxdnn.errors import InputError
from jaxdnn.losses import probabilities
from jaxdnn.run_folder import RunFolder, read_dataset
from jaxdnn.training.checkpoint import Checkpoints
from jaxdnn.training.evaluate import make_predict
from jaxdnn.training.provenance import check_unchanged
from jaxdnn.training.setup import make_model
from jaxdnn.training.step import Variables


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained network with its preprocessing.

    Attributes:
      class_names: by column of the probabilities.
      image_size: height and width of the images that it takes.
      channels: 1 (grey) or 3 (colour).
      predict: uint8 images (num, height, width, channel) -> probabilities (num, class).
    """

    class_names: tuple[str, ...]
    image_size: int
    channels: int
    predict: Callable[[np.ndarray], np.ndarray]


def load_predictor(folder: RunFolder) -> Predictor:
    """Load the best weights of a run.

    Raises:
      InputError: the folder holds no evaluated run, or it is damaged.
    """
    config, about = load_config(folder.config), read_dataset(folder)
    shape = (about["height"], about["width"], about["channels"])
    pixel_stats = PixelStats(tuple(about["mean"]), tuple(about["std"]))
    model = make_model(config.model, shape, len(about["class_names"]))
    like = Variables(*jax.eval_shape(model.init, jax.random.key(0)))
    if not (folder.checkpoints / "best").is_dir():
        raise InputError(f"{folder.path} holds no trained network yet; let the run finish an epoch")
    with Checkpoints(folder.checkpoints) as checkpoints:
        check_unchanged(checkpoints.about_newest("best"), config, about, folder)
        best = checkpoints.restore("best", like)
    logits = make_predict(model, pixel_stats)

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

    return Predictor(tuple(about["class_names"]), shape[0], shape[2], predict)
