"""Several processes on this machine that run one program together."""

import os
import socket
import subprocess
from collections.abc import Callable, Sequence

from jaxdnn import xla

# A process has one device, as for users.
ENVIRONMENT = {
    **os.environ,
    "XLA_FLAGS": xla.quick_flags(),
    "JAX_PLATFORMS": "cpu",
}


def run_together(num: int, command_of: Callable[[str, int], Sequence[str]]) -> list[str]:
    """Start a command as so many processes; return what each printed.

    Args:
      num: how many.
      command_of: (address of process 0, number of the process) -> its command.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            command_of(address, index),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        for index in range(num)
    ]
    said = [process.communicate(timeout=400) for process in processes]
    for process, (_, errors) in zip(processes, said, strict=True):
        assert process.returncode == 0, errors[-2000:]
    lines = [out.splitlines() for out, _ in said]
    return ["\n".join(line for line in own if not line.startswith("[Gloo]")) for own in lines]
