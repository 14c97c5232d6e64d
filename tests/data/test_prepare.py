"""Prepared data sets: the same images, whatever interrupts the preparation."""

import errno
import importlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdnn.data import image_folder, prepare, reader, tfds
from jaxdnn.data.prepare import Entry, Staging
from jaxdnn.errors import InputError

from .helpers import decode, photos, png, write

# tensorflow-datasets and what it imports are not ours to mend.
module = importlib.import_module("jaxdnn.data.prepare")  # The face has the function.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def folder(tmp_path) -> Path:
    for split, number in (("train", 9), ("test", 4)):
        photos(tmp_path / "photos", prefix=split, each=number, side=5)
    write(tmp_path / "photos/train/dog/bad.png", b"text")
    write(tmp_path / "photos/train/dog/copy.zip", b"PK")
    return tmp_path / "photos"


def prepared(folder: Path, out: Path, **options: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "name": "photos",
        "image_size": None,
        "channels": None,
        "on_done": lambda num: None,
    }
    return prepare(image_folder(folder), out, **(defaults | options))


def contents(source: Any, size: int | None = None) -> list[tuple[str, str, bytes]]:
    """Split, class and pixels of every readable item, in an order of their own."""
    return sorted(
        (
            str(source.splits[item]),
            source.class_names[source.labels[item]],
            decode(source.read(item), image_size=size, channels=1).tobytes(),
        )
        for item in range(len(source.labels))
        if not source.item_names[item].endswith("bad.png")
    )


@pytest.mark.parametrize("size", [None, 3])
def test_a_prepared_set_holds_the_readable_images(folder, tmp_path, size):
    about = prepared(folder, tmp_path / "out", image_size=size)
    source = tfds("photos", str(tmp_path / "out"))
    assert contents(source) == contents(image_folder(folder), size)
    assert about["images"] == {"test": 12, "train": 27}
    assert set(about["skipped"]) == {"train/dog/bad.png", "train/dog/copy.zip"}
    assert json.loads((Path(about["folder"]) / "skipped.json").read_text()) == about
    assert source.item_shape == (size, size, 1)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"photos"}


def test_without_a_size_the_stored_bytes_are_kept(folder, tmp_path):
    prepared(folder, tmp_path / "out")
    source = tfds("photos", str(tmp_path / "out"))
    stored = {path.read_bytes() for path in folder.rglob("*.png")} - {b"text"}
    assert {source.read(item) for item in range(len(source.labels))} == stored


@pytest.mark.parametrize("size", [None, 3])
def test_an_interrupted_preparation_goes_on_where_it_was(folder, tmp_path, monkeypatch, size):
    monkeypatch.setattr(module, "_PER_GROUP", 5)
    decoded: list[Any] = []
    decode_once = reader.decode

    def counting(stored: bytes, **options: Any) -> Any:
        decoded.append(stored)
        return decode_once(stored, **options)

    def stop(num: int) -> None:
        if len(decoded) > 15:
            raise KeyboardInterrupt

    monkeypatch.setattr(reader, "decode", counting)
    monkeypatch.setattr(reader, "_num_processors", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        prepared(folder, tmp_path / "out", image_size=size, on_done=stop)
    assert not (tmp_path / "out/photos").exists()
    (journal,) = (tmp_path / "out").glob(".photos-*/journal.jsonl")
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join(lines)[:-3])  # As a power cut may leave it.
    del decoded[:]
    prepared(folder, tmp_path / "out", image_size=size)
    assert len(decoded) == len(set(decoded)) == 40 - (len(lines) - 1)
    source = tfds("photos", str(tmp_path / "out"))
    assert contents(source) == contents(image_folder(folder), size)


def test_a_full_disk_is_one_line_and_what_is_there_stays_valid(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PER_GROUP", 5)
    fsync, calls = os.fsync, []

    def full_at_third(file: int) -> None:
        calls.append(file)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_at_third)
        with pytest.raises(InputError, match=r"\(No space left on device\); .* stays valid; make"):
            prepared(folder, tmp_path / "out", image_size=3)
    (journal,) = (tmp_path / "out").glob(".photos-*/journal.jsonl")
    assert len(journal.read_text().splitlines()) == 10
    prepared(folder, tmp_path / "out", image_size=3)
    assert contents(tfds("photos", str(tmp_path / "out"))) == contents(image_folder(folder), 3)


def test_a_disk_that_is_full_at_the_last_moment_too(folder, tmp_path, monkeypatch):
    import array_record.python.array_record_module as records

    class Full(records.ArrayRecordWriter):
        def close(self) -> None:
            super().close()
            raise RuntimeError("write() failed: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(records, "ArrayRecordWriter", Full)
        with pytest.raises(InputError, match=r"No space left on device.*stays valid"):
            prepared(folder, tmp_path / "out")
    with pytest.raises(InputError, match="is not prepared"):
        tfds("photos", str(tmp_path / "out"))
    prepared(folder, tmp_path / "out")
    assert len(tfds("photos", str(tmp_path / "out")).labels) == 39


def test_changed_images_are_not_taken_from_what_was_left(folder, tmp_path):
    def stop(num: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared(folder, tmp_path / "out", image_size=3, on_done=stop)
    write(folder / "train/dog/00.png", png(2, 90, side=5))
    prepared(folder, tmp_path / "out", image_size=3)
    source = tfds("photos", str(tmp_path / "out"))
    assert any(np.frombuffer(pixels, np.uint8)[0] == 250 for *_, pixels in contents(source))


def test_an_image_that_changes_meanwhile_is_named(folder, tmp_path, monkeypatch):
    build = module._build

    def change_first(*args: Any) -> Path:
        write(folder / "train/dog/00.png", png(2, 90, side=5))
        return build(*args)

    with monkeypatch.context() as patched:
        patched.setattr(module, "_build", change_first)
        with pytest.raises(InputError, match=r"train/dog/00.png cannot be read any more .*has ch"):
            prepared(folder, tmp_path / "out")
    assert not (tmp_path / "out/photos").exists()
    prepared(folder, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["photos"]


def test_what_cannot_be_prepared_is_one_line(folder, tmp_path):
    with pytest.raises(InputError, match=r"--name 'My photos'; expected lower-case"):
        prepared(folder, tmp_path / "out", name="My photos")
    for size, message in ((0, "--image-size 0; expected 1 pixel"), (30_000, "GiB of memory; expe")):
        with pytest.raises(InputError, match=message):
            prepared(folder, tmp_path / "out", image_size=size)
    assert not (tmp_path / "out").exists()
    prepared(folder, tmp_path / "out")
    with pytest.raises(InputError, match=r"is there already; remove it, or"):
        prepared(folder, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--out .*file cannot be written"):
        prepared(folder, tmp_path / "file")


def test_a_journal_cut_short_is_mended_before_it_grows(tmp_path):
    with Staging(tmp_path) as staging:
        staging.add([(Entry(0), b"zero"), (Entry(1), b"one")])
    journal = tmp_path / "journal.jsonl"
    journal.write_text(journal.read_text()[:-5])
    with Staging(tmp_path) as staging:
        assert set(staging.entries) == {0}
        staging.add([(Entry(1), b"one again")])
    with Staging(tmp_path) as staging:
        found = {item: staging.bytes_of(entry) for item, entry in staging.entries.items()}
    assert found == {0: b"zero", 1: b"one again"}


def test_only_what_prepare_has_made_is_removed(folder, tmp_path):
    out = tmp_path / "out"
    others = {
        ".photos-backup/mine.txt": "mine",
        ".photos-0123456789abcdef/images.bin": "mine",
        ".photos-a file": "mine",
        "photos/incomplete.mine/text": "mine",
    }
    for name, text in others.items():
        write(out / name, text.encode())
    (out / ".photos-empty").mkdir()
    with Staging(out / ".photos-earlier") as staging:  # Of an attempt before the images changed.
        staging.add([(Entry(0), b"zero")])
    write(out / ".photos-earlier/mine.txt", b"mine")
    with Staging(out / ".photos-at work"):
        prepared(folder, out)
    assert {name: (out / name).read_text() for name in others} == others
    left = {path.name for path in out.iterdir()}
    assert left == {
        *{name.partition("/")[0] for name in others},
        *(".photos-empty", ".photos-earlier", ".photos-at work"),
    }
    assert [path.name for path in (out / ".photos-earlier").iterdir()] == ["mine.txt"]
    assert len(tfds("photos", str(out)).labels) == 39


def test_a_place_for_unfinished_work_that_is_taken_is_one_line(tmp_path):
    write(tmp_path / "taken/mine.txt", b"mine")
    with pytest.raises(InputError, match=r"taken is there, and not made by prepare"):
        Staging(tmp_path / "taken")
    with Staging(tmp_path / "held"), pytest.raises(InputError, match=r"worked on by another"):
        Staging(tmp_path / "held")


def test_a_damaged_line_of_the_journal_is_not_believed(tmp_path):
    with Staging(tmp_path) as staging:
        staging.add([(Entry(0), b"zero"), (Entry(1), b"one")])
    journal = tmp_path / "journal.jsonl"
    whole = journal.read_bytes()
    length = whole.index(b"\n")
    for at in range(0, length, 5):
        data = bytearray(whole)
        data[at] ^= 1  # As of 4 to 5, or to what is no UTF-8.
        journal.write_bytes(data)
        with Staging(tmp_path) as staging:
            assert set(staging.entries) == {1}
