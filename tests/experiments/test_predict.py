"""Prediction from a run folder alone."""

import json
import shutil
import zipfile

import pytest

from tests.hostile_files import with_unread

from .conftest import load_program

predict = load_program("predict")


@pytest.fixture(scope="module")
def run_dir(finished, tmp_path_factory):
    """A run folder, not where it was trained."""
    return shutil.copytree(finished.path, tmp_path_factory.mktemp("runs") / "moved")


def test_json_scores_files_and_folders(run_dir, photos, call):
    code, said, _ = call(predict, run_dir, photos / "dog", photos / "cat" / "000.png", "--json")
    results = json.loads(said)
    assert code == 0
    assert [result["label"] for result in results] == ["dog"] * 40 + ["other"]
    assert all(0.5 < result["probability"] <= 1 for result in results)
    assert all(set(result) == {"path", "label", "probability"} for result in results)


def test_zip_and_table(run_dir, photos, call, tmp_path):
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.write(photos / "dog" / "001.png", "inner/001.png")
    code, said, _ = call(predict, run_dir, tmp_path / "some.zip")
    assert code == 0
    assert said.startswith("dog ")
    assert "some.zip/inner/001.png" in said


def test_unreadable_files_are_named_and_skipped(run_dir, photos, call, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    args = (tmp_path / "broken.png", tmp_path / "missing.png", photos / "dog" / "002.png", "--json")
    code, said, errors = call(predict, run_dir, *args)
    assert code == 1
    assert len(json.loads(said)) == 1
    assert "broken.png" in errors
    assert "missing.png" in errors


def test_nothing_scored(run_dir, call, tmp_path):
    assert call(predict, run_dir, tmp_path / "missing.png")[0] == 2
    assert "no images named" in call(predict, run_dir)[2]
    assert "holds no run" in call(predict, tmp_path, "x.png")[2]


def test_pretrained_needs_no_run(run_dir, photos, call, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    args = ("--pretrained", photos / "dog" / "000.png", tmp_path / "broken.png", "--json")
    code, said, errors = call(predict, *args)
    assert code == 1
    # 8x8 pixels of noise are no dog.
    assert [result["label"] for result in json.loads(said)] == ["other"]
    assert "broken.png" in errors
    assert "no images named" in call(predict, "--pretrained")[2]
    code, _, errors = call(predict, "--pretrained", run_dir, photos / "dog" / "000.png")
    assert code == 2
    assert "is a run folder, and --pretrained needs none" in errors


def test_images_that_are_not_read_are_named_by_kind(run_dir, call, tmp_path):
    code, said, complaints = call(predict, run_dir, with_unread(tmp_path), "--json")
    assert code == 1
    assert len(json.loads(said)) == 24
    lines = complaints.splitlines()
    assert all(line.startswith("skipped ") for line in lines)
    for kind in ("*.heic: 3", "*.jp2: 1", "*.jpg_large: 1", "files without an ending: 3"):
        assert sum(kind in line for line in lines) == 1


def edited(path, key, change):
    """Change one value of a JSON file; `config.json` has stages."""
    content = json.loads(path.read_text())
    place = next(part for part in (content, *content.values()) if key in part)
    place[key] = change(place[key])
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "key", "change"),
    [
        ("config.json", "activation", lambda _: "tanh"),
        ("dataset.json", "class_names", lambda names: names[::-1]),
        ("dataset.json", "mean", lambda mean: [mean[0] / 2]),
        ("dataset.json", "std", lambda _: [0]),
        ("dataset.json", "height", lambda _: "8"),
    ],
)
def test_files_that_were_edited_since_are_not_believed(
    run_dir, photos, call, tmp_path, file, key, change
):
    copy = shutil.copytree(run_dir, tmp_path / "run")
    edited(copy / file, key, change)
    code, said, errors = call(predict, copy, photos / "cat" / "000.png")
    assert (code, said) == (2, "")
    assert f"{file} is " in errors
    assert key in errors
    assert errors.count("\n") == 1
