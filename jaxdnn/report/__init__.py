"""Charts from results on disk."""

from jaxdnn.report.diagnosis import fragment, page
from jaxdnn.report.flow_charts import draw_gradient_flow, draw_race
from jaxdnn.report.lecture_charts import draw_lecture
from jaxdnn.report.theory_charts import draw_activation_table, draw_phase_diagram
from jaxdnn.report.training_charts import draw_augmentations, draw_gradients, draw_training

__all__ = [
    "draw_activation_table",
    "draw_augmentations",
    "draw_gradient_flow",
    "draw_gradients",
    "draw_lecture",
    "draw_phase_diagram",
    "draw_race",
    "draw_training",
    "fragment",
    "page",
]
