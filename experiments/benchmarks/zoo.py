"""Does the diagnosis take what people have, and does it leave healthy networks alone?

    python experiments/benchmarks/zoo.py
    python experiments/benchmarks/zoo.py --only lenet gpt
    python experiments/benchmarks/zoo.py --public ~/checkouts

Networks in the manner of public ones (NNX, Linen, Equinox, Haiku, stax, plain functions and bare
loss functions) are each diagnosed by the call that their own users would write, and then trained
with plain optax for at most 1,000 steps: a network has learnt where its loss is below half of that
of the best constant. `--public` runs models of public repositories instead, of those that lie in
that folder, under the names of the repositories.

Prints a line a network and then the table; `--json` prints a list of objects instead.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from zoo_networks import ZOO, train
from zoo_public import public_zoo
from zoo_tasks import Call, Entry

from jaxdnn import Diagnosis, command_line, diagnose
from jaxdnn.diagnosis import examine, find_causes

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which networks."""

    only: tuple[str, ...] = ()
    """Names of the networks; all of them by default."""
    json: bool = False
    """Print a list of objects."""
    public: Path | None = None
    """Folder of checkouts of public repositories, whose models are run instead."""


def main() -> int:
    """Run the command; return its exit code."""
    arguments = command_line.parse(
        Arguments,
        default=Arguments(),
        args=sys.argv[1:],
        prog="zoo.py",
        description=__doc__,
    )
    zoo = ZOO.items() if arguments.public is None else public_zoo(arguments.public)
    rows = []
    for name, entry in zoo:
        if arguments.only and name not in arguments.only:
            continue
        if isinstance(entry, str):
            print(f"{name:18} left out: {entry}", file=sys.stderr)
            continue
        rows.append(run(name, entry))
        if not arguments.json:
            print(line(rows[-1]), flush=True)
    print(json.dumps(rows, indent=1) if arguments.json else table(rows))
    return 0


def run(name: str, entry: Entry) -> Row:
    """Diagnose and train a network; what came of it as plain values."""
    call = entry.make()
    started = time.process_time()
    row: Row = {"name": name, "library": entry.library, "works": True}
    try:
        found = diagnose(*call.arguments, optimizer=entry.optimizer, **call.options)
    except Exception as error:  # Whatever a model does to the diagnosis is the result.
        said = f"{type(error).__name__}: {error}"
        row |= {"works": False, "error": said.splitlines()[0][:300]}
    else:
        row |= {
            "verdict": found.verdict,
            "score": round(found.score, 3),
            "findings": [f"{each.cause} at {each.path}: {each.evidence}" for each in found.causes],
            "notes": list(found.notes),
            "layers": len(found.layers),
            "empty": sum(not math.isfinite(each.factor) for each in found.layers),
            **examined(call, found),
        }
    row["cpu_seconds"] = round(time.process_time() - started, 1)
    try:
        loss, steps = train(entry, call)
    except Exception as error:  # Of the model's own.
        return row | {"works": False, "error": f"training: {error}".splitlines()[0][:300]}
    return row | {"learns": steps < MOST_STEPS, "steps": steps, "loss": round(loss, 4)}


MOST_STEPS = 1000


def examined(call: Call, found: Diagnosis) -> Row:
    """What the pass alone finds, how the rows name what they hold, and leaves in no row."""
    exam = examine(*call.arguments, **call.options)
    rows = {each.path for each in found.parameters}
    suspected = [f"{each.cause} at {each.path}: {each.evidence}" for each in find_causes(exam)]
    segments = {f"{s.kind} {s.label}".strip() for edge in exam.graph.edges for s in edge.segments}
    return {
        "unlisted": [name for name in exam.names if name not in rows],
        "roles": sorted({each.role for each in found.parameters}),
        "suspected": suspected,
        "segments": sorted(segments),
    }


def is_right(row: Row) -> bool:
    """Whether the verdict is what training shows."""
    return row["works"] and (row["verdict"] == "trains") == row["learns"]


def line(row: Row) -> str:
    """What came of a network, in a line; what is wrong below it."""
    if not row["works"]:
        return f"{row['name']:18} {row['library']:8} FAILS  {row['error']}"
    first = (
        f"{row['name']:18} {row['library']:8} {row['verdict']:14} {row['score']:.2f}"
        f"  learns after {row['steps']}"
        + ("" if row["learns"] else ": no")
        + f"  {row['layers']} layers  {row['cpu_seconds']:.0f} s"
        + ("" if is_right(row) else "  WRONG")
    )
    below = [f"  finding: {each}" for each in row["findings"]]
    below += [f"  in no row: {', '.join(row['unlisted'])}"] if row["unlisted"] else []
    below += [f"  note: {each}" for each in row["notes"]]
    below += [f"  suspected: {each}" for each in row["suspected"] if each not in row["findings"]]
    below += [f"  between: {', '.join(row['segments'])}; rows without a factor: {row['empty']}"]
    below += [f"  parameters: {', '.join(row['roles'])}"]
    return "\n".join([first, *below])


def table(rows: Sequence[Row]) -> str:
    """The counts, by library and in all, as Markdown."""
    head = ["library", "networks", "work", "verdict right", "with a finding", "leaves in no row"]
    lines = [head, ["---"] * len(head)]
    for library in [*dict.fromkeys(row["library"] for row in rows), "all"]:
        own = [row for row in rows if library in (row["library"], "all")]
        work = [row for row in own if row["works"]]
        counts = [
            len(own), len(work), sum(map(is_right, work)),
            sum(bool(row["findings"]) for row in work if row["learns"]),
            sum(len(row["unlisted"]) for row in work),
        ]  # fmt: skip
        lines.append([library, *map(str, counts)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    raise SystemExit(main())
