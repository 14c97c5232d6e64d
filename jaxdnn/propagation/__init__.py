"""What signals and gradients do inside a network: the theory, and what is measured.

`lecture`, `sweep_theory` and `table` are offered as modules. The first is not imported before it is
asked for: it trains networks, with all that this takes.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxdnn.propagation import sweep_theory, table
from jaxdnn.propagation.activation_table import (
    ActivationRow,
    activation_table,
    gains,
    sigma_w2_of,
    write_table,
)
from jaxdnn.propagation.critical import MAX_SIGMA_W2, CriticalLine, critical_line, critical_points
from jaxdnn.propagation.finite_depth import (
    FORMATS,
    LONGEST,
    OUTSIDE,
    batch_norm_rate,
    depth_limits,
    layer_norm_rate,
    predict,
)
from jaxdnn.propagation.finite_width import gradient_band
from jaxdnn.propagation.fixed_points import Theory, correlation_fixed_point, depth_scale, theory
from jaxdnn.propagation.gradient_flow import (
    LOSSES,
    Architecture,
    Batch,
    Precision,
    find_activation,
    gradient_flow,
)
from jaxdnn.propagation.mean_field import correlation_slope, phi_moments
from jaxdnn.propagation.moments import (
    HEALTHY_LOG10,
    SATURATED,
    Kernels,
    dead_fraction,
    measure,
    normalise,
    rms,
    saturated_fraction,
)
from jaxdnn.propagation.nonlinearity import Phi
from jaxdnn.propagation.phase_diagram import PhaseDiagram, phase_diagram
from jaxdnn.propagation.spectrum import jacobian_spectrum
from jaxdnn.propagation.sweep import CompiledSweep, Grid, cached_chunk, make_sweep, run_grid
from jaxdnn.propagation.table import Combination, Flow

if TYPE_CHECKING:
    from jaxdnn.propagation import lecture

__all__ = [
    "FORMATS",
    "HEALTHY_LOG10",
    "LONGEST",
    "LOSSES",
    "MAX_SIGMA_W2",
    "OUTSIDE",
    "SATURATED",
    "ActivationRow",
    "Architecture",
    "Batch",
    "Combination",
    "CompiledSweep",
    "CriticalLine",
    "Flow",
    "Grid",
    "Kernels",
    "PhaseDiagram",
    "Phi",
    "Precision",
    "Theory",
    "activation_table",
    "batch_norm_rate",
    "cached_chunk",
    "correlation_fixed_point",
    "correlation_slope",
    "critical_line",
    "critical_points",
    "dead_fraction",
    "depth_limits",
    "depth_scale",
    "find_activation",
    "gains",
    "gradient_band",
    "gradient_flow",
    "jacobian_spectrum",
    "layer_norm_rate",
    "lecture",
    "make_sweep",
    "measure",
    "normalise",
    "phase_diagram",
    "phi_moments",
    "predict",
    "rms",
    "run_grid",
    "saturated_fraction",
    "sigma_w2_of",
    "sweep_theory",
    "table",
    "theory",
    "write_table",
]


def __getattr__(name: str) -> Any:
    if name == "lecture":
        return importlib.import_module("jaxdnn.propagation.lecture")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
