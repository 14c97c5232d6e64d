"""Will a network train, which layer stops it, why, and what to change."""

from jaxdnn.diagnosis.diagnose import assert_trainable, diagnose, edited, make_rehearse
from jaxdnn.diagnosis.examine import examine
from jaxdnn.diagnosis.first_step import take_first_step
from jaxdnn.diagnosis.optimizers import make_optimizer
from jaxdnn.diagnosis.prescribe import try_changes
from jaxdnn.diagnosis.rehearsal import Rehearsal, Scales, make_rehearsal, make_scanned_rehearsal
from jaxdnn.diagnosis.remedies import Change, Tried
from jaxdnn.diagnosis.result import Diagnosis

__all__ = [
    "Change",
    "Diagnosis",
    "Rehearsal",
    "Scales",
    "Tried",
    "assert_trainable",
    "diagnose",
    "edited",
    "examine",
    "make_optimizer",
    "make_rehearsal",
    "make_rehearse",
    "make_scanned_rehearsal",
    "take_first_step",
    "try_changes",
]
