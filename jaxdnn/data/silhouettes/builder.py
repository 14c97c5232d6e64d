"""The embedded silhouettes as a TFDS data set, built without TensorFlow.

    import tensorflow_datasets as tfds
    import jaxdnn.data.silhouettes.builder

    tfds.builder("animal_silhouettes", file_format="array_record").download_and_prepare()

Nothing is downloaded; afterwards it is read like any other: `--data tfds:animal_silhouettes`.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from jaxdnn.data.decode import write_png
from jaxdnn.data.silhouettes import silhouettes


class AnimalSilhouettes(tfds.core.GeneratorBasedBuilder):
    """9,692 grey 28x28 silhouettes of ten animals, split into train and test."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "As embedded in jaxdnn."}

    def _info(self) -> tfds.core.DatasetInfo:
        names = [*silhouettes().class_names]
        features = {
            "image": tfds.features.Image(shape=(28, 28, 1)),
            "label": tfds.features.ClassLabel(names=names),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            description=self.__doc__,
            license="MIT, Copyright (c) 2025 SinaSR-6",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        source = silhouettes()
        for item in np.flatnonzero(source.splits == split).tolist():
            pixels = source.read(item)
            assert isinstance(pixels, np.ndarray)
            yield (
                source.item_names[item],
                {"image": write_png(pixels), "label": int(source.labels[item])},
            )
