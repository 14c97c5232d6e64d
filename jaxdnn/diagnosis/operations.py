"""The operation that is not finite: its line, the values that do it, and what to write instead.

Of an operation whose value is finite but whose slope is not (a square root at 0) the gradient is
NaN. Where a `where` leaves out a value that is not finite, its slope still multiplies the gradient
of zero: 0 · ∞ is NaN.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdnn.diagnosis.findings import BLOCKING, Finding
from jaxdnn.diagnosis.measure import Exam
from jaxdnn.diagnosis.model import leaf_names
from jaxdnn.diagnosis.origins import RULES, Origin, first_not_finite
from jaxdnn.diagnosis.source_lines import place, source_line

_MOST_ROWS = 4
# Results that only grow too large: a sum or a product of finite numbers.
_GROWING = {
    *("mul", "add", "add_any", "sub", "dot_general", "conv_general_dilated", "reduce_sum"),
    *("integer_pow", "square", "cumsum", "scatter-add", "scatter_add", "reduce_window_sum", "pow"),
    *("convert_element_type", "reduce_precision", "div", "cumprod", "reduce_prod"),
}
_LAYERS = {"dot_general", "conv_general_dilated"}


class Words(NamedTuple):
    """An operation in words.

    Attributes:
      fault: what it does and why that is not finite, a part of a sentence.
      remedy: what to write instead.
    """

    fault: str
    remedy: str


_TWO_WHERES = (
    "put a harmless number in its place before the operation as well as after it:"
    " `jnp.where(ok, f(jnp.where(ok, x, 1.0)), 0.0)`"
)
_ROOT = "add a small number inside the root, `jnp.sqrt(x + 1e-12)`"
_DENOMINATOR = (
    "keep the divisor away from 0, `a / jnp.where(b == 0, 1.0, b)` inside a second `where`, or"
    " `a / (b + 1e-8)`"
)
_LOGARITHM = (
    "take `jax.nn.log_softmax` or `jax.nn.log_sigmoid` of the logits, and of anything else"
    " `jnp.log(jnp.maximum(x, 1e-12))`"
)
_EXPONENT = (
    "subtract the largest first (`jax.nn.softmax`, `jax.nn.logsumexp`), write `jax.nn.softplus(x)`"
    " for log(1 + exp(x)), or bound x"
)
_OPEN_INTERVAL = "keep it off the ends, `jnp.clip(x, -1 + 1e-6, 1 - 1e-6)`"
_MASK = (
    "mask with a large finite number (-1e9; -6e4 in float16) instead of -inf, or leave one entry of"
    " such a row open and mask the result"
)
_POSITIVE = "make it positive first (`jnp.maximum(x, 0)`, `jax.nn.softplus(x)`)"
# Primitive whose slope is infinite -> where, and what to do.
_SLOPES = {
    "sqrt": Words("the slope of a square root is infinite at 0", f"{_ROOT}; or {_TWO_WHERES}"),
    "norm": Words(
        "a norm, distance or standard deviation that is 0 has no slope (the root's is infinite)",
        "add a small number inside the root, `jnp.sqrt(jnp.sum(x**2, -1) + 1e-12)`, use the square"
        f" without the root, or {_TWO_WHERES}",
    ),
    "rsqrt": Words("1 / sqrt(x) is infinite at 0", "add a small number, `jax.lax.rsqrt(x + 1e-6)`"),
    "cbrt": Words("the slope of a cube root is infinite at 0", _TWO_WHERES),
    "log": Words(
        "the slope of a logarithm, 1 / x, is infinite at 0", f"{_LOGARITHM}; or {_TWO_WHERES}"
    ),
    "log1p": Words("the slope of log(1 + x) is infinite at -1", f"bound x; or {_TWO_WHERES}"),
    "div": Words("the slope of a / b is infinite where b is 0", _DENOMINATOR),
    "pow": Words(
        "the slope of a power below 1 is infinite at 0",
        f"add a small number to the base, `(x + 1e-12) ** p`; or {_TWO_WHERES}",
    ),
    "integer_pow": Words("a negative power is infinite at 0", _DENOMINATOR),
    "acos": Words("the slope of arccos is infinite at -1 and 1", _OPEN_INTERVAL),
    "asin": Words("the slope of arcsin is infinite at -1 and 1", _OPEN_INTERVAL),
    "atanh": Words("the slope of arctanh is infinite at -1 and 1", _OPEN_INTERVAL),
    "acosh": Words("the slope of arccosh is infinite at 1", "keep x above 1 + 1e-6"),
    "atan2": Words("arctan2(0, 0) has no direction, and so no slope", _TWO_WHERES),
    "erf_inv": Words(
        "the slope of the inverse error function is infinite at the ends", _OPEN_INTERVAL
    ),
    "eigh": Words(
        "eigenvectors of two eigenvalues that are equal have no slope",
        "use the eigenvalues alone, or add a little noise to the diagonal",
    ),
    "svd": Words(
        "singular vectors of two singular values that are equal or 0 have no slope",
        "use the singular values alone, or add a little noise",
    ),
}


def explain(origin: Origin) -> Words:
    """Say what an operation does that is not finite, and what to write instead."""
    if origin.argument is not None:
        return Words("comes in with NaN or infinity", "replace these numbers before training")
    if not origin.equations:
        return Words("an array that the model holds has NaN or infinity", "mend what computes it")
    if origin.slope_of:
        return _slope(origin)
    if origin.constant:
        written = _number(origin.output.ravel()[0])
        return Words(f"the constant {written} of this line reaches the loss", _MASK)
    words = _operation(origin)
    if not origin.in_value:
        dropped = "; the loss leaves it out, but its gradient is 0 x NaN = NaN"
        # An index is to be mended, not its result.
        remedy = words.remedy if origin.primitive == "gather" else _TWO_WHERES
        words = Words(words.fault + dropped, remedy)
    return words


def _operation(origin: Origin) -> Words:
    """Words for the operation itself."""
    return _told(origin) or _overflow(origin) or _unknown(origin)


def _told(origin: Origin) -> Words | None:
    """Words with the values that it took, where the operation is known by these."""
    values, describe = _first_values(origin), _VALUES.get(origin.equations[0].primitive.name)
    return describe(values, origin) if describe and values else None


def _slope(origin: Origin) -> Words:
    name = origin.primitive
    if name in RULES:
        words = _operation(origin)
        return Words(f"in the gradient rule of its own, {words.fault}", words.remedy)
    if name == "sqrt" and _is_norm(origin):
        name = "norm"
    known = _SLOPES.get(name)
    if known is not None and not _has_overflown(origin):
        return known
    overflow = _overflow(origin)
    if overflow is not None:
        return Words(f"its gradient is beyond its format: {overflow.fault}", overflow.remedy)
    return _told(origin) or Words(
        f"the slope of `{name}` is not finite at these values", f"keep off them; {_TWO_WHERES}"
    )


def _is_norm(origin: Origin) -> bool:
    """Whether the root is part of one call that also adds squares up, or is named so."""
    names = {str(eqn.params.get("name", "")) for eqn in origin.slope_of}
    return bool(names & {"norm", "std", "_std", "_norm"}) or "linalg.norm" in _text(origin)


def _text(origin: Origin) -> str:
    line = source_line(origin.slope_of or origin.equations)
    return line.text if line else ""


def _first_values(origin: Origin) -> tuple[float, ...]:
    """The operands at the first entry that the operation made so; empty where places differ."""
    shape = origin.output.shape
    if any(x.ndim and _stretched(x.shape, shape) != shape for x in origin.operands):
        return ()
    at = tuple(np.argwhere(origin.made)[0])
    return tuple(
        float(np.real(np.broadcast_to(x, shape)[at])) for x in origin.operands if x.dtype != bool
    )


def _stretched(shape: tuple[int, ...], to: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape that two arrays have together, None where they do not go together."""
    try:
        return np.broadcast_shapes(shape, to)
    except ValueError:
        return None


def _number(x: float) -> str:
    return f"{float(x):.3g}"


def _division(values: Sequence[float], origin: Origin) -> Words | None:
    a, b = values
    if b == 0 or abs(b) < float(jnp.finfo(origin.output.dtype).tiny):
        hint = " (a mean over nothing? then `/ jnp.maximum(count, 1)`)" if a == 0 else ""
        return Words(f"it divides {_number(a)} by {_number(b)}{hint}", _DENOMINATOR)
    if math.isinf(a) and math.isinf(b):
        return Words("it divides infinity by infinity", _EXPONENT)
    return None


def _logarithm(values: Sequence[float], origin: Origin) -> Words | None:
    del origin
    (x,) = values
    if abs(x) < 1e-37:
        return Words(f"it takes the logarithm of {_number(x)}", _LOGARITHM)
    return Words(
        f"it takes the logarithm of a negative number, {_number(x)}",
        "make it positive first (`jax.nn.softplus`), or leave the logarithm out",
    )


def _exponential(values: Sequence[float], origin: Origin) -> Words | None:
    largest = float(jnp.finfo(origin.output.dtype).max)
    kind = jnp.dtype(origin.output.dtype).name
    return Words(
        f"`{origin.primitive}` of {_number(values[0])}, and {kind} ends at {largest:.2g},"
        f" which is exp({math.log(largest):.3g})",
        _EXPONENT,
    )


def _power(values: Sequence[float], origin: Origin) -> Words | None:
    base = values[0]
    exponent = values[1] if len(values) > 1 else float(origin.equations[0].params.get("y", 2))
    text = f"{_number(base)} ** {_number(exponent)}"
    if base == 0:
        return Words(f"it takes 0 to a negative power, {text}", _DENOMINATOR)
    if base < 0 and exponent != round(exponent):
        return Words(f"a power that is no whole number of a negative number, {text}", _POSITIVE)
    return None


def _difference(values: Sequence[float], origin: Origin) -> Words | None:
    del origin
    if len(values) == 2 and all(map(math.isinf, values)):
        return Words(
            f"{_number(values[0])} - ({_number(values[1])}) is NaN: a whole row is masked with"
            " infinity, and a softmax of nothing has no value",
            _MASK,
        )
    return None


def _product(values: Sequence[float], origin: Origin) -> Words | None:
    del origin
    if 0 in values and any(map(math.isinf, values)):
        return Words("it multiplies 0 by infinity", "choose with `jnp.where` instead of a product")
    return None


def _at(domain: str, remedy: str) -> Callable[[Sequence[float], Origin], Words]:
    """Words for a function of one number outside its domain."""

    def describe(values: Sequence[float], origin: Origin) -> Words:
        # Rounding alone brings a cosine to 1.0000001.
        return Words(f"`{origin.primitive}` of {values[0]:.8g}; {domain}", remedy)

    return describe


_VALUES: dict[str, Callable[[Sequence[float], Origin], Words | None]] = {
    "div": _division,
    "log": _logarithm,
    "exp": _exponential,
    "exp2": _exponential,
    "expm1": _exponential,
    "sinh": _exponential,
    "cosh": _exponential,
    "pow": _power,
    "integer_pow": _power,
    "sub": _difference,
    "add": lambda values, origin: _difference((values[0], -values[1]), origin),
    "mul": _product,
    "sqrt": _at("negative numbers have no square root", _POSITIVE),
    "rsqrt": _at("1 / sqrt(x) is finite above 0 only", "add a small number, `rsqrt(x + 1e-6)`"),
    "log1p": _at("log(1 + x) is finite above -1 only", "bound x, `jnp.maximum(x, -1 + 1e-6)`"),
    "acos": _at("arccos ends at -1 and 1", "clip it, `jnp.clip(x, -1 + 1e-6, 1 - 1e-6)`"),
    "asin": _at("arcsin ends at -1 and 1", "clip it, `jnp.clip(x, -1 + 1e-6, 1 - 1e-6)`"),
    "atanh": _at("arctanh is finite between -1 and 1 only", _OPEN_INTERVAL),
    "acosh": _at("arccosh begins at 1", "keep it above, `jnp.maximum(x, 1 + 1e-6)`"),
    "erf_inv": _at("it is finite between -1 and 1 only", _OPEN_INTERVAL),
    "lgamma": _at("it is infinite at 0 and negative whole numbers", _POSITIVE),
    "digamma": _at("it is infinite at 0 and negative whole numbers", _POSITIVE),
    "rem": _at("the rest of a division by 0", _DENOMINATOR),
    "tan": _at("it is infinite there", "bound x"),
}


def _has_overflown(origin: Origin) -> bool:
    """Whether a slope is only too large: none of its operands is 0 or at an end."""
    return origin.equations[0].primitive.name in _GROWING - {"div", "integer_pow", "pow"}


def _overflow(origin: Origin) -> Words | None:
    """Words for a sum or product of finite numbers that is beyond its format."""
    name = origin.equations[0].primitive.name
    arrays = [x for x in origin.operands if np.issubdtype(_kind(x), np.floating)]
    if name not in _GROWING or not all(np.isfinite(np.asarray(x, float)).all() for x in arrays):
        return None
    dtype = jnp.dtype(origin.output.dtype)
    sizes = " and ".join(f"{np.abs(np.asarray(x, float)).max(initial=0):.3g}" for x in arrays)
    what = {"dot_general": "a matrix product", "conv_general_dilated": "a convolution"}.get(
        name, f"`{name}`"
    )
    remedy = (
        "calculate this step in float32"
        if dtype.itemsize < 4
        else "bring the values down before it: a norm, smaller weights, inputs near 1"
    )
    limit = f"{dtype.name} ends at {float(jnp.finfo(dtype).max):.3g}"
    return Words(f"{what} of values up to {sizes} gives infinity; {limit}", remedy)


def _kind(x: np.ndarray) -> Any:
    """The NumPy type of an array, a float's for JAX's own floating-point formats."""
    return np.float32 if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype


def _unknown(origin: Origin) -> Words:
    name = origin.equations[0].primitive.name
    result = "NaN" if np.isnan(origin.output).any() else "infinity"
    if name == "gather":
        index, size = origin.operands[1], origin.operands[0].shape
        return Words(
            f"it looks up index {int(index.max())} in an array of shape {list(size)}: what lies"
            " outside is NaN",
            "give indices from 0 to the size less 1 (a larger table, or the ids counted from 0)",
        )
    if name == "cholesky":
        return Words("its matrix is not positive definite", "add 1e-6 to the diagonal")
    return Words(f"`{name}` of finite numbers gives {result}", f"keep off them; {_TWO_WHERES}")


def rows(origin: Origin, batch: int) -> tuple[int, ...]:
    """Return which examples the operation made not finite; empty where all mix or none is known."""
    if not origin.made.ndim or origin.made.shape[0] != batch:
        return ()
    hit = origin.made.reshape(batch, -1).any(1)
    return tuple(int(row) for row in np.flatnonzero(hit))


def _rows_in_words(origin: Origin, batch: int) -> str:
    hit = rows(origin, batch)
    if not hit:
        return ""
    if len(hit) == batch:
        return f", in all {batch} examples"
    shown = ", ".join(map(str, hit[:_MOST_ROWS])) + (", ..." if len(hit) > _MOST_ROWS else "")
    return f", in {len(hit)} of {batch} examples (row{'s' * (len(hit) > 1)} {shown})"


def not_finite(exam: Exam) -> Iterator[Finding]:
    """Find the first operation whose result, or whose part in the gradient, is not finite."""
    if exam.measured.finite:
        return

    def objective(params: Any, inputs: Any, targets: Any, key: Any) -> Any:
        return exam.loss(exam.network.apply(params, inputs, key), targets)

    origin = first_not_finite(objective, exam.params, exam.inputs, exam.targets, exam.key)
    batch = jax.tree.leaves(exam.inputs)[0].shape[0]
    if origin is None:
        yield _of_layers(exam)
    elif origin.argument is not None:
        yield _of_argument(exam, origin, batch)
    else:
        layer = _layer(exam, origin)
        line = source_line(origin.slope_of or origin.equations)
        text = _sentence(exam, origin, layer, batch)
        yield Finding(layer, text, 3 * BLOCKING, line=str(line) if line else None)


def _sentence(exam: Exam, origin: Origin, layer: int | None, batch: int) -> str:
    words = explain(origin)
    line = source_line(origin.slope_of or origin.equations)
    unplaced = "in the loss: " if layer is None and origin.equations else ""
    where = f"{line}: " if line else unplaced
    turn = f" (turn {' of '.join(str(i + 1) for i in origin.iterations[::-1])} of the loop)"
    if not origin.in_value and origin.slope_of:
        where += "its gradient is not finite: "
    growth = ""
    if origin.primitive in _LAYERS and layer is not None:
        deltas = [exam.measured.delta[each.z] for each in exam.graph.layers[:layer:-1]]
        signals = [signal.rms for signal in exam.measured.signals[:layer]]
        growth = _growth(deltas if origin.slope_of else signals, after=bool(origin.slope_of))
    return (
        f"{where}{words.fault}{growth}{_rows_in_words(origin, batch)}"
        f"{turn if origin.iterations else ''}; {words.remedy}"
    )


def _growth(sizes: Sequence[float], *, after: bool = False) -> str:
    """Say by how much the layers before it multiply the signal, or those after it the gradient."""
    sizes = list(itertools.takewhile(math.isfinite, sizes))
    if len(sizes) < 2 or min(sizes) <= 0:
        return ""
    typical = math.exp(float(np.median(np.diff(np.log(sizes)))))
    what = "layers after it multiply the gradient" if after else "layers before it grow"
    return f", and {len(sizes)} {what} by {typical:.3g} each"


def _of_argument(exam: Exam, origin: Origin, batch: int) -> Finding:
    """Name a parameter, or the targets, that came with NaN or infinity."""
    names = leaf_names(exam.params)
    number = int(origin.made.sum())
    share = f"{number} of {origin.made.size} numbers"
    if origin.argument is not None and origin.argument < len(names):
        name = names[origin.argument]
        layers = exam.graph.layers
        of_kernel = [i for i, layer in enumerate(layers) if layer.leaf.index == origin.argument]
        parent = name.rpartition("/")[0]
        beside = [i for i, layer in enumerate(layers) if parent and layer.path == parent]
        found = next(iter(of_kernel or beside), None)
        return Finding(found, f"its weights are not finite: {share} of {name}", 3 * BLOCKING)
    num_inputs = len(jax.tree.leaves(exam.inputs))
    is_input = origin.argument is not None and origin.argument < len(names) + num_inputs
    what = "inputs" if is_input else "targets"
    text = f"the {what} hold NaN or infinity, {share}{_rows_in_words(origin, batch)}"
    return Finding(None, f"{text}: leave these examples out, or fill them", 3 * BLOCKING)


def _layer(exam: Exam, origin: Origin) -> int | None:
    """The layer in which, or after which, an operation stands; None for the loss and before all."""
    graph = exam.graph
    equations = origin.slope_of or origin.equations
    if not equations:
        return None
    where, name = place(equations), equations[0].primitive.name
    steps = [
        index
        for index, step in enumerate(graph.program.steps)
        if step.equations and name in step.inner and place(step.equations) == where
    ]
    if not steps:
        return None
    bad = _first_bad(exam)
    if origin.in_value and bad is not None:
        before = [step for step in steps if step <= graph.layers[bad].step]
        step = before[-1] if before else steps[0]
    elif bad is not None:
        above = [step for step in steps if step > graph.layers[bad].step]
        step = above[0] if above else steps[-1]
    else:
        step = steps[-1]
    return max((i for i, layer in enumerate(graph.layers) if layer.step <= step), default=None)


def _first_bad(exam: Exam) -> int | None:
    """The first layer with a signal that is not finite; else the last whose delta is not."""
    layers, measured = exam.graph.layers, exam.measured
    for index, signal in enumerate(measured.signals):
        if not math.isfinite(signal.rms):
            return index
    bad = (
        i for i in reversed(range(len(layers))) if not math.isfinite(measured.delta[layers[i].z])
    )
    return next(bad, None)


def _of_layers(exam: Exam) -> Finding:
    """Name the layer at which numbers end, where no operation by itself shows it."""
    index = _first_bad(exam)
    if index is None:
        return Finding(None, "the loss or its gradient is not finite", BLOCKING)
    dtype = exam.graph.value_of(exam.graph.layers[index]).dtype
    limit = f"{jnp.dtype(dtype).name} ends at {float(jnp.finfo(dtype).max):.3g}"
    what = "delta" if math.isfinite(exam.measured.signals[index].rms) else "pre-activation"
    growth = _growth([signal.rms for signal in exam.measured.signals[:index]])
    return Finding(index, f"its {what} is not finite; {limit}{growth}", 3 * BLOCKING)
