"""Data, runs and checkpoints of an earlier version open, and continue with the same bits.

`earlier/` was made by version 0.1.0 (commit 59af0d8), in which all modules still lay in one folder:

    cd tests/promises && python -c "import test_earlier_version as t; t.make('earlier')"

The directory in `run.json` was shortened afterwards, since it named the machine.
"""

import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from networks import StopAfter

from tfpar import devices, prepare, results, train

EARLIER = Path(__file__).parent / "earlier"
STAGES = [(2, 0.5, 0.1), (1, 0.1, 0.0)]  # of 5 steps each epoch


def built():
    keras.utils.set_random_seed(0)
    with devices.strategy(simulate=1).scope():
        inputs = keras.Input((6, 6, 1), dtype="uint8")
        x = keras.layers.Rescaling(1 / 255)(inputs)
        x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(x))
        x = keras.layers.Dropout(0.2)(keras.layers.Flatten()(x))
        model = keras.Model(inputs, keras.layers.Dense(3)(x), name="earlier")
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(momentum=0.9), loss, metrics=["accuracy"])
    return model


def trained(data, directory, *callbacks):
    return train.run(
        built(), data, directory, stages=[train.Stage(*stage) for stage in STAGES], global_batch_size=16, shards=2,
        augment="crop-flip", class_weights=[1, 2, 1], steps_per_call=1, checkpoint_seconds=0, callbacks=callbacks, verbose=0,
    )  # fmt: skip


def make(directory):
    """Prepare data, train a run to its end, and stop another one in its second stage."""
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (90, 6, 6, 1), np.uint8), np.arange(90) % 3
    directory = Path(directory)
    data = prepare.dataset((images, labels), directory / "data")
    trained(data, directory / "finished")
    with pytest.raises(train.Interrupted):
        trained(data, directory / "stopped", StopAfter(14))
    for folder in directory.glob("*/tensorboard"):
        shutil.rmtree(folder)


def weights(run):
    return [np.asarray(value) for value in run.model().get_weights()]


WRITTEN_BY_KERAS_3_15 = pytest.mark.skipif(
    not hasattr(keras.layers.BatchNormalization(), "renorm"),
    reason="Keras before 3.13 writes another configuration of the model",
)


@pytest.mark.slow
@WRITTEN_BY_KERAS_3_15
def test_a_run_of_an_earlier_version_continues(tmp_path):
    """On the processor that made it with the same bits; on another one the last bits may differ from the start."""
    shutil.copytree(EARLIER, tmp_path / "earlier")
    data = prepare.load(tmp_path / "earlier" / "data")
    continued = trained(data, tmp_path / "earlier" / "stopped")
    finished = results.Run(tmp_path / "earlier" / "finished")
    assert continued.history["step"].to_pylist() == finished.history["step"].to_pylist() == [6, 12, 18]
    afresh = trained(data, tmp_path / "afresh")
    same_processor = all(map(np.array_equal, weights(afresh), weights(finished)))
    for ours, theirs in zip(weights(continued), weights(finished), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0 if same_processor else 1e-3, atol=0 if same_processor else 1e-4)


@WRITTEN_BY_KERAS_3_15
def test_a_finished_run_of_an_earlier_version_opens(tmp_path):
    shutil.copytree(EARLIER, tmp_path / "earlier")
    data = prepare.load(tmp_path / "earlier" / "data")
    run = trained(data, tmp_path / "earlier" / "finished")  # answered from what is there
    assert run.finished and run.stages == 2 and len(run.predictions(stage=1)) == 9
    assert run.metrics()["examples"] == 9
