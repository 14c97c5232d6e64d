"""Does a run survive a kill at any moment? Kill many, damage some, resume all, compare every bit.

    python experiments/benchmarks/chaos.py                    100 runs, 20 of them damaged as well
    python experiments/benchmarks/chaos.py --runs 10 --damaged 2

Each run is the same small job of `deep_dog.py --resume auto` in a process of its own. It is killed
(SIGKILL) once, every second one while a checkpoint is being written, the others at any moment from
its start to its end. In some the newest checkpoint is then damaged: a byte flipped, a file cut, a
file removed. The same command is run again, and its results are compared with those of a run that
nobody killed: parameters, optimizer and all other state, and every byte of metrics.jsonl.
Nothing leaves the folder --out, and no run may take longer than --seconds.
"""

from __future__ import annotations

import collections
import dataclasses
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from jaxdnn import command_line
from jaxdnn.progress import progress_bar
from jaxdnn.run_folder import RunFolder, write_json
from jaxdnn.training import Checkpoints

DEEP_DOG = Path(__file__).parents[1] / "deep_dog.py"
JOB = (
    *(
        "lecture",
        "--widths",
        "128",
        "64",
        "--epochs",
        "8",
        "--dropout",
        "0.2",
        "--batch-size",
        "64",
    ),
    *("--horizontal-flip", "0.5", "--monitor", "val/loss", "--checkpoint-seconds", "0"),
    *("--watch-gradients", "50", "--resume", "auto", "--no-progress"),
)
TEMPORARY = "*/*orbax-checkpoint-tmp*"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to do to how many runs."""

    runs: int = 100
    """Runs that are killed."""
    damaged: int = 20
    """Of these, runs whose newest checkpoint is damaged as well."""
    seed: int = 0
    """Of the moments and the damages."""
    seconds: float = 600.0
    """Longest that one process may take."""
    workers: int = 1
    """Runs at a time."""
    out: Path = Path("runs/chaos")
    """Folder for the runs, which are removed again where nothing is wrong with them."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
      when: it was killed: `during a save`, or `at any moment`.
      damage: done to it, or `none`.
      killed: whether the kill came before the end.
      said: whether the resumed run reported damage.
      differs: what is not as in the run that nobody killed.
    """

    when: str
    damage: str
    killed: bool
    said: bool
    differs: tuple[str, ...]


def start(out: Path) -> subprocess.Popen[str]:
    """Start the job, or resume it."""
    command = [sys.executable, str(DEEP_DOG), *JOB, "--out", str(out)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
    )


def finish(out: Path, seconds: float) -> str:
    """Run the job to its end; return what it said on stderr."""
    process = start(out)
    try:
        said = process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        raise RuntimeError(f"{out} took longer than {seconds:.0f} s") from None
    if process.returncode:
        raise RuntimeError(f"{out}: exit code {process.returncode}: {said.strip()[-500:]}")
    return said


def kill_during_save(process: subprocess.Popen[str], out: Path, draw: random.Random) -> bool:
    """Kill when one of the first saves is under way; return whether it was before the end."""
    num_saves, temporary = draw.randint(1, 12), set[Path]()
    while process.poll() is None:
        temporary.update((out / "checkpoints").glob(TEMPORARY))
        if len(temporary) >= num_saves:
            time.sleep(draw.uniform(0, 0.03))
            process.kill()
        time.sleep(0.001)
    return process.returncode == -signal.SIGKILL


def kill_at_any_moment(process: subprocess.Popen[str], draw: random.Random, seconds: float) -> bool:
    """Kill at a moment that is uniform in the time that a whole run takes."""
    try:
        process.wait(draw.uniform(0, seconds))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return process.returncode == -signal.SIGKILL


def flip_a_byte(path: Path, draw: random.Random) -> None:
    """Change one byte of a file."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= draw.randrange(1, 256)
    path.write_bytes(content)


def cut_a_file(path: Path, draw: random.Random) -> None:
    """Keep only the beginning of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])


def remove_a_file(path: Path, draw: random.Random) -> None:
    """Remove a file."""
    path.unlink()


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "a byte flipped": flip_a_byte,
    "a file cut": cut_a_file,
    "a file gone": remove_a_file,
}


def damage_newest(out: Path, how: str, draw: random.Random) -> bool:
    """Damage a file of the newest checkpoint; return whether there was one."""
    kept = [path for path in (out / "checkpoints").glob("*/*") if path.name.isdigit()]
    if not kept:
        return False
    newest = max(kept, key=lambda path: (int(path.name), path.parent.name == "latest"))
    files = [path for path in sorted(newest.rglob("*")) if path.is_file() and path.stat().st_size]
    DAMAGES[how](draw.choice(files), draw)
    return True


def differences(out: Path, reference: Path) -> tuple[str, ...]:
    """Return what of the results of two finished runs is not the same to the bit."""
    ours, theirs = RunFolder(out), RunFolder(reference)
    found = []
    if ours.metrics.read_bytes() != theirs.metrics.read_bytes():
        found.append("metrics.jsonl")
    states = []
    for folder in (ours, theirs):
        with Checkpoints(folder.checkpoints) as checkpoints:
            states.append(checkpoints.restore("latest") | checkpoints.restore("best"))
    for name in states[0].keys() | states[1].keys():
        arrays = [np.asarray(state[name]) for state in states if name in state]
        if len(arrays) < 2 or arrays[0].tobytes() != arrays[1].tobytes():
            found.append(name)
    return tuple(found)


def one_run(arguments: Arguments, number: int, reference: Path, seconds: float) -> Outcome:
    """Kill a run, perhaps damage it, resume it and compare."""
    draw = random.Random(f"{arguments.seed} {number}")
    out = arguments.out / f"run-{number:03}"
    during_save = number % 2 == 0
    how = "none"
    if number < arguments.damaged:
        how = list(DAMAGES)[number % len(DAMAGES)]
    for _ in range(20):  # Until the kill comes before the end, and finds something to damage.
        shutil.rmtree(out, ignore_errors=True)
        process = start(out)
        if during_save:
            killed = kill_during_save(process, out, draw)
        else:
            killed = kill_at_any_moment(process, draw, seconds)
        if killed and (how == "none" or damage_newest(out, how, draw)):
            break
    said = finish(out, arguments.seconds)
    differs = differences(out, reference)
    if not differs:
        shutil.rmtree(out)
    when = "during a save" if during_save else "at any moment"
    return Outcome(when, how, killed, "is damaged" in said, differs)


def table(outcomes: list[Outcome]) -> str:
    """Return the rows for the README."""
    groups = collections.defaultdict(list)
    for outcome in outcomes:
        groups[outcome.when, outcome.damage].append(outcome)
    lines = [
        "| killed | newest checkpoint | runs | bit-identical | damage reported |",
        "|---|---|---|---|---|",
    ]
    for (when, damage), group in sorted(groups.items()):
        same, said = (sum(not o.differs for o in group), sum(o.said for o in group))
        kept = "as it was" if damage == "none" else damage
        lines.append(f"| {when} | {kept} | {len(group)} | {same} | {said} |")
    total, same = len(outcomes), sum(not outcome.differs for outcome in outcomes)
    lines.append(f"| | all | {total} | {same} | {sum(o.said for o in outcomes)} |")
    return "\n".join(lines)


def main() -> int:
    """Run everything, print the table, and return 1 if any run differs."""
    arguments = command_line.parse(
        Arguments, default=Arguments(), args=sys.argv[1:], prog="chaos.py", description=__doc__
    )
    reference = arguments.out / "reference"
    arguments.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(reference, ignore_errors=True)
    finish(reference, arguments.seconds)  # Compiles; the next one is as fast as the others.
    shutil.rmtree(reference)
    began = time.monotonic()
    finish(reference, arguments.seconds)
    seconds = time.monotonic() - began
    with (
        ThreadPoolExecutor(arguments.workers) as pool,
        progress_bar(total=arguments.runs, desc="killing", unit=" runs") as bar,
    ):
        outcomes = []
        jobs = [
            pool.submit(one_run, arguments, number, reference, seconds)
            for number in range(arguments.runs)
        ]
        for job in jobs:
            outcomes.append(job.result())
            bar.update()
    text = table(outcomes)
    write_json(arguments.out / "chaos.json", [dataclasses.asdict(o) for o in outcomes])
    (arguments.out / "chaos.md").write_text(text + "\n")
    print(text)
    return int(any(outcome.differs for outcome in outcomes))


if __name__ == "__main__":
    command_line.run(main)
