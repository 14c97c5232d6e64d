"""The report on a source: counts, sizes, modes, duplicates, and damage by name."""

import io
import json
import os
import sys
import time
import zipfile
from pathlib import Path

import chex
import numpy as np
import pytest
from PIL import Image

from jaxdnn import command_line
from jaxdnn.data import Source
from jaxdnn.data import __main__ as command
from jaxdnn.data.inspect import (
    duplicates,
    inspect_source,
    plan_sheets,
    report,
    text,
    write_sheets,
)
from jaxdnn.errors import InputError

from .helpers import loaded, photos, png, write


@pytest.fixture(scope="module")
def bad(tmp_path_factory) -> Path:
    """Good photographs with every kind of trouble among them."""
    folder = photos(tmp_path_factory.mktemp("bad"), each=10)
    write(folder / "dog/zero.png", b"")
    write(folder / "dog/text.jpg", b"text")
    write(folder / "cat/cut.png", png(1, 1)[:40])
    write(folder / "cat/wrong_ending.jpg", png(1, 99))
    write(folder / "bird/одна.png", png(0, 77, side=1))
    stream = io.BytesIO()
    Image.new("1", (10_000, 10_001)).save(stream, "PNG")
    write(folder / "bird/huge.png", stream.getvalue())
    write(folder / "bird/copy.png", (folder / "dog/03.png").read_bytes())
    write(folder / "cover.png", png(0, 0))
    (folder / "fish").mkdir()
    os.symlink(folder / "dog", folder / "dog/loop")
    with zipfile.ZipFile(folder / "cat/more.zip", "w") as archive:
        archive.writestr("cat/x.png", png(1, 1))
    return folder


def looked(capsys, monkeypatch, *args: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["jaxdnn.data", *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        command_line.run(command.main)
    said = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, said.out, said.err


def test_the_report_as_json(bad, tmp_path, capsys, monkeypatch):
    code, out, _ = looked(capsys, monkeypatch, "look", bad, "--json", "--out", tmp_path / "out")
    about = json.loads(out)
    assert code == 0
    assert about["images"] == {"bird": {"all": 12}, "cat": {"all": 11}, "dog": {"all": 10}}
    assert about["unreadable"] == {"bird": {"all": 1}, "cat": {"all": 1}, "dog": {"all": 2}}
    reasons = about["unreadable_files"]
    assert set(reasons) == {"bird/huge.png", "cat/cut.png", "dog/text.jpg", "dog/zero.png"}
    assert "pixels" in reasons["bird/huge.png"]
    assert "empty" in reasons["dog/zero.png"]
    assert set(about["set_aside"]) == {"cover.png", "fish/", "cat/more.zip"}
    assert about["modes"] == {"L": 33}
    assert about["sizes"] == {"6x6": 32, "1x1": 1}
    assert about["duplicates"] == [["bird/copy.png", "dog/03.png"]]


def test_the_report_for_people_and_a_sheet_for_each_class(bad, tmp_path, capsys, monkeypatch):
    code, out, err = looked(capsys, monkeypatch, "look", bad, "--out", tmp_path / "out")
    assert code == 0
    for line in (
        "bird/copy.png = dog/03.png",
        "dog/zero.png: the file is empty",
        "fish/: a folder",
    ):
        assert line in out
    assert "3 contact sheets" in err
    sheets = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert sheets == ["0000_bird.png", "0001_cat.png", "0002_dog.png"]
    sheet = np.asarray(Image.open(tmp_path / "out/0002_dog.png"))
    chex.assert_shape(sheet, (2 * 96, 8 * 96, 3))
    assert sheet[0, 0].tolist() == [160, 160, 160]  # The first dog, and the tenth, then nothing.
    assert sheet[96, 96 * 1 - 1].tolist() == [168, 168, 168]
    assert (sheet[96:, 2 * 96 :] == 255).all()


def test_training_uses_the_rest_and_names_what_it_left_out(bad):
    dataset = loaded(bad, max_unreadable=0.2, allow_duplicates=True)
    names = {skipped.name for skipped in dataset.skipped}
    unreadable = {"bird/huge.png", "cat/cut.png", "dog/text.jpg", "dog/zero.png"}
    assert names == unreadable | {"cover.png", "fish/", "cat/more.zip"}
    parts = (dataset.train, dataset.validation, dataset.test)
    assert sum(len(split.labels) for split in parts) == 33


def test_a_zip_in_a_zip_and_an_empty_folder_in_it_are_told(tmp_path, capsys, monkeypatch):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for label, name in enumerate(("cat", "dog")):
            for number in range(3):
                archive.writestr(f"{name}/{number}.png", png(label, number))
        archive.writestr("dog/more.zip", b"PK")
        archive.mkdir("fish")
    args = ("look", tmp_path / "photos.zip", "--json", "--out", tmp_path / "out")
    about = json.loads(looked(capsys, monkeypatch, *args)[1])
    assert set(about["set_aside"]) == {"dog/more.zip", "fish/"}


def test_bad_commands_are_one_line(tmp_path, capsys, monkeypatch):
    for args, message in (
        (["looks", "x"], "'looks' is no command; expected one of look"),
        (["look", tmp_path / "gone"], "does not exist"),
        (["look"], "required"),
    ):
        code, _, err = looked(capsys, monkeypatch, *args)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1


def test_duplicates_are_all_that_is_equal_and_nothing_that_could_not_be_read():
    digests = np.array([5, 0, 7, 5, 0, 9, 7, 5], np.uint64)
    assert [group.tolist() for group in duplicates(digests)] == [[0, 3, 7], [2, 6]]
    assert duplicates(digests[:0]) == duplicates(digests[1:3]) == []


def many_classes(num: int) -> Source:
    """One image, already decoded, of each class."""
    pixels = np.zeros((1, 1, 1), np.uint8)
    names = [f"{label:05}" for label in range(num)]
    labels = np.arange(num, dtype=np.int32)
    splits = np.full(num, "", "U10")
    return Source("many", tuple(names), names, labels, splits, lambda item: pixels)


def test_of_many_classes_a_page_has_sheets_and_the_rest_is_counted(tmp_path):
    source = many_classes(450)
    for page, first, last in ((1, 0, 199), (3, 400, 449)):
        planned = plan_sheets(source, tmp_path, page)
        assert [min(planned), max(planned)] == [first, last]
    done: list[int] = []
    survey, thumbnails = inspect_source(source, planned, lambda num: None)
    assert len(thumbnails) == 50  # No others are kept in memory.
    assert len(write_sheets(source, thumbnails, planned, done.append)) == sum(done) == 50
    assert {path.name for path in tmp_path.iterdir()} == {f"{n:04}_{n:05}.png" for n in planned}
    lines = text(report(source, survey)).splitlines()
    assert len(lines) < 210
    assert "… (250 more classes; 1 to 1 images in each)" in lines
    with pytest.raises(InputError, match=r"--page 4; expected 1 to 3"):
        plan_sheets(source, tmp_path, 4)


@pytest.mark.slow
def test_ten_thousand_classes_take_seconds(tmp_path):
    source = many_classes(10_000)
    started = time.monotonic()
    planned = plan_sheets(source, tmp_path)
    survey, thumbnails = inspect_source(source, planned, lambda num: None)
    write_sheets(source, thumbnails, planned, lambda num: None)
    assert len(text(report(source, survey))) < 20_000
    assert time.monotonic() - started < 60


def test_a_sheet_replaces_a_sheet_and_nothing_else(bad, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    for _ in range(2):
        assert looked(capsys, monkeypatch, "look", bad, "--out", out)[0] == 0
    mine = png(0, 0)
    write(out / "0001_cat.png", mine)
    code, _, err = looked(capsys, monkeypatch, "look", bad, "--out", out)
    assert code == 2
    assert "0001_cat.png is there, and no contact sheet; expected" in err
    assert (out / "0001_cat.png").read_bytes() == mine


def test_values_of_8_bits_in_16_are_told(tmp_path, capsys, monkeypatch):
    folder = photos(tmp_path / "photos", each=8)
    dark, light = (Image.fromarray(np.full((6, 6), n, np.uint16)) for n in (200, 40_000))
    dark.save(folder / "dog/20.png")
    light.save(folder / "dog/21.png")
    _, out, _ = looked(capsys, monkeypatch, "look", folder, "--out", tmp_path / "out")
    assert "note: 1 images with 16 bits, but no value above 255: black" in out
    for streaming in (False, True, True):  # The second time from what the first has kept.
        dataset = loaded(folder, streaming=streaming, cache_gib=1)
        assert "note: 1 images with 16 bits" in dataset.summary()
