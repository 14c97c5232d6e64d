"""The embedded data: 9,692 grey 28x28 silhouettes of ten animals, dog among them."""

from importlib import resources

import numpy as np

from jaxdnn.data.source import Source

__all__ = ["silhouettes"]


def silhouettes() -> Source:
    """Open the embedded silhouettes: ten classes, 7,757 to train and 1,935 to test."""
    file = resources.files("jaxdnn.data.silhouettes").joinpath("animal_silhouettes.npz")
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        parts = {name: arrays[name] for name in arrays.files}
    images = np.concatenate([parts["train_images"], parts["test_images"]])[..., np.newaxis]
    num_train, num_test = len(parts["train_labels"]), len(parts["test_labels"])
    return Source(
        name="silhouettes",
        class_names=tuple(str(name) for name in parts["label_names"]),
        item_names=[f"train/{i}" for i in range(num_train)]
        + [f"test/{i}" for i in range(num_test)],
        labels=np.concatenate([parts["train_labels"], parts["test_labels"]]).astype(np.int32),
        splits=np.repeat(["train", "test"], [num_train, num_test]),
        read=lambda index: images[index],
        item_shape=images.shape[1:],
        default_positive=("dog",),
    )
