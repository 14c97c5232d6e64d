"""Any activation as the theory takes it: where it kinks and jumps, and in double precision.

An activation is a function alone; its kinks are found by measuring. On each interval phi and phi'
are interpolated by a polynomial in Chebyshev points. Where its last coefficients are not
negligible the interval is cut in two; a kink leaves a nest of ever smaller intervals around it,
down to rounding. With the kinks as ends the search is repeated, which gives few, wide panels.

Battles and Trefethen, "An Extension of MATLAB to Continuous Functions and Operators", 2004.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdnn.activations import Activation
from jaxdnn.errors import InputError
from jaxdnn.propagation.quadrature import NUM_NODES, Breakpoints

Phi = Callable[[Array], Array]
P = ParamSpec("P")
R = TypeVar("R")

# Beyond this |x| an activation is taken to vary no faster than a power of x.
SEARCHED = 32.0
_TAIL = SEARCHED * np.array([8.0, 64.0, 512.0])
# Last Chebyshev coefficients of phi and phi', relative to their size. The rule with as many nodes
# is exact for twice the degree, hence for phi² to the square of this.
_TOLERANCE = 1e-9
_MOST_PANELS = 2000
_CHUNK = 64
# Intervals narrower than this surround a kink; those of _FINEST need not.
_NEST = 1e-6
_FINEST = 0.25


@dataclasses.dataclass(frozen=True, eq=False)
class Nonlinearity:
    """An activation with its breakpoints.

    Attributes:
      name: what messages call it.
      function: phi, elementwise, of a JAX array.
      points: the ends of the panels on which phi is smooth.
      kinks: where phi is continuous and its slope jumps.
      jumps: where phi jumps.
    """

    name: str
    function: Phi
    points: Breakpoints
    kinks: tuple[float, ...]
    jumps: tuple[float, ...]

    def __call__(self, x: Array) -> Array:
        """Return phi(x)."""
        return self.function(x)

    def derivative(self, x: Array) -> Array:
        """Return phi'(x), as automatic differentiation has it: without what a jump adds."""
        return _derivative(self.function, x)


def make_nonlinearity(phi: Phi | Nonlinearity) -> Nonlinearity:
    """Find the kinks and jumps of `phi` within |x| <= 32; found once for each function.

    Args:
      phi: an elementwise function in jax.numpy that keeps the dtype of its argument.

    Raises:
      InputError: phi is not such a function, is not finite somewhere, or is too rough.
    """
    return phi if isinstance(phi, Nonlinearity) else _make(phi)


@functools.lru_cache(maxsize=64)
def _make(phi: Phi) -> Nonlinearity:
    name = phi.name if isinstance(phi, Activation) else getattr(phi, "__name__", repr(phi))
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        measure = _Measured(phi, name)
        ends = _subdivide(measure, np.linspace(-SEARCHED, SEARCHED, 65), 1e-15)
        finest = max(_FINEST, float(np.diff(ends)[np.diff(ends) > _NEST].min()))
        jumps, kinks = _classify(measure, _apart(ends))
        edges = [-SEARCHED, 0.0, SEARCHED]
        ends = np.unique(np.array([*edges, *jumps, *kinks, *_cores(ends)]))
        ends = _subdivide(measure, ends, 1e-7, widest=16 * finest)
        jumps, kinks = _classify(measure, ends)
    panels = np.concatenate([-_TAIL[::-1], ends, _TAIL])
    breaks = Breakpoints(panels, np.array([*jumps, *kinks]), float(np.diff(ends).min()))
    return Nonlinearity(name, phi, breaks, tuple(kinks), tuple(jumps))


class _Measured:
    """phi and phi' at points of numpy, in chunks of one shape, so that they compile once."""

    def __init__(self, phi: Phi, name: str) -> None:
        self.name = name
        self._both = jax.jit(lambda x: (phi(x), _derivative(phi, x)))
        try:
            values = jax.eval_shape(self._both, jnp.zeros((_CHUNK, NUM_NODES)))[0]
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"activation {name} cannot be traced and differentiated by JAX ({reason}); give "
                "an elementwise function written with jax.numpy"
            ) from error
        if values.shape != (_CHUNK, NUM_NODES) or values.dtype != jnp.float64:
            raise InputError(
                f"activation {name} turns float64 of shape {(_CHUNK, NUM_NODES)} into "
                f"{values.dtype} of shape {values.shape}; give an elementwise function that keeps "
                "the dtype of its argument"
            )

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return phi and phi' at x (panel, node)."""
        num_chunks = -(-len(x) // _CHUNK)
        padded = np.zeros((num_chunks * _CHUNK, NUM_NODES))
        padded[: len(x), : x.shape[1]] = x
        found = [self._both(chunk) for chunk in np.split(padded, num_chunks)]
        values, slopes = (
            np.concatenate([np.asarray(pair[i]) for pair in found])[: len(x), : x.shape[1]]
            for i in (0, 1)
        )
        for what, numbers in (("", values), ("'s derivative", slopes)):
            if not np.isfinite(numbers).all():
                where = x[~np.isfinite(numbers)][0]
                raise InputError(
                    f"activation {self.name}{what} is {numbers[~np.isfinite(numbers)][0]} at "
                    f"x = {where:.6g}; give one that is finite for |x| <= {SEARCHED:g}"
                )
        return values, slopes


def _subdivide(
    measure: _Measured, ends: np.ndarray, narrowest: float, *, widest: float = np.inf
) -> np.ndarray:
    """Cut intervals in two until phi and phi' are polynomials on each, or it is too narrow."""
    nodes = np.cos(np.pi * (np.arange(NUM_NODES) + 0.5) / NUM_NODES)
    # Coefficients of the three highest Chebyshev polynomials from values in the nodes.
    highest = np.cos(np.arange(NUM_NODES - 3, NUM_NODES)[:, None] * np.arccos(nodes)) * 2
    highest /= NUM_NODES
    left, right = ends[:-1], ends[1:]
    sample = np.linspace(-2, 2, 128 * NUM_NODES).reshape(128, NUM_NODES)
    usual = [float(np.abs(values).max()) for values in measure(sample)]
    done = [ends]
    while len(left):
        x = (left + right)[:, None] / 2 + (right - left)[:, None] / 2 * nodes
        rough = right - left > widest
        for values, size in zip(measure(x), usual, strict=True):
            allowed = _TOLERANCE * np.maximum(np.abs(values).max(axis=1), size)
            rough |= np.abs(values @ highest.T).max(axis=1) > allowed
        rough &= right - left > narrowest * np.maximum(1, np.maximum(np.abs(left), np.abs(right)))
        left, right = left[rough], right[rough]
        middle = (left + right) / 2
        done.append(middle)
        if sum(map(len, done)) > _MOST_PANELS:
            raise InputError(
                f"activation {measure.name} is not smooth between its kinks (near "
                f"x = {middle[0]:.6g}): it is noisy, computed in float32, or has more than a "
                "hundred kinks; give one that keeps the precision of its argument"
            )
        left, right = np.concatenate([left, middle]), np.concatenate([middle, right])
    return np.unique(np.concatenate(done))


def _apart(ends: np.ndarray) -> np.ndarray:
    """Return the ends between two intervals that are not tiny."""
    wide = np.diff(ends) > _NEST
    return ends[1:-1][wide[1:] & wide[:-1]]


def _cores(ends: np.ndarray) -> list[float]:
    """Return the core of each nest of tiny intervals: where phi or phi' is not smooth."""
    widths = np.diff(ends)
    padded = np.concatenate([[np.inf], widths, [np.inf]])
    least = (widths <= padded[:-2]) & (widths < padded[2:]) & (widths < _NEST)
    return [float(x) for x in ((ends[1:] + ends[:-1]) / 2)[least]]


def _classify(measure: _Measured, ends: np.ndarray) -> tuple[list[float], list[float]]:
    """Return the jumps and the kinks among the ends."""
    step = 1e-9 * np.maximum(1, np.abs(ends))
    steps = np.stack([-step, step, -1e6 * step, 1e6 * step], axis=1)
    values, slopes = measure(ends[:, None] + steps)
    near, far = np.abs(values[:, :2]).max(axis=1), np.abs(values[:, 2:]).max(axis=1)
    if (near > 100 * (1e-3 + far)).any():
        where = ends[(near / (1e-3 + far)).argmax()]
        raise InputError(
            f"activation {measure.name} has no bound near x = {where:.6g}; give one that has"
        )
    jumps = np.abs(values[:, 0] - values[:, 1]) > 1e-4 * (1 + near)
    max_slope = np.abs(slopes[:, :2]).max(axis=1)
    kinks = (np.abs(slopes[:, 0] - slopes[:, 1]) > 1e-4 * (1 + max_slope)) & ~jumps
    return [float(x) for x in ends[jumps]], [float(x) for x in ends[kinks]]


def _derivative(phi: Phi, x: Array) -> Array:
    return jax.jvp(phi, (x,), (jnp.ones_like(x),))[1]


def in_float64(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function of an activation and numbers, and run it in double precision.

    The first argument is an activation, `(phi, *numbers, **options)`; its kinks are found here.
    Numbers and arrays become float64 arrays, options are part of the program. Works under jit, vmap
    and jvp (grad only where double precision is on outside). What is returned stays float64:
    outside, combine it with numpy (`float`, `np.asarray`), since JAX would round it to its default
    precision.
    """
    options = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    compiled: Any = jax.jit(function, static_argnums=0, static_argnames=options)

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        phi, *numbers = cast(tuple[Any, ...], args)
        given = {
            name: value if name in options else _convert(value) for name, value in kwargs.items()
        }
        with jax.enable_x64(True):
            return compiled(make_nonlinearity(phi), *map(_convert, numbers), **given)

    return wrapped


def _convert(value: object) -> object:
    if isinstance(value, jax.Array):
        return value.astype(jnp.float64)
    return jnp.asarray(np.asarray(value, np.float64))
