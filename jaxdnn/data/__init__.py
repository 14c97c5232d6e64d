"""Where images come from, and how they become arrays."""

from jaxdnn.data.augmentation import make_augment
from jaxdnn.data.cache import RowCache, cache_dir, key_of, open_caches
from jaxdnn.data.dataset import Dataset, Split, Storage, load
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
from jaxdnn.data.reader import Reader, image_bar, map_in_order, prefetch
from jaxdnn.data.source import Source
from jaxdnn.data.sources import image_folder, image_zip, open_source, read_images
from jaxdnn.data.splits import class_weights
from jaxdnn.data.tfds_sets import tfds

__all__ = [
    "Dataset",
    "Images",
    "ImagesInMemory",
    "PixelStats",
    "Reader",
    "Resampling",
    "RowCache",
    "Source",
    "Split",
    "Storage",
    "UnreadableImage",
    "cache_dir",
    "class_weights",
    "image_bar",
    "image_folder",
    "image_zip",
    "key_of",
    "load",
    "make_augment",
    "make_order",
    "make_prepare",
    "map_in_order",
    "normalise_images",
    "open_caches",
    "open_source",
    "prefetch",
    "prepare",
    "read_images",
    "resolve_batch_size",
    "take_survey",
    "tfds",
]
