"""What the estimate says, beside what a step takes."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfpar import cli, devices, errors, models, prepare, results, schedule
from tfpar.diagnose import memory, profiling
from tfpar.steps import step

STAGES = [schedule.Stage(2, 0.1), schedule.Stage(1, 0.01)]
FACTOR = 2  # between estimate and measurement, either way: kernels need room of their own, others work in place


def compiled(data, strategy=None, build=models.small_cnn):
    with (strategy or tf.distribute.get_strategy()).scope():
        model = build(data.image_shape, data.num_classes)
        model.compile(
            keras.optimizers.SGD(0.1, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
    return model


# The peak of a process never falls, so a step of eight images goes first: what TensorFlow needs anyway is in it.
PROGRAM = """
import json, re, sys
import keras, numpy as np, tensorflow as tf
from tfpar import devices, engine, models, prepare, schedule, steps
from tfpar.diagnose import memory
name, side, batch, directory = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
pixels = np.zeros((batch, side, side, 3), np.uint8)
data = prepare.dataset((pixels, np.arange(batch) % 3), directory, validation_fraction=0.1)
model = models.build(name, data.image_shape, data.num_classes)
model.compile(keras.optimizers.SGD(0.1, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
found = memory.estimate(model, data, [schedule.Stage(1, 0.1)], global_batch_size=batch)
def peak_after(rows):
    step = steps.Step(model)
    step(iter(engine.train_batches(data.train, devices.strategy(), global_batch_size=rows)), 1)
    # Not ru_maxrss: that begins with what the process that started this one held.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
before = peak_after(8)
print(json.dumps([found.parts, peak_after(batch) - before]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side", "batch"), [("small_cnn", 96, 128), pytest.param("resnet20", 32, 512, marks=pytest.mark.by_hand)]
)
def test_the_estimate_is_near_the_measured_peak(name, side, batch, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name, str(side), str(batch), str(tmp_path / "d")], capture_output=True, text=True, timeout=300
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    parts, measured = json.loads(done.stdout.splitlines()[-1])
    assert parts["activations"] > 0.9 * (parts["activations"] + parts["gradients"])  # they dominate here
    estimated = parts["activations"] + parts["input"]
    assert estimated / FACTOR < measured < estimated * FACTOR, (estimated, measured)


def test_a_graph_that_can_be_counted_by_hand():
    @tf.function
    def forward(x, kernel):
        hidden = tf.matmul(x, kernel)  # 1000 floats for each of 8 rows
        flat = tf.reshape(hidden, [-1])  # the same ones
        return tf.reduce_sum(hidden) + tf.reduce_sum(flat)

    graph = forward.get_concrete_function(tf.TensorSpec([8, 1]), tf.TensorSpec([1, 1000])).graph
    assert 8 * 1000 * 4 <= memory._peak_bytes(graph) < 1.01 * 8 * 1000 * 4


def test_numbers_of_the_run(digits):
    found = memory.estimate(compiled(digits), digits, STAGES, global_batch_size=128, shards=4)
    assert (found.epoch_steps, found.steps, found.shards, found.replicas) == (13, 39, 4, 1)
    weights = sum(int(np.prod(v.shape)) for v in models.small_cnn(digits.image_shape, 10).variables)
    assert found.parts["weights"] == 4 * weights and found.parts["optimizer"] >= 4 * 70_000
    assert found.parts["input"] == memory.AHEAD * 128 * 64
    one = memory.estimate(compiled(digits), digits, STAGES, global_batch_size=128, shards=1)
    assert (
        1.7 < one.parts["activations"] / found.parts["activations"] < 2.3
    )  # those of two of the four shards at a time
    assert found.parts["gradients"] > one.parts["gradients"]
    assert found.largest_batch % 4 == 0 and "39 steps in all" in str(found)


def test_replicas_share_the_machine(digits, monkeypatch):
    monkeypatch.setattr(memory.machine, "meminfo", lambda _key: 4_000_000_000)
    two = devices.strategy(simulate=2)
    found = memory.estimate(compiled(digits, two), digits, STAGES, global_batch_size=128)
    assert found.available == 2_000_000_000 and "64 images per replica" in str(found)
    monkeypatch.setattr(memory.machine, "meminfo", lambda _key: 100)
    assert "no batch fits" in str(memory.estimate(compiled(digits, two), digits, STAGES))
    monkeypatch.setattr(memory.machine, "meminfo", lambda _key: None)
    assert memory.estimate(compiled(digits, two), digits, STAGES).largest_batch is None


def test_wrong_numbers_are_refused(digits):
    with pytest.raises(errors.SettingsError, match="cannot be cut into 3 equal shards"):
        memory.estimate(compiled(digits), digits, STAGES, global_batch_size=128, shards=3)


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_dry_run_traces_the_network_once(digits, replicas, monkeypatch):
    traced, trace = [], step.Shard

    def counted(*arguments, **options):
        traced.append(trace(*arguments, **options))
        return traced[-1]

    monkeypatch.setattr(step, "Shard", counted)
    model = compiled(digits, devices.strategy(simulate=replicas))
    assert "an epoch trains for about" in profiling.dry_run(model, digits, stages=STAGES, global_batch_size=64)
    assert len(traced) == 1


def test_a_dry_run_trains_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    prepare.dataset("digits", "d")
    assert cli.main(["train", "d", "--dry-run", "--stage", "3@0.1", "--global-batch-size", "64"]) == 0
    said = capsys.readouterr().out
    assert "26 steps an epoch of 64 images, 78 steps in all" in said and "nothing was trained" in said
    assert not (tmp_path / "runs").exists()
    with pytest.raises(errors.InputNotFound):
        results.Run("runs/d")
