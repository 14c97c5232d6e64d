"""Score images with this network: python predict.py photo.jpg ...

Needs jax, flatbuffers, numpy and Pillow. Prints the class, its probability and the file.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageOps

FOLDER = Path(__file__).parent


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Read a file of safetensors: the header's length, the header, the numbers."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    arrays = {}
    for name, tensor in json.loads(data[8:start]).items():
        if name != "__metadata__":
            first, end = tensor["data_offsets"]
            values = np.frombuffer(data[start + first : start + end], "<f4")
            arrays[name] = values.reshape(tensor["shape"])
    return arrays


def read_image(path: str, size: int, channels: int, resampling: str) -> np.ndarray:
    """Read the middle square of an image, upright and on white, as uint8 pixels."""
    mode = "L" if channels == 1 else "RGB"
    with Image.open(path) as image:
        image.draft("L" if channels == 1 else None, (2 * size, 2 * size))
        picture = ImageOps.exif_transpose(image)
        if picture.has_transparency_data:
            above = picture.convert("RGBA")
            white = Image.new("RGBA", above.size, "white")
            picture = Image.alpha_composite(white, above).convert("RGB")
        picture = picture.convert(mode)
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling[resampling.upper()], box=box)
    return np.asarray(picture).reshape(size, size, channels)


def main() -> None:
    """Score the images named on the command line."""
    names, *reading = json.loads((FOLDER / "labels.json").read_text(encoding="utf-8")).values()
    network = jax.export.deserialize(bytearray((FOLDER / "model.stablehlo").read_bytes()))
    weights, call = read_weights(FOLDER / "weights.safetensors"), jax.jit(network.call)
    for path in sys.argv[1:]:
        scores = np.asarray(call(weights, read_image(path, *reading)[np.newaxis])[0])
        label = int(scores.argmax())
        print(f"{names[label]}\t{scores[label]:.6f}\t{path}")


if __name__ == "__main__":
    main()
