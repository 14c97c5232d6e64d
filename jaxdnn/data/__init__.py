"""Where images come from, and how they become arrays."""

from jaxdnn.data.ahead import prefetch
from jaxdnn.data.augment import make_augment
from jaxdnn.data.dataset import Dataset, Split, load
from jaxdnn.data.decode import UnreadableImage
from jaxdnn.data.parallel import map_in_order
from jaxdnn.data.pipeline import make_order, make_prepare, normalise_images, resolve_batch_size
from jaxdnn.data.pixel_cache import PixelCache
from jaxdnn.data.pixel_stats import PixelStats
from jaxdnn.data.predict_inputs import read_images
from jaxdnn.data.prepare import prepare
from jaxdnn.data.prepared import tfds
from jaxdnn.data.reader import Reader
from jaxdnn.data.source import Source
from jaxdnn.data.sources import image_folder, image_zip, open_source
from jaxdnn.data.splits import class_weights
from jaxdnn.data.stream import StreamedImages
from jaxdnn.data.survey import take_survey

__all__ = [
    "Dataset",
    "PixelCache",
    "PixelStats",
    "Reader",
    "Source",
    "Split",
    "StreamedImages",
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
