"""The settings of each stage of a run, and their defaults: frozen, checked when made.

A value that cannot work raises `InputError`: what came, the rule, the remedy. The string below a
field is its documentation, and its help on the command line.
"""

from jaxdnn.options.augment import AugmentOptions
from jaxdnn.options.checks import check
from jaxdnn.options.data import DataOptions
from jaxdnn.options.devices import DeviceOptions, ProcessOptions
from jaxdnn.options.model import ModelOptions
from jaxdnn.options.optimizer import OptimizerOptions
from jaxdnn.options.train import TrainOptions

__all__ = [
    "AugmentOptions",
    "DataOptions",
    "DeviceOptions",
    "ModelOptions",
    "OptimizerOptions",
    "ProcessOptions",
    "TrainOptions",
    "check",
]
