"""Images in a bucket: the same as in a folder, and one line where they cannot be had."""

from pathlib import Path

import numpy as np
import pytest
from etils import epath

from jaxdnn.data.decode import UnreadableImage
from jaxdnn.data.remote import remote_files
from jaxdnn.data.sources import open_source
from jaxdnn.errors import InputError

from .test_dataset import loaded, parts, photos, png, write
from .test_sources import write_zip

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
    ours = loaded(f"{BUCKET}/photos", streaming=streaming, max_unreadable_fraction=0.1)
    theirs = loaded(folder, max_unreadable_fraction=0.1)
    assert ours.skipped == theirs.skipped
    for ours_part, theirs_part in zip(parts(ours), parts(theirs), strict=True):
        assert ours_part.names == theirs_part.names
        places = np.arange(len(ours_part.names))
        np.testing.assert_array_equal(ours_part.images[places], theirs_part.images)
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
