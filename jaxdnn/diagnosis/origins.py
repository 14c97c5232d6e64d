"""Which operation makes the first NaN or infinity that reaches the loss, or a gradient.

The equations of the function's jaxpr are run one by one, calls written out. With every value that
is not finite goes what made it so: the operations that gave NaN or infinity out of finite numbers.
NaN made of an infinity (0 · ∞, ∞ − ∞) is the fault of what made the infinity, unless that was
written as a constant, as masks are. What a `where` leaves out, and what a sum over finite numbers
hides, is forgotten with it; what is left at the end did reach the result, and the first of it is
the origin.

Scans and while loops run with a compiled body; an iteration is written out only where one of its
results stops being finite.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxdnn.diagnosis.program import num_same, open_jaxpr
from jaxdnn.diagnosis.source_lines import place

_NONE: frozenset[int] = frozenset()
# Calls, by where their body is.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
# An entry of their result is made of the operands' entries at the same place.
_ELEMENTWISE = {
    *("abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2"),
    *("atanh", "cbrt", "ceil", "clamp", "convert_element_type", "copy", "cos", "cosh"),
    *("digamma", "div", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor"),
    *("integer_pow", "is_finite", "lgamma", "log", "log1p", "logistic", "max", "min"),
    *("mul", "neg", "nextafter", "one_minus_square", "pow", "reduce_precision", "rem"),
    *("round", "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt", "square"),
    *("stop_gradient", "sub", "tan", "tanh"),
}
# Whose slope, or whose value, is infinite somewhere.
SINGULAR = {
    *("sqrt", "rsqrt", "cbrt", "log", "log1p", "pow", "integer_pow", "div", "acos", "asin"),
    *("acosh", "atanh", "atan2", "exp", "exp2", "expm1", "sinh", "cosh", "tan", "erf_inv"),
    *("lgamma", "digamma", "rem", "reduce_prod", "cumprod", "cholesky", "eigh", "svd"),
    *("qr", "lu", "triangular_solve", "cumlogsumexp"),
}
# Primitive of a derivative -> what it is the derivative of, likeliest first.
_DERIVATIVE_OF = {
    "div": ("sqrt", "log", "cbrt", "div", "acosh", "atanh", "rsqrt", "atan2", "log1p"),
    "pow": ("pow",),
    "rsqrt": ("acos", "asin", "acosh", "rsqrt"),
    "integer_pow": ("div", "integer_pow", "cbrt"),
    "log": ("pow",),
}
# What NumPy computes just as well: to compile each for every shape would take most of the time.
_HOST: dict[str, Callable[..., Any]] = {
    "add": lambda _, a, b: a + b,
    "add_any": lambda _, a, b: a + b,
    "sub": lambda _, a, b: a - b,
    "mul": lambda _, a, b: a * b,
    "neg": lambda _, a: -a,
    "max": lambda _, a, b: np.maximum(a, b),
    "min": lambda _, a, b: np.minimum(a, b),
    "eq": lambda _, a, b: a == b,
    "ne": lambda _, a, b: a != b,
    "lt": lambda _, a, b: a < b,
    "le": lambda _, a, b: a <= b,
    "gt": lambda _, a, b: a > b,
    "ge": lambda _, a, b: a >= b,
    "stop_gradient": lambda _, a: a,
    "copy": lambda _, a: a,
    "reshape": lambda params, a: a.reshape(params["new_sizes"]),
    "squeeze": lambda params, a: np.squeeze(a, tuple(params["dimensions"])),
    "transpose": lambda params, a: np.transpose(a, params["permutation"]),
    "broadcast_in_dim": lambda params, a: _broadcast(a, **params),
}
# Functions with a backward pass of the user's own.
RULES = {"custom_vjp_call"}
# In the names of what remat computes once more on the way back.
_RECOMPUTED = "rematted_computation"
_MOST_STEPS = 100_000


@dataclasses.dataclass(frozen=True)
class Origin:
    """An operation that made numbers that are not finite.

    Attributes:
      equations: its own and those of the calls around it, innermost first; empty for an argument.
      operands: what it took.
      output: what it gave, the first result that is not finite.
      made: which entries of it the operation made so, of the shape of `output`.
      iterations: of the loops around it, outermost first; counted from 0.
      constant: infinity or NaN stood in the code, as in a mask.
      argument: index of the argument's leaf that came so; None for an operation.
      in_value: the function's value is not finite, not its gradient alone.
      slope_of: the equations of the operation of whose gradient it is a part, as `equations`;
        empty where the operation itself gives what is not finite.
    """

    equations: tuple[core.JaxprEqn, ...]
    operands: tuple[np.ndarray, ...]
    output: np.ndarray
    made: np.ndarray
    iterations: tuple[int, ...] = ()
    constant: bool = False
    argument: int | None = None
    in_value: bool = True
    slope_of: tuple[core.JaxprEqn, ...] = ()

    @property
    def primitive(self) -> str:
        """Name in JAX of the operation, that of whose gradient it is a part where it is."""
        equations = self.slope_of or self.equations
        return equations[0].primitive.name if equations else ""


def first_not_finite(function: Callable[..., Any], *args: Any) -> Origin | None:
    """Find the operation to which NaN or infinity in a function's value or gradient goes back.

    Args:
      function: pure, of trees of arrays, with a scalar value.
      args: the first one is what the gradient is taken of: a tree of floating-point arrays.

    Returns:
      None where value and gradient are finite.
    """
    value = jax.make_jaxpr(function)(*args)
    origin = _search(value, args, in_value=True)
    if origin is None:
        both = jax.make_jaxpr(jax.value_and_grad(function))(*args)
        origin = _search(both, args, in_value=False)
        if origin is not None and origin.equations:
            origin = dataclasses.replace(
                origin, slope_of=_slope_of(value.jaxpr, both.jaxpr, origin)
            )
    return origin


def _search(closed: core.ClosedJaxpr, args: Sequence[Any], *, in_value: bool) -> Origin | None:
    runner = _Runner()
    leaves = [runner.argument(i, leaf) for i, leaf in enumerate(jax.tree.leaves(tuple(args)))]
    results = runner.run(closed.jaxpr, closed.consts, leaves)
    found = frozenset[int]().union(*(each.nan | each.inf for each in results))
    if not found:
        return None
    real = [index for index in found if not runner.origins[index].constant]
    origin = runner.origins[min(real or found)]
    return dataclasses.replace(origin, in_value=in_value)


class _Tracked(NamedTuple):
    """A value, and by index the origins of its NaNs and of its infinities."""

    value: Any
    nan: frozenset[int] = _NONE
    inf: frozenset[int] = _NONE


class _Runner:
    """Runs a jaxpr and collects origins in the order in which they come up."""

    def __init__(self) -> None:
        self.origins: list[Origin] = []
        self._around: tuple[core.JaxprEqn, ...] = ()
        self._iterations: tuple[int, ...] = ()

    def argument(self, index: int, leaf: Any) -> _Tracked:
        """Take in a leaf of the arguments."""
        return self._given(leaf, argument=index)

    def run(
        self, jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[_Tracked]
    ) -> list[_Tracked]:
        """Return the results of a jaxpr."""
        env = dict(zip(jaxpr.invars, args, strict=True))
        env.update(zip(jaxpr.constvars, map(self._given, consts), strict=True))
        last = {var: index for index, eqn in enumerate(jaxpr.eqns) for var in _variables(eqn)}
        kept = set(filter(_is_variable, jaxpr.outvars))
        for index, eqn in enumerate(jaxpr.eqns):
            operands = [self._read(atom, env, eqn) for atom in eqn.invars]
            for var, result in zip(eqn.outvars, self._equation(eqn, operands), strict=True):
                env[var] = result
            for var in set(_variables(eqn)) - kept:
                if last[var] == index:
                    del env[var]
        return [self._read(atom, env, None) for atom in jaxpr.outvars]

    def _given(self, value: Any, *, argument: int | None = None) -> _Tracked:
        array = _host(value)
        if array is None or np.isfinite(array).all():
            return _Tracked(value)
        return self._new(value, array, ~np.isfinite(array), (), (), argument=argument)

    def _read(self, atom: Any, env: dict[Any, _Tracked], eqn: core.JaxprEqn | None) -> _Tracked:
        if not isinstance(atom, core.Literal):
            return env[atom]
        if np.ndim(atom.val) or np.isfinite(atom.val):
            return _Tracked(atom.val)
        array = np.asarray(atom.val)
        equations = self._around if eqn is None else (eqn, *self._around)
        made = np.ones(array.shape, bool)
        return self._new(atom.val, array, made, (), equations, constant=True)

    def _new(
        self,
        value: Any,
        array: np.ndarray,
        made: np.ndarray,
        operands: Sequence[Any],
        equations: tuple[core.JaxprEqn, ...],
        *,
        constant: bool = False,
        argument: int | None = None,
    ) -> _Tracked:
        arrays = tuple(np.asarray(x) for x in map(_host_any, operands))
        # What is closed over has neither an equation nor a place among the arguments.
        constant = constant or (not equations and argument is None and not np.isnan(array).any())
        origin = Origin(equations, arrays, array, made, self._iterations, constant, argument)
        self.origins.append(origin)
        own = frozenset({len(self.origins) - 1})
        nan, inf = np.isnan(array).any(), np.isinf(array).any()
        return _Tracked(value, own if nan else _NONE, own if inf else _NONE)

    def _equation(self, eqn: core.JaxprEqn, operands: list[_Tracked]) -> list[_Tracked]:
        name = eqn.primitive.name
        around, self._around = self._around, (eqn, *self._around)
        try:
            if name in _CALLS and _CALLS[name] in eqn.params:
                return self.run(*open_jaxpr(eqn.params[_CALLS[name]]), operands)
            if name == "cond":
                branches = eqn.params["branches"]
                index = int(np.clip(int(operands[0].value), 0, len(branches) - 1))
                return self.run(*open_jaxpr(branches[index]), operands[1:])
        finally:
            self._around = around
        values = run_equation(eqn, [operand.value for operand in operands])
        if name in ("scan", "while") and not all(map(_is_finite, values)):
            self._around = (eqn, *around)
            loop = self._scan if name == "scan" else self._while
            taints = loop(eqn, operands)
            self._around = around
            return [
                _Tracked(value, *taint) if not _is_finite(value) else _Tracked(value)
                for value, taint in zip(values, taints, strict=True)
            ]
        return [self._result(eqn, operands, value) for value in values]

    def _result(self, eqn: core.JaxprEqn, operands: list[_Tracked], value: Any) -> _Tracked:
        """Say where the numbers that are not finite in a result come from."""
        array = _host(value)
        if array is None:
            return _Tracked(value)
        bad = ~np.isfinite(array)
        if not bad.any():
            return _Tracked(value)
        nan_at, inf_at = np.isnan(array), np.isinf(array)
        nan, inf, by_infinity = _NONE, _NONE, _NONE
        new_nan, new_inf, constants = nan_at.copy(), inf_at.copy(), _NONE
        for operand, at in _meetings(eqn, operands, array.shape):
            has_nan, has_inf = _has(operand, np.isnan, at), _has(operand, np.isinf, at)
            if np.any(has_nan & nan_at):
                nan |= operand.nan
            new_nan &= ~has_nan
            if np.any(has_inf & inf_at):
                inf |= operand.inf
            new_inf &= ~has_inf
        for operand, at in _meetings(eqn, operands, array.shape):
            if np.any(_has(operand, np.isinf, at) & new_nan):
                real = {i for i in operand.inf if not self.origins[i].constant}
                by_infinity |= real
                constants |= operand.inf - real
        if new_nan.any() and by_infinity and not constants:
            nan, new_nan = nan | by_infinity, np.zeros_like(new_nan)
        if np.any(made := new_nan | new_inf):
            raw = [operand.value for operand in operands]
            fresh = self._new(value, array, made, raw, (eqn, *self._around))
            nan = nan | fresh.nan if new_nan.any() else nan
            inf = inf | fresh.inf if new_inf.any() else inf
        return _Tracked(value, nan, inf)

    def _scan(self, eqn: core.JaxprEqn, operands: list[_Tracked]) -> list[Any]:
        body, consts = open_jaxpr(eqn.params["jaxpr"])
        num_carry = num_same(eqn.outvars, body.outvars)
        num_before = num_same(eqn.invars, body.invars)
        shared = operands[: num_before - num_carry]
        carry, stacked = operands[num_before - num_carry : num_before], operands[num_before:]
        loop = _Loop(self, body, consts, shared)
        order = range(eqn.params["length"])
        for index in reversed(order) if eqn.params["reverse"] else order:
            slices = [_slice(each, index) for each in stacked]
            carry = loop.step(index, carry, slices)[:num_carry]
        return loop.taints

    def _while(self, eqn: core.JaxprEqn, operands: list[_Tracked]) -> list[Any]:
        going, going_consts = open_jaxpr(eqn.params["cond_jaxpr"])
        body, consts = open_jaxpr(eqn.params["body_jaxpr"])
        num_going = eqn.params["cond_nconsts"]
        num_shared = num_going + eqn.params["body_nconsts"]
        goes_on = jax.jit(core.jaxpr_as_fun(core.ClosedJaxpr(going, going_consts)))
        before = [each.value for each in operands[:num_going]]
        carry = operands[num_shared:]
        loop = _Loop(self, body, consts, operands[num_going:num_shared])
        for index in range(_MOST_STEPS):
            if not bool(goes_on(*before, *(each.value for each in carry))[0]):
                break
            carry = loop.step(index, carry, [])
        return loop.taints

    def iteration(
        self, index: int, body: core.Jaxpr, consts: Sequence[Any], args: Sequence[_Tracked]
    ) -> list[_Tracked]:
        """Write one iteration of a loop out."""
        outer, self._iterations = self._iterations, (*self._iterations, index)
        try:
            return self.run(body, consts, args)
        finally:
            self._iterations = outer


class _Loop:
    """Runs the compiled body of a loop, and writes an iteration out where something new is bad."""

    def __init__(
        self, runner: _Runner, body: core.Jaxpr, consts: Sequence[Any], shared: list[_Tracked]
    ) -> None:
        self._runner, self._body, self._consts, self._shared = runner, body, consts, shared
        self._compiled = jax.jit(core.jaxpr_as_fun(core.ClosedJaxpr(body, consts)))
        self.taints: list[tuple[frozenset[int], frozenset[int]]] = [(_NONE, _NONE)] * len(
            body.outvars
        )

    def step(self, index: int, carry: list[_Tracked], slices: list[_Tracked]) -> list[_Tracked]:
        args = [*self._shared, *carry, *slices]
        values = self._compiled(*(each.value for each in args))
        bad = [_bad(value) for value in values]
        known = zip(bad, self.taints, strict=True)
        if any(
            (nan and not of_nan) or (inf and not of_inf) for (nan, inf), (of_nan, of_inf) in known
        ):
            seen = self._runner.iteration(index, self._body, self._consts, args)
            self.taints = [
                (nan | each.nan, inf | each.inf)
                for (nan, inf), each in zip(self.taints, seen, strict=True)
            ]
        return [
            _Tracked(value, of_nan if nan else _NONE, of_inf if inf else _NONE)
            for value, (nan, inf), (of_nan, of_inf) in zip(values, bad, self.taints, strict=True)
        ]


def _meetings(
    eqn: core.JaxprEqn, operands: Sequence[_Tracked], shape: tuple[int, ...]
) -> Iterator[tuple[_Tracked, Any]]:
    """Operands that are not finite, each with the entries of the result that it reaches.

    The entries are a mask of the result's shape, or None where any may be reached.
    """
    name = eqn.primitive.name
    same_place = name in _ELEMENTWISE
    for index, operand in enumerate(operands):
        if not (operand.nan or operand.inf):
            continue
        if name == "select_n" and index > 0:
            which = np.asarray(operands[0].value).astype(int)
            yield operand, np.broadcast_to(which == index - 1, shape)
        else:
            yield operand, np.ones(shape, bool) if same_place else None


def _has(operand: _Tracked, test: Callable[[Any], np.ndarray], at: Any) -> np.ndarray:
    """Where an operand meets the test, among the entries of the result that it reaches."""
    found = test(np.asarray(operand.value))
    return np.asarray(found.any()) if at is None else found & at


def _slice(stacked: _Tracked, index: int) -> _Tracked:
    value = stacked.value[index]
    nan, inf = _bad(value)
    return _Tracked(value, stacked.nan if nan else _NONE, stacked.inf if inf else _NONE)


def _bad(value: Any) -> tuple[bool, bool]:
    """Whether a value holds NaN, and whether infinity."""
    array = _host(value)
    if array is None:
        return False, False
    return bool(np.isnan(array).any()), bool(np.isinf(array).any())


def _is_finite(value: Any) -> bool:
    array = _host(value)
    return array is None or bool(np.isfinite(array).all())


def _host(value: Any) -> np.ndarray | None:
    """The array on the host; None for what is always finite."""
    dtype = jnp.result_type(value)
    if not jnp.issubdtype(dtype, jnp.inexact):
        return None
    return np.asarray(value)


def _host_any(value: Any) -> Any:
    return 0 if jnp.issubdtype(jnp.result_type(value), jax.dtypes.extended) else value


def run_equation(eqn: core.JaxprEqn, operands: Sequence[Any]) -> Sequence[Any]:
    """Return the results of one equation, operands in the order of its own."""
    on_host = _HOST.get(eqn.primitive.name)
    if on_host is not None and all(map(_is_plain, (*eqn.invars, *eqn.outvars))):
        pairs = zip(eqn.invars, operands, strict=True)
        arrays = [np.asarray(value, _dtype(atom)) for atom, value in pairs]
        with np.errstate(all="ignore"):
            return [np.asarray(on_host(eqn.params, *arrays), _dtype(eqn.outvars[0]))]
    pairs = zip(eqn.invars, operands, strict=True)
    values = {atom: value for atom, value in pairs if isinstance(atom, core.Var)}
    variables = list(values)
    unnamed = [("",) * len(each) for each in (variables, eqn.outvars)]
    about = core.DebugInfo("equation", eqn.primitive.name, *unnamed)
    body = core.Jaxpr([], variables, eqn.outvars, [eqn], eqn.effects, about)
    return core.jaxpr_as_fun(core.ClosedJaxpr(body, ()))(*(values[var] for var in variables))


def _broadcast(
    a: np.ndarray, *, shape: Sequence[int], broadcast_dimensions: Sequence[int], **_: Any
) -> np.ndarray:
    sizes = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, a.shape, strict=True):
        sizes[axis] = size
    return np.broadcast_to(a.reshape(sizes), shape)


def _dtype(atom: Any) -> Any:
    return atom.aval.dtype


def _is_plain(atom: Any) -> bool:
    """Whether NumPy has arrays of this kind: not keys, and no operand without a format."""
    dtype = getattr(atom.aval, "dtype", None)
    return dtype is not None and not jnp.issubdtype(dtype, jax.dtypes.extended)


def _variables(eqn: core.JaxprEqn) -> Iterator[core.Var]:
    return (atom for atom in eqn.invars if isinstance(atom, core.Var))


def _is_variable(atom: Any) -> bool:
    return isinstance(atom, core.Var)


def _slope_of(value: core.Jaxpr, jaxpr: core.Jaxpr, origin: Origin) -> tuple[core.JaxprEqn, ...]:
    """Find the operation of whose gradient the origin is a part: one of the same call in the code.

    The value's own operations are those that the first result needs.
    """
    own = _needed(value, set(range(len(value.outvars)))) | _needed(jaxpr, {0})
    name = origin.equations[0].primitive.name
    if id(origin.equations[0]) in own:
        return ()
    where = place(origin.equations)
    alike = [
        around
        for around in (*walk(value), *walk(jaxpr))
        if id(around[0]) in own and where and place(around) == where
    ]
    # JAX gives the operations of a custom gradient the place of the call that it belongs to.
    for around in alike:
        if around[0].primitive.name in RULES:
            return around
    same = [around for around in alike if around[0].primitive.name == name]
    if same and any(_RECOMPUTED in str(eqn.source_info.name_stack) for eqn in origin.equations):
        return ()
    for likely in _DERIVATIVE_OF.get(name, ()):
        for around in reversed(alike):
            if around[0].primitive.name == likely:
                return around
    singular = [around for around in alike if around[0].primitive.name in SINGULAR]
    return (same or singular or alike or [origin.equations])[-1]


def walk(
    jaxpr: core.Jaxpr, around: tuple[core.JaxprEqn, ...] = ()
) -> Iterator[tuple[core.JaxprEqn, ...]]:
    """Yield every equation, each followed by those of the calls around it."""
    for eqn in jaxpr.eqns:
        yield (eqn, *around)
        for inner in core.jaxprs_in_params(eqn.params):
            yield from walk(open_jaxpr(inner)[0], (eqn, *around))


def _needed(jaxpr: core.Jaxpr, results: Iterable[int]) -> set[int]:
    """Identities of the equations that some results of a jaxpr need."""
    equations: set[int] = set()
    _mark(jaxpr, results, equations)
    return equations


def _mark(jaxpr: core.Jaxpr, results: Iterable[int], equations: set[int]) -> set[int]:
    """Enter the equations that some results need; return the indices of the arguments they need."""
    needed = {jaxpr.outvars[index] for index in results if _is_variable(jaxpr.outvars[index])}
    for eqn in reversed(jaxpr.eqns):
        wanted = [index for index, var in enumerate(eqn.outvars) if var in needed]
        if not wanted:
            continue
        equations.add(id(eqn))
        name = eqn.primitive.name
        if name in _CALLS and _CALLS[name] in eqn.params:
            body, _ = open_jaxpr(eqn.params[_CALLS[name]])
            taken = _mark(body, wanted, equations)
            needed.update(v for i, v in enumerate(eqn.invars) if i in taken and _is_variable(v))
            continue
        for inner in core.jaxprs_in_params(eqn.params):
            body, _ = open_jaxpr(inner)
            results = set(wanted)
            if name == "scan":
                results |= set(range(num_same(eqn.outvars, body.outvars)))
            elif name != "cond":
                results = set(range(len(body.outvars)))
            _mark(body, results, equations)
        needed.update(_variables(eqn))
    return {i for i, var in enumerate(jaxpr.invars) if var in needed}
