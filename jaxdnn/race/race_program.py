"""One compiled program that trains all initializers of a race on one activation and seed.

It is compiled once, whichever activation and seed those are. The initializers are spread over the
devices; each device goes through its share in order, or on an accelerator trains them together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType, PartitionSpec

from jaxdnn.activations import make_activation
from jaxdnn.models import Model
from jaxdnn.race.race import Curves, Race, Start
from jaxdnn.race.race_network import Lane, Weights, make_run, make_start, orders
from jaxdnn.training import Setup, make_model, seed_keys

# (activation index, weights stacked over initializers, lane) -> stacked results
Program = Callable[[Array | int, Weights, Lane], tuple[Curves, Start]]


def make_race(race: Race, setup: Setup, *, side_by_side: bool = False) -> Program:
    """Return the compiled program that trains one activation and seed with every initializer.

    Args:
      race: who takes part.
      setup: of any of the runs.
      side_by_side: vmap over the initializers (accelerators) instead of going through them.
    """
    models = [_model(race, setup, race.initializers[0], name) for name in race.activations]
    runs = [make_run(race, dataclasses.replace(setup, model=model)) for model in models]
    start = make_start(race, setup)

    def program(which: Array | int, weights: Weights, lane: Lane) -> tuple[Curves, Start]:
        of_steps = orders(race, setup, lane)

        def one(own: Weights) -> tuple[Curves, Start]:
            curves = lax.switch(which, runs, own, lane, of_steps)
            return curves, start(which, own, lane, of_steps)

        return jax.vmap(one)(weights) if side_by_side else lax.map(one, weights)

    return _spread(program, len(race.initializers))


def _spread(program: Program, num_networks: int) -> Program:
    """Compile the program with the networks shared out over the devices."""
    devices = jax.devices()[:num_networks]
    mesh = jax.make_mesh(
        (len(devices),), ("network",), axis_types=(AxisType.Auto,), devices=devices
    )
    each, whole = PartitionSpec("network"), PartitionSpec()
    spread = jax.shard_map(
        program, mesh=mesh, in_specs=(whole, each, whole), out_specs=each, check_vma=False
    )
    # The last network fills up the last device's share.
    filled = -(-num_networks // len(devices)) * len(devices)
    places = jnp.minimum(jnp.arange(filled), num_networks - 1)

    def filled_up(which: Array | int, weights: Weights, lane: Lane) -> tuple[Curves, Start]:
        found = spread(jnp.asarray(which), jax.tree.map(lambda leaf: leaf[places], weights), lane)
        return jax.tree.map(lambda leaf: leaf[:num_networks], found)

    return jax.jit(filled_up)


def initial_states(race: Race, setup: Setup) -> Weights:
    """Draw the networks that single runs start from; leaves are (seed, initializer, ...).

    Operation by operation: compiled, so many separate draws would take much longer than they run.
    Trained slopes are there if any activation of the race has them.
    """
    phis = {name: make_activation(name).slope for name in race.activations}
    trained = [name for name, slope in phis.items() if slope and slope.kind == "trained"]
    activation = (trained or race.activations)[0]
    keys = jnp.stack([seed_keys(seed)[0] for seed in race.seeds])
    drawn = [
        jax.vmap(_model(race, setup, initializer, activation).init)(keys)
        for initializer in race.initializers
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *drawn)


def _model(race: Race, setup: Setup, initializer: str, activation: str) -> Model:
    options = race.config_of(initializer, activation, setup.config.seed).model
    return make_model(options, setup.dataset.train.images.shape[1:], setup.num_classes)
