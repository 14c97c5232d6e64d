"""Sources: the same labelled images wherever they lie, and one clear line where they do not."""

import io
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxdnn.data import records
from jaxdnn.data.decode import UnreadableImage, decode
from jaxdnn.data.folders import folder_files, read_file
from jaxdnn.data.layout import class_layout
from jaxdnn.data.source import Source
from jaxdnn.data.sources import image_folder, image_zip, open_source, silhouettes, tfds
from jaxdnn.data.zips import zip_files
from jaxdnn.errors import InputError


def png(value: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (2, 2), value).save(stream, "PNG")
    return stream.getvalue()


def write_folder(root: Path, names: list[str]) -> Path:
    for value, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(value))
    return root


def write_zip(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for value, name in enumerate(names):
            archive.writestr(name, png(value))
    return path


def either(tmp_path: Path, kind: str, names: list[str]) -> Source:
    if kind == "folder":
        return image_folder(write_folder(tmp_path / "photos", names))
    return image_zip(write_zip(tmp_path / "photos.zip", names))


def items(source: Source) -> set[tuple[str, str]]:
    """Split and class of every item, without its name."""
    names = [source.class_names[label] for label in source.labels]
    return set(zip(source.splits.tolist(), names, strict=True))


both = pytest.mark.parametrize("kind", ["folder", "zip"])


@both
def test_classes_are_folders_and_each_item_reads_its_own_file(tmp_path, kind):
    names = ["dog/b.png", "cat/x/y/deep.png", "dog/a.PNG", "bird/1.png"]
    source = either(tmp_path, kind, names)
    assert source.class_names == ("bird", "cat", "dog")
    assert list(source.item_names) == sorted(names)
    assert source.labels.tolist() == [0, 1, 2, 2]
    assert set(source.splits.tolist()) == {""}
    for index, name in enumerate(source.item_names):
        pixels = decode(source.read(index), image_size=None, channels=1)
        assert pixels.flat[0] == names.index(name)


@both
@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [("train", "validation", "test"), ("training", "val", "testing"), ("Train", "VALID", "Test")],
)
def test_splits_are_known_by_their_usual_names(tmp_path, kind, train, validation, test):
    folders = [f"{split}/{name}" for split in (train, validation, test) for name in ("cat", "dog")]
    source = either(tmp_path, kind, [f"{folder}/1.png" for folder in folders])
    splits = ("train", "validation", "test")
    assert items(source) == {(split, name) for split in splits for name in ("cat", "dog")}


@both
@pytest.mark.parametrize("wrapper", ["photos/", "a/b/c/"])
def test_a_folder_around_everything_is_looked_through(tmp_path, kind, wrapper):
    source = either(tmp_path, kind, [f"{wrapper}{c}/1.png" for c in ("cat", "dog")])
    assert items(source) == {("", "cat"), ("", "dog")}
    assert list(source.item_names) == [f"{wrapper}cat/1.png", f"{wrapper}dog/1.png"]


@both
def test_what_is_no_image_is_ignored(tmp_path, kind):
    junk = ["dog/Thumbs.db", "dog/._1.png", ".git/cat/2.png", "__MACOSX/dog/._1.png", "read.txt"]
    source = either(tmp_path, kind, ["dog/1.png", "cat/1.jpeg", *junk])
    assert list(source.item_names) == ["cat/1.jpeg", "dog/1.png"]


@both
def test_images_beside_the_class_folders_are_named(tmp_path, kind):
    source = either(tmp_path, kind, ["cover.png", "dog/1.png", "cat/1.png"])
    assert source.outside == ("cover.png",)
    assert [source.read(index) for index in range(2)] == [png(2), png(1)]


@both
def test_images_beside_a_folder_around_everything_do_not_hide_it(tmp_path, kind):
    names = ["top.png", "all/cover.png", "all/dog/1.png", "all/cat/1.png"]
    source = either(tmp_path, kind, names)
    assert source.class_names == ("cat", "dog")
    assert source.outside == ("all/cover.png", "top.png")


def test_names_that_are_not_unicode_are_read_and_shown(tmp_path):
    root = write_folder(tmp_path / "photos", ["dog/1.png", "cat/1.png"])
    (root / "dog" / os.fsdecode(b"caf\xe9.png")).write_bytes(png(9))
    source = image_folder(root)
    assert source.item_names[2].encode("utf-8").decode() == "dog/caf\ufffd.png"
    assert source.read(2) == png(9)


def test_a_train_is_a_class_beside_other_vehicles():
    layout = class_layout(("bus/1.png", "train/1.png"), origin="here")
    assert {(file.split, file.class_name) for file in layout.files} == {("", "bus"), ("", "train")}


def test_a_name_is_one_line(tmp_path):
    source = image_folder(write_folder(tmp_path / "photos", ["dog/a\nb\t.png", "cat/1.png"]))
    assert source.item_names[1] == "dog/a\ufffdb\ufffd.png"
    assert source.read(1) == png(0)


def test_a_folder_that_cannot_be_listed_is_set_aside(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "photos", ["dog/1.png", "cat/1.png", "closed/1.png"])
    scandir = os.scandir

    def refuse(folder: str):  # Rights do not bind an administrator, who may run the tests.
        if folder.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    source = image_folder(root)
    assert list(source.item_names) == ["cat/1.png", "dog/1.png"]
    assert source.set_aside == (("closed/", "a folder that cannot be listed: Permission denied"),)
    with pytest.raises(InputError, match=r"cannot list folder .*closed': Permission denied"):
        image_folder(root / "closed")


@both
def test_names_in_any_script(tmp_path, kind):
    decomposed = "cafe\u0301/犬.png"
    source = either(tmp_path, kind, [decomposed, "собака/1.png"])
    assert source.class_names == ("caf\u00e9", "собака")
    assert isinstance(source.read(0), bytes)


@both
@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"no images in .*photos.*expected \{class\}.*put images"),
        (["a.txt"], r"no images in"),
        (["1.png", "2.png"], r"2 images but no class folders in .*'1.png'"),
        (["train/1.png", "test/2.png"], r"2 images but no class folders"),
        (["dog/1.png", "dog/2.png"], r"one class only \('dog'\).*add the others"),
        (["train/dog/1.png", "extra/dog/2.png"], r"split folders \(train\) beside others \(extra"),
    ],
)
def test_a_layout_that_cannot_be_used_is_one_clear_line(tmp_path, kind, names, message):
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match=message) as caught:
        either(tmp_path, kind, names)
    assert "\n" not in str(caught.value)


def test_links_that_loop_end(tmp_path):
    root = write_folder(tmp_path / "photos", ["dog/1.png", "cat/1.png"])
    (root / "dog/again").symlink_to(root)
    (root / "cat/self.png").symlink_to("self.png")
    (root / "cat/gone.png").symlink_to("nowhere.png")
    files = folder_files(root)
    assert files.names == ("cat/1.png", "cat/gone.png", "cat/self.png", "dog/1.png")
    for index in (1, 2):
        with pytest.raises(UnreadableImage, match="cannot be read"):
            files.read(index)


def test_a_pipe_is_not_waited_for(tmp_path):
    root = write_folder(tmp_path / "photos", ["dog/1.png"])
    os.mkfifo(root / "dog/2.png")
    assert folder_files(root).names == ("dog/1.png",)


def test_linked_folders_are_followed(tmp_path):
    elsewhere = write_folder(tmp_path / "elsewhere", ["1.png"])
    root = write_folder(tmp_path / "photos", ["dog/1.png"])
    (root / "cat").symlink_to(elsewhere)
    assert folder_files(root).names == ("cat/1.png", "dog/1.png")


def test_a_file_has_a_largest_size(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x" * 11)
    assert len(read_file(tmp_path / "a.png", max_bytes=11)) == 11
    with pytest.raises(UnreadableImage, match=r"more than the 10 bytes"):
        read_file(tmp_path / "a.png", max_bytes=10)


@pytest.mark.parametrize(
    "name", ["../x.png", "dog/../../x.png", "/etc/x.png", "C:/x.png", "dog\\..\\x.png", "../x.txt"]
)
def test_a_zip_member_that_points_outside_is_set_aside(tmp_path, name):
    source = open_source(str(write_zip(tmp_path / "photos.zip", ["dog/1.png", "cat/1.png", name])))
    assert list(source.item_names) == ["cat/1.png", "dog/1.png"]
    assert source.set_aside == ((name, "its path points outside the archive"),)


def test_an_encrypted_zip_is_refused(tmp_path):
    path = write_zip(tmp_path / "photos.zip", ["dog/1.png", "cat/1.png"])
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 8] |= 0x1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"encrypted \(member 'dog/1.png'\).*unpack it"):
        image_zip(path)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK", b"PK\x03\x04 but no more"])
def test_what_is_no_zip_is_refused(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read zip .*expected a zip archive"):
        open_source(str(tmp_path / "a.txt"))


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dog/bomb.png", bytes(1_000_000))
    with pytest.raises(UnreadableImage, match=r"1,000,000 bytes are more than the 999,999"):
        zip_files(path, max_bytes=999_999).read(0)


def test_a_zip_member_that_lies_about_its_size_is_not_unpacked(tmp_path):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dog/bomb.png", bytes(1_000_000))
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<I", 100)
    path.write_bytes(data)
    with pytest.raises(UnreadableImage, match=r"damaged in the zip"):
        zip_files(path, max_bytes=1000).read(0)


def test_a_damaged_zip_member_is_unreadable_and_the_others_are_not(tmp_path):
    path = write_zip(tmp_path / "photos.zip", ["dog/1.png", "dog/2.png"])
    data = bytearray(path.read_bytes())
    start = data.index(b"dog/1.png") + len("dog/1.png")
    data[start : start + 20] = bytes(20)
    path.write_bytes(data)
    files = zip_files(path)
    with pytest.raises(UnreadableImage, match="damaged in the zip"):
        files.read(0)
    assert files.read(1) == png(1)


def test_a_zip_is_read_by_many_threads_at_once(tmp_path):
    names = [f"dog/{i:03}.png" for i in range(200)]
    files = zip_files(write_zip(tmp_path / "photos.zip", names))
    places = list(range(200)) * 5
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(files.read, places))
    assert found == [png(place) for place in places]


def test_the_silhouettes_are_as_documented():
    source = silhouettes()
    assert len(source.class_names) == 10
    assert source.class_names[4] == "dog"
    is_dog = source.labels == 4
    assert [(is_dog & (source.splits == split)).sum() for split in ("train", "test")] == [796, 199]
    assert len(source.labels) == len(source.item_names) == 9692
    assert {np.shape(source.read(index)) for index in range(0, 9692, 500)} == {(28, 28, 1)}


def test_open_source_chooses_by_what_the_name_is(tmp_path):
    write_folder(tmp_path / "photos", ["dog/1.png", "cat/1.png"])
    write_zip(tmp_path / "photos.ZIP", ["dog/1.png", "cat/1.png"])
    assert open_source("silhouettes").name == "silhouettes"
    assert open_source(str(tmp_path / "photos")).name.startswith("folder")
    assert open_source(str(tmp_path / "photos.ZIP")).name.startswith("zip")
    with pytest.raises(InputError, match=r"'nowhere' does not exist; expected silhouettes, tfds"):
        open_source("nowhere")
    with pytest.raises(InputError, match=r"--data-dir 'x' came with --data 'silhouettes'"):
        open_source("silhouettes", "x")


def test_a_tfds_set_that_is_not_prepared_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match=r"'mnist' is not prepared in .*there: nothing; prepare"):
        tfds("mnist", str(tmp_path))


def test_a_tfds_set_for_tensorflow_only_is_one_clear_line(tmp_path):
    folder = tmp_path / "mnist/3.0.1"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"fileFormat": "tfrecord"}')
    with pytest.raises(InputError, match=r"as tfrecord, which only TensorFlow reads.*prepare"):
        tfds("mnist", str(tmp_path))
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match=r"damaged dataset_info.json"):
        tfds("mnist", str(tmp_path))
    with pytest.raises(InputError, match=r"'mnist:1.0.0' is not prepared.*there: mnist:3.0.1"):
        tfds("mnist:1.0.0", str(tmp_path))


PREPARE = """
import io, logging, sys
logging.getLogger("absl").setLevel(logging.ERROR)
import tensorflow_datasets as tfds
from PIL import Image

class TwoColours(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version(sys.argv[2])
    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
            "picture": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "kind": tfds.features.ClassLabel(names=["red", "blue"])}))
    def _split_generators(self, manager):
        return {"train": self._generate_examples(6), "test": self._generate_examples(4)}
    def _generate_examples(self, number):
        for i in range(number):
            stream = io.BytesIO()
            Image.new("RGB", (3 + i, 2), ("red", "blue")[i % 2]).save(stream, "PNG")
            yield i, {"picture": stream.getvalue(), "kind": i % 2 if i != 5 else -1}

TwoColours(data_dir=sys.argv[1], file_format=sys.argv[3]).download_and_prepare()
"""


@pytest.fixture(scope="module")
def two_colours(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("prepared")
    (root / "two_colours.py").write_text(PREPARE)
    for version, kind in (
        ("1.8.0", "parquet"),
        ("1.9.0", "array_record"),
        ("1.10.0", "array_record"),
    ):
        command = [sys.executable, "-W", "ignore", root / "two_colours.py", root, version, kind]
        subprocess.run(command, check=True, capture_output=True)
    return str(root)


@pytest.mark.parametrize("version", ["1.8.0", "1.9.0", "1.10.0"])  # The first is Parquet.
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


@pytest.mark.parametrize("version", ["1.8.0", "1.10.0"])
def test_large_sets_are_read_by_place_and_keep_their_labels(
    two_colours, tmp_path, version, monkeypatch
):
    folder = tmp_path / "two_colours" / version
    shutil.copytree(Path(two_colours) / "two_colours" / version, folder)
    name = f"two_colours:{version}"
    small = tfds(name, str(tmp_path))
    monkeypatch.setattr(records, "KEPT_BYTES", 0)
    large = tfds(name, str(tmp_path))
    load = records.Records.load
    monkeypatch.delattr(records.Records, "load")
    again = tfds(name, str(tmp_path))  # From the labels beside the data.
    for source in (large, again):
        np.testing.assert_array_equal(source.labels, small.labels)
        assert list(source.item_names) == list(small.item_names)
        order = [8, 0, 3, 7, 1]
        assert source.read_many is not None
        assert source.read_many(order) == [small.read(item) for item in order]
        assert source.reading(order)(7) == source.read(7) == small.read(7)
    (kept,) = folder.glob(".jaxdnn/labels-*.npy")
    monkeypatch.setattr(records.Records, "load", load, raising=False)
    cut, few = kept.read_bytes()[:-3], io.BytesIO()
    np.save(few, np.zeros(3, np.int32))
    for damaged in (cut, few.getvalue()):
        kept.write_bytes(damaged)
        np.testing.assert_array_equal(tfds(name, str(tmp_path)).labels, small.labels)


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
