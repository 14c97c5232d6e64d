"""Rows on disk: only what is surely there counts."""

import chex
import numpy as np

from jaxdnn.data import PixelCache


def test_rows_that_never_reached_the_disk_are_not_taken_for_images(tmp_path):
    def cache() -> PixelCache:
        return PixelCache(tmp_path / "pixels", num_images=3, row_bytes=4, max_bytes=12)

    row = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    killed = cache()
    killed.write(0, row)  # A process that ends here has not said that the row is there.
    assert not cache().read(0, np.empty_like(row))
    killed.flush()
    found = np.empty_like(row)
    assert cache().read(0, found)
    chex.assert_trees_all_equal(found, row)
    assert not cache().read(1, found)
