"""How the processes of a run find each other, and decide as one."""

import json
import sys
from typing import Any

import jax
import pytest

from jaxdnn import processes
from jaxdnn.errors import InputError
from jaxdnn.options import ProcessOptions
from tests.together import run_together

SCRIPT = """
import json, sys
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxdnn import processes
from jaxdnn.options import ProcessOptions

address, index = sys.argv[1], int(sys.argv[2])
processes.join(ProcessOptions(True, address, 2, index))
acted = []
processes.run_on_first(lambda: acted.append(index))
failure = ""
try:
    processes.run_on_first(lambda: 1 / 0)
except Exception as error:
    failure = type(error).__name__
cut = NamedSharding(Mesh(jax.devices(), "device"), PartitionSpec("device"))
array = processes.put(np.array([1.0, 2.0, np.nan, 4.0], np.float32), cut)
print(json.dumps({
    "count": jax.process_count(),
    "is_first": processes.is_first(),
    "acted": acted,
    "failure": failure,
    "broadcast": processes.broadcast_from_first([index + 7, 3]),
    "any": processes.any_process(index == 1, False, index == 0),
    "own": array.addressable_shards[0].data.shape,
    "fetched": [repr(float(value)) for value in processes.fetch({"x": array})["x"]],
}))
processes.leave(0)
"""


def test_two_processes_decide_as_one():
    said = run_together(
        2, lambda address, index: [sys.executable, "-c", SCRIPT, address, f"{index}"]
    )
    first, second = map(json.loads, said)
    assert (first.pop("is_first"), second.pop("is_first")) == (True, False)
    assert (first.pop("acted"), second.pop("acted")) == ([0], [])
    # Who failed knows why; the other only stops.
    assert (first.pop("failure"), second.pop("failure")) == ("ZeroDivisionError", "InputError")
    assert first == second
    assert first["count"] == 2
    assert first["broadcast"] == [7, 3]
    assert first["any"] == [True, False, True]
    assert first["own"] == [2]
    assert first["fetched"] == ["1.0", "2.0", "nan", "4.0"]


def test_a_process_alone_is_the_first():
    acted = []
    processes.join(ProcessOptions())
    processes.run_on_first(lambda: acted.append(1))
    assert acted == [1]
    assert processes.is_first()
    assert processes.broadcast_from_first([4, 5]) == [4, 5]
    assert processes.any_process(False, True) == [False, True]
    with pytest.raises(ZeroDivisionError):
        processes.run_on_first(lambda: 1 / 0)
    processes.leave(2)  # Leaves nobody waiting, so nothing happens.


def test_processes_that_cannot_be_found_get_one_line(monkeypatch):
    # JAX has been used already, so that it cannot be joined any more.
    assert jax.devices()
    config: Any = jax.config
    monkeypatch.setattr(config, "update", lambda name, value: None)
    with pytest.raises(InputError, match="--distributed found no other processes") as caught:
        processes.join(ProcessOptions(True, "127.0.0.1:1", 2, 1))
    assert "\n" not in str(caught.value)
