"""The race: networks that differ in initializer, activation and seed, trained side by side.

Each is the network that a single training run makes of the same settings, with the same weights at
the start, the same batches and the same steps. One compiled program trains all initializers on one
activation and seed, whichever those are: on a CPU one after the other, on an accelerator together.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from jaxdnn.activations import make_activation
from jaxdnn.config import Config
from jaxdnn.data.dataset import Dataset
from jaxdnn.data.pipeline import Standard, make_order, make_prepare, measure_standard
from jaxdnn.errors import Interrupted
from jaxdnn.losses import cross_entropy, predictions
from jaxdnn.models import BatchStats, Model, Params
from jaxdnn.propagation.moments import Kernels, measure, rms
from jaxdnn.propagation.sweep import LOSSES
from jaxdnn.propagation.table import Combination
from jaxdnn.propagation.verdict import Flow, summarise
from jaxdnn.training.setup import Setup, make_model
from jaxdnn.training.step import Sums, TrainState, make_step

# A network has learned where its loss is below this share of that of guessing.
LEARNED = 0.9


@dataclasses.dataclass(frozen=True)
class Race:
    """Who takes part, how long, and when it is recorded.

    Attributes:
      config: of a single run of them; initializer, activation and seed are replaced. It trains a
        multi-layer perceptron without augmentation, at a constant learning rate.
      initializers: by name.
      activations: by name.
      seeds: of the weights, the order of the images and the validation split.
      num_steps: optimizer steps.
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


class Curves(NamedTuple):
    """What happens to a network, over the recorded steps.

    Attributes:
      loss: mean over the steps since the last record, as they were taken; at step 0 that of the
        first batch. NaN from divergence on.
      accuracy: likewise.
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
    standard: Standard
    key: Array


# (activation index, params and batch_stats stacked over initializers, lane) -> stacked results
Program = Callable[[Array | int, tuple[Params, BatchStats], Lane], tuple[Curves, Start]]


def make_race(race: Race, setup: Setup, *, side_by_side: bool = False) -> Program:
    """Return the compiled program that trains one activation and seed with every initializer.

    Args:
      race: who takes part.
      setup: of any of the runs.
      side_by_side: vmap over the initializers (accelerators) instead of going through them.
    """
    models = [_model(race, setup, race.initializers[0], name) for name in race.activations]
    runs = [_make_run(race, setup, model) for model in models]
    start = _make_start(race, setup)

    def program(
        which: Array | int, states: tuple[Params, BatchStats], lane: Lane
    ) -> tuple[Curves, Start]:
        orders = _orders(race, setup, lane)

        def one(state: tuple[Params, BatchStats]) -> tuple[Curves, Start]:
            return lax.switch(which, runs, state, lane, orders), start(which, state, lane, orders)

        return jax.vmap(one)(states) if side_by_side else lax.map(one, states)

    return jax.jit(program)


def initial_states(race: Race, setup: Setup) -> tuple[Params, BatchStats]:
    """Draw the networks that single runs start from; leaves are (seed, initializer, ...).

    Operation by operation: compiled, so many separate draws would take much longer than they run.
    Trained slopes are there if any activation of the race has them.
    """
    phis = {name: make_activation(name).slope for name in race.activations}
    trained = [name for name, slope in phis.items() if slope and slope.kind == "trained"]
    activation = (trained or race.activations)[0]
    keys = jnp.stack([jax.random.split(jax.random.key(seed))[0] for seed in race.seeds])
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
    order = make_order(
        setup.dataset.train.labels,
        batch_size=setup.batch_size,
        balanced=False,
        num_classes=setup.num_classes,
    )
    order_key, _ = jax.random.split(lane.key)
    epochs = jnp.arange(race.num_steps // setup.steps_per_epoch + 1)
    orders = lax.map(lambda epoch: order(jax.random.fold_in(order_key, epoch)), epochs)
    return orders.reshape(-1, setup.batch_size)


def _make_run(race: Race, setup: Setup, model: Model) -> Callable[..., Curves]:
    """Return `((params, batch_stats), lane, orders) -> Curves` of one network."""
    own_params = jax.eval_shape(model.init, jax.random.key(0))[0]
    look_at = _make_look(race, setup, model)

    def run(start: tuple[Params, BatchStats], lane: Lane, orders: Array) -> Curves:
        prepare = make_prepare(race.config.augment, lane.standard)
        step = make_step(
            model,
            setup.optimizer,
            prepare=prepare,
            class_weights=jnp.ones(setup.num_classes),
            loss_limit=race.config.train.divergence_factor * math.log(setup.num_classes),
        )
        _, step_key = jax.random.split(lane.key)

        def take_step(state: TrainState) -> TrainState:
            batch = orders[state.step]
            return step(step_key, state, lane.images[batch], lane.labels[batch])

        def look(state: TrainState) -> Curves:
            batch = orders[state.step]
            prepare_key, key = jax.random.split(jax.random.fold_in(step_key, state.step))
            images = prepare(prepare_key, lane.images[batch])
            return look_at(state, images, lane.labels[batch], key)

        def window(state: TrainState, last: Array) -> tuple[TrainState, Curves]:
            state = lax.while_loop(
                lambda state: (state.step < last) & ~state.diverged,
                take_step,
                state._replace(sums=Sums.zero()),
            )
            return state, _recorded(state, look(state))

        state = _begin(_part(start[0], own_params), start[1], setup)
        ends = jnp.asarray(race.recorded_steps[1:], jnp.int32)
        _, curves = lax.scan(window, state, ends)
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), look(state), curves)

    return run


def _begin(params: Params, batch_stats: BatchStats, setup: Setup) -> TrainState:
    step, diverged = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    opt_state = setup.optimizer.init(params)
    return TrainState(step, params, batch_stats, opt_state, Sums.zero(), diverged)


def _make_look(race: Race, setup: Setup, model: Model) -> Callable[..., Curves]:
    """Return `(state, images, labels, key) -> Curves` of one batch, as the next step sees it."""
    widths = race.config.model.widths
    paths = ("layers/0", f"layers/{len(widths) - 1}")
    zeros = {path: jnp.zeros((setup.batch_size, widths[0])) for path in paths}

    def look(state: TrainState, images: Array, labels: Array, key: Array) -> Curves:
        def loss_of(probes: dict[str, Array]) -> tuple[Array, Array]:
            output = model.apply(
                state.params, state.batch_stats, images, training=True, key=key, probes=probes
            )
            accuracy = jnp.mean((predictions(output.logits) == labels).astype(jnp.float32))
            return jnp.mean(cross_entropy(output.logits, labels)), accuracy

        (loss, accuracy), deltas = jax.value_and_grad(loss_of, has_aux=True)(zeros)
        return Curves(loss, accuracy, *(rms(deltas[path]) for path in paths))

    return look


def _recorded(state: TrainState, seen: Curves) -> Curves:
    """Put the sums since the last record in place of the next batch's loss and accuracy."""
    num = state.sums.num_examples.astype(jnp.float32)
    loss = jnp.where(state.diverged, jnp.nan, state.sums.loss / num)
    accuracy = jnp.where(state.diverged, jnp.nan, state.sums.num_correct / num)
    return seen._replace(loss=loss, accuracy=accuracy)


def _part(tree: Any, like: Any) -> Any:
    """Return what `tree` holds of the nested dicts `like`."""
    if not isinstance(like, dict):
        return tree
    return {name: _part(tree[name], inner) for name, inner in like.items()}


def _make_start(race: Race, setup: Setup) -> Callable[..., Start]:
    """Return `(activation index, (params, batch_stats), lane, orders) -> Start`."""
    phis = [make_activation(name) for name in race.activations]
    steepest = jnp.array([max(map(abs, phi.derivative_range)) for phi in phis])
    width = race.config.model.widths[0]

    def start(
        which: Array | int, state: tuple[Params, BatchStats], lane: Lane, orders: Array
    ) -> Start:
        layers, head = state[0]["layers"], state[0]["head"]
        first, *hidden = (layers[index]["linear"]["kernel"] for index in range(len(layers)))
        stacked = jnp.stack(hidden) if hidden else jnp.zeros((0, width, width))
        images = make_prepare(race.config.augment, lane.standard)(lane.key, lane.images[orders[0]])
        moments = measure(
            Kernels(first, stacked, head["kernel"]),
            images.reshape(setup.batch_size, -1),
            lane.labels[orders[0]],
            lambda z: lax.switch(which, phis, z),
            steepest=steepest[which],
            loss=LOSSES["cross_entropy"],
            norm=race.config.model.norm,
        )
        return Start(moments.delta_rms, moments.dead_fraction)

    return start


# Statistic -> (initializer, activation, seed, recorded step, or layer for those of `Start`).
Results = dict[str, np.ndarray]


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
      setup: of any of the runs.
      folder: keeps an .npz for each activation and seed; it belongs to this race alone.
      load: the images that settings name; of each seed equally many.
      on_done: called with the number of networks of each finished portion.
      interrupted: asked before each portion.

    Raises:
      Interrupted: with everything finished kept.
    """
    program = make_race(race, setup, side_by_side=jax.default_backend() != "cpu")
    states, found = None, []
    for row, seed in enumerate(race.seeds):
        lane = None
        for which, activation in enumerate(race.activations):
            path = folder / f"{activation}-{seed}.npz"
            if not path.exists():
                if interrupted():
                    raise Interrupted
                states = initial_states(race, setup) if states is None else states
                lane = lane or _lane(load(dataclasses.replace(race.config, seed=seed)), seed)
                own = jax.tree.map(lambda leaf, row=row: leaf[row], states)
                curves, start = program(which, own, lane)
                _save(path, curves, start)
            found.append(_load(path))
            on_done(len(race.initializers))
    shape = (len(race.seeds), len(race.activations), len(race.initializers), -1)
    stacked = {name: np.stack([part[name] for part in found]) for name in found[0]}
    return {name: values.reshape(shape).swapaxes(0, 2) for name, values in stacked.items()}


def _lane(dataset: Dataset, seed: int) -> Lane:
    _, key = jax.random.split(jax.random.key(seed))
    images, labels = map(jnp.asarray, (dataset.train.images, dataset.train.labels))
    return Lane(images, labels, measure_standard(dataset.train.images), key)


def _save(path: Path, curves: Curves, start: Start) -> None:
    arrays = curves._asdict() | {f"start_{name}": x for name, x in start._asdict().items()}
    draft = path.with_suffix(".part")
    with draft.open("wb") as file:
        np.savez(file, allow_pickle=False, **{name: np.asarray(x) for name, x in arrays.items()})
    draft.replace(path)


def _load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as kept:
        return dict(kept)


class Row(NamedTuple):
    """One recorded step of one network: a line of race.csv."""

    initializer: str
    activation: str
    norm: str
    depth: int
    width: int
    seed: int
    step: int
    loss: float
    accuracy: float
    delta_first_rms: float
    delta_last_rms: float


def rows(race: Race, results: Results) -> Iterator[Row]:
    """Yield every row of race.csv."""
    columns = np.stack([results[name] for name in Curves._fields], axis=-1)
    places = itertools.product(*(range(num) for num in columns.shape[:3]))
    for i, a, s in places:
        combination = combination_of(race, race.initializers[i], race.activations[a])
        for step, values in zip(
            race.recorded_steps.tolist(), columns[i, a, s].tolist(), strict=True
        ):
            yield Row(*combination, race.seeds[s], step, *values)


def write_csv(race: Race, results: Results, path: Path) -> None:
    """Write race.csv in one piece."""
    draft = path.with_name(path.name + ".part")
    with draft.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows(rows(race, results))
    draft.replace(path)


def combination_of(race: Race, initializer: str, activation: str) -> Combination:
    """Return what the networks of one line of the summary have in common."""
    widths, norm = race.config.model.widths, race.config.model.norm
    return Combination(initializer, activation, norm, len(widths) + 1, widths[0])


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


def summary(race: Race, results: Results, guess: float) -> list[tuple[Combination, Outcome, Flow]]:
    """Return how every combination did, next to the sweep's verdict before training."""
    return [
        (
            combination_of(race, initializer, activation),
            judge(results["loss"][i, a], race.recorded_steps, guess),
            summarise(results["start_delta_rms"][i, a], results["start_dead_fraction"][i, a]),
        )
        for i, initializer in enumerate(race.initializers)
        for a, activation in enumerate(race.activations)
    ]
