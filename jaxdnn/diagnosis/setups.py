"""What is trained: a network on a batch, under a loss, by an optimizer; and changes of these.

A fix says what it changes and leaves the rest; two fixes make a third. Applied to an examined
network it gives a setup, which can be tried for some steps and, where it helped, be handed over:
a pure function, its parameters, and what became of optimizer, loss and data.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxdnn.diagnosis.answers import Answers, LossProbe, best_answers
from jaxdnn.diagnosis.case import Case
from jaxdnn.diagnosis.graph import Graph, make_graph
from jaxdnn.diagnosis.measure import Exam
from jaxdnn.diagnosis.model import Forward, Loss
from jaxdnn.diagnosis.program import Edit, Environment, Program, Step, trace
from jaxdnn.diagnosis.replay import compile_quickly, run
from jaxdnn.diagnosis.trial import (
    AT_RISK,
    BRIEF,
    BY_HEART,
    HOLDS,
    HORIZON,
    NUM_STEPS,
    Scales,
    TrainingStep,
    Trial,
    make_trial,
    rate_curve,
    score_trial,
)
from jaxdnn.errors import InputError

# What a trial may cost, in multiply-adds of its products, and what each operation costs besides.
_AFFORDABLE = 2.5e10
_OVERHEAD = 2e5
_UPDATE = 30.0
_CONVOLUTION = 20.0
# With more parameters, 300 steps of a program built quickly take longer than to build a fast one.
_LIGHT = 250_000
# Factors on the rate, and steps with each, where a step is too slow for all side by side.
_FEW_FACTORS, _FEW_STEPS = np.logspace(-4, 2, 7), 10
_HEAVY_FACTORS, _HEAVY_STEPS = np.logspace(-2, 2, 5), 4
# A step is heavy where fewer than so many are affordable; what a score must gain in ten of them.
_HEAVY, _PROMISE = 15, 0.02
# What learning by heart counts beside a share that holds for other examples.
_BY_HEART_COUNTS = 0.25
# Networks of more operations are too slow to compile with edits inside.
MOST_STEPS = 1500


class FixKind(enum.Enum):
    """What a fix changes."""

    NETWORK = enum.auto()
    WIDTH = enum.auto()
    DATA = enum.auto()
    OUTPUT = enum.auto()
    LEARNING_RATE = enum.auto()
    OPTIMIZER = enum.auto()
    DECAY = enum.auto()
    GRADIENT_SCALE = enum.auto()
    LOSS_SCALE = enum.auto()
    PARAMETER_FORMAT = enum.auto()


class Output(NamedTuple):
    """What stands in place of the network's ending.

    Attributes:
      after: pre-activations of the last layer -> outputs.
      units: of the new last layer; None for the layer as it is.
    """

    after: Callable[[Array], Array]
    units: int | None = None


class Fix(NamedTuple):
    """One thing to try; what is None or empty stays as it is.

    Attributes:
      name: what programs read; never changed.
      words: what to change, for people.
      code: the line that does it.
      kind: what it changes.
      size: how much of the user's program changes: 1 a number or a word, 2 a line, 3 several lines,
        4 every layer.
      params: the parameters to train with, a tree like the network's.
      edits: number of a value -> what is computed in its place.
      output: what stands in place of the network's ending.
      scales: factors on learning rate, gradient and loss.
      loss: `(outputs, targets) -> scalar`.
      optimizer: the optax transformation to train with.
      inputs: what is done to the inputs first.
      targets: what is done to the targets first.
    """

    name: str
    words: str
    code: str
    kind: FixKind = FixKind.NETWORK
    size: int = 2
    params: Any = None
    edits: Mapping[int, Edit] = {}
    output: Output | None = None
    scales: Scales = Scales()
    loss: Loss | None = None
    optimizer: optax.GradientTransformation | None = None
    inputs: Callable[[Any], Any] | None = None
    targets: Callable[[Any], Any] | None = None


AS_IT_IS = Fix("as_it_is", "the network as it is", "", size=0)


def both(one: Fix, other: Fix) -> Fix:
    """Return the fix that does one and then the other."""
    scales = Scales(*(a * b for a, b in zip(one.scales, other.scales, strict=True)))

    def chain(first: Any, second: Any) -> Any:
        if first is None or second is None:
            return first or second
        return lambda x: second(first(x))

    return Fix(
        f"{one.name} + {other.name}",
        f"{one.words}; {other.words}",
        f"{one.code}\n{other.code}",
        one.kind if one.kind is other.kind else FixKind.NETWORK,
        one.size + other.size,
        one.params if other.params is None else other.params,
        composed(one.edits, other.edits),
        other.output or one.output,
        scales,
        other.loss or one.loss,
        other.optimizer or one.optimizer,
        chain(one.inputs, other.inputs),
        chain(one.targets, other.targets),
    )


def composed(first: Mapping[int, Edit], second: Mapping[int, Edit]) -> dict[int, Edit]:
    """Return edits that do the first, and then the second with what came of it."""

    def after(one: Edit, two: Edit) -> Edit:
        def edit(value: Array, values: Environment) -> Array:
            return two(one(value, values), values)

        return edit

    common = {number: after(first[number], second[number]) for number in first.keys() & second}
    return {**first, **second, **common}


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is trained.

    Attributes:
      forward: `(params, inputs, key) -> outputs`; inputs as they are after the fix.
      params: a tree of arrays.
      loss: `(outputs, targets) -> scalar`.
      optimizer: the optax transformation.
      scales: factors on learning rate, gradient and loss.
      inputs: the batch's, as they are after the fix.
      targets: the batch's, as they are after the fix.
      key: decides masks of dropout.
    """

    forward: Forward
    params: Any
    loss: Loss
    optimizer: optax.GradientTransformation
    scales: Scales
    inputs: Any
    targets: Any
    key: Array


class _Rewritten:
    """A network with edits; for a batch of another shape it is written out anew."""

    def __init__(self, exam: Exam, fix: Fix) -> None:
        self._exam, self._fix = exam, fix
        self._folded = not fix.edits
        self._graph = exam.outline if self._folded else exam.graph
        self._known: dict[Any, Graph] = {_shapes((exam.params, exam.inputs)): self._graph}

    def __call__(self, params: Any, inputs: Any, key: Array | None) -> Array:
        exam, fix = self._exam, self._fix
        key = exam.key if key is None else key
        own = params["network"] if fix.output is not None and fix.output.units else params
        graph = self._graph_for(own, inputs, key)
        edits = dict(fix.edits)
        if fix.output is not None:
            edits = composed(edits, self._ending(graph, fix.output, params))
        own = jax.tree.map(lambda wide, like: wide.astype(like.dtype), own, exam.params)
        return run(graph.program, (own, inputs, key), edits)[graph.program.output]

    def _ending(self, graph: Graph, output: Output, params: Any) -> dict[int, Edit]:
        program, last = graph.program, graph.layers[-1]
        if output.units is None and last.z == program.output:
            return {program.output: lambda z, _: output.after(z)}
        if output.units is None:
            return {program.output: lambda _, values: output.after(values[last.z])}
        x = last.x
        assert x is not None
        head = params["head"]
        return {
            program.output: lambda _, values: output.after(
                values[x].astype(head["kernel"].dtype) @ head["kernel"] + head["bias"]
            )
        }

    def _graph_for(self, params: Any, inputs: Any, key: Array) -> Graph:
        shapes = _shapes((params, inputs))
        if shapes not in self._known:
            network = self._exam.network
            own, batch = (
                jax.tree.map(
                    lambda x, like: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(like)), *pair
                )
                for pair in ((params, network.params), (inputs, inputs))
            )
            program = trace(network.apply, own, batch, key, unroll=not self._folded)
            if len(program.steps) != len(self._graph.program.steps):
                raise InputError(
                    f"inputs {shapes} came to a changed network that was written out for"
                    f" {_shapes(self._exam.inputs)}; give batches of that shape"
                )
            self._known[shapes] = make_graph(program, self._exam.names)
        return self._known[shapes]


def _shapes(tree: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree))


class Tried(NamedTuple):
    """A fix that was tried.

    Attributes:
      fix: what was done.
      setup: what was trained.
      trial: what happened, step by step.
      score: what it scored, in [0, 1].
      held_out: greatest share learnt, on the way, of what there is to learn in the batch that was
        held out, at most 1; NaN where none is given.
    """

    fix: Fix
    setup: Setup
    trial: Trial
    score: float
    held_out: float = math.nan


class Trials:
    """Short trainings of an examined network, with fixes or as it is."""

    def __init__(
        self,
        exam: Exam,
        optimizer: optax.GradientTransformation,
        *,
        horizon: int = HORIZON,
        held_out: tuple[Any, Any] | None = None,
        deadline: float = math.inf,
        step: TrainingStep | None = None,
    ) -> None:
        """Close over a network with its batch.

        Args:
          exam: gives network, batch, loss and key; nothing of it is changed.
          optimizer: the optax transformation that will train it.
          horizon: steps that the training may take.
          held_out: (inputs, targets) of another batch, for which what is learnt must hold.
          deadline: by the monotonic clock; trials end then, with what they have shown.
          step: what `step_as_it_is` makes of the same case and optimizer.
        """
        self.deadline = deadline
        self.exam = exam
        self.held_out = held_out
        self.optimizer = optimizer
        self.horizon = horizon
        affordable = affordable_steps(exam.outline.program, exam.params)
        self.num_steps = min(horizon, affordable)
        self._step, self._light = step, is_light(exam)
        # Where a step takes long, a change has all its steps only if the first few promise much.
        self.is_heavy = _HEAVY * _step_cost(exam.outline.program, exam.params) > _AFFORDABLE
        self._brief_score = 0.0
        self._programs: dict[Any, Callable[..., tuple[Trial, Any]]] = {}
        self._answers: dict[Any, Answers] = {}

    @property
    def is_late(self) -> bool:
        """Whether no more trial may begin."""
        return time.monotonic() > self.deadline

    def setup(self, fix: Fix) -> Setup:
        """Apply a fix to the network.

        Raises:
          InputError: it does not fit this network.
        """
        exam = self.exam
        inputs = exam.inputs if fix.inputs is None else fix.inputs(exam.inputs)
        targets = exam.targets if fix.targets is None else fix.targets(exam.targets)
        params = exam.params if fix.params is None else fix.params
        loss = exam.loss if fix.loss is None else fix.loss
        forward: Forward = _narrowed(exam.network.apply, exam.params)
        if fix.edits or fix.output:
            forward = _Rewritten(exam, fix)
            if fix.output is not None and fix.output.units:
                params = {"network": params, "head": _new_head(exam, fix.output.units)}
            try:
                outputs = jax.eval_shape(forward, params, inputs, exam.key)
                jax.eval_shape(loss, outputs, targets)
            except (TypeError, ValueError) as error:
                raise InputError(f"{fix.words}: does not fit this network") from error
        optimizer = fix.optimizer or self.optimizer
        return Setup(forward, params, loss, optimizer, fix.scales, inputs, targets, exam.key)

    def try_fix(self, fix: Fix) -> Tried:
        """Train with a fix for some steps.

        Raises:
          InputError: it does not fit this network.
        """
        setup = self.setup(fix)
        answers = self._answers_for(fix, setup)
        run_trial = self._program(fix, setup, answers)
        elsewhere = self._elsewhere(fix, setup, answers)
        trial, params = run_trial(
            setup.params, setup.inputs, setup.targets, setup.key, fix.scales,
            impatient=fix is not AS_IT_IS, deadline=self.deadline,
            worth=self._worth if self.is_heavy and fix is not AS_IT_IS else None,
            look=elsewhere,
        )  # fmt: skip
        if fix is AS_IT_IS:
            self._brief_score = self._after_few(trial)
        score = score_trial(trial, answers, horizon=self.horizon)
        held_out = math.nan
        if elsewhere is not None:
            elsewhere(params)
            held_out = elsewhere.best
        if held_out < HOLDS:
            # Some of it holds elsewhere: more of it would with more examples. Where nothing does, a
            # network that learns by heart is still ahead of one that does not learn.
            share = max(held_out / HOLDS, _BY_HEART_COUNTS * score)
            score = min(score, AT_RISK + (BY_HEART - AT_RISK) * share)
        return Tried(fix, setup, trial, score, held_out)

    def _worth(self, trial: Trial) -> bool:
        """Tell whether a change promises more than the network as it is."""
        return self._after_few(trial) > self._brief_score + _PROMISE

    def _after_few(self, trial: Trial) -> float:
        brief = Trial(*(np.asarray(each)[: BRIEF + 1] for each in trial))
        return score_trial(brief, self.exam.answers, horizon=self.horizon)

    def params_after(self, num_steps: int) -> Any:
        """Return the parameters after some steps of the network as it is."""
        setup = self.setup(AS_IT_IS)
        run_trial = self._program(AS_IT_IS, setup, self.exam.answers)
        batch = setup.params, setup.inputs, setup.targets, setup.key
        return run_trial(*batch, most_steps=num_steps)[1]

    def _elsewhere(self, fix: Fix, setup: Setup, answers: Answers) -> _Elsewhere | None:
        """Return what watches the batch that is held out, where there is one."""
        if self.held_out is None:
            return None
        inputs, targets = self.held_out
        inputs = inputs if fix.inputs is None else fix.inputs(inputs)
        targets = targets if fix.targets is None else fix.targets(targets)
        return _Elsewhere(setup, inputs, targets, answers)

    def rate_curve(self, fix: Fix) -> tuple[np.ndarray, np.ndarray]:
        """Return factors on the learning rate, (rate,), and the loss after some steps with each."""
        setup = self.setup(fix)
        batch = setup.params, setup.inputs, setup.targets, setup.key
        if self.num_steps >= self.horizon:
            return rate_curve(setup.forward, setup.loss, setup.optimizer, *batch)
        run_trial = self._program(fix, setup, self._answers_for(fix, setup))
        factors, steps = _FEW_FACTORS, _FEW_STEPS
        if self.is_heavy:
            factors, steps = _HEAVY_FACTORS, _HEAVY_STEPS
        ends = [
            run_trial(*batch, fix.scales._replace(rate=float(factor)), most_steps=steps)[0]
            for factor in factors
        ]
        return factors, np.array([trial.loss[-1] for trial in ends])

    def _program(
        self, fix: Fix, setup: Setup, answers: Answers
    ) -> Callable[..., tuple[Trial, Any]]:
        # Fixes that hold the same edits, loss and optimizer share one compiled program.
        same = (
            tuple(sorted((number, id(edit)) for number, edit in fix.edits.items())),
            id(fix.output), id(fix.loss), id(fix.optimizer), id(fix.targets),
        )  # fmt: skip
        if same not in self._programs:
            step = self._step if fix is AS_IT_IS else None
            if step is None:
                step = TrainingStep(setup.forward, setup.loss, setup.optimizer, light=self._light)
            trial = make_trial(
                step, num_steps=self.num_steps, answers=answers, horizon=self.horizon
            )
            # The fix is kept, so that no other object takes its place in memory.
            self._programs[same] = functools.partial(_run_with, trial, fix)
        return self._programs[same]

    def _answers_for(self, fix: Fix, setup: Setup) -> Answers:
        if fix.loss is None and fix.targets is None and fix.output is None:
            return self.exam.answers
        same = id(fix.loss), id(fix.targets), id(fix.output)
        if same not in self._answers:
            outputs = setup.forward(setup.params, setup.inputs, setup.key)
            tail, z = None, outputs
            ending = self.exam.ending
            if fix.output is not None:
                tail = fix.output.after
                z = ending.z
                if fix.output.units:
                    z = jnp.zeros((*ending.z.shape[:-1], fix.output.units), ending.z.dtype)
            elif ending.tail is not None:
                tail, z = ending.tail, ending.z
            probe = LossProbe(setup.loss, setup.targets, outputs.dtype)
            self._answers[same] = best_answers(probe, z, outputs, tail, self.exam.tied)
        return self._answers[same]


class _Elsewhere:
    """The greatest share that parameters have learnt of another batch, while they were trained.

    What is learnt by heart at last spoils what was learnt before, which more examples would keep.

    Attributes:
      best: of what there is to learn in that batch, at most 1; negative infinity before any.
    """

    def __init__(self, setup: Setup, inputs: Any, targets: Any, answers: Answers) -> None:
        @compile_quickly
        def loss_of(params: Any, inputs: Any, targets: Any) -> Array:
            return setup.loss(setup.forward(params, inputs, setup.key), targets)

        self._loss_of, self._batch, self._answers = loss_of, (inputs, targets), answers
        self.best = -math.inf

    def __call__(self, params: Any) -> None:
        """Look at parameters."""
        answers = self._answers
        loss = float(self._loss_of(params, *self._batch))
        share = (answers.constant - loss) / max(answers.to_learn, 1e-12)
        if math.isfinite(share):
            self.best = max(self.best, min(share, 1.0))


def _run_with(
    trial: Callable[..., tuple[Trial, Any]], fix: Fix, *arguments: Any, **options: Any
) -> tuple[Trial, Any]:
    del fix
    return trial(*arguments, **options)


def step_as_it_is(case: Case, optimizer: optax.GradientTransformation) -> TrainingStep:
    """Return a step of a network without any fix, to be built while the network is measured."""
    forward = _narrowed(case.network.apply, case.params)
    return TrainingStep(forward, case.loss, optimizer, light=is_light(case))


def is_light(case: Case) -> bool:
    """Tell whether to build a step's program takes longer than to run it."""
    program = case.outline.program
    scans = any(step.name == "scan" or step.loop is not None for step in program.steps)
    num_params = sum(jnp.size(leaf) for leaf in jax.tree.leaves(case.params))
    is_cheap = affordable_steps(program, case.params) >= HORIZON
    return is_cheap and not scans and num_params <= _LIGHT


def affordable_steps(program: Program, params: Any) -> int:
    """Return how many training steps a trial has: all of the horizon for a small network."""
    affordable = int(_AFFORDABLE / _step_cost(program, params)) // 10 * 10
    steps = int(np.clip(affordable, NUM_STEPS, HORIZON))
    # What is nearly the whole is the whole: nothing has to be guessed then.
    return HORIZON if 2 * steps >= HORIZON else steps


def _step_cost(program: Program, params: Any) -> float:
    """The work of one training step, in multiply-adds."""
    cost = _OVERHEAD * 10 + _UPDATE * sum(math.prod(jnp.shape(x)) for x in jax.tree.leaves(params))
    for step in program.steps:
        times = 1 if step.loop is None else program.loops[step.loop].length
        cost += times * _cost_of(step)
    return cost


def _cost_of(step: Step) -> float:
    """The work of one step of a program, forward and back."""
    cost = _OVERHEAD * 0.1
    if step.linear is None:
        lengths = int(step.params.get("length", 1)) if step.name == "scan" else 0
        return cost + cost * lengths * 30
    operands: Sequence[Any] = [var.aval for var in step.linear.invars[:2]]
    result: Any = step.linear.outvars[0].aval
    entries = float(np.prod(result.shape))
    if step.linear.primitive.name == "dot_general":
        (contracted, _), _ = step.linear.params["dimension_numbers"]
        return cost + entries * float(np.prod([operands[0].shape[axis] for axis in contracted]))
    out = step.linear.params["dimension_numbers"].rhs_spec[0]
    kernel = float(np.prod(operands[1].shape)) / operands[1].shape[out]
    return cost + _CONVOLUTION * kernel * entries


def _new_head(exam: Exam, units: int) -> dict[str, Array]:
    """Draw a last layer of another width, by Glorot's rule."""
    kernel = exam.outline.layers[-1].leaf.take(jax.tree.leaves(exam.params))
    shape = (kernel.shape[0], units)
    drawn = jax.nn.initializers.glorot_uniform()(jax.random.key(0), shape, jnp.float32)
    return {"kernel": drawn, "bias": jnp.zeros(units)}


def _narrowed(forward: Forward, like: Any) -> Forward:
    """A network that takes wider parameters than its own, and calculates as before."""

    def narrowed(params: Any, inputs: Any, key: Array | None) -> Array:
        params = jax.tree.map(lambda wide, own: wide.astype(own.dtype), params, like)
        return forward(params, inputs, key)

    return narrowed
