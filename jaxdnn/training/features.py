"""What the frozen blocks of a pretrained network make of every image: computed once, and kept.

    pixels, streamed -> augmented view -> frozen blocks -> float16 rows, kept with the data

Of a training image there is the plain one and some augmented views; a step draws one of them, and
what is evaluated is the plain one. A row is a pure function of the stored image, the settings and,
for a view, the seed: rows are kept by the image they belong to, each with a checksum, so that an
interrupted pass goes on where it was, another seed takes the plain ones as they are, and what the
disk has damaged is computed anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float16, Int

from jaxdnn.backbone import fold_norms, make_lower, num_frozen, scale_pixels
from jaxdnn.config import Config
from jaxdnn.data import (
    Images,
    ImagesInMemory,
    RowCache,
    cache_dir,
    image_bar,
    key_of,
    make_augment,
    open_caches,
)
from jaxdnn.errors import InputError, Interrupted
from jaxdnn.memory import allowed_bytes
from jaxdnn.options import ModelOptions
from jaxdnn.training.setup import Inputs, Setup, backbone_weights, weights_digest
from jaxdnn.training.sharding import one_device

_VERSION = "1"
"""To be changed whenever the same pixels give other rows."""
_BATCH = 16

Rows = Float16[np.ndarray, "num view ..."]


def with_features(
    setup: Setup, *, progress: bool = False, interrupted: Callable[[], bool] = lambda: False
) -> tuple[Setup, dict[str, Any]]:
    """Return the setup with what the frozen blocks make of its images as the network's inputs.

    Without a backbone it stays as it is.

    Args:
      setup: its inputs are the images.
      progress: show a bar on stderr if it takes more than two seconds.
      interrupted: asked between batches; True keeps what there is and stops.

    Returns:
      The setup, and what the summary says of it: how many images and views were computed and how
      many were kept from before, the seconds, and how many parameters are frozen.

    Raises:
      InputError: the rows would take too much memory.
      Interrupted: after keeping what there is.
    """
    started, config = time.monotonic(), setup.config
    if not config.model.has_backbone:
        return setup, {}
    parts = _parts(setup)
    num_rows = sum(len(part.items) * part.num_views for part in parts)
    _check_size(config, num_rows, setup.input_shape)
    with image_bar(num_rows, disable=not progress, desc="features") as bar:
        pass_ = _Pass(setup, _open(setup), bar.update, interrupted)
        rows = [pass_.rows_of(part) for part in parts]
    inputs = Inputs(*map(ImagesInMemory, rows), prepare=draw_view, normalise=plain_view)
    return dataclasses.replace(setup, inputs=inputs), {
        "features_computed": pass_.num_computed,
        "features_cached": num_rows - pass_.num_computed,
        "features_seconds": time.monotonic() - started,
        "frozen_parameters": num_frozen(config.model.unfreeze),
    }


def draw_view(key: Array, rows: Array) -> Array:
    """Return of each row one view, as float32; one key for the batch, or one for each row."""
    keys = key if key.shape else jax.random.split(key, len(rows))
    views = jax.vmap(lambda own: jax.random.randint(own, (), 0, rows.shape[1]))(keys)
    return rows[jnp.arange(len(rows)), views].astype(jnp.float32)


def plain_view(rows: Array) -> Array:
    """Return of each row the plain image's, as float32."""
    return rows[:, 0].astype(jnp.float32)


class _Part(NamedTuple):
    """A split: its images, their indices in the source, and views of each, the plain one too."""

    images: Images
    items: Int[np.ndarray, " num"]
    num_views: int


def _parts(setup: Setup) -> list[_Part]:
    dataset, num_views = setup.dataset, 1 + setup.config.model.views
    splits = (dataset.train, dataset.validation, dataset.test)
    if dataset.storage is not None:
        items = dataset.storage.items
    else:
        ends = np.cumsum([len(split.labels) for split in splits])
        items = tuple(np.split(np.arange(ends[-1]), ends[:-1]))
    return [
        _Part(split.images, own, num_views if split is dataset.train else 1)
        for split, own in zip(splits, items, strict=True)
    ]


def _check_size(config: Config, num_rows: int, shape: tuple[int, ...]) -> None:
    """Check that the rows fit in memory, by the rule of decoded images."""
    most = config.data.max_memory_gib
    limit = allowed_bytes() if most is None else most * 2**30
    needed = 2 * num_rows * math.prod(shape)
    if needed > limit:
        raise InputError(
            f"what the frozen blocks make of {num_rows:,} images and views takes "
            f"{needed / 2**30:.2f} GiB of memory; expected at most {limit / 2**30:.2f} GiB; lower "
            "--unfreeze, --views or --image-size, or raise --max-memory-gib"
        )


def _open(setup: Setup) -> list[RowCache | None]:
    """Open a cache for the plain rows, and one for each view."""
    config, storage, shape = setup.config, setup.dataset.storage, setup.input_shape
    num_views = 1 + config.model.views
    if storage is None:
        return [None] * num_views
    plain = key_of(_VERSION, storage.key, weights_digest(config.model), shape)
    views = [key_of(plain, config.augment, config.seed, view) for view in range(1, num_views)]
    return open_caches(
        cache_dir(storage.home),
        "features",
        [plain, *views],
        num_images=storage.num_items,
        row_bytes=2 * math.prod(shape),
        max_bytes=config.data.cache_gib * 2**30,
    )


class _Pass:
    """Fills rows: from the cache what is there, the rest through the network, batch by batch."""

    def __init__(
        self,
        setup: Setup,
        caches: list[RowCache | None],
        on_done: Callable[[int], object],
        interrupted: Callable[[], bool],
    ):
        self._extract, self._shape = make_extract(setup), setup.input_shape
        self._batch = -(-_BATCH // setup.layout.num_devices) * setup.layout.num_devices
        self._caches, self._on_done, self._interrupted = caches, on_done, interrupted
        self.num_computed = 0

    def rows_of(self, part: _Part) -> Rows:
        """Return the rows of a split."""
        rows = np.empty((len(part.items), part.num_views, *self._shape), np.float16)
        for view in range(part.num_views):
            self._fill(part, view, rows)
        return rows

    def _fill(self, part: _Part, view: int, rows: Rows) -> None:
        cache = self._caches[view]
        missing = np.arange(len(part.items))
        if cache is not None:
            found = [
                cache.read(item, _bytes_of(row))
                for item, row in zip(part.items, rows[:, view], strict=True)
            ]
            missing = np.flatnonzero(~np.array(found, bool))
        self._on_done(len(part.items) - len(missing))
        try:
            for places, computed in self._computed(part, view, missing):
                rows[places, view] = computed
                for place, row in zip(places, computed, strict=True):
                    if cache is not None:
                        cache.write(part.items[place], _bytes_of(row))
                self.num_computed += len(places)
                self._on_done(len(places))
        finally:  # However it ends: it may have taken hours.
            if cache is not None:
                cache.flush()

    def _computed(self, part: _Part, view: int, missing: np.ndarray) -> Iterator[tuple[Any, Any]]:
        """Yield places and rows; images are decoded in threads while the device is at work."""
        batches = [missing[i : i + self._batch] for i in range(0, len(missing), self._batch)]
        pending = None
        with contextlib.closing(part.images.batches(batches, num_rows=self._batch)) as decoded:
            for places, images in zip(batches, decoded, strict=True):
                items = np.resize(part.items[places], self._batch)
                now = places, self._extract(images, items, view)
                if pending is not None:
                    yield pending[0], np.asarray(pending[1])[: len(pending[0])]
                if self._interrupted():
                    raise Interrupted
                pending = now
        if pending is not None:
            yield pending[0], np.asarray(pending[1])[: len(pending[0])]


def _bytes_of(row: np.ndarray) -> np.ndarray:
    return row.reshape(-1).view(np.uint8)


# (uint8 images, their indices in the source, number of the view) -> (num, ...) float16
Extract = Callable[[np.ndarray, np.ndarray, int], Array]


def make_extract(setup: Setup) -> Extract:
    """Return what makes rows of a whole batch of images; view 0 is the plain one."""
    config = setup.config
    layout = setup.layout if jax.process_count() == 1 else one_device()
    folded = layout.place(fold_norms(backbone_weights(config.model)))
    lower, key = make_lower(config.model.unfreeze), jax.random.key(config.seed)
    augment = make_augment(config.augment, setup.pixel_stats.mean)

    @jax.jit
    def augmented(images: Array, items: Array, view: Array) -> Array:
        own = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, view), items)
        return 255 * jax.vmap(augment)(own, images)

    # One program for both, which takes long to compile.
    @jax.jit
    def rows(folded: Any, pixels: Array) -> Array:
        return lower(folded, scale_pixels(pixels)).astype(jnp.float16)

    def extract(images: np.ndarray, items: np.ndarray, view: int) -> Array:
        placed = layout.join(images)
        if view == 0:
            return rows(folded, placed.astype(jnp.float32))
        return rows(folded, augmented(placed, layout.join(items), view))

    return extract


def make_frozen(options: ModelOptions) -> Callable[[Array], Array]:
    """Return `scaled images -> float32 rows`, those that a run of these options was trained on."""
    folded, lower = fold_norms(backbone_weights(options)), make_lower(options.unfreeze)

    def frozen(images: Array) -> Array:
        rows = lower(folded, images)
        return rows.astype(jnp.float16).astype(jnp.float32)

    return frozen
