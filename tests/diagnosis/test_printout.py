"""What is printed: one line for the healthy, a few for the ill, an object for assistants."""

import ast
import dataclasses
import functools
import json
import math
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdnn.diagnosis
from jaxdnn.diagnosis import CAUSES, Trial, error_json
from jaxdnn.diagnosis.answers import Answers
from jaxdnn.diagnosis.printout import MOST_BYTES, SCHEMA, amount, loss_name, optimizer_name, reason
from jaxdnn.names import printable_lines
from tests.hostile_files import ESCAPES

from . import made

DOCS = Path(__file__).parents[2] / "docs"
MANY = tuple(made.cause(path=f"layers/{number}") for number in range(5))
CHANGES = tuple(made.prescription(f"change {number}") for number in range(4))
ANSWERS = Answers(constant=2.0, reachable=0.0, floor=0.0)


def test_a_healthy_network_is_one_line():
    text = str(made.healthy())
    assert text == (
        "trains (score 0.97): learns to tell the inputs apart within about 30 steps"
        " (loss: cross-entropy of integer labels, optimizer: sgd:0.1)"
    )
    assert "delta" in made.healthy().details()


def test_notes_stand_in_every_form():
    found = made.diagnosis(notes=("16 examples are few",))
    healthy = made.healthy()
    for text in (str(found), found.details(), found.to_markdown(), found.to_html()):
        assert "16 examples are few" in text
    assert json.loads(found.to_short_json())["notes"] == ["16 examples are few"]
    assert str(dataclasses.replace(healthy, notes=("a", "b"))) == f"{healthy}\nnote: a\nnote: b"


def test_three_causes_and_three_changes_are_printed_and_the_rest_is_counted():
    found = made.diagnosis(causes=MANY, prescriptions=CHANGES)
    lines = str(found).splitlines()
    assert sum(line.startswith("cause: ") for line in lines) == 3
    assert sum(line.startswith("try: ") for line in lines) == 3
    assert lines[-1].startswith("(2 more findings, 1 more change, 2 layers: ")
    assert "delta" not in str(found)
    details = found.details()
    assert details.count("cause: ") == 5
    assert details.count("try: ") == 4
    assert "more finding" not in details


@pytest.mark.parametrize(
    ("cause", "line"),
    [
        (made.cause(), "cause: layers/0: 90 % are dead [dead units]"),
        (made.cause(line="net.py:7"), "cause: layers/0 (net.py:7): 90 % are dead [dead units]"),
        (
            made.cause("wrong labels", "", "all are 3", repaired=0.005),
            "cause: all are 3 [wrong labels]; repaired alone, nothing changes: score 0.01 -> 0.01",
        ),
        (
            made.cause(repaired=0.89),
            "cause: layers/0: 90 % are dead [dead units]; repaired alone, the network learns:"
            " score 0.01 -> 0.89",
        ),
        (
            made.cause(repaired=0.2),
            "cause: layers/0: 90 % are dead [dead units]; repaired alone, that is not enough:"
            " score 0.01 -> 0.20",
        ),
    ],
)
def test_a_cause_says_where_what_and_what_its_repair_did(cause, line):
    assert str(made.diagnosis(causes=(cause,))).splitlines()[1] == line


def test_the_bridge_is_a_detail_in_plain_numbers():
    found = made.diagnosis(causes=(made.cause(recovery=3.4),))
    assert "bridged" not in str(found)
    assert "bridged, 2512 times the gradient reaches layers/0" in found.details()


def test_what_is_not_defined_is_a_dash_and_zero_is_zero():
    layers = (made.without_gradient("layers/0"), made.layer("head", 1e-45))
    found = made.diagnosis(layers=layers)
    row = next(line for line in found.details().splitlines() if line.startswith("layers/0"))
    assert row.split() == ["layers/0", "0", "-", "-", "1", "10%", "-"]
    for text in (found.details(), found.to_markdown(), str(found)):
        assert "nan" not in text
        assert "e-45" not in text
        assert "105" not in text
    assert amount(0.0) == "0"
    assert amount(math.nan) == "-"
    assert amount(26941.7) == "26942"


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        ("sgd:0.1", "sgd:0.1"),
        (optax.adam(1e-3), "optax scale_by_adam + scale(-0.001)"),
        (
            optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9)),
            "optax clip_by_global_norm + trace + scale(-0.1)",
        ),
        (
            optax.GradientTransformation(
                lambda params: (), lambda updates, state, params=None: (updates, state)
            ),
            "the given optimizer",
        ),
    ],
)
def test_an_optimizer_is_named_by_its_parts(optimizer, name):
    assert optimizer_name(optimizer) == name


def test_blocks_that_are_alike_are_one_row_unless_all_are_asked_for():
    layers = tuple(made.layer(f"layers/{number}", 1.0) for number in range(50))
    found = made.diagnosis(layers=layers)
    assert "layers/1..49 " in found.details()
    assert "layers/25 " not in found.details()
    assert all(f"layers/{number} " in found.details(fold=False) for number in range(50))


def test_markdown_holds_the_table_and_the_code():
    text = made.diagnosis(causes=MANY).to_markdown()
    assert "| layer |" in text
    assert "  kernel_init=he_normal()\n" in text
    assert text.count("- cause: ") == 5


HOSTILE = f"a|b<script>x</script>`*{ESCAPES}\n| fake | row |"


def hostile():
    """What a stranger's model may call itself and its layers."""
    return made.diagnosis(
        loss_name=HOSTILE,
        notes=(HOSTILE,),
        layers=(made.layer(HOSTILE, 0.0), made.layer("head", 1.0)),
        causes=(made.cause(path=HOSTILE, evidence=HOSTILE, line=HOSTILE),),
        prescriptions=(made.prescription(HOSTILE, f"```\n{ESCAPES}\n<b>"),),
    )


def test_names_of_others_steer_nothing_and_make_no_lines():
    found, plain = hostile(), made.diagnosis(notes=("note",))
    for text, usual in (
        (str(found), str(plain)),
        (found.details(), plain.details()),
        (found.to_markdown(), plain.to_markdown()),
    ):
        assert printable_lines(text) == text
        assert text.count("\n") == usual.count("\n") + 2  # Two more lines of code.
    page = found.to_html()
    assert printable_lines(page) == page
    assert "<script>x" not in page


def test_names_of_others_are_no_markup():
    lines = hostile().to_markdown().splitlines()
    (row,) = (line for line in lines if line.startswith("| `` a"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 5 + len(made.layer("", 1.0).terms)
    fences = [number for number, line in enumerate(lines) if line.strip().startswith("````")]
    assert len(fences) == 2
    code = range(fences[0], fences[1] + 1)
    for number, line in enumerate(lines):
        if number not in code and not line.startswith("|"):
            assert not re.search(r"<|(?<!\\)[`*]", line)


def mean_focal(outputs, targets):
    return jnp.mean(outputs - targets)


@pytest.mark.parametrize(
    ("loss", "targets", "name"),
    [
        (None, np.zeros(3, int), "cross-entropy of integer labels"),
        (None, np.zeros(3), "mean squared error"),
        (mean_focal, None, "mean_focal"),
        (functools.partial(mean_focal, targets=1), None, "mean_focal"),
        (lambda outputs, targets: outputs, None, "the given loss"),
        (optax.l2_loss, None, "l2_loss"),
    ],
)
def test_the_loss_has_the_name_that_the_reader_gave_it(loss, targets, name):
    assert loss_name(loss, targets) == name


def trial(*losses):
    curve = np.array(losses)
    return Trial(curve, curve, np.full(len(curve), 2.0))


@pytest.mark.parametrize(
    ("losses", "options", "says"),
    [
        ((2, 0.1), {"score": 0.97}, "learns to tell the inputs apart within about 30 steps"),
        ((2, 0.1), {"score": 1.0}, "learns to tell the inputs apart within about 10 steps"),
        ((2, 2), {}, "loss 2 -> 2 in 1 steps, no better than the best answer that ignores"),
        ((2, 1.5), {}, "25% of the way from the best answer that ignores the inputs (2) to"),
        ((2, 2), {"alike": 0.0}, "its outputs are the same for every input"),
        ((2, 2), {"alike": 1e-3}, "its outputs hardly depend on the inputs"),
        ((2, 3, math.inf), {}, "the loss is not finite after 2 steps"),
        ((2, 2), {"finite": False}, "the loss or its gradient is not finite at the start"),
    ],
)
def test_the_reason_tells_what_happened(losses, options, says):
    usual = {"score": 0.0, "horizon": 1000, "finite": True, "alike": 1.0}
    assert says in reason(trial(*losses), ANSWERS, **(usual | options))


def worst():
    """Of everything more than fits, in letters that take six characters each."""
    endless = '"δ\n' * 5000
    cause = dataclasses.replace(
        made.cause(max(CAUSES, key=len), endless, endless, line=endless),
        category="output activation",
    )
    return made.diagnosis(
        reason=endless,
        optimizer=endless,
        loss_name=endless,
        notes=(endless,) * 9,
        causes=(cause,) * 9,
        prescriptions=(made.prescription(endless, endless, endless),) * 9,
    )


@pytest.mark.parametrize("found", [made.healthy(), made.diagnosis(causes=MANY), worst()])
def test_the_short_object_is_short_and_whole(found):
    text = found.to_short_json()
    assert text.isascii()
    assert "\n" not in text
    assert len(text) <= MOST_BYTES == 2000
    shown = json.loads(text)
    assert list(shown) == [
        *("schema", "verdict", "score", "loss", "optimizer", "reason", "notes"),
        *("findings", "more_findings", "prescription"),
    ]
    assert shown["schema"] == SCHEMA
    assert len(shown["findings"]) == min(3, len(found.causes))
    assert len(shown["findings"]) + shown["more_findings"] == len(found.causes)
    for finding in shown["findings"]:
        assert list(finding) == ["code", "category", "layer", "line", "evidence", "repaired"]
        assert finding["code"] in {each.replace(" ", "_") for each in CAUSES}
    if found.prescriptions:
        assert list(shown["prescription"]) == ["code", "change", "patch", "before", "after"]
    else:
        assert shown["prescription"] is None


def test_usual_words_are_not_cut():
    evidence = "the softmax at the output gives only 1, and the targets go from 0 to 1055 (x 3)"
    causes = (made.cause(evidence=evidence),) * 3
    shown = json.loads(made.diagnosis(causes=causes).to_short_json())
    assert [each["evidence"] for each in shown["findings"]] == [evidence] * 3


def test_the_object_of_a_failure_is_short():
    shown = json.loads(error_json("é" * 9999))
    assert shown.keys() == {"schema", "error"}
    assert len(error_json("é" * 9999)) <= MOST_BYTES


def rows(title: str) -> dict[str, tuple[str, ...]]:
    """The rows of a table in docs/codes.md, by their code."""
    page = (DOCS / "codes.md").read_text(encoding="utf-8")
    section = page.split(f"## {title}\n")[1].split("\n## ")[0]
    cells = [
        re.split(r" *\| *", line.strip("| ")) for line in section.splitlines() if "| `" in line
    ]
    return {code.strip("`"): tuple(rest) for code, *rest in cells}


def test_the_page_of_codes_holds_every_cause():
    expected = {
        name.replace(" ", "_"): (kind.category, kind.words) for name, kind in CAUSES.items()
    }
    missing = [
        f"| `{code}` | {category} | {words} |"
        for code, (category, words) in expected.items()
        if rows("Findings").get(code) != (category, words)
    ]
    assert not missing, "\n".join(["docs/codes.md needs these rows:", *missing])
    assert rows("Findings").keys() == expected.keys()


def written_names() -> set[str]:
    """The names that the source gives to fixes."""
    names: set[str] = set()
    for path in Path(jaxdnn.diagnosis.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Fix":
                written = [each for each in node.args[:1] if isinstance(each, ast.Constant)]
                names |= {str(each.value) for each in written}
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "code_name":
                values = [each for each in ast.walk(node.value) if isinstance(each, ast.Constant)]
                names |= {str(each.value) for each in values if each.value != "BatchNorm"}
    return names - {"", "as_it_is"}


def test_the_page_of_codes_holds_every_fix():
    assert written_names() == rows("Prescriptions").keys()
    assert f"Version {SCHEMA}" in (DOCS / "codes.md").read_text(encoding="utf-8")
