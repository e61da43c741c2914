"""How fast this machine answers with the digit classifier of page 11, in every way that people deploy it.

    python -m tests.benchmarks.platforms

The ways take turns, in one process, one image or a batch of 256 a call. LiteRT needs `pip install -e ".[litert]"`.
`difference` is in parts of the largest logit.
"""

from __future__ import annotations

import argparse
import tempfile

import keras

from tests import benchmarks
from tfpar import platforms, prepare


def classifier(data) -> keras.Model:
    """Return the network of page 11 after 30 epochs."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([
        keras.Input((8, 8, 1), dtype="uint8"),
        keras.layers.Rescaling(1 / 256),
        keras.layers.Conv2D(8, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(10),
    ])  # fmt: skip
    rate = keras.optimizers.schedules.CosineDecay(0.01, 30 * 26)
    model.compile(keras.optimizers.AdamW(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(data.train.images[:], data.train.labels[:], batch_size=64, epochs=30, verbose=0)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each number, in each turn")
    given, results = parser.parse_args(), {}
    with tempfile.TemporaryDirectory() as place:
        data = prepare.dataset("digits", f"{place}/digits")
        model, split = classifier(data), data.validation
        for _ in range(given.turns):
            for row in platforms.measure(model, split.images[:], split.labels[:], seconds=given.seconds):
                for key, value in row._asdict().items():
                    results.setdefault(row.way, {}).setdefault(key, []).append(value)
    print(f"{'':16}{'p50 in us':>32}{'p99 in us':>36}{f'images/s, batch {platforms.BATCH}':>44}")
    for name, found in results.items():
        del found["way"]
        times = [benchmarks.spread([1e6 * seconds for seconds in found[key]], ",.1f") for key in ("p50", "p99")]
        print(f"{name:16}{times[0]:>32}{times[1]:>36}{benchmarks.spread(found['throughput']):>44}")
    benchmarks.write("platforms", results)


if __name__ == "__main__":
    main()
