"""Streamed images: the same as in memory, whatever is cached, changed or interrupted."""

import errno
import math
import os
import shutil
from pathlib import Path
from typing import Any

import chex
import numpy as np
import pytest

from jaxdnn.data import Dataset, decode, files, image_folder, reader
from jaxdnn.data import dataset as dataset_module
from jaxdnn.data.inspect import inspect_source
from jaxdnn.errors import InputError

from .helpers import Bar, all_images, assert_same, loaded, parts, photos, png, write


@pytest.fixture
def folder(tmp_path) -> Path:
    return photos(tmp_path / "photos", each=20, side=4)


def streamed(folder: Path, **options: Any) -> Dataset:
    return loaded(folder, streaming=True, **options)


@pytest.fixture
def decoded_names(monkeypatch) -> list[bytes]:
    """What has been decoded since, by its bytes."""
    seen: list[bytes] = []
    decode = reader.decode
    monkeypatch.setattr(
        reader,
        "decode",
        lambda data, **options: (seen.append(data), decode(data, **options))[1],
    )
    return seen


@pytest.mark.parametrize("cache_gib", [0, 500 / 2**30, 1])
def test_a_stream_is_what_is_in_memory(folder, cache_gib):
    write(folder / "cat/07.png", b"text")
    write(folder / "cover.png", png(0, 0))
    whole = loaded(folder, max_unreadable=0.1)
    for _ in range(2):  # The second time from what the first has kept.
        dataset = streamed(folder, max_unreadable=0.1, cache_gib=cache_gib)
        assert dataset.skipped == whole.skipped
        for ours, theirs in zip(parts(dataset), parts(whole), strict=True):
            assert ours.images.is_streamed
            assert not theirs.images.is_streamed
            assert ours.images.shape == theirs.images.shape
        assert_same(dataset, whole)
        assert dataset.train.pixel_stats() == whole.train.pixel_stats()


@pytest.mark.parametrize("streaming", [False, True])
def test_batches_come_in_order_and_each_image_by_its_place(folder, streaming):
    images = loaded(folder, streaming=streaming).train.images
    everything = images[np.arange(len(images))]
    rng = np.random.default_rng(0)
    asked = [rng.integers(0, len(images), size) for size in (1, 40, 16, 17, 0, 33)]
    for places, batch in zip(asked, images.batches(asked), strict=True):
        chex.assert_trees_all_equal(batch, everything[places])
    (padded,) = images.batches([asked[1]], num_rows=50)
    assert len(padded) == 50
    chex.assert_trees_all_equal(padded[:40], everything[asked[1]])
    chex.assert_trees_all_equal(images[3], everything[3])


def test_with_a_cache_nothing_is_decoded_twice_until_it_changes(folder, decoded_names):
    first = all_images(streamed(folder, cache_gib=1))
    assert len(decoded_names) == len(set(decoded_names)) == 60
    again = all_images(streamed(folder, cache_gib=1, seed=1))  # Another split.
    assert len(decoded_names) == 60
    assert sum(map(len, again)) == sum(map(len, first)) == 60
    write(folder / "dog/03.png", png(2, 70, side=4))
    changed = all_images(streamed(folder, cache_gib=1))
    assert len(decoded_names) == 120
    assert sum(int((image == 230).all()) for part in changed for image in part) == 1


def test_a_first_look_that_is_interrupted_keeps_what_it_has_decoded(
    folder, decoded_names, monkeypatch
):
    whole = loaded(folder)
    del decoded_names[:]
    with monkeypatch.context() as patched:
        patched.setattr(dataset_module, "image_bar", lambda total, **_: Bar(stop_at=32))
        with pytest.raises(KeyboardInterrupt):
            streamed(folder, cache_gib=1)
    num = len(decoded_names)
    assert num >= 32
    dataset = streamed(folder, cache_gib=1)
    assert len(decoded_names) == len(set(decoded_names)) == 60
    assert dataset.inventory == whole.inventory
    assert dataset.train.pixel_stats() == whole.train.pixel_stats()


def test_a_cache_keeps_to_its_bound_and_old_ones_go(folder, decoded_names):
    streamed(folder, cache_gib=16 * 25 / 2**30)
    del decoded_names[:]
    all_images(streamed(folder, cache_gib=16 * 25 / 2**30))
    assert len(decoded_names) == 35
    kept = folder / ".jaxdnn"
    assert (next(kept.glob("*.u8"))).stat().st_size == 16 * 25
    streamed(folder, cache_gib=16 * 25 / 2**30, image_size=2)
    assert len(list(kept.glob("*.u8"))) == 1


def test_a_damaged_survey_or_cache_is_made_again(folder):
    whole = loaded(folder)
    streamed(folder, cache_gib=1)
    for file in (folder / ".jaxdnn").iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    dataset = streamed(folder, cache_gib=1)
    assert dataset.train.pixel_stats() == whole.train.pixel_stats()
    assert_same(dataset, whole)


def test_a_flipped_byte_of_what_is_kept_changes_nothing(folder):
    whole = loaded(folder)
    streamed(folder, cache_gib=1)
    for file in (folder / ".jaxdnn").iterdir():
        data = bytearray(file.read_bytes())
        # Of the statistics a digit, else whatever is in the middle.
        at = data.index(b"0.") + 4 if file.suffix == ".json" else len(data) // 2
        data[at] ^= 1
        file.write_bytes(data)
        dataset = streamed(folder, cache_gib=1)
        assert dataset.train.pixel_stats() == whole.train.pixel_stats()
        assert_same(dataset, whole)


def failing_open(monkeypatch, name: str, times: float) -> None:
    """Let the machine have no file descriptor left when a file is opened, so many times."""
    left = times

    def fail(path: Any, *args: Any, **options: Any) -> Any:
        nonlocal left
        if Path(path).name == name and left > 0:
            left -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return open(path, *args, **options)

    monkeypatch.setattr(files, "open", fail, raising=False)
    monkeypatch.setattr(files, "_WAIT_SECONDS", (0.0, 0.0))


@pytest.mark.parametrize("streaming", [False, True])
def test_an_error_that_passes_is_no_property_of_an_image(folder, monkeypatch, streaming):
    with monkeypatch.context() as patched:
        failing_open(patched, "05.png", times=2)
        chosen = {"image_size": 4, "channels": 1}  # Or headers are read before.
        assert loaded(folder, streaming=streaming, **chosen).skipped == ()
    os.utime(folder / "dog/05.png")  # Whatever was kept is of before.
    with monkeypatch.context() as patched:
        failing_open(patched, "05.png", times=math.inf)
        skipped = loaded(folder, streaming=streaming, max_unreadable=0.1).skipped
        assert {each.name for each in skipped} == {"bird/05.png", "cat/05.png", "dog/05.png"}
        assert {each.reason for each in skipped} == {"cannot be read: Too many open files"}
    assert loaded(folder, streaming=streaming).skipped == ()


def test_a_folder_that_the_machine_cannot_list_stops(folder, monkeypatch):
    scandir = os.scandir

    def fail(path: str) -> Any:
        if path.endswith("dog"):
            raise OSError(errno.ENFILE, "Too many open files in system")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    monkeypatch.setattr(files, "_WAIT_SECONDS", ())
    with pytest.raises(
        InputError, match=r"cannot list folder .*dog': Too many .*; see to the mach"
    ):
        image_folder(folder)


def test_too_little_memory_is_no_property_of_an_image(folder, monkeypatch):
    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(decode, "read_png", lambda data: None)
        patched.setattr(decode, "_square", fail)
        survey, _ = inspect_source(image_folder(folder), (), lambda num: None)
        assert len(survey.failed) == len(survey.reasons) == 60
        photos(folder / "more", each=20)  # 120 in all.
        with pytest.raises(InputError, match=r"more than 100 images, the last one: not enough mem"):
            inspect_source(image_folder(folder), (), lambda num: None)


@pytest.mark.parametrize("same", ["size", "time"])
def test_a_file_that_changes_while_it_is_streamed_is_noticed(folder, same):
    dataset = streamed(folder)
    path = folder / dataset.train.names[2]
    status, data = path.stat(), path.read_bytes()
    path.write_bytes(data + (b"" if same == "size" else b" "))
    if same == "time":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        os.utime(path, ns=(0, status.st_mtime_ns + 1))
    with pytest.raises(InputError, match=rf"{dataset.train.names[2]} .*has changed since it was"):
        dataset.train.images[np.arange(5)]


def test_a_full_disk_ends_the_cache_and_not_the_run(folder, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    whole = loaded(folder)
    for ours, theirs in zip(all_images(streamed(folder, cache_gib=1)), parts(whole), strict=True):
        chex.assert_trees_all_equal(ours, theirs.in_memory())


def test_an_image_that_goes_missing_is_named(folder):
    dataset = streamed(folder)
    (folder / dataset.train.names[2]).unlink()
    with pytest.raises(InputError, match=rf"{dataset.train.names[2]} in .*cannot be read any more"):
        dataset.train.images[np.arange(5)]


def test_where_the_data_cannot_be_written_the_user_s_cache_folder_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "photos.zip"
    shutil.make_archive(str(file.with_suffix("")), "zip", photos(tmp_path / "photos"))
    blocked = tmp_path / ".photos.zip.jaxdnn"
    blocked.write_text("not a folder")
    assert streamed(file).train.names == loaded(file).train.names
    assert list((tmp_path / "cache/jaxdnn").glob("*/survey-*.npz"))


def test_the_fingerprint_tells_a_mended_permission(folder):
    path = folder / "dog/00.png"
    before = image_folder(folder).fingerprint()
    path.chmod(0o600 if path.stat().st_mode & 0o777 != 0o600 else 0o644)
    assert image_folder(folder).fingerprint() != before


def test_training_images_among_the_test_images_are_an_error_unless_allowed(tmp_path):
    for split in ("train", "val", "test"):
        photos(tmp_path, prefix=split, each=3)
    shutil.copy(tmp_path / "train/dog/01.png", tmp_path / "test/dog/copy.png")
    shutil.copy(tmp_path / "val/cat/00.png", tmp_path / "test/cat/copy.png")
    message = r"2 of 11 test images .*\(test/cat/copy.png = val/cat/00.png; .*--allow-duplicates"
    for streaming in (False, True):
        with pytest.raises(InputError, match=message):
            loaded(tmp_path, streaming=streaming)
        allowed = loaded(tmp_path, streaming=streaming, allow_duplicates=True)
        assert len(allowed.test.labels) == 11


def test_unreadable_files_are_no_duplicates_of_each_other(tmp_path):
    for split in ("train", "val", "test"):
        photos(tmp_path, prefix=split, each=3)
        write(tmp_path / split / "dog/empty.png", b"")
    for streaming in (False, True):
        dataset = loaded(tmp_path, streaming=streaming, max_unreadable=0.2)
        assert len(dataset.skipped) == 3
        assert not dataset.leakage
