"""Prepare: pictures per second from JPEG files to a verified directory, beside decoding the same files and nothing else.

    python -m tests.benchmarks.prepare PHOTOS

Decoding alone is Pillow on as many threads as cores, and TensorFlow's `decode_jpeg` in a `tf.data` pipeline.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests import benchmarks

NAMES = ["decode_pillow", "decode_tensorflow", "prepare-224", "prepare-96"]


def _decode_pillow(paths) -> None:
    from PIL import Image

    def decode(path):
        with Image.open(path) as image:
            image.load()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(decode, paths))


def _decode_tensorflow(paths) -> None:
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices([str(path) for path in paths])
    for _ in dataset.map(lambda path: tf.io.decode_jpeg(tf.io.read_file(path)), num_parallel_calls=tf.data.AUTOTUNE):
        pass


def _prepare(photos: str, side: int) -> None:
    from tfpar import prepare

    with tempfile.TemporaryDirectory() as place:
        prepare.dataset(photos, f"{place}/data", image_size=side)


def _contender(name: str, photos: str) -> None:
    paths = sorted(path for path in Path(photos).rglob("*") if path.is_file())

    def turn() -> float:
        started = time.perf_counter()
        if name.startswith("decode"):
            globals()[f"_{name}"](paths)
        else:
            _prepare(photos, int(name.split("-")[1]))
        return len(paths) / (time.perf_counter() - started)

    benchmarks.answer(turn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    numbers = benchmarks.take_turns(__spec__.name, NAMES, given.photos, turns=given.turns)
    benchmarks.table(numbers, "decode_pillow", "pictures per second")
    benchmarks.write("prepare", numbers)


if __name__ == "__main__":
    _contender(*sys.argv[2:]) if sys.argv[1:2] == ["--contender"] else main()
