"""Score images with a trained network: files, folders and zips.

    python experiments/predict.py runs/deep photo.jpg holidays/ archive.zip
    python experiments/predict.py runs/deep photo.jpg --json
    python experiments/predict.py --pretrained photo.jpg holidays/

With --pretrained it says "dog" or "other" without training: EfficientNet-Lite0 with the ImageNet
weights that come with the package, summed over ImageNet's breeds of dogs.

Prints the most probable class of each image and its probability. Unreadable files are named on
stderr and skipped. Exit code: 0 all were scored, 1 some were skipped, 2 nothing could be done.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from jaxdnn import command_line, run_folder
from jaxdnn.data import UnreadableImage, read_images
from jaxdnn.errors import InputError
from jaxdnn.names import printable
from jaxdnn.training import Predictor, load_predictor, load_pretrained_predictor


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to score, and how to print it."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folder of a trained network (none with --pretrained), then images, folders, zips."""
    pretrained: bool = False
    """Take ImageNet's weights in place of a run's."""
    json: bool = False
    """Print [{"path", "label", "probability"}] instead of a table."""


def choose(arguments: Arguments) -> tuple[Predictor, tuple[Path, ...]]:
    """Load the network that was asked for; return it with the images to score."""
    if arguments.pretrained:
        if not arguments.paths:
            raise InputError("no images named; give files, folders or zips after --pretrained")
        if run_folder.RunFolder(arguments.paths[0]).config.exists():
            raise InputError(
                f"{arguments.paths[0]} is a run folder, and --pretrained needs none; expected "
                "images; leave one of the two out"
            )
        return load_pretrained_predictor(), arguments.paths
    if len(arguments.paths) < 2:
        raise InputError(
            "no images named; give files, folders or zips after the run folder or --pretrained"
        )
    run_dir, *paths = arguments.paths
    return load_predictor(run_folder.open_existing(run_dir)), tuple(paths)


def score(predictor: Predictor, paths: tuple[Path, ...]) -> Iterator[dict[str, Any] | str]:
    """Yield a result for each image, or a line that says why there is none."""
    read = read_images(
        paths,
        image_size=predictor.image_size,
        channels=predictor.channels,
        resampling=predictor.resampling,
    )
    while batch := list(islice(read, predictor.batch_size)):
        good = [pixels for _, pixels in batch if not isinstance(pixels, UnreadableImage)]
        # Always a whole batch, so that the network is compiled once.
        padded = np.zeros((predictor.batch_size, *good[0].shape), np.uint8) if good else None
        if padded is not None:
            padded[: len(good)] = good
        scores = iter(predictor.predict(padded) if padded is not None else ())
        for path, pixels in batch:
            if isinstance(pixels, UnreadableImage):
                yield printable(f"skipped {path}: {pixels}")
                continue
            probabilities = next(scores)
            label = int(probabilities.argmax())
            yield {
                "path": path,
                "label": printable(predictor.class_names[label]),
                "probability": float(probabilities[label]),
            }


def main() -> int:
    """Run the command; return its exit code."""
    arguments = command_line.parse(
        Arguments, default=None, args=sys.argv[1:], prog="predict.py", description=__doc__
    )
    predictor, paths = choose(arguments)
    results, num_skipped = [], 0
    for result in score(predictor, paths):
        if isinstance(result, str):
            num_skipped += 1
            print(result, file=sys.stderr)
            continue
        results.append(result)
        if not arguments.json:
            print(f"{result['label']:16} {result['probability']:7.1%}  {result['path']}")
    if arguments.json:
        print(json.dumps(results, indent=1))
    return 2 if not results else int(num_skipped > 0)


if __name__ == "__main__":
    command_line.run(main)
