"""The settings of the sweep, and the grid that they stand for."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np

from jaxdnn import initializers
from jaxdnn.data import load, normalise_images
from jaxdnn.layers import Norm
from jaxdnn.names import resolve
from jaxdnn.options import DataOptions, ProcessOptions
from jaxdnn.processes import is_first
from jaxdnn.propagation import Architecture, Batch, Grid, Precision, find_activation

from .option_checks import check_least, check_named


@dataclasses.dataclass(frozen=True)
class Options:
    """The grid: every combination of what is listed."""

    data: DataOptions = dataclasses.field(default_factory=lambda: DataOptions(data="gaussian"))
    initializers: tuple[str, ...] = (
        "zeros",
        "normal",
        "glorot_normal",
        "glorot_uniform",
        "lecun_normal",
        "he_normal",
        "he_uniform",
        "orthogonal",
    )
    """Any that deep_dog.py takes, Xavier and MSRA by those names too."""
    activations: tuple[str, ...] = (
        "sigmoid",
        "tanh",
        "relu",
        "leaky_relu",
        "elu",
        "selu",
        "gelu",
        "silu",
        "softplus",
    )
    """Any that deep_dog.py takes, or my_module:my_function from this folder."""
    norm: tuple[Norm, ...] = ("none",)
    """Normalisation of the pre-activations: none, batch, layer."""
    depth: tuple[int, ...] = (50,)
    """Layers with weights, the output's included; 2 or more."""
    width: int = 256
    """Units of each hidden layer."""
    batch_size: int = 128
    """Inputs that are passed through; 2 or more."""
    seeds: int = 8
    """How many networks of each kind."""
    seed: int = 0
    """The first seed."""
    residual: bool = False
    """Add each hidden layer's input to its output."""
    loss: Literal["cross_entropy", "mean_squared_error", "linear"] = "cross_entropy"
    """Whose gradient is sent back; linear: the mean logit of the right class."""
    precision: Precision = "float32"
    """Number format of weights, signals and gradients."""
    scale: float | None = None
    """Of the initializers normal, truncated_normal and uniform; default 0.01."""
    gain: float | None = None
    """Factor on the standard deviation of all initializers but zeros; default 1."""
    out: Path = Path("runs/grad_flow")
    """Folder for tables and charts."""
    processes: ProcessOptions = dataclasses.field(default_factory=ProcessOptions)
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        check_least({"width": self.width, "seeds": self.seeds}, 1)
        check_least({"batch_size": self.batch_size}, 2)
        check_least({"seed": self.seed}, 0)
        names = ("initializers", "activations", "norm", "depth")
        check_named({name: getattr(self, name) for name in names})
        for depth in self.depth:
            Architecture(depth, self.width)


def make_grid(options: Options) -> Grid:
    """Turn options into a grid; data are loaded here."""
    schemes = [_initializer(name, options) for name in options.initializers]
    phis = [find_activation(name) for name in options.activations]
    batch, num_outputs = _batch(options)
    architectures = [
        Architecture(
            depth=depth,
            width=options.width,
            norm=norm,
            residual=options.residual,
            num_outputs=num_outputs,
            loss=options.loss,
            precision=options.precision,
        )
        for depth, norm in itertools.product(options.depth, options.norm)
    ]
    seeds = range(options.seed, options.seed + options.seeds)
    return Grid(schemes, phis, architectures, seeds, batch, options.batch_size)


def _initializer(name: str, options: Options) -> initializers.Initializer:
    canonical = resolve(name, initializers.INITIALIZERS, initializers.ALIASES, "initializer")
    takes_scale = canonical in ("normal", "truncated_normal", "uniform")
    return initializers.make_initializer(
        canonical,
        scale=options.scale if takes_scale else None,
        gain=options.gain if canonical != "zeros" else None,
    )


def _batch(options: Options) -> tuple[Batch | None, int]:
    """Return images to pass through, or None for Gaussian inputs; and the number of classes."""
    if options.data.data == "gaussian":
        return None, 10
    dataset = load(options.data, seed=options.seed, progress=options.progress and is_first())
    num = min(options.batch_size, len(dataset.train.labels))
    picks = np.random.default_rng(options.seed).permutation(len(dataset.train.labels))[:num]
    pixel_stats = dataset.train.pixel_stats()
    images = normalise_images(jnp.asarray(dataset.train.images[picks]), pixel_stats)
    labels = jnp.asarray(dataset.train.labels[picks])
    return Batch(images.reshape(num, -1), labels), len(dataset.class_names)
