"""Dog or other on the sets that people have, as TFDS declares them and with made-up images."""

import importlib
import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import numpy as np
import pytest
from PIL import Image

from jaxdnn.data import open_source, tfds, tfds_sets
from jaxdnn.data.silhouettes import silhouettes
from jaxdnn.data.splits import DOG_SYNSETS
from jaxdnn.data.tfds_sets import _Records, prepared_below
from jaxdnn.errors import InputError
from tests.hostile_files import ESCAPES, run_code_set

from .helpers import decode, loaded, parts

# tensorflow-datasets and what it imports are not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")


def test_a_tfds_set_that_is_not_prepared_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match=r"'mnist' is not prepared in .*there: nothing; prepare"):
        tfds("mnist", str(tmp_path))


def test_a_tfds_set_for_tensorflow_only_is_one_clear_line(tmp_path):
    folder = tmp_path / "mnist/3.0.1"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"fileFormat": "tfrecord"}')
    with pytest.raises(InputError, match=r"as 'tfrecord', which only TensorFlow reads.*prepare"):
        tfds("mnist", str(tmp_path))
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match=r"damaged dataset_info.json"):
        tfds("mnist", str(tmp_path))
    with pytest.raises(InputError, match=r"'mnist:1.0.0' is not prepared.*there: mnist:3.0.1"):
        tfds("mnist:1.0.0", str(tmp_path))


def build(
    root: Path,
    name: str,
    version: str,
    file_format: str,
    features: Callable[[Any], dict[str, Any]],
    examples: dict[str, list[dict[str, Any]]],
) -> None:
    """Prepare a data set of these examples by split, as its author would."""
    import tensorflow_datasets as module

    class Builder(module.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = module.core.Version(version)

        def _info(self) -> Any:
            kinds = module.features.FeaturesDict(features(module.features))
            return module.core.DatasetInfo(builder=self, features=kinds)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: enumerate(found) for split, found in examples.items()}

        def _generate_examples(self) -> Any:
            raise NotImplementedError

    Builder.name = name
    module.disable_progress_bar()
    Builder(data_dir=root, file_format=file_format).download_and_prepare()


def encoded(colour: Any, width: int, height: int) -> bytes:
    """Return a PNG of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def two_colours(tmp_path_factory) -> str:
    """Three versions, of which the first is Parquet; the sixth training image has no label."""
    root = tmp_path_factory.mktemp("prepared")
    examples = [
        {
            "picture": encoded(("red", "blue")[i % 2], 3 + i, 2),
            "kind": i % 2 if i != 5 else -1,
        }
        for i in range(6)
    ]
    for version, file_format in (
        ("1.8.0", "parquet"),
        ("1.9.0", "array_record"),
        ("1.10.0", "array_record"),
    ):
        build(
            root,
            "two_colours",
            version,
            file_format,
            lambda kinds: {
                "picture": kinds.Image(shape=(None, None, 3), encoding_format="png"),
                "kind": kinds.ClassLabel(names=["red", "blue"]),
            },
            {"train": examples, "test": examples[:4]},
        )
    return str(root)


@pytest.mark.parametrize("version", ["1.8.0", "1.10.0"])
def test_a_prepared_tfds_set_gives_encoded_images_labels_and_splits(two_colours, version):
    source = tfds(f"two_colours:{version}", two_colours)
    assert source.class_names == ("red", "blue")
    assert source.item_shape == (None, None, 3)
    for index, label in enumerate(source.labels):
        assert isinstance(source.read(index), bytes)
        pixels = decode(source.read(index), image_size=None, channels=3)
        assert pixels[0, 0].tolist() == [[255, 0, 0], [0, 0, 255]][label]
    assert (source.splits == "train").sum() == 5  # The sixth has no label.
    assert (source.splits == "test").sum() == 4
    assert "tensorflow" not in sys.modules


def test_the_newest_tfds_version_is_taken_unless_one_is_named(two_colours):
    assert tfds("two_colours", two_colours).name == "tfds:two_colours:1.10.0"
    assert tfds("two_colours:1.9.0", two_colours).name == "tfds:two_colours:1.9.0"
    with pytest.raises(InputError, match=r"there: two_colours:1.8.0, two_colours:1.9.0, two"):
        tfds("two_colors", two_colours)


@pytest.mark.parametrize("damage", ["missing", "cut", "zeros", "empty"])
def test_a_damaged_tfds_set_is_one_clear_line(two_colours, tmp_path, damage):
    shutil.copytree(Path(two_colours) / "two_colours", tmp_path / "two_colours")
    (file,) = (tmp_path / "two_colours/1.10.0").glob("*test.array_record*")
    data = file.read_bytes()
    file.unlink()
    if damage != "missing":
        zeros = data[:100] + bytes(100) + data[200:]
        file.write_bytes({"cut": data[: len(data) // 2], "zeros": zeros, "empty": b""}[damage])
    with pytest.raises(InputError, match=r"'two_colours' in .* is damaged: .*prepare it again"):
        tfds("two_colours", str(tmp_path))


def test_a_set_that_lacks_records_is_one_clear_line(two_colours, tmp_path):
    shutil.copytree(Path(two_colours) / "two_colours/1.8.0", tmp_path / "two_colours/1.8.0")
    file = tmp_path / "two_colours/1.8.0/dataset_info.json"
    text = file.read_text()
    assert text.count('"6"') == 1
    file.write_text(text.replace('"6"', '"7"'))
    with pytest.raises(InputError, match=r"holds 6 of the 7 records of its split train; .*prepare"):
        tfds("two_colours", str(tmp_path))


@pytest.mark.parametrize("where", ["features.json", "dataset_info.json"])
def test_the_code_that_a_set_names_is_not_run(tmp_path, monkeypatch, where):
    monkeypatch.syspath_prepend(tmp_path)
    folder = run_code_set(tmp_path, where=where)
    with pytest.raises(InputError, match=r"kind 'planted_features.Image', which is code.*; expect"):
        open_source(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "kind",
    [
        {"type": "planted.A", "content": {}},
        {"pythonClassName": "tensorflow_datasets.core.features.image_feature.Image.x"},
        {"sequence": {"feature": {"python_class_name": "planted.A"}}},
        {"jsonFeature": {"json": '{"feature": {"type": "planted.A"}}'}},
        {"content": '{"feature": [{"type": "planted.A"}]}'},
    ],
)
def test_however_a_kind_is_named_it_is_checked(kind):
    assert set(tfds_sets._named_kinds({"features": [kind]})) - tfds_sets._KINDS


@pytest.mark.parametrize("version", ["1.8.0", "1.10.0"])
def test_large_sets_are_read_by_place_and_keep_their_labels(
    two_colours, tmp_path, version, monkeypatch
):
    folder = tmp_path / "two_colours" / version
    shutil.copytree(Path(two_colours) / "two_colours" / version, folder)
    name = f"two_colours:{version}"
    small = tfds(name, str(tmp_path))
    large = tfds(name, str(tmp_path), kept_bytes=0)
    with monkeypatch.context() as patched:
        patched.delattr(_Records, "load")
        again = tfds(name, str(tmp_path), kept_bytes=0)  # From the labels stored with the data.
    for source in (large, again):
        chex.assert_trees_all_equal(source.labels, small.labels)
        assert list(source.item_names) == list(small.item_names)
        order = [8, 0, 3, 7, 1]
        assert source.read_many is not None
        assert source.read_many(order) == [small.read(item) for item in order]
        assert source.read_together(order)(7) == source.read(7) == small.read(7)
    (kept,) = folder.glob(".jaxdnn/labels-*.npz")
    stored, few = kept.read_bytes(), io.BytesIO()
    np.savez(few, labels=np.zeros(3, np.int32))
    at = stored.index(small.labels.tobytes()[:20])
    flipped = stored[:at] + bytes([1 - stored[at]]) + stored[at + 1 :]
    for damaged in (stored[:-3], few.getvalue(), flipped):
        kept.write_bytes(damaged)
        read = tfds(name, str(tmp_path), kept_bytes=0)
        chex.assert_trees_all_equal(read.labels, small.labels)


def test_class_names_that_others_gave_are_shown_apart_and_steer_nothing(two_colours, tmp_path):
    folder = tmp_path / "two_colours/1.10.0"
    shutil.copytree(Path(two_colours) / "two_colours/1.10.0", folder)
    (folder / "kind.labels.txt").write_text(f"red {ESCAPES}\nblue\n", encoding="utf-8")
    names = tfds("two_colours", str(tmp_path)).class_names
    assert names == (r"red \x1b[31m\u202egnp\x07", "blue")
    (folder / "kind.labels.txt").write_text("\u00e9\ne\u0301\n", encoding="utf-8")
    names = tfds("two_colours", str(tmp_path)).class_names
    assert names == (r"'\xe9'", r"'e\u0301'")


@pytest.mark.parametrize("label", [2, -2])
def test_labels_outside_the_classes_are_one_line(two_colours, monkeypatch, label):
    load = _Records.load

    def spoiled(self: _Records, **options: Any) -> None:
        load(self, **options)
        self.labels[3] = label

    monkeypatch.setattr(_Records, "load", spoiled)
    with pytest.raises(InputError, match=rf"label {label} in record 3 .*expected 0 to 1, as it"):
        tfds("two_colours", two_colours)


@pytest.mark.slow
@pytest.mark.shared_data
def test_cifar10_is_read_without_tensorflow(shared_data):
    source = tfds("cifar10", str(shared_data / "data/tfds"))
    assert source.class_names[5] == "dog"
    is_dog = source.labels == 5
    counts = [(is_dog & (source.splits == split)).sum() for split in ("train", "test")]
    assert counts == [5000, 1000]
    for index in np.random.default_rng(0).integers(0, 60_000, 20):
        assert decode(source.read(index), image_size=None, channels=None).shape == (32, 32, 3)
    assert "tensorflow" not in sys.modules


def test_the_pets_are_cats_and_dogs(tmp_path):
    def examples(num: int) -> list[dict[str, Any]]:
        return [
            {
                "image": encoded((i, i, 90 * (i % 3)), 3 + i, num),
                "label": i % 3,
                "species": min(i % 3, 1),
            }
            for i in range(num)
        ]

    build(
        tmp_path,
        "oxford_iiit_pet",
        "3.2.0",
        "array_record",
        lambda kinds: {
            "image": kinds.Image(shape=(None, None, 3)),
            "label": kinds.ClassLabel(names=["Abyssinian", "beagle", "pug"]),
            "species": kinds.ClassLabel(names=["Cat", "Dog"]),
        },
        {"train": examples(9), "test": examples(6)},
    )
    assert tfds("oxford_iiit_pet", str(tmp_path)).class_names == ("Cat", "Dog")
    dataset = loaded("tfds:oxford_iiit_pet", data_dir=str(tmp_path), positive=("dog",))
    assert np.bincount(dataset.test.labels).tolist() == [2, 4]


CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


WILD = ("n02115913-dhole", "n02116738-african_hunting_dog")


STANFORD = sorted([*(f"{synset}-breed" for synset in DOG_SYNSETS), *WILD])


PARTS = ("train", "validation", "test")
NUM = 3000


"""Records of a split: enough for three of each of ImageNet's classes."""


def numbered(number: int, side: int) -> bytes:
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
        {"image": numbered(first + number, 4)}
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
        pytest.param("cifar10", CIFAR10, ("train", "test"), 1, marks=pytest.mark.slow),
        ("cats_vs_dogs", None, ("train",), 1),
        pytest.param("oxford_iiit_pet", None, ("train", "test"), 1, marks=pytest.mark.slow),
        ("imagenet2012", None, ("train", "validation", "test"), 118),
        pytest.param("imagenet_resized/8x8", None, PARTS[:2], 118, marks=pytest.mark.slow),
        pytest.param("imagenet_resized/64x64", None, PARTS[:2], 118, marks=pytest.mark.slow),
    ],
)
def test_dog_or_other(tmp_path, mocked, name, names, splits, num_dogs):
    names = opened(name, tmp_path, names, splits=splits)
    dataset = loaded(f"tfds:{name}", data_dir=str(tmp_path), positive=("dog",), image_size=4)
    assert dataset.class_names == ("other", "dog")
    is_dog = np.array([n.lower() == "dog" or n in DOG_SYNSETS for n in names])
    assert is_dog.sum() == num_dogs
    num_hidden = NUM if name == "imagenet2012" else 0
    read = []
    for part in parts(dataset):
        corners = part.in_memory()[:, 0, 0].astype(int)
        numbers = corners[:, 0] + 256 * corners[:, 1]
        chex.assert_trees_all_equal(part.labels, is_dog[numbers % NUM % len(names)])
        read += numbers.tolist()
    assert len(set(read)) == len(read) == len(splits) * NUM - num_hidden
    own = "validation" if "validation" in splits else None
    if own:
        assert all(n.startswith("validation/") for n in dataset.validation.names)
        assert len(dataset.validation.names) == NUM


@pytest.mark.slow
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


@pytest.mark.parametrize("name", ["mnist", pytest.param("fashion_mnist", marks=pytest.mark.slow)])
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


@pytest.mark.slow
def test_the_silhouettes_are_a_tfds_builder_too(tmp_path):
    import tensorflow_datasets as module

    importlib.import_module("jaxdnn.data.silhouettes.builder")  # Which makes it known by name.

    module.disable_progress_bar()
    builder = module.builder("animal_silhouettes", data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    same(tfds("animal_silhouettes", str(tmp_path)), silhouettes())
    by_path = open_source(str(tmp_path / "animal_silhouettes"))
    assert by_path.name == "tfds:animal_silhouettes:1.0.0"
    assert by_path.fingerprint() == tfds("animal_silhouettes", str(tmp_path)).fingerprint()
    assert prepared_below(tmp_path) is None
