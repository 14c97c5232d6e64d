"""Will a network train, which layer stops it, why, and what to change."""

from jaxdnn.diagnosis.answers import Answers
from jaxdnn.diagnosis.cause_table import CAUSES
from jaxdnn.diagnosis.causes import Cause, find_causes
from jaxdnn.diagnosis.diagnose import assert_trainable, diagnose
from jaxdnn.diagnosis.measure import examine
from jaxdnn.diagnosis.operations import not_finite
from jaxdnn.diagnosis.printout import error_json
from jaxdnn.diagnosis.result import Diagnosis, Prescription, RateCurve
from jaxdnn.diagnosis.search import find_fixes
from jaxdnn.diagnosis.setups import AS_IT_IS, Fix, Trials, Tried
from jaxdnn.diagnosis.trial import (
    HORIZON,
    NUM_STEPS,
    Scales,
    TrainingStep,
    Trial,
    make_scanned_trial,
    make_trial,
    parse_optimizer,
    score_trial,
    verdict_of,
)

__all__ = [
    "AS_IT_IS",
    "CAUSES",
    "HORIZON",
    "NUM_STEPS",
    "Answers",
    "Cause",
    "Diagnosis",
    "Fix",
    "Prescription",
    "RateCurve",
    "Scales",
    "TrainingStep",
    "Trial",
    "Trials",
    "Tried",
    "assert_trainable",
    "diagnose",
    "error_json",
    "examine",
    "find_causes",
    "find_fixes",
    "make_scanned_trial",
    "make_trial",
    "not_finite",
    "parse_optimizer",
    "score_trial",
    "verdict_of",
]
