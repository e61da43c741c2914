"""The learning rate is a function of the step's number."""

import json

import keras
import numpy as np
import pytest

from tfpar import errors, schedule
from tfpar.schedule import Schedule, Stage


@pytest.mark.parametrize(
    ("text", "stage"),
    [("10@0.2:0.02", Stage(10, 0.2, 0.02)), ("5@0.02", Stage(5, 0.02)), ("1@1e-3:0", Stage(1, 1e-3, 0.0)),
     ("3@0.1:0~cosine/all", Stage(3, 0.1, 0.0, "all", "cosine")), ("3@0.1/head,block5_*", Stage(3, 0.1, None, ("head", "block5_*"))),
     ("3@0.1~constant", Stage(3, 0.1, None, None, "constant"))],
)  # fmt: skip
def test_parse(text, stage):
    assert schedule.parse(text) == stage


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10",
        "@0.1",
        "0@0.1",
        "5@-1",
        "5@nan",
        "5@0.1:inf",
        "5@a",
        "5@0.1:0.2:0.3",
        "1.5@0.1",
        "5@0",
        "5@0.1~step",
        "5@0.1:0~constant",
        "5@0.1~half",
        "5@0.1/",
        "5@0.1/head,",
    ],
)
def test_what_is_no_stage(text):
    with pytest.raises(errors.SettingsError):
        schedule.parse(text)


def test_rates():
    stage = Stage(10, 0.2, 0.02)
    rates = [schedule.rate(stage, step=s, steps=100, warmup=10, factor=0.5) for s in range(101)]
    assert rates[0] == pytest.approx(0.5 * 0.2 / 10) and rates[9] == pytest.approx(0.5 * (0.2 - 0.18 * 0.09))
    assert rates[50] == pytest.approx(0.5 * 0.11) and rates[100] == pytest.approx(0.01)  # where the next stage begins
    assert {schedule.rate(Stage(5, 0.1), step=s, steps=50) for s in range(50)} == {0.1}


def test_only_sgd_is_scaled():
    sgd, adamw = keras.optimizers.SGD(), keras.optimizers.AdamW()
    assert schedule.scale(sgd, 128) == 0.5 and schedule.scale(sgd, 128, scale_learning_rate=False) == 1
    assert schedule.scale(adamw, 128) == 1 and schedule.scale(keras.optimizers.LossScaleOptimizer(sgd), 512) == 2


B, N = 0.04, 1000  # the rate at the beginning, and the steps of the stage
STEPS = np.array([0, 1, 2, 99, 100, 101, 250, 499, 500, 777, 998, 999])
FORMULAS = [  # of Caffe's documentation, and of Loshchilov and Hutter 2017 for cosine
    (Stage(1, B, 0.01, schedule="linear"), B + (0.01 - B) * STEPS / N),
    (Stage(1, B, schedule="linear"), B * (1 - STEPS / N)),
    (Stage(1, B, 0.01, schedule="cosine"), 0.01 + (B - 0.01) * (1 + np.cos(np.pi * STEPS / N)) / 2),
    (Stage(1, B, schedule="constant"), np.full(12, B)),
    (Stage(1, B, schedule=Schedule("step", gamma=0.1, steps=(100,))), B * 0.1 ** np.floor(STEPS / 100)),
    (Stage(1, B, schedule=Schedule("multistep", gamma=0.5, steps=(100, 500, 998))), B * 0.5 ** np.digitize(STEPS, [100, 500, 998])),
    (Stage(1, B, schedule=Schedule("exp", gamma=0.999)), B * 0.999**STEPS),
    (Stage(1, B, schedule=Schedule("inv", gamma=1e-4, power=0.75)), B * (1 + 1e-4 * STEPS) ** -0.75),
    (Stage(1, B, schedule=Schedule("poly", power=2)), B * (1 - STEPS / N) ** 2),
    (Stage(1, B, schedule=Schedule("poly", power=0.5, steps=(1200,))), B * (1 - STEPS / 1200) ** 0.5),
    (Stage(1, B, schedule=Schedule("sigmoid", gamma=0.05, steps=(500,))), B / (1 + np.exp(-0.05 * (STEPS - 500)))),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "expected"), FORMULAS)
def test_a_schedule_has_the_rates_of_its_formula(stage, expected):
    stage = schedule.checked(stage)
    rates = [schedule.rate(stage, step=int(s), steps=N, factor=0.5) for s in STEPS]
    np.testing.assert_allclose(rates, 0.5 * expected, rtol=2e-7)
    assert schedule.checked(json.loads(json.dumps(schedule.plain(stage)))) == stage
    assert schedule.rates(stage).startswith("0.04")


REFUSED = [
    ({"schedule": Schedule("step", gamma=0.1)}, "with step just these parameters: gamma, steps"),
    ({"schedule": Schedule("exp", gamma=0.1, power=2)}, "with exp just these parameters: gamma"),
    ({"schedule": Schedule("cosine", gamma=0.1)}, "with cosine just these parameters: none"), ({"schedule": Schedule("half", 1)}, "linear or cosine"),
    ({"schedule": Schedule("multistep", gamma=0.1, steps=(3, 2))}, "in rising order"),
    ({"schedule": Schedule("step", gamma=0.1, steps=(3, 4))}, "one number"),
    ({"schedule": Schedule("inv", gamma=-1, power=1)}, "gamma=-1"), ({"schedule": Schedule("exp", gamma=1.1)}, "gamma=1.1"),
    ({"schedule": ""}, "linear or cosine"),
    ({"schedule": Schedule("exp", gamma=0.9), "final_learning_rate": 0.1}, "none with exp"),
    ({"schedule": 5}, "linear, cosine, constant, or a Schedule"), ({"schedule": "half"}, "linear or cosine"),
    ({"schedule": "inv"}, "with inv just these parameters: gamma, power"),
    ({"trainable": []}, "the name or pattern of a layer"), ({"trainable": [""]}, "the name or pattern"), ({"trainable": True}, "trainable"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "said"), REFUSED)
def test_a_stage_that_contradicts_itself_is_refused(given, said):
    with pytest.raises(errors.SettingsError, match=said):
        schedule.checked(Stage(1, 0.1, **given))


@pytest.mark.parametrize(("epochs", "steps", "said"), [(1, 13, "1 epoch of 13 steps"), (2, 1, "2 epochs of 1 step")])
def test_one_epoch_is_singular(epochs, steps, said):
    described = schedule.describe(Stage(epochs, 0.1), epoch_steps=steps, factor=1, global_batch_size=256)
    assert described.startswith(f"{said}, learning rate 0.1")


def test_a_stage_of_an_earlier_version_is_written_as_it_was():
    assert schedule.plain(Stage(5, 0.1)) == [5, 0.1, None] and schedule.checked([5, 0.1, None]) == Stage(5, 0.1)
