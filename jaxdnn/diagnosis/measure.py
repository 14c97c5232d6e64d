"""What one pass of a batch forward and back shows of every layer.

A zero is added to every pre-activation and at both ends of every segment between; the gradient of
the loss with respect to it is delta there. One compiled program gives the arrays, and the host
reduces them in float64: reduced inside the program, 50 layers took minutes to compile.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdnn.diagnosis.answers import Answers, LossProbe, LossTraits, best_answers, loss_traits
from jaxdnn.diagnosis.attention import (
    AttentionProfile,
    StreamProfile,
    attention_profiles,
    shown_numbers,
    stream_profiles,
)
from jaxdnn.diagnosis.case import Case, open_case
from jaxdnn.diagnosis.gates import Bend, BendArrays, Part, PartProfile, find_parts, part_profiles
from jaxdnn.diagnosis.graph import Graph, Segment
from jaxdnn.diagnosis.model import Loss
from jaxdnn.diagnosis.program import Dependence, Edit, Environment, Program
from jaxdnn.diagnosis.recurrence import Recurrence, find_recurrences
from jaxdnn.diagnosis.replay import bridge, compile_quickly, replay, replay_all, run
from jaxdnn.propagation import SATURATED


class PassArrays(NamedTuple):
    """The arrays of one pass forward and back.

    Attributes:
      loss: mean over the batch, ().
      logits: (batch, ...).
      pre_activations: (batch, ..., unit) for each layer.
      biases: index of a layer that has one -> its bias, (unit,).
      slopes: |phi'| of each activation, in the order of `Graph.segments`.
      kept: share of entries in [0, 1] that each dropout keeps, in the same order.
      deltas: number of a value -> gradient of the loss with respect to it, of its shape.
      through: gradient of each layer's operand through that layer alone.
      grads: a tree like the parameters.
      shown: number -> value, of what attention is measured by.
      bends: number of a gate or candidate of a recurrent cell -> how it came of its sum.
    """

    loss: Array
    logits: Array
    pre_activations: list[Array]
    biases: dict[int, Array]
    slopes: list[Array]
    kept: list[Array]
    deltas: dict[int, Array]
    through: list[Array]
    grads: Any
    shown: dict[int, Array]
    bends: dict[int, BendArrays]


class SignalStats(NamedTuple):
    """A layer's pre-activation.

    Attributes:
      mean: mean over batch and units.
      rms: root mean square over batch and units.
      correlation: mean cosine between neighbouring examples.
    """

    mean: float
    rms: float
    correlation: float


class SlopeStats(NamedTuple):
    """An activation at the values it got.

    Attributes:
      dead: share of units (last axis) with slope 0 in the whole batch.
      saturated: share of units and examples with less than 1 % of the greatest slope.
    """

    dead: float
    saturated: float


class Measurement(NamedTuple):
    """What one pass forward and back shows, in numbers.

    Attributes:
      loss: mean over the batch.
      logits_rms: their root mean square.
      logits_spread: root mean square of the logits minus their mean over the batch.
      signals: one entry for each layer.
      bias_rms: root mean square of each layer's bias; 0 without one.
      slopes: how flat each activation is at the values it got.
      kept: share of entries in [0, 1] that each dropout keeps.
      delta: number of a value -> root mean square of the gradient of the loss with respect to it.
      delta_by_example: root mean square of each example's dL/dz, (batch,) for each layer.
      through: root mean square of the gradient of each layer's operand through that layer alone;
        for look-ups, of its output.
      kernel_rms: root mean square of each layer's weights.
      kernel_grad_rms: root mean square of their gradient.
      finite: whether loss and all gradients are.
      attentions: what each attention looks at.
      streams: how alike tokens are behind each residual branch, where there is attention.
      parts: index of a layer of a recurrent cell -> what its units do there.
    """

    loss: float
    logits_rms: float
    logits_spread: float
    signals: tuple[SignalStats, ...]
    bias_rms: tuple[float, ...]
    slopes: dict[Segment, SlopeStats]
    kept: dict[Segment, float]
    delta: dict[int, float]
    delta_by_example: tuple[np.ndarray, ...]
    through: tuple[float, ...]
    kernel_rms: tuple[float, ...]
    kernel_grad_rms: tuple[float, ...]
    finite: bool
    attentions: tuple[AttentionProfile, ...]
    streams: tuple[StreamProfile, ...]
    parts: dict[int, tuple[PartProfile, ...]]


class Gain(NamedTuple):
    """What an activation does at standard normal values: a property of the function alone.

    Attributes:
      slope: root mean square of phi'.
      value: root mean square of phi.
      mean: mean of phi.
    """

    slope: float
    value: float
    mean: float


@dataclasses.dataclass(frozen=True)
class Ending:
    """The way from the last layer to the outputs.

    Attributes:
      layer: index of the last layer in the outline; None where the outputs come from several.
      z: its pre-activations, (batch, ...); the outputs where there is no such layer.
      tail: what makes outputs of z; None where they are the same.
      kinds: kinds of the segments between, from below to above.
      label: name of the last activation, such as `relu`; empty where there is none.
    """

    layer: int | None
    z: Array
    tail: Callable[[Array], Array] | None
    kinds: tuple[str, ...]
    label: str


@dataclasses.dataclass(frozen=True, eq=False)
class Exam(Case):
    """A case, and what one pass forward and back shows.

    Attributes:
      run_pass: compiled `(params, inputs, targets, key) -> PassArrays`.
      measured: what the pass shows with the parameters as they came.
      grads: gradient of the loss with respect to the parameters as they came, a tree like these.
      gains: what each activation does that takes nothing but its input and parameters.
      ending: what the network makes of its last layer's pre-activations.
      outputs: what the network gives, (batch, ...).
      answers: how low the loss can come.
      traits: what the loss takes.
    """

    run_pass: Callable[..., PassArrays]
    measured: Measurement
    grads: Any
    gains: dict[Segment, Gain]
    ending: Ending
    outputs: np.ndarray
    answers: Answers
    traits: LossTraits

    @functools.cached_property
    def recurrences(self) -> tuple[Recurrence, ...]:
        """How the gradient passes back through time."""
        return find_recurrences(self.graph, (self.params, self.inputs, self.key))

    def slope_behind(self, index: int) -> SlopeStats:
        """Return how flat what bends a layer's units is; that of a straight line without any."""
        parts = self.measured.parts.get(index, ())
        if parts:
            # An activation that follows the layer may be that of some of its units alone.
            weights = [part.units for part in parts]
            shares = [(part.dead, part.saturated) for part in parts]
            return SlopeStats(*map(float, np.average(shares, axis=0, weights=weights)))
        following = self.graph.following(index, "activation")
        return self.measured.slopes[following[0]] if following else SlopeStats(0.0, 0.0)

    @functools.cached_property
    def evaluate(self) -> Callable[[Any, Any, Any, Any], tuple[Array, Array]]:
        """Compiled `(params, inputs, targets, other targets) -> (loss, loss with the others)`."""

        @compile_quickly
        def evaluate(params: Any, inputs: Any, targets: Any, others: Any) -> tuple[Array, Array]:
            outputs = self.network.apply(params, inputs, self.key)
            return self.loss(outputs, targets), self.loss(outputs, others)

        return evaluate

    def look(self, numbers: Sequence[int]) -> list[Array]:
        """Return what the values of these numbers are for the batch."""

        @compile_quickly
        def wanted(*arguments: Any) -> list[Array]:
            program = self.graph.program
            environment = run(program, arguments, {}, looked_at=numbers)
            return [program.batch_first(number, environment[number]) for number in numbers]

        return wanted(self.params, self.inputs, self.key)


def examine(model: Any, inputs: Any, targets: Any, **options: Any) -> Exam:
    """Open a case and measure it; arguments and errors as in `open_case`."""
    return measure(open_case(model, inputs, targets, **options))


def measure(case: Case) -> Exam:
    """Pass the batch forward and back."""
    graph, params = case.graph, case.params
    run_pass = make_pass(graph, case.loss)
    arrays = run_pass(params, case.inputs, case.targets, case.key)
    ending = _ending(case.outline, graph, params, arrays)
    probe = LossProbe(case.loss, case.targets, arrays.logits.dtype)
    with ThreadPoolExecutor(1) as background:
        asked = background.submit(_ask_loss, probe, ending, arrays, case.tied)
        measured = _reduce(graph, params, arrays)
        gains = _activation_gains(graph, params)
        answers, traits = asked.result()
    return Exam(
        **vars(case),
        run_pass=run_pass,
        measured=measured,
        grads=jax.device_get(arrays.grads),
        gains=gains,
        ending=ending,
        outputs=np.asarray(arrays.logits),
        answers=answers,
        traits=traits,
    )


def _ask_loss(
    probe: LossProbe, ending: Ending, arrays: PassArrays, tied: np.ndarray | None
) -> tuple[Answers, LossTraits]:
    answers = best_answers(probe, ending.z, arrays.logits, ending.tail, tied)
    if not jax.tree.leaves(probe.targets):
        answers = answers.or_from(float(arrays.loss))
    return answers, loss_traits(probe, arrays.logits)


def examine_later(exam: Exam, params: Any) -> Exam:
    """Pass the same batch through a network with other parameters, such as those after some steps.

    Args:
      exam: of the network as it came.
      params: a tree like its own.
    """
    arrays = exam.run_pass(params, exam.inputs, exam.targets, exam.key)
    return dataclasses.replace(
        exam,
        network=exam.network._replace(params=params),
        measured=_reduce(exam.graph, params, arrays),
        grads=jax.device_get(arrays.grads),
        gains=_activation_gains(exam.graph, params),
        outputs=np.asarray(arrays.logits),
    )


# What may stand between the last layer and the outputs for the loss to look through it.
_ENDINGS = {"activation", "softmax", "shape", "scale", "gain", "other"}


def _ending(graph: Graph, full: Graph, params: Any, arrays: PassArrays) -> Ending:
    """Look from the outputs down to the last layer.

    Args:
      graph: the outline.
      full: the graph that was passed through, whose last layer is the same.
      params: the parameters as they came.
      arrays: of the pass.
    """
    program, edge = graph.program, graph.edges[-1]
    last = len(graph.layers) - 1
    nothing = Ending(None, arrays.logits, None, (), "")
    if edge.below != last or not graph.layers or not set(edge.kinds) <= _ENDINGS:
        return nothing
    z = graph.layers[last].z
    if program.values[z].loop is not None:
        return nothing
    steps = [step for segment in edge.segments for step in segment.steps]
    if not steps:
        return Ending(last, arrays.logits, None, (), "")
    environment = _without_inputs(program, params)
    made = {z}.union(*(step.outputs for step in steps))
    needed = {number for step in steps for number in step.inputs} - made
    same = graph.layers[last].path == full.layers[-1].path
    if not same or not needed <= environment.keys():
        return nothing
    labels = [
        each.label or each.steps[-1].name for each in edge.segments if each.kind == "activation"
    ]
    tail = replay_all(program, steps, environment, z, program.output)
    name = labels[-1] if labels else ""
    return Ending(last, arrays.pre_activations[-1], tail, tuple(edge.kinds), name)


def make_pass(graph: Graph, loss: Loss, *, bridged: int | None = None) -> Callable[..., PassArrays]:
    """Return the compiled `(params, inputs, targets, key) -> PassArrays`.

    Args:
      graph: what is run and probed.
      loss: `(logits, targets) -> scalar`.
      bridged: index of a layer from which the gradient goes to the layer below as it is, as if the
        Jacobian between were the identity; None for no such layer.
    """
    program, numbers, shown = graph.program, _probed(graph), shown_numbers(graph)
    # At the step of a layer alone: what comes through it, apart from what joins from elsewhere.
    alone = [layer.z if layer.x is None else (layer.step, layer.x) for layer in graph.layers]
    parts = find_parts(graph)

    @compile_quickly
    def forward_and_back(params: Any, inputs: Any, targets: Any, key: Array) -> PassArrays:
        def objective(params: Any, zeros: dict[int, Array], partials: list[Array]) -> Any:
            added: dict[int | tuple[int, int], Array] = {**zeros}
            for place, zero in zip(alone, partials, strict=True):
                added[place] = added[place] + zero if place in added else zero
            edits = _bridge_over(graph, bridged)
            arguments = params, inputs, key
            environment = run(program, arguments, edits, added, looked_at=_looked_at(graph, parts))
            logits = environment[program.output]
            value = loss(logits, targets)
            observed = _observed(graph, parts, jax.lax.stop_gradient(environment))
            return value, (value, logits, observed, {n: environment[n] for n in shown})

        zeros = {number: _zero(program, number) for number in numbers}
        partials = [
            _zero(program, layer.z if layer.x is None else layer.x) for layer in graph.layers
        ]
        differentiate = jax.grad(objective, (0, 1, 2), has_aux=True)
        (grads, deltas, through), others = differentiate(params, zeros, partials)
        value, logits, (z, biases, slopes, kept, bends), shown_values = others
        return PassArrays(
            value, logits, z, biases, slopes, kept, deltas, through, grads, shown_values, bends
        )

    return forward_and_back


def _probed(graph: Graph) -> list[int]:
    """Numbers of the values at which delta is taken."""
    ends = {n for edge in graph.edges for each in edge.segments for n in (each.start, each.end)}
    ends |= {layer.z for layer in graph.layers}
    ends |= {layer.x for layer in graph.layers if layer.x is not None}
    ends |= {n for loop in graph.program.loops for _, n, _ in loop.carries}
    values = graph.program.values
    return sorted(n for n in ends if jnp.issubdtype(values[n].dtype, jnp.floating))


def _looked_at(graph: Graph, parts: dict[int, tuple[Part, ...]]) -> set[int]:
    """Numbers of what is taken out of a pass, inside loops as well."""
    bends = _bends(parts)
    kinds = (*graph.segments("activation"), *graph.segments("dropout"), *bends)
    operands = {n for each in kinds for step in each.steps for n in step.inputs}
    biases = {layer.bias for layer in graph.layers if layer.bias is not None}
    return operands | biases | {each.end for each in bends} | {layer.z for layer in graph.layers}


def _bends(parts: dict[int, tuple[Part, ...]]) -> list[Bend]:
    """Each way from a sum to a gate once, though several layers add to it."""
    found = [part.bend for own in parts.values() for part in own if part.bend is not None]
    return list({bend.end: bend for bend in found}.values())


def _bridge_over(graph: Graph, bridged: int | None) -> dict[int, Edit]:
    below = None if bridged is None else graph.edges[bridged].below
    if bridged is None or below is None:
        return {}
    z, lower = graph.layers[bridged].z, graph.layers[below].z
    values = graph.program.values
    if values[z].loop != values[lower].loop:
        return {}
    return {z: lambda x, values: bridge(x, values[lower])}


def _zero(program: Program, number: int) -> Array:
    return jnp.zeros(program.full_shape(number), program.values[number].dtype)


def _observed(
    graph: Graph, parts: dict[int, tuple[Part, ...]], environment: Environment
) -> tuple[Any, ...]:
    """Take out of a forward pass what is looked at.

    Returns:
      z, biases, slopes, what dropouts keep, and the gates of recurrent cells.
    """
    program = graph.program
    slopes = [
        _slope_of(replay_all(program, each.steps, environment, each.start, each.end))(
            environment[each.start]
        )
        for each in graph.segments("activation")
    ]
    kept = [_kept(program, segment, environment) for segment in graph.segments("dropout")]
    biases = {
        index: environment[layer.bias]
        for index, layer in enumerate(graph.layers)
        if layer.bias is not None
    }
    pre_activations = [program.batch_first(layer.z, environment[layer.z]) for layer in graph.layers]
    bends = {each.end: _bend_arrays(program, each, environment) for each in _bends(parts)}
    return pre_activations, biases, slopes, kept, bends


def _bend_arrays(program: Program, bend: Bend, environment: Environment) -> BendArrays:
    slope = _slope_of(replay_all(program, bend.steps, environment, bend.start, bend.end))
    start = environment[bend.start]
    own, at_zero = slope(start), slope(jnp.zeros_like(start))
    return BendArrays(environment[bend.end], own, jnp.maximum(own.max(), at_zero.max()))


def _slope_of(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The |phi'| of an activation, elementwise."""

    def slope(x: Array) -> Array:
        # Backward: what has a gradient of its own (custom_vjp) cannot be differentiated forward.
        y, pull_back = jax.vjp(function, x)
        return jnp.abs(pull_back(jnp.ones_like(y))[0].astype(jnp.float32))

    return slope


def _kept(program: Program, segment: Segment, environment: Environment) -> Array:
    function = replay_all(program, segment.steps, environment, segment.start, segment.end)
    dropped = function(jnp.ones_like(environment[segment.start]))
    return jnp.mean((dropped != 0).astype(jnp.float32))


@np.errstate(invalid="ignore", over="ignore", divide="ignore")
def _reduce(graph: Graph, params: Any, arrays: PassArrays) -> Measurement:
    """From the arrays of a pass to a few numbers for each layer, on the host and in float64."""
    arrays, params = jax.device_get((arrays, params))
    leaves, grads = jax.tree.leaves(params), jax.tree.leaves(arrays.grads)
    layers = graph.layers
    biases = [arrays.biases.get(index, np.zeros(1)) for index in range(len(layers))]
    activations, dropouts = graph.segments("activation"), graph.segments("dropout")
    return Measurement(
        loss=float(arrays.loss),
        logits_rms=host_rms(arrays.logits),
        logits_spread=host_rms(arrays.logits - arrays.logits.mean(0, keepdims=True)),
        signals=tuple(_signal_stats(z) for z in arrays.pre_activations),
        bias_rms=tuple(host_rms(bias) for bias in biases),
        slopes=dict(zip(activations, map(_slope_stats, arrays.slopes), strict=True)),
        kept=dict(zip(dropouts, map(float, arrays.kept), strict=True)),
        delta={
            number: rms_of(graph.program, number, delta) for number, delta in arrays.deltas.items()
        },
        delta_by_example=tuple(
            _by_example(_strongest(graph.program, layer.z, arrays.deltas[layer.z]))
            for layer in layers
        ),
        through=tuple(
            rms_of(graph.program, layer.z if layer.x is None else layer.x, x)
            for layer, x in zip(layers, arrays.through, strict=True)
        ),
        kernel_rms=tuple(host_rms(layer.leaf.take(leaves)) for layer in layers),
        kernel_grad_rms=tuple(host_rms(layer.leaf.take(grads)) for layer in layers),
        finite=bool(np.isfinite(arrays.loss) and all(np.isfinite(x).all() for x in grads)),
        attentions=attention_profiles(graph, arrays.shown),
        streams=stream_profiles(graph, arrays.shown),
        parts={
            index: _part_profiles(graph, index, own, arrays)
            for index, own in find_parts(graph).items()
        },
    )


def _part_profiles(
    graph: Graph, index: int, parts: Sequence[Part], arrays: PassArrays
) -> tuple[PartProfile, ...]:
    program, number = graph.program, graph.layers[index].z
    z = program.batch_first(number, arrays.pre_activations[index])
    delta = _strongest(program, number, arrays.deltas[number])
    return part_profiles(parts, z, delta, arrays.bends)


def host_rms(x: Any) -> float:
    """Return the root mean square in float64."""
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


def rms_of(program: Program, number: int, array: Any) -> float:
    """Return the root mean square of a value's gradient; in a loop that of its greatest time step.

    So that a gradient that enters at the last time step alone is the same there as outside.
    """
    return host_rms(_strongest(program, number, array))


def _strongest(program: Program, number: int, array: Any) -> np.ndarray:
    """The time step of a loop with the greatest root mean square; the array itself outside."""
    array = np.asarray(array)
    if program.values[number].loop is None:
        return array
    squares = np.square(np.asarray(array, np.float64)).reshape(len(array), -1).mean(1)
    return array[int(np.argmax(np.where(np.isnan(squares), np.inf, squares)))]


def _by_example(delta: np.ndarray) -> np.ndarray:
    rows = np.asarray(delta, np.float64).reshape(delta.shape[0], -1)
    return np.sqrt(np.mean(rows**2, axis=1))


def _signal_stats(z: np.ndarray) -> SignalStats:
    rows = np.asarray(z, np.float64).reshape(z.shape[0], -1)
    lengths = np.sqrt(np.sum(rows**2, axis=1))
    products = np.sum(rows[1:] * rows[:-1], axis=1)
    cosines = products / (lengths[1:] * lengths[:-1])
    return SignalStats(float(rows.mean()), host_rms(rows), float(cosines.mean()))


def _slope_stats(slope: np.ndarray) -> SlopeStats:
    axes = tuple(range(slope.ndim - 1))
    return SlopeStats(
        float(np.mean(np.all(slope == 0, axis=axes))),
        float(np.mean(slope < SATURATED * slope.max())),
    )


@np.errstate(invalid="ignore", over="ignore", divide="ignore")
def _activation_gains(graph: Graph, params: Any) -> dict[Segment, Gain]:
    """What each activation does at standard normal values; trained slopes come from `params`."""
    environment = _without_inputs(graph.program, params)
    drawn: dict[Any, Array] = {}
    known: dict[Any, Gain] = {}
    gains = {}
    for segment in graph.segments("activation"):
        if not _is_closed(segment, environment):
            continue
        value = graph.program.values[segment.start]
        kind = (value.shape, value.dtype)
        if kind not in drawn:
            normal = np.random.default_rng(0).standard_normal(value.shape)
            drawn[kind] = jnp.asarray(normal, value.dtype)
        signature = (kind, *(step.signature for step in segment.steps))
        if signature not in known or any(len(step.inputs) > 1 for step in segment.steps):
            known[signature] = _gain(segment, environment, drawn[kind])
        gains[segment] = known[signature]
    return gains


def _gain(segment: Segment, environment: Environment, z: Array) -> Gain:
    function = replay(segment.steps, environment, segment.start, segment.end)
    slope = _slope_of(function)
    slopes, values = compile_quickly(lambda z: (slope(z), function(z)))(z)
    mean = float(np.mean(np.asarray(values, np.float64)))
    return Gain(host_rms(slopes), host_rms(values), mean)


def _without_inputs(program: Program, params: Any) -> Environment:
    """Compute what depends on parameters only."""
    environment = dict(program.constants)
    leaves = jax.tree.leaves(params)
    environment.update(zip(program.arguments[: len(leaves)], leaves, strict=True))
    for step in program.steps:
        depends = program.values[step.outputs[0]].depends
        if step.loop is None and not depends & (Dependence.INPUTS | Dependence.KEY):
            operands = [environment[number] for number in step.inputs]
            environment.update(zip(step.outputs, step.run(*operands), strict=True))
    return environment


def _is_closed(segment: Segment, environment: Environment) -> bool:
    """Tell whether the activation takes nothing but its input and parameters."""
    inside = {segment.start}.union(*(step.outputs for step in segment.steps))
    outside = {n for step in segment.steps for n in step.inputs} - inside
    return outside <= environment.keys()
