"""From turns to a table and a verdict: every part of a step that was put into made-up turns is found again."""

import csv
import io

import numpy as np
import pytest

from tfpar import errors, scaling
from tfpar.scaling import report

TURNS, STEPS = 3, 20
PARTS = {"compute": 20.0, "python": 0.5, "machine": 1.0, "input": 1.5, "exchange": 2.0, "waiting": 2.5}


def turn(devices, kind, seconds, waits):
    """Return a turn in which all steps take equally long, given in milliseconds; the first takes twice as long, but with real data."""
    first = 1 if kind in ("real", "input") else 2
    steps = [[first * each / 1000, *[each / 1000] * (STEPS - 1)] for each in seconds]
    return {"devices": devices, "kind": kind, "seconds": steps, "waits": [[each / 1000] * STEPS for each in waits]}


def content(workers=2, slow=1, turns=TURNS, **changed):
    """Return what `scaling.json` holds where the worker `slow` is last and all others wait for it; its core is slower by 7 ms."""
    parts = PARTS | changed
    one = parts["compute"] + parts["python"]
    several = one + parts["machine"] + parts["waiting"] + parts["exchange"]
    waits = [parts["exchange"] + parts["waiting"] * (worker != slow) for worker in range(workers)]
    each = [
        turn(1, "real", [one + parts["input"]], [0.1]), turn(1, "constant", [one], [0.1]),
        turn(1, "several", [one - parts["python"] * 7 / 8], [0.1]),
        turn(workers, "real", [several + parts["input"]] * workers, waits), turn(workers, "constant", [several] * workers, waits),
        turn(workers, "alone", [several - parts["exchange"] - parts["waiting"]] * workers, [0] * workers),
        turn(workers, "apart", [one + parts["machine"] + 7 * (worker == slow) for worker in range(workers)], [0.1] * workers),
        turn(workers, "input", [4.0] * workers, [0] * workers),
    ]  # fmt: skip
    return {
        "format": 1, "devices": [1, workers], "batch": 64, "all_reduce": "ordered", "device": "worker", "cores": 1,
        "seconds": 3.0, "gradient_bytes": 1000, "turns": each * turns,
    }  # fmt: skip


def test_every_part_is_found_again():
    one, two = scaling.Report(content()).rows
    assert {name: two[f"{name}_ms"] for name in PARTS} == pytest.approx(PARTS)
    assert sum(PARTS.values()) == pytest.approx(two["step_ms"])
    assert one["efficiency"] == 1 and two["efficiency"] == pytest.approx(22 / 27.5)
    assert two["images_per_second"] == pytest.approx(2 * 64 / 0.0275)
    assert (one["exchange_ms"], one["waiting_ms"], one["machine_ms"]) == (0, 0, 0)
    assert (two["constant_ms"], two["without_exchange_ms"], two["independent_ms"]) == pytest.approx((26, 21.5, 25))


def test_the_exchange_alone_is_the_smallest_wait_of_each_step():
    """Two workers that are late in turns: both wait as long, and nobody is to blame."""
    found = content(waiting=0.0)
    for each in found["turns"]:
        if each["devices"] == 2 and each["kind"] in ("real", "constant"):
            each["waits"] = [[0.002, 0.010] * (STEPS // 2), [0.010, 0.002] * (STEPS // 2)]
    row = scaling.Report(found).rows[1]
    assert row["exchange_ms"] == pytest.approx(2) and row["waiting_ms"] == pytest.approx(4)
    assert row["last"] == 0.5
    assert "waiting for each other" in scaling.Report(found).verdict


@pytest.mark.parametrize(
    "part, size, words",
    [
        ("input", 15.0, "2 workers, input-bound"),
        ("exchange", 15.0, "2 workers, communication-bound"),
        ("waiting", 15.0, "2 workers, waiting for worker 1, last in 100% of the steps"),
        ("machine", 15.0, "bound by what they share"),
        ("python", 15.0, "bound by Python"),
        ("compute", 40.0, "compute-bound"),
    ],
)
def test_the_verdict_names_the_largest_loss_and_what_would_help(part, size, words):
    found = scaling.Report(content(**{part: size}))
    step = sum((PARTS | {part: size}).values())
    assert words in found.verdict and f"a step takes {step:.1f} ms" in found.verdict
    assert f"{part} {size:.1f} ms" in found.verdict and " would help: " in found.verdict
    assert found.verdict.count(". ") == 1  # two sentences
    if part != "compute":
        left = f"a step would take {step - 15:.1f} ms, {2 * 64 / (step - 15) * 1000:,.0f} images a second"
        assert left in found.verdict
    assert "pauses rarer than 1 in 57 steps" in found.verdict
    assert "pauses" not in scaling.Report(content(turns=60)).verdict


def test_the_slowest_of_four_is_named():
    found = scaling.Report(content(workers=4, slow=2, waiting=30.0))
    assert "waiting for worker 2" in found.verdict and found.rows[1]["waiting_ms"] == pytest.approx(30)


def test_a_difference_below_zero_is_nothing_and_the_parts_still_add_up():
    row = scaling.Report(content(input=-1.0, machine=-2.0)).rows[1]
    assert row["input_ms"] == row["machine_ms"] == 0
    assert sum(row[f"{name}_ms"] for name in PARTS) == pytest.approx(row["step_ms"])


def test_what_a_prediction_needs():
    measured = scaling.Report(content()).measured()
    assert (measured.step_seconds, measured.batch, measured.gradient_bytes) == (pytest.approx(0.022), 64, 1000)
    assert measured.steps == {2: pytest.approx(0.0275)} and measured.all_reduce == "ordered"
    assert measured.input_images_per_second == pytest.approx(2 * 64 / 0.004)
    np.testing.assert_allclose(measured.samples, [0.0205] * 57)  # the first step of a turn is left out
    assert scaling.predict(scaling.Report(content()), "cpu-1GbE", [2, 4]).num_rows == 2


def test_files(tmp_path):
    found = scaling.Report(content())
    found.write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"scaling.{end}" for end in ("csv", "json", "png", "txt")
    ]
    assert scaling.load(tmp_path) == found
    rows = list(csv.DictReader(io.StringIO((tmp_path / "scaling.csv").read_text())))
    assert [{name: float(text) for name, text in row.items()} for row in rows] == found.rows
    assert (tmp_path / "scaling.txt").read_text() == f"{found}\n"
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_the_file_that_says_that_there_is_a_measurement_comes_last(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(report.files, "write", lambda path, content: written.append(path.name))
    scaling.Report(content()).write(tmp_path)
    assert written[-1] == "scaling.json" and len(written) == 4


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 2}'])
def test_a_damaged_measurement_is_refused_in_one_line(text, tmp_path):
    (tmp_path / "scaling.json").write_text(text)
    with pytest.raises(errors.DataError, match=r"scaling\.json: .*; measure again$"):
        scaling.load(tmp_path)


def test_no_measurement_names_the_command(tmp_path):
    with pytest.raises(
        errors.InputNotFound, match=r"No such file or directory\); make it with: tfpar scaling DATA --out"
    ):
        scaling.load(tmp_path)
