"""How long does a diagnosis take, compilation included?

    python experiments/benchmarks/diagnose_time.py
    python experiments/benchmarks/diagnose_time.py --depth 100 --width 512

A Flax NNX network of dense layers with a batch of 64, once with He's weights and ReLU, which trains
with Adam, and once with sigmoids, which does not: then fixes are tried, and the causes confirmed.
Each is diagnosed with nothing compiled before; imports are not counted.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxdnn import command_line, diagnose

NUM_CLASSES = 10
HE = nnx.initializers.he_normal()
# Name -> (activation, optimizer).
NETWORKS: dict[str, tuple[Callable[[Array], Array], str]] = {
    "ReLU": (nnx.relu, "adam:0.001"),
    "sigmoid": (nnx.sigmoid, "sgd:0.1"),
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The network."""

    depth: int = 50
    """Layers with weights."""
    width: int = 256
    """Units of each, and inputs."""
    batch: int = 64
    """Examples."""


class Deep(nnx.Module):
    """Dense layers, one like the other."""

    def __init__(
        self, phi: Callable[[Array], Array], arguments: Arguments, *, rngs: nnx.Rngs
    ) -> None:
        """Draw the weights."""
        width, num_hidden = arguments.width, arguments.depth - 1
        self.phi = phi
        layers = [nnx.Linear(width, width, kernel_init=HE, rngs=rngs) for _ in range(num_hidden)]
        self.layers = nnx.List(layers)
        self.head = nnx.Linear(width, NUM_CLASSES, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Return logits, (batch, NUM_CLASSES)."""
        for layer in self.layers:
            x = self.phi(layer(x))
        return self.head(x)


def main() -> int:
    """Run the command; return its exit code."""
    arguments = command_line.parse(
        Arguments,
        default=Arguments(),
        args=sys.argv[1:],
        prog="diagnose_time.py",
        description=__doc__,
    )
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.standard_normal((arguments.batch, arguments.width), np.float32))
    targets = jnp.asarray(rng.integers(0, NUM_CLASSES, arguments.batch))
    for name, (phi, optimizer) in NETWORKS.items():
        model = Deep(phi, arguments, rngs=nnx.Rngs(0))
        jax.clear_caches()
        began = time.perf_counter()
        diagnosis = diagnose(model, inputs, targets, optimizer=optimizer)
        seconds = time.perf_counter() - began
        tried = f"{len(diagnosis.causes)} causes, {len(diagnosis.prescriptions)} prescriptions"
        print(f"{name}: {seconds:.1f} s: {diagnosis.verdict} ({optimizer}), {tried}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
