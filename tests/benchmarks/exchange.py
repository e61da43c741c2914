"""The exchange between workers: `ordered` in pairs, `fast`, and a gather of everything.

    python -m tests.benchmarks.exchange --workers 8 --megabytes 20

All workers run on this machine over loopback and sum a gradient of so many megabytes, one shard each; the contenders take turns
within one start. The table shows milliseconds of the slowest worker, and what a worker's memory grows by at most, in gradients.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import benchmarks

CONTENDERS = ("ordered", "fast", "gather")
LIMIT_SECONDS = 900


def _resident(key: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def _worker(megabytes: float, turns: int, out: str) -> None:
    import tensorflow as tf

    from tfpar import devices
    from tfpar.steps import exchange
    from tfpar.workers import group as group_file

    strategy = devices.strategy()
    group = group_file.WorkerGroup(strategy)
    size = int(megabytes * 250_000)
    found: dict = {name: [] for name in CONTENDERS}
    memory = {}

    def made(name):
        exchanges = exchange.Exchange(
            group.size, group.size, "fast" if name == "fast" else "ordered", several_workers=True
        )

        def on_replica():
            context = tf.distribute.get_replica_context()
            gradient = tf.random.stateless_uniform([size], [group.index, 1])
            if name == "gather":
                return exchange.tree(tf.unstack(context.all_gather(gradient[tf.newaxis], axis=0), num=group.size))[0]
            return exchanges(context, [gradient], tf.zeros([1, 2]))[0][0]

        return tf.function(lambda: strategy.run(on_replica), autograph=False)

    functions = {name: made(name) for name in CONTENDERS}
    for name in CONTENDERS:
        group.wait()
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts anew
        functions[name]()
        memory[name] = (_resident("VmHWM") - before) / (4 * size)
    for _ in range(turns):
        for name in CONTENDERS:
            group.wait()
            started = time.perf_counter()
            functions[name]()
            found[name].append(1000 * (time.perf_counter() - started))
    group.wait()
    Path(out).write_text(json.dumps({"milliseconds": found, "memory": memory}))


def _start(workers: int, megabytes: float, turns: int, **variables: str) -> list[dict]:
    """Start the workers, and return what each found."""
    from tfpar.workers import launcher

    ports = ",".join(map(str, launcher._free_ports(workers)))
    several = {"TFPAR_NUM_WORKERS": str(workers), "TFPAR_HOST_TEMPLATE": "127.0.0.1", "TFPAR_PORT": ports}
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TFPAR_WAIT_SECONDS": str(LIMIT_SECONDS)}
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", __spec__.name, "--worker", str(megabytes), str(turns)]
        processes = [
            subprocess.Popen(
                [*command, f"{place}/{index}"],
                env=os.environ | several | quiet | variables | {"JOB_COMPLETION_INDEX": str(index)},
                stderr=subprocess.DEVNULL,
            )
            for index in range(workers)
        ]
        try:
            codes = [process.wait(timeout=LIMIT_SECONDS) for process in processes]
        finally:
            for process in processes:
                process.kill()
        if any(codes):
            raise SystemExit(f"the workers ended with {codes}")
        return [json.loads(Path(f"{place}/{index}").read_text()) for index in range(workers)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--turns", type=int, default=7)
    given = parser.parse_args()
    timed = _start(given.workers, given.megabytes, given.turns)
    # A start of its own in which freed memory goes back to the system at once: otherwise each of a worker's many threads keeps some.
    sized = _start(given.workers, given.megabytes, 1, MALLOC_MMAP_THRESHOLD_="1000000")
    numbers = {
        name: [max(turn) for turn in zip(*(one["milliseconds"][name] for one in timed), strict=True)]
        for name in CONTENDERS
    }
    memory = {name: max(one["memory"][name] for one in sized) for name in CONTENDERS}
    benchmarks.table(numbers, "fast", "milliseconds")
    for name, gradients in memory.items():
        print(f"  memory of {name:8} at most {gradients:.1f} gradients, the worker's own among them")
    found = {"workers": given.workers, "megabytes": given.megabytes, "milliseconds": numbers, "memory": memory}
    benchmarks.write("exchange", found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        _worker(float(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    else:
        main()
