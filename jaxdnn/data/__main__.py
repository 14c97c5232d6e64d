"""Look at images, or prepare them once for fast reading.

python -m jaxdnn.data look photos/                      what is there, and a sheet for each class
python -m jaxdnn.data prepare photos.zip --out data/    a TFDS data set, for --data tfds:photos
"""

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import tyro

from jaxdnn import command_line
from jaxdnn.data.inspect import inspect_source, plan_sheets, report, text, write_sheets
from jaxdnn.data.prepare import prepare
from jaxdnn.data.reader import image_bar
from jaxdnn.data.sources import open_source
from jaxdnn.errors import InputError
from jaxdnn.names import printable

PROG = "python -m jaxdnn.data"
LOOK = """Say what is there: images by class and split, sizes, modes, the same image twice, what
cannot be read and why; and draw a contact sheet for each class."""
PREPARE = """Turn a folder or a zip into a TFDS data set of array_record files, which is read faster
and by any number of machines: --data tfds:NAME --data-dir OUT.

What cannot be read is left out and named. Interrupted, or out of disk, the same command goes on
where it was."""


@dataclasses.dataclass(frozen=True)
class Look:
    """The command line of `look`."""

    data: tyro.conf.Positional[str]
    """A folder or a .zip of images (also gs://, s3:// ...), `silhouettes`, `tfds:NAME`, or the
    folder of a prepared data set."""
    data_dir: str | None = None
    """Where TFDS data sets are prepared."""
    json: bool = False
    """Print the report as JSON."""
    out: Path = Path("runs/look")
    """Folder for the contact sheets, one PNG for each class."""
    page: int = 1
    """Which 200 classes get a contact sheet: 1 for the first 200."""
    progress: bool = True
    """Show a progress bar."""


def look(args: Sequence[str]) -> int:
    """Report what a source holds."""
    options = command_line.parse(
        Look, default=None, args=args, prog=f"{PROG} look", description=LOOK
    )
    source = open_source(options.data, options.data_dir, progress=options.progress)
    try:
        planned = plan_sheets(source, options.out, options.page)
        with image_bar(len(source.labels), disable=not options.progress) as bar:
            survey, thumbnails = inspect_source(source, planned, bar.update)
        with image_bar(
            len(planned), disable=not options.progress, desc="sheets", unit="classes"
        ) as bar:
            sheets = write_sheets(source, thumbnails, planned, bar.update)
    except OSError as error:
        raise InputError(
            f"--out {options.out} cannot be written ({error}); choose another"
        ) from error
    about = report(source, survey)
    command_line.say(json.dumps(about, indent=2) if options.json else text(about))
    num, last = len(source.class_names), max(planned) + 1
    rest = f", of classes {min(planned) + 1:,} to {last:,} of {num:,}" if len(planned) < num else ""
    following = f"; --page {options.page + 1} makes the next" if last < num else ""
    print(f"wrote {len(sheets)} contact sheets to {options.out}{rest}{following}", file=sys.stderr)
    return 0


@dataclasses.dataclass(frozen=True)
class Prepare:
    """The command line of `prepare`."""

    data: tyro.conf.Positional[str]
    """A folder or a .zip of images (also gs://, s3:// ...), `silhouettes`, or `tfds:NAME`."""
    out: Path
    """Folder for data sets: the --data-dir of training."""
    name: str | None = None
    """What to call it; default: as the folder or zip."""
    data_dir: str | None = None
    """Where TFDS data sets are prepared, to prepare one of them at another size."""
    image_size: int | None = None
    """Side in pixels of the squares to store; default: the images as they are."""
    channels: Literal[1, 3] | None = None
    """1 to store grey, 3 for colour; default: the images as they are."""
    progress: bool = True
    """Show a progress bar."""


def prepare_command(args: Sequence[str]) -> int:
    """Write a TFDS data set, and say what was skipped."""
    options = command_line.parse(
        Prepare, default=None, args=args, prog=f"{PROG} prepare", description=PREPARE
    )
    source = open_source(options.data, options.data_dir, progress=options.progress)
    stem = Path(options.data.partition(":")[2] or options.data).stem.lower()
    name = options.name or re.sub(r"[^a-z0-9]+", "_", stem).strip("_0123456789") or "images"
    num, disable = len(source.labels), not options.progress
    with (
        image_bar(num, disable=disable) as decoded,
        image_bar(num, disable=disable, desc="writing") as written,
    ):
        about = prepare(
            source,
            options.out,
            name=name,
            image_size=options.image_size,
            channels=options.channels,
            on_done=decoded.update,
            on_written=written.update,
        )
    for skipped, reason in about["skipped"].items():
        command_line.say(printable(f"skipped {skipped}: {reason}"))
    counts = ", ".join(f"{number:,} {split}" for split, number in about["images"].items())
    command_line.say(
        f"{about['folder']}: {counts}; train with --data tfds:{name} --data-dir {options.out}"
    )
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "look": look,
    "prepare": prepare_command,
}


def main() -> int:
    """Run the command; return its exit code."""
    name, *args = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
        return 0
    if name not in COMMANDS:
        raise InputError(
            f"{PROG} {name!r} is no command; expected one of {', '.join(COMMANDS)}; choose one"
        )
    return COMMANDS[name](args)


if __name__ == "__main__":
    command_line.run(main)
