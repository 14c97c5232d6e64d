"""Measure how photographs become batches: against other readers, in training, and in memory."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any, Literal

from benchmarks import machine

from jaxdnn import command_line
from jaxdnn.errors import InputError

DESCRIPTION = """Measure how photographs become batches, in four parts.

decode: images per second against other readers, with two workers each, in turns.

train: an MLP 51529-512-128-2 trained from the stream: how long does the device wait?

memory: the same with ten times the photographs: does it take more memory?

small: 28x28 and 32x32 images from array_record files."""

PARTS = ("decode", "train", "memory", "small")


@dataclasses.dataclass(frozen=True)
class DataArguments:
    """The command line of `data`."""

    photos: Path | None = None
    """A zip of JPEG photographs in class folders; default: made-up ones of 500x375."""
    out: Path = Path("runs/bench")
    """Folder for data.json and data.md."""
    only: tuple[Literal["decode", "train", "memory", "small"], ...] = ()
    """Parts to measure; default all."""
    num: int = 5000
    """Photographs in an epoch: those of the zip, repeated."""
    rounds: int = 3
    """How often every contender takes its turn."""
    steps: int = 100
    """Optimizer steps that are measured."""


def main(args: list[str], prog: str) -> int:
    """Run the command; return its exit code."""
    arguments = command_line.parse(
        DataArguments, default=None, args=args, prog=prog, description=DESCRIPTION
    )
    parts = arguments.only or PARTS
    if "decode" in parts and importlib.util.find_spec("torch") is None:
        raise InputError(f"{machine.HINT}; or leave it out: --only train memory small")
    machine.make_folder(arguments.out)
    from benchmarks import photographs

    encoded = photographs.load(arguments.photos)
    results = machine.describe() | {
        "photographs": str(arguments.photos or "made up"),
        "num": arguments.num,
    }
    told = []
    for part in parts:
        results[part], text = _measure(part, encoded, arguments, results["cores"])
        told.append(text)
        print(text, flush=True)
        (arguments.out / "data.json").write_text(json.dumps(results, indent=2) + "\n")
        (arguments.out / "data.md").write_text("\n".join(told))
    print(f"everything is in {arguments.out}")
    return 0


def _measure(
    part: str, encoded: list[bytes], arguments: DataArguments, cores: int
) -> tuple[Any, str]:
    """Return the results of a part, and what to say of them."""
    from benchmarks import data, small, streaming

    num = arguments.num
    if part == "decode":
        found = data.measure(encoded, num=num, rounds=arguments.rounds)
        return found, data.report(found)
    if part == "train":
        found = streaming.measure_training(encoded, num, arguments.steps)
        return found, streaming.report_training(found, num, cores)
    if part == "memory":
        found = streaming.measure_memory(encoded, num, 10 * num, arguments.steps)
        return found, streaming.report_memory(found)
    found = small.measure(encoded, num, arguments.rounds)
    return found, small.report(found)
