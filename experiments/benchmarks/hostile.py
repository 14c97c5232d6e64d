"""What comes of hostile inputs? Run the programs on hundreds, and count the outcomes.

    python experiments/benchmarks/hostile.py                       all, about 10 minutes on 2 cores
    python experiments/benchmarks/hostile.py --only "run folders"  one row of the table
    python experiments/benchmarks/hostile.py --seed 1              other bytes are damaged

Every input has a folder and a process of its own: a child of this one, which has imported the
programs, or a new Python where the environment matters. Counted are: right, one clear line (exit
code 2 or 3, one line on stderr that begins with `error:`), traceback (or a crash), hang, silently
wrong (it ended well and should not have, gave other numbers, or touched what is not its own).
The table is hostile.md in --out; what went wrong stays there, with what it printed.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pty
import random
import re
import resource
import runpy
import select
import shlex
import signal
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import hostile_inputs
from hostile_inputs import RUN, Case

from jaxdnn import command_line
from jaxdnn.errors import InputError
from jaxdnn.progress import progress_bar
from jaxdnn.run_folder import write_json

EXPERIMENTS = Path(__file__).parents[1].resolve()
PROGRAMS = {
    "deep_dog": [str(EXPERIMENTS / "deep_dog.py")],
    "grad_flow": [str(EXPERIMENTS / "grad_flow.py")],
    "predict": [str(EXPERIMENTS / "predict.py")],
    "data": ["-m", "jaxdnn.data"],
    "check": ["-m", "jaxdnn.check"],
}
TRAIN = (
    *("deep_dog", "lecture", "--widths", "8", "--epochs", "3", "--batch-size", "4", "--devices"),
    *("1", "--data", "photos", "--checkpoint-seconds", "0", "--no-progress"),
)
CANARY = "canary"
_STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]")

Outcome = Literal["right", "one clear line", "traceback", "hang", "silently wrong"]
OUTCOMES: tuple[Outcome, ...] = (
    "right",
    "one clear line",
    "traceback",
    "hang",
    "silently wrong",
)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to try."""

    seed: int = 0
    """Of the damages."""
    only: str = ""
    """A part of the kinds or names to try; default: all."""
    seconds: float = 90.0
    """Longest that one command may take."""
    workers: int = 2
    """Commands at a time."""
    out: Path = Path("runs/hostile")
    """Folder for the inputs, and for the table."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
      code: exit code; minus the signal that ended it; None where it had to be killed.
      said: stdout.
      errors: stderr.
    """

    code: int | None
    said: str
    errors: str


def judge(case: Case, folder: Path, ended: Ended) -> tuple[Outcome, str]:
    """Return what came of a case, and why it is that."""
    if ended.code is None:
        return "hang", "killed after the longest time allowed"
    last = ended.errors.strip().splitlines()[-1:] or [""]
    if "Traceback (most recent call last)" in ended.errors or ended.code < 0:
        return "traceback", last[0] or f"signal {-ended.code}"
    if steers := _STEERS.search(ended.said + ended.errors):
        return "silently wrong", f"{steers.group()!r} reaches the terminal"
    if (folder / "ran").exists():
        return "silently wrong", "code in a file was run"
    if (folder / CANARY).read_text() != CANARY:
        return "silently wrong", "a file beside it was changed"
    if ended.code in case.codes:
        if case.wanted == "refused":
            return "silently wrong", "it ended well"
        try:
            wrong = case.law(folder, ended.said)
        except (ValueError, KeyError, OSError) as error:
            wrong = f"its output cannot be read: {error}"
        return ("silently wrong", wrong) if wrong else ("right", "")
    lines = [line for line in ended.errors.splitlines() if line.startswith("error: ")]
    if len(lines) != 1 or ended.code not in (2, 3) or last != lines:
        return "traceback", f"exit code {ended.code} without one line: {last[0]}"
    if case.wanted == "works":
        return "silently wrong", f"refused: {lines[0]}"
    return "one clear line", lines[0]


def run_forked(case: Case, folder: Path, seconds: float) -> Ended:
    """Run a command in a child of this process."""
    said, errors = folder / "stdout.txt", folder / "stderr.txt"
    child = os.fork()
    if not child:
        _become(case, folder, said, errors)
    return Ended(_wait(child, seconds), _text(said), _text(errors))


def _become(case: Case, folder: Path, said: Path, errors: Path) -> None:
    """Be the command, from here to the end of the process."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number, path in ((1, said), (2, errors)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = (
            os.fdopen(os.dup(number), "w", encoding="utf-8") for number in (1, 2)
        )
        program, *args = case.command
        where, target = PROGRAMS[program][:-1], PROGRAMS[program][-1]
        sys.argv = [target, *args]
        sys.path[0] = str(EXPERIMENTS) if not where else str(folder)
        if where:
            runpy.run_module(target, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(target, run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            if not stream.closed:
                stream.flush()
        os._exit(code)


def _wait(child: int, seconds: float) -> int | None:
    """Wait for a child; return its exit code, None where it took too long and was killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "backslashreplace") if path.exists() else ""


def run_apart(case: Case, folder: Path, seconds: float) -> Ended:
    """Run a command in a Python of its own, in another environment."""
    program, *args = case.command
    command = shlex.join([sys.executable, *PROGRAMS[program], *args])
    line = f"exec {command} {case.shell}"
    if case.shell.startswith("ulimit"):
        line = f"{case.shell}; exec {command}"
    elif case.shell.startswith("rmdir"):
        (folder / "gone").mkdir()
        absolute = command.replace(f" {RUN} ", f" {folder / RUN} ")
        line = f"cd gone; rmdir ../gone; exec {absolute}"
    environment = {**os.environ, **(case.environment or {})}
    with subprocess.Popen(
        ["bash", "-c", line],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            said, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return Ended(None, "", "")
    coding = (case.environment or {}).get("PYTHONIOENCODING", "utf-8").partition(":")[0]
    texts = (text.decode(coding, "backslashreplace") for text in (said, errors))
    return Ended(process.returncode, *texts)


def one_case(case: Case, number: int, arguments: Arguments) -> tuple[Outcome, str]:
    """Make the input, run the command, judge; keep the folder where something went wrong."""
    folder = (arguments.out / f"case-{number:03}").absolute()
    _remove(folder)
    folder.mkdir(parents=True)
    (folder / CANARY).write_text(CANARY)
    case.prepare(folder, random.Random(f"{arguments.seed} {case.kind} {case.name}"))
    run = run_forked if case.environment is None else run_apart
    ended = run(case, folder, arguments.seconds)
    outcome, why = judge(case, folder, ended)
    if outcome in ("right", "one clear line"):
        _remove(folder)
    else:
        about = {"case": str(case.command), "why": why, **dataclasses.asdict(ended)}
        write_json(folder / "outcome.json", about)
    return outcome, why


def _remove(folder: Path) -> None:
    """Remove a folder, however deep: Python would call itself for each level."""
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def make_reference(arguments: Arguments) -> None:
    """Train the run, and prepare the data set, that the cases damage copies of."""
    folder = (arguments.out / "reference").absolute()
    _remove(folder)
    folder.mkdir(parents=True)
    hostile_inputs.photos(folder, random.Random(0))
    for command in (
        (*TRAIN, "--out", RUN),
        ("predict", RUN, "photos", "--json"),
        ("data", "prepare", "photos", "--out", "set", "--no-progress"),
    ):
        ended = run_apart(Case("", "", command, "works", environment={}), folder, 300)
        if ended.code:
            raise InputError(f"{folder}: {' '.join(command)} failed: {ended.errors.strip()[-500:]}")
        if command[0] == "predict":
            (folder / "answers.json").write_text(ended.said)


JUMPS = """
import runpy, sys, time
real, calls = time.time, 0
def jumping():
    global calls
    calls += 1
    return real() + (0, {seconds})[calls > 40]
time.time = jumping
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def moments(arguments: Arguments) -> dict[str, tuple[Outcome, str]]:
    """Return what came of each."""
    found = {}
    for name, act in {
        "the clock jumps ten years ahead": lambda f: _clock_jumps(f, 3e8),
        "the clock jumps ten years back": lambda f: _clock_jumps(f, -3e8),
        "resumed on four devices": _more_devices,
        "Ctrl-C in a terminal, then resumed": _interrupt_in_terminal,
        "Ctrl-C twice in a terminal": lambda f: _interrupt_in_terminal(f, times=2),
        "SIGTERM while compiling, then resumed": lambda f: _terminate(f, "compiling"),
        "SIGTERM while images are read": lambda f: _terminate(f, "images"),
    }.items():
        if arguments.only not in f"moments {name}":
            continue
        folder = (arguments.out / f"moment-{len(found)}").absolute()
        _remove(folder)
        folder.mkdir(parents=True)
        hostile_inputs.photos(folder, random.Random(0))
        try:
            wrong = act(folder)
        except subprocess.TimeoutExpired:
            found[name] = ("hang", "killed after the longest time allowed")
            continue
        found[name] = ("silently wrong" if wrong else "right", wrong)
    return found


def _python(*args: str) -> list[str]:
    return [sys.executable, *PROGRAMS["deep_dog"], *args]


def _finish(folder: Path, *args: str) -> str:
    """Resume a run to its end; return what of its results differs, or what it said."""
    done = subprocess.run(
        _python("--resume", RUN, "--no-progress", *args), cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        return f"exit code {done.returncode}: {done.stderr.strip()[-300:]}"
    return ""


def _clock_jumps(folder: Path, seconds: float) -> str:
    command = [sys.executable, "-c", JUMPS.format(seconds=seconds), *PROGRAMS["deep_dog"]]
    done = subprocess.run(
        [*command, *TRAIN[1:], "--out", RUN],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
    )
    if done.returncode:
        return f"exit code {done.returncode}: {done.stderr.strip()[-300:]}"
    return hostile_inputs.same_results(folder, "")


def _more_devices(folder: Path) -> str:
    """Stop a run on one device, and go on with four: the same up to rounding, and it says so."""
    if wrong := _stopped(folder, *_long(), wait_for="checkpoints/latest/*/state"):
        return wrong
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        _python("--resume", RUN, "--no-progress", "--devices", "4"),
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, **flags},
    )
    if done.returncode or "now there are 4" not in done.stderr:
        return f"exit code {done.returncode}: {done.stderr.strip()[-300:]}"
    return ""


def _long() -> list[str]:
    """Return the arguments of a run that takes a while."""
    args = list(TRAIN[1:])
    args[args.index("--epochs") + 1] = "150"
    return [*args, "--out", RUN]


def _stopped(folder: Path, *args: str, wait_for: str) -> str:
    """Start a run, and stop it by SIGTERM as soon as a file is there."""
    process = subprocess.Popen(
        _python(*args), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not any((folder / RUN).glob(wait_for)):
        time.sleep(0.01)
    process.terminate()
    errors = process.communicate(timeout=120)[1]
    return "" if process.returncode == 75 else f"exit code {process.returncode}: {errors[-300:]}"


def _terminate(folder: Path, when: str) -> str:
    """Stop by SIGTERM before the first step: while compiling, or before."""
    wait_for = "dataset.json" if when == "compiling" else "config.json"
    args = [*TRAIN[1:], "--out", RUN, "--compilation-cache", "off"]
    if when == "images":
        process = subprocess.Popen(
            _python(*args), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        while process.poll() is None and not (folder / RUN / "run.lock").exists():
            time.sleep(0.005)
        process.terminate()
        errors = process.communicate(timeout=120)[1]
        if process.returncode not in (75, 0):
            return f"exit code {process.returncode}: {errors[-300:]}"
    elif wrong := _stopped(folder, *args, wait_for=wait_for):
        return wrong
    again = [*TRAIN[1:], "--resume", "auto", "--out", RUN]
    done = subprocess.run(_python(*again), cwd=folder, capture_output=True, text=True)
    if done.returncode:
        return f"resumed: exit code {done.returncode}: {done.stderr.strip()[-300:]}"
    return hostile_inputs.same_results(folder, "")


def _interrupt_in_terminal(folder: Path, times: int = 1) -> str:
    """Press Ctrl-C in a terminal of the process's own, where a bar is shown."""
    args = [each for each in _long() if each != "--no-progress"]
    child, terminal = pty.fork()
    if not child:
        os.chdir(folder)
        os.execv(sys.executable, _python(*args))
    shown, pressed, end = b"", 0, time.monotonic() + 120
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.05)[0]:
            try:
                shown += os.read(terminal, 65536)
            except OSError:  # It has ended.
                break
        if not pressed and any((folder / RUN / "checkpoints" / "latest").glob("*/state")):
            for _ in range(times):
                os.write(terminal, b"\x03")
                time.sleep(0.05)
            pressed = times
    code = _wait(child, 30)
    os.close(terminal)
    if b"Traceback" in shown or code not in ((75,) if times == 1 else (75, 130)):
        return f"exit code {code}: {shown[-300:].decode(errors='replace')}"
    return _finish(folder) if times == 1 else ""


def table(outcomes: dict[str, list[Outcome]]) -> str:
    """Return the rows for the docs."""
    rows = ["| inputs | tried | " + " | ".join(OUTCOMES) + " |", "|---|" + "---|" * 6]
    everything = [outcome for found in outcomes.values() for outcome in found]
    for kind, found in [*outcomes.items(), ("all", everything)]:
        counts = collections.Counter(found)
        cells = " | ".join(str(counts[outcome]) for outcome in OUTCOMES)
        rows.append(f"| {kind} | {len(found)} | {cells} |")
    return "\n".join(rows)


def _warm_up() -> None:
    """Import what the programs import, so that no child has to; nothing is computed."""

    sys.path.insert(0, str(EXPERIMENTS))
    for name in ("deep_dog", "predict", "grad_flow"):
        __import__(name)


def main() -> int:
    """Try everything, print the table, and return 1 if anything went wrong."""
    arguments = command_line.parse(
        Arguments, default=Arguments(), args=sys.argv[1:], prog="hostile.py", description=__doc__
    )
    _warm_up()
    make_reference(arguments)
    cases = [
        case
        for case in hostile_inputs.cases(arguments.seed)
        if arguments.only in f"{case.kind} {case.name}"
    ]
    outcomes: dict[str, list[Outcome]] = collections.defaultdict(list)
    told = []

    def note(kind: str, name: str, outcome: Outcome, why: str) -> None:
        outcomes[kind].append(outcome)
        told.append({"kind": kind, "name": name, "outcome": outcome, "why": why})
        if outcome not in ("right", "one clear line"):
            print(f"{outcome}: {kind}, {name!a}: {why!a}"[:400], flush=True)

    with (
        ThreadPoolExecutor(arguments.workers) as pool,
        progress_bar(total=len(cases), desc="trying", unit=" inputs") as bar,
    ):
        jobs = [pool.submit(one_case, case, n, arguments) for n, case in enumerate(cases)]
        for case, job in zip(cases, jobs, strict=True):
            note(case.kind, case.name, *job.result())
            bar.update()
    for name, (outcome, why) in moments(arguments).items():
        note("moments", name, outcome, why)
    text = table(outcomes)
    write_json(arguments.out / "hostile.json", told)
    (arguments.out / "hostile.md").write_text(text + "\n")
    print(text)
    return int(any(each["outcome"] in OUTCOMES[2:] for each in told))


if __name__ == "__main__":
    command_line.run(main)
