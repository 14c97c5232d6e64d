"""What signals and gradients do inside a network."""

from jaxdnn.propagation.activation_table import (
    ActivationRow,
    activation_table,
    sigma_w2_of,
    write_table,
)
from jaxdnn.propagation.architectures import OUTSIDE, batch_norm_rate, layer_norm_rate
from jaxdnn.propagation.cells import is_due, load_cell, save_cell
from jaxdnn.propagation.critical import MAX_SIGMA_W2, critical_points, gains
from jaxdnn.propagation.depth_scales import Theory, depth_scale, theory
from jaxdnn.propagation.find_activation import find_activation
from jaxdnn.propagation.finite_depth import FORMATS, LONGEST, depth_limits, predict
from jaxdnn.propagation.fixed_points import correlation_fixed_point
from jaxdnn.propagation.gradient_flow import gradient_flow
from jaxdnn.propagation.grid import Grid, Program, run_grid
from jaxdnn.propagation.lecture_chain import Iteration, Params
from jaxdnn.propagation.lecture_network import train_network
from jaxdnn.propagation.lecture_walks import TILES_PER_UNIT, Walk, walks
from jaxdnn.propagation.mean_field import correlation_slope, phi_moments
from jaxdnn.propagation.moments import SATURATED, Kernels, measure, normalise, rms
from jaxdnn.propagation.nonlinearity import Phi
from jaxdnn.propagation.phase_diagram import (
    CriticalLine,
    PhaseDiagram,
    critical_line,
    phase_diagram,
)
from jaxdnn.propagation.plain_network import LOSSES, Architecture, Batch, Precision
from jaxdnn.propagation.sweep import make_sweep
from jaxdnn.propagation.sweep_theory import Comparison, Expected
from jaxdnn.propagation.table import (
    Combination,
    Layers,
    Table,
    header,
    network_rows,
    read_csv,
    read_networks,
    summary,
    write_csv,
)
from jaxdnn.propagation.verdict import HEALTHY_LOG10, Flow, summarise

__all__ = [
    "FORMATS",
    "HEALTHY_LOG10",
    "LONGEST",
    "LOSSES",
    "MAX_SIGMA_W2",
    "OUTSIDE",
    "SATURATED",
    "TILES_PER_UNIT",
    "ActivationRow",
    "Architecture",
    "Batch",
    "Combination",
    "Comparison",
    "CriticalLine",
    "Expected",
    "Flow",
    "Grid",
    "Iteration",
    "Kernels",
    "Layers",
    "Params",
    "PhaseDiagram",
    "Phi",
    "Precision",
    "Program",
    "Table",
    "Theory",
    "Walk",
    "activation_table",
    "batch_norm_rate",
    "correlation_fixed_point",
    "correlation_slope",
    "critical_line",
    "critical_points",
    "depth_limits",
    "depth_scale",
    "find_activation",
    "gains",
    "gradient_flow",
    "header",
    "is_due",
    "layer_norm_rate",
    "load_cell",
    "make_sweep",
    "measure",
    "network_rows",
    "normalise",
    "phase_diagram",
    "phi_moments",
    "predict",
    "read_csv",
    "read_networks",
    "rms",
    "run_grid",
    "save_cell",
    "sigma_w2_of",
    "summarise",
    "summary",
    "theory",
    "train_network",
    "walks",
    "write_csv",
    "write_table",
]
