"""Settings of the XLA compiler, made before it starts: importing `jaxdnn` is enough."""

import os
from importlib.metadata import version

# One convolution then uses all threads, not one: a convnet's step takes 0.7 of the time. XLA stops
# the process at a flag that it does not know, so this is only for versions tried with it.
_CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
_KNOWN_TO = ("0.10.", "0.12.")


_DEVICES = "--xla_force_host_platform_device_count"


def use_cores_as_devices() -> None:
    """Make every CPU core a device of its own, for many small programs side by side.

    Before the first computation, and unless the user has set the number of devices.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _DEVICES not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_DEVICES}={os.cpu_count() or 1}".strip()


def set_flags() -> None:
    """Add our flag to XLA_FLAGS, unless the user has set it or this jaxlib may not know it."""
    name = _CONVOLUTIONS.partition("=")[0]
    flags = os.environ.get("XLA_FLAGS", "")
    if name not in flags and version("jaxlib").startswith(_KNOWN_TO):
        os.environ["XLA_FLAGS"] = f"{flags} {_CONVOLUTIONS}".strip()
