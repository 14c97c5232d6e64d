"""Data sets in memory: what is loaded, how it is labelled, and what is refused."""

import zipfile

import chex
import numpy as np
import pytest

from jaxdnn.data import dataset, image_folder, reader
from jaxdnn.data.inspect import inspect_source, report, text
from jaxdnn.errors import InputError

from .helpers import CLASSES, Bar, assert_same, loaded, parts, photos, png, write


def test_every_image_is_once_in_one_part_with_its_own_label_and_name(tmp_path):
    dataset = loaded(photos(tmp_path))
    assert dataset.class_names == CLASSES
    assert [split.images.shape for split in parts(dataset)] == [(n, 6, 6, 1) for n in (18, 6, 6)]
    names = [name for split in parts(dataset) for name in split.names]
    assert len(set(names)) == 30
    for split in parts(dataset):
        chex.assert_type([split.in_memory(), split.labels], [np.uint8, np.int32])
        for image, label, name in zip(split.in_memory(), split.labels, split.names, strict=True):
            folder, file = name.split("/")
            assert folder == CLASSES[label]
            assert (image == 80 * label + int(file[:2])).all()


@pytest.mark.parametrize("num_threads", [1, 7])
def test_a_zip_is_the_same_as_its_folder_with_any_number_of_threads(
    tmp_path, num_threads, monkeypatch
):
    folder = photos(tmp_path / "photos", each=40)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(folder.rglob("*.png"), reverse=True):
            archive.write(path, path.relative_to(folder))
    first = loaded(folder)
    monkeypatch.setattr(reader, "_num_processors", lambda: num_threads)
    assert_same(first, loaded(tmp_path / "photos.zip"))


def test_the_seed_decides_the_drawn_parts(tmp_path):
    photos(tmp_path)
    assert loaded(tmp_path, seed=1).test.names == loaded(tmp_path, seed=1).test.names
    assert loaded(tmp_path, seed=1).test.names != loaded(tmp_path, seed=2).test.names


def test_given_parts_are_kept(tmp_path):
    for split in ("train", "val", "test"):
        photos(tmp_path, prefix=split, each=3)
    dataset = loaded(tmp_path)
    for folder, split in zip(("train", "val", "test"), parts(dataset), strict=True):
        assert len(split.names) == 9
        assert all(name.startswith(f"{folder}/") for name in split.names)


@pytest.mark.parametrize("positive", [("dog",), ("dog", "bird"), ("dog", "dog")])
def test_positive_classes_are_1_and_the_others_0(tmp_path, positive):
    dataset = loaded(photos(tmp_path), positive=positive)
    assert dataset.class_names == ("other", "+".join(dict.fromkeys(positive)))
    for split in parts(dataset):
        is_positive = [name.split("/")[0] in positive for name in split.names]
        chex.assert_trees_all_equal(split.labels, np.array(is_positive))


def test_parts_are_drawn_over_the_original_classes(tmp_path):
    dataset = loaded(photos(tmp_path), positive=("dog",))
    for split, count in zip(parts(dataset), (6, 2, 2), strict=True):
        folders = [name.split("/")[0] for name in split.names]
        assert [folders.count(name) for name in CLASSES] == [count] * 3


@pytest.mark.parametrize(
    ("positive", "message"),
    [
        (
            ("Dogs",),
            r"'Dogs' is not a class; did you mean 'dog'\?; expected some of bird, cat",
        ),
        (("zebra",), r"'zebra' is not a class; expected some of bird"),
        (CLASSES, r"names all 3 classes; expected at least one left"),
    ],
)
def test_a_positive_class_that_cannot_be_is_refused(tmp_path, positive, message):
    with pytest.raises(InputError, match=message):
        loaded(photos(tmp_path), positive=positive)


def test_the_silhouettes_are_dog_or_other_unless_told_otherwise():
    dataset = loaded("silhouettes", positive=None)
    assert dataset.class_names == ("other", "dog")
    assert dataset.train.images.shape[1:] == (28, 28, 1)
    assert sum(len(split.labels) for split in parts(dataset)) == 9692
    assert (len(dataset.test.labels), dataset.test.labels.sum()) == (1935, 199)
    assert len(loaded("silhouettes").class_names) == 10


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"side": 6}, (6, 6, 1)),
        ({"side": 6, "mode": "RGB"}, (6, 6, 3)),
        ({"side": 227}, (227, 227, 1)),
        ({"side": 228}, (64, 64, 1)),
    ],
)
def test_images_of_one_size_keep_it_and_grey_stays_grey(tmp_path, options, expected):
    assert loaded(photos(tmp_path, each=3, **options)).train.images.shape[1:] == expected


def test_one_other_size_or_one_colour_image_changes_the_choice(tmp_path):
    photos(tmp_path, each=3)
    write(tmp_path / "dog/big.png", png(2, 0, side=7))
    assert loaded(tmp_path).train.images.shape[1:] == (64, 64, 1)
    write(tmp_path / "dog/colour.png", png(2, 0, mode="RGB"))
    assert loaded(tmp_path).train.images.shape[1:] == (64, 64, 3)
    assert loaded(tmp_path, image_size=5).train.images.shape[1:] == (5, 5, 3)
    assert loaded(tmp_path, channels=1).train.images.shape[1:] == (64, 64, 1)


def test_unreadable_images_are_skipped_named_and_counted(tmp_path):
    photos(tmp_path)
    good = loaded(tmp_path, max_unreadable=0.1)
    victim = good.train.names[4]
    write(tmp_path / victim, png(0, 0)[:45])
    dataset = loaded(tmp_path, max_unreadable=0.1)
    assert [skipped.name for skipped in dataset.skipped] == [victim]
    lines = dataset.summary().splitlines()
    assert lines[0].endswith(": 17 to train, 6 to validate, 6 to test, 6 x 6 x 1")
    assert lines[-3:-1] == ["  modes: L: 29", "  sizes: 6x6: 29"]
    assert lines[-1].startswith(f"  1 skipped ({victim}: damaged")
    assert "damaged or incomplete" in dataset.skipped[0].reason
    assert dataset.train.names == tuple(n for n in good.train.names if n != victim)
    kept = np.arange(len(good.train.names)) != 4
    chex.assert_trees_all_equal(dataset.train.in_memory(), good.train.images[kept])
    chex.assert_trees_all_equal(dataset.train.labels, good.train.labels[kept])


def test_more_unreadable_images_than_allowed_stop(tmp_path):
    photos(tmp_path, each=100, side=2)
    for number in range(3):
        write(tmp_path / f"cat/{number:02}.png", b"")
    assert len(loaded(tmp_path).skipped) == 3
    write(tmp_path / "dog/07.png", b"text")
    with pytest.raises(
        InputError, match=r"4 of 300 images \(1.3%\).*cat/00.png: .*empty.*--max-unreadable"
    ):
        loaded(tmp_path)
    assert len(loaded(tmp_path, max_unreadable=0.02).skipped) == 4


def test_images_outside_the_classes_are_told_but_not_counted_as_unreadable(tmp_path):
    photos(tmp_path)
    write(tmp_path / "cover.png", png(0, 0))
    assert loaded(tmp_path).skipped == (("cover.png", "outside every class folder"),)


def test_a_class_without_readable_training_images_is_refused(tmp_path):
    for split in ("train", "val", "test"):
        photos(tmp_path, prefix=split, each=2)
    for path in (tmp_path / "train/cat").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"no training images of class 'cat'"):
        loaded(tmp_path, max_unreadable=0.5)


def test_a_part_without_readable_images_is_refused(tmp_path):
    for split in ("train", "val", "test"):
        photos(tmp_path, prefix=split, each=2)
    for path in (tmp_path / "val").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"no validation images in"):
        loaded(tmp_path, max_unreadable=0.5)


def test_a_set_that_does_not_fit_in_memory_is_streamed(tmp_path):
    photos(tmp_path)
    assert not loaded(tmp_path, max_memory_gib=30 * 36 / 2**30).train.images.is_streamed
    dataset = loaded(tmp_path, max_memory_gib=(30 * 36 - 1) / 2**30)
    assert dataset.train.images.is_streamed
    assert "6 x 6 x 1, streamed" in dataset.summary()
    with pytest.raises(InputError, match=r"18 images are streamed; .*leave --streaming out"):
        dataset.train.in_memory()


def test_images_of_which_a_few_do_not_fit_in_memory_are_refused_with_remedies(tmp_path):
    with pytest.raises(InputError, match=r"take .* GiB of memory; expected .*--image-size, or"):
        loaded(photos(tmp_path), image_size=1_000_000)


@pytest.mark.parametrize("streaming", [False, True])
def test_progress_counts_every_image(tmp_path, streaming, monkeypatch):
    bar = Bar()
    monkeypatch.setattr(dataset, "image_bar", lambda total, **_: bar)
    loaded(photos(tmp_path, each=40), streaming=streaming)
    assert bar.done[-1] == 120
    assert bar.done == sorted(set(bar.done))


def test_the_bar_is_silent_when_quick(tmp_path, capfd):
    loaded(photos(tmp_path, each=3), progress=True)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.shared_data
def test_the_lectures_kind_of_photographs(shared_data):
    dataset = loaded(
        shared_data / "data/tiny_imagenet_dogs.zip",
        positive=("dog",),
        image_size=32,
        channels=1,
        validation_fraction=0.1,
    )
    assert dataset.class_names == ("other", "dog")
    assert [len(split.labels) for split in parts(dataset)] == [6750, 750, 750]
    assert [int(split.labels.sum()) for split in parts(dataset)] == [2700, 300, 300]
    assert dataset.skipped == ()
    assert 80 < dataset.train.in_memory().mean() < 150


@pytest.mark.shared_data
def test_photographs_of_full_size(shared_data):
    dataset = loaded(shared_data / "data/imagenet_photos_160.zip", image_size=227, channels=1)
    assert sum(len(split.labels) for split in parts(dataset)) == 160
    assert {split.images.shape[1:] for split in parts(dataset)} == {(227, 227, 1)}


def test_a_class_that_a_split_lacks_is_told(tmp_path):
    folder = photos(tmp_path, prefix="train")
    write(folder / "test/cat/99.png", png(1, 99))
    told = "no test image of 2 of 3 classes: bird, dog"
    dataset = loaded(folder)
    assert told in dataset.summary().splitlines()[4]
    assert "no validation image" not in dataset.summary()
    source = image_folder(folder)
    survey, _ = inspect_source(source, (), lambda num: None)
    assert told in text(report(source, survey)).splitlines()
