"""jaxdnn: can this network learn, and if not, which layer stops it, why, and what should change."""

from jaxdnn.diagnosis import Diagnosis, assert_trainable, diagnose
from jaxdnn.errors import InputError
from jaxdnn.propagation import gradient_flow

__version__ = "0.1.0"

__all__ = [
    "Diagnosis",
    "InputError",
    "__version__",
    "assert_trainable",
    "diagnose",
    "gradient_flow",
]
