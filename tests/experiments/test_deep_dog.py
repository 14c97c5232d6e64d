"""The training command as its users use it."""

import json
import shutil

import chex
import numpy as np
import pytest

from jaxdnn.calibration import Calibration
from jaxdnn.recipes import RECIPES
from jaxdnn.report.training_charts import draw_training
from jaxdnn.run_folder import RunFolder, read_metrics, read_predictions, write_json
from jaxdnn.stored import seal
from jaxdnn.training import Checkpoints
from jaxdnn.training.evaluate import confusion_summary

from .conftest import QUICK, load_program

deep_dog = load_program("deep_dog")

SUMMARY_KEYS = {
    *(f"test/{name}" for name in ("accuracy", "balanced_accuracy", "auc", "loss")),
    *("val/accuracy", "val/balanced_accuracy", "train/accuracy", "best_step", "steps"),
    *("stopped_early", "num_parameters", "wall_seconds", "images_per_second"),
    *("majority_fraction", "params_sha256"),
}


@pytest.fixture(scope="module")
def trained_with(tmp_path_factory):
    """Train with options; return the run folder."""

    def run(*options):
        path = tmp_path_factory.mktemp("runs") / "run"
        _, arguments = deep_dog.parse([*QUICK, *map(str, options)])
        folder = deep_dog.run_folder.create(path)
        assert deep_dog._train(arguments, folder, path) == 0
        return folder

    return run


def summary_of(folder):
    return json.loads(RunFolder(folder).summary.read_text())


def test_run_folder_holds_everything(finished):
    summary = summary_of(finished.path)
    assert summary.keys() >= SUMMARY_KEYS
    assert summary["test/balanced_accuracy"] > 0.9
    assert summary["class_names"] == ["other", "dog"]
    for name in ("curves", "confusion", "mistakes", "reliability", "explain"):
        assert finished.chart(name).read_bytes().startswith(b"\x89PNG")
    assert list(finished.tensorboard.glob("events*"))
    assert f"| accuracy | {summary['test/accuracy']:.3f} |" in finished.card.read_text()
    assert summary["temperature"] > 0
    assert 0 <= summary["test/ece_calibrated"] <= 1
    kept = read_predictions(finished)
    fitted = Calibration(summary["temperature"]).probabilities(kept["logits"])
    np.testing.assert_allclose(kept["probabilities"], fitted, rtol=1e-5)
    steps = [line["step"] for line in read_metrics(finished.metrics)]
    # 120 images, 20 % for the test, 10 % of the rest for validation, stratified.
    counts = json.loads(finished.dataset.read_text())["counts"]
    num_train = sum(counts["train"].values())
    assert sum(sum(part.values()) for part in counts.values()) == 120
    assert steps == [num_train // 16 * epoch for epoch in (1, 2, 3)]
    confusion = np.array(summary["confusion"])
    assert list(confusion.sum(axis=1)) == [counts["test"]["other"], counts["test"]["dog"]]
    recalls = [confusion[c, c] / confusion[c].sum() for c in (0, 1)]
    assert summary["test/balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert summary["recalls"] == pytest.approx(recalls)


@pytest.mark.parametrize("num_classes", [201, 10_000])
def test_too_many_classes_for_a_matrix_have_a_chart_of_the_commonest_mistakes(
    num_classes, finished, tmp_path
):
    shutil.copytree(finished.path, tmp_path / "run")
    names = [f"class {number}" for number in range(num_classes)]
    labels = np.arange(num_classes)
    about = confusion_summary(labels, (labels + 1) % num_classes, num_classes)
    content = summary_of(finished.path) | {"class_names": names} | about
    write_json(RunFolder(tmp_path / "run").summary, seal(content))
    before = finished.chart("confusion").read_bytes()
    draw_training(RunFolder(tmp_path / "run"))
    after = RunFolder(tmp_path / "run").chart("confusion").read_bytes()
    assert after.startswith(b"\x89PNG")
    assert after != before


@pytest.mark.slow
def test_same_command_gives_same_numbers(finished, photos, call, tmp_path):
    args = [*QUICK, "--data", photos, "--positive", "dog"]
    assert call(deep_dog, *args, "--out", tmp_path / "again")[0] == 0
    assert call(deep_dog, *args, "--out", tmp_path / "other", "--seed", 1)[0] == 0
    first, again = summary_of(finished.path), summary_of(tmp_path / "again")
    assert again["params_sha256"] == first["params_sha256"]
    assert summary_of(tmp_path / "other")["params_sha256"] != first["params_sha256"]
    assert (tmp_path / "again/metrics.jsonl").read_text() == finished.metrics.read_text()


def test_interrupted_run_resumes_to_the_same_end(finished, photos, call, tmp_path, monkeypatch):
    class StopsAtThirdCall(deep_dog.command_line.StopSignal):
        calls = 0

        def __call__(self):
            self.calls += 1
            return self.calls == 3

    out = tmp_path / "run"
    args = [*QUICK, "--data", photos, "--positive", "dog", "--out", out]
    with monkeypatch.context() as patched:
        patched.setattr(deep_dog.command_line, "StopSignal", StopsAtThirdCall)
        code, said, _ = call(deep_dog, *args)
    assert code == 75
    assert f"--resume {out}" in said
    assert not RunFolder(out).summary.exists()
    assert call(deep_dog, "--resume", out, "--no-progress", "--devices", 1)[0] == 0
    assert summary_of(out)["params_sha256"] == summary_of(finished.path)["params_sha256"]
    assert (out / "metrics.jsonl").read_text() == finished.metrics.read_text()


def test_finished_run_is_not_run_again(finished, call):
    before = finished.summary.read_bytes()
    code, said, _ = call(deep_dog, "--resume", finished.path)
    assert code == 0
    assert "finished" in said
    assert finished.summary.read_bytes() == before


def test_resume_refuses_other_settings(finished, call):
    code, _, said = call(deep_dog, "--resume", finished.path, "--epochs", 4)
    assert code == 2
    assert "epochs: 3, 4" in said


def test_resume_refuses_other_images(finished, photos, call, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    config = json.loads(finished.config.read_text())
    config["data"]["positive"] = ["cat"]
    (out / "config.json").write_text(json.dumps(config))
    (out / "dataset.json").write_bytes(finished.dataset.read_bytes())
    code, _, said = call(deep_dog, "--resume", out, "--no-progress")
    assert code == 2
    assert "class_names" in said


@pytest.fixture
def unfinished(finished, tmp_path):
    """A run whose results are still to be measured."""
    copy = RunFolder(shutil.copytree(finished.path, tmp_path / "copy"))
    copy.summary.unlink()
    return copy


def test_resume_names_what_was_edited_since(unfinished, call):
    config = json.loads(unfinished.config.read_text())
    config["optimizer"]["learning_rate"] *= 2
    unfinished.config.write_text(json.dumps(config))
    code, _, said = call(deep_dog, "--resume", unfinished.path, "--no-progress")
    assert code == 2
    assert "learning_rate: 0.2, saved with 0.1" in said
    assert said.count("\n") == 1


def test_what_a_run_can_write_again_it_does_and_what_is_lost_is_told(unfinished, finished, call):
    lost = (unfinished.dataset, unfinished.predictions, unfinished.metrics)
    for path in lost:
        path.unlink()
    code, _, said = call(deep_dog, "--resume", unfinished.path, "--no-progress", "--devices", 1)
    assert code == 0
    assert "metrics.jsonl was changed or lost since step" in said
    assert said.count("\n") == 1
    assert unfinished.dataset.read_bytes() == finished.dataset.read_bytes()
    measured, before = summary_of(unfinished.path), summary_of(finished.path)
    same = ("params_sha256", "confusion", "test/loss", "best_step")
    assert {name: measured[name] for name in same} == {name: before[name] for name in same}
    assert call(deep_dog, "--resume", unfinished.path)[0] == 0


def test_charts_take_class_names_of_any_kind(finished, call, tmp_path):
    copy = RunFolder(shutil.copytree(finished.path, tmp_path / "copy"))
    for path in (copy.dataset, copy.summary):
        content = json.loads(path.read_text())
        content["class_names"] = ["$a$^{", "\u72d7" * 200]
        content.pop("sha256", None)
        path.write_text(json.dumps(content))
    copy.chart("mistakes").unlink()
    assert call(deep_dog, "--resume", copy.path)[0] == 0
    assert copy.chart("mistakes").is_file()


def test_a_cut_summary_says_how_to_get_it_back(finished, call, tmp_path):
    copy = RunFolder(shutil.copytree(finished.path, tmp_path / "copy"))
    copy.summary.write_bytes(copy.summary.read_bytes()[:-20])
    code, _, said = call(deep_dog, "--resume", copy.path)
    assert code == 2
    assert "summary.json is damaged" in said
    assert f"remove it, and --resume {copy.path}" in said


def test_divergence_names_the_step_and_keeps_a_good_checkpoint(photos, call, tmp_path):
    out = tmp_path / "run"
    args = [*QUICK, "--data", photos, "--positive", "dog", "--norm", "none", "--out", out]
    code, _, said = call(deep_dog, *args, "--learning-rate", 1e25)
    assert code == 2
    assert said.count("\n") == 1
    assert "diverged at step " in said
    with Checkpoints(RunFolder(out).checkpoints) as checkpoints:
        saved = checkpoints.restore("latest")
    chex.assert_tree_all_finite({name: leaf for name, leaf in saved.items() if "params" in name})


@pytest.mark.slow
def test_augmentations_are_shown(photos, call, tmp_path):
    args = ["lecture", "--horizontal-flip", 0.5, "--data", photos, "--no-progress"]
    code, said, _ = call(deep_dog, *args, "--show-augmentations", "--out", tmp_path / "x")
    assert code == 0
    assert "augmentations.png" in said
    assert (tmp_path / "x/augmentations.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--bach-size", "3"], "did you mean --batch-size"),
        (["--norm", "bacth"], "'none', 'batch', 'layer'"),
        (["shalow"], "did you mean 'shallow'"),
        (["--dropout", "2"], "--dropout is 2"),
        (["--momentum", "0", "--nesterov"], "--momentum above 0"),
        (["--initializer", "pretrained"], "--pretrained PATH"),
        (["--resume", "nowhere"], "holds no run"),
        (["--data-dir", "x"], "--data tfds:NAME"),
        (["--data", "nowhere"], "nowhere"),
        (["--activation", "rleu"], "did you mean 'relu'"),
        (["--channels", "1", "--saturation", "0.5"], "--saturation needs colour"),
        (["--batch-size", "100000"], "--batch-size 100000 exceeds"),
        (["--label-smoothing", "1"], "--label-smoothing is 1.0; give a share in [0, 1)"),
        (["--ema-decay", "1"], "--ema-decay is 1.0; give a share in [0, 1)"),
        (["--mixup", "-1"], "--mixup is -1.0; give a number of 0 or more"),
        (["--cutout", "-1"], "--cutout is -1; give a number from 0"),
        (["--positive", "dgo"], "dog"),
        (["--head", "sigmoid", "--positive"], "two classes"),
    ],
)
def test_bad_options_get_one_line(args, expected, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, said = call(deep_dog, *args, "--no-progress")
    assert code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert expected in said


def test_out_that_cannot_be_written(call, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, said = call(deep_dog, "--out", tmp_path / "file/run")
    assert code == 2
    assert "cannot be written" in said
    assert said.count("\n") == 1


def test_out_that_holds_a_run(finished, call):
    before = finished.config.read_bytes()
    code, _, said = call(deep_dog, "--out", finished.path)
    assert code == 2
    assert "holds a run already" in said
    assert finished.config.read_bytes() == before


def test_recipes_are_the_lectures():
    shallow, lecture = RECIPES["shallow"], RECIPES["lecture"]
    assert (shallow.model.widths, shallow.model.head, shallow.model.norm) == (
        (5, 3),
        "sigmoid",
        "none",
    )
    assert (shallow.train.batch_size, shallow.train.epochs) == (64, 10)
    assert shallow.optimizer.learning_rate == 0.001
    assert shallow.optimizer.l2 > 0
    assert len(lecture.model.widths) + 2 == 4
    assert (lecture.train.batch_size, lecture.train.epochs) == (128, 10)
    assert (lecture.optimizer.learning_rate, lecture.model.head) == (0.1, "softmax")
    for recipe in (shallow, lecture):
        assert recipe.model.make_initializer().name == "glorot_normal"
        assert recipe.model.activation == "relu"
        assert recipe.optimizer.schedule == "exponential_decay"
        assert recipe.optimizer.momentum is None
        assert not any(vars(recipe.augment).values())


@pytest.fixture(scope="module")
def patient(photos, trained_with):
    """A run on all classes that may take many epochs, but stops when it gets no better."""
    return trained_with("--data", photos, "--epochs", 50, "--patience", 2)


@pytest.mark.slow
def test_without_positive_every_class_stands_for_itself(patient):
    assert summary_of(patient.path)["class_names"] == ["cat", "dog", "owl"]


def test_patience_stops_early(patient):
    summary = summary_of(patient.path)
    assert summary["stopped_early"]
    per_epoch = read_metrics(patient.metrics)[0]["step"]
    assert summary["steps"] == summary["best_step"] + 2 * per_epoch


@pytest.fixture(scope="module")
def untrained(photos, trained_with):
    """A run of full batches whose network stays as it was drawn, so that it errs."""
    args = ["--data", photos, "--positive", "cat", "--batch-size", "full"]
    return trained_with(*args, "--learning-rate", 1e-9)


def test_batch_size_full_takes_one_step_an_epoch(untrained):
    assert summary_of(untrained.path)["steps"] == 3


def test_mistakes_are_the_most_confident_ones(untrained):
    with np.load(untrained.predictions) as kept:
        wrong = kept["probabilities"].argmax(1) != kept["labels"]
        confidence = kept["probabilities"].max(1)
        assert wrong[kept["mistakes"]].all()
        others = np.setdiff1d(np.flatnonzero(wrong), kept["mistakes"])
        assert (np.diff(confidence[kept["mistakes"]]) <= 0).all()
        assert confidence[others].max(initial=0) <= confidence[kept["mistakes"]].min(initial=1)
