"""A zip that was cut short: every member before the cut, and nothing else."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jaxdnn.data.decode import UnreadableImage
from jaxdnn.data.sources import open_source
from jaxdnn.data.zips import zip_files

from .test_dataset import loaded, photos
from .test_sources import png

# The first looks as if its end were in the middle.
CONTENTS = {"cat/0.png": png(0) + b"PK\x07\x08" + bytes(12) + png(0)}
CONTENTS |= {f"{kind}/{number}.png": png(number) for kind in ("cat", "dog") for number in (1, 2, 3)}


class Pipe(io.RawIOBase):
    """Where nobody can go back to write sizes into a header."""

    def __init__(self) -> None:
        self.written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.written += data
        return len(data)


def archive(method: int, *, streamed: bool) -> tuple[bytes, dict[str, int]]:
    """Return a zip, and where the bytes of each member end."""
    stream = Pipe() if streamed else io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as writer:
        for name, data in CONTENTS.items():
            writer.writestr(name, data)
        infos = writer.infolist()
    data = bytes(stream.written) if isinstance(stream, Pipe) else stream.getvalue()
    num_header = 30 + len(infos[0].filename) + len(infos[0].extra)
    descriptor = 16 if streamed else 0
    ends = {
        info.filename: info.header_offset + num_header + info.compress_size + descriptor
        for info in infos
    }
    return data, ends


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_wherever_it_is_cut_the_members_before_are_read(tmp_path, method, streamed):
    data, ends = archive(method, streamed=streamed)
    path = tmp_path / "photos.zip"
    first, last = min(ends.values()), max(ends.values())
    around = {end + by for end in ends.values() for by in (-1, 0)}
    for cut in {*range(first, last, 5), *around} - {first - 1}:
        path.write_bytes(data[:cut])
        files = zip_files(path)
        # Of a streamed member the last four bytes repeat what is known.
        whole = [name for name, end in ends.items() if end - 4 * streamed <= cut]
        assert list(files.names) == sorted(whole)
        assert files.set_aside[0][0] == "photos.zip"
        assert f"the {len(whole)} members" in files.set_aside[0][1]
    path.write_bytes(data[:last])
    files = zip_files(path)
    assert [files.read(index) for index in range(7)] == [CONTENTS[name] for name in files.names]


def test_a_damaged_member_of_a_cut_zip_is_unreadable(tmp_path):
    data, ends = archive(zipfile.ZIP_DEFLATED, streamed=False)
    damaged = bytearray(data[: max(ends.values())])
    damaged[ends["cat/1.png"] - 9] ^= 0xFF
    (tmp_path / "photos.zip").write_bytes(damaged)
    files = zip_files(tmp_path / "photos.zip")
    with pytest.raises(UnreadableImage, match="damaged in the zip"):
        files.read(1)
    assert files.read(2) == CONTENTS["cat/2.png"]
    with pytest.raises(UnreadableImage, match="damaged in the zip"):
        zip_files(tmp_path / "photos.zip", max_bytes=20).read(2)


def test_training_uses_what_is_left_and_says_so(tmp_path):
    folder = photos(tmp_path / "photos", each=10)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as writer:
        for file in sorted(folder.rglob("*.png"), key=lambda file: file.name):
            writer.write(file, file.relative_to(folder).as_posix())
    data = (tmp_path / "photos.zip").read_bytes()
    cut = Path(tmp_path / "photos.zip")
    cut.write_bytes(data[: data.rindex(b"PK\x03\x04")])
    assert len(open_source(str(cut)).labels) == 29
    whole, rest = loaded(folder), loaded(cut)
    assert rest.skipped[0].name == "photos.zip"
    assert "cut short: the 29 members" in rest.told()
    names = {name for part in (whole.train, whole.validation, whole.test) for name in part.names}
    left = [name for part in (rest.train, rest.validation, rest.test) for name in part.names]
    assert len(names - set(left)) == 1
    shown = dict(zip(whole.train.names, whole.train.in_memory(), strict=True))
    for name, image in zip(rest.train.names, rest.train.in_memory(), strict=True):
        if name in shown:
            np.testing.assert_array_equal(image, shown[name])
