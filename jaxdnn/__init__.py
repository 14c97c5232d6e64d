"""jaxdnn: can this network learn, and if not, which layer stops it, why, and what should change."""

from jaxdnn.xla import set_flags

set_flags()

from jaxdnn.diagnosis import assert_trainable, diagnose  # noqa: E402
from jaxdnn.propagation import gradient_flow  # noqa: E402

__all__ = ["assert_trainable", "diagnose", "gradient_flow"]
