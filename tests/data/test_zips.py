"""Zips, also cut short: the members that are whole, and nothing else."""

import errno
import io
import random
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import chex
import pytest

from jaxdnn.data import UnreadableImage, files, image_zip, open_source
from jaxdnn.data.zips import zip_files
from jaxdnn.errors import InputError

from .helpers import loaded, photos, png, write_zip


@pytest.mark.parametrize(
    "name", ["../x.png", "dog/../../x.png", "/etc/x.png", "C:/x.png", "dog\\..\\x.png", "../x.txt"]
)
def test_a_zip_member_that_points_outside_is_set_aside(tmp_path, name):
    source = open_source(str(write_zip(tmp_path / "photos.zip", ["dog/1.png", "cat/1.png", name])))
    assert list(source.item_names) == ["cat/1.png", "dog/1.png"]
    assert source.ignored == ((name, "its path points outside the archive"),)


def test_an_encrypted_zip_is_refused(tmp_path):
    path = write_zip(tmp_path / "photos.zip", ["dog/1.png", "cat/1.png"])
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 8] |= 0x1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"encrypted \(member 'dog/1.png'\).*unpack it"):
        image_zip(path)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK", b"PK\x03\x04 but no more"])
def test_what_is_no_zip_is_refused(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read zip .*expected a zip archive"):
        open_source(str(tmp_path / "a.txt"))


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dog/bomb.png", bytes(1_000_000))
    with pytest.raises(UnreadableImage, match=r"1,000,000 bytes are more than the 999,999"):
        zip_files(path, max_bytes=999_999).read(0)


def test_a_zip_member_that_lies_about_its_size_is_not_unpacked(tmp_path):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dog/bomb.png", bytes(1_000_000))
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<I", 100)
    path.write_bytes(data)
    with pytest.raises(UnreadableImage, match=r"damaged in the zip"):
        zip_files(path, max_bytes=1000).read(0)


def test_a_damaged_zip_member_is_unreadable_and_the_others_are_not(tmp_path):
    path = write_zip(tmp_path / "photos.zip", ["dog/1.png", "dog/2.png"])
    data = bytearray(path.read_bytes())
    start = data.index(b"dog/1.png") + len("dog/1.png")
    data[start : start + 20] = bytes(20)
    path.write_bytes(data)
    files = zip_files(path)
    with pytest.raises(UnreadableImage, match="damaged in the zip"):
        files.read(0)
    assert files.read(1) == png(0, 1, side=2)


def test_a_zip_is_read_by_many_threads_at_once(tmp_path):
    names = [f"dog/{i:03}.png" for i in range(200)]
    files = zip_files(write_zip(tmp_path / "photos.zip", names))
    places = list(range(200)) * 5
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(files.read, places))
    assert found == [png(0, place, side=2) for place in places]


# The first looks as if its end were in the middle.
CONTENTS = {"cat/0.png": png(0, 0, side=2) + b"PK\x07\x08" + bytes(12) + png(0, 0, side=2)}


CONTENTS |= {
    f"{kind}/{number}.png": png(0, number, side=2)
    for kind in ("cat", "dog")
    for number in (1, 2, 3)
}


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
        assert files.ignored[0][0] == "photos.zip"
        assert f"the {len(whole)} members" in files.ignored[0][1]
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
    assert "cut short or damaged: the 29 members" in rest.summary()
    names = {name for part in (whole.train, whole.validation, whole.test) for name in part.names}
    left = [name for part in (rest.train, rest.validation, rest.test) for name in part.names]
    assert len(names - set(left)) == 1
    shown = dict(zip(whole.train.names, whole.train.in_memory(), strict=True))
    for name, image in zip(rest.train.names, rest.train.in_memory(), strict=True):
        if name in shown:
            chex.assert_trees_all_equal(image, shown[name])


def test_names_that_are_not_what_they_say_are_read_and_told_apart(tmp_path):
    path = write_zip(tmp_path / "photos.zip", ["ä/1.png", "ö/1.png", "cat/1.png"])
    data = path.read_bytes().replace("ä".encode(), b"\xff\xfe").replace("ö".encode(), b"\xff\xfd")
    path.write_bytes(data)
    source = image_zip(path)
    assert set(source.class_names) == {"cat", r"\xff\xfe", r"\xff\xfd"}
    assert {source.read(item) for item in range(3)} == {png(0, n, side=2) for n in range(3)}


def test_a_zip_that_the_machine_cannot_open_is_not_called_damaged(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    path = write_zip(tmp_path / "photos.zip", ["cat/1.png"])
    monkeypatch.setattr(zipfile, "ZipFile", fail)
    monkeypatch.setattr(files, "_WAIT_SECONDS", ())
    with pytest.raises(InputError, match=r"Too many open files; .*; see to the machine, and try"):
        image_zip(path)


@pytest.mark.slow
def test_any_damage_to_a_zip_is_one_line_or_an_unreadable_member(tmp_path):
    names = [f"{part}/{kind}/1.png" for part in ("train", "test") for kind in ("cat", "dög")]
    whole = write_zip(tmp_path / "photos.zip", names).read_bytes()
    stored = {zipfile.ZipFile(io.BytesIO(whole)).read(name) for name in names}
    refused, unreadable, read = [], 0, 0
    drawn, path = random.Random(0), tmp_path / "damaged.zip"
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(drawn.choice([1, 2, 5])):
            data[drawn.randrange(len(data))] = drawn.randrange(256)
        path.write_bytes(data[: drawn.choice([len(data), drawn.randrange(len(data))])])
        try:
            source = image_zip(path)
        except InputError as error:
            refused.append(str(error))
            continue
        for item in range(len(source.labels)):
            try:
                found = source.read(item)
            except UnreadableImage:
                unreadable += 1
            else:
                read += 1
                assert found in stored
    assert refused
    assert not any("\n" in said for said in refused)
    assert min(unreadable, read) > 0
