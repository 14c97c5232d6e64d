"""The family of small networks that are judged at their start and then trained, side by side."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from jaxdnn.activations import make_activation
from jaxdnn.config import DataOptions
from jaxdnn.data import load, normalise_images
from jaxdnn.diagnosis import Scales, Trial, make_scanned_trial, parse_optimizer
from jaxdnn.initializers import make_initializer
from jaxdnn.losses import cross_entropy
from jaxdnn.propagation import normalise
from jaxdnn.race import LEARNED, guess_loss

ACTIVATIONS = ("sigmoid", "tanh", "relu", "selu", "gelu", "softplus")
INITIALIZERS = ("normal", "glorot_normal", "lecun_normal", "he_normal", "orthogonal")
DEPTHS = (5, 11, 26, 60)
STYLES = ("none", "batch", "layer", "residual")
OPTIMIZERS = ("sgd:0.1", "adam:0.001")
WIDTH = 64

_PHIS = [make_activation(name) for name in ACTIVATIONS]
BATCH_SIZE = 128
# Mean loss over so many last steps decides.
NUM_LAST = 30
# Rule -> (gradient norm of every kernel, share of zero entries) -> will it fail?
RULES: dict[str, Callable[[np.ndarray, float], bool]] = {
    "first over last gradient < 1e-3, first < 1e-4": lambda norms, zeros: bool(
        norms[0] < 1e-3 * norms[-1] and norms[0] < 1e-4
    ),
    "any gradient < 1e-7 or > 1e4": lambda norms, zeros: bool(
        (norms < 1e-7).any() or not (norms <= 1e4).all()
    ),
    "70 % of the gradient zero": lambda norms, zeros: zeros >= 0.7,
}


@dataclasses.dataclass(frozen=True)
class Member:
    """One network of the family.

    Attributes:
      activation: what follows the hidden layers, one of `ACTIVATIONS`.
      initializer: how all kernels are drawn, one of `INITIALIZERS`.
      depth: kernels, the output's included.
      style: a norm of the pre-activations, or `residual` for shortcuts without norm.
      optimizer: what trains it.
      seed: decides its weights and the order of the images.
    """

    activation: str
    initializer: str
    depth: int
    style: str
    optimizer: str
    seed: int

    @property
    def program(self) -> tuple[int, str]:
        """What decides the programs that judge and train it; the rest is looked up inside."""
        return self.depth, self.style


def draw_groups(num: int, seed: int) -> list[list[Member]]:
    """Draw groups of members that differ in their initializer and seed alone, all of them.

    Args:
      num: members, rounded up to whole groups.
      seed: decides which kinds are drawn; each member has a seed of its own.
    """
    kinds = list(itertools.product(ACTIVATIONS, DEPTHS, STYLES, OPTIMIZERS))
    size = len(INITIALIZERS)
    picks = np.random.default_rng(seed).permutation(len(kinds))[: -(-num // size)]
    groups = [
        [
            Member(phi, initializer, depth, style, optimizer, size * (len(kinds) * seed + pick) + i)
            for i, initializer in enumerate(INITIALIZERS)
        ]
        for pick in picks.tolist()
        for phi, depth, style, optimizer in [kinds[pick]]
    ]
    return sorted(groups, key=lambda group: (group[0].program, group[0].seed))


def another(member: Member, rng: np.random.Generator) -> Member:
    """Return the member with one random change of initializer, activation or norm."""

    def other(choices: Sequence[str], own: str) -> str:
        return str(rng.choice([choice for choice in choices if choice != own]))

    changes: list[Callable[[], Member]] = [
        lambda: dataclasses.replace(member, initializer=other(INITIALIZERS, member.initializer)),
        lambda: dataclasses.replace(member, activation=other(ACTIVATIONS, member.activation)),
        lambda: dataclasses.replace(member, style=other(STYLES, member.style)),
    ]
    return changes[rng.integers(len(changes))]()


def draw_params(member: Member, num_inputs: int, num_classes: int) -> dict[str, Array]:
    """Draw its kernels."""
    initializer = make_initializer(member.initializer)
    keys = jax.random.split(jax.random.key(member.seed), member.depth)
    hidden = [initializer(key, (WIDTH, WIDTH)) for key in keys[1:-1]]
    return {
        "first": initializer(keys[0], (num_inputs, WIDTH)),
        "hidden": jnp.stack(hidden),
        "last": initializer(keys[-1], (WIDTH, num_classes)),
    }


class Choice(NamedTuple):
    """What is looked up inside a compiled program, as scalar indices.

    Attributes:
      activation: into `ACTIVATIONS`.
      optimizer: into `OPTIMIZERS`.
    """

    activation: Array
    optimizer: Array


def choice_of(member: Member) -> Choice:
    """Return the indices of a member."""
    return Choice(
        jnp.int32(ACTIVATIONS.index(member.activation)),
        jnp.int32(OPTIMIZERS.index(member.optimizer)),
    )


def chosen_optimizer(which: Array) -> optax.GradientTransformation:
    """Return the optimizer of an index that is known only when the program runs."""
    chains = [parse_optimizer(name) for name in OPTIMIZERS]

    def init(params: Any) -> Any:
        return tuple(chain.init(params) for chain in chains)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        def use(index: int) -> Any:
            new, own = chains[index].update(updates, state[index], params)
            return new, (*state[:index], own, *state[index + 1 :])

        return lax.switch(which, [functools.partial(use, i) for i in range(len(chains))])

    return optax.GradientTransformation(init, update)


def make_forward(style: str) -> Callable[[Any, Array, Choice], Array]:
    """Return `(params, inputs, choice) -> logits`."""
    norm = "none" if style == "residual" else style

    def forward(params: Any, inputs: Array, choice: Choice) -> Array:
        return _run(params, inputs, norm, style, lambda z: lax.switch(choice.activation, _PHIS, z))

    return forward


def make_model(member: Member) -> Callable[[Any, Array], Array]:
    """Return `(params, inputs) -> logits` of one member, as a user would write it."""
    norm = "none" if member.style == "residual" else member.style
    phi = make_activation(member.activation)
    return lambda params, inputs: _run(params, inputs, norm, member.style, phi)


def _run(params: Any, inputs: Array, norm: Any, style: str, phi: Callable[[Array], Array]) -> Array:
    def layer(h: Array, kernel: Array) -> tuple[Array, None]:
        a = phi(normalise(h @ kernel, norm))
        return (h + a if style == "residual" else a), None

    h, _ = lax.scan(layer, phi(normalise(inputs @ params["first"], norm)), params["hidden"])
    return h @ params["last"]


def make_train(
    forward: Callable[..., Array],
    num_steps: int,
    *,
    loss: Callable[[Array, Array], Array] | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> Callable[..., Array]:
    """Return the compiled `(params, choice, images, labels, key, scales) -> final loss`.

    Args:
      forward: `(params, inputs, choice) -> logits`.
      num_steps: the budget.
      loss: `(outputs, labels) -> scalar`; None for the mean cross-entropy of logits.
      optimizer: in place of the one that is chosen; None for that.
    """
    loss_of = loss or mean_loss

    @jax.jit
    def train(
        params: Any,
        choice: Choice,
        images: Array,
        labels: Array,
        key: Array,
        scales: Scales | None = None,
    ) -> Array:
        scales = Scales() if scales is None else scales
        chain = optax.chain(
            optax.scale(scales.gradient),
            optimizer or chosen_optimizer(choice.optimizer),
            optax.scale(scales.rate),
        )

        def step(carry: Any, index: Array) -> Any:
            params, state = carry
            picks = jax.random.randint(
                jax.random.fold_in(key, index), (BATCH_SIZE,), 0, len(labels)
            )
            loss, grads = jax.value_and_grad(
                lambda params: loss_of(forward(params, images[picks], choice), labels[picks])
            )(params)
            updates, state = chain.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        _, losses = lax.scan(step, (params, chain.init(params)), jnp.arange(num_steps))
        return losses[-NUM_LAST:].mean()

    return train


def mean_loss(logits: Array, labels: Array) -> Array:
    """Return the mean cross-entropy."""
    return jnp.mean(cross_entropy(logits, labels))


class Judgement(NamedTuple):
    """What is measured of a network before it is trained.

    Attributes:
      trial: a short training on the first batch.
      norms: Euclidean norm of every kernel's gradient, the first layer's first.
      zeros: share of the gradient's entries that are zero.
    """

    trial: Trial
    norms: Array
    zeros: Array


def make_judge(style: str, num_steps: int) -> Callable[..., Judgement]:
    """Return `(params, choice, inputs, labels) -> Judgement`.

    Args:
      style: one of `STYLES`.
      num_steps: steps of the trial.
    """
    forward = make_forward(style)

    def judge(params: Any, choice: Choice, inputs: Array, labels: Array) -> Judgement:
        trial = make_scanned_trial(
            lambda params, inputs, _: forward(params, inputs, choice),
            mean_loss,
            chosen_optimizer(choice.optimizer),
            num_steps=num_steps,
        )(params, inputs, labels, jax.random.key(0))
        grads = jax.grad(lambda params: mean_loss(forward(params, inputs, choice), labels))(params)
        return Judgement(trial, *_norms_and_zeros(grads))

    return judge


def report(judgement: Judgement) -> dict[str, Any]:
    """Return a judgement on the host as plain numbers, with the word of every rule."""
    norms, zeros = np.asarray(judgement.norms), float(judgement.zeros)
    fails = {name: rule(norms, zeros) for name, rule in RULES.items()}
    steps = judgement.trial._asdict()
    return {"rules": fails} | {name: np.asarray(x).tolist() for name, x in steps.items()}


def _norms_and_zeros(grads: Any) -> tuple[Array, Array]:
    """Return the gradient norm of every kernel, and the share of zero entries."""
    hidden = jnp.sqrt(jnp.sum(grads["hidden"] ** 2, axis=(1, 2)))
    first, last = (jnp.linalg.norm(grads[name])[None] for name in ("first", "last"))
    entries = jnp.concatenate([leaf.ravel() for leaf in grads.values()])
    return jnp.concatenate([first, hidden, last]), jnp.mean(entries == 0)


class Task(NamedTuple):
    """The data, and what counts as learned.

    Attributes:
      images: (example, pixel), normalised.
      labels: (example,).
      num_classes: labels are in [0, num_classes).
      bound: final loss below which a network counts as one that learned.
    """

    images: jax.Array
    labels: jax.Array
    num_classes: int
    bound: float

    @property
    def first_batch(self) -> tuple[jax.Array, jax.Array]:
        """Images and labels that a network is judged on."""
        return self.images[:BATCH_SIZE], self.labels[:BATCH_SIZE]


def load_task() -> Task:
    """Load the silhouettes, all ten classes, flat and normalised."""
    dataset = load(DataOptions(positive=()), seed=0)
    images = normalise_images(jnp.asarray(dataset.train.in_memory()), dataset.train.pixel_stats())
    labels = dataset.train.labels
    return Task(
        images.reshape(len(labels), -1),
        jnp.asarray(labels),
        len(dataset.class_names),
        LEARNED * guess_loss(np.asarray(labels)),
    )


def start(member: Member, task: Task) -> dict[str, jax.Array]:
    """Return the parameters of a member before training."""
    return draw_params(member, task.images.shape[1], task.num_classes)


def make_judge_and_train(
    task: Task, num_steps: int
) -> Callable[[Sequence[Member]], Iterator[dict[str, Any]]]:
    """Return what judges members at their start and then trains them, side by side.

    They have one program, activation and optimizer.
    """

    # The groups come in the order of their programs.
    @functools.lru_cache(maxsize=1)
    def programs(program: tuple[int, str]) -> tuple[Callable[..., Any], Callable[..., Any]]:
        jax.clear_caches()
        judge = make_judge(program[1], num_steps)
        train = make_train(make_forward(program[1]), num_steps)
        return (
            jax.jit(jax.vmap(judge, in_axes=(0, None, None, None))),
            jax.jit(jax.vmap(train, in_axes=(0, None, None, None, 0))),
        )

    def judge_and_train(members: Sequence[Member]) -> Iterator[dict[str, Any]]:
        judge, train = programs(members[0].program)
        choice = choice_of(members[0])
        params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(start(m, task) for m in members))
        said = jax.device_get(judge(params, choice, *task.first_batch))
        keys = jax.vmap(jax.random.key)(jnp.array([member.seed for member in members]))
        losses = train(params, choice, task.images, task.labels, keys)
        for index, loss in enumerate(losses.tolist()):
            own = jax.tree.map(lambda leaf, index=index: leaf[index], said)
            yield report(own) | {
                "guess_loss": guess_loss(np.asarray(task.first_batch[1])),
                "final_loss": loss,
                "learned": bool(loss < task.bound),
            }

    return judge_and_train
