"""`scaling.measure`: 1, 2, 4 .. devices of this machine train for a while, and a report says where each step's time goes.

On CPUs a device is a worker process with cores of its own, because the replicas of one process share its threads; on GPUs
the devices belong to one process. All processes are started together and measured in short turns, so another program on
the machine slows all of them alike. There are four kinds of turns on N devices: with the real data and the exchange
(`real`), with one constant batch (`constant`), without the exchange (`alone`), and N independent processes (`apart`). Two
more measure Python and the input: `several` steps in one call into TensorFlow, and the `input` without any training.
The batch of one device is the same on every number of devices (weak scaling).
"""

import contextlib
import itertools
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection

from tqdm import tqdm

from tfpar import errors, files, machine, validate
from tfpar.scaling.report import FORMAT, SEVERAL, Report
from tfpar.settings import DEFAULT_BATCH, checked, multiple
from tfpar.workers import cluster, launcher

TURNS, WARM_TURNS = 5, 2
WARM_STEPS = 4
LEAST_STEPS = 50  # of each kind
LIMIT_SECONDS = 600.0  # until a process is ready, and for a turn beyond what it should take; more is a hang


def measure(
    model: str | Callable,
    data,
    directory: str | os.PathLike,
    *,
    devices: Sequence[int] | None = None,
    global_batch_size: int | None = None,
    all_reduce: str = "ordered",
    seconds: float = 120,
) -> Report:
    """Measure training on 1, 2, 4 .. devices of this machine, and return how much time a step loses on each number, and to what.

    Args:
        model: a name for the command line, such as `"resnet20"`, or a function without arguments that builds and compiles the
            model. The measuring processes import the function, so it must lie in a module, not in a notebook's cell.
        data: from `prepare.load`.
        directory: gets `scaling.json` (every step's seconds), `scaling.csv` (one row for each number of devices),
            `scaling.png` and `scaling.txt`, all at the end.
        devices: numbers of devices, 1 among them; None is 1, 2, 4 .. up to all GPUs, or else all cores. On CPUs each worker
            gets `cores // max(devices)` cores.
        global_batch_size: images of a step on the largest number of devices, a multiple of that number; None is 128, rounded
            up. Each device gets the same number of images on every number of devices (weak scaling).
        all_reduce: `"ordered"` (the same bits on any number of devices) or `"fast"` (a ring).
        seconds: of all turns together, without the start of the processes; more if fewer than 50 steps of a kind would fit.

    Raises:
        errors.SettingsError: there are not so many devices, or an argument is out of its range.
        errors.Unavailable: a measuring process ended or hangs; the message holds the last line that it wrote.
        errors.OutputError: the directory cannot be made.

    Example:
        >>> report = scaling.measure("small_cnn", prepare.load("data/digits"), "runs/scaling", devices=[1, 2])
        >>> print(report)
        >>> table = scaling.predict(report, "cpu-1GbE", [4, 8])
    """
    if cluster():
        raise errors.SettingsError("scaling measures one machine: run it without TF_CONFIG and the TFPAR_ variables")
    if not hasattr(data, "directory"):
        validate.reject("data", data, "what prepare.load returns")
    gpus, there = machine.gpus(), len(machine.cores())
    counts = _counts(devices, *((len(gpus), "GPUs") if gpus else (there, "cores")))
    most = counts[-1]
    batch = -(-DEFAULT_BATCH // most)
    if global_batch_size is not None:
        images = validate.integer("global_batch_size", global_batch_size, 1, validate.MOST_BATCH)
        batch = multiple(images, most, f"global batch {images} cannot be divided evenly among {most} devices") // most
    checked("all_reduce", all_reduce)
    validate.number("seconds", seconds, 1, 1e6)
    task = {"model": _pickled(model), "data": os.path.abspath(data.directory), "batch": batch, "all_reduce": all_reduce}
    cores = [None] * most if gpus else launcher.cores_of_workers(most, there // most)
    directory = files.make_directory(validate.path("directory", directory))
    with contextlib.ExitStack() as stack, tqdm(desc="starting processes", disable=None) as bar:
        hello, turns = _take_turns(_started(stack, counts, gpus, cores, task), seconds, bar)
    of = {"devices": counts, "device": "GPU" if gpus else "worker", "batch": batch, "all_reduce": all_reduce}
    report = Report({"format": FORMAT, **of, "seconds": seconds, **hello, "turns": turns})
    report.write(directory)
    return report


def _counts(devices: Sequence[int] | None, there: int, what: str) -> list[int]:
    """Return the numbers of devices in ascending order."""
    if devices is None:
        return [1 << power for power in range(there.bit_length())]
    given = list(devices) if isinstance(devices, Sequence) else []
    if 1 not in given or any(count not in range(1, there + 1) for count in given):
        rule = f"whole numbers up to {there}, the {what} of this machine, with 1, which the others are compared with"
        validate.reject("devices", devices, rule)
    return sorted({int(count) for count in given})


def _pickled(model: str | Callable) -> bytes:
    """Return the model's name, or where its function lies, for another process."""
    found = b""
    with contextlib.suppress(pickle.PicklingError, AttributeError, TypeError):  # a lambda, or a function inside another
        found = pickle.dumps(model)
    if not found or b"__main__" in found or not (isinstance(model, str) or callable(model)):
        importable = "a function of a module that can be imported (in a notebook: %%writefile mine.py)"
        validate.reject("model", model, f"the name of a model, or {importable}")
    return found


class _Process:
    """A process that measures, and the connection to it."""

    def __init__(self, task: dict, cores: set[int] | None, variables: dict[str, str]):
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in end()
        self.connection, other = connection.Pipe()
        with other:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tfpar.scaling.worker", str(other.fileno())], pass_fds=[other.fileno()],
                env=os.environ | variables | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.errors, start_new_session=True,
            )  # fmt: skip
        if cores:
            os.sched_setaffinity(self.process.pid, cores)
        self.send(task)

    def send(self, message) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended, and who waits for the answer will say so
            self.connection.send(message)

    def failure(self) -> errors.Unavailable:
        code = self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="backslashreplace").strip().splitlines()
        said = lines[-1] if code > 0 and lines else f"exit code {code}"
        return errors.Unavailable(f"a measuring process ended ({said}); fix that, and measure again")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()
        self.errors.close()


def _started(stack: contextlib.ExitStack, counts, gpus: list[str], cores: list, task: dict) -> dict:
    """Start all processes, and return them: the groups of 2 and more devices, and as 1 those that are apart."""

    def process(index: int, variables: dict[str, str]) -> _Process:
        found = _Process(task, cores[index], variables)
        stack.callback(found.end)
        return found

    def on(first: int, last: int) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[first:last]), "TF_FORCE_GPU_ALLOW_GROWTH": "true"} if gpus else {}

    groups = {1: [process(index, on(index, index + 1)) for index in range(counts[-1])]}
    for count in counts[1:]:
        workers = [on(0, count)] if gpus else launcher.variables_of_workers(count)
        groups[count] = [process(index, variables) for index, variables in enumerate(workers)]
    return groups


def _take_turns(groups: dict[int, list[_Process]], seconds: float, bar: tqdm) -> tuple[dict, list[dict]]:
    """Let all groups take turns; return what a process says of itself, and every turn."""
    hello = {count: _answers(processes, LIMIT_SECONDS)[0] for count, processes in groups.items()}[1]
    plan = [(1, kind, groups[1][:1]) for kind in ("real", "constant", "several")]
    plan.append((max(groups), "input", groups[max(groups)] if len(groups) > 1 else groups[1][:1]))
    for count in list(groups)[1:]:
        plan += [(count, kind, groups[count]) for kind in ("real", "constant", "alone")]
        plan.append((count, "apart", groups[1][:count]))
    bar.set_description("measuring")
    bar.reset(total=len(plan) * (WARM_TURNS + TURNS))
    turns, share = [], seconds / len(plan) / TURNS
    steps = dict.fromkeys(range(len(plan)), WARM_STEPS)
    for turn, (number, (count, kind, processes)) in itertools.product(range(-WARM_TURNS, TURNS), enumerate(plan)):
        several = kind == "several"
        order = "constant" if several or kind == "apart" else kind, steps[number], SEVERAL if several else 1
        for process in processes:
            process.send(order)
        answers = _answers(processes, LIMIT_SECONDS + 10 * share)
        bar.update()
        if turn == -1:  # the last that warms up tells how many steps fit
            least = max(-(-LEAST_STEPS // TURNS) + 1, hello["ready"] if kind in ("real", "input") else 0)
            steps[number] = max(least, int(share / answers[0]["seconds"].mean()))
        elif turn >= 0:
            turns.append({"devices": count, "kind": kind} | {
                name: [row.round(7).tolist() for answer in answers for row in answer[name]] for name in answers[0]
            })  # fmt: skip
    return hello, turns


def _answers(processes: list[_Process], seconds: float) -> list:
    """Return what each process answers."""
    found, deadline = {}, time.monotonic() + seconds
    while len(found) < len(processes):
        missing = {each.connection: each for each in processes if each not in found}
        ready = connection.wait(missing, deadline - time.monotonic())
        if not ready:
            raise errors.Unavailable(f"a measuring process did not answer within {seconds:,.0f} s; measure again")
        for each in ready:
            try:
                found[missing[each]] = each.recv()
            except (EOFError, ConnectionResetError) as error:
                raise missing[each].failure() from error
            if isinstance(found[missing[each]], Exception):
                raise found[missing[each]]
    return [found[process] for process in processes]
