"""The lecture's experiment: a chain of single neurons, and why its first weights hardly learn.

    python experiments/grad_flow.py lecture                       five sigmoid neurons, as on the slides
    python experiments/grad_flow.py lecture --depth 20            what if there are more of them?
    python experiments/grad_flow.py lecture --activation relu --weight 0.5 --samples mine.csv

Prints the table of the slides and writes it, with two charts, to --out.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxdnn import command_line, run_folder
from jaxdnn.activations import make_activation
from jaxdnn.errors import InputError
from jaxdnn.propagation.lecture_chain import (
    LECTURE_X,
    autodiff_gradients,
    rows,
    start,
    train,
    unmoved_in_float32,
)
from jaxdnn.report.lecture import draw_all, spans, walks

PROG = "grad_flow.py lecture"
