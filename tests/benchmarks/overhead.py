"""Overhead: N simulated replicas beside one device, the end of `fit`, the exchange, and the start of the program.

    python -m tests.benchmarks.overhead

Simulated replicas share the cores, so at best N of them are as fast as one. `ordered` and `fast` are the exchange alone,
for a number of weights in millions. After the last step `fit` should return at once: 50 runs, the longest is shown.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

import numpy as np

from tests import benchmarks

REPLICAS = [1, 2, 4, 8]
SHARDS, BATCH = 8, 128
STEPS = 4
MILLIONS = [0.27, 2.5, 25.0]


def _compiled(strategy, model):
    import keras

    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def _resnet(replicas: int):
    """Return a function that takes STEPS steps of ResNet-20 in 8 shards and returns images per second."""
    from tests.benchmarks import training
    from tfpar import devices, engine, models, steps

    strategy = devices.strategy(simulate=replicas)
    with strategy.scope():
        model = _compiled(strategy, models.resnet((32, 32, 3), 10, depth=20))
    step = steps.Step(model, shards=SHARDS)
    batches = iter(engine.train_batches(training.arrays(), strategy, global_batch_size=BATCH))

    def turn() -> float:
        started = time.perf_counter()
        step(batches, STEPS)
        return STEPS * BATCH / (time.perf_counter() - started)

    return turn


def _exchange(replicas: int, millions: float, all_reduce: str):
    """Return a function that exchanges so many weights once, one shard a replica, and returns milliseconds."""
    import keras
    import tensorflow as tf

    from tfpar import devices, engine, steps
    from tfpar.diagnose import profiling

    strategy = devices.strategy(simulate=replicas)
    with strategy.scope():
        inputs = keras.Input((int(millions * 1e5), 1, 1), dtype="uint8")
        outputs = keras.layers.Dense(10, use_bias=False)(
            keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
        )
        model = _compiled(strategy, keras.Model(inputs, outputs))
    step = steps.Step(model, all_reduce=all_reduce)
    split = (np.zeros((replicas, *model.input_shape[1:]), np.uint8), np.zeros(replicas, np.int32))
    step(iter(engine.train_batches(split, strategy, global_batch_size=replicas)), 1)
    alone, count = profiling._alone(step, profiling._exchange), tf.constant(5)

    def turn() -> float:
        started = time.perf_counter()
        alone(count)
        return 1000 * (time.perf_counter() - started) / 5

    return turn


def _fit_returns(replicas: int):
    """Return a function that fits 50 times and returns the longest time from the last step to the end, in seconds."""
    import keras

    from tfpar import devices, engine, models, prepare, steps

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.end = time.perf_counter()

    strategy = devices.strategy(simulate=replicas)
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        data = prepare.dataset("digits", f"{place}/digits")
    with strategy.scope():
        model = _compiled(strategy, models.small_cnn(data.image_shape, 10))
    steps.install(model, shards=SHARDS)
    batches, clock = engine.train_batches(data.train, strategy, global_batch_size=BATCH), Clock()

    def turn() -> float:
        waited = []
        for _ in range(50):
            model.fit(batches, steps_per_epoch=3, verbose=0, callbacks=[clock], shuffle=False)
            waited.append(time.perf_counter() - clock.end)
        return max(waited)

    return turn


def _contender(name: str, kind: str) -> None:
    numbers = name.split("-")
    if kind == "replicas":
        turn = _resnet(int(numbers[0]))
    elif kind == "fit":
        turn = _fit_returns(int(numbers[0]))
    else:
        turn = _exchange(int(numbers[0]), float(numbers[1]), numbers[2])
    benchmarks.answer(turn)


def _start() -> dict[str, list[float]]:
    commands = {
        "python -c pass": ["-c", "pass"],
        "import tfpar": ["-c", "import tfpar"],
        "tfpar --help": ["-m", "tfpar", "--help"],
        "import tensorflow": ["-c", "import tensorflow"],
    }
    taken = {name: [] for name in commands}
    for _ in range(5):
        for name, words in commands.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, capture_output=True, env=os.environ)
            taken[name].append(time.perf_counter() - started)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    turns = parser.parse_args().turns
    module, results = __spec__.name, {}
    print(f"ResNet-20 at 32 px, batch {BATCH}, {SHARDS} shards, by replicas")
    results["replicas"] = benchmarks.take_turns(module, [f"{r}-replicas" for r in REPLICAS], "replicas", turns=turns)
    benchmarks.table(results["replicas"], "1-replicas", "images per second")
    print("the longest of 50 times from the last step to the return of fit")
    results["fit"] = benchmarks.take_turns(module, ["1-replicas", "2-replicas", "4-replicas"], "fit", turns=1)
    benchmarks.table(results["fit"], "1-replicas", "seconds", ".4f")
    for millions in MILLIONS:
        print(f"the exchange of {millions} million weights")
        names = [f"{r}-{millions}-{kind}" for r in REPLICAS[1:] for kind in ("ordered", "fast")]
        results[f"exchange {millions}"] = benchmarks.take_turns(module, names, "exchange", turns=turns)
        benchmarks.table(results[f"exchange {millions}"], names[0], "milliseconds", ".1f")
    print("from the start of a process to its end")
    results["start"] = _start()
    benchmarks.table(results["start"], "python -c pass", "seconds", ".3f")
    benchmarks.write("overhead", results)


if __name__ == "__main__":
    _contender(*sys.argv[2:]) if sys.argv[1:2] == ["--contender"] else main()
