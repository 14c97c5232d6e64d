"""How much of a gradient's way is chance: the same network with its weights drawn anew.

Each kernel is replaced by independent normal numbers of the same root mean square. Where the real
factor lies outside what these show, it is the weights' structure that acts, not their scale.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdnn.diagnosis.examine import Examination
from jaxdnn.diagnosis.graph import Graph
from jaxdnn.diagnosis.reduce import host_rms

NUM_SEEDS = 4


def redrawn_deltas(
    seen: Examination, inputs: Any, targets: Any
) -> Float[np.ndarray, "seed layer+1"]:
    """Return every layer's RMS of delta under weights drawn anew, that of the logits last.

    Args:
      seen: of the network.
      inputs: the batch.
      targets: of the batch.
    """
    numbers = [*(site.z for site in seen.graph.layers), seen.graph.program.output]
    numbers[-1] = numbers[-1] if numbers[-1] in seen.measured.delta else numbers[-2]
    rows = []
    for seed in range(NUM_SEEDS):
        raw = seen.look(_redrawn(seen, seed), inputs, targets, seen.key)
        deltas = jax.device_get([raw.deltas[number] for number in numbers])
        rows.append([host_rms(delta) for delta in deltas])
    return np.array(rows)


class Bands(NamedTuple):
    """Least and greatest over the seeds.

    Attributes:
      delta: of a layer's RMS of delta.
      factor: of that over the one above.
    """

    delta: tuple[float, float]
    factor: tuple[float, float]


def bands_of(graph: Graph, deltas: Float[np.ndarray, "seed layer+1"]) -> list[Bands]:
    """Return every layer's bands.

    Args:
      graph: of the network.
      deltas: see `redrawn_deltas`.
    """
    bands = []
    for index in range(len(graph.layers)):
        above = graph.above(index)
        with np.errstate(divide="ignore", invalid="ignore"):
            factors = deltas[:, index] / deltas[:, -1 if above is None else above]
        bands.append(Bands(_band(deltas[:, index]), _band(factors)))
    return bands


def _band(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _redrawn(seen: Examination, seed: int) -> Any:
    leaves, structure = jax.tree.flatten(seen.params)
    key = jax.random.key(seed)
    for index, site in enumerate(seen.graph.layers):
        leaf, part = site.leaf
        kernel = leaves[leaf] if part is None else leaves[leaf][part]
        drawn = seen.measured.kernel_rms[index] * jax.random.normal(
            jax.random.fold_in(key, index), jnp.shape(kernel)
        )
        drawn = drawn.astype(jnp.result_type(kernel))
        leaves[leaf] = drawn if part is None else leaves[leaf].at[part].set(drawn)
    return jax.tree.unflatten(structure, leaves)
