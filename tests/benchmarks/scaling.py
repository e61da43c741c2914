"""Scaling: 2 workers with one core each beside 1 worker with one core. ResNet-20 at 32 px, batch 64 each.

    python -m tests.benchmarks.scaling

The efficiency is images per second of two by twice those of one, turn for turn. `tfpar-2-gathers` is tfpar's step with
the exchange it had first, two gathers instead of one packed sum; `tfpar-2-metrics` reads Keras' metrics after each step,
as `fit` does; `torch` is DistributedDataParallel with gloo. `tfpar-2-apart` is two workers of one each that know nothing
of each other: what this machine gives two cores at once, and so the limit of the others.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import socket
import subprocess
import sys
import time

from tests import benchmarks
from tests.benchmarks import training

BATCH, STEPS = 64, 16
SETTLE_SECONDS = 1.0  # the second worker of the contender before is a step ahead, and computes it now
NAMES = [
    "tfpar-1",
    "tfpar-2",
    "tfpar-2-fast",
    "tfpar-2-gathers",
    "tfpar-2-metrics",
    "tfpar-2-apart",
    "torch-1",
    "torch-2",
]


def _contender(name: str, index: int = 0, port: int = 0) -> None:
    """Be a worker of a contender; the first starts the second, which runs along as the exchange of each step lets it."""
    kind, count, *variant = name.split("-")
    _on_core(index)
    if variant == ["apart"]:
        return _apart()
    second = None
    if int(count) == 2 and index == 0:
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
            port, its_port = one.getsockname()[1], two.getsockname()[1]
        os.environ |= {
            "TFPAR_NUM_WORKERS": "2", "TFPAR_HOST_TEMPLATE": "127.0.0.1", "TFPAR_PORT": f"{port},{its_port}",
            "JOB_COMPLETION_INDEX": "0",
        }  # fmt: skip
        command = [sys.executable, "-m", __spec__.name, "--second", name, str(port)]
        second = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=os.environ | {"JOB_COMPLETION_INDEX": "1"}
        )
    thing = tfpar(int(count), *variant) if kind == "tfpar" else torch(int(count), index, port)
    try:
        while index and port:
            thing()
        benchmarks.answer(lambda: _rate(thing, int(count)))
    finally:
        if second:
            second.kill()


def _on_core(index: int) -> None:
    os.sched_setaffinity(0, range(os.cpu_count()))  # all that may be had: the process that started this one has one
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[index]})


def _rate(thing, workers: int) -> float:
    time.sleep(SETTLE_SECONDS)
    started = time.perf_counter()
    thing()
    return STEPS * BATCH * workers / (time.perf_counter() - started)


def _apart() -> None:
    other, thing = benchmarks.Contender(__spec__.name, "tfpar-1", 1), tfpar(1)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:

        def turn() -> float:
            others = pool.submit(other.turn)
            return _rate(thing, 1) + others.result()

        benchmarks.answer(turn)


def tfpar(workers: int, variant: str = ""):
    import tensorflow as tf

    from tfpar import devices, engine, steps
    from tfpar.steps import exchange

    def two_gathers(_exchange, context, sums, rows):
        total = exchange.tree(tf.unstack(context.all_gather(sums, axis=0), num=workers))
        return total, context.all_gather(rows, axis=0)

    if variant == "gathers":
        exchange.Exchange.__call__ = two_gathers
    strategy = devices.strategy()
    model = training.compiled(strategy)
    step = steps.Step(model, shards=workers, all_reduce="fast" if variant == "fast" else "ordered")
    batches = iter(engine.train_batches(training.arrays(), strategy, global_batch_size=BATCH * workers))
    if variant == "metrics":
        return lambda: [(step(batches, 1), model.get_metrics_result()) for _ in range(STEPS)]
    return lambda: step(batches, STEPS)


def torch(workers: int, index: int, port: int):
    import torch
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    if workers == 1:
        return training.torch(BATCH, STEPS)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=index, world_size=workers)
    return training.torch(BATCH, STEPS, DistributedDataParallel)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    given = parser.parse_args()
    numbers = benchmarks.take_turns(__spec__.name, given.only, turns=given.turns)
    benchmarks.table(numbers, given.only[0], "images per second")
    efficiency = {
        name: [two / (2 * one) for two, one in zip(taken, numbers[f"{name.split('-')[0]}-1"], strict=True)]
        for name, taken in numbers.items()
        if "-2" in name and f"{name.split('-')[0]}-1" in numbers
    }
    for name, values in efficiency.items():
        print(f"  efficiency of {name:18} {benchmarks.spread(values, '.3f')}")
    benchmarks.write("scaling", {"images per second": numbers, "efficiency": efficiency})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contender"]:
        _contender(sys.argv[2], *map(int, sys.argv[3:]))
    elif sys.argv[1:2] == ["--second"]:
        _contender(sys.argv[2], 1, int(sys.argv[3]))
    else:
        main()
