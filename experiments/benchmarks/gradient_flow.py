"""The gradient-flow grid: our compiled sweep against PyTorch with hooks on the same networks.

PyTorch does less: the shares of dead and saturated units, which need phi' once more, are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch import Tensor, nn

from jaxdnn.activations import make_activation
from jaxdnn.initializers import make_initializer
from jaxdnn.propagation import Architecture, make_sweep

from .timing import Work

NUM_CLASSES = 10
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu": nn.functional.leaky_relu,
    "elu": nn.functional.elu,
    "selu": nn.functional.selu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "softplus": nn.functional.softplus,
}


def make_sweep_work(architecture: Architecture, batch_size: int) -> Work:
    """Return the work of all activations on the He networks of one seed, by the compiled sweep.

    A call runs one seed on every device.
    """
    sweep = make_sweep(
        [make_initializer("he_normal")],
        [make_activation(name) for name in ACTIVATIONS],
        architecture,
        batch_size=batch_size,
    )
    devices = jax.device_count()
    indices, seeds = jnp.zeros(devices, jnp.int32), jnp.arange(devices)

    def work(num_calls: int) -> None:
        for call in range(num_calls):
            jax.block_until_ready(sweep(indices, seeds + call * devices))

    return work


def make_hooks_work(architecture: Architecture, batch_size: int) -> Work:
    """Return the same work with PyTorch, eager, with hooks on every layer."""
    devices = jax.device_count()

    def work(num_calls: int) -> None:
        for seed in range(num_calls * devices):
            torch.manual_seed(seed)
            layers = _draw(architecture)
            inputs = torch.randn(batch_size, architecture.width)
            labels = torch.randint(NUM_CLASSES, (batch_size,))
            for phi in ACTIVATIONS.values():
                _measure(layers, phi, inputs, labels)

    return work


def _draw(architecture: Architecture) -> list[nn.Linear]:
    width, depth = architecture.width, architecture.depth
    sizes = [width] * (depth - 1) + [NUM_CLASSES]
    layers = [nn.Linear(width, size, bias=False) for size in sizes]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight)
    return layers


def _measure(
    layers: Sequence[nn.Linear], phi: Callable[[Tensor], Tensor], inputs: Tensor, labels: Tensor
) -> list[list[float]]:
    """Pass a batch forward and back; return what the hooks saw."""
    seen: list[list[Tensor]] = []

    def forward_hook(_: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> None:
        with torch.no_grad():
            unit = z / z.norm(dim=1, keepdim=True)
            cosine = (unit[1:] * unit[:-1]).sum(1).mean()
            seen.append([z.mean(), z.square().mean().sqrt(), cosine])

    def backward_hook(_: nn.Module, grads: Any, outputs: Any) -> None:
        seen.append([outputs[0].square().mean().sqrt()])

    handles = [layer.register_forward_hook(forward_hook) for layer in layers]
    handles += [layer.register_full_backward_hook(backward_hook) for layer in layers]
    h = inputs
    for layer in layers[:-1]:
        h = phi(layer(h))
    nn.functional.cross_entropy(layers[-1](h), labels).backward()
    for layer in layers:
        assert layer.weight.grad is not None
        seen.append([layer.weight.grad.square().mean().sqrt()])
        layer.weight.grad = None
    for handle in handles:
        handle.remove()
    return [[value.item() for value in values] for values in seen]
