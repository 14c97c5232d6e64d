"""What does a diagnosis cost, compilation included, beside sixty plain training steps?

    python experiments/benchmarks/diagnose_time.py
    python experiments/benchmarks/diagnose_time.py --only transformer

Six networks, each as it trains and with a learning rate a million times smaller, so that changes
are tried; each in a process of its own. Printed are the seconds of `diagnose` with nothing compiled
before (imports are not counted), how many times sixty compiled steps of plain optax that is, and
the most memory that the process held.
"""

from __future__ import annotations

import dataclasses
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxdnn import command_line, diagnose

NUM_CLASSES = 10
STEPS = 60
Batch = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which networks."""

    only: str = ""
    """One of mlp, sigmoid, resnet18, resnet50, transformer, lstm; by default all."""
    slow_rate: bool = False
    """With `--only`: the one with the small rate."""


def mlp(phi: Callable[[jax.Array], jax.Array]) -> tuple[nnx.Module, Batch]:
    """50 layers of 256 units, a batch of 64."""
    rngs, he = nnx.Rngs(0), nnx.initializers.he_normal()
    layers: list[Any] = []
    for _ in range(49):
        layers += [nnx.Linear(256, 256, kernel_init=he, rngs=rngs), phi]
    return nnx.Sequential(*layers, nnx.Linear(256, NUM_CLASSES, rngs=rngs)), vectors(64, 256)


class Residual(nnx.Module):
    """Two convolutions of 3x3, or a bottleneck of three, with batch norm."""

    def __init__(self, shape: tuple[int, int, int], stride: int, *, deep: bool, rngs: Any) -> None:
        into, inner, out = shape
        windows = ((1, 1), (3, stride), (1, 1)) if deep else ((3, stride), (3, 1))
        widths = [into, *([inner] * (len(windows) - 1)), out]
        self.layers = nnx.List(
            [
                nnx.Conv(
                    a, b, (size, size), strides=step, padding="SAME", use_bias=False, rngs=rngs
                )
                for a, b, (size, step) in zip(widths[:-1], widths[1:], windows, strict=True)
            ]
        )
        self.norms = nnx.List([nnx.BatchNorm(width, rngs=rngs) for width in widths[1:]])
        self.past = nnx.Conv(into, out, (1, 1), strides=stride, use_bias=False, rngs=rngs)
        self.same = into == out and stride == 1

    def __call__(self, x: jax.Array) -> jax.Array:
        h = x
        for place, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            h = norm(layer(h))
            h = nnx.relu(h) if place + 1 < len(self.layers) else h
        return nnx.relu(h + (x if self.same else self.past(x)))


class ResNet(nnx.Module):
    """Four stages, a mean over places, a head."""

    def __init__(self, counts: tuple[int, ...], *, deep: bool) -> None:
        rngs, wide = nnx.Rngs(0), 4 if deep else 1
        self.first = nnx.Conv(3, 64, (3, 3), padding="SAME", rngs=rngs)
        blocks, into = [], 64
        for stage, count in enumerate(counts):
            inner = 64 * 2**stage
            for place in range(count):
                stride = 2 if stage and place == 0 else 1
                shape = (into, inner, wide * inner)
                blocks.append(Residual(shape, stride, deep=deep, rngs=rngs))
                into = wide * inner
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(into, NUM_CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class Block(nnx.Module):
    """A pre-norm block of a causal transformer."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.attention = nnx.MultiHeadAttention(6, width, rngs=rngs, decode=False)
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        mask = nnx.make_causal_mask(jnp.ones(x.shape[:2]))
        x = x + self.attention(self.norms[0](x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class Transformer(nnx.Module):
    """12 blocks of 384 channels on tokens."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.tokens = nnx.Embed(256, 384, rngs=rngs)
        self.places = nnx.Embed(128, 384, rngs=rngs)
        self.blocks = nnx.List([Block(384, rngs) for _ in range(12)])
        self.head = nnx.Linear(384, 256, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.tokens(tokens) + self.places(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Lstm(nnx.Module):
    """Two layers of 128 units over 200 time steps."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.below = nnx.RNN(nnx.OptimizedLSTMCell(16, 128, rngs=rngs))
        self.above = nnx.RNN(nnx.OptimizedLSTMCell(128, 128, rngs=rngs))
        self.head = nnx.Linear(128, NUM_CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.above(self.below(x))[:, -1])


def vectors(*shape: int) -> Batch:
    """Return normal inputs of this shape, and classes."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal(shape, np.float32)
    return jnp.asarray(inputs), jnp.asarray(rng.integers(0, NUM_CLASSES, shape[0]))


def text() -> Batch:
    """Return tokens (8, 128), and for each the one before it."""
    tokens = np.random.default_rng(0).integers(0, 256, (8, 128))
    return jnp.asarray(tokens), jnp.asarray(np.roll(tokens, 1, 1))


# Name -> (what it is, model and batch, optimizer without its rate, rate).
NETWORKS: dict[str, tuple[str, Callable[[], tuple[nnx.Module, Batch]], str, float]] = {
    "mlp": ("MLP 50 x 256", lambda: mlp(nnx.relu), "adam", 1e-3),
    "sigmoid": ("the same of sigmoids", lambda: mlp(nnx.sigmoid), "sgd", 0.1),
    "resnet18": (
        "ResNet-18, 16 images of 32 x 32",
        lambda: (ResNet((2, 2, 2, 2), deep=False), vectors(16, 32, 32, 3)),
        "adam",
        1e-3,
    ),
    "resnet50": (
        "ResNet-50, 4 images of 64 x 64",
        lambda: (ResNet((3, 4, 6, 3), deep=True), vectors(4, 64, 64, 3)),
        "adam",
        1e-3,
    ),
    "transformer": (
        "transformer 12 x 384, 8 texts of 128 tokens",
        lambda: (Transformer(), text()),
        "adam",
        3e-4,
    ),
    "lstm": (
        "LSTM 2 x 128, 32 sequences of 200 steps",
        lambda: (Lstm(), vectors(32, 200, 16)),
        "adam",
        1e-2,
    ),
}


def measure(name: str, *, slow_rate: bool) -> str:
    """Diagnose one network; return a row of the table."""
    words, make, kind, rate = NETWORKS[name]
    model, (inputs, targets) = make()
    optimizer = f"{kind}:{rate * (1e-6 if slow_rate else 1):g}"
    steps = plain_steps(model, inputs, targets, rate)
    jax.clear_caches()
    began, spent = time.perf_counter(), time.process_time()
    found = diagnose(model, inputs, targets, optimizer=optimizer)
    seconds, spent = time.perf_counter() - began, time.process_time() - spent
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return (
        f"| {words} | {optimizer} | {found.verdict} | {seconds:.1f} | {spent:.1f}"
        f" | {seconds / steps:.1f} | {memory:.1f} |"
    )


def plain_steps(model: nnx.Module, inputs: Any, targets: Any, rate: float) -> float:
    """Return the seconds of sixty training steps that are compiled already."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = optax.adam(rate)

    def objective(params: Any) -> jax.Array:
        logits = nnx.merge(graphdef, params, rest, copy=True)(inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(objective)(params), state, params)
        return optax.apply_updates(params, updates), state

    carry = step(params, optimizer.init(params))
    jax.block_until_ready(carry)
    began = time.perf_counter()
    for _ in range(STEPS):
        carry = step(*carry)
    jax.block_until_ready(carry)
    return time.perf_counter() - began


def main() -> int:
    """Run the command; return its exit code."""
    arguments = command_line.parse(
        Arguments,
        default=Arguments(),
        args=sys.argv[1:],
        prog="diagnose_time.py",
        description=__doc__,
    )
    if arguments.only:
        if arguments.only not in NETWORKS:
            print(f"--only is {arguments.only!r}; give one of {', '.join(NETWORKS)}")
            return 2
        print(measure(arguments.only, slow_rate=arguments.slow_rate), flush=True)
        return 0
    print("| network | optimizer | verdict | seconds | CPU seconds | times 60 steps | GiB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in NETWORKS:
        for more in ([], ["--slow-rate"]):
            command = [sys.executable, __file__, "--only", name, *more]
            subprocess.run(command, check=True)
    return 0


if __name__ == "__main__":
    command_line.run(main)
