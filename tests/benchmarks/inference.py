"""Inference after a stage: images per second over a whole split, beside `model.predict` on the same array in memory.

    python -m tests.benchmarks.inference

`predict` gives logits; tfpar gives the loss of every image as well. `predict-32` has Keras' default batch of 32, `predict-64`
the chunk that tfpar takes.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

from tests import benchmarks

CASES = {"small_cnn 28 px": ("small_cnn", (28, 28, 1), 10_000), "resnet20 32 px": ("resnet20", (32, 32, 3), 1_000)}
NAMES = ["tfpar", "predict-32", "predict-64"]


def _contender(name: str, case: str) -> None:
    import keras

    from tfpar import models
    from tfpar.train import inference

    network, shape, images = CASES[case]
    keras.utils.set_random_seed(0)
    model = models.build(network, shape, 10)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, (images, *shape), np.uint8), random.integers(0, 10, images, np.int32)
    infer = inference.Inference(model)

    def turn() -> float:
        started = time.perf_counter()
        if name == "tfpar":
            infer((pixels, labels))
        else:
            model.predict(pixels, batch_size=int(name.split("-")[1]), verbose=0)
        return images / (time.perf_counter() - started)

    benchmarks.answer(turn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    given, results = parser.parse_args(), {}
    for case in CASES:
        print(case)
        results[case] = benchmarks.take_turns(__spec__.name, NAMES, case, turns=given.turns)
        benchmarks.table(results[case], "predict-32", "images per second")
    benchmarks.write("inference", results)


if __name__ == "__main__":
    _contender(*sys.argv[2:]) if sys.argv[1:2] == ["--contender"] else main()
