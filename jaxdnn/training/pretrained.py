"""The initializer `pretrained`: weights of another network, matched by name and shape.

    weights = read_weights(Path("runs/deep"))              or model.safetensors, or model.npz
    variables, account = match(variables, weights)
    print(account)

Names are the paths of the parameter tree, `layers/0/linear/kernel`; a dot serves for a slash.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jaxdnn.errors import InputError
from jaxdnn.run_folder import open_existing
from jaxdnn.stored import read_arrays
from jaxdnn.training.checkpoint import flatten, read_best

Weights = Mapping[str, np.ndarray]
T = TypeVar("T")
A = TypeVar("A", np.ndarray, jax.Array)

MAX_BYTES = 16 * 2**30
_SHOWN = 6


@dataclasses.dataclass(frozen=True)
class Account:
    """What became of every weight.

    Attributes:
      loaded: names that were found in both with the same shape.
      skipped: names in the file that the network has no place for, with the reason.
      left: names in the network that the file has nothing for, as they were initialized.
    """

    loaded: tuple[str, ...]
    skipped: tuple[str, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        lines = (
            f"pretrained: {len(self.loaded)} arrays loaded{_listed(self.loaded)}",
            f"            {len(self.skipped)} of the file skipped{_listed(self.skipped)}",
            f"            {len(self.left)} of the network left{_listed(self.left)}",
        )
        return "\n".join(lines)


def read_weights(path: Path) -> Weights:
    """Read all arrays of a run folder's best checkpoint, a .safetensors or an .npz file.

    Nothing is unpickled.

    Raises:
      InputError: the file is missing, of another kind, damaged, or unreasonably large.
    """
    if path.is_dir():
        return _plain_names(read_best(open_existing(path).checkpoints))
    readers = {".safetensors": load_file, ".npz": _read_npz}
    if path.suffix not in readers or not path.is_file():
        raise InputError(
            f"--pretrained {path} is not there, or not a run folder, .safetensors or .npz file"
        )
    try:
        return _plain_names(readers[path.suffix](path))
    except InputError as error:
        raise InputError(f"--pretrained: {error}") from error
    except (SafetensorError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"--pretrained {path} cannot be read ({reason}); is it complete?"
        ) from error


def match(tree: T, weights: Weights) -> tuple[T, Account]:
    """Put weights in the places of a tree that have their name and shape.

    Args:
      tree: the `Variables` of a network.
      weights: name -> array.

    Returns:
      The tree with the weights that fit, and the account of all of them.

    Raises:
      InputError: nothing fits; the message lists both sides.
    """
    places = _plain_names(flatten(tree))
    fits = {name for name in places if name in weights and _same_shape(places[name], weights[name])}
    skipped = [_reason(name, weights[name], places) for name in weights if name not in fits]
    account = Account(tuple(sorted(fits)), tuple(skipped), tuple(sorted(places.keys() - fits)))
    if not fits:
        raise InputError(
            f"--pretrained fits nowhere: the file has{_listed(skipped)}; the network wants"
            f"{_listed([f'{name} {leaf.shape}' for name, leaf in places.items()])}"
        )
    new = {name: jnp.asarray(weights[name], places[name].dtype) for name in fits}
    leaves = [new.get(name, leaf) for name, leaf in places.items()]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves), account


def _plain_names(arrays: Mapping[str, A]) -> dict[str, A]:
    """Join names by slashes, and drop what says only where the array was kept."""
    prefixes = ("params/", "batch_stats/", "0/", "1/")
    plain = {}
    for name, array in arrays.items():
        name = name.replace(".", "/")
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        plain[name.removeprefix(prefix)] = array
    return plain


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MAX_BYTES:
        raise ValueError(
            f"it unpacks to {size / 2**30:.0f} GiB, at most {MAX_BYTES >> 30} are read"
        )
    return read_arrays(path, (), remedy="is it complete?")


def _same_shape(place: jax.Array, array: np.ndarray) -> bool:
    # bfloat16, a dtype that numpy does not know by itself, is of kind V.
    return place.shape == array.shape and array.dtype.kind in "fV"


def _reason(name: str, array: np.ndarray, places: Mapping[str, jax.Array]) -> str:
    if name not in places:
        return f"{name} {array.shape}"
    return f"{name} {array.shape} {array.dtype} where the network has {places[name].shape}"


def _listed(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f" ({', '.join(names[:_SHOWN])}{more})"
