"""The lecture's experiment as its users run it."""

import contextlib
import csv
import io
import json

import chex
import numpy as np
import pytest
from matplotlib.text import Text

from jaxdnn.activations import make_activation
from jaxdnn.propagation import lecture as chain
from jaxdnn.report import lecture_charts

from .conftest import load_program

grad_flow = load_program("grad_flow")

FILES = {
    *("lecture_chain.csv", "summary.json"),
    *(f"lecture_{chart}.{kind}" for chart in ("chain", "walk") for kind in ("png", "svg")),
}


@pytest.fixture(scope="module")
def as_on_the_slides(tmp_path_factory):
    """Run the command without options; return its folder and what it printed."""
    folder, said = tmp_path_factory.mktemp("lecture") / "out", io.StringIO()
    with contextlib.redirect_stdout(said):
        assert grad_flow.COMMANDS["lecture"](["--out", str(folder)]) == 0
    return folder, said.getvalue()


@pytest.fixture
def words(monkeypatch):
    """Collect the words in each chart, by the chart's name."""
    found = {}

    def save(figure, path, *, svg):
        figure.draw_without_rendering()
        texts = figure.findobj(Text)
        found[path.stem] = " | ".join(text.get_text() for text in texts)

    monkeypatch.setattr(lecture_charts, "save", save)
    return found


@pytest.fixture
def lecture(call, tmp_path, words):
    """Run the command without writing its charts; return its folder and what it printed."""

    def run(*args):
        code, said, errors = call(grad_flow, "lecture", *args, "--out", tmp_path / "out")
        assert (code, errors) == (0, "")
        return tmp_path / "out", said

    return run


def write(path, text):
    path.write_text(text)
    return path


def test_table_as_on_the_slides(as_on_the_slides):
    folder, said = as_on_the_slides
    assert {path.name for path in folder.iterdir()} == FILES
    with (folder / "lecture_chain.csv").open() as file:
        header, *lines = csv.reader(file)
    assert header == ["quantity", *(f"sample{number}" for number in range(1, 6))]
    steps = chain.train(
        chain.start(2, 5, weight=1.0, bias=1.0),
        chain.LECTURE_X,
        np.ones(5),
        phi=make_activation("sigmoid"),
        learning_rate=1.0,
    )
    table = chain.rows(steps)
    assert [name for name, *_ in lines] == list(table)
    for name, *cells in lines:
        assert list(map(float, cells)) == table[name].tolist()
        assert any(line.startswith(f"{name} ") for line in said.splitlines())
    for digits in ("-0.013465948", "1.358800636", "0.931080180", "-1.196058e-05"):
        assert digits in said
    assert "agree within" in said
    assert "float32" not in said


def test_tiles_are_sixty_times_the_updates(as_on_the_slides):
    folder, said = as_on_the_slides
    summary = json.loads((folder / "summary.json").read_text())
    table = chain.read_csv(folder / "lecture_chain.csv")
    weights = summary["weights"]
    assert weights["w5"]["tiles"] == pytest.approx(-60 * table["D5"].sum(), rel=1e-14)
    assert summary["goal_tiles"] == weights["w5"]["tiles"]
    assert weights["w5"]["steps_to_goal"] == 5
    pace = 5 * table["D5"].sum() / table["D2"].sum()
    assert weights["w2"]["steps_to_goal"] == np.ceil(pace)
    assert f"{np.ceil(pace):,.0f}" in said
    assert list(weights) == ["w1[x2]", "w2", "w3", "w4", "w5"]


def test_twenty_neurons_and_float32(lecture, words):
    _, said = lecture("--depth", 20)
    assert "In float32 w1 to w13 would not move at all" in said
    assert words["lecture_walk"].count("in float32: does not move at all") == 3
    assert "float32 rounds it away" in words["lecture_chain"]


def test_a_thousand_neurons_stay_readable(lecture, words):
    folder, said = lecture("--depth", 1000)
    assert len(said.splitlines()) < 80
    assert "D is exactly 0 for w1 to w672" in said
    assert "w1 to w672: every step is exactly 0" in words["lecture_chain"]
    assert len(chain.read_csv(folder / "lecture_chain.csv")) == 4 * 1000 + 5


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--depth", 1], "1 sigmoid neuron in a row"),
        (["--steps", 1, "--depth", 2, "--weight", 0], "After 1 step w2 is 11.8 tiles"),
        pytest.param(
            ["--depth", 3, "--steps", 70, "--learning-rate", 0.1],
            "each step is 60 · 0.1 · D",
            marks=pytest.mark.slow,
        ),
        (["--depth", 2, "--activation", "Leaky-ReLU", "--bias=-3"], "2 leaky_relu neurons"),
    ],
)
def test_other_chains(args, expected, lecture, words):
    lecture(*args)
    assert expected in words["lecture_walk"]


def test_dead_relus_say_so(lecture, words):
    _, said = lecture("--activation", "relu", "--bias=-2", "--depth", 3)
    assert "D is exactly 0 for w1 to w3" in said
    assert "rounding" not in said
    assert "nobody has moved" in words["lecture_walk"]
    assert "is there" not in words["lecture_walk"]


def test_own_samples_come_round_again(lecture, tmp_path):
    path = write(tmp_path / "own.csv", "x1,x2,x3,y\n1,2,-1,1\n0.5,-1,2,0\n\n")
    folder, _ = lecture("--samples", path, "--steps", 5, "--depth", 2)
    table = chain.read_csv(folder / "lecture_chain.csv")
    chex.assert_trees_all_equal(table["x3"], np.array([-1.0, 2, -1, 2, -1]))
    chex.assert_trees_all_equal(table["y"], np.array([1.0, 0, 1, 0, 1]))
    header = (folder / "lecture_chain.csv").read_text().splitlines()[0]
    assert header == "quantity,sample1,sample2,sample1_pass2,sample2_pass2,sample1_pass3"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--depth", "0"], "--depth is 0; give 1 or more"),
        (["--steps", "0"], "--steps is 0; give 1 or more"),
        (["--learning-rate=-1"], "--learning-rate is -1.0; give a number above 0"),
        (["--learning-rate", "0"], "--learning-rate is 0.0"),
        (["--weight", "nan"], "--weight is nan"),
        (["--bias", "inf"], "--bias is inf"),
        (["--activation", "sigmod"], "did you mean 'sigmoid'"),
        (["--dept", "3"], "did you mean --depth"),
        (["--samples", "nowhere.csv"], "nowhere.csv cannot be read: No such file"),
        (["--activation", "relu", "--weight", "10", "--depth", "400"], "step 1: a"),
        (["--activation", "relu", "--learning-rate", "1e200"], "step "),
    ],
)
def test_bad_options_get_one_line(args, expected, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, said = call(grad_flow, "lecture", *args)
    assert code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert expected in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x1,x2,y\n1,2,1\n3,,0\n", "row 3, column x2 is missing"),
        ("x1,x2,y\n1,2\n", "row 2, column y is missing"),
        ("x1,x2,y\n1,two,0\n", "row 2, column x2 is 'two'"),
        ("x1,x2,y\n\n1,nan,0\n", "row 3, column x2 is 'nan'"),
        ("x1,x2,y\n1,2,0.5\n", "row 2, column y is 0.5; the target y is 0 or 1"),
        ("x1,x2,y\n1,2,0,4\n", "row 2 has 4 cells; the header has 3"),
        ("1,2,1\n3,4,0\n", "the header is '1,2,1'; name the columns x1,x2,...,y"),
        ("y\n1\n", "the header is 'y'"),
        ("", "the header is ''"),
        ("x1,x2,y\n", "has no rows below its header"),
    ],
)
def test_bad_samples_name_the_cell(text, expected, call, tmp_path):
    path = write(tmp_path / "bad.csv", text)
    code, _, said = call(grad_flow, "lecture", "--samples", path, "--out", tmp_path / "out")
    assert code == 2
    assert said.count("\n") == 1
    assert f"{path}" in said
    assert expected in said


def test_samples_that_are_no_text(call, tmp_path):
    (tmp_path / "bad.csv").write_bytes(b"x1,y\n\xff\xfe\x00,1\n")
    code, _, said = call(grad_flow, "lecture", "--samples", tmp_path / "bad.csv")
    assert code == 2
    assert "not a text file" in said


@pytest.mark.parametrize("theirs", ["config.json", "summary.json"])
def test_other_results_are_not_overwritten(theirs, call, tmp_path):
    path = write(tmp_path / theirs, "{}")
    code, _, said = call(grad_flow, "lecture", "--out", tmp_path)
    assert code == 2
    assert said.count("\n") == 1
    assert path.read_text() == "{}"


def test_help_and_unknown_commands(call, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["grad_flow.py", "--help"])
    assert grad_flow.main() == 0
    assert "lecture" in capsys.readouterr().out
    code, _, said = call(grad_flow, "lectur")
    assert code == 2
    assert "did you mean 'lecture'" in said
    assert all(name in said for name in grad_flow.COMMANDS)
