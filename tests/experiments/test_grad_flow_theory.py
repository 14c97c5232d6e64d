"""The commands theory, depth and phase: their JSON, their files, and one line for bad input."""

import csv
import json
import math

import pytest

from jaxdnn.activations import ACTIVATIONS, make_activation
from jaxdnn.errors import InputError
from jaxdnn.initializers import INITIALIZERS
from jaxdnn.propagation import gradient_band

from .conftest import load_program

depth, phase, theory = (load_program(f"commands.{name}") for name in ("depth", "phase", "theory"))


@pytest.fixture
def read(capsys):
    """Call a command; return the JSON that it prints."""

    def call(command, *args):
        assert command.main([*args, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return call


def test_theory_prints_one_object(read):
    found = read(theory, "--activation", "tanh", "--sigma-w2", "1.5", "--sigma-b2", "0.05")
    assert {"q", "chi1", "slope", "c", "xi_q", "xi_c", "xi_gradient", "note"} <= set(found)
    assert found["xi_c"] == pytest.approx(15.790994, rel=1e-6)
    assert found["xi_q"] == pytest.approx(1.682828, rel=1e-6)
    assert found["xi_gradient"] == pytest.approx(-1 / math.log(found["chi1"]))
    assert found["c"] == 1


def test_what_is_undefined_is_null_with_a_note(read):
    found = read(theory, "--activation", "relu", "--sigma-w2", "2")
    assert found["chi1"] == 1
    assert found["q"] is found["xi_q"] is found["xi_c"] is found["xi_gradient"] is None
    for name in ("q", "xi_q", "xi_c", "xi_gradient"):
        assert name in found["note"]


def test_critical_prints_a_list(read):
    (point,) = read(theory, "--activation", "tanh", "--critical", "--sigma-b2", "0.05")
    assert set(point) == {"sigma_w2", "q", "slope"}
    assert point["sigma_w2"] == pytest.approx(1.7609546396, rel=1e-9)


def test_critical_prints_an_empty_list_and_says_why(capsys):
    assert theory.main(["--activation", "sigmoid", "--critical", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == []
    assert "no critical initialisation" in said.err


def test_depth_prints_the_spread_of_the_singular_values_and_the_band(read):
    """ReLU under He: L (2 - 1 + 1) with normal weights, L (2 - 1) with orthogonal ones."""
    found = read(
        theory, "--activation", "relu", "--sigma-w2", "2", "--depth", "10", "--width", "64"
    )
    assert found["spread_normal"] == pytest.approx(20)
    assert found["spread_orthogonal"] == pytest.approx(10)
    band = gradient_band(make_activation("relu"), 2.0, 0.0, 0.5, depth=10, width=64)
    ends = found["log10_total_low"], found["log10_total_high"]
    assert ends == pytest.approx((band.low / math.log(10), band.high / math.log(10)))


def test_spread_of_signals_that_grow_without_bound_is_undefined(read):
    found = read(theory, "--activation", "relu", "--sigma-w2", "3", "--depth", "10")
    assert found["spread_normal"] is found["spread_orthogonal"] is None
    assert "log10_total_low" not in found


def test_moments_print_gains_and_rates(read):
    found = read(theory, "--activation", "relu", "--moments")
    assert found["m1"] == pytest.approx(1 / math.sqrt(2 * math.pi))
    assert [found["m2"], found["d2"]] == pytest.approx([0.5, 0.5])
    assert found["gain_forward"] == pytest.approx(math.sqrt(2))
    assert found["batch_norm_rate"] == pytest.approx(1.4669422069, rel=1e-9)
    assert found["layer_norm_rate"] == pytest.approx(1)


def test_gelu_with_batch_norm_is_outside_theory(read):
    found = read(theory, "--activation", "gelu", "--moments")
    assert found["batch_norm_rate"] is None
    assert "outside theory" in found["note"]


def test_tables_for_people(capsys):
    assert theory.main(["--activation", "relu", "--moments"]) == 0
    assert "gain that keeps the signal" in capsys.readouterr().out
    assert theory.main(["--activation", "softplus", "--critical"]) == 0
    assert "no critical initialisation" in capsys.readouterr().out


def test_activation_of_the_user(read, module):
    found = read(theory, "--activation", f"{module}:bent", "--moments")
    # The slope is 1 where x > 0.3, with probability 0.38209, and 0.1 elsewhere.
    above = 0.3820885778110474
    assert found["d2"] == pytest.approx(above + 0.01 * (1 - above), rel=1e-9)


def test_depth_of_sigmoid_under_lecun(read):
    found = read(depth, "--activation", "sigmoid", "--initializer", "lecun")
    assert found["factor"] == pytest.approx(0.2360523, rel=1e-6)
    assert found["max_depth"] == math.floor(6 * found["xi_c"]) == 2
    assert found["depth_float16"] < found["depth_float32"] == found["depth_bfloat16"]
    # 2^-126 / 0.2360523^n: 60.5 layers below the first, whose own factor differs a little.
    assert found["depth_float32"] == pytest.approx(126 * math.log(2) / 1.4437 + 1, abs=2)
    assert "Schoenholz" in found["rule"]


def test_depth_of_relu_under_he_has_no_limit(read):
    found = read(depth, "--activation", "relu", "--initializer", "he")
    assert found["factor"] == pytest.approx(1)
    assert found["max_depth"] is found["depth_float32"] is found["depth_float16"] is None


def test_zeros_train_the_last_layer_alone(read):
    found = read(depth, "--activation", "relu", "--initializer", "zeros")
    assert found["factor"] == 0
    assert found["max_depth"] == 1


def test_phase_writes_pictures_and_tables(tmp_path, monkeypatch, module):
    few = {"relu": ACTIVATIONS["relu"]}
    monkeypatch.setattr("jaxdnn.activations.ACTIVATIONS", few)
    out = tmp_path / "out"
    args = ["--activation", f"{module}:bent", "--points", "9", "--out", str(out)]
    assert phase.main(args) == 0
    for name in ("phase", "activations"):
        assert (out / f"{name}.png").stat().st_size > 10_000
        assert (out / f"{name}.svg").read_text().startswith("<?xml")
    with (out / "phase.csv").open() as file:
        points = list(csv.DictReader(file))
    assert len(points) == 81
    assert all(float(p["chi1"]) > 0 for p in points)
    with (out / "activations.csv").open() as file:
        rows = {row["activation"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["relu", "bent"]
    assert float(rows["relu"]["factor_glorot_normal"]) == pytest.approx(math.sqrt(0.5))
    assert float(rows["relu"]["factor_he_normal"]) == pytest.approx(1)
    assert rows["bent"]["gain_common"] == ""
    assert {f"factor_{name}" for name in INITIALIZERS} <= set(rows["relu"])


SIGMAS = ["--sigma-w2", "1"]
BAD = [
    (theory, ["--activation", "tahn", *SIGMAS], "tanh"),
    (theory, ["--activation", "tanh"], "--sigma-w2 is missing"),
    (theory, ["--activation", "tanh", "--sigma-w2", "-1"], "0 or more"),
    (theory, ["--activation", "tanh", "--sigma-w2", "nan"], "0 or more"),
    (theory, ["--activation", "tanh", *SIGMAS, "--dropout", "1"], "below 1"),
    (theory, ["--activation", "tanh", *SIGMAS, "--start", "0"], "above 0"),
    (theory, ["--activation", "tanh", "--critical", "--moments"], "one at a time"),
    (theory, ["--activation", "tanh", "--critical", *SIGMAS], "leave --sigma-w2"),
    (theory, ["--activation", "tanh", "--moments", "--depth", "3"], "--depth is asked of one"),
    (theory, ["--activation", "tanh", *SIGMAS, "--width", "64"], "give both"),
    (theory, ["--activation", "tanh", *SIGMAS, "--depth", "1"], "2 or more"),
    (theory, [*SIGMAS], "activation"),
    (depth, ["--activation", "tanh", "--initializer", "hee"], "he_normal"),
    (depth, ["--activation", "tanh", "--initializer", "he", "--scale", "2"], "no scale"),
    (depth, ["--activation", "tanh", "--initializer", "he", "--norm", "group"], "norm"),
    (depth, ["--activation", "tanh", "--initializer", "he", "--width", "0"], "1 or more"),
    (phase, ["--activation", "tanh", "--points", "1"], "2 or more"),
    (phase, ["--activation", "tanh", "--max-sigma-w2", "0"], "above 0"),
]


@pytest.mark.parametrize(("command", "args", "message"), BAD)
def test_bad_input_is_one_line(command, args, message):
    with pytest.raises(InputError, match=message) as error:
        command.main(args)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("attribute", "message"),
    [("missing", "it has bent"), ("constant", "no function"), ("undefined", "is nan at")],
)
def test_bad_functions_are_one_line(module, attribute, message):
    with pytest.raises(InputError, match=message) as error:
        theory.main(["--activation", f"{module}:{attribute}", *SIGMAS])
    assert "\n" not in str(error.value)


def test_a_missing_module_is_one_line(module):
    with pytest.raises(InputError, match="cannot import nowhere_at_all") as error:
        theory.main(["--activation", "nowhere_at_all:f", *SIGMAS])
    assert "\n" not in str(error.value)
