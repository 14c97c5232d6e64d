"""One run: from settings to a tested network."""

from jaxdnn.training.checkpoint import Checkpoints
from jaxdnn.training.export import check_target, export_run
from jaxdnn.training.keys import epoch_key, run_keys, seed_keys, step_keys
from jaxdnn.training.predictor import Predictor, load_predictor, load_pretrained_predictor
from jaxdnn.training.recorder import Recorder
from jaxdnn.training.run import train
from jaxdnn.training.setup import (
    Setup,
    init_state,
    make_model,
    make_order_of,
    make_setup,
    make_step_of,
    make_trainer,
)
from jaxdnn.training.step import (
    Sums,
    TrainState,
    make_indices,
    make_init,
    make_loop,
    make_loss,
    make_step,
    start_state,
)

__all__ = [
    "Checkpoints",
    "Predictor",
    "Recorder",
    "Setup",
    "Sums",
    "TrainState",
    "check_target",
    "epoch_key",
    "export_run",
    "init_state",
    "load_predictor",
    "load_pretrained_predictor",
    "make_indices",
    "make_init",
    "make_loop",
    "make_loss",
    "make_model",
    "make_order_of",
    "make_setup",
    "make_step",
    "make_step_of",
    "make_trainer",
    "run_keys",
    "seed_keys",
    "start_state",
    "step_keys",
    "train",
]
