"""Folders and buckets: the same labelled images, and one clear line where there are none."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from jaxdnn.data import Source, UnreadableImage, image_folder, image_zip, open_source, read_images
from jaxdnn.data.files import folder_files, read_file, remote_files
from jaxdnn.errors import InputError
from tests.hostile_files import foreign_names, with_unread

from .helpers import assert_same, decode, loaded, photos, png, write, write_folder, write_zip


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
    assert source.unlabelled == ("cover.png",)
    assert [source.read(index) for index in range(2)] == [png(0, 2, side=2), png(0, 1, side=2)]


@both
def test_images_beside_a_folder_around_everything_do_not_hide_it(tmp_path, kind):
    names = ["top.png", "all/cover.png", "all/dog/1.png", "all/cat/1.png"]
    source = either(tmp_path, kind, names)
    assert source.class_names == ("cat", "dog")
    assert source.unlabelled == ("all/cover.png", "top.png")


def test_names_that_are_not_unicode_are_read_and_shown(tmp_path):
    root = write_folder(tmp_path / "photos", ["dog/1.png", "cat/1.png"])
    (root / "dog" / os.fsdecode(b"caf\xe9.png")).write_bytes(png(0, 9, side=2))
    source = image_folder(root)
    assert source.item_names[2].encode("utf-8").decode() == r"dog/caf\xe9.png"
    assert source.read(2) == png(0, 9, side=2)


def test_a_train_is_a_class_beside_other_vehicles(tmp_path):
    source = image_folder(write_folder(tmp_path, ["bus/1.png", "train/1.png"]))
    assert items(source) == {("", "bus"), ("", "train")}


def test_a_name_is_one_line(tmp_path):
    source = image_folder(write_folder(tmp_path / "photos", ["dog/a\nb\t.png", "cat/1.png"]))
    assert source.item_names[1] == r"dog/a\nb\t.png"
    assert source.read(1) == png(0, 0, side=2)


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
    assert source.ignored == (("closed/", "a folder that cannot be listed: Permission denied"),)
    with pytest.raises(InputError, match=r"cannot list folder .*closed': Permission denied"):
        image_folder(root / "closed")


@both
def test_names_in_any_script(tmp_path, kind):
    decomposed = "cafe\u0301/犬.png"
    source = either(tmp_path, kind, [decomposed, "собака/1.png"])
    assert source.class_names == ("caf\u00e9", "собака")
    assert isinstance(source.read(0), bytes)


def test_a_class_is_what_the_disk_calls_it_and_is_shown_apart(tmp_path):
    source = image_folder(foreign_names(tmp_path))
    assert np.bincount(source.labels).tolist() == [4] * 7
    assert set(source.class_names) == {
        *(r"caf\xe9", r"caf\xc4", r"'e\u0301t'", r"'\xe9t'", r"a\x01", r"a\x02"),
        r"\x1b[31m\u202egnp\x07",
    }
    folders = {
        (source.labels[i], name.partition("/")[0]) for i, name in enumerate(source.item_names)
    }
    # The two spellings of one letter look the same among the files, whose names nobody compares.
    assert len(folders) == 7


@both
def test_images_that_are_not_read_are_counted_and_named_by_kind(tmp_path, kind):
    folder = with_unread(tmp_path / "photos")
    for number in range(9):
        (folder / f"empty{number}").mkdir()
    source = image_folder(folder)
    if kind == "zip":
        shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
        source = image_zip(tmp_path / "packed.zip")
    told = dict(source.ignored)
    assert len(source.labels) == 24
    assert list(told) == [
        *("files without an ending", "*.heic", "*.jpg_large", "*.jp2", "9 folders", "other files")
    ]
    assert told["files without an ending"] == (
        "3, such as cat/0: PNG by another name: rename to *.png"
    )
    assert "3, such as dog/0.heic: HEIC is not read: convert" in told["*.heic"]
    assert "pillow-heif" in told["*.heic"]
    assert "JPEG 2000 is not read" in told["*.jp2"]
    assert "1, such as bird/9.jpg_large: PNG by another name" in told["*.jpg_large"]
    assert ".txt 1" in told["other files"]


def test_a_folder_of_other_kinds_alone_says_which(tmp_path):
    write(tmp_path / "cat/1.heic", b"\x00\x00\x00\x18ftypheic")
    with pytest.raises(InputError, match=r"no images in .*; \*.heic: 1, .*pillow-heif; expected"):
        image_folder(tmp_path)
    read = dict(read_images([tmp_path, tmp_path / "cat/1.heic"], image_size=4, channels=1))
    assert len(read) == 2
    assert all("HEIC is not read: convert" in str(why) for why in read.values())


@both
def test_splits_inside_the_classes_are_splits(tmp_path, kind):
    names = [f"{c}/{s}/x/{c}.png" for c in ("cat", "dog") for s in ("Train", "val", "test")]
    source = either(tmp_path, kind, [*names, "cover.png"])
    parts = ("train", "validation", "test")
    assert items(source) == {(part, name) for part in parts for name in ("cat", "dog")}


@both
def test_splits_inside_some_classes_are_said_to_be_none(tmp_path, kind):
    source = either(tmp_path, kind, ["cat/train/1.png", "cat/test/2.png", "dog/1.png"])
    assert items(source) == {("", "cat"), ("", "dog")}
    told = dict(source.ignored)
    assert told.keys() == {"cat/train/", "cat/test/"}
    assert "a split's name inside a class" in told["cat/train/"]


@both
@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"no images in .*photos.*expected \{class\}.*put images"),
        (["a.txt"], r"no images in"),
        (["1.png", "2.png"], r"2 images but no class folders in .*'1.png'"),
        (["train/1.png", "test/2.png"], r"2 images but no class folders"),
        (["dog/1.png", "dog/2.png"], r"one class only \('dog'\).*add the others"),
        (["train/dog/1.png", "extra/dog/2.png"], r"split folders \(train\) next to others \(extra"),
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


BUCKET = "gs://bucket"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder behind an address, opened as etils.epath opens any bucket."""
    root = tmp_path / "bucket"
    root.mkdir()

    def local(call, path, *args, **options):
        return call(str(path).replace(BUCKET, str(root)), *args, **options)

    names = ("open", "exists", "isdir", "listdir", "stat")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with epath.testing.mock_epath(**dict.fromkeys(names, local)):
        yield root


@pytest.mark.parametrize("streaming", [False, True])
def test_a_bucket_is_the_folder_that_it_holds(bucket, streaming, tmp_path):
    folder = photos(bucket / "photos", each=8)
    write(folder / "dog/deeper/bad.png", b"text")
    write(folder / ".hidden/dog/x.png", png(0, 0))
    ours = loaded(f"{BUCKET}/photos", streaming=streaming, max_unreadable=0.1)
    theirs = loaded(folder, max_unreadable=0.1)
    assert ours.skipped == theirs.skipped
    assert_same(ours, theirs)
    kept = list(tmp_path.glob("cache/jaxdnn/*/survey-*.npz"))
    assert len(kept) == streaming


def test_a_zip_in_a_bucket(bucket):
    path = write_zip(bucket / "photos.zip", ["dog/1.png", "cat/1.png"])
    source = open_source(f"{BUCKET}/photos.zip")
    here = open_source(str(path))
    assert list(source.item_names) == list(here.item_names)
    assert [source.read(i) for i in range(2)] == [here.read(i) for i in range(2)]
    assert source.fingerprint() == here.fingerprint()
    path.write_bytes(path.read_bytes()[:-30])
    cut = open_source(f"{BUCKET}/photos.zip")
    assert [cut.read(i) for i in range(2)] == [here.read(i) for i in range(2)]


def test_the_fingerprint_tells_a_changed_file(bucket):
    folder = photos(bucket / "photos", each=3)
    before = remote_files(f"{BUCKET}/photos").fingerprint()
    assert remote_files(f"{BUCKET}/photos").fingerprint() == before
    write(folder / "dog/01.png", png(1, 1, side=9))
    assert remote_files(f"{BUCKET}/photos").fingerprint() != before


def test_a_file_of_a_bucket_that_changes_while_it_is_streamed_is_noticed(bucket):
    folder = photos(bucket / "photos", each=8)
    dataset = loaded(f"{BUCKET}/photos", streaming=True)
    name = dataset.train.names[2]
    dataset.train.images[np.arange(5)]
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1  # The size is the same.
    write(folder / name, bytes(data))
    with pytest.raises(InputError, match=rf"{name} .*it has changed since it was first read"):
        dataset.train.images[np.arange(5)]


def test_what_is_gone_or_cannot_be_opened_is_one_line(bucket):
    folder = photos(bucket / "photos", each=3)
    files = remote_files(f"{BUCKET}/photos")
    Path(folder / files.names[0]).unlink()
    with pytest.raises(UnreadableImage, match="cannot be read"):
        files.read(0)
    for address, message in (
        (f"{BUCKET}/nowhere", "does not exist"),
        ("nothing://bucket/x", "cannot be opened: .*etils.epath"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            open_source(address)
        assert "\n" not in str(caught.value)


@pytest.fixture
def deep(tmp_path):
    """A folder with 1,500 folders in each other; Python's own tools cannot remove them."""
    place = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=place)
        below = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = below
    os.close(place)
    yield tmp_path
    subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


def test_folders_too_deep_to_walk_are_named(deep):
    write(deep / "cat/1.png", b"")
    files = folder_files(deep)
    assert files.names == ("cat/1.png",)
    assert any("folders deep: move it up" in reason for _, reason in files.ignored)
