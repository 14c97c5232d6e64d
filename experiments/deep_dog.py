"""Train a deep network on "dog or other" images: from one command to a tested model.

python experiments/deep_dog.py                     the deep recipe on the embedded silhouettes
python experiments/deep_dog.py shallow             the lecture's counter-example, which fails
python experiments/deep_dog.py lecture             the lecture's deep network
python experiments/deep_dog.py conv                a residual convolutional network
python experiments/deep_dog.py photo --data photos/ --positive dog --image-size 64
                                                   a plain one, for small photographs in colour
python experiments/deep_dog.py pretrained          the end of a network that knows photographs
python experiments/deep_dog.py --data photos/ --positive dog       your own photographs
python experiments/deep_dog.py --resume runs/deep                  go on after an interruption
python experiments/deep_dog.py --resume auto --out runs/deep       go on, or begin if there is none
python experiments/deep_dog.py --resume runs/deep --export dogs    a folder for others to use

Exit code: 0 done; 2 something is wrong, and was said; 75 stopped by Ctrl-C or SIGTERM, but saved:
resume me.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdnn import command_line, processes, run_folder, xla
from jaxdnn.config import Config, differences, load_config
from jaxdnn.data import load, make_augment
from jaxdnn.errors import InputError, Interrupted
from jaxdnn.names import resolve
from jaxdnn.options import DeviceOptions
from jaxdnn.recipes import RECIPES
from jaxdnn.run_folder import RunFolder
from jaxdnn.training import check_target, export_run, train

PROG = "deep_dog.py"
DEFAULT_RECIPE = "deep"
COLLAPSED = 0.98
AUTO = Path("auto")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The command line: the settings of a run, and where it goes."""

    config: Config
    out: Path | None = None
    """Run folder to make; default runs/RECIPE, or runs/RECIPE-2, ... where that exists."""
    resume: Path | None = None
    """Run folder to continue, with the settings that it was started with; `auto`: go on with the
    run in --out (default runs/RECIPE), or begin it where there is none."""
    export: Path | None = None
    """Folder to write the trained network to, for use without this package: StableHLO, weights, a
    program that scores images and, with the extra `onnx`, an ONNX file. Of a finished run with
    --resume."""
    devices: DeviceOptions = dataclasses.field(default_factory=DeviceOptions)
    compilation_cache: str = "auto"
    """Folder for compiled programs, so that the next start is sooner; default the user's own cache
    folder; `off` for none."""
    show_augmentations: bool = False
    """Write augmentations.png, a sheet of augmented training images, and stop."""
    progress: bool = True
    """Show progress bars."""


def parse(argv: Sequence[str]) -> tuple[str, Arguments]:
    """Return the recipe's name and the arguments; raise InputError where they do not fit."""
    recipe, args = DEFAULT_RECIPE, list(argv)
    named = bool(args) and not args[0].startswith("-")
    if named:
        recipe = resolve(args.pop(0), RECIPES, {"convnet": "conv"}, "recipe")
    resumed = _resumed_config(args, recipe)
    base = RECIPES[recipe] if named or resumed is None else resumed
    arguments = command_line.parse(
        Arguments,
        default=Arguments(base),
        args=args,
        prog=PROG,
        description=f"{__doc__}\nThe defaults below are those of the recipe `{recipe}`.",
    )
    if resumed is not None and (differs := differences(resumed, arguments.config)):
        raise InputError(
            f"--resume {arguments.resume} was started with other settings "
            f"(its own, asked for now: {'; '.join(differs)}); leave those options out"
        )
    return recipe, arguments


def _resumed_config(args: Sequence[str], recipe: str) -> Config | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--resume", nargs="?", type=Path)
    parser.add_argument("--out", nargs="?", type=Path)
    given = parser.parse_known_args(args)[0]
    if given.resume is None:
        return None
    if given.resume == AUTO:
        folder = RunFolder(given.out or _default_out(recipe))
        return load_config(folder.config) if folder.config.exists() else None
    return load_config(run_folder.open_existing(given.resume).config)


def _default_out(recipe: str) -> Path:
    return Path("runs") / recipe


def main() -> int:
    """Run the command; return its exit code."""
    recipe, arguments = parse(sys.argv[1:])
    processes.join(arguments.devices)
    code = _run(recipe, arguments)
    processes.leave(code)
    return code


def _run(recipe: str, arguments: Arguments) -> int:
    xla.keep_programs(arguments.compilation_cache)
    if arguments.export is not None:
        processes.run_on_first(functools.partial(check_target, arguments.export))
    path, folder = _open_folder(recipe, arguments)
    if arguments.show_augmentations:
        return _show_augmentations(arguments, folder)
    if all(file.exists() for file in (folder.summary, folder.dataset, folder.predictions)):
        print(f"{path} is finished: nothing is left to resume")
        return _report(run_folder.read_summary(folder), folder, path, arguments.export)
    with contextlib.ExitStack() as held:
        processes.run_on_first(lambda: held.enter_context(run_folder.locked(folder)))
        return _train(arguments, folder, path)


def _open_folder(recipe: str, arguments: Arguments) -> tuple[Path, RunFolder]:
    """Return the folder to work in, as the user names it and opened."""
    resume, out = arguments.resume, arguments.out
    if resume == AUTO:
        path = out or _default_out(recipe)
        is_new = not RunFolder(path).config.exists()
    elif resume is not None:
        if out not in (None, resume):
            raise InputError(f"--resume {resume} goes on in its own folder; leave --out out")
        path, is_new = resume, False
    else:
        if out is None and arguments.devices.distributed:
            raise InputError("--distributed needs a folder that all processes reach; give --out")
        path, is_new = out or run_folder.free_name(Path("runs"), recipe), True
    if is_new:
        processes.run_on_first(lambda: run_folder.create(path))
        return path, RunFolder(path.absolute())
    return path, run_folder.open_existing(path)


def _train(arguments: Arguments, folder: RunFolder, path: Path) -> int:
    with command_line.StopSignal() as stopped:
        try:
            summary = train(
                arguments.config,
                folder,
                devices=arguments.devices,
                progress=arguments.progress,
                interrupted=stopped,
            )
        except Interrupted:
            if processes.is_first():
                print(f"stopped; go on with: python experiments/{PROG} --resume {path}")
            return command_line.RESUME_EXIT_CODE
    return _report(summary, folder, path, arguments.export)


def _report(summary: dict[str, Any], folder: RunFolder, path: Path, target: Path | None) -> int:
    # Only now: to load what draws takes longer than to load what trains.
    from jaxdnn.report import draw_training, write_card

    if processes.is_first():
        if not folder.chart("mistakes").exists():
            draw_training(folder)
            write_card(folder)
        _print_summary(summary, path)
        if target is not None:
            if lacking := export_run(folder, target):
                print(lacking, file=sys.stderr)
            print(f"exported to {target}: python {target / 'predict.py'} photo.jpg")
    return 0


def _show_augmentations(arguments: Arguments, folder: RunFolder) -> int:
    from jaxdnn.report import draw_augmentations

    config = arguments.config
    dataset = load(config.images, seed=config.seed, progress=arguments.progress)
    picks = np.linspace(0, len(dataset.train.labels) - 1, 8).astype(int)
    originals = dataset.train.images[picks]
    keys = jax.random.split(jax.random.key(config.seed), (len(picks), 10))
    fill = dataset.train.pixel_stats().mean
    augment = jax.vmap(jax.vmap(make_augment(config.augment, fill), (0, None)))
    path = folder.chart("augmentations")
    draw_augmentations(originals, np.asarray(augment(keys, jnp.asarray(originals))), path)
    print(f"wrote {path}")
    return 0


def _print_summary(summary: dict[str, Any], path: Path) -> None:
    def shown(name: str, digits: int = 3) -> str:
        return "n/a" if summary[name] is None else f"{summary[name]:,.{digits}f}"

    print(f"{'':18}{'train':>8}{'val':>8}{'test':>8}")
    for name in ("accuracy", "balanced_accuracy", "auc", "loss"):
        row = "".join(f"{shown(f'{split}/{name}'):>8}" for split in ("train", "val", "test"))
        print(f"{name.replace('_', ' '):18}{row}")
    if (summary["majority_fraction"] or 1) >= COLLAPSED:
        print(
            f"the network has collapsed: {summary['majority_fraction'] or 1:.1%} of its answers on "
            "the test images are the same"
        )
    print(
        f"{summary['steps']:,} steps, {summary['num_parameters']:,} parameters, "
        f"{shown('images_per_second', 0)} images/s, {shown('wall_seconds', 0)} s; "
        f"everything is in {path}"
    )


if __name__ == "__main__":
    command_line.run(main)
