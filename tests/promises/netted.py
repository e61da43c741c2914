"""One worker of `test_network.py`: `tfpar`, which stops in a phase until the test has done something to the network.

netted.py PHASE tfpar's arguments: when the phase is reached, the file PHASE appears in the working directory, and the worker goes
on when the file `go` is there. With `none` it never stops.
"""

import functools
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as tfpar's commands do, before they import TensorFlow
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tfpar import cli
from tfpar.workers import rendezvous

GO_SECONDS = 60


def pause(phase):
    if not Path(phase).exists():
        Path(phase).touch()
        deadline = time.monotonic() + GO_SECONDS
        while not Path("go").exists():
            assert time.monotonic() < deadline, "nobody said go"
            time.sleep(0.02)


def paused(function, phase, *, times=1, after=False):
    """Return the function that pauses in its given call, before it or after it."""
    calls = []

    @functools.wraps(function)
    def wrapped(*arguments, **options):
        calls.append(1)
        if len(calls) == times and not after:
            pause(phase)
        found = function(*arguments, **options)
        if len(calls) == times and after:
            pause(phase)
        return found

    return wrapped


def main(phase, *arguments):
    if phase == "met":
        rendezvous.meet = paused(rendezvous.meet, phase, after=True)
    elif phase != "none":
        from tfpar import steps
        from tfpar.results import writing
        from tfpar.train import checkpoint, inference, loop

        if phase == "train":
            steps.Step.__call__ = paused(steps.Step.__call__, phase, times=4)
        elif phase == "inference":
            inference.Inference._run = paused(inference.Inference._run, phase)  # while it is traced, before it runs
        elif phase == "save":
            loop.checkpoint.save = paused(checkpoint.save, phase, times=2)
        elif phase == "end":
            loop.writing.write_facts = paused(writing.write_facts, phase, times=2, after=True)
    return cli.main(list(arguments))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
