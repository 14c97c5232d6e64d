"""How the images of a source are stored: how many of each size and mode."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from jaxdnn.data.decode import Header


@dataclass
class Inventory:
    """Numbers of readable images by 'WIDTHxHEIGHT' and by Pillow's mode."""

    sizes: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)

    def add(self, headers: Iterable[Header]) -> None:
        """Count some images."""
        for header in headers:
            self.sizes[f"{header.width}x{header.height}"] += 1
            self.modes[header.mode] += 1

    def __add__(self, other: "Inventory") -> "Inventory":
        """Return the numbers of both together."""
        return Inventory(self.sizes + other.sizes, self.modes + other.modes)

    def told(self, num_shown: int) -> list[str]:
        """Return a line for the sizes and one for the modes, the commonest first."""
        return [
            f"{title}: {listed(counts, num_shown)}"
            for title, counts in (("modes", self.modes), ("sizes", self.sizes))
            if counts
        ]


def listed(counts: Counter[str], num_shown: int) -> str:
    """Return 'a: 3, b: 2, … (7 more)'."""
    shown = [f"{value}: {number:,}" for value, number in counts.most_common(num_shown)]
    more = len(counts) - len(shown)
    return ", ".join([*shown, *([f"… ({more:,} more)"] if more else [])])
