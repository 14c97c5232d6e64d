"""A trained network for others: StableHLO, weights and a program that need none of this package.

DIR/model.stablehlo        `jax.export`: (weights, uint8 images) -> calibrated probabilities; any
                           number of images, on CPU, GPU or TPU
    weights.safetensors    path -> float32 array
    labels.json            class names, and how images are to be read
    predict.py             all three at work
    model.onnx             the same function with its weights, where `onnx` is installed
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export
from safetensors.numpy import save

from jaxdnn.calibration import Calibration
from jaxdnn.errors import InputError
from jaxdnn.losses import probabilities
from jaxdnn.run_folder import RunFolder, atomic_write, write_json
from jaxdnn.training import onnx_graph
from jaxdnn.training.checkpoint import flatten, unflatten
from jaxdnn.training.predictor import Trained, load_trained

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
INPUT, OUTPUT = "images", "probabilities"
_NUM_TRIED = 3


def check_target(path: Path) -> None:
    """Check that a network can be exported to a folder, before anything is trained.

    Raises:
      InputError: it holds something already, or cannot be made.
    """
    try:
        if path.is_dir() and any(path.iterdir()):
            raise InputError(
                f"--export {path} holds files already; expected a new or empty folder; name another"
            )
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--export {path} cannot be written ({error.strerror}); name another folder"
        ) from error
    if not os.access(path, os.W_OK):
        raise InputError(f"--export {path} cannot be written; name another folder")


def export_run(folder: RunFolder, path: Path) -> str:
    """Write the best network of a run to a folder of its own.

    Args:
      folder: of a finished run.
      path: the folder to write to; it exists, and is empty.

    Returns:
      What could not be written, and what to do, in a sentence; empty where all was.

    Raises:
      InputError: the run has no network, or it is damaged.
    """
    trained = load_trained(folder)
    about, weights = trained.about, flatten(trained.variables)
    shape = (about["height"], about["width"], about["channels"])
    scores = _make_scores(trained)
    (batch,) = export.symbolic_shape("batch")
    exported = export.export(jax.jit(scores), platforms=PLATFORMS)(
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), weights),
        jax.ShapeDtypeStruct((batch, *shape), jnp.uint8),
    )
    _write(path / "model.stablehlo", exported.serialize())
    _write(path / "weights.safetensors", save({k: np.asarray(v) for k, v in weights.items()}))
    write_json(
        path / "labels.json",
        {
            "class_names": about["class_names"],
            "image_size": about["height"],
            "channels": about["channels"],
            "resampling": trained.config.data.resampling,
        },
    )
    shutil.copyfile(Path(__file__).with_name("standalone.py"), path / "predict.py")
    return _write_onnx(lambda images: scores(weights, images), shape, path / "model.onnx")


def _make_scores(trained: Trained) -> Callable[[dict[str, Array], Array], Array]:
    """Return `(path -> array, uint8 images) -> calibrated probabilities`."""
    network, like, calibration = trained.network, trained.variables, trained.calibration

    def scores(weights: dict[str, Array], images: Array) -> Array:
        logits = network.logits(unflatten(weights, like), network.normalise(images))
        return _calibrated(logits, calibration)

    return scores


def _calibrated(logits: Array, calibration: Calibration) -> Array:
    if calibration.shift:
        shift = jnp.array(calibration.shift, logits.dtype)
        logits = logits + (shift[1:] - shift[:1] if logits.shape[1] == 1 else shift)
    return probabilities(logits / calibration.temperature)


def _write_onnx(scores: Callable[[Array], Array], shape: tuple[int, ...], path: Path) -> str:
    """Write an ONNX file, and try it where there is a runtime; return why not, if so."""
    if importlib.util.find_spec("onnx") is None:
        return "model.onnx needs the extra `onnx`: pip install 'jaxdnn[onnx]', then --export again"
    try:
        model = onnx_graph.to_onnx(scores, shape, jnp.uint8, names=(INPUT, OUTPUT))
        content = model.SerializeToString()
    except InputError as error:
        return f"model.onnx was not written: {error}"
    except ValueError:  # Of protobuf: 2 GiB are the most that a file holds.
        return "model.onnx was not written: the network is larger than its 2 GiB; use the StableHLO"
    if wrong := _differs(content, scores, shape):
        return f"model.onnx was not written: {wrong}; use the StableHLO"
    _write(path, content)
    return ""


def _differs(content: bytes, scores: Callable[[Array], Array], shape: tuple[int, ...]) -> str:
    """Say in what an ONNX file differs from the network; nothing where there is no runtime."""
    if importlib.util.find_spec("onnxruntime") is None:
        return ""
    runtime: Any = importlib.import_module("onnxruntime")
    images = np.random.default_rng(0).integers(0, 256, (_NUM_TRIED, *shape), np.uint8)
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = session.run([OUTPUT], {INPUT: images})
    gap = float(np.abs(found - np.asarray(jax.jit(scores)(jnp.asarray(images)))).max())
    return "" if gap < 1e-4 else f"its probabilities differ by {gap:.1g}"


def _write(path: Path, content: bytes | bytearray) -> None:
    with atomic_write(path) as draft:
        draft.write_bytes(content)
