"""Input from a disk: images per second of a split that is not in the page cache, in blocks and as one permutation.

    python -m tests.benchmarks.cold --gigabytes 8 --directory /where/there/is/room

`sequential` reads the file from its beginning with large reads: the limit of the disk. Before every turn the file is
dropped from the page cache, which asks for no rights, and every turn reads another part of it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests import benchmarks

SHAPE, BATCH, SECONDS = (224, 224, 3), 64, 10.0


def _drop(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sequential(path: str, seed: int) -> float:
    size = BATCH * int(np.prod(SHAPE))
    with open(path, "rb", buffering=0) as file:
        file.seek(seed * size * 50)
        started, images = time.perf_counter(), 0
        while time.perf_counter() - started < SECONDS and len(file.read(size)) == size:
            images += BATCH
        return images / (time.perf_counter() - started)


def mapped(path: str, seed: int, whole: bool) -> float:
    from tfpar import devices, engine
    from tfpar.engine import permutation
    from tfpar.prepare import arrays

    if whole:
        permutation.WHOLE_BYTES = 1 << 60
    images = arrays._mapped(Path(path), ((os.path.getsize(path) - 128) // int(np.prod(SHAPE)), *SHAPE))
    batches = iter(
        engine.train_batches(
            (images, np.zeros(len(images), np.int32)), devices.strategy(), global_batch_size=BATCH, seed=seed
        )
    )
    next(batches)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS:
        next(batches)
        count += BATCH
    return count / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=8)
    parser.add_argument("--directory", default=".")
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    numbers = {"sequential": [], "blocks": [], "whole": []}
    with tempfile.TemporaryDirectory(dir=given.directory) as place:
        path = f"{place}/images.npy"
        _write(path, int(given.gigabytes * 1e9) // int(np.prod(SHAPE)))
        for seed in range(given.turns):
            for name, taken in numbers.items():  # a process for each turn: pages that one has mapped stay in the cache
                _drop(path)
                command = [sys.executable, "-m", __spec__.name, "--turn", name, path, str(seed)]
                taken.append(
                    float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
                )
    benchmarks.table(numbers, "sequential", "images per second")
    benchmarks.write("cold", numbers)


def _write(path: str, examples: int) -> None:
    random = np.random.default_rng(0)
    with open(path, "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (examples, *SHAPE)}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(0, examples, BATCH):
            file.write(random.bytes(BATCH * int(np.prod(SHAPE))))


def _turn(name: str, path: str, seed: str) -> None:
    print(sequential(path, int(seed)) if name == "sequential" else mapped(path, int(seed), name == "whole"))


if __name__ == "__main__":
    _turn(*sys.argv[2:]) if sys.argv[1:2] == ["--turn"] else main()
