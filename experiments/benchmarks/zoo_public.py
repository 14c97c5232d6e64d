"""Models of public repositories, by the call that their own users would write.

Each is built from a checkout of its repository, `FOLDER/<name of the repository>`; nothing of them
is part of this project. Where a repository, or a package that it needs, is not at hand, the model
is left out and the reason given.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import haiku as hk
from flax import nnx
from zoo_tasks import NUM_WORDS, Call, Entry, images, next_words


class Public(NamedTuple):
    """A model of a public repository.

    Attributes:
      repository: the folder of its checkout.
      module: that is imported from there.
      library: as of an entry of the zoo.
      make: builds network and data, given the module.
      flags: as of an entry of the zoo.
    """

    repository: str
    module: str
    library: str
    make: Callable[[Any], Call]
    flags: Mapping[str, Any] = MappingProxyType({})


def _first(said: Any) -> Any:
    return said[0]


def _nanodo(model: Any) -> Call:
    config = model.DoConfig(D=32, H=2, L=8, N=2, V=NUM_WORDS, F=64, fsdp_enabled=False)
    return Call((model.TransformerDo(config), *next_words()))


def _vit_jax(models: Any) -> Call:
    sizes = {"mlp_dim": 64, "num_heads": 2, "num_layers": 2, "dropout_rate": 0.0}
    model = models.VisionTransformer(
        num_classes=3, patches=SimpleNamespace(size=(4, 4)), transformer=sizes, hidden_size=32
    )
    return Call((model, *images(size=16)))


def _mixer(models: Any) -> Call:
    model = models.MlpMixer(
        patches=SimpleNamespace(size=(4, 4)), num_classes=3, num_blocks=2, hidden_dim=32,
        tokens_mlp_dim=16, channels_mlp_dim=64,
    )  # fmt: skip
    return Call((model, *images(size=16)))


def _big_vit(vit: Any) -> Call:
    return Call((vit.Model(3, variant="mu/4"), *images(size=16)), {"outputs": _first})


def _big_mixer(mixer: Any) -> Call:
    model = mixer.Model(
        3, patch_size=(4, 4), num_blocks=2, hidden_dim=32, tokens_mlp_dim=16, channels_mlp_dim=64
    )
    return Call((model, *images(size=16)), {"outputs": _first})


def _big_bit(bit: Any) -> Call:
    model = bit.Model(3, width=0.25, depth=(1, 1, 1, 1))
    return Call((model, *images(size=32)), {"outputs": _first})


def _haiku_transformer(model: Any) -> Call:
    def forward(tokens: Any) -> Any:
        transformer = model.Transformer(2, 2, 16, 0.1)
        return model.LanguageModel(transformer, 32, NUM_WORDS, pad_token=-1)(tokens)

    return Call((hk.transform(forward), *next_words()))


def _haiku_mnist(mnist: Any) -> Call:
    x, labels = images()
    return Call((hk.without_apply_rng(hk.transform(mnist.net_fn)), 127 + 60 * x, labels))


def _bonsai_resnet(resnet: Any) -> Call:
    config = resnet.ModelConfig([1, 1, 1, 1], num_classes=3)
    return Call((resnet.ResNet(config, rngs=nnx.Rngs(0)), *images(12, 32)))


def _bonsai_vit(vit: Any) -> Call:
    config = vit.ModelConfig((16, 16), (4, 4), 3, 32, 0.0, 0.0, 2, 64, 1e-12, 2, 3)
    return Call((vit.ViTClassificationModel(config, rngs=nnx.Rngs(0)), *images(size=16)))


def _bonsai_convnext(convnext: Any) -> Call:
    config = convnext.ModelConfig([1, 1], [16, 32], 0.0, 3)
    return Call((convnext.ConvNeXt(config, rngs=nnx.Rngs(0)), *images(size=16)))


def _bonsai_densenet(densenet: Any) -> Call:
    config = densenet.ModelConfig(3, [2, 2], 8)
    return Call((densenet.DenseNet(config, rngs=nnx.Rngs(0)), *images(size=16)))


def _bonsai_vgg(vgg: Any) -> Call:
    config = vgg.ModelConfig(3, [1, 1, 1, 1, 1], [8, 16, 16, 16, 16, 32])
    return Call((vgg.VGG(config, rngs=nnx.Rngs(0)), *images(size=32)))


def _bonsai_unet(unet: Any) -> Call:
    x, _ = images(8, 32)
    config = unet.ModelConfig(in_channels=3, num_classes=1, features=(4, 8, 16, 32, 64))
    return Call((unet.UNet(config, rngs=nnx.Rngs(0)), x, x[..., :1]))


def _bonsai_vae(vae: Any) -> Call:
    x, _ = images(8, 16)
    config = vae.ModelConfig([8, 16], 4, 4)
    return Call((vae.VAE(config, nnx.Rngs(0)), x, x))


def _bonsai_mamba(mamba: Any) -> Call:
    words, targets = next_words()
    config = mamba.ModelConfig(
        vocab_size=NUM_WORDS, hidden_size=32, state_size=8, head_dim=16, chunk_size=8,
        num_hidden_layers=2,
    )  # fmt: skip
    model = mamba.Mamba2ForCausalLM(config, rngs=nnx.Rngs(0))
    return Call((model, words, targets), {"outputs": lambda said: said["logits"]})


_BONSAI = "bonsai.models.{}.modeling"
PUBLIC = {
    "nanodo": Public("nanodo", "nanodo.model", "linen", _nanodo),
    "vit_jax": Public(
        "vision_transformer", "vit_jax.models_vit", "linen", _vit_jax, {"train": True}
    ),
    "vit_jax mixer": Public(
        "vision_transformer", "vit_jax.models_mixer", "linen", _mixer, {"train": True}
    ),
    "big_vision vit": Public("big_vision", "big_vision.models.vit", "linen", _big_vit),
    "big_vision mixer": Public("big_vision", "big_vision.models.mlp_mixer", "linen", _big_mixer),
    "big_vision bit": Public("big_vision", "big_vision.models.bit", "linen", _big_bit),
    "haiku transformer": Public(
        "dm-haiku", "examples.transformer.model", "haiku", _haiku_transformer
    ),
    "haiku mnist": Public("dm-haiku", "examples.mnist", "haiku", _haiku_mnist),
    "bonsai resnet": Public("bonsai", _BONSAI.format("resnet"), "nnx", _bonsai_resnet),
    "bonsai vit": Public("bonsai", _BONSAI.format("vit"), "nnx", _bonsai_vit, {"rngs": None}),
    "bonsai convnext": Public(
        "bonsai", _BONSAI.format("convnext"), "nnx", _bonsai_convnext, {"rngs": None, "train": True}
    ),
    "bonsai densenet": Public("bonsai", _BONSAI.format("densenet121"), "nnx", _bonsai_densenet),
    "bonsai vgg": Public("bonsai", _BONSAI.format("vgg19"), "nnx", _bonsai_vgg),
    "bonsai unet": Public("bonsai", _BONSAI.format("unet"), "nnx", _bonsai_unet),
    "bonsai vae": Public("bonsai", _BONSAI.format("vae"), "nnx", _bonsai_vae),
    "bonsai mamba2": Public("bonsai", _BONSAI.format("mamba2"), "nnx", _bonsai_mamba),
}


def public_zoo(folder: Path) -> Iterator[tuple[str, Entry | str]]:
    """Give name and entry of every model, or the reason why it is left out."""
    for name, public in PUBLIC.items():
        root = folder / public.repository
        if not root.is_dir():
            yield name, f"no folder {root}"
            continue
        sys.path.insert(0, str(root))
        try:
            module = importlib.import_module(public.module)
            public.make(module)
        except Exception as error:  # A repository may need anything.
            yield name, f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        finally:
            sys.path.remove(str(root))
        yield (
            name,
            Entry(public.library, lambda p=public, m=module: p.make(m), flags=public.flags),
        )
