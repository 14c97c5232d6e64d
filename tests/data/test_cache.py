"""Rows on disk: only what is surely there counts."""

from pathlib import Path

import chex
import numpy as np
import pytest

from jaxdnn.data import RowCache, cache

ROW = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)


def opened(folder: Path) -> RowCache:
    return RowCache(folder / "pixels", num_images=3, row_bytes=4, max_bytes=12)


def test_rows_that_never_reached_the_disk_are_not_taken_for_images(tmp_path):
    killed = opened(tmp_path)
    killed.write(0, ROW)  # A process that ends here has not said that the row is there.
    assert not opened(tmp_path).read(0, np.empty_like(ROW))
    killed.flush()
    found = np.empty_like(ROW)
    assert opened(tmp_path).read(0, found)
    chex.assert_trees_all_equal(found, ROW)
    assert not opened(tmp_path).read(1, found)


def test_rows_reach_the_disk_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_FLUSH_SECONDS", -1.0)
    opened(tmp_path).write(2, ROW)
    assert opened(tmp_path).holds(2)


@pytest.mark.parametrize("ending", ["u8", "sums"])
def test_a_damaged_row_is_not_taken_for_an_image(tmp_path, ending):
    kept, found = opened(tmp_path), np.empty_like(ROW)
    for index in range(3):
        kept.write(index, ROW)
    kept.flush()
    path = tmp_path / f"pixels.{ending}"
    data = bytearray(path.read_bytes())
    data[5] ^= 4
    path.write_bytes(data)
    again = opened(tmp_path)
    assert [again.read(index, found) for index in range(3)] == [True, False, True]
    assert not again.holds(1)
    again.write(1, ROW)
    assert again.read(1, found)
    again.flush()
    assert opened(tmp_path).read(1, found)
    chex.assert_trees_all_equal(found, ROW)
