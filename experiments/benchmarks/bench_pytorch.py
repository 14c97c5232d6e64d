"""PyTorch's side: the same networks, losses and optimizer, in the forms that are fast on CPU."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from timing import Work, num_cores, seconds_per_unit
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from jaxdnn.data import PixelStats
from jaxdnn.options import AugmentOptions, OptimizerOptions
from jaxdnn.propagation import Architecture

Step = Callable[[Tensor, Tensor], None]
Prepare = Callable[[Tensor], Tensor]
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


def use_all_cores() -> None:
    """Give torch as many threads as JAX takes, and silence the compiler's remarks."""
    torch.set_num_threads(num_cores())
    torch._logging.set_logs(all=logging.ERROR)


def make_mlp(sizes: Sequence[int], *, batch_norm: bool) -> nn.Module:
    """Make a ReLU network; under batch norm, hidden layers have no bias of their own."""
    modules: list[nn.Module] = [nn.Flatten()]
    for num_in, num_out in pairwise(sizes[:-1]):
        modules.append(nn.Linear(num_in, num_out, bias=not batch_norm))
        modules += [nn.BatchNorm1d(num_out)] if batch_norm else []
        modules.append(nn.ReLU())
    return nn.Sequential(*modules, nn.Linear(sizes[-2], sizes[-1]))


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Add what the inner module makes of x."""
        return x + self.inner(x)


def make_convnet(widths: Sequence[int], num_outputs: int, *, channels: int, stem: int) -> nn.Module:
    """Make the residual network of `jaxdnn.models.make_convnet`, one block a stage, batch norm."""

    def unit(num_in: int, num_out: int) -> list[nn.Module]:
        conv = nn.Conv2d(num_in, num_out, 3, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(num_out), nn.ReLU()]

    modules: list[nn.Module] = [nn.PixelUnshuffle(stem)]
    for index, (num_in, width) in enumerate(pairwise([channels * stem**2, *widths])):
        modules += [nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)] if index else []
        modules += unit(num_in, width)
        modules.append(Residual(nn.Sequential(*unit(width, width), *unit(width, width))))
    head = nn.Linear(widths[-1], num_outputs)
    network: Any = nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    return network.to(memory_format=torch.channels_last)  # untyped: its stub lacks this call


class _Same(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow does."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (batch, channel, height, width); the smaller half of the padding comes first."""
        window, stride = self.kernel_size[0], self.stride[0]
        pads: list[int] = []
        for side in (input.shape[3], input.shape[2]):
            total = max((-(-side // stride) - 1) * stride + window - side, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(nn.functional.pad(input, pads) if any(pads) else input)


def _layer(
    num_in: int, num_out: int, window: int = 1, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = _Same(num_in, num_out, window, stride=stride, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(num_out, eps=1e-3))


def make_efficientnet_lite0(file: Path) -> Callable[[Tensor], Tensor]:
    """Return `uint8 (batch, height, width, 3) -> features`, eager, with the weights of a file."""
    stages = [(3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3)]
    stages += [(5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1)]
    modules: list[nn.Module] = [_layer(3, 32, 3, 2), nn.ReLU6()]
    num_in = 32
    for window, first, expansion, width, num_blocks in stages:
        for stride in [first] + [1] * (num_blocks - 1):
            wide = num_in * expansion
            inner = [_layer(num_in, wide), nn.ReLU6()] if expansion > 1 else []
            inner += [_layer(wide, wide, window, stride, wide), nn.ReLU6(), _layer(wide, width)]
            block = nn.Sequential(*inner)
            modules.append(Residual(block) if stride == 1 and num_in == width else block)
            num_in = width
    modules += [_layer(num_in, 1280), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network: Any = nn.Sequential(*modules).eval()
    _load_in_order(network, load_file(file))
    network = network.to(memory_format=torch.channels_last)

    def features(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return network((images.permute(0, 3, 1, 2).float() - 127) / 128)

    return features


def _load_in_order(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put tensors named `_blocks.0._depthwise_conv.weight` where the network has them, in order."""
    blocks: list[list[str]] = [[] for _ in range(16)]
    for name in tensors:
        if name.startswith("_blocks"):
            blocks[int(name.split(".")[1])].append(name)
    order = ["_conv_stem", "_bn0"]
    for index, names in enumerate(blocks):
        inner = [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        known = {name.split(".")[2] for name in names}
        order += [f"_blocks.{index}.{each}" for pair in inner if pair[0] in known for each in pair]
    order += ["_conv_head", "_bn1"]
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    for name, layer in zip(order, layers, strict=True):
        own = {
            key.removeprefix(f"{name}."): tensors[key] for key in tensors if key.startswith(name)
        }
        kept = {key: value for key, value in own.items() if "." not in key}
        missing = layer.load_state_dict(kept, strict=False).missing_keys
        assert set(missing) <= {"num_batches_tracked"}, (name, missing)


def make_features_work(features: Callable[[Tensor], Tensor], images: np.ndarray) -> Work:
    """Return the work of features of one batch."""
    batch = torch.from_numpy(images)

    def work(num_calls: int) -> None:
        for _ in range(num_calls):
            features(batch)

    return work


def make_step(
    network: nn.Module,
    options: OptimizerOptions,
    *,
    compiled: bool,
    prepare: Prepare = lambda images: images,
) -> Step:
    """Return a training step: SGD with momentum, forward and backward compiled or eager."""
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=options.learning_rate,
        momentum=options.resolved_momentum,
        nesterov=options.nesterov,
        fused=True,  # one pass over each parameter
    )

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(network(prepare(images)), labels)

    forward = torch.compile(loss_of) if compiled else loss_of

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        forward(images, labels).backward()
        optimizer.step()

    return step


def make_step_work(step: Step, inputs: np.ndarray, labels: np.ndarray) -> Work:
    """Return the work of training steps on one batch."""
    images, classes = torch.from_numpy(inputs), torch.from_numpy(labels).long()

    def work(num_steps: int) -> None:
        for _ in range(num_steps):
            step(images, classes)

    return work


def make_standardise(pixel_stats: PixelStats) -> Prepare:
    """Return `uint8 (batch, channel, height, width) -> float32`, normalised."""
    mean = torch.tensor(pixel_stats.mean)[:, None, None]
    std = torch.tensor(pixel_stats.std)[:, None, None]
    return lambda images: (images.float() / 255 - mean) / std


def make_augment(options: AugmentOptions, pixel_stats: PixelStats) -> Prepare:
    """Return the augmentation of a whole batch at once, normalised.

    Scale, crop, flip and rotation are one affine map, read by bilinear interpolation with
    reflection; then noise. Others are left out: the recipes do not use them.
    """

    def augment(images: Tensor) -> Tensor:
        grid = nn.functional.affine_grid(
            random_affine(options, images.shape), list(images.shape), align_corners=True
        )
        moved = nn.functional.grid_sample(
            images.float() / 255, grid, padding_mode="reflection", align_corners=True
        )
        if options.noise == 0:
            return moved
        return torch.clamp(moved + options.noise * torch.randn_like(moved), 0, 1)

    mean = torch.tensor(pixel_stats.mean)[:, None, None]
    std = torch.tensor(pixel_stats.std)[:, None, None]
    return lambda images: (augment(images) - mean) / std


def random_affine(options: AugmentOptions, shape: torch.Size) -> Tensor:
    """Return (batch, 2, 3) maps from output to input, in units of half an image."""
    num, _, _, width = shape

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(num) - 1) * limit

    angle, factor = uniform(math.radians(options.rotation)), 1 + uniform(options.random_scale)
    sign = 1 - 2 * (torch.rand(num) < options.horizontal_flip).float()
    cos, sin = torch.cos(angle) / factor, torch.sin(angle) / factor
    crop = options.random_crop
    shift = torch.randint(-crop, crop + 1, (2, num)).float() * (2 / (width - 1))
    rows = [sign * cos, sin, shift[0], -sign * sin, cos, shift[1]]
    return torch.stack(rows, dim=1).reshape(num, 2, 3)


def make_indexing_epoch(step: Step, images: Tensor, labels: Tensor, batch_size: int) -> Work:
    """Return the work of epochs whose batches are indexed by hand from a permutation."""
    num_steps = len(labels) // batch_size

    def work(num_epochs: int) -> None:
        for _ in range(num_epochs):
            order = torch.randperm(len(labels))[: num_steps * batch_size]
            for batch in order.view(num_steps, batch_size):
                step(images[batch], labels[batch])

    return work


def make_loader(
    images: Tensor, labels: Tensor, batch_size: int, num_workers: int
) -> DataLoader[tuple[Tensor, ...]]:
    """Return torch's own loader over the same arrays; its workers stay from epoch to epoch."""
    return DataLoader(
        TensorDataset(images, labels),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        # A fork of a process in which JAX has threads can hang.
        multiprocessing_context="spawn" if num_workers else None,
    )


def make_loader_epoch(step: Step, loader: DataLoader[tuple[Tensor, ...]]) -> Work:
    """Return the work of epochs whose batches come from a loader."""

    def work(num_epochs: int) -> None:
        for _ in range(num_epochs):
            for images, labels in loader:
                step(images, labels)

    return work


def fastest_loader(
    step: Step, images: Tensor, labels: Tensor, batch_size: int
) -> tuple[DataLoader[tuple[Tensor, ...]], dict[int, float]]:
    """Return the faster of no workers and two, and the seconds of an epoch for each."""
    loaders = {count: make_loader(images, labels, batch_size, count) for count in (0, 2)}
    seconds = {
        count: seconds_per_unit(make_loader_epoch(step, loader), 2)
        for count, loader in loaders.items()
    }
    return loaders[min(seconds, key=lambda count: seconds[count])], seconds


def make_matmul_work(size: int) -> Work:
    """Return the work of float32 matrix products, size x size."""
    left, right = torch.randn(2, size, size)

    def work(num_products: int) -> None:
        for _ in range(num_products):
            left @ right

    return work


def make_hooks_work(architecture: Architecture, batch_size: int, devices: int) -> Work:
    """Return the work of all activations on He networks, eager, with hooks on every layer.

    Less than the sweep does: the shares of dead and saturated units, which need phi' once more, are
    left out. A call runs `devices` seeds.
    """

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
    """Pass a batch forward and back; return the moments that the hooks take."""
    moments: list[list[Tensor]] = []

    def forward_hook(_: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> None:
        with torch.no_grad():
            unit = z / z.norm(dim=1, keepdim=True)
            cosine = (unit[1:] * unit[:-1]).sum(1).mean()
            moments.append([z.mean(), z.square().mean().sqrt(), cosine])

    def backward_hook(_: nn.Module, grads: Any, outputs: Any) -> None:
        moments.append([outputs[0].square().mean().sqrt()])

    handles = [layer.register_forward_hook(forward_hook) for layer in layers]
    handles += [layer.register_full_backward_hook(backward_hook) for layer in layers]
    h = inputs
    for layer in layers[:-1]:
        h = phi(layer(h))
    nn.functional.cross_entropy(layers[-1](h), labels).backward()
    for layer in layers:
        assert layer.weight.grad is not None
        moments.append([layer.weight.grad.square().mean().sqrt()])
        layer.weight.grad = None
    for handle in handles:
        handle.remove()
    return [[value.item() for value in values] for values in moments]
