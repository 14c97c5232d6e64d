"""Networks for images in the manner of public ones, each in its library's own idiom."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import nnx
from jax import Array
from jax.example_libraries import stax
from zoo_tasks import KEY, NUM_CLASSES, Call, Entry, channels_first, images, masks, normal


class LeNet(nnx.Module):
    """Of the first page of Flax."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draw the weights."""
        self.conv1 = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(8, 16, (3, 3), rngs=rngs)
        self.linear1 = nnx.Linear(64, 32, rngs=rngs)
        self.linear2 = nnx.Linear(32, NUM_CLASSES, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Return logits."""
        x = nnx.avg_pool(nnx.relu(self.conv1(x)), (2, 2), (2, 2))
        x = nnx.avg_pool(nnx.relu(self.conv2(x)), (2, 2), (2, 2))
        return self.linear2(nnx.relu(self.linear1(x.reshape(x.shape[0], -1))))


def lenet() -> Call:
    """LeNet in NNX."""
    return Call((LeNet(nnx.Rngs(0)), *images()))


class VGG(nn.Module):
    """Convolutions with batch norm, pooling, dropout."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Return logits."""
        for width in (8, 16):
            for _ in range(2):
                x = nn.Conv(width, (3, 3))(x)
                x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(32)(x.reshape(x.shape[0], -1)))
        return nn.Dense(NUM_CLASSES)(nn.Dropout(0.2, deterministic=not train)(x))


def vgg() -> Call:
    """VGG in Linen, with its variables."""
    x, labels = images()
    keys = {"params": KEY, "dropout": KEY}
    return Call(((VGG(), VGG().init(keys, x, train=True)), x, labels))


class ResNetBlock(nn.Module):
    """As in Flax's ImageNet example: the last norm of a branch begins at zero."""

    filters: int
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Return relu(x + branch)."""

        def norm(**options: Any) -> nn.BatchNorm:
            return nn.BatchNorm(use_running_average=not train, momentum=0.9, **options)

        y = nn.Conv(self.filters, (3, 3), self.strides, use_bias=False)(x)
        y = nn.relu(norm()(y))
        y = norm(scale_init=nn.initializers.zeros)(nn.Conv(self.filters, (3, 3), use_bias=False)(y))
        if x.shape != y.shape:
            x = norm()(nn.Conv(self.filters, (1, 1), self.strides, use_bias=False)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """The first version."""

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        """Return logits."""
        x = nn.Conv(8, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        for filters, stride in ((8, 1), (16, 2)):
            for block in range(2):
                x = ResNetBlock(filters, (stride, stride) if block == 0 else (1, 1))(x, train)
        return nn.Dense(NUM_CLASSES)(jnp.mean(x, axis=(1, 2)))


def resnet() -> Call:
    """ResNet v1 in Linen, the bare module."""
    return Call((ResNet(), *images()))


class PreActivation(nnx.Module):
    """A block of the second version."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        """Draw the weights."""
        self.norm1, self.norm2 = nnx.BatchNorm(width, rngs=rngs), nnx.BatchNorm(width, rngs=rngs)
        self.conv1 = nnx.Conv(width, width, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(width, width, (3, 3), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Return x + branch."""
        y = self.conv1(nnx.relu(self.norm1(x)))
        return x + self.conv2(nnx.relu(self.norm2(y)))


class ResNetV2(nnx.Module):
    """Pre-activation blocks."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draw the weights."""
        self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.blocks = nnx.List([PreActivation(8, rngs) for _ in range(3)])
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, NUM_CLASSES, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Return logits."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(nnx.relu(self.norm(x)).mean((1, 2)))


def resnet_v2() -> Call:
    """ResNet v2 in NNX."""
    return Call((ResNetV2(nnx.Rngs(0)), *images()))


def _wide_block(x: Array, width: int, is_training: bool) -> Array:
    def norm(x: Array) -> Array:
        return hk.BatchNorm(True, True, 0.9)(x, is_training)

    y = hk.Conv2D(width, 3, with_bias=False)(jax.nn.relu(norm(x)))
    y = hk.dropout(hk.next_rng_key(), 0.1, y) if is_training else y
    y = hk.Conv2D(width, 3, with_bias=False)(jax.nn.relu(norm(y)))
    short = x if x.shape[-1] == width else hk.Conv2D(width, 1, with_bias=False)(x)
    return short + y


def wide_resnet() -> Call:
    """Wide ResNet in Haiku, with dropout, a state and a flag."""

    def forward(x: Array, is_training: bool) -> Array:
        x = hk.Conv2D(8, 3, with_bias=False)(x)
        for width in (16, 16):
            x = _wide_block(x, width, is_training)
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(x, is_training))
        return hk.Linear(NUM_CLASSES)(x.mean((1, 2)))

    x, labels = images()
    transformed = hk.transform_with_state(forward)
    params, state = transformed.init(KEY, x, is_training=True)
    return Call(((transformed, params, state), x, labels))


class DenseNet(eqx.Module):
    """Each layer sees all before it."""

    convs: list[eqx.nn.Conv2d]
    norms: list[eqx.nn.GroupNorm]
    head: eqx.nn.Linear

    def __init__(self, key: Array) -> None:
        """Draw the weights."""
        keys = jax.random.split(key, 5)
        self.convs = [eqx.nn.Conv2d(3 + 4 * i, 4, 3, padding=1, key=keys[i]) for i in range(4)]
        self.norms = [eqx.nn.GroupNorm(1, 3 + 4 * i) for i in range(4)]
        self.head = eqx.nn.Linear(19, NUM_CLASSES, key=keys[4])

    def __call__(self, x: Array) -> Array:
        """Return the logits of one image."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jnp.concatenate([x, conv(jax.nn.relu(norm(x)))])
        return self.head(x.mean((1, 2)))


def densenet() -> Call:
    """DenseNet in Equinox."""
    return Call((DenseNet(KEY), *channels_first()))


class Separable(nnx.Module):
    """A depthwise and a pointwise convolution, as in MobileNet."""

    def __init__(self, num_in: int, num_out: int, rngs: nnx.Rngs) -> None:
        """Draw the weights."""
        self.depthwise = nnx.Conv(
            num_in, num_in, (3, 3), feature_group_count=num_in, use_bias=False, rngs=rngs
        )
        self.norm1, self.norm2 = nnx.BatchNorm(num_in, rngs=rngs), nnx.BatchNorm(num_out, rngs=rngs)
        self.pointwise = nnx.Conv(num_in, num_out, (1, 1), use_bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Return features."""
        x = nnx.relu6(self.norm1(self.depthwise(x)))
        return nnx.relu6(self.norm2(self.pointwise(x)))


class MobileNet(nnx.Module):
    """The first version."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draw the weights."""
        self.stem = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.blocks = nnx.List([Separable(8, 16, rngs), Separable(16, 16, rngs)])
        self.head = nnx.Linear(16, NUM_CLASSES, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Return logits."""
        x = nnx.relu6(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def mobilenet() -> Call:
    """MobileNet in NNX."""
    return Call((MobileNet(nnx.Rngs(0)), *images()))


class SqueezeExcite(nn.Module):
    """Gates by channel."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return x times its gates."""
        y = x.mean((1, 2), keepdims=True)
        y = nn.relu(nn.Conv(4, (1, 1), name="reduce")(y))
        return x * nn.sigmoid(nn.Conv(x.shape[-1], (1, 1), name="expand")(y))


class InvertedResidual(nn.Module):
    """As in MobileNet v3 and EfficientNet."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Return x + branch."""

        def norm() -> nn.BatchNorm:
            return nn.BatchNorm(use_running_average=not train)

        width = x.shape[-1]
        y = nn.swish(norm()(nn.Conv(3 * width, (1, 1), use_bias=False)(x)))
        y = nn.Conv(3 * width, (3, 3), feature_group_count=3 * width, use_bias=False)(y)
        y = SqueezeExcite()(nn.swish(norm()(y)))
        return x + norm()(nn.Conv(width, (1, 1), use_bias=False)(y))


class EfficientNet(nn.Module):
    """Inverted residuals with gates."""

    @nn.compact
    def __call__(self, x: Array, training: bool) -> Array:
        """Return logits."""
        x = nn.Conv(8, (3, 3), use_bias=False, name="stem")(x)
        x = nn.swish(nn.BatchNorm(use_running_average=not training)(x))
        for _ in range(2):
            x = InvertedResidual()(x, training)
        return nn.Dense(NUM_CLASSES, name="head")(x.mean((1, 2)))


def efficientnet() -> Call:
    """Inverted residuals with squeeze and excitation, in Linen, the bare module."""
    return Call((EfficientNet(), *images()))


class ConvNeXtBlock(eqx.Module):
    """Depthwise 7 x 7, norm, an MLP, and a small scale on the branch."""

    depthwise: eqx.nn.Conv2d
    norm: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    gamma: Array

    def __init__(self, width: int, key: Array) -> None:
        """Draw the weights."""
        one, two, three = jax.random.split(key, 3)
        self.depthwise = eqx.nn.Conv2d(width, width, 7, padding=3, groups=width, key=one)
        self.norm = eqx.nn.LayerNorm(width)
        self.up = eqx.nn.Linear(width, 4 * width, key=two)
        self.down = eqx.nn.Linear(4 * width, width, key=three)
        self.gamma = 1e-6 * jnp.ones(width)

    def __call__(self, x: Array) -> Array:
        """Return x + branch, (channel, height, width)."""

        def pixel(y: Array) -> Array:
            return self.gamma * self.down(jax.nn.gelu(self.up(self.norm(y))))

        y = jax.vmap(jax.vmap(pixel, 1, 1), 1, 1)(self.depthwise(x))
        return x + y


class ConvNeXt(eqx.Module):
    """Blocks after a stem of patches."""

    stem: eqx.nn.Conv2d
    blocks: list[ConvNeXtBlock]
    head: eqx.nn.Linear

    def __init__(self, key: Array) -> None:
        """Draw the weights."""
        one, two, three, four = jax.random.split(key, 4)
        self.stem = eqx.nn.Conv2d(3, 16, 2, stride=2, key=one)
        self.blocks = [ConvNeXtBlock(16, two), ConvNeXtBlock(16, three)]
        self.head = eqx.nn.Linear(16, NUM_CLASSES, key=four)

    def __call__(self, x: Array) -> Array:
        """Return the logits of one image."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def convnext() -> Call:
    """ConvNeXt in Equinox, with layer scales of 1e-6."""
    return Call((ConvNeXt(KEY), *channels_first()))


class UNet(nn.Module):
    """Down, up, and across."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return a logit for each pixel."""
        first = nn.relu(nn.Conv(8, (3, 3))(x))
        second = nn.relu(nn.Conv(16, (3, 3))(nn.max_pool(first, (2, 2), (2, 2))))
        third = nn.relu(nn.Conv(16, (3, 3))(nn.max_pool(second, (2, 2), (2, 2))))
        up = nn.ConvTranspose(16, (2, 2), (2, 2))(third)
        up = nn.relu(nn.Conv(8, (3, 3))(jnp.concatenate([up, second], -1)))
        up = nn.ConvTranspose(8, (2, 2), (2, 2))(up)
        up = nn.relu(nn.Conv(8, (3, 3))(jnp.concatenate([up, first], -1)))
        return nn.Conv(1, (1, 1))(up)


def unet() -> Call:
    """U-Net in Linen, that marks pixels."""

    def loss(logits: Array, wanted: Array) -> Array:
        return optax.sigmoid_binary_cross_entropy(logits, wanted).mean()

    return Call((UNet(), *masks()), {"loss": loss})


class Autoencoder(nnx.Module):
    """Convolutions down, transposed ones up."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draw the weights."""
        self.down1 = nnx.Conv(3, 16, (3, 3), strides=2, rngs=rngs)
        self.down2 = nnx.Conv(16, 16, (3, 3), strides=2, rngs=rngs)
        self.up1 = nnx.ConvTranspose(16, 16, (3, 3), strides=2, rngs=rngs)
        self.up2 = nnx.ConvTranspose(16, 3, (3, 3), strides=2, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Return the image again."""
        x = nnx.relu(self.down2(nnx.relu(self.down1(x))))
        return self.up2(nnx.relu(self.up1(x)))


def autoencoder() -> Call:
    """A convolutional autoencoder in NNX."""
    x, _ = images()
    return Call((Autoencoder(nnx.Rngs(0)), x, x))


class StdConv(nn.Conv):
    """A convolution whose kernel is standardised, as in Big Transfer."""

    def param(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Return the kernel at mean 0 and variance 1."""
        value = super().param(name, *arguments, **options)
        if name == "kernel":
            value = value - jnp.mean(value, axis=(0, 1, 2))
            value = value / (jnp.std(value, axis=(0, 1, 2)) + 1e-5)
        return value


class BiT(nn.Module):
    """Standardised kernels, group norm, and a head of zeros."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return logits."""
        x = StdConv(16, (3, 3), use_bias=False)(x)
        for _ in range(2):
            y = StdConv(16, (3, 3), use_bias=False)(nn.relu(nn.GroupNorm(4)(x)))
            x = x + StdConv(16, (3, 3), use_bias=False)(nn.relu(nn.GroupNorm(4)(y)))
        x = nn.relu(nn.GroupNorm(4)(x)).mean((1, 2))
        return nn.Dense(NUM_CLASSES, kernel_init=nn.initializers.zeros, name="head")(x)


def bit() -> Call:
    """Big Transfer in Linen."""
    return Call((BiT(), *images()))


class EncoderBlock(nn.Module):
    """As in vision_transformer."""

    @nn.compact
    def __call__(self, x: Array, *, deterministic: bool) -> Array:
        """Return x + attention + MLP."""
        y = nn.LayerNorm()(x)
        y = nn.MultiHeadDotProductAttention(num_heads=2, deterministic=deterministic)(y, y)
        x = x + nn.Dropout(0.1)(y, deterministic=deterministic)
        y = nn.Dense(32)(nn.LayerNorm()(x))
        return x + nn.Dense(x.shape[-1])(nn.gelu(y))


class ViT(nn.Module):
    """Patches, a class token, positions, and a head of zeros."""

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Return logits."""
        x = nn.Conv(16, (2, 2), strides=(2, 2), padding="VALID", name="embedding")(x)
        x = x.reshape(x.shape[0], -1, 16)
        cls = self.param("cls", nn.initializers.zeros, (1, 1, 16))
        x = jnp.concatenate([jnp.tile(cls, (x.shape[0], 1, 1)), x], axis=1)
        table = nn.initializers.normal(0.02)
        x = x + self.param("pos_embedding", table, (1, x.shape[1], 16))
        for index in range(2):
            x = EncoderBlock(name=f"encoderblock_{index}")(x, deterministic=not train)
        x = nn.LayerNorm(name="encoder_norm")(x)[:, 0]
        return nn.Dense(NUM_CLASSES, kernel_init=nn.initializers.zeros, name="head")(x)


def vit() -> Call:
    """Vision transformer in Linen, with its variables."""
    x, labels = images()
    variables = jax.jit(ViT().init, static_argnames="train")(KEY, x, train=False)
    return Call(((ViT(), variables), x, labels))


class MixerBlock(nn.Module):
    """An MLP over places, then one over channels."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return x + both."""
        y = jnp.swapaxes(nn.LayerNorm()(x), 1, 2)
        y = nn.Dense(y.shape[-1])(nn.gelu(nn.Dense(16)(y)))
        x = x + jnp.swapaxes(y, 1, 2)
        y = nn.LayerNorm()(x)
        return x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(32)(y)))


class MLPMixer(nn.Module):
    """As in vision_transformer."""

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Array:
        """Return logits."""
        del train
        x = nn.Conv(16, (2, 2), strides=(2, 2), name="stem")(inputs)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        for index in range(2):
            x = MixerBlock(name=f"MixerBlock_{index}")(x)
        x = nn.LayerNorm(name="pre_head_layer_norm")(x).mean(1)
        return nn.Dense(NUM_CLASSES, kernel_init=nn.initializers.zeros, name="head")(x)


def mlp_mixer() -> Call:
    """MLP-Mixer in Linen, with a head of zeros."""
    return Call((MLPMixer(), *images()))


def fixup() -> Call:
    """Residual blocks without norms that begin as the identity, as plain functions."""

    def conv(x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def apply(params: Any, x: Array) -> Array:
        x = conv(x, params["stem"])
        for block in params["blocks"]:
            y = jax.nn.relu(conv(x + block["bias_a"], block["first"]) + block["bias_b"])
            y = conv(y, block["second"]) * block["scale"] + block["bias_c"]
            x = jax.nn.relu(x + y)
        return x.mean((1, 2)) @ params["head"]["w"] + params["head"]["b"]

    def block(seed: int) -> dict[str, Array]:
        first = normal(seed, 3, 3, 8, 8) * (2 / 72) ** 0.5 * 3**-0.5
        zeros = {f"bias_{name}": jnp.zeros(()) for name in "abc"}
        return {"first": first, "second": jnp.zeros((3, 3, 8, 8)), "scale": jnp.ones(()), **zeros}

    params = {
        "stem": normal(20, 3, 3, 3, 8) * (2 / 27) ** 0.5,
        "blocks": [block(21 + index) for index in range(3)],
        "head": {"w": jnp.zeros((8, NUM_CLASSES)), "b": jnp.zeros(NUM_CLASSES)},
    }
    return Call(((apply, params), *images()))


class SkipBlock(hk.Module):
    """A branch times a scalar that begins at zero."""

    def __call__(self, x: Array) -> Array:
        """Return x + alpha * branch."""
        y = hk.Conv2D(8, 3)(jax.nn.relu(x))
        y = hk.Conv2D(8, 3)(jax.nn.relu(y))
        return x + hk.get_parameter("alpha", (), init=jnp.zeros) * y


def skip_init() -> Call:
    """SkipInit in Haiku, without keys."""

    def forward(x: Array) -> Array:
        x = hk.Conv2D(8, 3)(x)
        for _ in range(3):
            x = SkipBlock()(x)
        return hk.Linear(NUM_CLASSES)(jax.nn.relu(x).mean((1, 2)))

    x, labels = images()
    transformed = hk.without_apply_rng(hk.transform(forward))
    return Call(((transformed, transformed.init(KEY, x)), x, labels))


def stax_convnet() -> Call:
    """The ResNet-like example of stax: a fan-out, and a sum."""
    branch = stax.serial(stax.BatchNorm(), stax.Relu, stax.Conv(8, (3, 3), padding="SAME"))
    block = stax.serial(stax.FanOut(2), stax.parallel(branch, stax.Identity), stax.FanInSum)
    init, apply = stax.serial(
        stax.Conv(8, (3, 3), padding="SAME"), block, block,
        stax.Relu, stax.AvgPool((2, 2), (2, 2)), stax.Flatten, stax.Dense(NUM_CLASSES),
    )  # fmt: skip
    x, labels = images()
    _, params = init(KEY, x.shape)
    return Call(((apply, params), x, labels))


IMAGES = {
    "lenet": Entry("nnx", lenet),
    "vgg": Entry("linen", vgg, flags={"train": True}),
    "resnet": Entry("linen", resnet, flags={"train": True}),
    "resnet_v2": Entry("nnx", resnet_v2),
    "wide_resnet": Entry("haiku", wide_resnet, flags={"is_training": True}),
    "densenet": Entry("equinox", densenet),
    "mobilenet": Entry("nnx", mobilenet),
    "efficientnet": Entry("linen", efficientnet, flags={"training": True}),
    "convnext": Entry("equinox", convnext),
    "unet": Entry("linen", unet),
    "autoencoder": Entry("nnx", autoencoder),
    "bit": Entry("linen", bit),
    "vit": Entry("linen", vit, flags={"train": True}),
    "mlp_mixer": Entry("linen", mlp_mixer, flags={"train": True}),
    "fixup": Entry("plain", fixup, "adam:0.01"),
    "skip_init": Entry("haiku", skip_init),
    "stax_convnet": Entry("stax", stax_convnet),
}
