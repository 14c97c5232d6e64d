"""The settings of a training run, kept as JSON with the results.

Every default lives in `jaxdnn/options.py`, or in the recipe that overrides it (`recipes.py`).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_type_hints

from jaxdnn.errors import InputError
from jaxdnn.options import (
    AugmentOptions,
    DataOptions,
    ModelOptions,
    OptimizerOptions,
    TrainOptions,
    check,
)
from jaxdnn.run_folder import atomic_write
from jaxdnn.stored import misfit, read_json

# What ImageNet's weights were trained for; pictures of 28 x 28 gain nothing from so much.
_SIZE_FOR_BACKBONE, _EMBEDDED_FOR_BACKBONE, _LEAST_FOR_BACKBONE = 227, 96, 32


@dataclasses.dataclass(frozen=True)
class Config:
    """A training run."""

    data: DataOptions = dataclasses.field(default_factory=DataOptions)
    model: ModelOptions = dataclasses.field(default_factory=ModelOptions)
    optimizer: OptimizerOptions = dataclasses.field(default_factory=OptimizerOptions)
    augment: AugmentOptions = dataclasses.field(default_factory=AugmentOptions)
    train: TrainOptions = dataclasses.field(default_factory=TrainOptions)
    seed: int = 0
    """Fixes the split, the weights, the order of the images, augmentation and dropout."""

    def __post_init__(self) -> None:
        check(0 <= self.seed < 2**31, f"--seed is {self.seed}; give one from 0 to 2147483647")
        check(
            self.data.channels != 1 or self.augment.saturation == 0,
            "--saturation needs colour; with --channels 1 leave it out",
        )
        check(
            self.model.views == 0 or self.augment != AugmentOptions(),
            f"--views is {self.model.views}, but nothing would change the images; give "
            "--horizontal-flip or another augmentation, or --views 0",
        )
        self._check_backbone()

    def _check_backbone(self) -> None:
        size = self.images.image_size
        check(
            not self.model.has_backbone or size is None or size >= _LEAST_FOR_BACKBONE,
            f"--image-size is {size}; efficientnet_lite0 halves it five times, so give "
            f"{_LEAST_FOR_BACKBONE} or more",
        )
        check(
            not self.model.has_backbone or not self.train.flip_test,
            "--flip-test mirrors images; efficientnet_lite0 sees what its frozen blocks made of "
            "them; leave it out",
        )
        check(
            self.model.head_epochs < self.train.epochs or self.model.head_epochs == 0,
            f"--head-epochs is {self.model.head_epochs} of {self.train.epochs} epochs, so that no "
            "block would be trained; give fewer, or more --epochs",
        )

    @property
    def images(self) -> DataOptions:
        """What to learn from, the size of images for a pretrained network decided."""
        if not self.model.has_backbone or self.data.image_size is not None:
            return self.data
        size = _EMBEDDED_FOR_BACKBONE if self.data.data == "silhouettes" else _SIZE_FOR_BACKBONE
        return dataclasses.replace(self.data, image_size=size)

    @property
    def balances_batches(self) -> bool:
        """Whether batches are filled with all classes equally."""
        return self.data.balance == "batches" and self.train.batch_size != "full"

    @property
    def weighs_classes(self) -> bool:
        """Whether the loss is weighed by class."""
        return self.data.balance != "none" and not self.balances_batches


def save_config(config: Config, path: Path) -> None:
    """Write a config as JSON."""
    with atomic_write(path) as draft:
        draft.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def load_config(path: Path) -> Config:
    """Read a config written by `save_config`.

    Raises:
      InputError: the file is missing, not JSON, or holds fields of another version.
    """
    stored = read_json(path, dict[str, Any], remedy=_REMEDY)
    return _from_json(Config, stored, path)


_REMEDY = "put back a copy of it, or train again"


def _from_json(kind: type, stored: Any, path: Path) -> Any:
    """Build the dataclass `kind` from parsed JSON, nested stages and tuples included."""
    names = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(stored, dict) or set(stored) != names:
        differs = (
            ", ".join(sorted(names ^ set(stored))) if isinstance(stored, dict) else "no object"
        )
        raise InputError(f"{path} was written by another version ({differs}); train again")
    hints = get_type_hints(kind)
    values = {}
    for name, value in stored.items():
        if dataclasses.is_dataclass(hints[name]):
            values[name] = _from_json(hints[name], value, path)
            continue
        if wrong := misfit(value, hints[name], name):
            raise InputError(f"{path} is damaged ({wrong}); {_REMEDY}")
        values[name] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"{path} is damaged ({error}); {_REMEDY}") from error


def differences(ours: Config, theirs: Config) -> list[str]:
    """Return one `name: ours, theirs` for every setting in which two configs differ."""
    found = []
    for stage in dataclasses.fields(Config):
        a, b = getattr(ours, stage.name), getattr(theirs, stage.name)
        if not dataclasses.is_dataclass(a):
            found += [f"{stage.name}: {a}, {b}"] if a != b else []
            continue
        for field in dataclasses.fields(a):
            x, y = getattr(a, field.name), getattr(b, field.name)
            found += [f"{field.name}: {x}, {y}"] if x != y else []
    return found
