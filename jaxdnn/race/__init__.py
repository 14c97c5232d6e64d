"""The race: many networks trained side by side, one initializer against another."""

from jaxdnn.race.race import Race
from jaxdnn.race.race_run import Results, run_race
from jaxdnn.race.race_table import LEARNED, Outcome, guess_loss, race_summary, write_race_csv

__all__ = [
    "LEARNED",
    "Outcome",
    "Race",
    "Results",
    "guess_loss",
    "race_summary",
    "run_race",
    "write_race_csv",
]
