"""What a run wrote is read back, compared and drawn."""

import json
import re
import warnings

import numpy as np
import pytest
from networks import tiny

from tfpar import check, devices, errors, results, train
from tfpar.results import predictions, report, tables


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
    assert results.compare(str(run.directory), run.directory) == same
    assert same["same_bits"] and same["agreed"] == 179 and same["gained"] == same["lost"] == 0
    for wrong in ({"stages": (1,)}, {"stages": 1}, {"stages": (1, "2")}, {"stages": (0, 1)}):
        with pytest.raises(errors.SettingsError, match="stage"):
            results.compare(run, run, **wrong)
    stages = results.compare(run, run, stages=(1, 2))
    assert not stages["same_bits"]
    correct = [sum(entry["correct"] for entry in run.metrics(stage=s)["per_class"].values()) for s in (1, 2)]
    assert stages["gained"] - stages["lost"] == correct[1] - correct[0]


def test_what_is_not_there(run, tmp_path):
    with pytest.raises(errors.InputNotFound, match="no run there"):
        results.Run(tmp_path)
    with pytest.raises(errors.InputNotFound, match="results of 2 stage"):
        run.metrics(stage=3)
    with pytest.raises(errors.SettingsError, match="compile='no': give True or False"):
        run.model(compile="no")
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


def test_the_report_says_how_to_repeat_it_and_what_it_found(run):
    page = (run.directory / "report.html").read_text()
    correct = sum(entry["correct"] for entry in run.metrics()["per_class"].values())
    assert f"<p class=result>{run.metrics()['accuracy']:.4f}: {correct} of 179</p><pre>train.run(...)</pre>" in page
    assert "<title>run: tiny on digits</title>" in page and "name=viewport" in page
    assert "1,618 train, 179 validation images 8x8x1, 10 classes" in page and "prefers-color-scheme: dark" in page
    assert all(f"{version} {run.facts['environment'][version]}" in page for version in report.VERSIONS)
    captions = re.findall("<figcaption>(.*?); is <b>", page)
    assert captions and all(len(re.findall(r"\d%", each)) == report.LIKELY for each in captions)


def test_classes_stand_worst_first():
    logits = np.eye(4, dtype=np.float32)[[1, 1, 0, 1, 1, 1]]
    table = predictions.table(logits, (None, np.int32([0, 0, 0, 1, 1, 3]), list("abcdef")))
    titles, *rows = tables.of_classes(table, ["w", "x", "y", "z"])
    assert rows == [
        ("z", 1, 0, 0, "-", "0.000", "x (1)"), ("w", 3, 1, 1, "1.000", "0.333", "x (2)"),
        ("x", 2, 5, 2, "0.400", "1.000", ""), ("y", 0, 0, 0, "-", "-", ""),
    ]  # fmt: skip
    lines = tables.text([titles, *rows]).splitlines()
    assert lines[2] == "w           3        1        1      1.000   0.333      x (2)" and len(lines) == 5
    assert tables.markup([("<", 1)]).count("<td>") == 2 and "&lt;" in tables.markup([("<", 1)])


def test_runs_side_by_side(run, digits, tmp_path):
    other = train.run(tiny(seed=1), digits, tmp_path / "o", stages=[train.Stage(1, 0.1)], shards=2, verbose=0)
    table = tables.of_runs({"a": run, "b": other})
    rows = {name: values for name, *values in table}
    assert rows[""] == ["a", "b"] and rows["shards"] == ["1", "2"] and "seed" not in rows and "data" not in rows
    assert rows["stages"] == [json.dumps(each.settings["stages"]) for each in (run, other)]
    compared = results.compare(run, other)
    assert rows["accuracy"] == [tables.result(run), tables.result(other)] and rows["same bits"] == [True, False]
    assert rows["gained"] == [0, compared["gained"]] and rows["epochs"] == ["2", "1"]
    report.write_comparison({"a": run, "b": other}, tmp_path / "compare.html")
    page = (tmp_path / "compare.html").read_text()
    assert page.count("<img") == 3 and not re.findall(r'(?:src|href)="(?!data:)', page)


def test_many_classes_and_large_pictures_stay_small(run, monkeypatch):
    classes, random = 1000, np.random.default_rng(0)
    labels = random.integers(0, classes, 200).astype(np.int32)
    images = random.integers(0, 255, (200, 320, 320, 3), np.uint8)
    table = predictions.table(
        random.standard_normal((200, classes)).astype(np.float32), (None, labels, ["x.png"] * 200)
    )
    monkeypatch.setattr(run, "class_names", [f"class {i}" for i in range(classes)])
    monkeypatch.setattr(results.Run, "predictions", lambda self, stage=None: table)
    parts = (
        report._mistakes(table, run.class_names, (images,)),
        tables.markup(tables.of_classes(table, run.class_names)),
    )
    assert sum(map(len, parts)) + len(report._image(report.confusion(run), "x")) < 5e6
    assert parts[1].count("<tr>") == 1 + classes


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
