"""The same network, weights and batches in PyTorch: 50 steps of SGD agree in loss to 1e-4.

PyTorch's side uses its own autograd, losses, norms, optimizer and learning-rate scheduler.

The networks are smooth (tanh). Under ReLU a pre-activation within rounding of 0 can take the one
side here and the other side there; its gradient then differs by all of it, and momentum carries
the two runs apart by more than the tolerance. How the compiler rounds decides whether that happens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn import optim
from jaxdnn.activations import tanh
from jaxdnn.data import PixelStats, make_prepare, normalise_images
from jaxdnn.layers import BlockOptions
from jaxdnn.models import Model, make_mlp
from jaxdnn.norms import Norm
from jaxdnn.options import AugmentOptions, OptimizerOptions
from jaxdnn.training.step import Sums, make_init, make_loss, make_step

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[bench]'")

torch.set_num_threads(1)  # Others want the cores too, and the networks are small.

NUM_STEPS, BATCH_SIZE, NUM_EXAMPLES = 50, 64, 1000
WIDTHS = (64, 64)
STANDARD = PixelStats((0.5,), (0.29,))
OPTIONS = OptimizerOptions(
    learning_rate=0.05, momentum=0.9, decay_rate=0.9, decay_steps=10, l2=20.0
)
TOLERANCE = 1e-4


class Batches(NamedTuple):
    images: np.ndarray
    labels: np.ndarray


class Trained(NamedTuple):
    losses: np.ndarray
    batch_stats: Any


@pytest.fixture(scope="module")
def batches() -> Batches:
    """Images whose label is hidden in noise: no network drives the loss to 0 in 50 steps."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_STEPS, BATCH_SIZE, 28, 28, 1), np.uint8)
    side = images[:, :, :, :14].mean((2, 3, 4)) - images[:, :, :, 14:].mean((2, 3, 4))
    labels = side + rng.normal(scale=side.std(), size=side.shape) > 0
    return Batches(images, labels.astype(np.int32))


def train_ours(
    model: Model, params: Any, batch_stats: Any, batches: Batches, options: OptimizerOptions
) -> Trained:
    schedule = optim.make_schedule(options, steps_per_epoch=1, num_steps=NUM_STEPS)
    optimizer = optim.make_optimizer(options, schedule, num_examples=NUM_EXAMPLES)
    step = make_step(
        make_loss(model, jnp.ones(2)),
        optimizer,
        prepare=make_prepare(AugmentOptions(), STANDARD),
        loss_limit=1e3,
    )
    state = make_init(model, optimizer)(jax.random.key(0))
    state = state._replace(params=params, batch_stats=batch_stats, opt_state=optimizer.init(params))

    def one(state, batch):
        state = step(jax.random.key(1), state._replace(sums=Sums.zero()), *batch)
        return state, state.sums.loss / BATCH_SIZE

    state, losses = jax.jit(lambda state, batches: jax.lax.scan(one, state, batches))(
        state, jax.tree.map(jnp.asarray, tuple(batches))
    )
    return Trained(np.asarray(losses, np.float64), state.batch_stats)


def to_torch(array: Any) -> Any:
    return torch.tensor(np.array(array))


def linear(weights: dict[str, Any]) -> Any:
    """A torch layer with our weights; our kernels are (in, out), those of torch (out, in)."""
    num_in, num_out = weights["kernel"].shape
    layer = torch.nn.Linear(num_in, num_out, bias="bias" in weights)
    with torch.no_grad():
        layer.weight.copy_(to_torch(weights["kernel"]).T)
        if layer.bias is not None:
            layer.bias.copy_(to_torch(weights["bias"]))
    return layer


def torch_norm(norm: str, num_features: int) -> list[Any]:
    return {
        "none": lambda: [],
        "batch": lambda: [torch.nn.BatchNorm1d(num_features, eps=1e-5, momentum=0.1)],
        "layer": lambda: [torch.nn.LayerNorm(num_features, eps=1e-6)],
    }[norm]()


def torch_mlp(params: Any, norm: str) -> Any:
    modules = [torch.nn.Flatten()]
    for index, width in enumerate(WIDTHS):
        hidden = linear(params["layers"][index]["linear"])
        modules += [hidden, *torch_norm(norm, width), torch.nn.Tanh()]
    return torch.nn.Sequential(*modules, linear(params["head"]))


def torch_loss(logits: Any, labels: Any) -> Any:
    if logits.shape[1] == 1:
        return torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], labels.float())
    return torch.nn.functional.cross_entropy(logits, labels.long())


def torch_optimizer(network: Any, options: OptimizerOptions) -> Any:
    """SGD whose weight decay is λ / m on kernels, the gradient of λ / 2m Σ w²."""
    kernels = [m.weight for m in network.modules() if isinstance(m, torch.nn.Linear)]
    chosen = {id(kernel) for kernel in kernels}
    others = [p for p in network.parameters() if id(p) not in chosen]
    groups = [
        {"params": kernels, "weight_decay": options.l2 / NUM_EXAMPLES},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        groups, lr=options.learning_rate, momentum=options.momentum, nesterov=options.nesterov
    )


def train_torch(network: Any, batches: Batches, options: OptimizerOptions) -> np.ndarray:
    optimizer = torch_optimizer(network, options)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: options.decay_rate ** (step / options.decay_steps)
    )
    losses = []
    for images, labels in zip(*batches, strict=True):
        inputs = to_torch(normalise_images(jnp.asarray(images), STANDARD))
        loss = torch_loss(network(inputs), to_torch(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return np.array(losses)


@functools.cache
def start(norm: Norm, num_outputs: int) -> tuple[Model, Any, Any]:
    options = BlockOptions(norm=norm, activation=tanh())
    model = make_mlp((28, 28, 1), num_outputs, widths=WIDTHS, options=options)
    params, batch_stats = jax.jit(model.init)(jax.random.key(0))
    return model, params, batch_stats


@pytest.fixture(scope="module")
def ours(batches) -> Callable[[Norm, int], Trained]:
    """Train our network of a norm and a number of outputs, once."""

    @functools.cache
    def train(norm: Norm, num_outputs: int) -> Trained:
        return train_ours(*start(norm, num_outputs), batches, OPTIONS)

    return train


CASES = [("batch", 2), ("layer", 2), ("none", 1)]


@pytest.mark.parametrize(("norm", "num_outputs"), CASES)
def test_losses_agree(batches, ours, norm, num_outputs):
    params = start(norm, num_outputs)[1]
    theirs = train_torch(torch_mlp(params, norm), batches, OPTIONS)
    chex.assert_shape(theirs, (NUM_STEPS,))
    chex.assert_trees_all_close(ours(norm, num_outputs).losses, theirs, rtol=TOLERANCE)


@pytest.mark.parametrize(
    "change",
    [{"l2": 19.0}, {"momentum": 0.89}, {"decay_rate": 0.91}, {"nesterov": True}],
    ids=lambda change: next(iter(change)),
)
def test_the_comparison_notices_a_small_difference(batches, ours, change):
    params = start("batch", 2)[1]
    changed = dataclasses.replace(OPTIONS, **change)
    theirs = train_torch(torch_mlp(params, "batch"), batches, changed)
    assert np.max(np.abs(ours("batch", 2).losses / theirs - 1)) > 3 * TOLERANCE


def test_running_statistics_agree(batches, ours):
    params = start("batch", 2)[1]
    network = torch_mlp(params, "batch")
    train_torch(network, batches, OPTIONS)
    norms = [module for module in network if isinstance(module, torch.nn.BatchNorm1d)]
    # Torch averages the unbiased variance, n / (n - 1) times ours, from the same start of 1.
    start_left = 0.9**NUM_STEPS
    bessel = BATCH_SIZE / (BATCH_SIZE - 1)
    for index, norm in enumerate(norms):
        stats = ours("batch", 2).batch_stats["layers"][index]["norm"]
        mean, var = norm.running_mean.numpy(), norm.running_var.numpy()
        chex.assert_trees_all_close(stats["mean"], mean, rtol=1e-3, atol=1e-4)
        expected = start_left + (np.asarray(stats["var"]) - start_left) * bessel
        chex.assert_trees_all_close(expected, var, rtol=1e-3)
