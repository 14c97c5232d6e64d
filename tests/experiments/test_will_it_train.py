"""The parts of will_it_train.py: the family, its trials, the table, and going on after a stop."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdnn.diagnosis import Scales, diagnose
from jaxdnn.errors import Interrupted

from .conftest import load_program

family = load_program("benchmarks/trainability")
program, resume = (load_program(f"benchmarks/{name}") for name in ("will_it_train", "resume"))
MEMBER = family.Member("selu", "lecun_normal", 5, "layer", "adam:0.001", seed=3)
INPUTS = np.asarray(jax.random.normal(jax.random.key(0), (32, 20)))
LABELS = np.arange(32) % 4


@pytest.mark.slow
def test_score_of_a_row_is_that_of_diagnose():
    params = family.draw_params(MEMBER, 20, 4)
    said = family.make_judge(MEMBER.style, 300)(
        params, family.choice_of(MEMBER), INPUTS, jnp.asarray(LABELS)
    )
    row = family.report(said) | {"guess_loss": np.log(4)}
    ours = program.score_of(row, num_steps=300, horizon=300)
    diagnosis = diagnose(
        (family.make_model(MEMBER), params),
        INPUTS,
        LABELS,
        optimizer=MEMBER.optimizer,
        horizon=300,
        try_changes=False,
    )
    assert 0.1 < ours < 0.99
    chex.assert_trees_all_close(ours, diagnosis.score, rtol=0.02)


def test_training_with_the_chosen_optimizer():
    images, labels = jnp.asarray(INPUTS), jnp.asarray(LABELS)
    train = family.make_train(lambda params, x, _: x @ params, 200)
    choices = [
        family.choice_of(dataclasses.replace(MEMBER, optimizer=name)) for name in family.OPTIMIZERS
    ]
    key = jax.random.key(0)
    sgd, adam = (float(train(jnp.zeros((20, 4)), c, images, labels, key)) for c in choices)
    still = float(train(jnp.zeros((20, 4)), choices[0], images, labels, key, Scales(rate=0.0)))
    chex.assert_trees_all_close(still, np.log(4), rtol=1e-5)
    assert sgd < adam < still


@pytest.mark.slow
def test_networks_side_by_side_are_those_one_by_one():
    task = family.Task(jnp.asarray(INPUTS), jnp.asarray(LABELS), 4, bound=1.0)
    group = next(g for g in family.draw_groups(960, 0) if g[0].program == (5, "batch"))
    together = list(family.make_judge_and_train(task, 3)(group))
    train = family.make_train(family.make_forward(group[0].style), 3)
    for member, row in zip(group, together, strict=True):
        key = jax.random.key(member.seed)
        choice = family.choice_of(member)
        loss = float(train(family.start(member, task), choice, task.images, task.labels, key))
        chex.assert_trees_all_close(row["final_loss"], loss, rtol=1e-4)
        assert row["learned"] == (row["final_loss"] < 1.0)


def test_members_differ_and_so_does_another():
    members = [member for group in family.draw_groups(200, 1) for member in group]
    assert len(set(members)) == 200
    others = [member for group in family.draw_groups(200, 0) for member in group]
    assert not {m.seed for m in members} & {m.seed for m in others}
    rng = np.random.default_rng(0)
    for member in members[:20]:
        one, two = dataclasses.asdict(member), dataclasses.asdict(family.another(member, rng))
        assert [name for name in one if one[name] != two[name]] in (
            ["activation"],
            ["initializer"],
            ["style"],
        )


def test_auc_is_the_chance_to_rank_a_pair_rightly():
    learned = np.array([True, True, False, False])
    assert program.auc(np.array([4.0, 3.0, 2.0, 1.0]), learned) == 1
    assert program.auc(np.array([1.0, 1.0, 1.0, 1.0]), learned) == 0.5
    assert program.auc(np.array([4.0, 1.0, 2.0, 1.0]), learned) == 0.625
    # Of a yes or no it is the balanced accuracy.
    says, truth = np.array([1.0, 1, 0, 0, 1]), np.array([True, True, True, False, False])
    chex.assert_trees_all_close(program.auc(says, truth), (2 / 3 + 1 / 2) / 2, rtol=1e-6)


def test_goes_on_where_it_stopped(tmp_path):
    groups, path, worked = family.draw_groups(15, 0), tmp_path / "rows.jsonl", []

    def work(members):
        worked.append(members)
        return [{"learned": member.seed % 2 == 0} for member in members]

    def go(stop_after):
        return resume.work_through(
            groups, work, path, lambda: len(worked) >= stop_after, progress=False
        )

    with pytest.raises(Interrupted):
        go(2)
    assert worked == groups[:2]
    rows = go(99)
    assert worked == groups
    assert [resume.item_of(family.Member, row) for row in rows] == [m for g in groups for m in g]
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows


def test_table_counts_words_and_repairs():
    flat = {"constant_loss": [1.0] * 61, "guess_loss": 1.0, "optimizer": "sgd:0.1"}
    rules = dict.fromkeys(family.RULES, False)
    learnt = {key: list(np.linspace(1, 0, 61)) for key in ("loss", "shrunk_loss")}
    stuck = {key: [1.0] * 61 for key in ("loss", "shrunk_loss")}
    good = flat | learnt | {"learned": True, "rules": rules}
    bad = flat | stuck | {"learned": False, "rules": rules}
    repairs = [{"repaired": True, "by_chance": False}, {"repaired": True, "by_chance": True}]
    text = program.markdown([good, good, bad], repairs, horizon=300)
    assert "| score of the diagnosis | 1.000 | 1.000 | – |" in text
    assert "| trains | 2 | 100% |" in text
    assert "| will not train | 1 | 0% |" in text
    assert "100%, after one random change 50%" in text
