"""A process that measures: `measuring` starts `python -m tfpar.scaling.worker FD`, and asks it for one turn after the other.

It builds the model once and keeps it through all turns. It ends when the process that started it does.
"""

import os
import pickle
import queue
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

import keras
import numpy as np
import tensorflow as tf

from tfpar import compiling, devices, engine, errors, prepare
from tfpar.arguments import parser
from tfpar.diagnose import profiling
from tfpar.engine import distribute
from tfpar.steps.exchange import Exchange, tree
from tfpar.steps.step import Step
from tfpar.train import identity
from tfpar.workers import group


@dataclass(frozen=True, eq=False)
class TimedExchange(Exchange):
    """The exchange of a step that notes two moments of each replica: its gradients are ready, and it has the sum.

    Attributes:
        moments: gets both moments of every step, in seconds, for each replica of this process.
        skipped: whether nothing is exchanged: a replica takes the sum of its own shards.
    """

    moments: tuple[list[float], ...] = ()
    skipped: bool = False

    def __call__(self, context, parts: list[tf.Tensor], rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        local = int(tf.get_static_value(context.replica_id_in_sync_group)) % len(self.moments)

        def noted(tensors):
            """Return the tensors once a moment is noted: when all of them have been computed."""
            with tf.device("CPU:0"):  # on a GPU the copy of a number waits for the kernels before it
                numbers = [tf.identity(tf.reshape(tensor, [-1])[0]) for tensor in tensors]
                note = tf.numpy_function(lambda *_: self.moments[local].append(time.perf_counter()), numbers, [])
            with tf.control_dependencies([note]):
                return [tf.identity(tensor) for tensor in tensors]

        *parts, rows = noted([*parts, rows])
        if self.skipped:
            return tuple(noted([tree(parts), tf.tile(rows, [self.replicas, 1])]))
        return tuple(noted(super().__call__(context, parts, rows)))


class _Turns:
    """One model with its step, and the kinds of turns that it takes."""

    def __init__(self, task: dict):
        build = pickle.loads(task["model"])
        strategy = devices.strategy()
        group.check_connection(strategy)
        data = prepare.load(task["data"], verify=False)  # the process that started this one has verified it
        with strategy.scope():
            model = _named(build, data) if isinstance(build, str) else build()
        replicas, image = strategy.num_replicas_in_sync, data.train.images[:1].nbytes
        local = replicas // group.WorkerGroup(strategy).size
        self.moments = tuple([] for _ in range(local))
        step = self._step(model, task["all_reduce"])
        size = task["batch"] * replicas
        self.batches = iter(engine.train_batches(data.train, strategy, global_batch_size=size))
        same = iter(profiling.same_batch(strategy, next(self.batches)))
        self.kinds = {"real": (step, self.batches), "constant": (step, same)}
        step(same, 1)
        if replicas > 1:
            alone = self._step(model, task["all_reduce"], skipped=True)
            alone.shard, alone.spec = step.shard, step.spec  # to trace a large network twice takes seconds
            self.kinds["alone"] = (alone, same)
        together, calls = distribute.ahead(task["batch"] * image, local)
        self.hello = {
            "gradient_bytes": 4 * step.shard.vector.size, "ready": -(-together * calls // local), "network": model.name,
            "environment": identity.environment(),
        }  # fmt: skip

    def _step(self, model: keras.Model, all_reduce: str, *, skipped: bool = False) -> Step:
        step = Step(model, all_reduce=all_reduce)
        step.exchange = TimedExchange(**vars(step.exchange), moments=self.moments, skipped=skipped)
        return step

    def take(self, kind: str, count: int, per_call: int) -> dict[str, np.ndarray]:
        """Return the seconds of each step `[1, calls]`, and how long each replica waited for the sum `[replicas, steps]`."""
        if kind in ("real", "input"):  # a turn begins with no batch ready, or it would use those made between two turns
            for _ in range(self.hello["ready"]):
                next(self.batches)
        for moments in self.moments:
            moments.clear()
        ends = [time.perf_counter()]
        for _ in range(-(-count // per_call)):
            if kind == "input":
                next(self.batches)
            else:
                step, batches = self.kinds[kind]
                step(batches, per_call)
            ends.append(time.perf_counter())
        moments = np.array(self.moments).reshape(len(self.moments), -1, 2)  # a replica notes two in each step
        return {"seconds": np.diff(ends)[np.newaxis] / per_call, "waits": moments[..., 1] - moments[..., 0]}


def _named(name: str, data) -> keras.Model:
    return compiling.compiled(parser({}).parse_args(["train", "DATA", "--model", name]), data)[0]


def main(descriptor: str) -> None:
    connection, orders = Connection(int(descriptor)), queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, orders), daemon=True).start()
    task = orders.get()
    try:
        turns = _Turns(task)
        connection.send(turns.hello)
        while True:
            connection.send(turns.take(*orders.get()))
    except errors.KINDS as error:
        connection.send(error)


def _listen(connection: Connection, orders: queue.SimpleQueue) -> None:
    """Queue the messages of the process that started this one, and end with it, even if a collective hangs."""
    try:
        while True:
            orders.put(connection.recv())
    except (EOFError, OSError):
        os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
