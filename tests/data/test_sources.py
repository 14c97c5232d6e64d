"""Sources: what a name opens, several as one, and images without classes."""

import zipfile
from pathlib import Path

import chex
import numpy as np
import pytest

from jaxdnn.data import UnreadableImage, image_folder, open_source, read_images
from jaxdnn.data.silhouettes import silhouettes
from jaxdnn.data.sources import combine
from jaxdnn.errors import InputError

from .helpers import (
    CLASSES,
    assert_same,
    loaded,
    parts,
    photos,
    png,
    write,
    write_folder,
    write_zip,
)


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


def kennel(root: Path, *names: str, each: int = 10) -> Path:
    for label, name in enumerate(names):
        for number in range(each):
            path = f"{name}/{number:02}.png"
            write(root / path, png(label, number) + f"{root.name}/{path}".encode())
    return root


def test_a_second_source_is_the_other_side(tmp_path):
    dogs = kennel(tmp_path / "dogs", "n02085620-chihuahua", "n02110958-pug")
    others = photos(tmp_path / "others", prefix="train", each=6)
    with pytest.raises(InputError, match=r"names all 2 classes.*--other"):
        loaded(dogs, positive=("dog",))
    dataset = loaded(dogs, other=str(others), positive=("n02110958-pug", "n02085620-chihuahua"))
    for split in parts(dataset):
        is_dog = ["/dogs':" in name for name in split.names]
        chex.assert_trees_all_equal(split.labels, np.array(is_dog))
    assert [len(split.labels) for split in parts(dataset)] == [12 + 12, 4 + 3, 4 + 3]


def test_combining_keeps_every_item_and_joins_classes_of_one_name(tmp_path):
    first = image_folder(kennel(tmp_path / "a", "cat", "dog", each=3))
    second = image_folder(kennel(tmp_path / "b", "dog", "owl", each=4))
    fractions = {"validation_fraction": 0.3, "test_fraction": 0.3, "seed": 0}
    both = combine([first, second], **fractions)
    assert both.class_names == ("cat", "dog", "owl")
    assert np.bincount(both.labels).tolist() == [3, 7, 4]
    stored = [first.read(item) for item in range(6)] + [second.read(item) for item in range(8)]
    assert [both.read(item) for item in range(14)] == stored
    for name, label in zip(both.item_names, both.labels, strict=True):
        assert f": {both.class_names[label]}/" in name
    assert both.fingerprint() != combine([second, first], **fractions).fingerprint()
    assert set(both.splits[:6]) == set(both.splits[6:]) == {"train", "validation", "test"}


def test_a_streamed_combination_is_the_one_in_memory(tmp_path):
    first, second = kennel(tmp_path / "a", "cat", "dog"), kennel(tmp_path / "b", "dog", "owl")
    whole = loaded(first, other=str(second))
    stream = loaded(first, other=str(second), streaming=True)
    assert_same(stream, whole)


def test_predict_reads_files_folders_and_zips_in_order(tmp_path):
    photos(tmp_path / "photos", each=40)
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("inner/name.png", png(1, 1))
        archive.writestr("inner/notes.txt", "no image")
    (tmp_path / "odd name").write_bytes(png(0, 3))
    paths = [tmp_path / "more.zip", tmp_path / "photos", tmp_path / "odd name"]
    found = dict(read_images(paths, image_size=4, channels=3))
    inside = [f"{tmp_path}/photos/{name}/{i:02}.png" for name in CLASSES for i in range(40)]
    assert list(found) == [f"{tmp_path}/more.zip/inner/name.png", *inside, f"{tmp_path}/odd name"]
    assert {np.shape(np.asarray(pixels)) for pixels in found.values()} == {(4, 4, 3)}
    values = [int(np.asarray(pixels)[0, 0, 0]) for pixels in found.values()]
    assert values == [81, *(80 * label + i for label in range(3) for i in range(40)), 3]


def test_predict_names_what_it_cannot_read_and_goes_on(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    (tmp_path / "text.jpg").write_text("text")
    (tmp_path / "good.png").write_bytes(png(0, 1))
    names = ("gone.png", "gone.zip", "empty", "bad.zip", "text.jpg", "good.png")
    found = list(read_images([tmp_path / n for n in names], image_size=4, channels=1))
    assert [name for name, _ in found] == [str(tmp_path / n) for n in names]
    reasons = ("No such file", "No such file", "no images", "cannot read zip", "not an image")
    for (_, error), reason in zip(found, reasons, strict=False):
        assert isinstance(error, UnreadableImage)
        assert reason in str(error)
    assert isinstance(found[-1][1], np.ndarray)


def test_the_same_images_twice_are_one_line(tmp_path):
    folder = photos(tmp_path / "photos", each=8)
    with pytest.raises(InputError, match=r"--other is .*photos, as --data is; name other"):
        loaded(folder, other=str(folder))
    (tmp_path / "linked").symlink_to(folder)
    for again in (f"{folder}/", tmp_path / "linked"):
        with pytest.raises(InputError, match=r"--other .* names the images of --data .* once more"):
            loaded(folder, other=str(again))
