"""What a run wrote is read back, compared and drawn."""

import re
import warnings

import numpy as np
import pytest
from networks import tiny

from tfpar import check, devices, errors, results, train
from tfpar.results import predictions, report


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    stages = [train.Stage(1, 0.1), train.Stage(1, 0.01)]
    return train.run(tiny(), digits, tmp_path_factory.mktemp("r") / "run", stages=stages, verbose=0)


def test_metrics_equal_numpy_also_with_ties():
    logits = np.float32([[1, 1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 9], [2, 1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]])
    labels = np.int32([5, 6, 0, 0])
    table = predictions.table(logits, (None, labels, list("abcd")))
    found = predictions.metrics(table, np.float32([1, 2, 3, 4]), list("tuvwxyz"))
    assert found["accuracy"] == 0.5 and found["top5_accuracy"] == 0.75 and found["loss"] == 2.5
    assert found["per_class"]["t"] == {"examples": 2, "correct": 1} and found["per_class"]["u"]["examples"] == 0


def test_predictions(run, digits):
    table = run.predictions(stage=1)
    assert table.column_names == ["index", "source", "label", "predicted", "confidence", "probabilities"]
    probabilities = predictions.probabilities_of(table)
    assert probabilities.shape == (len(digits.validation.labels), 10) and np.allclose(
        probabilities.sum(axis=1), 1, atol=1e-5
    )
    assert np.array_equal(probabilities.max(axis=1), table["confidence"].to_numpy())


def test_compare(run):
    same = results.compare(run, run)
    assert same["same_bits"] and same["agreed"] == 179 and same["gained"] == same["lost"] == 0
    stages = results.compare(run, run, stages=(1, 2))
    assert not stages["same_bits"]
    correct = [sum(entry["correct"] for entry in run.metrics(stage=s)["per_class"].values()) for s in (1, 2)]
    assert stages["gained"] - stages["lost"] == correct[1] - correct[0]


def test_what_is_not_there(run, tmp_path):
    with pytest.raises(errors.InputNotFound, match="no run there"):
        results.Run(tmp_path)
    with pytest.raises(errors.InputNotFound, match="results of 2 stage"):
        run.metrics(stage=3)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(errors.DataError, match="damaged"):
        results.Run(tmp_path)


def test_the_report_is_one_page_by_itself(run):
    page = (run.directory / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and "<script" not in page
    assert page.count("<figure>") == min(
        report.MISTAKES, 179 - sum(e["correct"] for e in run.metrics()["per_class"].values())
    )
    assert f"{run.metrics(stage=2)['accuracy']:.4f}" in page


def test_strange_names_are_text_in_the_report(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (20, 8, 8, 3), np.uint8)
    from tfpar import prepare

    data = prepare.dataset((images, np.arange(20) % 2), tmp_path / "d", validation_fraction=0.5)
    data = data._replace(name="<b>&$x$", class_names=["<script>", "$\\frac$"])
    run = train.run(tiny(shape=(8, 8, 3), classes=2), data, tmp_path / "r", stages=[train.Stage(1, 1e-6)], verbose=0)
    page = (run.directory / "report.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_claims_are_false_where_they_do_not_hold(run, digits, capsys):
    one, other = tiny(seed=1), tiny(seed=2)
    assert check.same_weights(one, one) and not check.same_weights(one, other)
    assert check.exact_metrics(run)
    assert check.same_order(digits.train, devices.strategy(simulate=3), global_batch_size=12)
    mirrored = tiny(devices.strategy(simulate=2))
    assert check.replicas_in_sync(mirrored)
    mirrored.weights[0].value.values[1].assign_add(np.ones(mirrored.weights[0].shape, np.float32))
    assert not check.replicas_in_sync(mirrored)
    said = capsys.readouterr().out
    assert "same weights: True (" in said and "replicas in sync: False (2 replica(s)" in said


def test_a_wrong_count_is_noticed(run, tmp_path):
    import json
    import shutil

    shutil.copytree(run.directory, tmp_path / "r")
    path = tmp_path / "r" / "stages" / "02" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["per_class"]["3"]["correct"] += 1
    path.write_text(json.dumps(metrics))
    assert not check.exact_metrics(results.Run(tmp_path / "r"))


def test_chinese_class_names_are_drawn_without_a_warning_whatever_fonts_there_are(monkeypatch, run):
    class Font:
        name = "Noto Sans CJK SC"

    monkeypatch.setattr(report.font_manager.fontManager, "ttflist", [Font, *report.font_manager.fontManager.ttflist])
    assert report._families()[:2] == ["DejaVu Sans", "Noto Sans CJK SC"]
    monkeypatch.undo()
    monkeypatch.setattr(report, "_families", lambda: ["DejaVu Sans"])  # which has no Chinese characters
    monkeypatch.setattr(run, "class_names", ["苹果", "香蕉", *map(str, range(8))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert report._image(report.confusion(run), "x").startswith("<img")
