"""Dog or other from big sets: several sources as one, and the names that stand for dogs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxdnn.data.combined import combine, with_splits
from jaxdnn.data.dog_synsets import DOG_SYNSETS
from jaxdnn.data.positive import binarise_labels
from jaxdnn.data.sources import image_folder, tfds
from jaxdnn.errors import InputError

from .test_dataset import loaded, parts, photos, png, write

CHIHUAHUA, PUG, DHOLE, TABBY = "n02085620", "n02110958", "n02115913", "n02123045"


def kennel(root: Path, *names: str, each: int = 10) -> Path:
    for label, name in enumerate(names):
        for number in range(each):
            path = f"{name}/{number:02}.png"
            write(root / path, png(label, number) + f"{root.name}/{path}".encode())
    return root


def test_there_are_118_dogs_and_no_wolf_among_them():
    assert len(DOG_SYNSETS) == 118
    assert {CHIHUAHUA, PUG} <= DOG_SYNSETS
    assert not {DHOLE, TABBY, "n02114367", "n02116738"} & DOG_SYNSETS


@pytest.mark.parametrize(
    "class_names",
    [
        ("Cat", "Dog"),
        (TABBY, PUG),
        (f"{DHOLE}-dhole", f"{CHIHUAHUA}-chihuahua", f"{PUG}-pug"),
        ("cat", "dog", PUG),
    ],
)
def test_dog_is_a_class_of_any_case_and_all_of_imagenet_s_dogs(class_names):
    labels = np.arange(len(class_names), dtype=np.int32)
    found, names = binarise_labels(labels, class_names, ("dog",))
    assert names == ("other", "dog")
    expected = [name.lower() == "dog" or name[:9] in (PUG, CHIHUAHUA) for name in class_names]
    np.testing.assert_array_equal(found, expected)


def test_a_second_source_is_the_other_side(tmp_path):
    dogs = kennel(tmp_path / "dogs", f"{CHIHUAHUA}-chihuahua", f"{PUG}-pug")
    others = photos(tmp_path / "others", prefix="train", each=6)
    with pytest.raises(InputError, match=r"names all 2 classes.*--other"):
        loaded(dogs, positive=("dog",))
    dataset = loaded(dogs, other=str(others), positive=(f"{PUG}-pug", f"{CHIHUAHUA}-chihuahua"))
    for split in parts(dataset):
        is_dog = ["/dogs':" in name for name in split.names]
        np.testing.assert_array_equal(split.labels, is_dog)
    assert [len(split.labels) for split in parts(dataset)] == [12 + 12, 4 + 3, 4 + 3]


def test_combining_keeps_every_item_and_joins_classes_of_one_name(tmp_path):
    first = image_folder(kennel(tmp_path / "a", "cat", "dog", each=3))
    second = image_folder(kennel(tmp_path / "b", "dog", "owl", each=4))
    both = combine([first, second])
    assert both.class_names == ("cat", "dog", "owl")
    assert np.bincount(both.labels).tolist() == [3, 7, 4]
    stored = [first.read(item) for item in range(6)] + [second.read(item) for item in range(8)]
    assert [both.read(item) for item in range(14)] == stored
    for name, label in zip(both.item_names, both.labels, strict=True):
        assert f": {both.class_names[label]}/" in name
    assert both.fingerprint() != combine([second, first]).fingerprint()
    drawn = [
        with_splits(source, validation_fraction=0.3, test_fraction=0.3, seed=0)
        for source in (first, second)
    ]
    assert (combine(drawn).splits != "").all()


def test_a_streamed_combination_is_the_one_in_memory(tmp_path):
    first, second = kennel(tmp_path / "a", "cat", "dog"), kennel(tmp_path / "b", "dog", "owl")
    whole = loaded(first, other=str(second))
    stream = loaded(first, other=str(second), streaming=True)
    for ours, theirs in zip(parts(stream), parts(whole), strict=True):
        assert ours.names == theirs.names
        np.testing.assert_array_equal(ours.images[np.arange(len(ours.names))], theirs.in_memory())


PETS = """
import io, sys
import tensorflow_datasets as tfds
from PIL import Image

class OxfordIiitPet(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("3.2.0")
    def _info(self):
        label = tfds.features.ClassLabel
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": label(names=["Abyssinian", "beagle", "pug"]),
            "species": label(names=["Cat", "Dog"])}))
    def _split_generators(self, manager):
        return {"train": self._generate_examples(9), "test": self._generate_examples(6)}
    def _generate_examples(self, number):
        for i in range(number):
            stream = io.BytesIO()
            Image.new("RGB", (3 + i, number), (i, i, 90 * (i % 3))).save(stream, "PNG")
            yield i, {"image": stream.getvalue(), "label": i % 3, "species": min(i % 3, 1)}

OxfordIiitPet(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""


def test_the_pets_are_cats_and_dogs(tmp_path):
    (tmp_path / "pets.py").write_text(PETS)
    command = [sys.executable, "-W", "ignore", tmp_path / "pets.py", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    assert tfds("oxford_iiit_pet", str(tmp_path)).class_names == ("Cat", "Dog")
    dataset = loaded("tfds:oxford_iiit_pet", data_dir=str(tmp_path), positive=("dog",))
    assert np.bincount(dataset.test.labels).tolist() == [2, 4]
