"""The race: networks that differ in initializer, activation and seed, trained side by side.

Each is the network that a single training run makes of the same settings, with the same weights at
the start, the same batches and the same steps. One compiled program trains all initializers on one
activation and seed, whichever those are; the initializers are spread over the devices, and each
device goes through its share in order, or on an accelerator trains them together.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Float, Int

from jaxdnn import run_folder
from jaxdnn.activations import make_activation
from jaxdnn.config import Config
from jaxdnn.data import Dataset, PixelStats, make_prepare
from jaxdnn.losses import cross_entropy, predictions
from jaxdnn.models import BatchStats, Model, Params
from jaxdnn.propagation import (
    LOSSES,
    Combination,
    Flow,
    Kernels,
    cached_chunk,
    measure,
    rms,
    table,
)
from jaxdnn.training import (
    Setup,
    Sums,
    TrainState,
    epoch_key,
    make_model,
    make_order_of,
    make_step_of,
    run_keys,
    seed_keys,
    start_state,
    step_keys,
)

# A network has learned where its loss is below this share of that of guessing.
LEARNED = 0.9

# What a network starts from.
Weights = tuple[Params, BatchStats]
# Statistic -> (initializer, activation, seed, recorded step, or layer for those of `Start`).
Results = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Race:
    """Who takes part, how long, and when it is recorded.

    Attributes:
      config: settings of a single run; initializer, activation and seed are replaced. It trains a
        multi-layer perceptron on data as it is: not balanced, not augmented, at a constant
        learning rate.
      initializers: names, keys or aliases of `INITIALIZERS`.
      activations: names, keys or aliases of `ACTIVATIONS`.
      seeds: draw the weights, the order of the images and the validation split.
      num_steps: optimizer steps, 1 or more.
      record_every: steps between two records.
    """

    config: Config
    initializers: tuple[str, ...]
    activations: tuple[str, ...]
    seeds: range
    num_steps: int
    record_every: int

    @property
    def recorded_steps(self) -> np.ndarray:
        """The steps after which something is recorded: 0, record_every, ..., num_steps."""
        return np.array([*range(0, self.num_steps, self.record_every), self.num_steps])

    @property
    def num_networks(self) -> int:
        """How many networks are trained."""
        return len(self.initializers) * len(self.activations) * len(self.seeds)

    def config_of(self, initializer: str, activation: str, seed: int) -> Config:
        """Return the settings of one network."""
        model = dataclasses.replace(
            self.config.model, initializer=initializer, activation=activation
        )
        return dataclasses.replace(self.config, model=model, seed=seed)


class History(NamedTuple):
    """What happens to a network, over the recorded steps.

    Attributes:
      loss: mean over the steps since the last record, as they were taken; at step 0 that of the
        first batch. NaN from divergence on.
      accuracy: share of the same images that were classified correctly; NaN from divergence on.
      delta_first_rms: root mean square of dL/dz in the first hidden layer, on the next batch.
      delta_last_rms: in the last hidden layer.
    """

    loss: Array
    accuracy: Array
    delta_first_rms: Array
    delta_last_rms: Array


class Start(NamedTuple):
    """What the sweep measures before training, on the first batch: one entry for each layer."""

    delta_rms: Array
    dead_fraction: Array


class Lane(NamedTuple):
    """What the networks of one seed share: uint8 training images, labels, and the run's key."""

    images: Array
    labels: Array
    pixel_stats: PixelStats
    key: Array


def run_race(
    race: Race,
    setup: Setup,
    folder: Path,
    *,
    load: Callable[[Config], Dataset],
    on_done: Callable[[int], Any],
    interrupted: Callable[[], bool],
) -> Results:
    """Train everybody; what is found in `folder` is not trained again.

    Args:
      race: who takes part.
      setup: that of any single run; data, model and optimizer.
      folder: keeps an .npz for each activation and seed; it belongs to this race alone.
      load: the images that settings name; of each seed equally many.
      on_done: called with the number of networks of each finished chunk.
      interrupted: asked before each chunk.

    Raises:
      Interrupted: with everything finished kept.
    """
    program = make_race(race, setup, side_by_side=jax.default_backend() != "cpu")
    states: Weights | None = None
    lane: Lane | None = None

    def train(row: int, which: int) -> dict[str, Array]:
        nonlocal states, lane
        states = states or initial_states(race, setup)
        seed = race.seeds[row]
        lane = lane or make_lane(load(dataclasses.replace(race.config, seed=seed)), seed)
        own = jax.tree.map(lambda leaf: leaf[row], states)
        history, start = program(which, own, lane)
        return history._asdict() | {f"start_{name}": x for name, x in start._asdict().items()}

    found = []
    for row, seed in enumerate(race.seeds):
        lane = None
        for which, activation in enumerate(race.activations):
            path = folder / f"{activation}-{seed}.npz"
            compute = functools.partial(train, row, which)
            found.append(cached_chunk(path, compute, interrupted))
            on_done(len(race.initializers))
    shape = (len(race.seeds), len(race.activations), len(race.initializers), -1)
    stacked = {name: np.stack([part[name] for part in found]) for name in found[0]}
    return {name: values.reshape(shape).swapaxes(0, 2) for name, values in stacked.items()}


def make_race(
    race: Race, setup: Setup, *, side_by_side: bool = False
) -> Callable[[Array | int, Weights, Lane], tuple[History, Start]]:
    """Return the compiled program that trains one activation and seed with every initializer.

    Args:
      race: who takes part.
      setup: that of any single run; data, model and optimizer.
      side_by_side: vmap over the initializers (accelerators) instead of going through them.

    Returns:
      `(activation index, weights stacked over initializers, lane) -> stacked results`.
    """
    models = [_model(race, setup, race.initializers[0], name) for name in race.activations]
    runs = [_make_run(race, dataclasses.replace(setup, model=model)) for model in models]
    measure_start = _make_start(race, setup)

    def program(which: Array, weights: Weights, lane: Lane) -> tuple[History, Start]:
        orders = _orders(race, setup, lane)

        def one(own: Weights) -> tuple[History, Start]:
            history = lax.switch(which, runs, own, lane, orders)
            return history, measure_start(which, own, lane, orders)

        return jax.vmap(one)(weights) if side_by_side else lax.map(one, weights)

    # The networks are shared out over the devices; the last one fills up the last device's share.
    num_networks = len(race.initializers)
    devices = jax.devices()[:num_networks]
    mesh = jax.make_mesh(
        (len(devices),), ("network",), axis_types=(AxisType.Auto,), devices=devices
    )
    shard, replicated = PartitionSpec("network"), PartitionSpec()
    spread = jax.shard_map(
        program,
        mesh=mesh,
        in_specs=(replicated, shard, replicated),
        out_specs=shard,
        check_vma=False,
    )
    filled = -(-num_networks // len(devices)) * len(devices)
    places = jnp.minimum(jnp.arange(filled), num_networks - 1)

    def filled_up(which: Array | int, weights: Weights, lane: Lane) -> tuple[History, Start]:
        found = spread(jnp.asarray(which), jax.tree.map(lambda leaf: leaf[places], weights), lane)
        return jax.tree.map(lambda leaf: leaf[:num_networks], found)

    return jax.jit(filled_up)


def make_lane(dataset: Dataset, seed: int) -> Lane:
    """Put on the device what the networks of one seed share."""
    _, run_key = seed_keys(seed)
    images, labels = map(jnp.asarray, (dataset.train.in_memory(), dataset.train.labels))
    return Lane(images, labels, dataset.train.pixel_stats(), run_key)


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


def _orders(race: Race, setup: Setup, lane: Lane) -> Array:
    """Return the images of every step, and of the one after the last: (step, batch)."""
    order = make_order_of(setup)
    order_key, _ = run_keys(lane.key)
    epochs = jnp.arange(race.num_steps // setup.steps_per_epoch + 1)
    found = lax.map(lambda epoch: order(epoch_key(order_key, epoch)), epochs)
    return found.reshape(-1, setup.batch_size)


def _make_run(race: Race, setup: Setup) -> Callable[[Weights, Lane, Array], History]:
    """Return `(weights, lane, orders) -> History` of the network that the setup describes.

    The weights may hold more than that network has.
    """
    own_params = jax.eval_shape(setup.model.init, jax.random.key(0))[0]
    probe_batch = _make_probe(setup)

    def run(weights: Weights, lane: Lane, orders: Array) -> History:
        own = dataclasses.replace(setup, pixel_stats=lane.pixel_stats)
        step, prepare = make_step_of(own), make_prepare(own.config.augment, own.pixel_stats)
        _, steps_key = run_keys(lane.key)

        def take_step(state: TrainState) -> TrainState:
            batch = orders[state.step]
            return step(steps_key, state, lane.images[batch], lane.labels[batch])

        def probe(state: TrainState) -> History:
            batch = orders[state.step]
            prepare_key, apply_key = step_keys(steps_key, state.step)
            images = prepare(prepare_key, lane.images[batch])
            return probe_batch(state, images, lane.labels[batch], apply_key)

        def window(state: TrainState, last: Array) -> tuple[TrainState, History]:
            state = lax.while_loop(
                lambda state: (state.step < last) & ~state.diverged,
                take_step,
                state._replace(sums=Sums.zero()),
            )
            return state, _recorded(state, probe(state))

        params, batch_stats = weights
        state = start_state(_part(params, own_params), batch_stats, setup.optimizer)
        ends = jnp.asarray(race.recorded_steps[1:], jnp.int32)
        _, history = lax.scan(window, state, ends)
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), probe(state), history)

    return run


def _make_probe(setup: Setup) -> Callable[[TrainState, Array, Array, Array], History]:
    """Return `(state, images, labels, key) -> History` of one batch, as the next step sees it."""
    model, widths = setup.model, setup.config.model.widths
    paths = ("layers/0", f"layers/{len(widths) - 1}")
    zeros = {path: jnp.zeros((setup.batch_size, widths[0])) for path in paths}

    def probe(state: TrainState, images: Array, labels: Array, key: Array) -> History:
        def loss_of(probes: dict[str, Array]) -> tuple[Array, Array]:
            output = model.apply(
                state.params, state.batch_stats, images, training=True, key=key, probes=probes
            )
            accuracy = jnp.mean((predictions(output.logits) == labels).astype(jnp.float32))
            return jnp.mean(cross_entropy(output.logits, labels)), accuracy

        (loss, accuracy), deltas = jax.value_and_grad(loss_of, has_aux=True)(zeros)
        return History(loss, accuracy, *(rms(deltas[path]) for path in paths))

    return probe


def _recorded(state: TrainState, probed: History) -> History:
    """Put the sums since the last record in place of the next batch's loss and accuracy."""
    num = state.sums.num_examples.astype(jnp.float32)
    loss = jnp.where(state.diverged, jnp.nan, state.sums.loss / num)
    accuracy = jnp.where(state.diverged, jnp.nan, state.sums.num_correct / num)
    return probed._replace(loss=loss, accuracy=accuracy)


def _part(tree: Any, like: Any) -> Any:
    """Return what `tree` holds of the nested dicts `like`."""
    if not isinstance(like, dict):
        return tree
    return {name: _part(tree[name], inner) for name, inner in like.items()}


def _make_start(race: Race, setup: Setup) -> Callable[[Array, Weights, Lane, Array], Start]:
    """Return `(activation index, weights, lane, orders) -> Start`."""
    phis = [make_activation(name) for name in race.activations]
    max_slopes = jnp.array([phi.max_slope for phi in phis])

    def start(which: Array, weights: Weights, lane: Lane, orders: Array) -> Start:
        images = make_prepare(race.config.augment, lane.pixel_stats)(
            lane.key, lane.images[orders[0]]
        )
        moments = measure(
            _kernels(weights[0]),
            images.reshape(setup.batch_size, -1),
            lane.labels[orders[0]],
            lambda z: lax.switch(which, phis, z),
            max_slope=max_slopes[which],
            loss=LOSSES["cross_entropy"],
            norm=race.config.model.norm,
        )
        return Start(moments.delta_rms, moments.dead_fraction)

    return start


def _kernels(params: Params) -> Kernels:
    layers, head = params["layers"], params["head"]
    first, *hidden = (layers[index]["linear"]["kernel"] for index in range(len(layers)))
    width = first.shape[-1]
    stacked = jnp.stack(hidden) if hidden else jnp.zeros((0, width, width))
    return Kernels(first, stacked, head["kernel"])


def write_race_csv(race: Race, results: Results, path: Path) -> None:
    """Write race.csv: a row for each network and recorded step."""
    steps, names = race.recorded_steps.tolist(), History._fields
    rows = (
        row
        for key, own in _by_combination(race, results)
        for row in table.network_rows(key, race.seeds, steps, own, names)
    )
    run_folder.write_csv(path, table.header("step", names), rows)


def _by_combination(race: Race, results: Results) -> Iterator[tuple[Combination, Results]]:
    """Yield what belongs to each initializer and activation: statistic -> (seed, ...)."""
    widths, norm = race.config.model.widths, race.config.model.norm
    for i, initializer in enumerate(race.initializers):
        for a, activation in enumerate(race.activations):
            key = Combination(initializer, activation, norm, len(widths) + 1, widths[0])
            yield key, {name: values[i, a] for name, values in results.items()}


def guess_loss(labels: Int[np.ndarray, " num"]) -> float:
    """Return the loss of guessing the class frequencies: their entropy, in nats."""
    frequencies = np.bincount(labels) / len(labels)
    return float(-np.sum(frequencies * np.log(np.where(frequencies > 0, frequencies, 1.0))))


class Outcome(NamedTuple):
    """How training went.

    Attributes:
      learned: the last recorded loss, median over seeds, is below `LEARNED` times that of guessing
        the class frequencies. A network whose output no longer depends on the image gets below
        that of guessing by chance only; 3,000 images between two records all but rule that out.
      steps_to_learn: the first recorded step from which on that holds; None if not `learned`.
      final_loss: that median; NaN where most seeds diverged.
    """

    learned: bool
    steps_to_learn: int | None
    final_loss: float


def judge(loss: Float[np.ndarray, "seed step"], steps: np.ndarray, guess: float) -> Outcome:
    """Tell whether the networks of one combination learned, and when."""
    # Diverged counts as infinitely bad: a median over the other seeds would hide it.
    median = np.median(np.where(np.isnan(loss), np.inf, loss), axis=0)
    above = np.flatnonzero(~(median < LEARNED * guess))
    first = 0 if len(above) == 0 else int(above[-1]) + 1
    final = float(median[-1]) if math.isfinite(median[-1]) else math.nan
    if first == len(steps):
        return Outcome(False, None, final)
    return Outcome(True, int(steps[first]), final)


def race_summary(
    race: Race, results: Results, guess: float
) -> list[tuple[Combination, Outcome, Flow]]:
    """Return how every combination did, next to the sweep's verdict before training."""
    return [
        (
            key,
            judge(own["loss"], race.recorded_steps, guess),
            table.summarise(own["start_delta_rms"], own["start_dead_fraction"]),
        )
        for key, own in _by_combination(race, results)
    ]
