"""Where a step of two workers goes: computing, waiting for the slower one, and the exchange itself.

    python -m tests.benchmarks.waiting

The network, batches and cores of `scaling`. Each worker notes when its gradients are ready and when it has the sum; on
one machine both have the same clock. From the moment when the later one is ready the exchange alone is at work: that is
what a better exchange, or one that overlaps with computing, could gain. What the earlier one waits until then is the
machine's unevenness, which every synchronous step pays, and no exchange can spare.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys

import numpy as np

from tests import benchmarks
from tests.benchmarks import scaling, training

STEPS = 16
LIMIT_SECONDS = 300  # of one turn


def _worker(index: int, steps_before: int = 4) -> None:
    """Train, and print when the gradients of each step were ready and when their sum was there."""
    scaling._on_core(index)
    import tensorflow as tf

    from tfpar import devices, engine, steps
    from tfpar.steps import exchange

    moments, exchanged = [], exchange.Exchange.__call__

    def noted(made, context, sums, rows):
        with tf.control_dependencies([*sums, rows]):
            ready = tf.timestamp()
        with tf.control_dependencies([ready]):
            total, rows = exchanged(made, context, [tf.identity(part) for part in sums], tf.identity(rows))
        with tf.control_dependencies([total, rows]):
            there = tf.timestamp()
        note = tf.py_function(lambda *both: moments.append([float(each) for each in both]), [ready, there], [])
        with tf.control_dependencies([note]):
            return tf.identity(total), rows

    exchange.Exchange.__call__ = noted
    strategy = devices.strategy()
    step = steps.Step(training.compiled(strategy), shards=2)
    batches = iter(engine.train_batches(training.arrays(), strategy, global_batch_size=2 * scaling.BATCH))
    step(batches, steps_before)
    step(batches, STEPS)
    print(json.dumps(moments[steps_before:]))


def _turn() -> dict[str, list[float]]:
    """Start two workers, and return milliseconds of each step by part."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = f"{one.getsockname()[1]},{two.getsockname()[1]}"
    environment = os.environ | {
        "TFPAR_NUM_WORKERS": "2", "TFPAR_HOST_TEMPLATE": "127.0.0.1", "TFPAR_PORT": ports, "TF_CPP_MIN_LOG_LEVEL": "3",
    }  # fmt: skip
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", __spec__.name, "--worker", str(index)], text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=environment | {"JOB_COMPLETION_INDEX": str(index)},
        )
        for index in (0, 1)
    ]  # fmt: skip
    try:
        said = [worker.communicate(timeout=LIMIT_SECONDS) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    if any(worker.returncode for worker in workers):
        raise RuntimeError("\n".join(errors[-300:] for _, errors in said))
    moments = 1000 * np.array([json.loads(text.splitlines()[-1]) for text, _ in said])  # [worker, step, (ready, there)]
    computed = moments[:, 1:, 0] - moments[:, :-1, 1]
    last = moments[:, 1:, 0].max(axis=0)
    return {
        "computing, mean of both": computed.mean(axis=0).tolist(),
        "waiting, mean of both": (last - moments[:, 1:, 0]).mean(axis=0).tolist(),
        "the exchange alone": (moments[:, 1:, 1] - last).mean(axis=0).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    turns = [_turn() for _ in range(parser.parse_args().turns)]
    means = {name: [float(np.mean(turn[name])) for turn in turns] for name in turns[0]}
    whole = [sum(parts) for parts in zip(*means.values(), strict=True)]
    for name, values in means.items():
        shares = [value / total for value, total in zip(values, whole, strict=True)]
        print(f"  {name:26} {benchmarks.spread(values, '.1f'):>24} ms   {benchmarks.spread(shares, '.1%')} of a step")
    benchmarks.write("waiting", {"milliseconds of a step, mean of a turn": means})


if __name__ == "__main__":
    _worker(int(sys.argv[2])) if sys.argv[1:2] == ["--worker"] else main()
