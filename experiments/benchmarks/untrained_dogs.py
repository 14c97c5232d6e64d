"""How well does `predict.py --pretrained` tell dogs from others, in colour and in grey?

    python experiments/benchmarks/untrained_dogs.py photos/
    python experiments/benchmarks/untrained_dogs.py photos.zip

The folder that holds an image is its label: `dog`, or any other. Printed are balanced accuracy
where a probability of 0.5 decides, and where the threshold that is best on these same images does
(an upper bound), and processor seconds an image, with reading, resizing and compilation. Nothing is
drawn, so there is no spread. The weights have seen ImageNet's training photographs.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import numpy as np
import tyro

from jaxdnn import command_line
from jaxdnn.data import UnreadableImage, read_images
from jaxdnn.errors import InputError
from jaxdnn.training import load_pretrained_predictor


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which photographs."""

    path: Annotated[Path, tyro.conf.Positional]
    """A folder of folders, or a zip of one."""


def score(path: Path, channels: Literal[1, 3]) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each readable image is a dog, and the network's probability that it is."""
    predictor = load_pretrained_predictor(channels=channels)
    size, is_dog, probability = predictor.image_size, [], []
    read = (
        (name, pixels)
        for name, pixels in read_images(
            [path], image_size=size, channels=channels, resampling=predictor.resampling
        )
        if not isinstance(pixels, UnreadableImage)
    )
    while batch := list(islice(read, predictor.batch_size)):
        images = np.zeros((predictor.batch_size, size, size, channels), np.uint8)
        images[: len(batch)] = [pixels for _, pixels in batch]
        probability += [*predictor.predict(images)[: len(batch), 1]]
        is_dog += [PurePosixPath(name).parent.name == "dog" for name, _ in batch]
    return np.array(is_dog, bool), np.array(probability)


def balanced(is_dog: np.ndarray, probability: np.ndarray, threshold: float) -> float:
    """Return the mean of the shares of dogs and of others that are recognised."""
    says_dog = probability > threshold
    return float((says_dog[is_dog].mean() + (~says_dog)[~is_dog].mean()) / 2)


def main() -> int:
    """Run the command; return its exit code."""
    arguments = command_line.parse(
        Arguments, default=None, args=sys.argv[1:], prog="untrained_dogs.py", description=__doc__
    )
    channels: Literal[1, 3]
    for name, channels in (("colour", 3), ("grey", 1)):
        start = time.process_time()
        is_dog, probability = score(arguments.path, channels)
        if not 0 < is_dog.sum() < len(is_dog):
            raise InputError(
                f"{arguments.path} holds {is_dog.sum()} images in folders called dog and "
                f"{(~is_dog).sum()} in others; expected both; name the folders so"
            )
        seconds = (time.process_time() - start) / len(is_dog)
        best = max(probability, key=lambda threshold: balanced(is_dog, probability, threshold))
        print(
            f"{name:6} {is_dog.sum():,} dogs, {(~is_dog).sum():,} others: balanced "
            f"{balanced(is_dog, probability, 0.5):.3f} at 0.5, "
            f"{balanced(is_dog, probability, best):.3f} at {best:.2f}; {seconds:.3f} s an image"
        )
    return 0


if __name__ == "__main__":
    command_line.run(main)
