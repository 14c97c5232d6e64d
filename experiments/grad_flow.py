"""Show what depth does to gradients.

python experiments/grad_flow.py [sweep]       every initializer, activation and seed at once
python experiments/grad_flow.py race          the same networks, trained side by side
python experiments/grad_flow.py lecture       the lecture's five neurons, number by number
python experiments/grad_flow.py theory        what theory says, for any activation
python experiments/grad_flow.py phase         its phase diagram
python experiments/grad_flow.py depth         the greatest depth that can be trained
python experiments/grad_flow.py COMMAND --help       the options of a command
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

# Orthogonal matrices come from many small factorisations, where more threads only wait for each
# other; it must be said before NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from commands import depth, lecture, phase, race, sweep, theory

from jaxdnn import command_line
from jaxdnn.names import resolve

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "sweep": sweep.main,
    "lecture": lecture.main,
    "race": race.main,
    "phase": phase.main,
    "theory": theory.main,
    "depth": depth.main,
}
DEFAULT_COMMAND = "sweep"


def main() -> int:
    """Run the command that the first argument names; return its exit code."""
    name, args = DEFAULT_COMMAND, sys.argv[1:]
    if args and args[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    if args and not args[0].startswith("-"):
        name = resolve(args.pop(0), COMMANDS, {}, "command")
    return COMMANDS[name](args)


if __name__ == "__main__":
    command_line.run(main)
