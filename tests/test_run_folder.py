"""The run folder: one process at a time, no line lost or twice, no half-written file."""

import errno
import os

import pytest

from jaxdnn import run_folder
from jaxdnn.errors import InputError
from jaxdnn.run_folder import (
    RunFolder,
    append_metrics,
    atomic_write,
    keep_metrics_until,
    read_metrics,
)


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path):
    folder = RunFolder(tmp_path)
    with (
        run_folder.locked(folder),
        pytest.raises(InputError, match=r"worked on by process \d+ on .*; wait"),
    ):
        run_folder.locked(folder).__enter__()
    with run_folder.locked(folder):  # And free again.
        pass


def test_a_folder_that_cannot_be_written_gets_one_line(tmp_path, monkeypatch):
    def refuse(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(run_folder.tempfile, "TemporaryFile", refuse)
    with (
        pytest.raises(InputError, match=r"cannot be written \(Read-only file system\)"),
        run_folder.locked(RunFolder(tmp_path)),
    ):
        pass


def test_a_draft_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    def write_on_a_full_disk():
        with atomic_write(path) as draft:
            draft.write_text("ne")
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        write_on_a_full_disk()
    assert [child.name for child in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("cut", [1, 7, 20])
def test_a_line_cut_short_is_written_again(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "epoch": step / 3, "train/loss": 1 / step} for step in (3, 6, 9)]
    for line in lines:
        append_metrics(path, line)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    keep_metrics_until(path, 6)
    assert read_metrics(path) == lines[:2]
    append_metrics(path, lines[2])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", ["metrics.jsonl", "predictions.npz", "summary.json"])
def test_what_a_run_would_overwrite_is_left_alone(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=rf"holds {name}, but no config.json of a run; expected"):
        run_folder.create(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_probing_a_folder_leaves_the_files_of_others(tmp_path):
    mine = tmp_path / f".writable-{os.getpid()}"
    mine.write_text("mine")
    run_folder.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [mine.name]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"step": 3.5, "epoch": 1}', "step is 3.5, expected int"),
        (b"[1, {}]}", "after 1 good lines"),
        (b'{"step": "\xff", "epoch": 1}', "utf-8"),
    ],
)
def test_a_damaged_line_of_metrics_is_named(tmp_path, line, expected):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "epoch": 1}\n' + line + b"\n")
    with pytest.raises(InputError) as caught:
        read_metrics(path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
