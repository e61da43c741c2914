"""Strategies and the one line about them."""

import subprocess
import sys

import pytest
import tensorflow as tf

from tfpar import devices, errors


def test_describe():
    line = devices.describe(devices.strategy(simulate=4), global_batch_size=128, shards=8)
    assert line == "4 replicas (CPU:0, CPU:1, CPU:2, CPU:3): global batch 128 -> 32 per replica, in 8 shards"
    assert devices.describe(devices.strategy()) == "1 replica (CPU:0)"


def test_one_device_is_tensorflows_default_strategy():
    assert devices.strategy() is tf.distribute.get_strategy() is devices.strategy(simulate=1)
    assert devices.is_default(devices.strategy()) and not devices.is_default(devices.strategy(simulate=2))


@pytest.mark.parametrize("simulate", [0, -1, "2", 1.5, True, 257, 10**9])
def test_wrong_numbers(simulate):
    with pytest.raises(errors.SettingsError, match="whole number from 1 to 256"):
        devices.strategy(simulate=simulate)


def test_too_late_says_what_to_do():
    program = "import tensorflow as tf; tf.zeros(1); from tfpar import devices, errors\n"
    program += "try: devices.strategy(simulate=3)\nexcept errors.SettingsError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert "before anything else uses TensorFlow (restart the kernel first)" in done.stdout
