"""jaxdnn: can this network learn, and if not, which layer stops it, why, and what should change."""

from jaxdnn.xla import set_flags

set_flags()

from jaxdnn.propagation.gradient_flow import gradient_flow  # noqa: E402

__all__ = ["gradient_flow"]
