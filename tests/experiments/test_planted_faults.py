"""The parts of planted_faults.py: what is planted is named, and the table counts it."""

import pytest

from jaxdnn.diagnosis import CAUSES

from .conftest import load_program

program = load_program("benchmarks/planted_faults")
networks = load_program("benchmarks/planted_networks")


def small_draw(fault):
    """The first network with this fault that is quick to compile."""

    def size(seed):
        plan = networks.make_case(seed, fault).plan
        return len(plan.widths) * (50 if plan.convolutional else 1)

    return program.Draw(min(range(6), key=size), fault)


@pytest.mark.slow
@pytest.mark.parametrize("fault", list(networks.FAULTS))
def test_a_planted_fault_is_named_with_its_layer(fault):
    (row,) = program.name_fault([small_draw(fault)])
    assert (row["right_layer"], row["right_cause"]) == (True, True), row["named"]


def test_every_fault_is_of_a_kind_that_the_diagnosis_knows():
    assert all(CAUSES[kind.name] is kind for kind in networks.FAULTS.values())


def test_table_counts_layers_causes_and_alarms():
    row = {"fault": "weights x 10", "seed": 0, "layer": 3, "network": "mlp", "named": None}
    found = [
        row | {"right_layer": True, "right_cause": True},
        row | {"right_layer": True, "right_cause": False},
    ]
    sound = {"seed": 1, "network": "mlp", "score": 0.2, "causes": []}
    healthy = [
        sound | {"verdict": "trains", "share_learnt": None},
        sound | {"verdict": "at risk", "share_learnt": 0.9},
        sound | {"verdict": "at risk", "share_learnt": 0.1},
    ]
    text = program.markdown(found, healthy)
    assert "| weights x 10 | 2 | 100% | 50% |" in text
    assert "Healthy networks with a false alarm: 1 of 2." in text
