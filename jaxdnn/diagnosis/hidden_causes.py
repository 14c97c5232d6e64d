"""Finders of what the program text does not show: weights that are not where they belong.

Whether a layer's weights are right is asked of the loss. Each candidate (transposed, exchanged with
a layer of the same shape, times a factor) is put in place of what was loaded, and the loss read:

    knowledge = loss with targets of other rows - loss
    regained  = (loss as loaded - loss with the candidate) / knowledge with the candidate

A random network knows nothing whatever is exchanged in it, and a sound one knows less afterwards;
so a trained network that knows more after one exchange had its weights in the wrong place.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdnn.diagnosis.findings import BLOCKING, CERTAIN, STRUCTURAL, Finding
from jaxdnn.diagnosis.graph import Layer
from jaxdnn.diagnosis.layer_causes import is_orthogonal
from jaxdnn.diagnosis.measure import Exam
from jaxdnn.diagnosis.model import Forward, leaf_names
from jaxdnn.diagnosis.replay import compile_quickly
from jaxdnn.diagnosis.trial import FirstStep

# Rows that a candidate is judged by.
_ROWS = 256
# Multiplications of one look at all candidates of a kind.
_WORK = 3e10
_MOST_CANDIDATES = 300
# Share of what the network knows afterwards, of one that may not have been trained.
LEAST_UNKNOWN = 0.3
# Of a network that was trained: no exchange of sound weights makes it better.
_LEAST_TRAINED = 0.02
# Where what is off was measured before.
LEAST_MEASURED = 0.05
# Fewer tell nothing.
_FEWEST_ROWS = 24
# Of the loss: what a nearly perfect network loses is little beside its knowledge.
_FALLS = 0.4
# Of the loss with other rows' targets: less is no knowledge.
_KNOWS = 0.25
# By luck a network that was not trained can fit a few rows somewhat better with an exchange.
_SURELY_KNOWS = 0.75
# In logs: no usual initialiser, nor training, makes a layer so unlike the others.
_OFF_SCALE, _OFF_SCALE_BY_FAR = math.log(6), math.log(12)


class _Candidate(NamedTuple):
    """Other weights.

    Attributes:
      layer: index of the layer that is blamed if they are better.
      leaves: index of a parameter -> what to put there.
      words: what was done to what was loaded.
    """

    layer: int
    leaves: dict[int, Any]
    words: str


def transposed_weights(exam: Exam) -> Iterator[Finding]:
    """Find a square kernel whose transposed makes the network know what it is asked."""

    def candidates() -> Iterator[_Candidate]:
        leaves = jax.tree.leaves(exam.params)
        for index, layer in _owners(exam):
            for words, flipped in _flips(layer, np.asarray(layer.leaf.take(leaves))):
                yield _Candidate(index, _put(layer, leaves, flipped), words)

    yield from _judge(exam, candidates(), "its weights lie transposed in it")


def exchanged_weights(exam: Exam) -> Iterator[Finding]:
    """Find two layers of the same shape whose weights stand in each other's place."""

    def candidates() -> Iterator[_Candidate]:
        leaves, siblings = jax.tree.leaves(exam.params), _siblings(exam.params)
        owners = [(i, own) for i, own in _owners(exam) if own.kind != "embedding"]
        shapes = [own.leaf.take(leaves).shape for _, own in owners]
        pairs = itertools.combinations(range(len(owners)), 2)
        for a, b in sorted(pairs, key=lambda pair: pair[1] - pair[0]):
            if shapes[a] == shapes[b]:
                first, second = owners[a][1], owners[b][1]
                words = f"exchanged with those of {second.path}"
                for swapped in _swaps(first, second, leaves, siblings):
                    yield _Candidate(owners[a][0], swapped, words)

    yield from _judge(exam, candidates(), "its weights are another layer's")


def mis_scaled_weights(exam: Exam) -> Iterator[Finding]:
    """Find a kernel of another scale than the others' with which the network would know more.

    Where a norm follows, the loss cannot tell, and the scale alone has to.
    """
    leaves, scales = jax.tree.leaves(exam.params), _relative_scales(exam)
    off = {index: scale for index, scale in scales.items() if abs(math.log(scale)) > _OFF_SCALE}

    def candidates() -> Iterator[_Candidate]:
        for index, scale in off.items():
            layer = exam.graph.layers[index]
            kernel = np.asarray(layer.leaf.take(leaves))
            scaled = (kernel.astype(np.float64) / scale).astype(kernel.dtype)
            words = f"divided by {scale:.3g}, the scale of the others"
            yield _Candidate(index, _put(layer, leaves, scaled), words)

    yield from _judge(exam, candidates(), "its weights have the wrong scale")
    trained = is_trained(exam)
    for index, scale in off.items():
        kinds = next((e.kinds for e in exam.graph.edges if e.below == index), [])
        if abs(math.log(scale)) < _OFF_SCALE_BY_FAR or not (trained or kinds[:1] == ["norm"]):
            continue
        text = f"its weights are {scale:.3g} x those of the other layers for their fan_in"
        if kinds[:1] == ["norm"]:
            text += (
                "; the norm that follows hides it, and its steps are"
                f" {max(scale, 1 / scale) ** 2:.2g} times too {'small' if scale > 1 else 'large'}"
            )
        yield Finding(index, text, BLOCKING)


def _relative_scales(exam: Exam) -> dict[int, float]:
    """RMS(W) sqrt(fan_in) of each kernel over the median of all."""
    sigmas = {
        index: exam.measured.kernel_rms[index] * math.sqrt(layer.fan_in)
        for index, layer in _owners(exam)
        if layer.kind != "embedding" and exam.measured.kernel_rms[index] > 0
    }
    if len(sigmas) < 3:
        return {}
    typical = float(np.median(list(sigmas.values())))
    return {index: sigma / typical for index, sigma in sigmas.items()}


def _owners(exam: Exam) -> list[tuple[int, Layer]]:
    """The first layer that uses each kernel."""
    seen: dict[Any, tuple[int, Layer]] = {}
    for index, layer in enumerate(exam.graph.layers):
        seen.setdefault(layer.leaf, (index, layer))
    return list(seen.values())


def _put(layer: Layer, leaves: Sequence[Any], kernel: np.ndarray) -> dict[int, Any]:
    changed = [
        jnp.asarray(leaf) if i == layer.leaf.index else leaf for i, leaf in enumerate(leaves)
    ]
    layer.leaf.put(changed, jnp.asarray(kernel))
    return {layer.leaf.index: changed[layer.leaf.index]}


def _flips(layer: Layer, kernel: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The kernel with its axes the other way round, where that fits."""
    if layer.kind == "embedding" or kernel.size < 4:
        return
    if kernel.ndim == 2 and kernel.shape[0] == kernel.shape[1]:
        yield "transposed", kernel.T
    if kernel.ndim == 3:
        for split in (1, 2):
            square = kernel.reshape(math.prod(kernel.shape[:split]), -1)
            if layer.kind == "dense" and square.shape[0] == square.shape[1]:
                yield "transposed", square.T.reshape(kernel.shape)
    if layer.kind.endswith("conv"):
        if kernel.shape[-1] == kernel.shape[-2]:
            yield "transposed (inputs for outputs)", kernel.swapaxes(-1, -2)
        if kernel.ndim == 4 and kernel.shape[0] == kernel.shape[1] > 1:
            yield "transposed (height for width)", kernel.swapaxes(0, 1)


def _siblings(params: Any) -> dict[int, list[int]]:
    """Index of a leaf -> indices of all leaves of the same parent, itself among them."""
    parents = [name.rpartition("/")[0] for name in leaf_names(params)]
    groups: dict[str, list[int]] = defaultdict(list)
    for index, parent in enumerate(parents):
        groups[parent].append(index)
    return {index: groups[parent] for index, parent in enumerate(parents)}


def _swaps(
    first: Layer, second: Layer, leaves: Sequence[Any], siblings: dict[int, list[int]]
) -> Iterator[dict[int, Any]]:
    """The kernels exchanged; then all that the two layers hold, where it is more."""
    a, b = first.leaf, second.leaf
    swapped = _put(first, leaves, b.take(leaves))
    mixed = [swapped.get(index, leaf) for index, leaf in enumerate(leaves)]
    yield swapped | _put(second, mixed, a.take(leaves))
    mine, theirs = siblings[a.index], siblings[b.index]
    whole = a.part is None and b.part is None and len(mine) == len(theirs) > 1
    if whole and not set(mine) & set(theirs):
        pairs = list(zip(mine, theirs, strict=True))
        if all(leaves[i].shape == leaves[j].shape for i, j in pairs):
            yield {i: leaves[j] for i, j in pairs} | {j: leaves[i] for i, j in pairs}


# Of a kernel's entries: what is left moves slower than it should, or hardly.
_LOST = 0.5
# Bytes of a parameter of single precision.
_WHOLE = 4


def rounded_steps(exam: Exam, first: FirstStep) -> Iterator[Finding]:
    """Find the kernel of which an optimizer's first step is rounded away the most.

    Args:
      exam: with parameters of any format.
      first: what the optimizer makes of the gradient.
    """
    leaves = jax.tree.leaves(exam.params)
    formats = [jnp.dtype(layer.leaf.take(leaves).dtype) for layer in exam.graph.layers]
    # Steps too small for float32 are too small, whatever the format.
    is_narrow = [each.itemsize < _WHOLE for each in formats]
    lost = np.where(is_narrow, np.asarray(first.lost), 0.0)
    if not lost.size or not exam.measured.finite or lost.max() < _LOST:
        return
    worst = int(np.argmax(lost))
    name = formats[worst].name
    text = (
        f"its weights are kept in {name}, and {lost[worst]:.0%} of them do not change in a step:"
        f" the step is {first.relative[worst]:.2g} of their RMS, less than half of a last digit; so"
        f" in {int((lost >= _LOST).sum())} of {len(lost)} layers: keep the parameters in float32"
    )
    yield Finding(worst, text, STRUCTURAL * (1 + float(lost[worst])))


class Reading(NamedTuple):
    """What the loss says of some weights.

    Attributes:
      loss: mean over the rows.
      unmatched: loss with the targets of other rows.
    """

    loss: float
    unmatched: float

    @property
    def knowledge(self) -> float:
        """How much better the outputs fit their own rows' targets; 0 for none, or not finite."""
        gained = self.unmatched - self.loss
        return gained if math.isfinite(gained) and gained > _KNOWS * abs(self.unmatched) else 0.0


def recovery(loaded: Reading, changed: Reading, least: float = LEAST_UNKNOWN) -> float:
    """Return the strength of a finding whose cure was tried; 0 where it regains too little.

    Args:
      loaded: with everything as it came.
      changed: with the cure.
      least: share in [0, 1] of the knowledge that has to come from the cure.
    """
    gain = loaded.loss - changed.loss
    enough = gain >= min(least * changed.knowledge, _FALLS * abs(loaded.loss))
    if not (changed.knowledge and enough):
        return 0.0
    return BLOCKING + CERTAIN * gain / (gain + abs(changed.loss))


def take_rows(tree: Any, rows: Any) -> Any:
    """Return these rows of all arrays of a tree; what has no axes stays as it is."""
    return jax.tree.map(lambda x: jnp.asarray(x)[rows] if jnp.ndim(x) else x, tree)


def takes_rows(exam: Exam, count: int) -> bool:
    """Tell whether network and loss take a batch of another size than the given."""
    inputs, targets = take_rows((exam.inputs, exam.targets), np.arange(count))
    try:
        outputs = jax.eval_shape(exam.network.apply, exam.params, inputs, exam.key)
        jax.eval_shape(exam.loss, outputs, targets)
    except (TypeError, ValueError):
        return False
    return True


def read_forward(exam: Exam, forward: Forward, inputs: Any = None) -> Reading:
    """Read the loss of another forward pass, or of other inputs than the batch's.

    Args:
      exam: gives parameters, inputs, targets and loss.
      forward: `(params, inputs, key) -> outputs`.
      inputs: of the shapes of the batch; None for the batch's own.
    """
    order = np.random.default_rng(0).permutation(len(jax.tree.leaves(exam.inputs)[0]))
    others = take_rows(exam.targets, order)
    seen = exam.inputs if inputs is None else inputs
    outputs = compile_quickly(forward)(exam.params, seen, exam.key)
    return Reading(float(exam.loss(outputs, exam.targets)), float(exam.loss(outputs, others)))


class _Bench:
    """Reads the loss of some rows with other weights."""

    def __init__(self, exam: Exam) -> None:
        self._exam = exam
        self._leaves, self._tree = jax.tree.flatten(exam.params)
        count = len(jax.tree.leaves(exam.inputs)[0])
        rows = np.arange(count if count <= _ROWS or not takes_rows(exam, _ROWS) else _ROWS)
        self._inputs, self._targets = take_rows((exam.inputs, exam.targets), rows)
        self._others = take_rows(self._targets, np.random.default_rng(0).permutation(rows))

    def read(self, changed: dict[int, Any]) -> Reading:
        leaves = [changed.get(index, leaf) for index, leaf in enumerate(self._leaves)]
        params = jax.tree.unflatten(self._tree, leaves)
        return Reading(
            *map(float, self._exam.evaluate(params, self._inputs, self._targets, self._others))
        )


def _judge(exam: Exam, candidates: Iterable[_Candidate], verdict: str) -> Iterator[Finding]:
    """Blame the layer of the best candidate, if the network knows far more with it."""
    if not exam.measured.finite or len(jax.tree.leaves(exam.inputs)[0]) < _FEWEST_ROWS:
        return
    trained = is_trained(exam)
    if trained is False:
        return
    bench = _Bench(exam)
    loaded = bench.read({})
    some = itertools.islice(candidates, _num_candidates(exam))
    tried = [(bench.read(each.leaves), each) for each in some]
    known = [each for each in tried if each[0].knowledge]
    if not known:
        return
    best, candidate = min(known, key=lambda each: each[0].loss)
    strength = recovery(loaded, best, _LEAST_TRAINED if trained else LEAST_UNKNOWN)
    if strength and (trained or best.knowledge > _SURELY_KNOWS * abs(best.unmatched)):
        text = (
            f"{verdict}: {candidate.words}, the loss falls from {loaded.loss:.3g} to"
            f" {best.loss:.3g} without any training"
        )
        yield Finding(candidate.layer, text, strength)


def is_trained(exam: Exam) -> bool | None:
    """Tell whether biases and gains lie as training leaves them, each entry somewhere else.

    Returns:
      None where there are too few to tell.
    """
    vectors = [np.asarray(x) for x in jax.tree.leaves(exam.params) if np.ndim(x) == 1]
    moved = [bool(np.any(x != x[0])) for x in vectors if x.size > 1]
    if moved and not any(moved):
        return False
    return sum(moved) >= len(moved) / 2 if len(moved) > 2 else None


def _num_candidates(exam: Exam) -> int:
    """As many as the work for one look allows: the same on every machine."""
    program, rows = exam.graph.program, len(jax.tree.leaves(exam.inputs)[0])
    sizes = (math.prod(program.full_shape(each.z)) * each.fan_in for each in exam.graph.layers)
    work = sum(sizes) * min(_ROWS, rows) / rows
    return int(min(max(_WORK / max(work, 1.0), 12), _MOST_CANDIDATES))


class _Draw(NamedTuple):
    """A usual initialiser with a bounded distribution: no entry lies beyond its edge.

    Attributes:
      gain: of the variance, times 1 / fan.
      fan: `in`, `out` or `average`.
      uniform: or else a normal cut at two standard deviations.
    """

    gain: float
    fan: str
    uniform: bool

    def rms(self, layer: Layer) -> float:
        fans = {"in": layer.fan_in, "out": layer.fan_out}
        return math.sqrt(self.gain / fans.get(self.fan, (layer.fan_in + layer.fan_out) / 2))

    def edge(self, layer: Layer) -> float:
        return self.rms(layer) * (math.sqrt(3) if self.uniform else 2 / _STD_OF_CUT_NORMAL)


# Of a standard normal that is cut at 2.
_STD_OF_CUT_NORMAL = 0.87962566103423978
_DRAWS = (
    *(_Draw(gain, "in", uniform) for gain in (1.0, 2.0) for uniform in (False, True)),
    *(_Draw(1.0, "average", uniform) for uniform in (False, True)),
    _Draw(2.0, "out", False),
    _Draw(1 / 3, "in", True),
)
# An entry so far beyond the edge was moved there by training.
_BEYOND = 1.01
# RMS over that of the initialiser, of a layer that may have been drawn from it.
_ALIKE = (0.85, 1.6)
_MOST_OTHERS = 0.75


def untrained_layer(exam: Exam) -> Iterator[Finding]:
    """Find a hidden layer as an initialiser leaves it, among layers that training has moved.

    Fresh last layers on trained ones are how a network is taught something new: no finding.
    """
    found = _empty_kernels(exam) or _fresh_biases(exam) or _fresh_kernels(exam)
    last = exam.graph.edges[-1].below
    for index, text in found.items():
        if index != last:
            # It explains itself what another layer's weights regain in its place.
            yield Finding(index, text, BLOCKING + CERTAIN)


def _empty_kernels(exam: Exam) -> dict[int, str]:
    """Layers of zeros where biases and gains of other layers have been trained.

    Those that are to start at zero move in the first step.
    """
    empty = [
        index
        for index, layer in _owners(exam)
        if exam.measured.kernel_rms[index] == 0 and layer.kind != "embedding"
    ]
    if not is_trained(exam):
        return {}
    text = (
        "every weight is zero, and nothing gets through, while other layers' biases and gains have"
        " been trained"
    )
    return dict.fromkeys(empty, text)


def _fresh_biases(exam: Exam) -> dict[int, str]:
    """Layers whose bias is exactly zero where nearly all others' are not."""
    rms = {
        index: exam.measured.bias_rms[index]
        for index, layer in _owners(exam)
        if layer.bias is not None and layer.kind != "embedding"
    }
    fresh = [index for index, size in rms.items() if size == 0]
    others = len(rms) - len(fresh)
    if not fresh or others < 3 or others < _MOST_OTHERS * len(rms):
        return {}
    text = (
        f"its bias is exactly zero, as before any training, and those of {others} other layers are"
        " not: its weights were not loaded, or not trained"
    )
    return dict.fromkeys(fresh, text)


def _fresh_kernels(exam: Exam) -> dict[int, str]:
    """Layers that end where an initialiser does, where nearly all others go beyond."""
    leaves = jax.tree.leaves(exam.params)
    kernels = [
        (index, layer, np.abs(np.asarray(layer.leaf.take(leaves), np.float64)))
        for index, layer in _owners(exam)
        if layer.kind != "embedding" and exam.measured.kernel_rms[index] > 0
    ]
    for draw in _DRAWS:
        alike = [
            (index, layer, kernel)
            for index, layer, kernel in kernels
            if _ALIKE[0] < exam.measured.kernel_rms[index] / draw.rms(layer) < _ALIKE[1]
        ]
        fresh = [index for index, layer, kernel in alike if _is_fresh(draw, layer, kernel)]
        moved = sum(
            kernel.max() > _BEYOND * draw.edge(layer) and not is_orthogonal(layer.leaf.take(leaves))
            for _, layer, kernel in alike
        )
        if fresh and moved >= max(3, _MOST_OTHERS * (len(kernels) - 1)):
            text = (
                "its weights end exactly where its initialiser's do, and those of"
                f" {moved} other layers go beyond: they were not loaded, or not trained"
            )
            return dict.fromkeys(fresh, text)
    return {}


def _is_fresh(draw: _Draw, layer: Layer, kernel: np.ndarray) -> bool:
    """Tell whether a kernel's largest entry and RMS are those of the distribution."""
    density = 1 / math.sqrt(3) if draw.uniform else 0.226
    band = 8 / density / kernel.size
    off = abs(math.sqrt(float(np.mean(kernel**2))) / draw.rms(layer) - 1)
    reach = kernel.max() / draw.edge(layer)
    return kernel.size >= 200 and 1 - band <= reach <= 1 + 1e-4 and off < 3 / math.sqrt(kernel.size)
