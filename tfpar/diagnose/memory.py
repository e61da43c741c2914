"""What a training run will hold in memory, part by part, before it begins: `tfpar train DATA --dry-run`.

The activations are read off the graph of one shard as it will run: every operation's output lives from the operation
until its last use, and the largest sum of what lives at once is the estimate. What kernels need for themselves, and what
a compiler saves by joining operations, is not in it; TensorFlow's own half a gigabyte is not either.

Example:
    >>> print(memory.estimate(model, data, stages, global_batch_size=256))
    1,618 train and 179 validation images: 7 steps an epoch of 256 images, 7 steps in all
    shards: 1 of 256 images; replicas: 1; 256 images per replica
      weights                    0.0 MB
      ...
    0.5 MB per replica of ... MB; the largest batch that fits: ...
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.client import device_lib

from tfpar import devices, engine, machine, schedule, validate
from tfpar.schedule import Stage
from tfpar.settings import Settings
from tfpar.steps import accepted
from tfpar.steps.step import Step
from tfpar.train import freezing, identity

AHEAD = 5  # batches ready or in work; where they are small, more of them, but no more than some 10 MB (see engine)
# Operations whose output is their input under another name or shape: it needs no memory of its own.
_ALIASES = {"Identity", "IdentityN", "Reshape", "Squeeze", "ExpandDims", "StopGradient", "PreventGradient"}
_ELSEWHERE = {"Placeholder", "Const", "NoOp"}  # weights, the batch and constants live outside


class Estimate(NamedTuple):
    """Bytes of one replica by part, and the numbers of the run; prints as a table."""

    examples: dict[str, int]
    epoch_steps: int
    steps: int
    global_batch_size: int
    shards: int
    replicas: int
    parts: dict[str, int]
    available: int | None  # for one replica; None where the system does not say
    largest_batch: int | None

    def __str__(self) -> str:
        images = " and ".join(f"{count:,} {split}" for split, count in self.examples.items())
        rows, local = self.global_batch_size // self.shards, self.global_batch_size // self.replicas
        lines = [
            f"{images} images: {self.epoch_steps:,} steps an epoch of {self.global_batch_size:,} images, {self.steps:,} steps in all",
            f"shards: {self.shards} of {rows:,} images; replicas: {self.replicas}; {local:,} images per replica",
            *(f"  {name:15}{size / 1e6:>15,.1f} MB" for name, size in self.parts.items()),
        ]
        needed = f"{sum(self.parts.values()) / 1e6:,.1f} MB per replica"
        if self.available is None:
            return "\n".join([*lines, needed])
        fits = f"the largest batch that fits: {self.largest_batch:,}"
        if not self.largest_batch:
            fits = "no batch fits; take a smaller model, smaller pictures, or more memory"
        return "\n".join([*lines, f"{needed} of {self.available / 1e6:,.1f} MB; {fits}"])


def estimate(model: keras.Model, data, stages: Sequence[Stage], **settings) -> Estimate:
    """Say what a run would take; nothing is trained.

    Args:
        model: compiled under its strategy, as for `train.run`.
        data: from `prepare.load`.
        stages, settings: as for `train.run`.

    Raises:
        errors.SettingsError: as `train.run` would.
    """
    with step_of(model, data, {"stages": stages} | settings) as (step, given):
        return of_step(step, given, data)


def of_step(step: Step, given: Settings, data) -> Estimate:
    """Say what a run with this step would take, as `estimate` does."""
    model, replicas, shards, batch = step.model, step.exchange.replicas, given.shards, given.global_batch_size
    rows, local, image = batch // shards, batch // replicas, data.train.images[:1].nbytes
    shard = step.trace((tf.TensorSpec([local, *data.image_shape], tf.uint8), tf.TensorSpec([local], tf.int32)))
    parts = {
        "weights": _bytes(model.variables),
        "gradients": step.exchange.holds * 4 * shard.vector.size,
        "optimizer": _bytes(model.optimizer.variables),
        "activations": step.shards_at_once * _peak_bytes(shard.function.graph),
        "input": AHEAD * local * image,
    }
    fixed = sum(parts[name] for name in ("weights", "gradients", "optimizer"))
    available = _available(step.strategy)
    largest = None
    if available is not None:
        per_row = parts["activations"] / rows + AHEAD * image * (shards // replicas)
        most = min(validate.MOST_BATCH // shards, int((available - fixed) / per_row))
        largest = max(0, most) * shards
    epoch_steps = engine.steps_per_epoch(data.train, global_batch_size=batch)
    total = sum(schedule.steps_of(stage, epoch_steps) for stage in given.stages)
    examples = {name: len(split.labels) for name, split in data.splits.items()}
    return Estimate(examples, epoch_steps, total, batch, shards, replicas, parts, available, largest)


@contextlib.contextmanager
def step_of(model: keras.Model, data, settings: dict) -> Iterator[tuple[Step, Settings]]:
    """Give the step that `train.run` would take, with a learning rate of 0, and its settings."""
    accepted.check(model, sets_rate=True)
    given = Settings(**settings).resolved(model.distribute_strategy.num_replicas_in_sync)
    given = dataclasses.replace(given, class_weights=identity.check_fit(model, data, given.class_weights))
    with freezing.at_most(model, given.stages), model.distribute_strategy.scope():
        step = Step(model, learning_rate=lambda _step: 0.0, **given.of_the_step())
    with _largest(model, given.stages):
        step.renew()
        yield step, given


def _largest(model: keras.Model, stages: Sequence[Stage]) -> contextlib.AbstractContextManager:
    """Freeze what does not train in the stage that trains most."""
    trained = []
    for number in range(len(stages)):
        with freezing.at(model, stages, number):
            trained.append(freezing.count(model))
    return freezing.at(model, stages, trained.index(max(trained)) if trained else 0)


def _bytes(variables) -> int:
    return sum(int(np.prod(v.shape)) * tf.as_dtype(v.dtype).size for v in variables)


def _peak_bytes(graph: tf.Graph) -> int:
    """Return the largest number of bytes that the outputs of a graph's operations take at once."""
    operations = graph.get_operations()  # in an order in which they can run
    source, last = {}, {}
    for position, operation in enumerate(operations):
        for tensor in operation.inputs:
            last[source.get(tensor.ref(), tensor.ref())] = position
        for index, tensor in enumerate(operation.outputs):
            if operation.type in _ALIASES:
                origin = operation.inputs[index].ref()
                source[tensor.ref()] = source.get(origin, origin)
    change = np.zeros(len(operations) + 1, np.int64)  # of the bytes that live, at each operation
    for position, operation in enumerate(operations):
        if operation.type not in _ELSEWHERE | _ALIASES:
            for tensor in operation.outputs:
                size = (tensor.shape.num_elements() or 0) * tensor.dtype.size
                change[position] += size
                change[last.get(tensor.ref(), position) + 1] -= size
    return int(change.cumsum().max())


def _available(strategy: tf.distribute.Strategy) -> int | None:
    """Return the bytes one replica can have: of the smallest of its GPUs, or its part of what the machine has left."""
    names = devices.names(strategy)
    if any("GPU" in name for name in names):
        return min(device.memory_limit for device in device_lib.list_local_devices() if device.device_type == "GPU")
    left = machine.meminfo("MemAvailable")
    return None if left is None else left // len(names)
