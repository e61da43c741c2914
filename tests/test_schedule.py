"""The learning rate is a function of the step's number."""

import keras
import pytest

from tfpar import errors, schedule
from tfpar.schedule import Stage


@pytest.mark.parametrize(
    ("text", "stage"),
    [("10@0.2:0.02", Stage(10, 0.2, 0.02)), ("5@0.02", Stage(5, 0.02)), ("1@1e-3:0", Stage(1, 1e-3, 0.0))],
)
def test_parse(text, stage):
    assert schedule.parse(text) == stage


@pytest.mark.parametrize(
    "text", ["", "10", "@0.1", "0@0.1", "5@-1", "5@nan", "5@0.1:inf", "5@a", "5@0.1:0.2:0.3", "1.5@0.1", "5@0"]
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
