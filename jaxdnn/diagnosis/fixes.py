"""Fixes that change parameters or the optimizer's step alone.

Critical weights, and biases where they are needed,
keep the gradient's length from layer to layer:

    sigma_w² E phi'² = 1    and    sigma_w² E phi² + sigma_b² = 1,    z standard normal

keep the length of delta and the variance of z: one point of the critical line. For some activations
(the sigmoid: sigma_b² < 0) it does not exist; then only the first is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdnn.diagnosis.graph import Layer
from jaxdnn.diagnosis.measure import Exam
from jaxdnn.diagnosis.program import Edit, Leaf
from jaxdnn.diagnosis.setups import Fix, FixKind
from jaxdnn.diagnosis.trial import FirstStep, Scales

# A greater sigma_w is no remedy but a step function.
_MOST_SIGMA = 1e3
# Hidden layers of fewer units are made wider, to so many.
_FEW_UNITS, _MANY_UNITS = 8, 32
# Of a bias; less is none.
_LEAST_SIGMA = 0.05
# An epsilon should be so much smaller than the gradient.
_WELL_BELOW = 100.0
_MOST_SCALE = 1e12


def usual_weights(exam: Exam, index: int) -> Iterator[Fix]:
    """Give a layer's weights the scale of those of the other layers."""
    sigma = _usual_sigma(exam)
    path = exam.graph.layers[index].path
    words = f"weights of {path} like those of the other layers (sigma_w = {sigma:.3g})"
    params = with_sigma(exam, {index: sigma})
    yield Fix("usual_weights", words, init_line(sigma), size=1, params=params)


def default_weights(exam: Exam, index: int) -> Iterator[Fix]:
    """Draw all kernels that are no tables by LeCun's rule, as Flax does by default."""
    del index
    leaves, structure = jax.tree.flatten(exam.params)
    done = set()
    for number, layer in enumerate(exam.graph.layers):
        if layer.kind == "embedding" or layer.leaf in done:
            continue
        done.add(layer.leaf)
        old = layer.leaf.take(leaves)
        key = jax.random.fold_in(jax.random.key(2), number)
        drawn = jax.random.normal(key, old.shape) / math.sqrt(layer.fan_in)
        layer.leaf.put(leaves, drawn.astype(old.dtype))
    params = jax.tree.unflatten(structure, leaves)
    words = "weights drawn around zero by LeCun's rule, as by default"
    code = "kernel_init=nnx.initializers.lecun_normal()"
    yield Fix("default_weights", words, code, size=1, params=params)


def zero_bias(exam: Exam, index: int) -> Iterator[Fix]:
    """Leave a layer's bias out."""
    layer = exam.graph.layers[index]
    if layer.bias is not None:
        edits: dict[int, Edit] = {layer.bias: lambda value, _: jnp.zeros_like(value)}
        code = "bias_init=nnx.initializers.zeros"
        yield Fix("zero_bias", f"bias of {layer.path} zero", code, size=1, edits=edits)


def wider_layers(exam: Exam) -> Iterator[Fix]:
    """Give hidden layers of few units enough of them, drawn by LeCun's rule."""
    layers, edges = exam.graph.layers, exam.graph.edges
    leaves, structure = jax.tree.flatten(exam.params)
    plain = {"activation", "dropout"}
    widened = [
        index
        for index, layer in enumerate(layers[:-1])
        if _is_matrix(leaves, layer) and _is_matrix(leaves, layers[index + 1])
        if leaves[layer.leaf.index].shape[1] < _FEW_UNITS
        if edges[index + 1].below == index and set(edges[index + 1].kinds) <= plain
        if layer.bias is None or _bias_leaf(exam, index) is not None
    ]
    if not widened:
        return
    for index in {*widened, *(index + 1 for index in widened)}:
        kernel = leaves[layers[index].leaf.index]
        rows = _MANY_UNITS if index - 1 in widened else kernel.shape[0]
        columns = _MANY_UNITS if index in widened else kernel.shape[1]
        key = jax.random.fold_in(jax.random.key(3), index)
        drawn = jax.random.normal(key, (rows, columns)) / math.sqrt(rows)
        leaves[layers[index].leaf.index] = drawn.astype(kernel.dtype)
        bias = _bias_leaf(exam, index)
        if index in widened and bias is not None:
            leaves[bias.index] = jnp.zeros(_MANY_UNITS, leaves[bias.index].dtype)
    number = f"{len(widened)} hidden layers" if len(widened) > 1 else layers[widened[0]].path
    yield Fix(
        "wider_layers", f"{_MANY_UNITS} units in {number}", f"features={_MANY_UNITS}",
        FixKind.WIDTH, 1, params=jax.tree.unflatten(structure, leaves),
    )  # fmt: skip


def _is_matrix(leaves: list[Any], layer: Layer) -> bool:
    whole = layer.kind == "dense" and layer.leaf.part is None
    return whole and leaves[layer.leaf.index].ndim == 2


def critical_weights(exam: Exam) -> Fix:
    """Return the fix to critical weights in all layers that no norm follows.

    References:
      Schoenholz, Gilmer, Ganguli and Sohl-Dickstein, "Deep Information Propagation", 2017.
    """
    graph = exam.graph
    weights: dict[int, float] = {}
    biases: dict[int, float] = {}
    # What a norm follows has no scale.
    normed = {edge.below for edge in graph.edges if edge.kinds[:1] == ["norm"]}
    for index, layer in enumerate(graph.layers):
        if layer.kind == "embedding" or index in normed:
            continue
        edge = graph.edges[index]
        gains = [exam.gains[each] for each in edge.segments if each in exam.gains]
        gains = gains if edge.below is not None else []
        weights[index] = min(1 / max(math.prod(gain.slope for gain in gains), 1e-9), _MOST_SIGMA)
        alone = len(gains) == 1 and not {"norm", "residual"} & set(edge.kinds)
        if alone and index < len(graph.layers) - 1:
            sigma = math.sqrt(max(1 - (weights[index] * gains[0].value) ** 2, 0.0))
            if sigma > _LEAST_SIGMA and _bias_leaf(exam, index) is not None:
                biases[index] = sigma
    changed = with_sigma(exam, weights)
    usual = float(np.median(list(weights.values()))) if weights else 1.0
    words, code = f"mostly sigma_w = {usual:.3g}", init_line(usual)
    if biases:
        usual_bias = float(np.median(list(biases.values())))
        words += f", sigma_b = {usual_bias:.3g}"
        code += f", bias_init=nnx.initializers.normal({usual_bias:.3g})"
        changed = _with_biases(exam, changed, biases)
    words = f"critical weights in all layers: {words}"
    return Fix("critical_weights", words, code, size=4, params=changed)


def critical(exam: Exam, index: int) -> Iterator[Fix]:
    """Give all layers critical weights."""
    del index
    yield critical_weights(exam)


def _usual_sigma(exam: Exam) -> float:
    """The median of RMS(W) sqrt(fan_in) over the layers that are not zero."""
    sigmas = [
        rms * math.sqrt(layer.fan_in)
        for layer, rms in zip(exam.graph.layers, exam.measured.kernel_rms, strict=True)
        if rms > 0 and layer.kind != "embedding"
    ]
    return float(np.median(sigmas)) if sigmas else 1.0


def init_line(sigma: float) -> str:
    """Return the argument of a Flax layer that draws weights of sigma / sqrt(fan_in)."""
    return f'kernel_init=nnx.initializers.variance_scaling({sigma**2:.3g}, "fan_in", "normal")'


def with_sigma(exam: Exam, sigmas: Mapping[int, float]) -> Any:
    """Return parameters with some kernels scaled; those that are zero are drawn.

    Args:
      exam: gives parameters, and the root mean square of each kernel.
      sigmas: by index of a layer; the kernel's standard deviation becomes sigma / sqrt(fan_in).
    """
    leaves, structure = jax.tree.flatten(exam.params)
    for index, sigma in sigmas.items():
        layer, rms = exam.graph.layers[index], exam.measured.kernel_rms[index]
        std = sigma / math.sqrt(layer.fan_in * layer.inside)
        old = layer.leaf.take(leaves)
        if rms > 0:
            new = old * (std / rms)
        else:
            new = std * jax.random.normal(jax.random.key(index), old.shape, old.dtype)
        layer.leaf.put(leaves, new)
    return jax.tree.unflatten(structure, leaves)


def _with_biases(exam: Exam, params: Any, sigmas: Mapping[int, float]) -> Any:
    """Draw biases, normal with the standard deviations given by index of a layer."""
    leaves, structure = jax.tree.flatten(params)
    for index, sigma in sigmas.items():
        leaf = _bias_leaf(exam, index)
        if leaf is not None:
            key, old = jax.random.fold_in(jax.random.key(1), index), leaf.take(leaves)
            leaf.put(leaves, sigma * jax.random.normal(key, old.shape, old.dtype))
    return jax.tree.unflatten(structure, leaves)


def _bias_leaf(exam: Exam, index: int) -> Leaf | None:
    """The parameter that a layer's bias is."""
    bias = exam.graph.layers[index].bias
    leaves = () if bias is None else exam.graph.program.values[bias].leaves
    return next(iter(leaves)) if len(leaves) == 1 else None


def step_fixes(exam: Exam, first: FirstStep) -> Iterator[Fix]:
    """Fixes that leave the network as it is: scale of gradient or loss, parameters' format.

    Args:
      exam: gives parameters, their formats, and delta.
      first: what the optimizer makes of the first gradient.
    """
    params = exam.params
    shortfall = max(np.nan_to_num(first.shortfall))
    if shortfall > _WELL_BELOW:
        scale = min(_power(10, _WELL_BELOW * shortfall), _MOST_SCALE)
        words = f"{scale:g} x the loss, or the optimizer's epsilon / {scale:g}"
        code = f"optimizer = optax.adam(learning_rate, eps=1e-8 / {scale:g})"
        scales = Scales(gradient=scale)
        yield Fix("gradient_scale", words, code, FixKind.GRADIENT_SCALE, 1, scales=scales)
    if underflowing(exam):
        scale = _power(2, 1 / max(filter(math.isfinite, exam.measured.delta.values())))
        words = f"a loss scale of {scale:g}: on the way back only, divided out in float32"
        code = f"grads = jax.tree.map(lambda g: g / {scale:g}, jax.grad(scaled_loss)(params))"
        yield Fix("loss_scale", words, code, FixKind.LOSS_SCALE, 3, scales=Scales(loss=scale))
    wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, _wider(leaf)), params)
    if any(jax.tree.leaves(jax.tree.map(lambda a, b: a.dtype != b.dtype, params, wide))):
        words = "parameters in float32; the network calculates as before"
        code = "param_dtype=jnp.float32"
        yield Fix("parameter_format", words, code, FixKind.PARAMETER_FORMAT, 1, params=wide)


def no_decay(first: FirstStep, optimizer: optax.GradientTransformation) -> Iterator[Fix]:
    """Leave out what the optimizer takes off the weights besides the gradient, if it does.

    Args:
      first: what the optimizer makes of the first gradient.
      optimizer: the optax transformation that trains the network.
    """

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return optimizer.update(updates, state, jax.tree.map(jnp.zeros_like, params))

    if first.decays:
        yield Fix(
            "no_decay", "no weight decay", "weight_decay=0.0", FixKind.DECAY, 1,
            optimizer=optax.GradientTransformation(optimizer.init, update),
        )  # fmt: skip


def underflowing(exam: Exam) -> list[int]:
    """Return the layers whose delta lies below their format's normal numbers.

    A delta of exactly zero says nothing: dead units and zero weights make one as well.
    """
    graph, delta = exam.graph, exam.measured.delta
    return [
        index
        for index, layer in enumerate(graph.layers)
        if 0 < delta[layer.z] < float(jnp.finfo(graph.value_of(layer).dtype).tiny)
    ]


def _power(base: int, x: float) -> float:
    """The power of a base that is nearest to x."""
    return float(base) ** round(math.log(x, base))


def _wider(leaf: Any) -> Any:
    dtype = jnp.result_type(leaf)
    is_float = jnp.issubdtype(dtype, jnp.floating)
    return jnp.promote_types(dtype, jnp.float32) if is_float else dtype
