"""The network."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from jaxdnn import activations, initializers
from jaxdnn.options.checks import check, check_choices, check_range


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """The network."""

    model: Literal["mlp", "convnet"] = "mlp"
    """A multi-layer perceptron, or a small residual convolutional network."""
    widths: tuple[int, ...] = (512, 512, 512)
    """mlp: units of each hidden layer, from the input on. convnet: channels of each stage."""
    blocks: int = 1
    """convnet: residual blocks in each stage."""
    stem: int | None = None
    """convnet: side of the squares of pixels that the first layer sees as one; default so that
    about 28 x 28 of them are left."""
    activation: str = "relu"
    """sigmoid, tanh, relu, leaky_relu, parametric_relu, randomized_relu, elu, selu, gelu, silu,
    softplus, soft_sign or hard_tanh."""
    negative_slope: float | None = None
    """Slope of leaky_relu (default 0.01), start of parametric_relu (0.25)."""
    alpha: float | None = None
    """Depth of elu; default 1."""
    lower: float | None = None
    """Least slope of randomized_relu; default 1/8."""
    upper: float | None = None
    """Greatest slope of randomized_relu; default 1/3."""
    initializer: str = "he_normal"
    """zeros, normal, truncated_normal, uniform, glorot_normal or glorot_uniform (Xavier), he_normal
    or he_uniform (MSRA), lecun_normal, lecun_uniform, orthogonal, or pretrained (with
    --pretrained)."""
    scale: float | None = None
    """Standard deviation of normal and truncated_normal, half width of uniform; default 0.01."""
    gain: float | None = None
    """Factor on the standard deviation of any initializer; default 1."""
    bias_init: float = 0.0
    """Every bias at the start."""
    pretrained: str | None = None
    """Where --initializer pretrained takes weights from: a run folder, a .safetensors or an .npz
    file. Matched by name and shape; the rest starts as he_normal."""
    norm: Literal["none", "batch", "layer"] = "batch"
    """Normalisation of every pre-activation."""
    norm_momentum: float = 0.9
    """batch: share of the old running average that each step keeps."""
    norm_statistics: Literal["running", "training_set"] = "running"
    """batch, in evaluation: the running averages, or estimated anew over the whole training set."""
    dropout: float = 0.0
    """Share of hidden units dropped in training."""
    head: Literal["softmax", "sigmoid"] = "softmax"
    """k softmax units, or for two classes one sigmoid unit."""

    def __post_init__(self) -> None:
        check_choices(self)
        widths = " ".join(map(str, self.widths))
        check(all(w >= 1 for w in self.widths), f"--widths {widths}: every width is 1 or more")
        check(
            self.model == "mlp" or len(self.widths) > 0,
            "--widths is empty; --model convnet needs the channels of at least one stage",
        )
        check_range(self, "blocks", 0)
        check_range(self, "stem", 1)
        check(math.isfinite(self.bias_init), f"--bias-init is {self.bias_init}; give a number")
        check(0 <= self.dropout < 1, f"--dropout is {self.dropout}; give a share in [0, 1)")
        check(
            0 <= self.norm_momentum < 1,
            f"--norm-momentum is {self.norm_momentum}; give a share in [0, 1)",
        )
        check(
            self.norm == "batch" or self.norm_statistics == "running",
            f"--norm-statistics {self.norm_statistics} is for --norm batch, not {self.norm}",
        )
        self._check_pretrained()
        self.make_activation()
        self.make_initializer()

    def _check_pretrained(self) -> None:
        wants = self.initializer == "pretrained"
        check(
            not wants or self.pretrained is not None,
            "--initializer pretrained needs --pretrained PATH: a run folder, .safetensors or .npz",
        )
        check(
            wants or self.pretrained is None,
            f"--pretrained goes with --initializer pretrained, not {self.initializer}",
        )

    def make_activation(self) -> activations.Activation:
        """Return the activation that these options name."""
        names = ("negative_slope", "alpha", "lower", "upper")
        given = {name: getattr(self, name) for name in names}
        parameters = {name: value for name, value in given.items() if value is not None}
        return activations.make_activation(self.activation, **parameters)

    def make_initializer(self) -> initializers.Initializer:
        """Return the initializer that these options name (under pretrained, of what is left)."""
        name = "he_normal" if self.initializer == "pretrained" else self.initializer
        return initializers.make_initializer(name, scale=self.scale, gain=self.gain)
