"""Hostile inputs for hostile.py, made from a seed: what lies in the folder, and which command runs.

A case is a command of this project in a folder of its own, with what must come of it: `works` (it
ends well, and its law holds), `refused` (one clear line), or `either`. Files that are damaged at
random places are damaged anew for every seed.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import random
import shutil
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

Wanted = Literal["works", "refused", "either"]
# Makes what lies in the folder.
Prepare = Callable[[Path, random.Random], None]
# (folder, stdout) -> what is wrong with a command that ended well; "" for nothing
Law = Callable[[Path, str], str]
NUM_EACH = 12
RUN = "run"
"""Name of a copy of the finished run in a case's folder."""


def nothing(folder: Path, draw: random.Random) -> None:
    """Leave the folder empty."""


def anything(folder: Path, said: str) -> str:
    """Find nothing wrong."""
    return ""


@dataclasses.dataclass(frozen=True)
class Case:
    """A hostile input.

    Attributes:
      kind: of the table's rows.
      name: what is hostile about it.
      command: program and arguments; `deep_dog`, `grad_flow`, `predict`, `data` or `check`.
      wanted: what must come of it.
      prepare: makes what lies in the folder.
      law: what must hold where the command ends well.
      environment: variables that differ; the command then runs in a Python of its own.
      shell: a redirection or a limit, for a shell around the command.
      codes: exit codes of a good end.
    """

    kind: str
    name: str
    command: tuple[str, ...]
    wanted: Wanted
    prepare: Prepare = nothing
    law: Law = anything
    environment: dict[str, str] | None = None
    shell: str = ""
    codes: tuple[int, ...] = (0,)


def png(draw: random.Random, side: int = 8, mode: str = "L") -> bytes:
    """Return a small picture of noise."""
    return encoded(draw, "PNG", mode, (side, side))


def encoded(
    draw: random.Random, kind: str, mode: str, size: tuple[int, int], **options: Any
) -> bytes:
    """Return a picture of noise in any format and mode that Pillow writes."""
    channels = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4, "P": 1, "LA": 2, "1": 1, "I;16": 2}[mode]
    width, height = size
    pixels = draw.randbytes(width * height * channels)
    raw = {"P": "L", "1": "L"}.get(mode, mode)
    image = Image.frombytes(raw, size, pixels)
    if raw != mode:
        image = image.convert(mode)
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def photos(folder: Path, draw: random.Random) -> None:
    """Write two classes that any network tells apart, always the same."""
    draw = random.Random(0)
    for bright, name in enumerate(("dark", "light")):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(NUM_EACH):
            low = 150 * bright
            pixels = np.array([draw.randrange(low, low + 100) for _ in range(64)], np.uint8)
            image = Image.fromarray(pixels.reshape(8, 8))
            image.save(folder / "photos" / name / f"{number}.png")


def flipped(content: bytes, draw: random.Random, num: int = 1) -> bytes:
    """Change some bytes."""
    changed = bytearray(content)
    for _ in range(num):
        changed[draw.randrange(len(changed))] ^= draw.randrange(1, 256)
    return bytes(changed)


def cut(content: bytes, draw: random.Random) -> bytes:
    """Keep only the beginning."""
    return content[: draw.randrange(len(content))]


def chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    checked = name + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def bomb(width: int, height: int, depth: int = 8) -> bytes:
    """Return a PNG file that says it is so large, and holds little."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def cases(seed: int) -> list[Case]:
    """Return all cases of a seed."""
    draw = random.Random(seed)
    made = [
        *options(),
        *pictures(draw),
        *folders(),
        *archives(draw),
        *run_files(draw),
        *prepared_sets(draw),
        *networks(),
        *environments(),
    ]
    names = [(case.kind, case.name) for case in made]
    assert len(set(names)) == len(names), "two cases have one name"
    return made


HUGE = ("99999999999999", "1" + "0" * 21, "2147483648")
QUIET = "--no-progress"


GRIDS = (
    *("sweep --width 100000000", "sweep --depth 100000000", "sweep --batch-size 10000000000"),
    *("sweep --seeds 1000000000000000", "sweep --seed 10000000000", "sweep --depth 1"),
    *("sweep --width 99999999999999 --depth 3", "sweep --activations", "sweep --norm batch x"),
    *("race --steps 1000000000000000", "race --epochs 1000000000000000", "race --steps 0"),
    *("race --width 1000000000", "race --seeds 1000000000000", "race --learning-rate nan"),
    *("lecture --steps 1000000000000", "lecture --depth 1000000000000", "lecture --weight nan"),
    *("lecture --samples missing.csv", "lecture --activation os:system", "lecture --steps 0"),
    "theory --activation relu --sigma-w2 nan",
    "theory --activation relu --sigma-w2 -1",
    "theory --activation relu --sigma-w2 1e400",
    "theory --activation relu --sigma-w2 2 --depth 1000000000000",
    "phase --activation tanh --max-sigma-w2 1e308",
    "depth --activation relu --initializer he_normal --gain 1e308",
    "sweep --seed 2147483647 --seeds 2",
    "race --seed 2147483647 --seeds 2",
    "theory --activation nothing --sigma-w2 1",
    "phase --activation tanh --points 1000000",
    "phase --activation tanh --max-sigma-w2 nan",
    "phase --activation os:getcwd",
    "depth --activation relu --initializer normal --width 1000000000000000000000000",
    "depth --activation relu --initializer he_normal --gain nan",
    *("nothing", "sweep --nothing 1", "phase", "theory", "depth"),
)


def options() -> Iterator[Case]:
    """Yield options that ask for what cannot be."""
    dog = ("deep_dog", "lecture", "--data", "photos", "--out", "out", QUIET)
    for flag in (
        *("--widths", "--epochs", "--image-size", "--batch-size", "--patience", "--accumulate"),
        *("--evaluate-every", "--watch-gradients", "--warmup-steps", "--decay-steps"),
        *("--random-crop", "--stem", "--blocks", "--seed", "--devices"),
    ):
        for value in (*HUGE[:2], "-1", "nan"):
            wanted: Wanted = "either" if (flag, value) == ("--devices", HUGE[0]) else "refused"
            yield Case("options", f"{flag} {value}", (*dog, flag, value), wanted, photos)
    for flag in (
        *("--learning-rate", "--momentum", "--dropout", "--l2", "--clip-norm", "--max-memory-gib"),
        *("--validation-fraction", "--test-fraction", "--divergence-factor", "--rotation"),
    ):
        for value in ("nan", "1e400", "-1", ""):
            yield Case("options", f"{flag} {value!r}", (*dog, flag, value), "refused", photos)
    for command in GRIDS:
        out = () if command.split()[0] in ("theory", "depth", "nothing") else ("--out", "out")
        yield Case(
            "options", f"grad_flow {command}", ("grad_flow", *command.split(), *out), "refused"
        )
    for command in (
        *(
            "prepare photos --out out --image-size 30000",
            "prepare photos --out out --image-size -3",
        ),
        *("prepare photos --out out --name ../up", "prepare photos --out out --name a/b"),
        *("prepare photos --out out --channels 2", "look missing", "look photos/dark/0.png"),
        *(
            "look tfds:../photos",
            "look tfds:no_such_set",
            "look silhouettes:x",
            "nothing",
        ),
    ):
        words = command.split()
        yield Case("options", f"data {command}", ("data", *words, QUIET), "refused", photos)
    long = "n" * 300
    yield Case(
        "options",
        "prepare --name of 300 letters",
        ("data", "prepare", "photos", "--out", "out", "--name", long, QUIET),
        "refused",
        photos,
    )
    yield Case("options", "--out of 300 letters", (*dog[:-2], long, QUIET), "refused", photos)
    yield Case(
        "options", "--out is a file", (*dog[:-2], "photos/dark/0.png", QUIET), "refused", photos
    )
    yield Case("options", "--resume nothing", ("deep_dog", "--resume", "missing"), "refused")
    yield Case(
        "options",
        "--resume a folder of photographs",
        ("deep_dog", "--resume", "photos"),
        "refused",
        photos,
    )
    yield Case("options", "predict nothing", ("predict", "missing", "a.png"), "refused")


def one_more(name: str, make: Callable[[random.Random], bytes]) -> Prepare:
    """Write the photographs, and one more file among them."""

    def prepare(folder: Path, draw: random.Random) -> None:
        photos(folder, draw)
        (folder / "photos" / "dark" / name).write_bytes(make(draw))

    return prepare


def all_are_told(folder: Path, said: str) -> str:
    """Whether `look --json` accounts for every file that is there."""
    about = json.loads(said)
    counted = [about["images"], about["unreadable"]]
    num = sum(n for kind in counted for splits in kind.values() for n in splits.values())
    # One entry may stand for several files of a kind.
    told = num + len(about["set_aside"])
    there = sum(len(files) for _, _, files in os.walk(folder / "photos"))
    return "" if told >= there else f"{there} files, {told} told"


def pictures(draw: random.Random) -> Iterator[Case]:
    """Yield files that are no images, or images of kinds that few have."""
    look = ("data", "look", "photos", "--json", "--out", "sheets", QUIET)
    makes: dict[str, Callable[[random.Random], bytes]] = {
        "empty.png": lambda d: b"",
        "text.png": lambda d: b"not an image",
        "cut.png": lambda d: png(d, 30)[:-300],
        "cut.jpg": lambda d: encoded(d, "JPEG", "RGB", (40, 40))[:-200],
        "wide_bomb.png": lambda d: bomb(2**31 - 1, 1),
        "bomb.png": lambda d: bomb(60_000, 60_000),
        "no_pixels.png": lambda d: bomb(0, 0),
        "lies.png": lambda d: bomb(500, 500),
        "jpeg.png": lambda d: encoded(d, "JPEG", "RGB", (9, 9)),
        "png.jpg": lambda d: png(d),
        "cmyk.jpg": lambda d: encoded(d, "JPEG", "CMYK", (9, 9)),
        "palette.gif": lambda d: encoded(d, "GIF", "P", (9, 9)),
        "transparent.png": lambda d: png(d, 9, "RGBA"),
        "two_channels.png": lambda d: png(d, 9, "LA"),
        "bits.png": lambda d: png(d, 9, "1"),
        "deep.png": lambda d: png(d, 9, "I;16"),
        "dot.png": lambda d: png(d, 1),
        "line.png": lambda d: encoded(d, "PNG", "L", (1, 5000)),
        "tiff.tif": lambda d: encoded(d, "TIFF", "CMYK", (9, 9)),
        "bmp.bmp": lambda d: encoded(d, "BMP", "RGB", (9, 9)),
        "webp.webp": lambda d: encoded(d, "WEBP", "RGBA", (9, 9)),
        "script.svg": lambda d: b"<svg onload='alert(1)'/>",
        "iphone.heic": lambda d: b"\x00\x00\x00\x18ftypheic" + d.randbytes(90),
        "jpeg2000.jp2": lambda d: b"\x00\x00\x00\x0cjP  \r\n\x87\n" + d.randbytes(90),
        "no_suffix": lambda d: png(d),
        "twitter.jpg_large": lambda d: encoded(d, "JPEG", "RGB", (9, 9)),
        "archive.zip": lambda d: b"PK\x05\x06" + bytes(18),
        "$a$^{.png": lambda d: png(d),
        "a\nb.png": lambda d: png(d),
        "\x1b[31mred.png": lambda d: png(d),
        "\u202egnp.exe.png": lambda d: png(d),
        os.fsdecode(b"caf\xe9.png"): lambda d: png(d),
        "n" * 250 + ".png": lambda d: png(d),
        "-rf.png": lambda d: png(d),
        "%s%n{0}.png": lambda d: png(d),
        "CON.png": lambda d: png(d),
        "notes.txt": lambda d: b"three birds",
        "Thumbs.db": lambda d: d.randbytes(100),
    }
    for name, make in makes.items():
        yield Case(
            "image files", ascii(name)[:60], look, "works", one_more(name, make), all_are_told
        )
    whole = {
        "png": png(draw, 30, "RGB"),
        "jpg": encoded(draw, "JPEG", "RGB", (30, 30)),
        "gif": encoded(draw, "GIF", "P", (30, 30)),
        "webp": encoded(draw, "WEBP", "RGB", (30, 30)),
        "tif": encoded(draw, "TIFF", "RGB", (30, 30), compression="tiff_lzw"),
    }
    for suffix, content in whole.items():
        for number in range(6):
            changed = flipped(content, draw, 1 + 3 * number)
            prepare = one_more(f"flipped.{suffix}", lambda _, changed=changed: changed)
            yield Case(
                "image files",
                f"{suffix}, bytes changed ({number})",
                look,
                "works",
                prepare,
                all_are_told,
            )
    for name in (
        "empty.png",
        "bomb.png",
        "cut.jpg",
        "deep.png",
        "transparent.png",
        "\x1b[31mred.png",
    ):
        command = ("predict", RUN, f"photos/dark/{name}", "--json")
        yield Case(
            "image files",
            f"predict {name!a}",
            command,
            "either",
            with_run(one_more(name, makes[name])),
            codes=(0, 1, 2),
        )


def tree(make: Callable[[Path, random.Random], None]) -> Prepare:
    """Return what makes a folder `photos` out of nothing."""

    def prepare(folder: Path, draw: random.Random) -> None:
        (folder / "photos").mkdir()
        make(folder / "photos", draw)

    return prepare


def named_classes(*names: str) -> Prepare:
    """Write classes of these names."""

    def make(root: Path, draw: random.Random) -> None:
        for name in names:
            (root / name).mkdir(parents=True)
            for number in range(6):
                (root / name / f"{number}.png").write_bytes(png(draw))

    return tree(make)


def _deep(root: Path, draw: random.Random) -> None:
    place = os.open(root, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=place)
        below = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = below
    os.close(place)
    (root / "a.png").write_bytes(png(draw))


def _odd(root: Path, draw: random.Random) -> None:
    for name in ("a", "b"):
        (root / name).mkdir()
        for number in range(4):
            (root / name / f"{number}.png").write_bytes(png(draw))
    os.mkfifo(root / "a" / "pipe.png")
    (root / "a" / "gone.png").symlink_to("nowhere")
    (root / "a" / "up").symlink_to("..")
    (root / "a" / "self.png").symlink_to("self.png")
    (root / "b" / "folder.png").mkdir()
    (root / "b" / "zero.png").symlink_to("/dev/zero")


def has_classes(num: int) -> Law:
    """Return the law that `look --json` tells so many classes."""

    def law(folder: Path, said: str) -> str:
        found = json.loads(said)["images"]
        return "" if len(found) == num else f"{len(found)} classes of {num}: {list(found)}"

    return law


def folders() -> Iterator[Case]:
    """Yield folders of odd shapes, and classes of odd names."""
    look = ("data", "look", "photos", "--json", "--out", "sheets", QUIET)
    train = ("deep_dog", "lecture", "--widths", "4", "--epochs", "1", "--batch-size", "4")
    train += ("--data", "photos", "--out", "out", QUIET)
    names = {
        "dollars": ("$a$", "b^{$"),
        "escapes": ("\x1b[31mred", "\u202eright"),
        "not UTF-8": (os.fsdecode(b"\xc4\xe3"), os.fsdecode(b"\xba\xc3")),
        "control characters": ("a\x01", "a\x02"),
        "two forms of an accent": ("\u00e9", "e\u0301"),
        "a line break": ("a\nb", "c"),
        "255 letters": ("n" * 255, "m" * 255),
        "hyphens": ("--help", "-1"),
        "quotes": ("'\"`$(touch x)", "b;c|d"),
        "braces": ("{0}", "%s%n"),
        "Chinese": ("\u72d7", "\u732b"),
        "emoji": ("\U0001f436", "\U0001f431"),
        "spaces": ("  ", " a "),
        "letters' case": ("Dog", "dog"),
    }
    for name, pair in names.items():
        yield Case(
            "folders", f"classes of {name}", look, "works", named_classes(*pair), has_classes(2)
        )
    for name in ("dollars", "escapes", "not UTF-8", "255 letters", "Chinese", "a line break"):
        yield Case(
            "folders", f"train on classes of {name}", train, "works", named_classes(*names[name])
        )
    yield Case("folders", "1,500 deep", look, "either", tree(_deep))
    yield Case("folders", "pipes, loops and devices", look, "works", tree(_odd), has_classes(2))
    yield Case("folders", "empty", look, "refused", tree(lambda root, draw: None))
    yield Case("folders", "empty, to train", train, "refused", tree(lambda root, draw: None))
    yield Case("folders", "one class, to train", train, "refused", named_classes("only"))
    yield Case("folders", "hidden ones alone", look, "refused", named_classes(".a", ".b"))
    yield Case(
        "folders",
        "a class in no split but one",
        train,
        "either",
        named_classes("train/a", "train/b", "test/a"),
    )
    yield Case(
        "folders",
        "class, then split",
        look,
        "either",
        named_classes("a/train", "a/test", "b/train", "b/test"),
    )
    yield Case(
        "folders",
        "300 classes",
        look,
        "works",
        named_classes(*map(str, range(300))),
        has_classes(300),
    )
    yield Case("folders", "the same image in two splits", train, "refused", _same_twice)
    yield Case("folders", "other equal to data", (*train, "--other", "photos"), "refused", photos)


def _same_twice(folder: Path, draw: random.Random) -> None:
    same = [png(draw) for _ in range(6)]
    for split in ("train", "test"):
        for name in ("a", "b"):
            (folder / "photos" / split / name).mkdir(parents=True)
            for number, content in enumerate(same):
                changed = content if name == "a" else content + b"b"
                (folder / "photos" / split / name / f"{number}.png").write_bytes(changed)


def packed(draw: random.Random, **options: Any) -> bytes:
    """Return a zip of two classes."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", **options) as archive:
        for name in ("a", "b"):
            for number in range(4):
                archive.writestr(f"{name}/{number}.png", png(draw))
    return written.getvalue()


def archive_of(*names: str | zipfile.ZipInfo) -> Callable[[random.Random], bytes]:
    """Return what makes a zip of two classes and these members more."""

    def make(draw: random.Random) -> bytes:
        written = io.BytesIO(packed(draw))
        with warnings.catch_warnings(), zipfile.ZipFile(written, "a") as archive:
            warnings.simplefilter("ignore")  # Of a name that is there twice.
            for name in names:
                archive.writestr(name, png(draw))
        return written.getvalue()

    return make


def as_photos(make: Callable[[random.Random], bytes]) -> Prepare:
    """Write photos.zip."""

    def prepare(folder: Path, draw: random.Random) -> None:
        (folder / "photos.zip").write_bytes(make(draw))

    return prepare


def _link() -> zipfile.ZipInfo:
    link = zipfile.ZipInfo("a/link.png")
    link.external_attr = 0o120777 << 16
    return link


def _zeros(draw: random.Random) -> bytes:
    written = io.BytesIO(packed(draw))
    with zipfile.ZipFile(written, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/zeros.png", bytes(200_000_000))
    return written.getvalue()


def archives(draw: random.Random) -> Iterator[Case]:
    """Yield archives that lie, lead out of their folder, or are damaged."""
    look = ("data", "look", "photos.zip", "--json", "--out", "sheets", QUIET)
    whole = packed(draw)
    locked = whole.replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01")
    made: dict[str, tuple[Callable[[random.Random], bytes], Wanted]] = {
        "empty file": (lambda d: b"", "refused"),
        "text": (lambda d: b"no archive", "refused"),
        "no members": (lambda d: b"PK\x05\x06" + bytes(18), "refused"),
        "cut": (lambda d: whole[:-100], "either"),
        "out of its folder": (archive_of("../../out.png", "/etc/out.png"), "either"),
        "of Windows": (archive_of("a\\back.png", "C:\\x.png"), "either"),
        "one name twice": (archive_of("a/0.png", "a/0.png"), "either"),
        "a link": (archive_of(_link()), "either"),
        "escapes in names": (archive_of("\x1b[31mred/0.png", "\u202eb/1.png"), "either"),
        "dots": (archive_of("./a/9.png", "a//8.png", "a/../b/7.png"), "either"),
        "200 MB of zeros": (_zeros, "either"),
        "locked": (lambda d: locked, "either"),
        "junk in front": (lambda d: d.randbytes(999) + whole, "either"),
        "junk behind": (lambda d: whole + d.randbytes(999), "either"),
        "lzma": (lambda d: packed(d, compression=zipfile.ZIP_LZMA), "either"),
        "bzip2": (lambda d: packed(d, compression=zipfile.ZIP_BZIP2), "either"),
    }
    for name, (make, wanted) in made.items():
        yield Case("archives", name, look, wanted, as_photos(make))
    for number in range(24):
        changed = flipped(whole, draw, 1 + number // 3)
        yield Case(
            "archives",
            f"bytes changed ({number})",
            look,
            "either",
            as_photos(lambda _, c=changed: c),
        )


def with_run(prepare: Prepare, change: Callable[[Path, random.Random], None] = nothing) -> Prepare:
    """Put a copy of the finished run beside; `hostile.py` has it in the folder above."""

    def both(folder: Path, draw: random.Random) -> None:
        prepare(folder, draw)
        shutil.copytree(folder.parent / "reference" / RUN, folder / RUN)
        change(folder / RUN, draw)

    return both


def same_answers(folder: Path, said: str) -> str:
    """Whether the answers are those of the run that nothing happened to, up to rounding."""
    reference = json.loads((folder.parent / "reference" / "answers.json").read_text())
    for ours, theirs in itertools.zip_longest(json.loads(said), reference, fillvalue={}):
        same = [ours.get(key) == theirs.get(key) for key in ("path", "label")]
        if not all(same) or abs(ours["probability"] - theirs["probability"]) > 1e-5:
            return f"{ours} where {theirs} was"
    return ""


def same_results(folder: Path, said: str) -> str:
    """Whether the run's results are those of the run that nothing happened to."""
    summaries = [
        json.loads((place / RUN / "summary.json").read_text())
        for place in (folder, folder.parent / "reference")
    ]
    names = ("params_sha256", "test/loss", "test/accuracy", "confusion", "class_names")
    differs = [name for name in names if summaries[0][name] != summaries[1][name]]
    return f"other {', '.join(differs)}" if differs else ""


def changed_json(name: str, key: str, value: Any) -> Callable[[Path, random.Random], None]:
    """Return what changes one value of a JSON file, wherever in it the key is."""

    def change(run: Path, draw: random.Random) -> None:
        content = json.loads((run / name).read_text())
        place = next(p for p in (content, *content.values()) if isinstance(p, dict) and key in p)
        if value is KeyError:
            del place[key]
        else:
            place[key] = value
        (run / name).write_text(json.dumps(content))

    return change


def changed_file(
    name: str, make: Callable[[bytes], bytes]
) -> Callable[[Path, random.Random], None]:
    """Return what changes the content of a file."""

    def change(run: Path, draw: random.Random) -> None:
        (run / name).write_bytes(make((run / name).read_bytes()))

    return change


def removed(*names: str) -> Callable[[Path, random.Random], None]:
    """Return what removes files or folders of a run."""

    def change(run: Path, draw: random.Random) -> None:
        for name in names:
            path = run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def run_files(draw: random.Random) -> Iterator[Case]:
    """Yield run folders that somebody edited, or the disk damaged."""
    predict = ("predict", RUN, "photos", "--json")
    resume = ("deep_dog", "--resume", RUN, QUIET, "--devices", "1")
    edits: dict[str, list[tuple[str, Any]]] = {
        "config.json": [("activation", "tanh"), ("widths", [9]), ("epochs", 6.5), ("seed", "0")],
        "dataset.json": [
            *(("class_names", ["light", "dark"]), ("mean", [0.1]), ("std", [0]), ("height", 9)),
            *(
                ("std", [float("nan")]),
                ("channels", 3),
                ("mean", KeyError),
                ("class_names", "dark"),
            ),
        ],
    }
    edits["config.json"] += [("learning_rate", 0.5), ("batch_size", None), ("norm", KeyError)]
    for name, changes in edits.items():
        for key, value in changes:
            change = changed_json(name, key, value)
            what = f"{name}: {key} {'gone' if value is KeyError else value}"
            yield Case(
                "run folders", f"predict, {what}", predict, "refused", with_run(photos, change)
            )

            def both(run: Path, draw: random.Random, change: Any = change) -> None:
                change(run, draw)
                removed("summary.json")(run, draw)

            yield Case("run folders", f"resume, {what}", resume, "refused", with_run(photos, both))
    for key, value in (("test/accuracy", 0.123), ("steps", "many"), ("confusion", KeyError)):
        change = changed_json("summary.json", key, value)
        yield Case(
            "run folders", f"summary.json: {key}", resume, "refused", with_run(photos, change)
        )
    damages: dict[str, Callable[[bytes], bytes]] = {
        "cut": lambda content: content[: len(content) // 2],
        "emptied": lambda content: b"",
        "no UTF-8": lambda content: b"\xff" + content[1:],
        "a list": lambda content: b"[1, 2]",
        "nested deep": lambda content: b"[" * 200_000,
    }
    for name in ("config.json", "dataset.json", "summary.json"):
        for how, make in damages.items():
            command = resume if name == "summary.json" else predict
            change = changed_file(name, make)
            yield Case("run folders", f"{name} {how}", command, "refused", with_run(photos, change))
    for name in ("config.json", "dataset.json", "checkpoints", "checkpoints/best"):
        yield Case(
            "run folders",
            f"predict, {name} gone",
            predict,
            "refused",
            with_run(photos, removed(name)),
        )
    lost = ("summary.json", "dataset.json", "predictions.npz", "metrics.jsonl", "checkpoints")
    for name in lost:
        change = removed(*{"summary.json", name})
        yield Case(
            "run folders",
            f"resume, {name} gone",
            resume,
            "works",
            with_run(photos, change),
            same_results,
        )
    for how, make in list(damages.items())[:3]:
        change = changed_file("predictions.npz", make)

        def redraw(run: Path, draw: random.Random, change: Any = change) -> None:
            change(run, draw)
            removed("mistakes.png")(run, draw)

        yield Case(
            "run folders", f"predictions.npz {how}", resume, "refused", with_run(photos, redraw)
        )
    for number in range(24):
        seed = draw.randrange(2**31)
        command, law = (predict, same_answers) if number % 2 else (resume, same_results)

        def damage(run: Path, _: random.Random, seed: int = seed) -> None:
            """Change bytes of any file, or cut it."""
            own = random.Random(seed)
            removed("summary.json")(run, own)
            names = [p for p in sorted(run.rglob("*")) if p.is_file() and p.stat().st_size]
            path = own.choice([p for p in names if p.suffix != ".png"])
            path.write_bytes(own.choice([flipped, cut])(path.read_bytes(), own))

        yield Case(
            "run folders",
            f"a file damaged ({number})",
            command,
            "either",
            with_run(photos, damage),
            law,
        )


def prepared_sets(draw: random.Random) -> Iterator[Case]:
    """Yield prepared data sets that are damaged, or name code."""
    look = ("data", "look", "set/photos/1.0.0", "--json", "--out", "sheets", QUIET)

    def change(act: Callable[[Path, random.Random], None]) -> Prepare:
        def prepare(folder: Path, draw: random.Random) -> None:
            shutil.copytree(folder.parent / "reference" / "set", folder / "set")
            act(folder / "set" / "photos" / "1.0.0", draw)

        return prepare

    def planted(root: Path, draw: random.Random) -> None:
        (root.parents[2] / "planted_features.py").write_text("open('ran', 'w').close()\n")
        text = (root / "features.json").read_text()
        head, _, rest = text.partition('"pythonClassName": "')
        (root / "features.json").write_text(
            f'{head}"pythonClassName": "planted_features.Image{rest[rest.index(chr(34)) :]}'
        )

    yield Case("prepared sets", "names code", look, "refused", change(planted))
    for name in ("features.json", "dataset_info.json"):
        for how, make in {
            "cut": lambda content: content[:50],
            "a list": lambda content: b"[]",
            "emptied": lambda content: b"",
            "no UTF-8": lambda content: b"\xff" + content,
        }.items():
            yield Case(
                "prepared sets", f"{name} {how}", look, "refused", change(changed_file(name, make))
            )
        yield Case("prepared sets", f"{name} gone", look, "refused", change(removed(name)))
    for number in range(12):
        seed = draw.randrange(2**31)

        def damage(root: Path, _: random.Random, seed: int = seed) -> None:
            own = random.Random(seed)
            path = own.choice([p for p in sorted(root.iterdir()) if p.is_file()])
            path.write_bytes(own.choice([flipped, cut])(path.read_bytes(), own))

        yield Case("prepared sets", f"a file damaged ({number})", look, "either", change(damage))


MODULE = """
import os, sys
import jax, jax.numpy as jnp

def network(scale=0.5):
    keys = jax.random.split(jax.random.key(0), 2)
    kernels = [scale * jax.random.normal(key, (8, 8)) for key in keys]
    def apply(params, x):
        return jnp.tanh(x @ params[0]) @ params[1]
    return apply, kernels

def leaves(): sys.exit(0)
def leaves_at_once(): os._exit(0)
def says_bye(): sys.exit("bye")
def raises(): raise ValueError("two\\nlines")
class Odd(BaseException): pass
def odd(): raise Odd
def recursive(): return recursive()
def nothing(): return None
def text(): return "a model"
def number(): return 3
def no_params(): return (lambda params, x: x, {})
def fails():
    def apply(params, x): raise KeyError("inside")
    return apply, jnp.ones(3)
def two_outputs(): return (lambda params, x: (x @ params, x), jnp.ones((8, 3)))
def whole_outputs(): return (lambda params, x: (x @ params).astype(int), jnp.ones((8, 3)))
def words(): return (lambda params, x: jnp.ones((5, 3))[x].sum(1) * params, jnp.ones(3))
def moves(): os.chdir("/"); return network()
def closes(): sys.stdout.close(); return network()
def loud(): os.write(1, b"noise"); print("noise"); return network()
def odd_params():
    apply, kernels = network()
    params = {"k": kernels, "s": 0.5, "n": "a"}
    return (lambda params, x: params["s"] * apply(params["k"], x), params)
def not_finite(): return network(float("nan"))
def loss_of_text(outputs, targets): return "loss"
"""


def networks() -> Iterator[Case]:
    """Yield networks, losses and data for the diagnosis that are none."""

    def module(folder: Path, draw: random.Random) -> None:
        (folder / "nets.py").write_text(MODULE)
        (folder / "broken.py").write_text("import nothing_of_this_name")
        (folder / "wrong.py").write_text("def f(:")
        np.savez(folder / "nan.npz", inputs=np.ones((8, 8)), targets=np.full((8, 8), np.nan))
        np.savez(folder / "text.npz", inputs=np.array(["a"]), targets=np.array(["b"]))
        np.savez(folder / "one.npz", inputs=np.ones((8, 8)))
        (folder / "cut.npz").write_bytes((folder / "nan.npz").read_bytes()[:-40])
        np.savez(folder / "code.npz", inputs=np.array([Exception]), targets=np.ones(1))

    base = ("--input", "8,8", "--target", "int:3", "--json", QUIET)
    refused = (
        *("leaves", "leaves_at_once", "says_bye", "raises", "odd", "recursive", "nothing"),
        *("text", "number", "no_params", "fails", "two_outputs", "whole_outputs", "words"),
        *("missing", ""),
    )
    for name in refused:
        yield Case("networks", f"nets:{name}", ("check", f"nets:{name}", *base), "refused", module)
    for name in ("moves", "closes", "loud", "odd_params", "not_finite"):
        command = ("check", f"nets:{name}", *base)
        yield Case(
            "networks", f"nets:{name}", command, "works", module, is_verdict, codes=(0, 1, 2)
        )
    for name in ("broken:f", "wrong:f", "os:getcwd", "sys:exit", "json", "..nets:leaves"):
        yield Case("networks", name, ("check", name, *base), "refused", module)
    for name in ("text.npz", "one.npz", "cut.npz", "code.npz", "missing.npz", "nets.py", "."):
        command = ("check", "nets:network", "--data", name, QUIET)
        yield Case("networks", f"--data {name}", command, "refused", module)
    command = ("check", "nets:network", "--data", "nan.npz", "--json", QUIET)
    yield Case("networks", "targets that are NaN", command, "works", module, is_verdict, codes=(2,))
    for more in (
        *("--optimizer sgd:nan", "--optimizer magic:1", "--seed -1", "--loss nets:loss_of_text"),
        *(
            "--out nets.py",
            "--input 8",
            "--input 8,99999999999999",
            "--input 0,8",
            "--target int:0",
        ),
        *("--target int:99999999999", "--input-type int:0", "--loss nets"),
    ):
        kept = [*base] if not more.startswith("--input ") else ["--json", QUIET]
        command = ("check", "nets:network", *kept, *more.split())
        yield Case("networks", more, command, "refused", module)


def is_verdict(folder: Path, said: str) -> str:
    """Whether stdout is one verdict as JSON."""
    return "" if "verdict" in json.loads(said) else "no verdict"


def environments() -> Iterator[Case]:
    """Yield surroundings in which little is as usual."""
    predict = ("predict", RUN, "photos", "--json")
    finished = ("deep_dog", "--resume", RUN, QUIET)
    surroundings: dict[str, dict[str, str]] = {
        "LC_ALL=C without UTF-8": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        "a stdout in ASCII": {"PYTHONIOENCODING": "ascii:strict"},
        "a stdout in UTF-16": {"PYTHONIOENCODING": "utf-16"},
        "no HOME": {"HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent/cache"},
        "no TMPDIR": {"TMPDIR": "/nonexistent"},
        "one column": {"COLUMNS": "1", "LINES": "1", "TERM": "dumb"},
        "another backend of charts": {"MPLBACKEND": "nonsense"},
        "numbers in float64": {"JAX_ENABLE_X64": "1"},
        "no cache of programs": {"JAX_ENABLE_COMPILATION_CACHE": "0"},
        "a cache that cannot be": {"JAX_COMPILATION_CACHE_DIR": "/proc/cache"},
        "eight devices": {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        "another time zone": {"TZ": "Pacific/Kiritimati"},
        "warnings as errors": {"PYTHONWARNINGS": "error::ResourceWarning"},
    }

    def add_foreign(run: Path, draw: random.Random) -> None:
        (run.parent / "photos/dark/\u00fc\u4e2d.png").write_bytes(png(draw))

    odd = with_run(photos, add_foreign)
    for name, variables in surroundings.items():
        law = anything if "UTF-16" in name else same_answers
        yield Case(
            "environments", f"predict, {name}", predict, "works", with_run(photos), law, variables
        )
        yield Case(
            "environments",
            f"finished run, {name}",
            finished,
            "works",
            with_run(photos),
            environment=variables,
        )
    for name in ("LC_ALL=C without UTF-8", "a stdout in ASCII"):
        variables = surroundings[name]
        yield Case(
            "environments", f"foreign letters, {name}", predict, "works", odd, parses, variables
        )
        table = ("predict", RUN, "photos")
        yield Case(
            "environments",
            f"foreign letters as a table, {name}",
            table,
            "works",
            odd,
            environment=variables,
        )
    shells: dict[str, tuple[str, Wanted]] = {
        "stdout on a full disk": (">/dev/full", "refused"),
        "stdout closed": (">&-", "works"),
        "stderr closed": ("2>&-", "works"),
        "stdin closed": ("<&-", "works"),
        "40 open files": ("ulimit -n 40", "either"),
        "files of 8 KiB": ("ulimit -f 8", "either"),
        "a folder that is gone": ("rmdir gone", "either"),
    }
    for name, (shell, wanted) in shells.items():
        yield Case(
            "environments",
            f"predict, {name}",
            predict,
            wanted,
            with_run(photos),
            environment={},
            shell=shell,
            codes=(0, 2) if "gone" in name else (0,),
        )
    for platform in ("nonsense", "tpu", "cuda"):
        variables = {"JAX_PLATFORMS": platform}
        yield Case(
            "environments",
            f"JAX_PLATFORMS={platform}",
            predict,
            "either" if platform == "cuda" else "refused",
            with_run(photos),
            environment=variables,
        )


def parses(folder: Path, said: str) -> str:
    """Whether stdout is JSON for every image."""
    num = len(json.loads(said))
    return "" if num == 2 * NUM_EACH + 1 else f"{num} answers"
