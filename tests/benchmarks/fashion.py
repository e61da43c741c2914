"""Fashion-MNIST, whole commands: `tfpar train` beside the recipe of TensorFlow's distributed Keras tutorial.

    python -m tests.benchmarks.fashion FASHION           # a directory from `tfpar prepare fashion_mnist FASHION`

The tutorial's recipe: one convolution, Adam, batch 64, 12 epochs, `map().cache().shuffle().batch()`, a MirroredStrategy.
Each is a process of its own and reads the same arrays; what counts is the time from its start to its end, and the
accuracy on the 10,000 test images. `tutorial-onednn` has oneDNN switched on, as tfpar's command line does.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time

from tests import benchmarks

TRAIN = {"tfpar-0.92": "--stage 3@0.2:0.02 --stage 1@0.02:0", "tfpar-0.93": "--weight-decay 0.001 --stage 9@0.4:0"}
NAMES = ["tutorial", "tutorial-onednn", *TRAIN]


def tutorial(directory: str) -> float:
    """Train as the tutorial does, and return the accuracy."""
    import keras
    import numpy as np
    import tensorflow as tf

    def arrays(split):
        return [np.load(f"{directory}/{split}/{name}.npy") for name in ("images", "labels")]

    def scale(image, label):
        return tf.cast(image, tf.float32) / 255, label

    strategy = tf.distribute.MirroredStrategy()
    batch = 64 * strategy.num_replicas_in_sync
    train = tf.data.Dataset.from_tensor_slices(tuple(arrays("train"))).map(scale).cache().shuffle(10_000).batch(batch)
    evaluated = tf.data.Dataset.from_tensor_slices(tuple(arrays("validation"))).map(scale).batch(batch)
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((28, 28, 1)),
                keras.layers.Conv2D(32, 3, activation="relu"),
                keras.layers.MaxPooling2D(),
                keras.layers.Flatten(),
                keras.layers.Dense(64, activation="relu"),
                keras.layers.Dense(10),
            ]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(loss=loss, optimizer=keras.optimizers.Adam(), metrics=["accuracy"])

    def decay(epoch):
        return 1e-3 if epoch < 3 else 1e-4 if epoch < 7 else 1e-5

    with tempfile.TemporaryDirectory() as place:
        callbacks = [
            keras.callbacks.TensorBoard(log_dir=f"{place}/logs"),
            keras.callbacks.ModelCheckpoint(filepath=f"{place}/ckpt_{{epoch}}.weights.h5", save_weights_only=True),
            keras.callbacks.LearningRateScheduler(decay),
        ]
        model.fit(train, epochs=12, callbacks=callbacks, verbose=2)
    return model.evaluate(evaluated, verbose=0)[1]


def _command(name: str, directory: str, place: str) -> tuple[list[str], dict]:
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    if name.startswith("tutorial"):
        extra = {"TF_ENABLE_ONEDNN_OPTS": "1"} if name.endswith("onednn") else {}
        return [sys.executable, "-m", __spec__.name, "--tutorial", directory], environment | extra
    command = [sys.executable, "-m", "tfpar", "train", directory, "--run", f"{place}/{name}", *TRAIN[name].split()]
    return command, environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fashion")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    given = parser.parse_args()
    results = {name: [] for name in given.only}
    for _ in range(given.turns):
        for name in given.only:
            with tempfile.TemporaryDirectory() as place:
                command, environment = _command(name, given.fashion, place)
                started = time.perf_counter()
                done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
                seconds = time.perf_counter() - started
            accuracy = float(re.findall(r"\baccuracy ([\d.]+)", done.stdout)[-1])
            results[name].append({"seconds": seconds, "accuracy": accuracy})
            print(f"  {name:16} {seconds:7.1f} seconds   {accuracy:.4f}", flush=True)
    benchmarks.write("fashion", results)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--tutorial"]:
        print(f"accuracy {tutorial(sys.argv[2]):.4f}")
    else:
        main()
