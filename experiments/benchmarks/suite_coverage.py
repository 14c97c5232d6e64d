"""Of the lines that the whole test suite runs, how many does the fast one run?

    python experiments/benchmarks/suite_coverage.py
    python experiments/benchmarks/suite_coverage.py --at-least 0.9

Runs `pytest`, then `pytest -m slow`, both under coverage.py: together they are the whole suite.
Prints a line for each file of which the fast one misses something. Exit code: 1 where it runs too
small a share.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from jaxdnn import command_line
from jaxdnn.errors import InputError

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is asked of the fast suite."""

    at_least: float = 0.95
    """Share of the whole suite's lines that the fast suite has to run."""
    out: Path = Path("runs/coverage")
    """Folder for what coverage.py reports, fast.json and slow.json."""


def lines_run(report: Path, *options: str) -> dict[str, set[int]]:
    """Run the suite; return the lines of each file of the package that it ran."""
    command = [sys.executable, "-m", "pytest", "-q", "--cov=jaxdnn", *options]
    report.unlink(missing_ok=True)
    done = subprocess.run([*command, f"--cov-report=json:{report.absolute()}"], cwd=ROOT)
    if not report.exists():
        raise InputError(f"{' '.join(command)} gave no report; pip install -e '.[test]'")
    if done.returncode:
        print(f"some tests failed ({' '.join(options) or 'fast suite'})", file=sys.stderr)
    files = json.loads(report.read_text())["files"]
    return {name: set(found["executed_lines"]) for name, found in files.items()}


def main() -> int:
    """Run both suites and compare them; return the exit code."""
    arguments = command_line.parse(
        Arguments,
        default=Arguments(),
        args=sys.argv[1:],
        prog="suite_coverage.py",
        description=__doc__,
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    fast = lines_run(arguments.out / "fast.json")
    slow = lines_run(arguments.out / "slow.json", "-m", "slow")
    whole = {name: fast.get(name, set()) | slow.get(name, set()) for name in fast | slow}
    missed = {name: lines - fast.get(name, set()) for name, lines in whole.items()}
    for name, lines in sorted(missed.items(), key=lambda entry: -len(entry[1])):
        if lines:
            print(f"{len(lines):5} of {len(whole[name]):5} lines missed in {name}")
    total = sum(map(len, whole.values()))
    share = 1 - sum(map(len, missed.values())) / total
    print(f"the fast suite runs {share:.1%} of the {total:,} lines that the whole suite runs")
    return int(share < arguments.at_least)


if __name__ == "__main__":
    command_line.run(main)
