"""Keras on several workers: fails as it is, and works when repaired. A repair that is no longer needed fails here."""

import json
from pathlib import Path

import fitting
import pytest
from networks import tiny
from processes import together

from tfpar.steps import keras_repairs

PROGRAM = Path(__file__).with_name("fitting.py")


def run(data, out, which, *, count):
    """Run the program as so many workers; return what the chief wrote."""
    together(out.parent, [str(PROGRAM), str(data), str(out), which], count=count)
    return json.loads(out.read_text())


@pytest.mark.slow
def test_fit_on_two_workers_is_fit_on_one(digits, tmp_path):
    fitting.main(digits.directory, tmp_path / "one", "install")
    one = json.loads((tmp_path / "one").read_text())
    two = run(digits.directory, tmp_path / "two", "install", count=2)
    for found in (one, two):
        found.pop("predict")  # Keras' own: its batches, and so its bits, depend on the workers
        validated, evaluated = found.pop("validated"), found.pop("evaluate")
        found["accuracy"] = [validated["val_accuracy"][0], evaluated["accuracy"]]  # counts of images, so the same
    assert one == two
    assert two["callback"] == [["accuracy", "loss"]] * 2


@pytest.mark.by_hand
def test_keras_needs_its_repairs_and_they_are_enough(digits, tmp_path):
    plain = run(digits.directory, tmp_path / "plain", "plain", count=2)
    assert plain["fit"].startswith("ValueError"), "Keras' fit works on several workers: take the repairs away"
    assert plain["evaluate"].startswith("ValueError"), "Keras' evaluate works on several workers: take its repair away"
    assert not plain["predict"].startswith("ValueError"), "Keras' predict needs a repair again"
    repaired = run(digits.directory, tmp_path / "repaired", "repair", count=2)
    assert repaired["fit"]["loss"][1] < repaired["fit"]["loss"][0] < 3
    assert 0.5 < repaired["evaluate"]["accuracy"] <= 1 and len(repaired["predict"]) == 64


def test_one_process_is_left_as_it_is():
    model = tiny()
    before = dict(vars(model))
    keras_repairs.repair(model)
    assert dict(vars(model)) == before
