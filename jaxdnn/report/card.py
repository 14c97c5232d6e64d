"""The model card of a run: what it is, how well it does, and what it is not for.

Model cards for model reporting (Mitchell, Wu, Zaldivar, Barnes, Vasserman, Hutchinson, Spitzer,
Raji and Gebru, 2019).
"""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections.abc import Iterator
from typing import Any

from jaxdnn.config import Config, load_config
from jaxdnn.names import printable, shown_apart
from jaxdnn.recipes import RECIPES
from jaxdnn.run_folder import DatasetAbout, RunFolder, atomic_write, read_dataset, read_summary

_MOST_CLASSES = 40
_WEIGHTS = {
    "efficientnet_lite0": "those of EfficientNet-Lite0 for ImageNet, Apache-2.0; they have seen "
    "ImageNet's photographs, of which some may be among the test images"
}
_Z = 1.959964  # Of the normal distribution: 95 % lie within so many deviations.


def write_card(folder: RunFolder) -> None:
    """Write card.md from the other files of a finished run."""
    config, about = load_config(folder.config), read_dataset(folder)
    text = "\n\n".join(_sections(config, about, read_summary(folder)))
    with atomic_write(folder.card) as draft:
        draft.write_text(text + "\n", encoding="utf-8")


def interval(num_right: float, num: int) -> tuple[float, float]:
    """Return where a share may lie, 19 times of 20, by a sample of `num` with so many right.

    Probable inference, the law of succession, and statistical inference (Wilson, 1927).
    """
    if num == 0:
        return 0.0, 1.0
    share, scale = num_right / num, 1 + _Z**2 / num
    middle = share + _Z**2 / (2 * num)
    half = _Z * math.sqrt(share * (1 - share) / num + _Z**2 / (4 * num**2))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def mean_interval(recalls: list[float], counts: list[int]) -> tuple[float, float]:
    """Return where the mean over classes of the share recognised may lie, 19 times of 20.

    The distances of each class's own bounds are independent, so their squares add up (Newcombe,
    "Interval estimation for the difference between independent proportions", 1998).
    """
    pairs = list(zip(recalls, counts, strict=True))
    bounds = [interval(share * num, num) for share, num in pairs]
    mean = sum(recalls) / len(recalls)
    below = math.hypot(*(share - low for share, (low, _) in zip(recalls, bounds, strict=True)))
    above = math.hypot(*(high - share for share, (_, high) in zip(recalls, bounds, strict=True)))
    return max(0.0, mean - below / len(recalls)), min(1.0, mean + above / len(recalls))


def _sections(config: Config, about: DatasetAbout, summary: dict[str, Any]) -> list[str]:
    names = list(map(escaped, shown_apart(about["class_names"])))
    said = ", ".join(names[:_MOST_CLASSES])
    more = f" and {len(names) - _MOST_CLASSES} more" if len(names) > _MOST_CLASSES else ""
    colour = "grey" if about["channels"] == 1 else "colour"
    size = f"{about['height']}×{about['width']} {colour}"
    return [
        f"# Model card: {' or '.join(names) if len(names) == 2 else f'{len(names)} classes'}",
        f"A network that says which of {said}{more} an image shows, with a probability. It takes "
        f"the middle square of an image at {size} pixels.",
        _data(about),
        _results(about, summary),
        _probabilities(summary),
        _limits(about, summary),
        _making(config, summary),
    ]


def _data(about: DatasetAbout) -> str:
    counts = about["counts"]
    names = map(escaped, shown_apart(about["class_names"]))
    # By place, as labels are: a name could be edited.
    of_class = zip(names, *(part.values() for part in counts.values()), strict=False)
    rows = [
        f"| {name} | {' | '.join(f'{num:,}' for num in nums)} |"
        for name, *nums in list(of_class)[:_MOST_CLASSES]
    ]
    totals = " | ".join(f"{sum(part.values()):,}" for part in counts.values())
    skipped = len(about["skipped"])
    left_out = f" {skipped:,} files could not be read and were left out." if skipped else ""
    return "\n".join(
        [
            "## Data",
            "",
            f"From {escaped(about['origin'])}. Weights are fitted to the training images; the best "
            "of them and the temperature are chosen on the validation images; the test images were "
            f"looked at once, at the end.{left_out}",
            "",
            f"| images | {' | '.join(counts)} |",
            "|---" * (1 + len(counts)) + "|",
            *rows,
            f"| all | {totals} |",
        ]
    )


def _results(about: DatasetAbout, summary: dict[str, Any]) -> str:
    if summary["test/accuracy"] is None:
        return "## Results\n\nNone: the network's answers are not finite. Do not use it."
    counts = list(about["counts"]["test"].values())
    found = [
        (share, num)
        for share, num in zip(summary["recalls"], counts, strict=True)
        if share is not None and num
    ]
    num = sum(counts)
    accuracy = summary["test/accuracy"]
    lines = [
        "| test images | value | 95 % interval |",
        "|---|---|---|",
        f"| accuracy | {accuracy:.3f} | {_range(interval(accuracy * num, num))} |",
        f"| balanced accuracy | {summary['test/balanced_accuracy']:.3f} | "
        f"{_range(mean_interval(*map(list, zip(*found, strict=True))))} |",
        f"| AUC | {_number(summary['test/auc'])} | |",
    ]
    names = map(escaped, shown_apart(about["class_names"]))
    for name, share, count in list(zip(names, summary["recalls"], counts, strict=True))[
        :_MOST_CLASSES
    ]:
        if share is not None:
            bounds = _range(interval(share * count, count))
            lines.append(f"| recognised of {name} | {share:.3f} | {bounds} |")
    note = (
        f"The intervals say how far {num:,} test images may mislead (Wilson's), not how another "
        "run would do: its split, first weights and order of images follow from another seed, and "
        "`experiments/benchmarks/results.py` measures that spread."
    )
    return "\n".join(["## Results", "", *lines, "", note])


def _probabilities(summary: dict[str, Any]) -> str:
    if summary["temperature"] is None:
        return "## Probabilities\n\nThere are none."
    common = (
        "all classes are equally common"
        if summary["classes_alike"]
        else ("classes are as common as in these data")
    )
    moved = " and a shift of each class" if summary["shift"] else ""
    return (
        "## Probabilities\n\n"
        f"Calibrated by a temperature of {summary['temperature']:.3g}{moved}, fitted on the "
        f"validation images. Expected calibration error on the test images: "
        f"{summary['test/ece']:.3f} before, {summary['test/ece_calibrated']:.3f} after "
        f"(`reliability.png`). They hold where {common}; where one class is rarer or commoner, "
        "its probability is too high or too low."
    )


def _limits(about: DatasetAbout, summary: dict[str, Any]) -> str:
    few = min(sum(part.values()) for part in about["counts"].values())
    lines = [
        "It always names one of its classes: of an image that shows none of them, the answer and "
        "its probability mean nothing.",
        "It knows images like those it was trained on; of other cameras, crops, sizes or drawings "
        "nothing was measured.",
        "It is not for decisions about people, nor where a mistake does harm, without a test on "
        "images of that very use.",
        "`mistakes.png` and `explain.png` show where it errs and which pixels it goes by.",
    ]
    if few < 100:
        lines.insert(0, f"One of the three parts has but {few:,} images: mind the intervals.")
    if (summary["majority_fraction"] or 0) >= 0.98:
        lines.insert(0, "It has collapsed: nearly all of its answers are the same. Do not use it.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _making(config: Config, summary: dict[str, Any]) -> str:
    weights = _WEIGHTS.get(config.model.model, "drawn at random; they are yours")
    if config.model.pretrained is not None:
        weights = f"from {escaped(config.model.pretrained)}, whose licence holds for these, too"
    rows = [
        f"| {stage.name} | {_settings(getattr(config, stage.name))} |"
        for stage in dataclasses.fields(Config)
    ]
    return "\n".join(
        [
            "## How it was made",
            "",
            f"{summary['num_parameters']:,} parameters, {summary['steps']:,} steps, "
            f"{_number(summary['wall_seconds'], ',.0f')} s; the best weights are of step "
            f"{summary['best_step']}. First weights: {weights}. Versions: "
            + ", ".join(f"{name} {number}" for name, number in summary["versions"].items())
            + ".",
            "",
            f"Command: {_code(command(config))}",
            "",
            "| settings | |",
            "|---|---|",
            *rows,
        ]
    )


def command(config: Config) -> str:
    """Return a command line that asks for these settings, by the recipe that is nearest to them."""
    options = {recipe: list(_options(config, base)) for recipe, base in RECIPES.items()}
    nearest = min(options, key=lambda recipe: len(options[recipe]))
    words = [word for option in options[nearest] for word in option]
    return shlex.join(["python", "experiments/deep_dog.py", nearest, *words])


def _options(config: Any, base: Any) -> Iterator[list[str]]:
    for field in dataclasses.fields(config):
        value, before = getattr(config, field.name), getattr(base, field.name)
        flag = field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from _options(value, before)
        elif isinstance(value, bool) and value != before:
            yield [f"--{flag}" if value else f"--no-{flag}"]
        elif value != before:
            yield [f"--{flag}", *map(str, value if isinstance(value, tuple) else [value])]


def _code(text: str) -> str:
    """Return foreign text as code within a line."""
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks} {printable(text)} {ticks}"


def _settings(stage: Any) -> str:
    """Return the settings that are not the package's defaults."""
    if not dataclasses.is_dataclass(stage):
        return escaped(str(stage))
    changed = [
        f"{field.name} {getattr(stage, field.name)}"
        for field in dataclasses.fields(stage)
        if getattr(stage, field.name) != field.default
    ]
    return escaped("; ".join(changed)) or "defaults"


def _range(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.3f}–{bounds[1]:.3f}"


def _number(value: float | None, form: str = ".3f") -> str:
    return "n/a" if value is None else format(value, form)


def escaped(text: str) -> str:
    """Return foreign text as one line that Markdown shows as it stands."""
    text = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|\[\]#~])", r"\\\1", text)
