"""Where the time of a training step goes: waiting for input, compute, all-reduce, update, Python.

Parts of a step run at the same time, so none can be read off a clock. What is measured instead, in turns: the step as
it is; the step on one batch that is there already; the exchange alone, on arrays of the right size; the update alone;
and one step per call against several. The differences are the parts. The kernels come from TensorFlow's own profiler,
whose trace is kept for TensorBoard.

Example:
    >>> found = profiling.profile(model, data, "runs/fashion.profile", global_batch_size=256)
    >>> print(found)
    a step takes ... ms: ... images a second
      waiting for input     ... ms    ...%
      compute               ... ms    ...%
      ...
"""

import contextlib
import json
import os
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import keras
import tensorflow as tf
from matplotlib.figure import Figure

from tfpar import engine, errors, files, machine, workers
from tfpar.diagnose import memory
from tfpar.engine import distribute
from tfpar.settings import MOST_STEPS_PER_CALL
from tfpar.steps import tensorflow_repairs
from tfpar.steps.step import Step, all_reduce_left_to_the_step
from tfpar.train.loop import CALL_SECONDS

TURNS = 5
TURN_SECONDS = 0.5
SEVERAL = 8  # steps of a call that is compared with calls of one


class Profile(NamedTuple):
    """Seconds of one step by part, seconds of one step by kind of operation (over all threads), and what to do."""

    images: int
    parts: dict[str, float]
    operations: dict[str, float]
    steps_per_call: int
    advice: str

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())

    def __str__(self) -> str:
        lines = [f"a step takes {1000 * self.seconds:.1f} ms: {self.images / self.seconds:,.0f} images a second"]
        lines += [_row(name, value, self.seconds) for name, value in self.parts.items()]
        busy = sum(self.operations.values())
        lines += [f"its operations, over all threads {1000 * busy:.1f} ms"]
        lines += [_row(name, value, busy) for name, value in list(self.operations.items())[:6]]
        return "\n".join([*lines, self.advice])


def profile(model: keras.Model, data, directory: str | os.PathLike, **settings) -> Profile:
    """Measure where a training step's time goes, and write a picture and a trace for TensorBoard.

    The model is as before afterwards. It takes about half a minute, and more where a step is slow.

    Args:
        model: compiled under its strategy, as for `train.run`.
        data: from `prepare.load`.
        directory: gets `profile.json`, `profile.png` and `plugins/profile/`, which `tensorboard --logdir` shows.
        settings: as for `train.run`, such as `global_batch_size=128, shards=4`.

    Raises:
        errors.SettingsError: the settings contradict each other.
        errors.OutputError: the directory cannot be made.
    """
    if isinstance(getattr(model, "distribute_strategy", None), tf.distribute.MultiWorkerMirroredStrategy):
        raise errors.SettingsError("profile looks at one process: run it without TF_CONFIG and the TFPAR_ variables")
    with memory.step_of(model, data, settings) as (step, given), _unchanged(model):
        directory = files.make_directory(directory)
        batches = iter(engine.train_batches(data.train, step.strategy, **given.of_the_batches()))
        seconds = _measured(step, batches)
        with tf.profiler.experimental.Profile(str(directory)):
            step(batches, 2)
    operations = {kind: taken / 2 for kind, taken in operations_of(directory).items()}
    automatic = max(1, min(MOST_STEPS_PER_CALL, int(CALL_SECONDS / seconds["whole"])))
    per_call = automatic if given.steps_per_call == "auto" else given.steps_per_call
    parts = _parts(seconds, per_call)
    found = Profile(given.global_batch_size, parts, operations, per_call, _advice(parts, operations, step))
    files.write(directory / "profile.json", json.dumps(found._asdict(), indent=1) + "\n")
    draw(found).savefig(directory / "profile.png", dpi=120)
    return found


def dry_run(model: keras.Model, data, **settings) -> str:
    """Say what a run would take: its memory and, in one process with that memory, its time from a few steps.

    The model is as before afterwards.
    """
    with memory.step_of(model, data, settings) as (step, given):
        found = memory.of_step(step, given, data)
        if workers.cluster() or (found.largest_batch is not None and found.largest_batch < found.global_batch_size):
            return str(found)
        with _unchanged(model):
            batches = iter(engine.train_batches(data.train, step.strategy, **given.of_the_batches()))
            step(batches, 1)  # traces
            started = time.perf_counter()
            step(batches, SEVERAL)
            seconds = (time.perf_counter() - started) * found.epoch_steps / SEVERAL
    return f"{found}\nan epoch trains for about {seconds:,.1f} s"


@contextlib.contextmanager
def _unchanged(model: keras.Model):
    """Give all variables their values back at the end."""
    before = [(v, keras.ops.convert_to_numpy(v)) for v in [*model.variables, *model.optimizer.variables]]
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)
        model.reset_metrics()


def _measured(step: Step, batches) -> dict[str, float]:
    """Return the seconds of one step of each experiment: the median over turns."""
    same = iter(same_batch(step.strategy, next(batches)))
    step(batches, 1)  # traces
    step(same, 1)
    started = time.perf_counter()
    step(same, 1)
    count = max(1, min(MOST_STEPS_PER_CALL // SEVERAL, int(TURN_SECONDS / (time.perf_counter() - started))))
    alone = {name: _alone(step, part) for name, part in (("exchange", _exchange), ("update", _update))}
    experiments = {
        "whole": lambda: [step(batches, 1) for _ in range(count)],
        "same batch": lambda: [step(same, 1) for _ in range(count)],
        "same batch, several a call": lambda: step(same, SEVERAL * -(-count // SEVERAL)),
        **{name: lambda function=function: function(tf.constant(count)) for name, function in alone.items()},
    }
    taken = {name: [] for name in experiments}
    for turn in range(TURNS + 1):
        for name, experiment in experiments.items():
            started = time.perf_counter()
            experiment()
            done = SEVERAL * -(-count // SEVERAL) if "several" in name else count
            if turn:  # the first one warms up
                taken[name].append((time.perf_counter() - started) / done)
    return {name: statistics.median(values) for name, values in taken.items()}


def _parts(seconds: dict[str, float], per_call: int) -> dict[str, float]:
    whole, same = seconds["whole"], seconds["same batch"]
    call = max(0.0, same - seconds["same batch, several a call"]) * SEVERAL / (SEVERAL - 1)
    compute = same - call - seconds["exchange"] - seconds["update"]
    return {
        "waiting for input": max(0.0, whole - same),
        "compute": max(0.0, compute),
        "all-reduce": seconds["exchange"],
        "update": seconds["update"],
        "Python": call / per_call,
    }


def same_batch(strategy: tf.distribute.Strategy, batch):
    """Return a dataset that gives the replicas one and the same batch in every step; making it takes no time."""
    members = tuple(strategy.experimental_local_results(member)[0] for member in batch)
    one_by_one = distribute.TOGETHER_BYTES
    return distribute.for_replicas(lambda _steps, _replicas: members, strategy, batch_bytes=one_by_one)


def _alone(step: Step, part):
    """Return a function that computes one part of the step so many times on every replica; it returns a number that depends on
    all of them, so that TensorFlow removes none."""

    @tf.function
    def several(count):
        found = tf.constant(0.0)
        for _ in tf.range(count):
            per_replica = step.strategy.run(part, args=(step, found))
            found += step.strategy.experimental_local_results(per_replica)[0]
        return found

    def run(count):
        with all_reduce_left_to_the_step(step.model.optimizer), tensorflow_repairs.fixed_order():
            return several(count).numpy()

    return run


@tf.autograph.experimental.do_not_convert
def _exchange(step: Step, number: tf.Tensor):
    if step.exchange.replicas == 1:
        return number
    packed, rows = step.shard.function.structured_outputs
    total, gathered = step.exchange(
        tf.distribute.get_replica_context(),
        [tf.fill([packed.shape[0]], number)] * step.exchange.sends,
        tf.fill([step.exchange.shards_per_replica * rows.shape[0], rows.shape[1]], number),
    )
    return total[0] + gathered[0, 0]


@tf.autograph.experimental.do_not_convert
def _update(step: Step, number: tf.Tensor):
    packed, _rows = step.shard.function.structured_outputs
    step.update(tf.distribute.get_replica_context(), tf.fill([packed.shape[0]], number))
    return number


def operations_of(directory: str | os.PathLike) -> dict[str, float]:
    """Return the seconds each kind of operation took in the newest trace below a directory, the longest first.

    The trace is TensorFlow's; on GPUs its kernels are counted, else the operations of the CPU.
    """
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    newest = max(Path(directory).glob("plugins/profile/*/*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    space = xplane_pb2.XSpace.FromString(newest.read_bytes())
    planes = [plane for plane in space.planes if plane.name.startswith("/device:GPU")]
    taken: Counter = Counter()
    for plane in planes or [plane for plane in space.planes if plane.name == "/host:CPU"]:
        for line in plane.lines:
            for event in line.events:
                kind = _kind(plane.event_metadata[event.metadata_id].name, device=bool(planes))
                if kind:
                    taken[kind] += event.duration_ps / 1e12
    return dict(taken.most_common())


def _kind(name: str, *, device: bool) -> str | None:
    """Return the kind of operation of an event, as in `block/conv:Conv2D`; None for what only waits for others."""
    if device:
        return name.split("(")[0][:60]
    _path, colon, kind = name.split("#")[0].rpartition(":")
    if not colon or not kind.isidentifier() or "::" in name or kind.endswith(("PartitionedCall", "While", "If")):
        return None
    return kind.removeprefix("_MklNative").removeprefix("_Mkl")  # oneDNN's kernels of the same operations


def _advice(parts: dict[str, float], operations: dict[str, float], step: Step) -> str:
    """Return one sentence: what takes more than its share, and the remedy."""
    share = {name: value / sum(parts.values()) for name, value in parts.items()}
    if share["waiting for input"] > 0.1:
        return "The step waits for its images: prepare them smaller, augment less, or put the data on a faster disk."
    if share["Python"] > 0.1:
        return "Python's overhead is large for steps as short as these: give more --steps-per-call, or a larger batch."
    if share["all-reduce"] > 0.2:
        return f"The exchange of {step.exchange.replicas} replicas takes long: give a larger global batch, or --all-reduce fast."
    computes = f"The step computes, most of all {next(iter(operations), 'operations without a name')}"
    on_cpu = not tf.config.list_logical_devices("GPU")
    if on_cpu and os.environ.get("TF_ENABLE_ONEDNN_OPTS") != "1":
        return f"{computes}: set TF_ENABLE_ONEDNN_OPTS=1, which may help a larger network, or take a GPU."
    if on_cpu and machine.computes_in_bfloat16() and step.model.dtype_policy.name == "float32":
        return f"{computes}. This processor multiplies in bfloat16: try --precision mixed_bfloat16."
    if not on_cpu and not step.jit_compile:
        return f"{computes}, and XLA is off: --xla, or compile(jit_compile=True), joins its kernels."
    return f"{computes}, as it should: only a smaller network or a faster device is faster."


def draw(found: Profile) -> Figure:
    """Return two bars: the parts of a step, and its operations by kind."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    upper, lower = figure.subplots(2, height_ratios=[1, 2])
    left = 0.0
    for name, value in found.parts.items():
        upper.barh(0, 1000 * value, left=left, label=f"{name} {value / found.seconds:.0%}")
        left += 1000 * value
    upper.set(yticks=[], xlabel="milliseconds of a step", xlim=(0, left))
    upper.legend(ncols=len(found.parts), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=8)
    longest = list(found.operations.items())[:6][::-1]
    lower.barh([name for name, _ in longest], [1000 * value for _, value in longest], color="tab:gray")
    lower.set(xlabel="milliseconds of its operations, over all threads")
    return figure


def _row(name: str, seconds: float, total: float) -> str:
    return f"  {name:32} {1000 * seconds:9.2f} ms  {seconds / max(total, 1e-12):4.0%}"
