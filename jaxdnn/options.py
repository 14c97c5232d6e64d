"""The settings of each stage of a run, and their defaults: frozen, checked when made.

A value that cannot work raises `InputError`: what came, the rule, the remedy. The string below a
field is its documentation, and its help on the command line.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from typing_extensions import Doc

from jaxdnn import activations, initializers
from jaxdnn.errors import InputError

__all__ = [
    "AugmentOptions",
    "DataOptions",
    "DeviceOptions",
    "ModelOptions",
    "OptimizerOptions",
    "ProcessOptions",
    "TrainOptions",
    "check",
]


MOST = 2**31 - 1
"""Largest whole number that a setting may be: what counts in compiled programs holds no more."""


def check(condition: bool, message: str) -> None:
    """Raise InputError with this message unless the condition holds."""
    if not condition:
        raise InputError(message)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_range(options: object, name: str, low: float, high: float = math.inf) -> None:
    """Check low <= value <= high for one field, None allowed."""
    value = getattr(options, name)
    if isinstance(value, int) and value > MOST:
        high = min(high, MOST)
    bound = f"from {low} to {high}" if high < math.inf else f"of {low} or more"
    fits = value is None or (math.isfinite(value) and low <= value <= high)
    check(fits, f"{_flag(name)} is {value}; give a number {bound}")


def _check_share(options: object, name: str) -> None:
    """Check 0 <= value < 1 for one field, None allowed."""
    value = getattr(options, name)
    check(value is None or 0 <= value < 1, f"{_flag(name)} is {value}; give a share in [0, 1)")


def _check_choices(options: Any) -> None:
    """Check every field whose type lists its values."""
    for name, hint in get_type_hints(type(options)).items():
        parts = get_args(hint) if get_origin(hint) is not Literal else (hint,)
        literals = [part for part in parts if get_origin(part) is Literal]
        choices = [choice for part in literals for choice in get_args(part)]
        types = tuple(part for part in parts if isinstance(part, type))
        value = getattr(options, name)
        if choices and value not in choices and not isinstance(value, types):
            others = [f"any {kind.__name__}" for kind in types if kind in (int, float)]
            names = ", ".join([*map(str, choices), *others])
            raise InputError(f"{_flag(name)} is {value!r}; choose one of {names}")


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """What to learn from."""

    data: str = "silhouettes"
    """Images: `silhouettes` (embedded), a folder or a .zip of {split}/{class}/...,
    {class}/{split}/... or {class}/... (also by an address such as gs://bucket/photos), or a
    prepared TFDS data set: `tfds:NAME` in --data-dir, or its folder."""
    other: str | None = None
    """More images, named like --data, whose classes join those of --data: with --positive they are
    the other side of a data set that holds dogs alone."""
    data_dir: str | None = None
    """Where TFDS data sets are prepared; default ~/tensorflow_datasets."""
    positive: tuple[str, ...] | None = None
    """The positive class or classes, against all others: `--positive dog`. Without it every class
    stands for itself, except that the silhouettes are dog or other; `--positive` with nothing
    behind it makes them ten classes too."""
    image_size: int | None = None
    """Height and width in pixels after cropping to a square; default: the images' own size if they
    agree and are at most 227, otherwise 64."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for colour; default: what the images are."""
    validation_fraction: float = 0.1
    """Share of the training images set aside for validation, where the data has no such split."""
    test_fraction: float = 0.2
    """Share of all images set aside for the test, where the data has no such split."""
    balance: Literal["none", "class_weights", "batches"] = "none"
    """Against imbalance: weigh the loss by class, or fill every batch with all classes equally
    (under --batch-size full, which has no batches to fill, the same as class_weights)."""
    max_unreadable: float = 0.01
    """Share of unreadable images that is skipped; more stop the run."""

    streaming: bool = False
    """Decode images when a batch needs them, instead of all before the first step; by itself where
    they would take more than --max-memory-gib. The batches are the same."""
    max_memory_gib: float | None = None
    """Most memory for decoded images, in GiB; default: a quarter of the machine's."""
    cache_gib: float = 4.0
    """Most disk, in GiB, for decoded images of a stream, kept with the data (in .jaxdnn) so that
    only the first epoch decodes; and as much for what a pretrained network makes of them; 0 for
    none."""
    resampling: Literal["bilinear", "bicubic"] = "bilinear"
    """How images are resized."""
    allow_duplicates: bool = False
    """Go on although training images are among the test images."""

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_range(self, "image_size", 1)
        for name in ("validation_fraction", "test_fraction"):
            value = getattr(self, name)
            check(0 < value < 1, f"{_flag(name)} is {value}; give a share above 0 and below 1")
        _check_range(self, "max_unreadable", 0, 1)
        for name in ("max_memory_gib", "cache_gib"):
            _check_range(self, name, 0)
        check(
            self.other != self.data,
            f"--other is {self.other}, as --data is; name other images, or leave it out",
        )
        check(
            self.data_dir is None
            or any((name or "").startswith("tfds:") for name in (self.data, self.other)),
            f"--data-dir is for --data tfds:NAME, not for --data {self.data}; leave it out",
        )


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """The network."""

    model: Literal["mlp", "convnet", "efficientnet_lite0"] = "mlp"
    """A multi-layer perceptron, a small residual convolutional network, or EfficientNet-Lite0 with
    ImageNet's weights, of which the end is trained."""
    widths: tuple[int, ...] = (512, 512, 512)
    """mlp: units of each hidden layer, from the input on. convnet: channels of each stage.
    efficientnet_lite0: units of each hidden layer between its features and the output, or none."""
    blocks: int = 1
    """convnet: residual blocks in each stage."""
    unfreeze: int = 0
    """efficientnet_lite0: how many of its 16 blocks are trained, the last ones; 0 for none."""
    unfreeze_rate: float | None = None
    """efficientnet_lite0: learning rate of those blocks over that of the new layers; default
    0.1."""
    head_epochs: int = 0
    """efficientnet_lite0: epochs in which the new layers are trained alone, before the blocks."""
    views: int = 0
    """efficientnet_lite0: augmented views of each training image beside the plain one. What the
    frozen blocks make of them is computed once, and each step draws one of them."""
    dog_head: bool = True
    """efficientnet_lite0: where one of two classes is `dog`, start from ImageNet's own breeds."""
    stem: int | None = None
    """convnet: side of the squares of pixels that the first layer sees as one; default so that
    about 28 x 28 of them are left."""
    activation: Annotated[str, Doc(f"One of {', '.join(activations.ACTIVATIONS)}.")] = "relu"
    negative_slope: float | None = None
    """Slope of leaky_relu (default 0.01), start of parametric_relu (0.25)."""
    alpha: float | None = None
    """Depth of elu; default 1."""
    lower: float | None = None
    """Least slope of randomized_relu; default 1/8."""
    upper: float | None = None
    """Greatest slope of randomized_relu; default 1/3."""
    initializer: Annotated[
        str,
        Doc(
            f"One of {', '.join(initializers.INITIALIZERS)} (glorot is Xavier, he is MSRA), or "
            "pretrained (with --pretrained)."
        ),
    ] = "he_normal"
    scale: float | None = None
    """Standard deviation of normal and truncated_normal, half width of uniform; default 0.01."""
    gain: float | None = None
    """Factor on the standard deviation of any initializer; default 1."""
    bias_init: float = 0.0
    """Every bias at the start."""
    pretrained: str | None = None
    """Where --initializer pretrained takes weights from: a run folder, a .safetensors or an .npz
    file. Matched by name and shape; the rest starts as he_normal. For efficientnet_lite0, weights
    in place of the package's, by the names of the package or of timm."""
    norm: Literal["none", "batch", "layer"] = "batch"
    """Normalisation of every pre-activation."""
    norm_momentum: float = 0.9
    """batch: share of the old running average that each step keeps."""
    norm_statistics: Literal["running", "training_set"] = "running"
    """batch, in evaluation: the running averages, or estimated over the whole training set."""
    dropout: float = 0.0
    """Share of hidden units dropped in training."""
    head: Literal["softmax", "sigmoid"] = "softmax"
    """k softmax units, or for two classes one sigmoid unit."""

    def __post_init__(self) -> None:
        _check_choices(self)
        widths = " ".join(map(str, self.widths))
        check(all(w >= 1 for w in self.widths), f"--widths {widths}: every width is 1 or more")
        check(
            self.model != "convnet" or len(self.widths) > 0,
            "--widths is empty; --model convnet needs the channels of at least one stage",
        )
        _check_range(self, "blocks", 0, 1000)
        _check_range(self, "stem", 1)
        check(math.isfinite(self.bias_init), f"--bias-init is {self.bias_init}; give a number")
        _check_share(self, "dropout")
        _check_share(self, "norm_momentum")
        check(
            self.norm == "batch" or self.norm_statistics == "running",
            f"--norm-statistics {self.norm_statistics} is for --norm batch, not {self.norm}",
        )
        self._check_pretrained()
        self._check_backbone()
        self.make_activation()
        self.make_initializer()

    def _check_pretrained(self) -> None:
        wants = self.initializer == "pretrained"
        check(
            not wants or self.pretrained is not None,
            "--initializer pretrained needs --pretrained PATH: a run folder, .safetensors or .npz",
        )
        check(
            wants or self.pretrained is None or self.has_backbone,
            f"--pretrained goes with --initializer pretrained, not {self.initializer}",
        )

    @property
    def has_backbone(self) -> bool:
        """Whether the network stands on one that is trained already."""
        return self.model == "efficientnet_lite0"

    def _check_backbone(self) -> None:
        given = {
            "--unfreeze": self.unfreeze,
            "--unfreeze-rate": self.unfreeze_rate is not None,
            "--head-epochs": self.head_epochs,
            "--views": self.views,
            "--no-dog-head": not self.dog_head,
        }
        names = ", ".join(name for name, value in given.items() if value)
        check(
            self.has_backbone or not names,
            f"{names} is for --model efficientnet_lite0, not {self.model}; leave it out, or begin "
            "with the recipe `pretrained`",
        )
        _check_range(self, "unfreeze", 0, 16)
        _check_range(self, "views", 0, 1000)
        for name in ("unfreeze_rate", "head_epochs"):
            _check_range(self, name, 0)
            check(
                self.unfreeze > 0 or not getattr(self, name),
                f"{_flag(name)} is {getattr(self, name)}, but no block is trained; add --unfreeze "
                "1 or more, or leave it out",
            )

    @property
    def resolved_unfreeze_rate(self) -> float:
        """The learning rate of the backbone over that of the new layers."""
        return 0.1 if self.unfreeze_rate is None else self.unfreeze_rate

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


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """How weights are updated: one optax chain."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """Stochastic gradient descent, or Adam."""
    learning_rate: float = 0.1
    """Before decay."""
    momentum: float | None = None
    """sgd: share of the last update that is added to the next, default 0. adam: decay of its first
    moment, default 0.9."""
    nesterov: bool = False
    """Look ahead along the momentum."""
    schedule: Literal["constant", "exponential_decay", "inverse_time_decay", "cosine_decay"] = (
        "exponential_decay"
    )
    """Learning rate over the steps: constant; times decay_rate^(step / decay_steps); over
    1 + decay_rate * step; a half cosine down to 0 at the last step."""
    decay_rate: float = 0.98
    """Of exponential_decay (a factor) and inverse_time_decay (a rate for each step)."""
    decay_steps: int | None = None
    """exponential_decay: steps for each factor of decay_rate; default one epoch."""
    staircase: bool = False
    """exponential_decay: in stairs of decay_steps, not smoothly."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from 0."""
    l2: float = 0.0
    """lambda of the penalty lambda / 2m * sum w², over kernels; m: number of training images."""
    l1: float = 0.0
    """lambda of the penalty lambda / 2m * sum |w|, over kernels."""
    clip_norm: float | None = None
    """Greatest global norm of the gradient, penalties included; default: not clipped."""

    def __post_init__(self) -> None:
        _check_choices(self)
        for name in ("learning_rate", "l2", "l1", "warmup_steps"):
            _check_range(self, name, 0)
        _check_share(self, "momentum")
        check(
            not self.nesterov or self.resolved_momentum > 0,
            "--nesterov looks ahead along the momentum; give a --momentum above 0",
        )
        _check_range(self, "decay_steps", 1)
        check(self.decay_rate > 0, f"--decay-rate is {self.decay_rate}; give a number above 0")
        exponential = self.schedule == "exponential_decay"
        for name in ("decay_steps", "staircase"):
            check(
                exponential or not getattr(self, name),
                f"{_flag(name)} is for --schedule exponential_decay, not {self.schedule}; "
                "leave it out",
            )
        check(
            self.clip_norm is None or self.clip_norm > 0,
            f"--clip-norm is {self.clip_norm}; give a number above 0",
        )

    @property
    def resolved_momentum(self) -> float:
        """The momentum, by default the optimizer's own."""
        if self.momentum is not None:
            return self.momentum
        return 0.9 if self.optimizer == "adam" else 0.0


@dataclasses.dataclass(frozen=True)
class AugmentOptions:
    """Random changes to every training image; 0 turns each off."""

    brightness: float = 0.0
    """Brightness is multiplied by a factor within 1 ± this."""
    contrast: float = 0.0
    """Distance from the image's mean is multiplied by a factor within 1 ± this."""
    saturation: float = 0.0
    """Distance from grey is multiplied by a factor within 1 ± this; colour images only."""
    random_scale: float = 0.0
    """Size is multiplied by a factor within 1 ± this."""
    random_crop: int = 0
    """The image is padded by its reflection by so many pixels, and cropped back anywhere."""
    horizontal_flip: float = 0.0
    """Probability of mirroring left and right."""
    vertical_flip: float = 0.0
    """Probability of mirroring top and bottom."""
    rotation: float = 0.0
    """Rotated by an angle within ± so many degrees."""
    noise: float = 0.0
    """Standard deviation of the noise added to every pixel; black to white is 1."""
    cutout: int = 0
    """Side in pixels of a square, centred on any pixel, that is replaced by the mean colour of the
    training images (DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks
    with Cutout", 2017)."""

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation", "horizontal_flip", "vertical_flip"):
            _check_range(self, name, 0, 1)
        _check_range(self, "random_scale", 0, 0.9)
        for name in ("random_crop", "cutout"):
            _check_range(self, name, 0, 10_000)
        _check_range(self, "rotation", 0, 180)
        _check_range(self, "noise", 0)


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How long, in batches of what size, and when to stop."""

    batch_size: int | Literal["full"] = 128
    """Images for each step: 1 (stochastic), n (mini-batch), or `full` (the whole training set)."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one step, as of a batch so many times larger; batch
    norm and dropout see one of them at a time."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the network's arithmetic in training; parameters, statistics and loss stay float32."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes alike (Szegedy et al., "Rethinking the
    Inception Architecture for Computer Vision", 2016)."""
    mixup: float = 0.0
    """alpha: each image is mixed with another of its batch, labels alike, in shares drawn from
    Beta(alpha, alpha) (Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018)."""
    ema_decay: float = 0.0
    """Share that each step keeps of a running average of the weights, which is what is evaluated,
    kept and predicted with (Polyak and Juditsky, "Acceleration of Stochastic Approximation by
    Averaging", 1992); 0: the weights themselves."""
    flip_test: bool = False
    """Average the logits of every image and its mirror image, wherever the network is not being
    trained (Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks",
    2012)."""
    epochs: int = 10
    """Passes over the training images, at most."""
    monitor: Literal["val/loss", "val/accuracy", "val/balanced_accuracy", "val/auc"] = (
        "val/balanced_accuracy"
    )
    """Metric that chooses the best weights and decides on stopping."""
    patience: int | None = None
    """Evaluations without improvement before training stops; default: never stops early."""
    min_improvement: float = 0.0
    """Least change of the monitored metric that counts as an improvement."""
    evaluate_every: int = 1
    """Epochs between evaluations."""
    checkpoint_seconds: float = 10.0
    """Least time between two checkpoints; one is always written at the end."""
    divergence_factor: float = 1000.0
    """A step has diverged when its loss is not finite or exceeds so many times that of guessing."""
    on_nan: Literal["stop", "skip", "halve-lr"] = "stop"
    """When a step diverges: stop; or leave its update out and go on, with half the learning rate
    from there if so asked. 25 such steps in a row stop the run in any case."""
    watch_gradients: int = 0
    """Steps between measurements of what every layer does to signals and gradients; 0: none."""
    calibration: Literal["temperature", "shift"] = "temperature"
    """What is fitted on the validation images so that probabilities are right as often as they say:
    a temperature, which changes no decision; or a shift of each class besides, which moves the
    decision to where the probabilities are even."""

    def __post_init__(self) -> None:
        _check_choices(self)
        check(
            self.batch_size == "full" or self.batch_size >= 1,
            f"--batch-size is {self.batch_size}; give 1 or more, or full",
        )
        check(
            self.batch_size != "full" or self.accumulate == 1,
            f"--accumulate is {self.accumulate}, but --batch-size full is one batch; "
            "give a number of images",
        )
        for name in ("accumulate", "epochs", "patience", "evaluate_every"):
            _check_range(self, name, 1)
        for name in ("label_smoothing", "ema_decay"):
            _check_share(self, name)
        for name in ("mixup", "min_improvement", "checkpoint_seconds", "watch_gradients"):
            _check_range(self, name, 0)
        _check_range(self, "divergence_factor", 1)


@dataclasses.dataclass(frozen=True)
class ProcessOptions:
    """Of which processes, on one host or many."""

    distributed: bool = False
    """Run as one of several processes, each started with the same command; who they are is found by
    itself on SLURM, GKE, Open MPI and Cloud TPU, and otherwise given by the next three options."""
    coordinator: str | None = None
    """Address HOST:PORT of process 0, as all processes reach it."""
    num_processes: int | None = None
    """How many processes there are."""
    process_index: int | None = None
    """Which of them this one is, from 0."""

    def __post_init__(self) -> None:
        for name, low in (("num_processes", 1), ("process_index", 0)):
            _check_range(self, name, low)
        by_hand = {
            "--coordinator": self.coordinator,
            "--num-processes": self.num_processes,
            "--process-index": self.process_index,
        }
        given = [flag for flag, value in by_hand.items() if value is not None]
        check(not given or self.distributed, f"{', '.join(given)} needs --distributed; add it")
        check(
            len(given) in (0, 3),
            f"{', '.join(given)} came without {', '.join(sorted(by_hand.keys() - set(given)))}; "
            "give all three, or none where the cluster provides them",
        )
        if self.num_processes is not None and self.process_index is not None:
            check(
                self.process_index < self.num_processes,
                f"--process-index is {self.process_index} of {self.num_processes} processes; "
                f"give 0 to {self.num_processes - 1}",
            )
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            check(
                bool(host) and port.isdigit(),
                f"--coordinator is {self.coordinator}; give HOST:PORT, such as node0:8476",
            )


@dataclasses.dataclass(frozen=True)
class DeviceOptions(ProcessOptions):
    """On which devices and hosts; may differ when a run is resumed."""

    devices: int | None = None
    """Devices to use at most; default all. The batch is sharded over as many as divide it."""
    fsdp: bool = False
    """Cut parameters and optimizer state over the devices too, where they are too large for one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range(self, "devices", 1)
