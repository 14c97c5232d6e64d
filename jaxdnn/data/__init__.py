"""Where images come from, and how they become arrays."""

from jaxdnn.data.augmentation import make_augment
from jaxdnn.data.cache import PixelCache
from jaxdnn.data.dataset import Dataset, Split, load
from jaxdnn.data.decode import Resampling, UnreadableImage
from jaxdnn.data.images import Images, ImagesInMemory, take_survey
from jaxdnn.data.pipeline import (
    PixelStats,
    make_order,
    make_prepare,
    normalise_images,
    resolve_batch_size,
)
from jaxdnn.data.prepare import prepare
from jaxdnn.data.reader import Reader, map_in_order, prefetch
from jaxdnn.data.source import Source
from jaxdnn.data.sources import image_folder, image_zip, open_source, read_images
from jaxdnn.data.splits import class_weights
from jaxdnn.data.tfds_sets import tfds

__all__ = [
    "Dataset",
    "Images",
    "ImagesInMemory",
    "PixelCache",
    "PixelStats",
    "Reader",
    "Resampling",
    "Source",
    "Split",
    "UnreadableImage",
    "class_weights",
    "image_folder",
    "image_zip",
    "load",
    "make_augment",
    "make_order",
    "make_prepare",
    "map_in_order",
    "normalise_images",
    "open_source",
    "prefetch",
    "prepare",
    "read_images",
    "resolve_batch_size",
    "take_survey",
    "tfds",
]
