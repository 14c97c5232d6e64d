"""Plant one fault in a random network: is its layer named first, and its cause?

    python experiments/planted_faults.py --draws 300

Networks of depth 5 to 40 and width 32 to 512, nine activations, multi-layer perceptrons and
convolutional networks, with and without norm and residual connections, Gaussian inputs. A third as
many healthy ones show how often the alarm is false.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxdnn.activations import Activation, make_activation
from jaxdnn.diagnosis.diagnose import diagnose
from jaxdnn.diagnosis.examine import examine

ACTIVATIONS = (
    "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "tanh", "soft_sign", "hard_tanh",
)  # fmt: skip
BATCH = 32
# fault -> the cause that has to be named
FAULTS = {
    "weights x 0.1": ("weights too small",),
    "weights x 10": ("weights too large",),
    "fan-out for fan-in": ("fan-out for fan-in",),
    "saturating activation": ("saturating activation",),
    "zero-initialised layer": ("zero weights",),
    "dead ReLU biases": ("dead units",),
    "softmax twice": ("softmax twice",),
    "missing norm": ("missing norm",),
    "zero-padded 4x4 stack": ("padding",),
    "dropout at 0.9": ("dropout",),
}


@dataclasses.dataclass
class Plan:
    """One network: what `apply` reads."""

    convolutional: bool
    side: int
    widths: list[int]
    activations: list[Callable[[Array], Array]]
    norms: list[str]
    residual: bool
    dropout: dict[int, float]
    softmax: bool = False


def draw_plan(rng: np.random.Generator, fault: str | None) -> Plan:
    """Draw a healthy network in which the fault can be planted."""
    convolutional = bool(rng.random() < 0.4) or fault == "zero-padded 4x4 stack"
    depth = int(rng.integers(5, 41))
    if fault == "zero-padded 4x4 stack":
        depth = max(depth, 8)
    width = int(2 ** rng.uniform(5, 9))
    if convolutional:
        width, depth = min(width, 64), min(depth, 24)
    residual = bool(rng.random() < 0.3)
    norm = str(rng.choice(["none", "batch", "layer"]))
    name = str(rng.choice(ACTIVATIONS))
    if fault == "missing norm":
        norm = str(rng.choice(["batch", "layer"]))
    if fault == "dead ReLU biases":
        name, norm = "relu", "none"
    if fault == "zero-padded 4x4 stack":
        norm, residual = "none", False
    plan = Plan(
        convolutional,
        4 if fault == "zero-padded 4x4 stack" else 16,
        [width] * depth,
        [make_activation(name)] * (depth - 1),
        [norm] * (depth - 1),
        residual,
        {},
    )
    if fault == "fan-out for fan-in":
        plan.residual = False
        layer = int(rng.integers(1, depth - 1))
        ratio = float(2 ** rng.uniform(2, 3))
        wide = rng.random() < 0.5
        plan.widths[layer] = max(4, round(width * ratio if wide else width / ratio))
    return plan


def plant(
    rng: np.random.Generator, plan: Plan, params: list[dict[str, Any]], fault: str
) -> int | None:
    """Plant the fault in place; return the layer that has to be named, None for any."""
    layer = int(rng.integers(1, len(params) - 1))
    kernel = params[layer]["kernel"]
    if fault.startswith("weights x"):
        params[layer]["kernel"] = kernel * (0.1 if "0.1" in fault else 10.0)
    elif fault == "fan-out for fan-in":
        layer = next(i for i, w in enumerate(plan.widths) if w != plan.widths[0])
        kernel = params[layer]["kernel"]
        params[layer]["kernel"] = kernel * math.sqrt(kernel.shape[-2] / kernel.shape[-1])
    elif fault == "saturating activation":
        plan.activations[layer] = [jax.nn.sigmoid, lambda x: jnp.tanh(10 * x)][rng.integers(2)]
    elif fault == "zero-initialised layer":
        params[layer]["kernel"] = jnp.zeros_like(kernel)
    elif fault == "dead ReLU biases":
        params[layer]["bias"] = params[layer]["bias"] - 20.0
    elif fault == "softmax twice":
        plan.softmax, layer = True, len(params) - 1
    elif fault == "missing norm":
        plan.norms[layer] = "none"
    elif fault == "dropout at 0.9":
        plan.dropout[layer] = 0.9
    return None if fault == "zero-padded 4x4 stack" else layer


def make_params(rng: np.random.Generator, plan: Plan) -> list[dict[str, Any]]:
    """Draw kernels with the gain that keeps delta, on average over the window's taps inside."""
    gain = _gain(plan.activations[0]) if plan.activations else 1.0
    params, num_in = [], plan.widths[0]
    for width in plan.widths:
        window = (3, 3) if plan.convolutional and len(params) < len(plan.widths) - 1 else ()
        shape = (*window, num_in, 10 if len(params) == len(plan.widths) - 1 else width)
        std = gain / math.sqrt(math.prod(shape[:-1]))
        kernel = rng.standard_normal(shape, np.float32) * np.float32(std)
        params.append({"kernel": jnp.asarray(kernel), "bias": jnp.zeros(shape[-1])})
        num_in = width
    return params


def _gain(phi: Callable[[Array], Array]) -> float:
    x = jnp.linspace(-6, 6, 4001)
    weight = jnp.exp(-(x**2) / 2)
    slope = jax.jvp(phi, (x,), (jnp.ones_like(x),))[1]
    return float(jnp.sqrt(weight.sum() / (weight * slope**2).sum()))


def make_apply(plan: Plan) -> Callable[[Any, Array, Array], Array]:
    """Return the network as a pure function of (params, inputs, key)."""

    def apply(params: list[dict[str, Any]], x: Array, key: Array) -> Array:
        for layer, (phi, norm) in enumerate(zip(plan.activations, plan.norms, strict=True)):
            z = _linear(x, params[layer]["kernel"]) + params[layer]["bias"]
            a = phi(_normalise(z, norm))
            if layer in plan.dropout:
                rate = plan.dropout[layer]
                mask = jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, a.shape)
                a = jnp.where(mask, a / (1 - rate), 0)
            x = x + a if plan.residual and x.shape == a.shape else a
        x = x.mean((1, 2)) if plan.convolutional else x
        logits = x @ params[-1]["kernel"] + params[-1]["bias"]
        return jax.nn.softmax(logits) if plan.softmax else logits

    return apply


def _linear(x: Array, kernel: Array) -> Array:
    if kernel.ndim == 2:
        return x @ kernel
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)


def _normalise(z: Array, norm: str) -> Array:
    if norm == "none":
        return z
    axes = tuple(range(z.ndim - 1)) if norm == "batch" else (z.ndim - 1,)
    variance = z.var(axes, keepdims=True)
    return (z - z.mean(axes, keepdims=True)) * lax.rsqrt(variance + 1e-5)


def make_case(seed: int, fault: str | None) -> tuple[tuple[Any, Array, Array], int | None, Plan]:
    """Draw a network, plant the fault, and draw a batch: (model, inputs, targets)."""
    rng = np.random.default_rng(seed)
    plan = draw_plan(rng, fault)
    params = make_params(rng, plan)
    layer = None if fault is None else plant(rng, plan, params, fault)
    shape = (plan.side, plan.side, plan.widths[0]) if plan.convolutional else (plan.widths[0],)
    inputs = jnp.asarray(rng.standard_normal((BATCH, *shape), np.float32))
    targets = jnp.asarray(rng.integers(0, 10, BATCH))
    return ((make_apply(plan), params), inputs, targets), layer, plan


def main() -> int:
    """Run the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--healthy", type=int, default=None, help="default: a third of the draws")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/planted_faults"))
    options = parser.parse_args()
    counts: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for draw in range(options.draws):
        fault = list(FAULTS)[draw % len(FAULTS)]
        case, layer, plan = make_case(options.seed + draw, fault)
        first = next(iter(examine(*case).causes), None)
        jax.clear_caches()
        right_layer = first is not None and (layer is None or first.path == str(layer))
        right_cause = first is not None and first.cause in FAULTS[fault]
        counts[fault].append((right_layer, right_cause))
        if not (right_layer and right_cause):
            print(f"seed {options.seed + draw}: {fault} in {layer} of {_words(plan)}: {first}")
    alarms = 0
    healthy = options.draws // 3 if options.healthy is None else options.healthy
    for draw in range(healthy):
        case, _, plan = make_case(options.seed + 10_000 + draw, None)
        diagnosis = diagnose(*case, optimizer="adam:0.001", try_changes=False)
        jax.clear_caches()
        alarms += diagnosis.verdict != "trains"
        if diagnosis.verdict != "trains" or diagnosis.causes:
            cause = diagnosis.causes[0] if diagnosis.causes else None
            print(f"healthy {draw}: {_words(plan)}: {diagnosis.verdict} {diagnosis.score} {cause}")
    _report(counts, alarms, healthy, options.out)
    return 0


def _words(plan: Plan) -> str:
    phi = plan.activations[0]
    name = phi.name if isinstance(phi, Activation) else "planted"
    kind = "convnet" if plan.convolutional else "mlp"
    residual = ", residual" if plan.residual else ""
    return f"{kind} {len(plan.widths)} x {plan.widths[0]}, {name}, norm {plan.norms[0]}{residual}"


def _report(
    counts: dict[str, list[tuple[bool, bool]]], alarms: int, healthy: int, out: Path
) -> None:
    rows = [*counts.items(), ("all", [pair for pairs in counts.values() for pair in pairs])]
    table = {
        fault: {"draws": len(pairs), "layer": _share(pairs, 0), "cause": _share(pairs, 1)}
        for fault, pairs in rows
    }
    print(f"{'fault':26} draws  layer  cause")
    for fault, row in table.items():
        print(f"{fault:26} {row['draws']:5}  {row['layer']:5.0%}  {row['cause']:5.0%}")
    print(f"healthy networks not said to train: {alarms} of {healthy}")
    out.mkdir(parents=True, exist_ok=True)
    summary = {"faults": table, "healthy": healthy, "alarms": alarms}
    (out / "summary.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")


def _share(pairs: list[tuple[bool, bool]], index: int) -> float:
    return float(np.mean([pair[index] for pair in pairs])) if pairs else math.nan


if __name__ == "__main__":
    sys.exit(main())
