"""Charts from results on disk."""

from jaxdnn.report.activation_table import draw_activation_table
from jaxdnn.report.augmentations import draw_augmentations
from jaxdnn.report.gradient_flow import draw_gradient_flow
from jaxdnn.report.lecture import draw_lecture
from jaxdnn.report.lecture_words import lanes, spans
from jaxdnn.report.phase_diagram import draw_phase_diagram
from jaxdnn.report.race import draw_race
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
from jaxdnn.report.training import draw_training

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
    "lanes",
    "new_figure",
    "spans",
    "tidy",
]
