"""Files that somebody may have by accident or by intent, for every test that wants one."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.data.helpers import photos, png, write

ESCAPES = "\x1b[31m\u202egnp\x07"
"""Colours a terminal, and turns the direction of what follows."""


def run_code_set(root: Path, *, name: str = "hostile", where: str = "features.json") -> Path:
    """Write a prepared data set whose description names a module beside it; return that folder.

    The module leaves a file `ran` when it is imported.

    Args:
      root: what to write in.
      name: of the data set.
      where: the file that names the module, features.json or dataset_info.json.
    """
    (root / "planted_features.py").write_text(f"open({str(root / 'ran')!r}, 'w').close()\n")
    folder = root / name / "1.0.0"
    folder.mkdir(parents=True)
    planted = {"pythonClassName": "planted_features.Image", "image": {"shape": {}}}
    nested = {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "featuresDict": {"features": {"image": planted}},
    }
    info: dict[str, object] = {"name": name, "version": "1.0.0", "fileFormat": "array_record"}
    if where == "features.json":
        (folder / where).write_text(json.dumps(nested))
    else:
        info["features"] = nested
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def foreign_names(root: Path) -> Path:
    """Write classes whose names are no UTF-8, differ in what is not shown, or steer a terminal.

    Returns:
      The folder; each of its seven classes has four images.
    """
    names = [
        b"caf\xe9",
        b"caf\xc4",
        "e\u0301t".encode(),
        "\u00e9t".encode(),
        b"a\x01",
        b"a\x02",
        ESCAPES.encode(),
    ]
    for label, stored in enumerate(names):
        for number in range(4):
            write(root / os.fsdecode(stored) / f"{number}.png", png(0, 10 * label + number))
    return root


def with_unread(root: Path) -> Path:
    """Write photographs, and beside them pictures of kinds and names that are not read."""
    photos(root, each=8)
    jpeg_2000 = b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(20)
    heic = b"\x00\x00\x00\x18ftypheic" + bytes(20)
    for number in range(3):
        write(root / f"dog/{number}.heic", heic)
        write(root / f"cat/{number}", png(1, 50 + number))
    write(root / "cat/9.JP2", jpeg_2000)
    write(root / "bird/9.jpg_large", png(2, 60))
    write(root / "bird/notes.txt", b"three birds")
    return root
