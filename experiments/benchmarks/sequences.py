"""Transformers, GRUs and LSTMs: does the score rank those that learn, and are collapses named?

    python experiments/benchmarks/sequences.py
    python experiments/benchmarks/sequences.py --networks 30 --collapses 4

`--networks` many small networks of random size, norm, scale of weights, length of sequence,
optimizer and rate are judged at their start by the score of `jaxdnn.diagnose`, with a batch held
out, and trained for `--steps` steps on sequences of which the class is their first, last or
commonest token. One has learned where its accuracy on sequences that it has not seen is half-way
from guessing to 1.

Then `--collapses` many sound transformers are spoilt in each of two ways: queries and keys so large
that each token looks at one other, and blocks that look at all tokens alike and carry nothing past
that, so that all tokens become the same. The first cause should name it; the sound twins should
have no finding.

Writes networks.jsonl, collapses.jsonl and table.md. The same command goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from resume import work_through
from will_it_train import auc

from jaxdnn import command_line, diagnose
from jaxdnn.diagnosis import parse_optimizer
from jaxdnn.errors import Interrupted

TOKENS = 8
EXAMPLES, UNSEEN = 128, 512
Rows = Sequence[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """How many networks, and for how long."""

    networks: int = 300
    """How many networks are judged and trained."""
    collapses: int = 30
    """How many transformers are spoilt, in each of two ways."""
    steps: int = 300
    """Optimizer steps of the training."""
    seed: int = 0
    """Of every draw."""
    out: Path = Path("runs/sequences")
    """Folder of the results."""
    progress: bool = True
    """Show a progress bar."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One network and its task.

    Attributes:
      kind: of the network.
      norm: of a transformer, where its norms stand.
      depth: layers, or blocks.
      width: units of a state, or channels of a token.
      scale: factor on all weights of two axes and more.
      length: tokens of a sequence.
      asked: which token is the class.
      optimizer: as `diagnose` takes it.
      seed: of weights and data.
      spoilt: in which way.
    """

    kind: Literal["transformer", "gru", "lstm"]
    norm: Literal["before", "after", "none"]
    depth: int
    width: int
    scale: float
    length: int
    asked: Literal["first", "last", "commonest"]
    optimizer: str
    seed: int
    spoilt: Literal["", "sharp", "not carried"] = ""


class Block(nnx.Module):
    """Attention and two dense layers, each a residual branch."""

    def __init__(self, member: Member, rngs: nnx.Rngs) -> None:
        width = member.width
        self.attention = nnx.MultiHeadAttention(4, width, rngs=rngs, decode=False)
        self.first, self.second = (nnx.LayerNorm(width, rngs=rngs) for _ in range(2))
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, rngs=rngs)
        self.norm = member.norm
        self.carried = 0.0 if member.spoilt == "not carried" else 1.0

    def __call__(self, x: jax.Array) -> jax.Array:
        for norm, branch in ((self.first, self.attention), (self.second, self.mlp)):
            inner = norm(x) if self.norm == "before" else x
            x = self.carried * x + branch(inner)
            x = norm(x) if self.norm == "after" else x
        return x

    def mlp(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.gelu(self.up(x)))


class Transformer(nnx.Module):
    """Blocks over tokens and places; the mean of all tokens is classified."""

    def __init__(self, member: Member) -> None:
        rngs = nnx.Rngs(member.seed)
        self.tokens = nnx.Embed(TOKENS, member.width, rngs=rngs)
        self.places = nnx.Embed(member.length, member.width, rngs=rngs)
        self.blocks = nnx.List([Block(member, rngs) for _ in range(member.depth)])
        self.head = nnx.Linear(member.width, TOKENS, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.tokens(tokens) + self.places(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class Recurrent(nnx.Module):
    """Recurrent layers; the last state is classified."""

    def __init__(self, member: Member) -> None:
        rngs = nnx.Rngs(member.seed)
        cell = {"gru": nnx.GRUCell, "lstm": nnx.OptimizedLSTMCell}[member.kind]
        self.tokens = nnx.Embed(TOKENS, member.width, rngs=rngs)
        self.layers = nnx.List(
            [nnx.RNN(cell(member.width, member.width, rngs=rngs)) for _ in range(member.depth)]
        )
        self.head = nnx.Linear(member.width, TOKENS, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, -1])


def make_model(member: Member) -> nnx.Module:
    """Return the network with its weights."""
    model = Transformer(member) if member.kind == "transformer" else Recurrent(member)
    graphdef, state, rest = nnx.split(model, nnx.Param, ...)
    state = jax.tree.map(lambda x: x * member.scale if x.ndim > 1 else x, state)
    model = nnx.merge(graphdef, state, rest)
    factor = {"": 1.0, "sharp": 30.0, "not carried": 0.03}[member.spoilt]
    for block in model.blocks if isinstance(model, Transformer) else ():
        for layer in (block.attention.query, block.attention.key):
            layer.kernel[...] = factor * layer.kernel[...]
    return model


def draw_data(member: Member, count: int, seed: int) -> tuple[jax.Array, jax.Array]:
    """Return tokens (count, length) and the class of each sequence."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, TOKENS, (count, member.length))
    if member.asked == "commonest":
        # One token is drawn into a third of the places, so that it stands out.
        often = rng.integers(0, TOKENS, (count, 1))
        tokens = np.where(rng.random(tokens.shape) < 1 / 3, often, tokens)
        return jnp.asarray(tokens), jnp.asarray(often[:, 0])
    return jnp.asarray(tokens), jnp.asarray(tokens[:, 0 if member.asked == "first" else -1])


def draw_members(count: int, seed: int) -> Iterator[Member]:
    """Yield networks of random size, scale, task and rate."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        adam = rng.random() < 0.6
        rate = 10 ** (rng.uniform(-4.5, -1) if adam else rng.uniform(-3, 0.5))
        yield Member(
            kind=("transformer", "gru", "lstm")[index % 3],
            norm=("before", "after", "none")[rng.integers(3)],
            depth=int(rng.integers(1, 5 if index % 3 == 0 else 3)),
            width=int(rng.choice([16, 32])),
            scale=float(10 ** rng.uniform(-0.7, 0.7)),
            length=int(rng.choice([8, 16, 32])),
            asked=("first", "last", "commonest")[rng.integers(3)],
            optimizer=f"{'adam' if adam else 'sgd'}:{rate:.3g}",
            seed=seed + index,
        )


def draw_collapses(count: int, seed: int) -> Iterator[Member]:
    """Yield sound transformers and their spoilt twins."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        sound = Member(
            kind="transformer",
            norm=("before", "after")[index % 2],
            depth=int(rng.integers(3, 7)),
            width=32,
            scale=1.0,
            length=int(rng.choice([8, 16])),
            asked=("first", "last")[rng.integers(2)],
            optimizer=("adam:0.001", "sgd:0.3")[rng.integers(2)],
            seed=seed + index,
        )
        yield sound
        yield dataclasses.replace(sound, spoilt="sharp")
        yield dataclasses.replace(sound, spoilt="not carried", norm="after", depth=6)


def accuracy_after(member: Member, steps: int) -> float:
    """Train on new sequences at every step; return the accuracy on others, in [0, 1]."""
    graphdef, state, rest = nnx.split(make_model(member), nnx.Param, ...)
    optimizer = parse_optimizer(member.optimizer)
    tokens, classes = draw_data(member, steps * EXAMPLES, member.seed + 1)
    batches = jax.tree.map(lambda x: x.reshape(steps, EXAMPLES, *x.shape[1:]), (tokens, classes))

    def objective(state: Any, tokens: jax.Array, classes: jax.Array) -> jax.Array:
        logits = nnx.merge(graphdef, state, rest, copy=True)(tokens)
        return optax.softmax_cross_entropy_with_integer_labels(logits, classes).mean()

    @jax.jit
    def step(carry: Any, tokens: jax.Array, classes: jax.Array) -> Any:
        state, own = carry
        updates, own = optimizer.update(jax.grad(objective)(state, tokens, classes), own, state)
        return optax.apply_updates(state, updates), own

    carry = state, optimizer.init(state)
    for index in range(steps):
        carry = step(carry, batches[0][index], batches[1][index])
    tokens, classes = draw_data(member, UNSEEN, member.seed + 2)
    logits = jax.jit(lambda state, x: nnx.merge(graphdef, state, rest, copy=True)(x))(
        carry[0], tokens
    )
    return float(jnp.mean(logits.argmax(-1) == classes))


def make_judge(steps: int) -> Callable[[Sequence[Member]], Iterator[dict[str, Any]]]:
    """Return what judges a network by its score alone, and trains it."""

    def judge(member: Member) -> dict[str, Any]:
        jax.clear_caches()
        began = time.monotonic()
        batch = draw_data(member, EXAMPLES, member.seed + 1)
        others = draw_data(member, EXAMPLES, member.seed + 3)
        options = {"optimizer": member.optimizer, "horizon": steps, "held_out": others}
        found = diagnose(make_model(member), *batch, try_changes=False, **options)
        accuracy = accuracy_after(member, steps)
        return {
            "score": found.score,
            "accuracy": accuracy,
            "learned": accuracy > 0.5 + 0.5 / TOKENS,
            "seconds": round(time.monotonic() - began, 1),
        }

    return lambda members: map(judge, members)


def make_name(steps: int) -> Callable[[Sequence[Member]], Iterator[dict[str, Any]]]:
    """Return what diagnoses a transformer whole."""

    def name(member: Member) -> dict[str, Any]:
        jax.clear_caches()
        began = time.monotonic()
        batch = draw_data(member, EXAMPLES, member.seed + 1)
        others = draw_data(member, EXAMPLES, member.seed + 3)
        found = diagnose(make_model(member), *batch, optimizer=member.optimizer, held_out=others)
        return {
            "verdict": found.verdict,
            "causes": [cause.cause for cause in found.causes],
            "repaired": found.prescriptions[0].after if found.prescriptions else None,
            "accuracy": accuracy_after(member, steps),
            "seconds": round(time.monotonic() - began, 1),
        }

    return lambda members: map(name, members)


_NAMES = {"sharp": "attention to one token", "not carried": "tokens become alike"}


def markdown(trained: Rows, spoilt: Rows) -> str:
    """Return AUCs by kind, and how many collapses were named.

    Args:
      trained: rows of networks.jsonl.
      spoilt: rows of collapses.jsonl.
    """
    lines = ["| networks | number | learned | AUC of the score |", "|---|---|---|---|"]
    for kind in ("all", "transformer", "gru", "lstm"):
        own = [row for row in trained if kind in ("all", row["kind"])]
        learned = np.array([row["learned"] for row in own], bool)
        scores = np.array([row["score"] for row in own], float)
        ranked = f"{auc(scores, learned):.3f}" if learned.any() and not learned.all() else "–"
        lines.append(f"| {kind} | {len(own)} | {learned.sum()} | {ranked} |")
    lines += ["", "| spoilt | number | named first | named at all |", "|---|---|---|---|"]
    for way, cause in _NAMES.items():
        own = [row["causes"] for row in spoilt if row["spoilt"] == way]
        first = sum(causes[:1] == [cause] for causes in own)
        lines.append(f"| {way} | {len(own)} | {first} | {sum(cause in each for each in own)} |")
    sound = [row["causes"] for row in spoilt if not row["spoilt"]]
    lines += ["", f"Of {len(sound)} sound twins {sum(map(bool, sound))} have a finding.", ""]
    return "\n".join(lines)


def main() -> int:
    """Run the command; return its exit code."""
    arguments = command_line.parse(
        Arguments,
        default=Arguments(),
        args=sys.argv[1:],
        prog="sequences.py",
        description=__doc__,
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    seed = arguments.seed
    parts = (
        (draw_members(arguments.networks, seed), make_judge(arguments.steps), "networks"),
        (draw_collapses(arguments.collapses, seed), make_name(arguments.steps), "collapses"),
    )
    rows = []
    with command_line.StopSignal() as stopped:
        try:
            for members, work, name in parts:
                path = arguments.out / f"{name}.jsonl"
                groups = [[member] for member in members]
                rows.append(work_through(groups, work, path, stopped, progress=arguments.progress))
        except Interrupted:
            print(f"stopped; the same command goes on where {arguments.out} stands")
            return command_line.INTERRUPTED_EXIT_CODE
    text = markdown(*rows)
    (arguments.out / "table.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    command_line.run(main)
