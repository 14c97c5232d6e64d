"""A JAX function as an ONNX graph: each of its operations by what ONNX has for it.

Enough for networks of images: dense layers, convolutions, norms, the activations, softmax. What
depends on no input is computed now and kept as a number. The first axis of the input, the batch, is
left open.

Reference: ONNX operators, version 18 (https://onnx.ai/onnx/operators/).
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.extend import core

from jaxdnn.errors import InputError

OPSET = 18
_IR_VERSION = 9

_SAME = {
    **{"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "neg": "Neg", "exp": "Exp"},
    **{"log": "Log", "abs": "Abs", "sqrt": "Sqrt", "tanh": "Tanh", "logistic": "Sigmoid"},
    **{"erf": "Erf", "sign": "Sign", "floor": "Floor", "ceil": "Ceil", "sin": "Sin", "cos": "Cos"},
    **{"max": "Max", "min": "Min", "pow": "Pow", "not": "Not", "and": "And", "or": "Or"},
    **{"ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "lt": "Less", "eq": "Equal"},
    **{"copy": "Identity", "copy_p": "Identity", "stop_gradient": "Identity"},
}
_REDUCED = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}

Env = dict[Any, Any]


def to_onnx(
    function: Callable[[jax.Array], jax.Array],
    shape: Sequence[int],
    dtype: Any,
    *,
    names: tuple[str, str],
) -> Any:
    """Return an `onnx.ModelProto` of a function of a batch.

    Args:
      function: array (batch, ...) -> array (batch, ...); its weights are closed over.
      shape: of one example.
      dtype: of the examples.
      names: what the input and the output are called.

    Raises:
      InputError: it holds an operation that is not known here.
    """
    onnx = _library()
    (batch,) = export.symbolic_shape("batch")
    traced = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((batch, *shape), dtype))
    graph = _Graph(names[0])
    (x,), (y,) = traced.jaxpr.invars, traced.jaxpr.outvars
    env: Env = {x: names[0], **dict(zip(traced.jaxpr.constvars, traced.consts, strict=True))}
    graph.add_all(traced.jaxpr, env)
    graph.add("Identity", [graph.value(env, y)], output=names[1])

    def info(name: str, aval: Any) -> Any:
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype))
        return onnx.helper.make_tensor_value_info(name, kind, ["batch", *aval.shape[1:]])

    made = onnx.helper.make_graph(
        graph.nodes, "network", [info(names[0], x.aval)], [info(names[1], y.aval)], graph.arrays
    )
    opset = onnx.helper.make_opsetid("", OPSET)
    model = onnx.helper.make_model(made, opset_imports=[opset], ir_version=_IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


def _library() -> Any:
    # Of an extra: nothing else needs it, not even a check of types.
    return importlib.import_module("onnx")


class _Graph:
    """The nodes and the constants so far. A value is the name of one, or an array known now."""

    def __init__(self, source: str):
        self.nodes: list[Any] = []
        self.arrays: list[Any] = []
        self._source, self._batch = source, ""
        self._numbers = itertools.count()

    def add(self, operator: str, inputs: Sequence[str], *, output: str = "", **attributes) -> str:
        """Add a node; return the name of what comes out."""
        output = output or f"v{next(self._numbers)}"
        self.nodes.append(
            _library().helper.make_node(operator, list(inputs), [output], **attributes)
        )
        return output

    def constant(self, array: Any) -> str:
        """Keep an array; return its name."""
        name = f"c{next(self._numbers)}"
        self.arrays.append(_library().numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def value(self, env: Env, atom: Any) -> str:
        """Return the name of what a variable or a literal of a jaxpr holds."""
        found = atom.val if isinstance(atom, core.Literal) else env[atom]
        return found if isinstance(found, str) else self.constant(found)

    def shape(self, sizes: Sequence[Any]) -> str:
        """Return the name of a shape, in which what is no number is the batch."""
        if all(isinstance(size, int) for size in sizes):
            return self.constant(np.array(sizes, np.int64))
        if not self._batch:
            self._batch = self.add("Shape", [self._source], start=0, end=1)
        parts = [
            self.constant(np.array([size], np.int64)) if isinstance(size, int) else self._batch
            for size in sizes
        ]
        return self.add("Concat", parts, axis=0)

    def add_all(self, jaxpr: Any, env: Env) -> None:
        """Add every operation of a jaxpr; what it calls is written out."""
        for equation in _needed(jaxpr):
            inner = next((equation.params[key] for key in _CALLED if key in equation.params), None)
            if inner is not None:
                closed = inner if hasattr(inner, "jaxpr") else core.ClosedJaxpr(inner, [])
                known = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
                given = [_held(env, atom) for atom in equation.invars]
                own: Env = {**known, **dict(zip(closed.jaxpr.invars, given, strict=True))}
                self.add_all(closed.jaxpr, own)
                results = [_held(own, atom) for atom in closed.jaxpr.outvars]
                env.update(zip(equation.outvars, results, strict=True))
            elif (results := _computed(equation, env)) is not None:
                env.update(zip(equation.outvars, results, strict=True))
            else:
                env[equation.outvars[0]] = self._add_one(equation, env)

    def _add_one(self, equation: Any, env: Env) -> str:
        name, params = equation.primitive.name, equation.params
        inputs = [self.value(env, atom) for atom in _read(equation)]
        if name in _SAME:
            return self.add(_SAME[name], inputs)
        if name in _REDUCED:
            axes = self.constant(np.array(params["axes"], np.int64))
            return self.add(_REDUCED[name], [inputs[0], axes], keepdims=0)
        if name not in _RULES:
            raise InputError(
                f"ONNX is not written for the operation {name}, which this network holds; "
                "use the StableHLO"
            )
        return _RULES[name](self, inputs, equation)


def _needed(jaxpr: Any) -> list[Any]:
    """Return the operations on which the results depend, in their order."""
    live, kept = set(map(id, jaxpr.outvars)), []
    for equation in reversed(jaxpr.eqns):
        if any(id(var) in live for var in equation.outvars):
            live |= set(map(id, _read(equation)))
            kept.append(equation)
    return kept[::-1]


def _read(equation: Any) -> list[Any]:
    """Return the inputs of an operation; of what is joined, parts of no size are none."""
    if equation.primitive.name != "concatenate":
        return list(equation.invars)
    return [var for var in equation.invars if 0 not in var.aval.shape]


_CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def _held(env: Env, atom: Any) -> Any:
    return atom.val if isinstance(atom, core.Literal) else env[atom]


def _computed(equation: Any, env: Env) -> list[Any] | None:
    """Return the results of an operation whose inputs are all known, None where one is not."""
    given = [_held(env, atom) for atom in _read(equation)]
    sizes = [size for atom in equation.outvars for size in atom.aval.shape]
    if any(isinstance(value, str) for value in given) or not all(
        isinstance(size, int) for size in sizes
    ):
        return None
    results = equation.primitive.bind(*map(jnp.asarray, given), **equation.params)
    return list(results) if equation.primitive.multiple_results else [results]


def _one_like(graph: _Graph, equation: Any, value: float) -> str:
    return graph.constant(np.array(value, equation.invars[0].aval.dtype))


def _integer_pow(graph: _Graph, inputs: list[str], equation: Any) -> str:
    return graph.add("Pow", [*inputs, _one_like(graph, equation, equation.params["y"])])


def _square(graph: _Graph, inputs: list[str], _: Any) -> str:
    return graph.add("Mul", [inputs[0], inputs[0]])


def _rsqrt(graph: _Graph, inputs: list[str], _: Any) -> str:
    return graph.add("Reciprocal", [graph.add("Sqrt", inputs)])


def _erfc(graph: _Graph, inputs: list[str], equation: Any) -> str:
    return graph.add("Sub", [_one_like(graph, equation, 1), graph.add("Erf", inputs)])


def _expm1(graph: _Graph, inputs: list[str], equation: Any) -> str:
    return graph.add("Sub", [graph.add("Exp", inputs), _one_like(graph, equation, 1)])


def _log1p(graph: _Graph, inputs: list[str], equation: Any) -> str:
    return graph.add("Log", [graph.add("Add", [inputs[0], _one_like(graph, equation, 1)])])


def _ne(graph: _Graph, inputs: list[str], _: Any) -> str:
    return graph.add("Not", [graph.add("Equal", inputs)])


def _is_finite(graph: _Graph, inputs: list[str], equation: Any) -> str:
    zero = graph.add("Mul", [inputs[0], _one_like(graph, equation, 0)])
    return graph.add("Equal", [zero, _one_like(graph, equation, 0)])


def _select_n(graph: _Graph, inputs: list[str], _: Any) -> str:
    which, when_false, when_true = inputs
    return graph.add("Where", [which, when_true, when_false])


def _convert(graph: _Graph, inputs: list[str], equation: Any) -> str:
    kind = _library().helper.np_dtype_to_tensor_dtype(np.dtype(equation.params["new_dtype"]))
    return graph.add("Cast", inputs, to=kind)


def _reshape(graph: _Graph, inputs: list[str], equation: Any) -> str:
    return graph.add("Reshape", [inputs[0], graph.shape(equation.outvars[0].aval.shape)])


def _broadcast(graph: _Graph, inputs: list[str], equation: Any) -> str:
    before = equation.invars[0].aval.shape
    sizes: list[Any] = [1] * len(equation.params["shape"])
    for size, axis in zip(before, equation.params["broadcast_dimensions"], strict=True):
        sizes[axis] = size
    aligned = graph.add("Reshape", [inputs[0], graph.shape(sizes)])
    return graph.add("Expand", [aligned, graph.shape(equation.params["shape"])])


def _transpose(graph: _Graph, inputs: list[str], equation: Any) -> str:
    return graph.add("Transpose", inputs, perm=list(equation.params["permutation"]))


def _concatenate(graph: _Graph, inputs: list[str], equation: Any) -> str:
    return graph.add("Concat", inputs, axis=equation.params["dimension"])


def _stack(graph: _Graph, inputs: list[str], equation: Any) -> str:
    axis = graph.constant(np.array([equation.params["axis"]], np.int64))
    return graph.add(
        "Concat",
        [graph.add("Unsqueeze", [each, axis]) for each in inputs],
        axis=equation.params["axis"],
    )


def _slice(graph: _Graph, inputs: list[str], equation: Any) -> str:
    params, rank = equation.params, len(equation.invars[0].aval.shape)
    strides = params["strides"] or (1,) * rank
    # All of the batch, whose size is not known.
    ends = [
        end if isinstance(end, int) else np.iinfo(np.int64).max for end in params["limit_indices"]
    ]
    each = (params["start_indices"], ends, range(rank), strides)
    return graph.add("Slice", [inputs[0], *(graph.constant(np.array(v, np.int64)) for v in each)])


def _pad(graph: _Graph, inputs: list[str], equation: Any) -> str:
    low, high, between = zip(*equation.params["padding_config"], strict=True)
    if any(between) or min(*low, *high) < 0:
        raise InputError("ONNX is not written for such padding; use the StableHLO")
    return graph.add(
        "Pad", [inputs[0], graph.constant(np.array([*low, *high], np.int64)), inputs[1]]
    )


def _dot(graph: _Graph, inputs: list[str], equation: Any) -> str:
    (left, right), (batch_left, batch_right) = equation.params["dimension_numbers"]
    ranks = [len(atom.aval.shape) for atom in equation.invars]
    if batch_left or batch_right or (tuple(left), ranks[1]) != ((ranks[0] - 1,), 2):
        raise InputError("ONNX is not written for such products; use the StableHLO")
    kernel = inputs[1] if tuple(right) == (0,) else graph.add("Transpose", inputs[1:], perm=[1, 0])
    return graph.add("MatMul", [inputs[0], kernel])


def _convolution(graph: _Graph, inputs: list[str], equation: Any) -> str:
    params = equation.params
    numbers = params["dimension_numbers"]
    if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
        raise InputError("ONNX is not written for such convolutions; use the StableHLO")
    low, high = zip(*params["padding"], strict=True)
    images = graph.add("Transpose", inputs[:1], perm=list(numbers.lhs_spec))
    kernels = graph.add("Transpose", inputs[1:], perm=list(numbers.rhs_spec))
    found = graph.add(
        "Conv",
        [images, kernels],
        strides=list(params["window_strides"]),
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
        pads=[*low, *high],
    )
    return graph.add("Transpose", [found], perm=[int(i) for i in np.argsort(numbers.out_spec)])


def _gather(graph: _Graph, inputs: list[str], equation: Any) -> str:
    """Take single places of some axes, or one block of them, and all of the other axes."""
    numbers, shape = equation.params["dimension_numbers"], equation.invars[0].aval.shape
    rank, sizes, axes = len(shape), equation.params["slice_sizes"], tuple(numbers.start_index_map)
    collapsed, offsets = tuple(numbers.collapsed_slice_dims), tuple(numbers.offset_dims)
    others = [axis for axis in range(rank) if axis not in axes]
    whole = all(sizes[axis] == shape[axis] for axis in others)
    places = graph.add("Cast", [inputs[1]], to=_library().TensorProto.INT64)
    if whole and collapsed == axes:
        first = graph.add("Transpose", inputs[:1], perm=[*axes, *others])
        found = graph.add("GatherND", [first, places])
        num = len(equation.outvars[0].aval.shape)
        order = [axis for axis in range(num) if axis not in offsets] + list(offsets)
        return graph.add("Transpose", [found], perm=[int(i) for i in np.argsort(order)])
    if whole and (collapsed, offsets) == ((), tuple(range(rank))):
        size = graph.constant(np.array([sizes[axis] for axis in axes], np.int64))
        end = graph.add("Add", [places, size])
        on = graph.constant(np.array(axes, np.int64))
        return graph.add("Slice", [inputs[0], places, end, on])
    raise InputError("ONNX is not written for such indexing; use the StableHLO")


_RULES: Mapping[str, Callable[[_Graph, list[str], Any], str]] = {
    "integer_pow": _integer_pow,
    "square": _square,
    "rsqrt": _rsqrt,
    "erfc": _erfc,
    "expm1": _expm1,
    "log1p": _log1p,
    "ne": _ne,
    "is_finite": _is_finite,
    "select_n": _select_n,
    "convert_element_type": _convert,
    "reshape": _reshape,
    "squeeze": _reshape,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "concatenate": _concatenate,
    "stack": _stack,
    "slice": _slice,
    "pad": _pad,
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "gather": _gather,
}
