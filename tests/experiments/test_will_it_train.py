"""The parts of will_it_train.py: the family, the judge, the table, and going on after a stop."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from resume import item_of, work_through
from trainability import family, judge, table
from trainability.train import make_train
from trainability.trial import Task, make_trial, start

from jaxdnn import diagnose
from jaxdnn.diagnosis import verdict
from jaxdnn.diagnosis.rehearsal import Scales
from jaxdnn.errors import Interrupted

MEMBER = family.Member("selu", "lecun_normal", 5, "layer", "adam:0.001", seed=3)
INPUTS = np.asarray(jax.random.normal(jax.random.key(0), (32, 20)))
LABELS = np.arange(32) % 4


def test_score_of_a_row_is_that_of_diagnose():
    params = family.draw_params(MEMBER, 20, 4)
    said = judge.make_judge(MEMBER.style, verdict.NUM_STEPS)(
        params, family.choice_of(MEMBER), INPUTS, jnp.asarray(LABELS)
    )
    ours = judge.score_of(judge.report(said), num_steps=verdict.NUM_STEPS, horizon=300)
    diagnosis = diagnose(
        (family.make_model(MEMBER), params),
        INPUTS,
        LABELS,
        optimizer=MEMBER.optimizer,
        horizon=300,
        try_changes=False,
    )
    assert 0.1 < ours < 0.9
    assert ours == pytest.approx(diagnosis.score, rel=1e-4)


def test_training_with_the_chosen_optimizer():
    images, labels = jnp.asarray(INPUTS), jnp.asarray(LABELS)
    train = make_train(lambda params, x, _: x @ params, 200)
    choices = [
        family.choice_of(dataclasses.replace(MEMBER, optimizer=name)) for name in family.OPTIMIZERS
    ]
    key = jax.random.key(0)
    sgd, adam = (float(train(jnp.zeros((20, 4)), c, images, labels, key)) for c in choices)
    still = float(train(jnp.zeros((20, 4)), choices[0], images, labels, key, Scales(rate=0.0)))
    assert still == pytest.approx(np.log(4), rel=1e-5)
    assert sgd < adam < still


def test_networks_side_by_side_are_those_one_by_one():
    task = Task(jnp.asarray(INPUTS), jnp.asarray(LABELS), 4, bound=1.0)
    group = next(g for g in family.draw_groups(960, 0) if g[0].program == (5, "batch"))
    together = list(make_trial(task, 3)(group))
    for member, row in zip(group, together, strict=True):
        train = make_train(family.make_forward(member.style), 3)
        key = jax.random.key(member.seed)
        choice = family.choice_of(member)
        loss = float(train(start(member, task), choice, task.images, task.labels, key))
        assert row["final_loss"] == pytest.approx(loss, rel=1e-4)
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
    assert judge.auc(np.array([4.0, 3.0, 2.0, 1.0]), learned) == 1
    assert judge.auc(np.array([1.0, 1.0, 1.0, 1.0]), learned) == 0.5
    assert judge.auc(np.array([4.0, 1.0, 2.0, 1.0]), learned) == 0.625
    # Of a yes or no it is the balanced accuracy.
    says, truth = np.array([1.0, 1, 0, 0, 1]), np.array([True, True, True, False, False])
    assert judge.auc(says, truth) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_goes_on_where_it_stopped(tmp_path):
    groups, path, worked = family.draw_groups(15, 0), tmp_path / "rows.jsonl", []

    def work(members):
        worked.append(members)
        return [{"learned": member.seed % 2 == 0} for member in members]

    def go(stop_after):
        return work_through(groups, work, path, lambda: len(worked) >= stop_after, progress=False)

    with pytest.raises(Interrupted):
        go(2)
    assert worked == groups[:2]
    rows = go(99)
    assert worked == groups
    assert [item_of(family.Member, row) for row in rows] == [m for g in groups for m in g]
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows


def test_table_counts_words_and_repairs():
    flat = {"constant_loss": [1.0] * 61, "zero_loss": 1.0, "optimizer": "sgd:0.1"}
    rules = dict.fromkeys(judge.RULES, False)
    learnt = {key: list(np.linspace(1, 0, 61)) for key in ("loss", "shrunk_loss")}
    stuck = {key: [1.0] * 61 for key in ("loss", "shrunk_loss")}
    good = flat | learnt | {"learned": True, "rules": rules}
    bad = flat | stuck | {"learned": False, "rules": rules}
    repairs = [{"repaired": True, "by_chance": False}, {"repaired": True, "by_chance": True}]
    text = table.markdown([good, good, bad], repairs, horizon=300)
    assert "| score of the diagnosis | 1.000 | 1.000 | – |" in text
    assert "| trains | 2 | 100% |" in text
    assert "| will not train | 1 | 0% |" in text
    assert "100%, after one random change 50%" in text
