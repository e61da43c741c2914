"""Where a step of two workers goes: `scaling.measure` with the network, batches and cores of `scaling`.

    python -m tests.benchmarks.waiting

The exchange alone is what a better exchange, or one that overlaps with computing, could gain. What a worker waits for the slowest
is the machine's unevenness, which every synchronous step pays, and no exchange can spare.
"""

from __future__ import annotations

import argparse
import tempfile

from tests import benchmarks
from tests.benchmarks import scaling as pair
from tests.benchmarks import training
from tfpar import prepare, scaling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        data = prepare.dataset(training.arrays(), f"{place}/data")
        size = {"devices": [1, 2], "global_batch_size": 2 * pair.BATCH}
        report = scaling.measure(training.compiled, data, f"{place}/out", seconds=given.seconds, **size)
    print(report)
    benchmarks.write("waiting", report.rows)


if __name__ == "__main__":
    main()
