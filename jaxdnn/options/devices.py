"""What a run is carried out on: no result depends on it beyond rounding."""

from __future__ import annotations

import dataclasses

from jaxdnn.options.checks import check, check_range


@dataclasses.dataclass(frozen=True)
class ProcessOptions:
    """Of which processes, on one host or many."""

    distributed: bool = False
    """Run as one of several processes, each started with the same command; who they are is found by
    itself on SLURM, GKE, Open MPI and Cloud TPU, and otherwise told by the next three options."""
    coordinator: str | None = None
    """Address HOST:PORT of process 0, as all processes reach it."""
    num_processes: int | None = None
    """How many processes there are."""
    process_index: int | None = None
    """Which of them this one is, from 0."""

    def __post_init__(self) -> None:
        for name, low in (("num_processes", 1), ("process_index", 0)):
            check_range(self, name, low)
        by_hand = {
            "--coordinator": self.coordinator,
            "--num-processes": self.num_processes,
            "--process-index": self.process_index,
        }
        given = [flag for flag, value in by_hand.items() if value is not None]
        check(not given or self.distributed, f"{', '.join(given)} needs --distributed; add it")
        check(
            len(given) in (0, 3),
            f"{', '.join(given)} came without {', '.join(sorted(by_hand.keys() - set(given)))}; "
            "give all three, or none where the cluster tells",
        )
        if self.num_processes is not None and self.process_index is not None:
            check(
                self.process_index < self.num_processes,
                f"--process-index is {self.process_index} of {self.num_processes} processes; "
                f"give 0 to {self.num_processes - 1}",
            )
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            check(
                bool(host) and port.isdigit(),
                f"--coordinator is {self.coordinator}; give HOST:PORT, such as node0:8476",
            )


@dataclasses.dataclass(frozen=True)
class DeviceOptions(ProcessOptions):
    """On which devices and hosts; may differ when a run is resumed."""

    devices: int | None = None
    """Devices to use at most; default all. The batch is cut over as many as divide it."""
    fsdp: bool = False
    """Cut parameters and optimizer state over the devices too, where they are too large for one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "devices", 1)
