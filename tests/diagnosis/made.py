"""Diagnoses made by hand, for what is printed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from jaxdnn.diagnosis import CAUSES, Cause, Diagnosis, Prescription
from jaxdnn.diagnosis.profile import LayerProfile

_LAYER = LayerProfile(
    path="layers/0",
    kind="dense",
    fan_in=4.0,
    fan_out=4.0,
    pre_activation_mean=0.0,
    pre_activation_rms=1.0,
    correlation=0.0,
    delta_rms=0.0,
    delta_rms_by_example=(0.0, 0.0),
    delta_band=(0.0, 0.0),
    factor=0.5,
    factor_band=(0.4, 0.6),
    terms={"weights": -1.0, "activation": 0.3},
    dead=0.1,
    saturated=0.1,
    kernel_rms=0.5,
    kernel_grad_rms=0.1,
    kernel_grad_ratio=0.2,
)


def layer(path: str, delta: float) -> LayerProfile:
    return dataclasses.replace(
        _LAYER,
        path=path,
        delta_rms=delta,
        delta_rms_by_example=(delta, delta),
        delta_band=(0.5 * delta, 2 * delta),
    )


def without_gradient(path: str) -> LayerProfile:
    """A layer that no gradient reaches, as it is measured: its shares are 0 / 0."""
    return dataclasses.replace(
        _LAYER,
        path=path,
        factor=math.nan,
        factor_band=(math.nan, math.nan),
        terms={"weights": 0.1, "activation": -105.85},
    )


def cause(
    name: str = "dead units", path: str = "layers/0", evidence: str = "90 % are dead", **more: Any
) -> Cause:
    category = CAUSES[name].category
    return Cause(path, name, evidence, 5.0, category, name.replace(" ", "_"), **more)


def prescription(
    change: str = "He", code: str = "kernel_init=he_normal()", name: str = "usual_weights"
) -> Prescription:
    nothing = (lambda params, inputs: inputs, None)
    return Prescription(change, code, 0.01, 0.9, name, nothing, None, None, None)


def diagnosis(**changes: Any) -> Diagnosis:
    """A network that does not learn, with what is given in place of what it has."""
    made = Diagnosis(
        verdict="will not train",
        score=0.01,
        reason="loss 2.3 -> 2.3 in 60 steps",
        layers=(layer("layers/0", 0.0), layer("head", 1.0)),
        causes=(cause(),),
        prescriptions=(prescription(),),
        loss=2.3,
        optimizer="sgd:0.1",
        loss_name="cross-entropy of integer labels",
        notes=(),
    )
    return dataclasses.replace(made, **changes)


def healthy() -> Diagnosis:
    reason = "learns to tell the inputs apart within about 30 steps"
    return diagnosis(verdict="trains", score=0.97, reason=reason, causes=(), prescriptions=())
