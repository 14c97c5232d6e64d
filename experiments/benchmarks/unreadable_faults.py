"""Plant faults that cannot be read in the program: are cause and layer named first?

    python experiments/benchmarks/unreadable_faults.py
    python experiments/benchmarks/unreadable_faults.py --only GRU --faults "transposed weights"

Ten networks, twelve faults each: in the weights that were loaded, in running averages, in the rows,
in the targets or in the numbers' format. Each has a sound twin that differs in nothing else; the
program text is the same. Loaded weights are trained first and kept in a folder.

Writes rows.jsonl, a line a fault, and table.md. The same command goes on where it stopped.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from resume import work_through
from unreadable_networks import IGNORED, KINDS, Data, Kind, Weights, load

from jaxdnn import command_line
from jaxdnn.diagnosis import diagnose
from jaxdnn.errors import Interrupted

# Fault -> names of the causes that say it.
FAULTS: dict[str, tuple[str, ...]] = {
    "zero weights": ("untrained layer", "zero weights"),
    "transposed weights": ("transposed weights",),
    "exchanged weights": ("weights of another layer",),
    "weights x 30": ("weights out of scale", "weights too large"),
    "weights / 30": ("weights out of scale", "weights too small"),
    "untrained layer": ("untrained layer",),
    "targets one row off": ("targets of other rows",),
    "labels at random in some classes": ("labels mixed up",),
    "labels of some classes exchanged": ("labels mixed up",),
    "feature x 1e4": ("feature outweighs", "input scale"),
    "constant feature": ("constant feature",),
    "NaN in one row": ("not finite data", "not finite"),
    "normalised twice": ("inputs of another scale", "input scale"),
    "foreign running averages": ("foreign running averages",),
    "bfloat16 parameters": ("step rounded away",),
    "padding counts": ("padding counts",),
    "tokens never used": ("token use",),
    "one token everywhere": ("token use",),
}
_WEIGHTS = (
    "zero weights", "transposed weights", "exchanged weights", "untrained layer",
)  # fmt: skip
_OPTIMIZER = "adam:0.001"
# A step of it is less than half a last digit of most weights in bfloat16.
_SMALL_STEPS = "adam:0.0001"
_MANY_ROWS = 10_000


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which networks and faults."""

    only: str = ""
    """Part of the networks' names; empty for all."""
    faults: str = ""
    """Part of the faults' names; empty for all."""
    weights: Path = Path(tempfile.gettempdir()) / "jaxdnn_loaded_weights"
    """Folder of the trained weights."""
    out: Path = Path("runs/unreadable_faults")
    """Folder of the results."""
    progress: bool = True
    """Show a progress bar."""


@dataclasses.dataclass(frozen=True)
class Draw:
    """One network with one fault.

    Attributes:
      network: name of a kind.
      fault: a key of `FAULTS`.
    """

    network: str
    fault: str


class Case(NamedTuple):
    """What is diagnosed.

    Attributes:
      model: as `diagnose` takes it.
      data: rows.
      layers: paths of which one has to be named; empty for any, or none.
      optimizer: as `diagnose` takes it.
    """

    model: Any
    data: Data
    layers: tuple[str, ...] = ()
    optimizer: str = _OPTIMIZER


def faults_of(kind: Kind) -> tuple[str, ...]:
    """Return the twelve faults that are planted in a network."""
    number = KINDS.index(kind)
    scaled = ("weights x 30", "weights / 30")
    if kind.tokens:
        labels = "labels of some classes exchanged"
        own = (*scaled, labels, "tokens never used", "one token everywhere", "padding counts")
    elif not kind.num_classes:
        own = (*scaled, "feature x 1e4", "constant feature", "NaN in one row", "normalised twice")
    else:
        feature = ("feature x 1e4", "constant feature")[number % 2]
        random = kind.rows // kind.num_classes > 60 and number % 3 != 2
        labels = f"labels {'at random in some classes' if random else 'of some classes exchanged'}"
        rest = "foreign running averages" if kind.batch_norm else "NaN in one row"
        own = (scaled[number % 2], labels, feature, rest, "normalised twice", "padding counts")
    return (*_WEIGHTS, *own, "targets one row off", "bfloat16 parameters")


def main() -> int:
    """Run the command; return its exit code."""
    arguments = command_line.parse(
        Arguments, default=Arguments(), args=sys.argv[1:], prog="unreadable_faults.py",
        description=__doc__,
    )  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    draws = [
        [Draw(kind.name, fault)]
        for kind in KINDS
        for fault in faults_of(kind)
        if arguments.only in kind.name and arguments.faults in fault
    ]
    known: dict[Any, Any] = {}

    def work(group: Sequence[Draw]) -> Iterator[dict[str, Any]]:
        for draw in group:
            yield judge(draw, arguments.weights, known)

    with command_line.StopSignal() as stopped:
        try:
            path = arguments.out / "rows.jsonl"
            rows = work_through(draws, work, path, stopped, progress=arguments.progress)
        except Interrupted:
            print(f"stopped; the same command goes on where {arguments.out} stands")
            return command_line.INTERRUPTED_EXIT_CODE
    text = markdown(rows)
    (arguments.out / "table.md").write_text(text)
    print(text)
    return 0


def judge(draw: Draw, folder: Path, known: dict[Any, Any]) -> dict[str, Any]:
    """Diagnose a network with its fault, and its sound twin.

    Args:
      draw: which.
      folder: of the trained weights.
      known: what was found of sound twins, by what they are; added to.
    """
    jax.clear_caches()
    kind = next(each for each in KINDS if each.name == draw.network)
    case, (twin, key) = make_case(kind, draw.fault, folder), make_twin(kind, draw.fault, folder)
    began = time.perf_counter()
    causes = causes_of(kind, case)
    seconds = time.perf_counter() - began
    if (kind.name, key) not in known:
        known[kind.name, key] = causes_of(kind, twin)
    first = causes[0] if causes else (None, None, "", 0.0)
    return {
        "causes": causes[:4],
        "twin": known[kind.name, key][:4],
        "twin_is": key,
        "right_cause": first[1] in FAULTS[draw.fault],
        "right_layer": not case.layers or first[0] in case.layers,
        "expected": list(case.layers),
        "seconds": round(seconds, 1),
    }


def causes_of(kind: Kind, case: Case) -> list[tuple[str | None, str, str, float]]:
    """Return (path, cause, evidence, strength), the first cause first."""
    inputs, targets = map(jnp.asarray, case.data)
    found = diagnose(
        case.model, inputs, targets, loss=kind.loss, optimizer=case.optimizer, try_changes=False
    )
    return [(each.path, each.cause, each.evidence, each.strength) for each in found.causes]


def make_twin(kind: Kind, fault: str, folder: Path) -> tuple[Case, str]:
    """Return what differs from the case in nothing but the fault, and a name for it."""
    data = kind.draw(0, kind.rows)
    if fault in (*_WEIGHTS, "weights x 30", "weights / 30", "normalised twice") or _renames(fault):
        return Case(kind.model(load(kind, folder), False), data), "loaded"
    if fault == "foreign running averages":
        return Case(kind.model(load(kind, folder), True), data), "loaded, in evaluation mode"
    fresh = kind.model(kind.init(0), False)
    if fault == "padding counts":
        return Case(fresh, _padded(kind, data, IGNORED)), "padded, with a mask"
    if fault == "NaN in one row":
        return Case(fresh, kind.draw(0, _MANY_ROWS)), "ten thousand rows"
    if fault == "bfloat16 parameters":
        return Case(fresh, data, optimizer=_SMALL_STEPS), "small steps"
    return Case(fresh, data), "fresh"


def _renames(fault: str) -> bool:
    return fault == "labels of some classes exchanged"


def make_case(kind: Kind, fault: str, folder: Path) -> Case:
    """Plant a fault."""
    data = kind.draw(0, kind.rows)
    if fault in _WEIGHTS or fault.startswith("weights"):
        weights, layers = _planted(kind, fault, load(kind, folder))
        return Case(kind.model(weights, False), data, layers)
    if fault == "foreign running averages":
        weights = load(kind, folder)
        stats, layers = _foreign(kind, weights, data)
        return Case(kind.model(Weights(weights.params, stats), True), data, layers)
    if _renames(fault):
        return Case(kind.model(load(kind, folder), False), _exchanged(kind, data))
    if fault == "normalised twice":
        return Case(kind.model(load(kind, folder), False), _normalised_twice(data))
    fresh = kind.init(0)
    if fault == "bfloat16 parameters":
        narrow = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), fresh.params)
        return Case(kind.model(Weights(narrow, fresh.stats), False), data, (), _SMALL_STEPS)
    return Case(kind.model(fresh, False), _spoilt(kind, fault, data))


def _planted(kind: Kind, fault: str, weights: Weights) -> tuple[Weights, tuple[str, ...]]:
    """Spoil one layer, or two, of loaded weights."""
    params, path = copy.deepcopy(weights.params), kind.square
    layer = path.rpartition("/")[0]
    if fault == "exchanged weights":
        first, second = (each.rpartition("/")[0] for each in kind.pair)
        a, b = _at(params, first), _at(params, second)
        _put(params, first, b)
        _put(params, second, a)
        return Weights(params, weights.stats), (first, second)
    if fault == "untrained layer":
        _put(params, layer, _at(kind.init(1).params, layer))
        return Weights(params, weights.stats), (layer,)
    kernel = np.asarray(_at(params, path))
    wide = kernel.reshape(kernel.shape[0], -1) if kernel.ndim == 3 else kernel
    changed = {
        "zero weights": lambda: np.zeros_like(kernel),
        "transposed weights": lambda: wide.swapaxes(-1, -2).reshape(kernel.shape),
        "weights x 30": lambda: kernel * np.float32(30),
        "weights / 30": lambda: kernel / np.float32(30),
    }[fault]()
    _put(params, path, changed)
    return Weights(params, weights.stats), (layer,)


def _at(tree: Any, path: str) -> Any:
    for name in path.split("/"):
        tree = tree[int(name)] if name.isdigit() else tree[name]
    return tree


def _put(tree: Any, path: str, value: Any) -> None:
    parent, _, name = path.rpartition("/")
    holder = _at(tree, parent) if parent else tree
    holder[int(name) if name.isdigit() else name] = value


def _foreign(kind: Kind, weights: Weights, data: Data) -> tuple[Any, tuple[str, ...]]:
    """Running averages of brighter images with more contrast, of all norms or of one."""
    stats, other = weights.stats, jnp.asarray(data.inputs * 4 + 2)
    step = jax.jit(lambda stats: kind.forward(weights.params, stats, other, True)[1])
    for _ in range(60):
        stats = step(stats)
    stats = jax.device_get(stats)
    if "Linen" in kind.name:
        return stats, ("Conv_0",)
    norm = "blocks/2" if "ResNet" not in kind.name else "blocks/2/first"
    mixed = copy.deepcopy(weights.stats)
    _put(mixed, f"{norm}/norm", jax.tree.map(lambda x: 4 * x + 1, _at(stats, f"{norm}/norm")))
    return mixed, (f"{norm}/conv",)


def _exchanged(kind: Kind, data: Data) -> Data:
    """Rename three classes in a circle."""
    names = np.arange(max(kind.num_classes, kind.tokens))
    names[[1, 2, 3]] = [2, 3, 1]
    return Data(data.inputs, names[data.targets].astype(np.int32))


def _normalised_twice(data: Data) -> Data:
    x, features = data.inputs, data.inputs.shape[-1]
    if x.ndim == 4:
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    else:
        rng = np.random.default_rng(5)
        mean, std = rng.uniform(-1, 2, features), rng.uniform(0.15, 0.6, features)
    return Data(((x - mean[:features]) / std[:features]).astype(np.float32), data.targets)


def _spoilt(kind: Kind, fault: str, data: Data) -> Data:
    x, y = data.inputs.copy(), data.targets.copy()
    rng = np.random.default_rng(6)
    if fault == "targets one row off":
        return Data(x, np.roll(y, 1, 0))
    if fault == "labels at random in some classes":
        some = np.flatnonzero(np.isin(y, [0, 1, 2]))
        y[some] = y[rng.permutation(some)]
    elif fault == "feature x 1e4":
        x[..., 1] *= 1e4
    elif fault == "constant feature":
        x[..., 1] = 0.5
    elif fault == "NaN in one row":
        x, y = kind.draw(0, _MANY_ROWS)
        x[7_654].reshape(-1)[3] = np.nan
    elif fault == "padding counts":
        return _padded(kind, data, 0)
    elif fault == "tokens never used":
        # As after a vocabulary of another file: what should be spread lies in a fifth of the table.
        x = x % max(kind.tokens // 5, 2)
    elif fault == "one token everywhere":
        x = np.where(rng.random(x.shape) < 0.85, 1, x)
    return Data(x, y)


def _padded(kind: Kind, data: Data, target: int) -> Data:
    """Fill up an eighth of the rows, or the ends of all sentences of a language model."""
    x, y = data.inputs.copy(), data.targets.copy()
    if y.ndim == 2 and kind.tokens:
        lengths = np.random.default_rng(7).integers(x.shape[1] // 3, x.shape[1], len(x))
        over = np.arange(x.shape[1]) >= lengths[:, None]
        return Data(np.where(over, 0, x), np.where(over, target, y))
    count = len(x) // 8
    x[-count:], y[-count:] = 0, target
    return Data(x, y)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the shares by fault and by network, and what was named wrongly."""
    tables = []
    for key in ("fault", "network"):
        by: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            by[row[key]].append(row)
        tables += [
            f"| {key} | planted | first cause | its layer too | sound twins with a finding |",
            "|---|---|---|---|---|",
            *(_line(name, own) for name, own in [*by.items(), ("all", list(rows))]),
            "",
        ]
    wrong = [row for row in rows if not (row["right_cause"] and row["right_layer"])]
    twins = {(row["network"], row["twin_is"]): row["twin"] for row in rows if row["twin"]}
    return "\n".join(
        [
            *tables,
            *(
                f"- {row['network']}: {row['fault']} {row['expected']}: {row['causes'][:2]}"
                for row in wrong
            ),
            *(f"- sound: {name}, {key}: {found}" for (name, key), found in twins.items()),
            "",
        ]
    )


def _line(name: str, rows: Sequence[dict[str, Any]]) -> str:
    cause = sum(row["right_cause"] for row in rows)
    both = sum(row["right_cause"] and row["right_layer"] for row in rows)
    alarms = sum(bool(row["twin"]) for row in rows)
    return f"| {name} | {len(rows)} | {cause} | {both} | {alarms} |"


if __name__ == "__main__":
    command_line.run(main)
