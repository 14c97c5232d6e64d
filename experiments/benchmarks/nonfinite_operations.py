"""Plant an operation that is not finite in a network: is its line named, and nothing in its twin?

    python experiments/benchmarks/nonfinite_operations.py
    python experiments/benchmarks/nonfinite_operations.py --through jit --operations masked_softmax

Each operation stands between two layers, once as people write it and once as it should be written.
Of half of them the value is not finite, of the other half only the gradient. Each is called as it
is and through jit, scan, remat, vmap and custom_jvp. Two of the eight examples are
zeros, and so is what these layers make of them.

Named means: the finding says file and line of the operation, and the examples where these can be
told apart. Writes table.md and operations.jsonl, a line a network.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdnn import command_line
from jaxdnn.diagnosis import examine, not_finite
from jaxdnn.errors import InputError

Operation = Callable[[Array], Array]
WIDTH, BATCH = 6, 8
# Of the examples.
ZEROS = (2, 5)
# The line of an operation that is not finite ends in this.
_MARK = "# here"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which networks."""

    operations: tuple[str, ...] = ()
    """Names of operations; all if none is given."""
    through: tuple[str, ...] = ()
    """Names of transformations; all if none is given."""
    out: Path = Path("runs/nonfinite_operations")
    """Folder of the results."""


def square_root_of_negative(h: Array, sound: bool) -> Array:
    if sound:
        return jnp.sqrt(jax.nn.softplus(h))
    return jnp.sqrt(h)  # here


def logarithm_of_zero(h: Array, sound: bool) -> Array:
    if sound:
        return jnp.log(jnp.abs(h) + 1e-6)
    return jnp.log(jnp.abs(h))  # here


def zero_over_zero(h: Array, sound: bool) -> Array:
    if sound:
        return h / (jnp.abs(h) + 1e-6)
    return h / jnp.abs(h)  # here


def exponential(h: Array, sound: bool) -> Array:
    if sound:
        return jax.nn.softplus(1e3 * h)
    growing = jnp.exp(1e3 * h)  # here
    return jnp.log(1 + growing)


def negative_power(h: Array, sound: bool) -> Array:
    size = jnp.abs(h)
    if sound:
        return (size + 0.1) ** -1.5
    return size**-1.5  # here


def unit_length(h: Array, sound: bool) -> Array:
    length = jnp.sqrt(jnp.sum(h**2, -1, keepdims=True) + (1e-6 if sound else 0.0))
    if sound:
        return h / length
    return h / length  # here


def arc(h: Array, sound: bool) -> Array:
    if sound:
        return jnp.arccos(jnp.clip(4 * h, -0.99, 0.99))
    return jnp.arccos(4 * h)  # here


def masked_softmax(h: Array, sound: bool) -> Array:
    scores = jnp.where(h != 0, h, -1e9 if sound else -jnp.inf)
    if sound:
        return jax.nn.softmax(scores)
    return jax.nn.softmax(scores)  # here


def norm_without_epsilon(h: Array, sound: bool) -> Array:
    variance = h.var(-1, keepdims=True)
    if sound:
        return (h - h.mean(-1, keepdims=True)) * jax.lax.rsqrt(variance + 1e-6)
    inverse = jax.lax.rsqrt(variance)  # here
    return (h - h.mean(-1, keepdims=True)) * inverse


def log_of_one_less(h: Array, sound: bool) -> Array:
    kept = jnp.exp(-jnp.abs(h) - (1e-3 if sound else 0.0))
    if sound:
        return jnp.log1p(-kept)
    return jnp.log1p(-kept)  # here


def half_precision(h: Array, sound: bool) -> Array:
    half = (300 * h).astype(jnp.float16)
    if sound:
        return jnp.sqrt(half.astype(jnp.float32) ** 2 + 1)
    energy = half**2  # here
    return jnp.sqrt(energy.astype(jnp.float32) + 1)


def area_tangent(h: Array, sound: bool) -> Array:
    inside = jnp.tanh(50 * h)
    if sound:
        return jnp.arctanh(0.99 * inside)
    return jnp.arctanh(inside)  # here


def unknown_token(h: Array, sound: bool) -> Array:
    if sound:
        return jnp.take(h, jnp.arange(WIDTH), axis=-1)
    return jnp.take(h, jnp.arange(WIDTH) + 1, axis=-1)  # here


def large_product(h: Array, sound: bool) -> Array:
    large = (1.0 if sound else 1e20) * h
    if sound:
        return jnp.tanh(large @ jnp.eye(WIDTH))
    product = large @ (1e20 * jnp.eye(WIDTH))  # here
    return jnp.tanh(product) * product


def mean_of_nothing(h: Array, sound: bool) -> Array:
    counted = (h != 0).astype(h.dtype)
    total, number = h.sum(-1, keepdims=True), counted.sum(-1, keepdims=True)
    if sound:
        return h - total / jnp.maximum(number, 1)
    return h - total / number  # here


def slope_of_root(h: Array, sound: bool) -> Array:
    if sound:
        return jnp.sqrt(jnp.abs(h) + 1e-6)
    return jnp.sqrt(jnp.abs(h))  # here


def root_in_where(h: Array, sound: bool) -> Array:
    if sound:
        return jnp.where(h > 0, jnp.sqrt(jnp.where(h > 0, h, 1.0)), 0.0)
    return jnp.where(h > 0, jnp.sqrt(h), 0.0)  # here


def logarithm_in_where(h: Array, sound: bool) -> Array:
    if sound:
        return jnp.where(h == 0, 0.0, jnp.log(jnp.where(h == 0, 1.0, jnp.abs(h))))
    logarithm = jnp.log(jnp.abs(h))  # here
    return jnp.where(h == 0, 0.0, logarithm)


def division_in_where(h: Array, sound: bool) -> Array:
    if sound:
        return jnp.where(h == 0, 0.0, 1 / jnp.where(h == 0, 1.0, h))
    inverse = 1 / h  # here
    return jnp.where(h == 0, 0.0, inverse)


def exponential_in_where(h: Array, sound: bool) -> Array:
    if sound:
        return jnp.where(h > 0, h, jnp.expm1(jnp.minimum(h, 0)))
    below = jnp.expm1(1e3 * h)  # here
    return jnp.where(h > 0, h, below)


def slope_of_power(h: Array, sound: bool) -> Array:
    if sound:
        return (jnp.abs(h) + 1e-6) ** 0.5
    return jnp.abs(h) ** 0.5  # here


def slope_of_norm(h: Array, sound: bool) -> Array:
    if sound:
        return h * jnp.sqrt(jnp.sum(h**2, -1, keepdims=True) + 1e-6)
    return h * jnp.linalg.norm(h, axis=-1, keepdims=True)  # here


def slope_of_arc(h: Array, sound: bool) -> Array:
    cosine = jnp.cos(h)
    if sound:
        return jnp.arccos(0.99 * cosine)
    return jnp.arccos(cosine)  # here


def masked_softmax_in_where(h: Array, sound: bool) -> Array:
    scores = h + jnp.where(h != 0, 0.0, -1e9 if sound else -jnp.inf)
    some = (h != 0).any(-1, keepdims=True)
    if sound:
        return jnp.where(some, jax.nn.softmax(scores), 0.0)
    weights = jax.nn.softmax(scores)  # here
    return jnp.where(some, weights, 0.0)


def slope_of_deviation(h: Array, sound: bool) -> Array:
    if sound:
        return h + jnp.sqrt(h.var(-1, keepdims=True) + 1e-6)
    return h + h.std(-1, keepdims=True)  # here


def area_tangent_in_where(h: Array, sound: bool) -> Array:
    inside = jnp.tanh(50 * h)
    ok = jnp.abs(inside) < 0.99
    if sound:
        return jnp.where(ok, jnp.arctanh(jnp.where(ok, inside, 0.0)), 0.0)
    area = jnp.arctanh(inside)  # here
    return jnp.where(ok, area, 0.0)


def unit_length_in_where(h: Array, sound: bool) -> Array:
    squares = jnp.sum(h**2, -1, keepdims=True)
    if sound:
        return h * jax.lax.rsqrt(jnp.where(squares > 0, squares, 1.0))
    inverse = jax.lax.rsqrt(squares)  # here
    return h * jnp.where(squares > 0, inverse, 0.0)


def slope_of_cube_root(h: Array, sound: bool) -> Array:
    if sound:
        return jnp.cbrt(h + jnp.where(h == 0, 1e-3, 0.0))
    return jnp.cbrt(h)  # here


def slope_of_direction(h: Array, sound: bool) -> Array:
    if sound:
        return jnp.arctan2(h, 1.0 + jnp.abs(h))
    return jnp.arctan2(h, jnp.abs(h))  # here


def slope_of_negative_power(h: Array, sound: bool) -> Array:
    if sound:
        return jnp.where(h == 0, 0.0, jnp.where(h == 0, 1.0, h) ** -2)
    inverse = h**-2  # here
    return jnp.where(h == 0, 0.0, inverse)


_VALUES: tuple[Callable[[Array, bool], Array], ...] = (
    square_root_of_negative,
    logarithm_of_zero,
    zero_over_zero,
    exponential,
    negative_power,
    unit_length,
    arc,
    masked_softmax,
    norm_without_epsilon,
    log_of_one_less,
    half_precision,
    area_tangent,
    unknown_token,
    large_product,
    mean_of_nothing,
)
_GRADIENTS: tuple[Callable[[Array, bool], Array], ...] = (
    slope_of_root,
    root_in_where,
    logarithm_in_where,
    division_in_where,
    exponential_in_where,
    slope_of_power,
    slope_of_norm,
    slope_of_arc,
    masked_softmax_in_where,
    slope_of_deviation,
    area_tangent_in_where,
    unit_length_in_where,
    slope_of_cube_root,
    slope_of_direction,
    slope_of_negative_power,
)
OPERATIONS = {each.__name__: each for each in (*_VALUES, *_GRADIENTS)}


def _scan(operation: Operation) -> Operation:
    return lambda h: jax.lax.scan(lambda carry, row: (carry, operation(row)), 0, h)[1]


def _custom_jvp(operation: Operation) -> Operation:
    own = jax.custom_jvp(operation)
    own.defjvp(lambda primals, tangents: jax.jvp(operation, primals, tangents))
    return own


THROUGH: dict[str, Callable[[Operation], Operation]] = {
    "plain": lambda operation: operation,
    "jit": jax.jit,
    "scan": _scan,
    "remat": jax.checkpoint,
    "vmap": jax.vmap,
    "custom_jvp": _custom_jvp,
}


def main() -> int:
    """Run the command; return its exit code."""
    arguments = command_line.parse(
        Arguments,
        default=Arguments(),
        args=sys.argv[1:],
        prog="nonfinite_operations.py",
        description=__doc__,
    )
    operations = _chosen(arguments.operations, OPERATIONS, "operation")
    through = _chosen(arguments.through, THROUGH, "transformation")
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with (arguments.out / "operations.jsonl").open("w") as file:
        for row in work(operations, through):
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            if not row["right"]:
                print(f"wrong: {row['operation']} through {row['through']}: {row['said']}")
    text = markdown(rows)
    (arguments.out / "table.md").write_text(text)
    print(text)
    return 0


def _chosen(names: tuple[str, ...], all_names: Any, what: str) -> tuple[str, ...]:
    for name in names:
        if name not in all_names:
            raise InputError(f"no {what} is called {name}; give one of {', '.join(all_names)}")
    return names or tuple(all_names)


def work(operations: tuple[str, ...], through: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Examine every network and its twin; say whether what is found is right."""
    for name in operations:
        jax.clear_caches()
        for transformation in through:
            for sound in (False, True):
                yield examined(name, transformation, sound=sound)


def examined(name: str, transformation: str, *, sound: bool) -> dict[str, Any]:
    """Examine one network.

    Args:
      name: a key of `OPERATIONS`.
      transformation: a key of `THROUGH`.
      sound: write the operation as it should be.

    Returns:
      what was said, whether that is right, and the seconds it took to find the operation.
    """
    operation = OPERATIONS[name]
    wrapped = THROUGH[transformation](lambda h: operation(h, sound))
    keys = jax.random.split(jax.random.key(0), 3)
    params = [jax.random.normal(key, (WIDTH, WIDTH)) * 0.4 for key in keys[:2]]
    inputs = jax.random.normal(keys[2], (BATCH, WIDTH)).at[jnp.array(ZEROS)].set(0.0)

    def model(params: list[Array], x: Array) -> Array:
        return wrapped(x @ params[0]).astype(jnp.float32) @ params[1]

    exam = examine((model, params), inputs, jnp.zeros((BATCH, WIDTH)))
    began = time.perf_counter()
    said = [finding.evidence for finding in not_finite(exam)]
    seconds = time.perf_counter() - began
    place = f"{Path(__file__).name}:{line_of(operation)} "
    named = not exam.measured.finite and len(said) == 1 and said[0].startswith(place)
    right = exam.measured.finite and not said if sound else named
    return {
        "operation": name,
        "through": transformation,
        "sound": sound,
        "right": right,
        "said": said,
        "seconds": seconds,
    }


def line_of(operation: Callable[..., Any]) -> int:
    """Return the number of the line that is marked."""
    lines, first = inspect.getsourcelines(operation)
    return next(first + i for i, line in enumerate(lines) if line.rstrip().endswith(_MARK))


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table: named of all, by transformation; the twins; the seconds."""
    lines = ["| through | value: named | gradient: named | sound twins: nothing said | seconds |"]
    lines.append("|---|---|---|---|---|")
    values = {each.__name__ for each in _VALUES}
    for name in [*dict.fromkeys(row["through"] for row in rows), "all"]:
        own = [row for row in rows if name in (row["through"], "all")]
        parts = [
            [row for row in own if not row["sound"] and row["operation"] in values],
            [row for row in own if not row["sound"] and row["operation"] not in values],
            [row for row in own if row["sound"]],
        ]
        shares = " | ".join(f"{sum(r['right'] for r in part)} of {len(part)}" for part in parts)
        seconds = sorted(row["seconds"] for row in own if not row["sound"])
        median = seconds[len(seconds) // 2] if seconds else 0.0
        lines.append(f"| {name} | {shares} | {median:.2f} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    command_line.run(main)
