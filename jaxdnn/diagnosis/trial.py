"""Optimizer steps on a copy of the parameters, on the one batch; their score and verdict.

What counts is what the network learns by telling inputs apart. A network that gives all inputs the
same answer can still lower its loss, toward that of the best constant; so each loss is compared
with that of the best constant answer, and with what the loss can come down to at all (see
`jaxdnn.diagnosis.answers`):

    share = (best constant - loss) / (best constant - best reachable)
    T     = 2 x the steps after which the share stays above one half

A trial is as long as the horizon where that is cheap. A network too large for it gets fewer steps,
and T is estimated. Outputs that are random and large make the share negative, though what is learnt
may lie in them already; so their deviations from the mean may be made smaller:

    gain  = constant - min over t <= 1 of loss(mean + t (outputs - mean)), at least 0
    T     = steps until all is learnt = steps x (best constant - best reachable)
            / (gain at the end - gain at the start)
    score = horizon / (horizon + T (1 + log(loss at the start / best constant) / 4))

The score is 1/2 where the network would just come all the way within the horizon, 1/3 where it
would come half the way. What it learns by heart of one batch counts, for that is what a gradient
that arrives can do; what it gains over its own start does not where T is estimated, for large
random outputs come down without anything being learnt, and the batch is then learnt by heart with
the help of large weights: hence the last factor. It and the two bounds were set on 96 networks like
those of experiments/benchmarks/will_it_train.py, none of them among those it reports; factors from
1/4 to 1 rank as well. A network whose gradient vanishes stays at the best constant, and one whose
gradient explodes turns non-finite or moves away: both score 0. A loss that only comes down to the
best constant's is no learning: at most "at risk", and so is one that still gains at the horizon.
The optimizer's own scaling, its epsilon and the precision enter as they do in training.

What the optimizer makes of the first gradient is measured layer by layer:

    relative step = RMS(update) / RMS(W)
    shortfall     = RMS(update of a gradient of length 1) / RMS(update)

Plain SGD takes the gradient as it is. Adam and its like divide by the gradient's own size, so that
only ratios count, until it comes near their epsilon: from there on the steps shrink with it. So the
shortfall is 1 where an optimizer ignores the gradient's scale, and grows below epsilon.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jaxtyping import Float

from jaxdnn import xla
from jaxdnn.diagnosis.answers import Answers
from jaxdnn.diagnosis.measure import Exam, host_rms
from jaxdnn.diagnosis.model import Forward, Loss
from jaxdnn.diagnosis.replay import compile_quickly
from jaxdnn.errors import InputError

Verdict = Literal["trains", "at risk", "will not train"]
# Steps that a training run is taken to have.
HORIZON = 1000
NUM_STEPS = 60
# Steps after which a change may be found to promise nothing.
BRIEF = 10
# Fewer examples are learnt by heart whatever they tell.
FEW = 16
# The most that a network scores that learns by heart what is not meant; and the share that it has
# to have learnt of rows that it does not see in training.
BY_HEART, HOLDS = 0.3, 0.25
# The least scores of these verdicts.
TRAINS = 1 / 3
AT_RISK = 0.1
# What the deviations of the logits from their mean are multiplied by.
SHRINKING = (0.5, 0.25, 0.125)
# Steps between readings of the loss; each waits for the device.
_CHECKED = 10
# A loss that starts so many times above the best constant may first have to come down.
_FAR = 2.0
# A loss of so many times the best constant's is down at it.
_THERE = 1.05
# Nothing more is waited for once so much of what there is to learn is learnt.
_LEARNT = 0.95
# Scores with which a short trial is decided; and with which already after half of its steps.
_CLEAR, _HOPELESS = 0.6, 0.02
_CERTAIN, _SOON = 0.8, NUM_STEPS // 2
# Steps in which a change must have gained something.
_PATIENCE = 300
# A share that grows by so much over the last half of the horizon is still growing.
_GROWS = 0.02
_START_WEIGHT = 0.25
_HALF = 0.5
# A loss that only comes down to the best constant's is at risk at most.
_MOST_COMING_DOWN = 0.3
# An optimizer is relative if gradients of these lengths, over all parameters, give the same step.
# They lie on this side of any gradient clipping.
_LENGTHS = (1e-3, 1.0)
_RELATIVE = 0.5
OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": optax.adam,
    "adamw": optax.adamw,
    "rmsprop": optax.rmsprop,
}


def parse_optimizer(spec: str | optax.GradientTransformation) -> optax.GradientTransformation:
    """Return an optimizer.

    Args:
      spec: `name:learning rate` with a name of `OPTIMIZERS`, or an optax transformation.

    Raises:
      InputError: the name is unknown or the rate no positive number.
    """
    if isinstance(spec, optax.GradientTransformation):
        return spec
    name, _, rate = str(spec).partition(":")
    try:
        value = float(rate)
    except ValueError:
        value = 0.0
    if name not in OPTIMIZERS or not 0 < value < float("inf"):
        known = ", ".join(OPTIMIZERS)
        raise InputError(
            f"optimizer {spec!r} came; give name:learning_rate with one of {known}, such as sgd:0.1"
        )
    return OPTIMIZERS[name](value)


class Scales(NamedTuple):
    """Factors to try, on top of what the optimizer and the loss do.

    Attributes:
      rate: on the updates, as a learning rate.
      gradient: on the gradient, as a factor on the loss.
      loss: on the loss on its way back alone: the gradient is divided by it again, in float32.
    """

    rate: float = 1.0
    gradient: float = 1.0
    loss: float = 1.0


class Trial(NamedTuple):
    """What happened, step by step.

    Attributes:
      loss: the loss before each step, (step,).
      shrunk_loss: the least loss that making each step's outputs more alike gives, (step,).
      constant_loss: the loss of each step's mean outputs, given for every example, (step,).
    """

    loss: Array | np.ndarray
    shrunk_loss: Array | np.ndarray
    constant_loss: Array | np.ndarray


class TrainingStep:
    """One step of a trial as a program that is compiled when it is first needed, or before."""

    def __init__(
        self,
        forward: Forward,
        loss: Loss,
        optimizer: optax.GradientTransformation,
        *,
        light: bool = False,
    ) -> None:
        """Close over what is trained.

        Args:
          forward: `(params, inputs, key) -> logits`.
          loss: `(logits, targets) -> scalar`.
          optimizer: starts from a state of its own at every trial.
          light: whether a step costs so little that building the program costs more than running
            it.
        """
        step = _make_step(forward, loss, optimizer)

        def advance(*arguments: Any) -> tuple[Any, Array]:
            carry, losses = step(*arguments)
            return carry, jnp.stack(losses)

        options: dict[str, Any] = {"compiler_options": xla.QUICK} if light else {}
        self._init = compile_quickly(optimizer.init)
        self._advance = jax.jit(advance, donate_argnums=0, **options)
        self._built: dict[Any, Callable[..., tuple[Any, Array]]] = {}

    def start(self, params: Any) -> Any:
        """Return (params, state of the optimizer), of which each step makes use for the next."""
        return jax.tree.map(jnp.copy, (params, self._init(params)))

    def build(self, *batch: Any) -> None:
        """Compile for (params, inputs, targets, key) of these shapes."""
        params, *rest = batch
        lowered = self._advance.lower((params, self._init(params)), 0, *rest, Scales())
        self._built[_kinds(batch)] = lowered.compile()

    def of(self, *batch: Any) -> Callable[..., tuple[Any, Array]]:
        """Return `(carry, index, inputs, targets, key, scales) -> (carry, losses)` for these."""
        return self._built.get(_kinds(batch), self._advance)


def _kinds(batch: Any) -> Any:
    leaves, structure = jax.tree.flatten(batch)
    return structure, tuple(jax.typeof(leaf) for leaf in leaves)


def make_trial(
    step: TrainingStep,
    *,
    num_steps: int,
    answers: Answers | None = None,
    horizon: int = HORIZON,
) -> Callable[..., tuple[Trial, Any]]:
    """Return `(params, inputs, targets, key, scales, most_steps, ...) -> (Trial, params)`.

    `impatient` ends a trial that has gained nothing, `deadline` one at a time of the clock, and
    `worth` one whose first `BRIEF` steps promise nothing; `look` is shown the parameters after 10,
    20, 40, 80, ... steps. The arrays of the trial are on the host; the parameters are those at its
    end.

    Each step is a call: XLA's CPU takes 20 times as long for the gradient of a convolution inside
    a loop of its own.

    Args:
      step: what is taken.
      num_steps: at least 1.
      answers: how low the loss can come; a trial that has come there ends early. So does one that
        is too short to come there, once it is clearly on the way, or has gained nothing.
      horizon: steps that the training may take.
    """
    enough = -math.inf
    if answers is not None:
        enough = answers.constant - _LEARNT * answers.to_learn

    def decided(rows: Sequence[Any], impatient: bool) -> bool:
        if answers is None or num_steps >= horizon:
            return False
        score = score_trial(Trial(*np.array(rows).T), answers, horizon=horizon)
        if len(rows) <= NUM_STEPS:
            return score > _CERTAIN
        return score > _CLEAR or (impatient and score < _HOPELESS)

    def gained(rows: Sequence[Any]) -> bool:
        return answers is None or shares(Trial(*np.array(rows).T), answers)[-1] > _GROWS

    def trial(
        params: Any,
        inputs: Any,
        targets: Any,
        key: Array,
        scales: Scales | None = None,
        most_steps: int = num_steps,
        impatient: bool = False,
        deadline: float = math.inf,
        worth: Callable[[Trial], bool] | None = None,
        look: Callable[[Any], None] | None = None,
    ) -> tuple[Trial, Any]:
        advance = step.of(params, inputs, targets, key)
        carry, rows, known = step.start(params), [], 0
        next_look = _CHECKED
        for index in range(most_steps + 1):
            if look is not None and index == next_look:
                look(carry[0])
                next_look *= 2
            carry, losses = advance(carry, index, inputs, targets, key, scales or Scales())
            rows.append(losses)
            if index % _CHECKED == 0 and not np.isfinite(np.asarray(losses)[0]):
                # Whatever comes, the score is 0.
                rows += [losses] * (most_steps - index)
                break
            if index % _CHECKED == 0 and index and time.monotonic() > deadline:
                break
            if index == BRIEF and worth is not None and not worth(_on_host(rows)):
                break
            if index == _SOON and decided(jax.device_get(rows), impatient):
                break
            if index % _CHECKED == 0 and index >= NUM_STEPS:
                rows[known:], known = jax.device_get(rows[known:]), len(rows)
                recent = [float(row[0]) for row in rows[-NUM_STEPS:]]
                if np.mean(recent[-_CHECKED:]) < enough or decided(rows, impatient):
                    break
                if np.ptp(recent) == 0 or (impatient and index >= _PATIENCE and not gained(rows)):
                    # Nothing moves, and nothing will.
                    rows += [losses] * (most_steps - index)
                    break
        return _on_host(rows), carry[0]

    return trial


def _on_host(rows: Sequence[Any]) -> Trial:
    return Trial(*np.array(jax.device_get(rows)).T)


def make_scanned_trial(
    forward: Forward, loss: Loss, optimizer: optax.GradientTransformation, *, num_steps: int
) -> Callable[..., Trial]:
    """Return `(params, inputs, targets, key) -> Trial` as one program, for `vmap`.

    Arguments as those of `make_trial`.
    """
    step = _make_step(forward, loss, optimizer)

    def trial(params: Any, inputs: Any, targets: Any, key: Array) -> Trial:
        start, indices = (params, optimizer.init(params)), jnp.arange(num_steps + 1)
        return Trial(
            *lax.scan(lambda c, i: step(c, i, inputs, targets, key, Scales()), start, indices)[1]
        )

    return trial


def _make_step(
    forward: Forward, loss: Loss, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[Any, tuple[Array, ...]]]:
    """One step; the carry is (params, state of the optimizer)."""
    # Called five times, and traced and lowered once.
    loss = jax.jit(loss)

    def step(
        carry: Any, index: Array | int, inputs: Any, targets: Any, key: Array, scales: Scales
    ) -> Any:
        params, state = carry

        def objective(params: Any) -> tuple[Array, tuple[Array, ...]]:
            logits = forward(params, inputs, jax.random.fold_in(key, index))
            value, logits = loss(logits, targets), lax.stop_gradient(logits)
            constant = jnp.broadcast_to(logits.mean(0, keepdims=True), logits.shape)
            shrunk = [loss(_times(t, logits - constant) + constant, targets) for t in SHRINKING]
            least = jnp.stack([value, *shrunk]).min()
            return _times(scales.loss, value), (value, least, loss(constant, targets))

        grads, losses = jax.grad(objective, has_aux=True)(params)
        grads = jax.tree.map(lambda grad: _times(scales.gradient / scales.loss, grad), grads)
        updates, state = optimizer.update(grads, state, params)
        updates = jax.tree.map(lambda update: _times(scales.rate, update), updates)
        return (optax.apply_updates(params, updates), state), losses

    return step


def _times(factor: float, x: Array) -> Array:
    return (factor * x.astype(jnp.promote_types(x.dtype, jnp.float32))).astype(x.dtype)


# Factors on the learning rate that the curve shows, and the steps that it takes with each.
# Dense where rates are; above, what a tiny factor on the loss asks for.
_FACTORS = np.concatenate([np.logspace(-6, 4, 26), np.logspace(5.5, 13, 6)])
_CURVE_STEPS = 20


def rate_curve(
    forward: Forward,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    params: Any,
    inputs: Any,
    targets: Any,
    key: Array,
) -> tuple[np.ndarray, np.ndarray]:
    """Return factors on the learning rate, (rate,), and the loss after some steps with each.

    All rates are tried side by side, in one program.

    Args:
      forward: `(params, inputs, key) -> outputs`.
      loss: `(outputs, targets) -> scalar`.
      optimizer: the optax transformation whose updates are scaled.
      params: where each training starts.
      inputs: of the batch.
      targets: of the batch.
      key: decides masks of dropout.
    """
    step = _make_step(forward, loss, optimizer)

    @compile_quickly
    @functools.partial(jax.vmap, in_axes=(0, None, None, None))
    def curve(factor: Any, params: Any, inputs: Any, targets: Any) -> Array:
        def body(carry: Any, index: Array) -> Any:
            return step(carry, index, inputs, targets, key, Scales(rate=factor))

        start = (params, optimizer.init(params))
        (final, _), (losses, _, _) = lax.scan(body, start, jnp.arange(_CURVE_STEPS))
        last = loss(forward(final, inputs, key), targets)
        return jnp.where(jnp.isfinite(losses).all(), last, jnp.nan)

    return _FACTORS, np.asarray(curve(jnp.array(_FACTORS), params, inputs, targets))


def score_trial(trial: Trial, answers: Answers, *, horizon: int = HORIZON) -> float:
    """Return the score in [0, 1]; 0 where anything turned non-finite.

    Args:
      trial: with arrays on the host.
      answers: how low the loss can come.
      horizon: steps that the training may take.
    """
    loss, shrunk, constant = (np.asarray(x, np.float64) for x in trial)
    if not (np.isfinite(loss).all() and np.isfinite(constant).all()):
        return 0.0
    if answers.from_start:
        constant = np.full_like(constant, answers.constant)
    to_learn = max(answers.to_learn, 1e-12)
    share = shares(trial, answers)
    half = _half_learnt(share)
    num_steps = len(loss) - 1
    if half is not None and (num_steps >= horizon or share[-1] >= _LEARNT):
        return horizon / (horizon + 2 * half)
    if num_steps >= horizon:
        learnt = max(float(share[-1]), 0.0)
        score = learnt / (1 + learnt)
        return max(score, AT_RISK) if still_grows(share) else score
    late = max(1, len(loss) // 4)
    gain = np.maximum(np.minimum(constant, answers.constant) - shrunk, 0)
    learnt = float(gain[-late:].mean() - gain[0])
    height = (loss - answers.constant) / to_learn + 1
    if learnt > 0:
        steps, most = num_steps * to_learn / learnt, 1.0
    else:
        steps, most = _steps_down(height, late), _MOST_COMING_DOWN
    far = max(float(np.log(max(height[0], 1e-12))), 0.0)
    return min(horizon / (horizon + steps * (1 + _START_WEIGHT * far)), most)


def shares(trial: Trial, answers: Answers) -> Float[np.ndarray, " step"]:
    """Return how much of what there is to learn each step has, smoothed; at most 1."""
    share = (answers.constant - np.asarray(trial.loss, np.float64)) / max(answers.to_learn, 1e-12)
    window = max(1, min(len(share) // 20, _CHECKED))
    ends = np.convolve(share, np.ones(window) / window, mode="valid")
    return np.concatenate([share[: window - 1], ends])


def still_grows(share: Float[np.ndarray, " step"]) -> bool:
    """Tell whether more is learnt in the second half of a trial, after little in the first."""
    return bool(share[-1] > 0 and share[-1] - share[len(share) // 2] > _GROWS)


def _half_learnt(share: Float[np.ndarray, " step"]) -> int | None:
    """The step after which half is learnt, and still is at the end; None where it is not."""
    if share[-1] < _HALF:
        return None
    return int(np.argmax(share >= _HALF))


def _steps_down(ratio: Float[np.ndarray, " step"], late: int) -> float:
    """Steps until a loss of `ratio` times the best constant's is down there."""
    height = np.log(np.maximum(ratio, 1e-12))
    pace = (height[:late].mean() - height[-late:].mean()) / (len(height) - late)
    arrived = bool((ratio[len(ratio) // 2 :] < _THERE).all())
    if ratio[0] < _FAR or pace <= 0 or arrived:
        return np.inf
    return len(height) - 1 + max(float(height[-late:].mean()), 0.0) / pace


def verdict_of(value: float) -> Verdict:
    """Return the verdict of a score."""
    if value >= TRAINS:
        return "trains"
    return "at risk" if value >= AT_RISK else "will not train"


class FirstStep(NamedTuple):
    """The optimizer's first update, by layer.

    Attributes:
      decays: whether a parameter moves where there is no gradient at all.
      relative: RMS of the update over that of the kernel; NaN for a kernel of zeros.
      lost: share of the kernel's entries that the update should change, and rounding does not.
      shortfall: how many times smaller the update is than for a gradient of length 1; NaN where the
        optimizer is not relative.
    """

    decays: bool
    relative: tuple[float, ...]
    lost: tuple[float, ...]
    shortfall: tuple[float, ...]

    @property
    def greatest(self) -> int:
        """The layer that moves furthest for its size; 0 where none moves."""
        sizes = [0.0, *self.relative]
        return int(np.nanargmax(sizes)) - 1 if np.nanmax(sizes) > 0 else 0


def take_first_step(exam: Exam, optimizer: optax.GradientTransformation) -> FirstStep:
    """Return what the optimizer makes of the gradient that was measured."""
    length = math.sqrt(sum(_square(grad) for grad in jax.tree.leaves(exam.grads)))

    @compile_quickly
    def updates_of(factor: jax.Array | float, grads: Any, params: Any) -> Any:
        grads = jax.tree.map(lambda g, p: (factor * _wide(g)).astype(p.dtype), grads, params)
        return optimizer.update(grads, optimizer.init(params), params)[0]

    params, grads = jax.tree.map(jnp.asarray, exam.params), exam.grads
    kernels = _kernels(exam, params)
    updates = _kernels(exam, updates_of(1.0, grads, params))
    still = jax.device_get(updates_of(1.0, jax.tree.map(np.zeros_like, grads), params))
    unit = 1 / length if 0 < length < math.inf else math.nan
    short, long = (_kernels(exam, updates_of(size * unit, grads, params)) for size in _LENGTHS)
    return FirstStep(
        any(np.any(leaf != 0) for leaf in jax.tree.leaves(still)),
        tuple(_ratio(host_rms(u), host_rms(w)) for u, w in zip(updates, kernels, strict=True)),
        tuple(_lost(u, w) for u, w in zip(updates, kernels, strict=True)),
        tuple(
            _ratio(host_rms(large), host_rms(own)) if _is_relative(small, large) else math.nan
            for own, small, large in zip(updates, short, long, strict=True)
        ),
    )


def _kernels(exam: Exam, tree: Any) -> list[np.ndarray]:
    """What a tree like the parameters holds for each layer's kernel."""
    leaves = jax.tree.leaves(jax.device_get(tree))
    return [layer.leaf.take(leaves) for layer in exam.graph.layers]


def _lost(update: np.ndarray, kernel: np.ndarray) -> float:
    moved = np.asarray(optax.apply_updates(kernel, update)) != kernel
    asked = update != 0
    return float(1 - moved[asked].mean()) if asked.any() else 0.0


def _is_relative(short: np.ndarray, long: np.ndarray) -> bool:
    growth = _ratio(host_rms(long), host_rms(short))
    return growth < (_LENGTHS[1] / _LENGTHS[0]) ** _RELATIVE


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else math.nan


def _square(x: Any) -> float:
    return float(np.sum(np.square(np.asarray(x, np.float64))))


def _wide(x: Any) -> jax.Array:
    return jnp.asarray(x).astype(jnp.promote_types(jnp.result_type(x), jnp.float32))
