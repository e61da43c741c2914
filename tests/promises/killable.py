"""A run that tests kill, started over and over.

A process that has imported TensorFlow, and not used it, forks a child for every line it reads, "REPLICAS PER_CALL
DIRECTORY": so a start costs the tracing, not the import. It prints the child's id, and when that has ended, its exit code.
The child says in a file which phase it is in.
"""

import functools
import os
import sys

import keras
from networks import tiny

from tfpar import devices, prepare, signals, train
from tfpar.results import report, writing
from tfpar.train import checkpoint, inference, loop

STAGES = [train.Stage(2, 0.2, 0.02), train.Stage(2, 0.02)]


def marked(phase, function, place):
    """Return the function with its phase written down while it is at work."""

    @functools.wraps(function)
    def wrapped(*arguments, **options):
        before = os.pread(place, 12, 0)
        os.pwrite(place, phase.ljust(12).encode(), 0)
        try:
            return function(*arguments, **options)
        finally:
            os.pwrite(place, before, 0)

    return wrapped


def run(data, replicas, per_call, directory):
    place = os.open(f"{directory}.phase", os.O_RDWR | os.O_CREAT)
    os.pwrite(place, b"start".ljust(12), 0)
    loop.writing.write_facts = marked("facts", writing.write_facts, place)
    loop.Training._train_stage = marked("train", loop.Training._train_stage, place)
    loop.checkpoint.save = marked("checkpoint", checkpoint.save, place)
    inference.Inference.__call__ = marked("inference", inference.Inference.__call__, place)
    loop.writing.write_stage = marked("stage", writing.write_stage, place)
    loop.report.write = marked("report", report.write, place)
    with signals.StopSignal():
        model = tiny(devices.strategy(simulate=replicas))
        train.run(
            model, prepare.load(data, verify=False), directory, stages=STAGES, global_batch_size=96, shards=4, seed=3,
            augment="crop-flip", steps_per_call=per_call, checkpoint_seconds=0.05, verbose=0,
        )  # fmt: skip


def main(data):
    for line in sys.stdin:
        replicas, per_call, directory = line.split(maxsplit=2)
        child = os.fork()
        if child == 0:
            code = 1
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the parent's ids and codes stay alone on the line
            try:
                run(data, int(replicas), int(per_call), directory.strip())
                code = 0
            except train.Interrupted as stopped:
                code = stopped.exit_code
            finally:
                os._exit(code)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    main(sys.argv[1])
