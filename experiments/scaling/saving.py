"""How long saving 50 million parameters stops the training loop, of a save interval of 30 s."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxdnn.training import Checkpoints

NUM_PARAMETERS, NUM_LAYERS, ROUNDS, INTERVAL_SECONDS = 50_000_000, 5, 5, 30.0


def table() -> str:
    """Return the rows of the README."""
    lines = [
        "| state | MB | loop stopped by a save, s | of 30 s | the save itself, s |",
        "|---|---|---|---|---|",
    ]
    for name, copies in (("parameters, momentum", 2), ("parameters, Adam's two moments", 3)):
        stopped, whole = _measure(copies)
        megabytes = 4 * copies * NUM_PARAMETERS / 1e6
        worst, median = max(stopped), statistics.median(stopped)
        lines.append(
            f"| {name}, and the best parameters | {megabytes + 200:,.0f} | "
            f"{median:.2f} (worst {worst:.2f}) | {worst / INTERVAL_SECONDS:.1%} | "
            f"{statistics.median(whole):.1f} |"
        )
    return "\n".join(lines)


def _measure(copies: int) -> tuple[list[float], list[float]]:
    """Return how long the loop waits, and how long until everything is on disk, each round."""
    size = NUM_PARAMETERS // NUM_LAYERS
    params = {str(n): jax.random.normal(jax.random.key(n), (size,)) for n in range(NUM_LAYERS)}
    state = {"params": params} | {
        f"moment_{n}": jax.tree.map(lambda leaf, n=n: leaf * n, params) for n in range(1, copies)
    }
    change = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    stopped, whole = [], []
    with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder)) as checkpoints:
        for step in range(ROUNDS + 1):
            best = jax.tree.map(jnp.copy, state["params"])
            jax.block_until_ready((state, best))
            began = time.perf_counter()
            checkpoints.save("best", step, {"params": best})
            checkpoints.save("latest", step, state)
            # The next step may begin when the state can be changed.
            state = jax.block_until_ready(change(state))
            stopped.append(time.perf_counter() - began)
            checkpoints.wait()
            whole.append(time.perf_counter() - began)
    return stopped[1:], whole[1:]
