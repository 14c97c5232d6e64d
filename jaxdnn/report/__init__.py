"""Charts from results on disk, and the style that all charts have in common."""

from jaxdnn.report.card import write_card
from jaxdnn.report.flow_charts import draw_gradient_flow, draw_race
from jaxdnn.report.lecture_charts import draw_lecture
from jaxdnn.report.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    YELLOW,
    new_figure,
    tidy,
)
from jaxdnn.report.theory_charts import draw_activation_table, draw_phase_diagram
from jaxdnn.report.training_charts import draw_augmentations, draw_training

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PURPLE",
    "SKY",
    "VERMILION",
    "YELLOW",
    "draw_activation_table",
    "draw_augmentations",
    "draw_gradient_flow",
    "draw_lecture",
    "draw_phase_diagram",
    "draw_race",
    "draw_training",
    "new_figure",
    "tidy",
    "write_card",
]
