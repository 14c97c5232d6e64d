"""Dog or other on the sets that people have, as TFDS declares them and with made-up images."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxdnn.data.decode import decode
from jaxdnn.data.dog_synsets import DOG_SYNSETS
from jaxdnn.data.prepared import prepared_below, tfds
from jaxdnn.data.silhouettes import silhouettes
from jaxdnn.data.sources import open_source
from jaxdnn.errors import InputError

from .test_dataset import loaded, parts

# tensorflow-datasets and what it imports are not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
WILD = ("n02115913-dhole", "n02116738-african_hunting_dog")
STANFORD = sorted([*(f"{synset}-breed" for synset in DOG_SYNSETS), *WILD])
NUM = 3000
"""Records of a split: enough for three of each of ImageNet's classes."""


def png(number: int, side: int) -> bytes:
    """An image that tells its number."""
    stream = io.BytesIO()
    rows = np.full((side, side, 3), (number % 256, number // 256, 7), np.uint8)
    Image.fromarray(rows).save(stream, "PNG")
    return stream.getvalue()


class Made(list[dict[str, Any]]):
    """Records with one label after the other."""

    def __getitems__(self, places: Any) -> list[dict[str, Any]]:
        return [self[place] for place in places]


def opened(
    name: str, root: Path, names: list[str] | None = None, *, splits: tuple[str, ...] = ("train",)
) -> list[str]:
    """Write what TFDS says of a data set, as if it were prepared; return its class names."""
    import tensorflow_datasets as module

    builder = module.builder(name, data_dir=root)
    label = builder.info.features["species" if "species" in builder.info.features else "label"]
    if names is not None:  # Those that TFDS takes from the download.
        label.names = names
    template = module.core.ShardedFileTemplate(
        data_dir=root, dataset_name=builder.name, filetype_suffix="array_record"
    )
    infos = [
        module.core.SplitInfo(
            name=split, shard_lengths=[NUM], num_bytes=1, filename_template=template
        )
        for split in splits
    ]
    builder.info.set_splits(module.core.splits.SplitDict(infos))
    builder.info.set_file_format("array_record", override=True)
    folder = root / builder.info.full_name
    folder.mkdir(parents=True)
    builder.info.write_to_directory(folder)
    builder.info.features.save_config(folder)
    return label.names


def made_up(self: Any, split: str, decoders: Any, **_: Any) -> Made:
    """Stand for `as_data_source`: labels in turn, none in ImageNet's test."""
    keys = [key for key, kind in self.info.features.items() if hasattr(kind, "num_classes")]
    first = {"train": 0, "validation": NUM, "test": 2 * NUM}[split]
    is_hidden = self.name == "imagenet2012" and split == "test"
    labels = {key: self.info.features[key].num_classes for key in keys}
    return Made(
        {"image": png(first + number, 4)}
        | {key: -1 if is_hidden else number % num for key, num in labels.items()}
        for number in range(NUM)
    )


@pytest.fixture
def mocked():
    import tensorflow_datasets as module

    kind = module.core.DatasetBuilder
    init = kind.__init__
    with module.testing.mock_data(as_data_source_fn=made_up), pytest.MonkeyPatch.context() as patch:
        # The mock moves every builder to a folder of its own; read-only ones know theirs.
        patch.setattr(kind, "__init__", init)
        yield
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("name", "names", "splits", "num_dogs"),
    [
        ("cifar10", CIFAR10, ("train", "test"), 1),
        ("cats_vs_dogs", None, ("train",), 1),
        ("oxford_iiit_pet", None, ("train", "test"), 1),
        ("imagenet2012", None, ("train", "validation", "test"), 118),
        ("imagenet_resized/8x8", None, ("train", "validation"), 118),
        ("imagenet_resized/64x64", None, ("train", "validation"), 118),
    ],
)
def test_dog_or_other(tmp_path, mocked, name, names, splits, num_dogs):
    names = opened(name, tmp_path, names, splits=splits)
    dataset = loaded(f"tfds:{name}", data_dir=str(tmp_path), positive=("dog",), image_size=4)
    assert dataset.class_names == ("other", "dog")
    is_dog = np.array([n.lower() == "dog" or n in DOG_SYNSETS for n in names])
    assert is_dog.sum() == num_dogs
    num_hidden = NUM if name == "imagenet2012" else 0
    seen = []
    for part in parts(dataset):
        corners = part.in_memory()[:, 0, 0].astype(int)
        numbers = corners[:, 0] + 256 * corners[:, 1]
        np.testing.assert_array_equal(part.labels, is_dog[numbers % NUM % len(names)])
        seen += numbers.tolist()
    assert len(set(seen)) == len(seen) == len(splits) * NUM - num_hidden
    own = "validation" if "validation" in splits else None
    if own:
        assert all(n.startswith("validation/") for n in dataset.validation.names)
        assert len(dataset.validation.names) == NUM


def test_stanford_s_dogs_against_the_animals_of_cifar10(tmp_path, mocked):
    opened("stanford_dogs", tmp_path, STANFORD, splits=("train", "test"))
    opened("cifar10", tmp_path, CIFAR10, splits=("train", "test"))
    dataset = loaded(
        "tfds:stanford_dogs",
        other="tfds:cifar10",
        data_dir=str(tmp_path),
        positive=("dog",),
        image_size=4,
        allow_duplicates=True,
    )
    # CIFAR's own dogs are dogs too; Stanford's two wild dogs are not.
    per_class = NUM // len(STANFORD)
    num_dogs = len(DOG_SYNSETS) * per_class + NUM // 10
    assert dataset.test.labels.sum() == num_dogs
    assert len(dataset.test.labels) == 2 * NUM


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_ten_classes(tmp_path, mocked, name):
    opened(name, tmp_path, splits=("train", "test"))
    dataset = loaded(f"tfds:{name}", data_dir=str(tmp_path))
    assert len(dataset.class_names) == 10
    assert dataset.train.images.shape[1:] == (28, 28, 1)
    assert np.bincount(dataset.test.labels).tolist() == [NUM // 10] * 10
    with pytest.raises(InputError, match=r"--positive 'dog' is not a class"):
        loaded(f"tfds:{name}", data_dir=str(tmp_path), positive=("dog",))


def same(ours: Any, theirs: Any) -> None:
    """Assert that two sources hold the same labelled pictures in each split, in any order."""

    def contents(source: Any) -> list[tuple[str, int, bytes]]:
        return sorted(
            (str(split), int(label), decode(source.read(i), image_size=28, channels=1).tobytes())
            for i, (split, label) in enumerate(zip(source.splits, source.labels, strict=True))
        )

    assert ours.class_names == theirs.class_names
    assert contents(ours) == contents(theirs)


def test_the_silhouettes_are_a_tfds_builder_too(tmp_path):
    import tensorflow_datasets as module

    import jaxdnn.data.silhouettes.builder  # noqa: F401

    module.disable_progress_bar()
    builder = module.builder("animal_silhouettes", data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    same(tfds("animal_silhouettes", str(tmp_path)), silhouettes())
    by_path = open_source(str(tmp_path / "animal_silhouettes"))
    assert by_path.name == "tfds:animal_silhouettes:1.0.0"
    assert by_path.fingerprint() == tfds("animal_silhouettes", str(tmp_path)).fingerprint()
    assert prepared_below(tmp_path) is None
