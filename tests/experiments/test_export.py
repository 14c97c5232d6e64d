"""A network that was exported says what the run says, without the package."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from jaxdnn.training import load_predictor
from jaxdnn.training import standalone as program

from .conftest import load_program

deep_dog = load_program("deep_dog")
predict = load_program("predict")
HAS_ONNX = importlib.util.find_spec("onnx") is not None
# As where the package is not installed.
ALONE = """
import runpy, sys
sys.modules["jaxdnn"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "dogs"
    deep_dog.check_target(path)
    said = deep_dog.export_run(finished, path)
    assert ("jaxdnn[onnx]" in said) is not HAS_ONNX
    return path


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)


def test_stablehlo_gives_the_probabilities_of_the_run(exported, finished, images):
    network = jax.export.deserialize(bytearray((exported / "model.stablehlo").read_bytes()))
    assert {"cpu", "cuda"} <= set(network.platforms)
    weights = load_file(exported / "weights.safetensors")
    expected = load_predictor(finished).predict(images)
    np.testing.assert_allclose(network.call(weights, images), expected, atol=1e-5)
    np.testing.assert_allclose(network.call(weights, images[:1]), expected[:1], atol=1e-5)


def test_its_program_needs_no_more_than_it_says(exported, finished, photos, call, tmp_path):
    Image.open(photos / "dog" / "001.png").resize((31, 20)).save(tmp_path / "wide.jpg")
    paths = [photos / "cat" / "000.png", photos / "dog" / "000.png", tmp_path / "wide.jpg"]
    command = [sys.executable, "-c", ALONE, exported / "predict.py", *paths]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=True, env=environment
    )
    _, said, _ = call(predict, finished.path, *paths, "--json")
    for line, expected in zip(done.stdout.splitlines(), json.loads(said), strict=True):
        label, probability, path = line.split("\t")
        assert (label, path) == (expected["label"], expected["path"])
        assert float(probability) == pytest.approx(expected["probability"], abs=1e-5)


def draw(mode, size):
    width, height = size
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, shape, np.uint8), mode)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resampling", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", ["a.png", "b.png", "c.png", "d.jpg", "e.jpg"])
def test_it_reads_images_as_the_package_does(tmp_path, name, channels, resampling):
    from jaxdnn.data.decode import decode

    sizes = {"a": ("L", (20, 13)), "b": ("RGB", (16, 16)), "c": ("RGBA", (9, 30))}
    sizes |= {"d": ("RGB", (200, 90)), "e": ("L", (64, 65))}
    path = tmp_path / name
    exif = Image.Exif()
    exif[0x0112] = 6
    draw(*sizes[name[0]]).save(path, exif=exif)
    expected, _ = decode(path.read_bytes(), image_size=16, channels=channels, resampling=resampling)
    found = program.read_image(str(path), 16, channels, resampling)
    np.testing.assert_array_equal(found, expected)


def test_it_reads_safetensors(exported):
    path = exported / "weights.safetensors"
    expected = load_file(path)
    found = program.read_weights(path)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.skipif(not HAS_ONNX, reason="the extra `onnx` is not installed")
def test_onnx_gives_the_probabilities_of_the_run(exported, finished, images):
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(
        str(exported / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(["probabilities"], {"images": images})
    np.testing.assert_allclose(found, load_predictor(finished).predict(images), atol=1e-5)


def test_a_finished_run_is_exported_and_a_full_folder_is_not(finished, call, tmp_path):
    target = tmp_path / "new"
    code, said, _ = call(deep_dog, "--resume", finished.path, "--export", target)
    assert code == 0
    assert f"exported to {target}" in said
    before = sorted(target.iterdir())
    code, _, said = call(deep_dog, "--resume", finished.path, "--export", target)
    assert code == 2
    assert "holds files already" in said
    assert said.count("\n") == 1
    assert sorted(Path(target).iterdir()) == before
    (tmp_path / "file").write_text("")
    code, _, said = call(deep_dog, "--export", tmp_path / "file" / "x")
    assert (code, said.count("\n")) == (2, 1)
    assert "cannot be written" in said


def test_without_the_extra_all_else_is_written_and_it_says_what_to_install(
    finished, call, tmp_path, monkeypatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    target = tmp_path / "new"
    code, _, said = call(deep_dog, "--resume", finished.path, "--export", target)
    assert code == 0
    assert said.count("\n") == 1
    assert "pip install 'jaxdnn[onnx]'" in said
    assert (target / "model.stablehlo").exists()
    assert not (target / "model.onnx").exists()
