"""Checkpoints: how long one takes, and what share of a run that is at the default interval of 60 seconds.

python -m tests.benchmarks.checkpoint
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

from tests import benchmarks

MODELS = {"small_cnn": (28, 28, 1), "resnet56": (32, 32, 3), "MobileNetV2": (96, 96, 3), "ResNet50": (96, 96, 3)}
INTERVAL = 60.0  # seconds, the default of train.run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    given = parser.parse_args()
    import keras

    from tfpar import models
    from tfpar.steps import objective
    from tfpar.train import checkpoint

    results = {}
    for name, shape in MODELS.items():
        model = models.build(name, shape, 10)
        model.compile(keras.optimizers.SGD(momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        objective.build(model)
        variables, seconds = checkpoint.variables_of(model), []
        with tempfile.TemporaryDirectory() as place:
            for turn in range(given.turns):
                started = time.perf_counter()
                checkpoint.save(place, variables, {"step": turn})
                seconds.append(time.perf_counter() - started)
        share = statistics.median(seconds) / (INTERVAL + statistics.median(seconds))
        size = sum(variable.value.shape.num_elements() for variable in variables) * 4 / 1e6
        print(
            f"  {name:14} {size:7.1f} MB   {benchmarks.spread(seconds, '.3f'):>24} seconds   {share:.2%} of the time at 60 s"
        )
        results[name] = {"megabytes": size, "seconds": seconds, "share": share}
    benchmarks.write("checkpoint", results)


if __name__ == "__main__":
    main()
