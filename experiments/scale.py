"""What many devices, large states and second starts cost: the tables of scale in the README.

    python experiments/scale.py weak        1, 2, 4, 8 simulated devices, the same share for each
    python experiments/scale.py memory      a device's part of a large state, whole and --fsdp
    python experiments/scale.py saving      how long saving 50 million parameters stops training
    python experiments/scale.py start       time to the first step, the first start and the second

Simulated devices share the cores of this machine: they show that a program is cut as it should be,
not that it gets faster.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from jaxdnn import command_line
from jaxdnn.names import resolve

DEVICES = "--xla_force_host_platform_device_count=8"


def main() -> int:
    """Run the measurement that the first argument names; return its exit code."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print((__doc__ or "").strip())
        return 0
    if sys.argv[1] in ("weak", "memory"):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}".strip()
    # Only now: the number of devices is fixed when JAX begins.
    from scaling import memory, saving, start, weak

    commands: dict[str, Callable[[], str]] = {
        "weak": weak.table,
        "memory": memory.table,
        "saving": saving.table,
        "start": start.table,
    }
    print(commands[resolve(sys.argv[1], commands, {}, "command")]())
    return 0


if __name__ == "__main__":
    command_line.run(main)
