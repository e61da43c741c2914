"""How fast this machine answers with the digit classifier of page 11, in every way that people deploy it.

    python -m tests.benchmarks.platforms

All ways take turns, in one process. LiteRT needs `pip install -e ".[litert]"`.
"""

from __future__ import annotations

import argparse

import keras
import numpy as np
from sklearn.datasets import load_digits

from tests import benchmarks
from tfpar import platforms


def classifier() -> keras.Model:
    """Return the network H of page 11, trained on no image: its weights do not change its speed."""
    keras.utils.set_random_seed(0)
    return keras.Sequential([
        keras.Input((8, 8, 1), dtype="uint8"),
        keras.layers.Rescaling(1 / 256),
        keras.layers.Conv2D(8, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(10),
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each number, in each turn")
    given, model = parser.parse_args(), classifier()
    images = (load_digits().images[:179, :, :, None] * 15).astype(np.uint8)
    ways = platforms.ways(model, images)
    batch = images[np.arange(platforms.BATCH) % len(images)]
    expected = np.asarray(model(batch, training=False))
    results = {
        name: {"difference": float(np.abs(f(batch) - expected).max()), "p50": [], "p99": [], "throughput": []}
        for name, f in ways.items()
    }
    for _ in range(given.turns):
        for name, f in ways.items():
            p50, p99 = platforms.latency(f, images, seconds=given.seconds)
            found = {"p50": p50, "p99": p99, "throughput": platforms.throughput(f, batch, seconds=given.seconds)}
            for key, value in found.items():
                results[name][key].append(value)
    print(f"{'':16}{'p50 in us':>32}{'p99 in us':>36}{f'images/s, batch {platforms.BATCH}':>44}")
    for name, found in results.items():
        times = (benchmarks.spread([1e6 * seconds for seconds in found[key]], ",.1f") for key in ("p50", "p99"))
        print(f"{name:16}{next(times):>32}{next(times):>36}{benchmarks.spread(found['throughput']):>44}")
    benchmarks.write("platforms", results)


if __name__ == "__main__":
    main()
