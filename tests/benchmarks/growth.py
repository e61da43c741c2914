"""Growth: time and memory as images, classes and replicas grow, as a table and as a picture.

    python -m tests.benchmarks.growth

Every point is a process of its own. Images are read at 28 px in batches of 256; classes and replicas are steps of a
small network on 8 px pictures, 8 shards.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

from tests import benchmarks

POINTS = {
    "images": [1_000, 10_000, 100_000, 1_000_000],
    "classes": [10, 100, 1_000, 10_000],
    "replicas": [1, 2, 4, 8],
}


def _images(number: int) -> float:
    from tfpar import devices, engine

    split = (np.zeros((number, 28, 28, 1), np.uint8), np.zeros(number, np.int32))
    batches = iter(engine.train_batches(split, devices.strategy(), global_batch_size=256))
    return _time(lambda: [next(batches) for _ in range(200)]) / (200 * 256)


def _step(classes: int, replicas: int) -> float:
    import keras

    from tfpar import devices, engine, models, steps

    strategy = devices.strategy(simulate=replicas)
    with strategy.scope():
        model = models.small_cnn((8, 8, 1), classes)
        model.compile(keras.optimizers.SGD(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    step = steps.Step(model, shards=8)
    split = (np.zeros((2000, 8, 8, 1), np.uint8), np.arange(2000, dtype=np.int32) % classes)
    batches = iter(engine.train_batches(split, strategy, global_batch_size=128))
    return _time(lambda: step(batches, 20)) / (20 * 128)


def _time(thing) -> float:
    """Return the median seconds of five times."""
    taken = []
    for turn in range(6):
        started = time.perf_counter()
        thing()
        if turn:
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def _point(kind: str, number: str) -> None:
    value = int(number)
    seconds = _images(value) if kind == "images" else _step(value, 1) if kind == "classes" else _step(10, value)
    print("point", seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _draw(results: dict) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    for column, (kind, points) in enumerate(results.items()):
        for row, (index, label, unit) in enumerate(
            [(1, "microseconds an image", 1e6), (2, "memory of the process, GB", 1e-9)]
        ):
            axes = figure.add_subplot(2, 3, 3 * row + column + 1)
            axes.plot([point[0] for point in points], [point[index] * unit for point in points], marker="o")
            axes.set(xscale="log", xlabel=kind, ylabel=label if column == 0 else None)
            numbers = [point[0] for point in points]
            axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
            axes.set_xticks([], minor=True)
            axes.set_ylim(bottom=0)
    figure.savefig(benchmarks.RESULTS / "growth.png", dpi=100)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    results = {}
    for kind, numbers in POINTS.items():
        results[kind] = []
        for number in numbers:
            command = [sys.executable, "-m", __spec__.name, "--point", kind, str(number)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            _word, seconds, memory = done.stdout.strip().splitlines()[-1].split()
            results[kind].append((number, float(seconds), float(memory)))
            print(
                f"  {number:>10,} {kind:10} {1e6 * float(seconds):9.2f} microseconds an image   {float(memory) / 1e9:.2f} GB"
            )
    benchmarks.write("growth", results)
    _draw(results)


if __name__ == "__main__":
    _point(*sys.argv[2:]) if sys.argv[1:2] == ["--point"] else main()
