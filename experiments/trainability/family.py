"""The family of small networks that are judged and trained."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from jaxdnn.activations import make_activation
from jaxdnn.diagnosis import make_optimizer
from jaxdnn.initializers import make_initializer
from jaxdnn.propagation import normalise

ACTIVATIONS = ("sigmoid", "tanh", "relu", "selu", "gelu", "softplus")
INITIALIZERS = ("normal", "glorot_normal", "lecun_normal", "he_normal", "orthogonal")
DEPTHS = (5, 11, 26, 60)
STYLES = ("none", "batch", "layer", "residual")
OPTIMIZERS = ("sgd:0.1", "adam:0.001")
WIDTH = 64

_PHIS = [make_activation(name) for name in ACTIVATIONS]


@dataclasses.dataclass(frozen=True)
class Member:
    """One network of the family.

    Attributes:
      activation: of the hidden layers.
      initializer: of all kernels.
      depth: kernels, the output's included.
      style: a norm of the pre-activations, or `residual` for shortcuts without norm.
      optimizer: what trains it.
      seed: of its weights and of the order of the images.
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
      seed: of the draw; that of each member is its own.
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
    chains = [make_optimizer(name) for name in OPTIMIZERS]

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
