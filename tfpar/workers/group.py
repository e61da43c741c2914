"""TensorFlow over several workers: the strategy, the check of the connection, and what the workers agree on."""

import contextlib
import functools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

from tfpar import errors
from tfpar.workers import rendezvous
from tfpar.workers.rendezvous import Cluster, cluster

SECONDS = 300.0  # how long workers wait for each other; TFPAR_WAIT_SECONDS says otherwise

# After so long without a heartbeat, sent every half of it, a worker is lost. TensorFlow's 10 do not always survive a cut of 4 s,
# after which TCP tries again at 6.2 s.
HEARTBEAT_SECONDS = 16.0
REGISTER_SECONDS = 180.0  # from the meeting to TensorFlow's start on every worker; TensorFlow itself waits an hour
PIECE = 1 << 24  # bytes that workers exchange at once, outside of training
# How TensorFlow reports a worker that has gone, to those that are left: always, and if the message names a connection.
LOST = (tf.errors.DeadlineExceededError, tf.errors.UnavailableError, tf.errors.AbortedError)
LOST_IF_NAMED = (
    tf.errors.CancelledError, tf.errors.InternalError, tf.errors.UnknownError, tf.errors.FailedPreconditionError,
)  # fmt: skip
NAMES = re.compile(r"(?i)\b(socket|collective|connection|coordination|heartbeats?|barrier|by peer|nccl|rpc)\b")


def strategy(*, command: Sequence[str] = ()) -> tf.distribute.Strategy:
    """Meet the other workers, and return the strategy over the devices of all; once per process.

    On GPUs each worker brings all of its own, on CPUs each is one replica. Call it before anything else uses TensorFlow.

    Args:
        command: what every worker must have been started with; told in the message where it differs.

    Raises:
        errors.Unavailable: a worker never came, a name does not resolve, or the port is taken.
        errors.SettingsError: the workers were started with other lists, versions or commands.
    """
    return _strategy(cluster(), tuple(command))


@functools.cache
def _strategy(found: Cluster, command: tuple[str, ...]) -> tf.distribute.Strategy:
    same = {"python": "{}.{}".format(*sys.version_info), "tensorflow": tf.__version__, "command": list(command)}
    rendezvous.meet(found.addresses, found.index, same=same, seconds=_seconds())
    workers = {"cluster": {"worker": list(found.addresses)}, "task": {"type": "worker", "index": found.index}}
    os.environ["TF_CONFIG"] = json.dumps(workers)
    context.context().configure_coordination_service(
        service_type="standalone", service_leader="/job:worker/replica:0/task:0",
        heartbeat_timeout_in_ms=int(1000 * HEARTBEAT_SECONDS), cluster_register_timeout_in_ms=int(1000 * REGISTER_SECONDS),
        coordinated_jobs=[context.coordination_config_pb2.CoordinatedJob(name="worker", num_tasks=len(found.addresses))],
    )  # fmt: skip
    late = "TensorFlow has already started here; call devices.strategy() first"
    with _loss_raises(_not_connected), errors.translated(RuntimeError, errors.SettingsError, late):
        return tf.distribute.MultiWorkerMirroredStrategy()


@functools.cache
def check_connection(strategy: tf.distribute.Strategy) -> None:
    """Exchange a first number with the other workers; once per process, before anything else is asked of them.

    If this first all-reduce fails, for example because NCCL cannot connect the GPUs or a firewall drops the packets, a restart
    will not fix it. So it is no lost worker, which Kubernetes would restart without counting.

    Raises:
        errors.Unavailable: the all-reduce failed; the message names the workers that cannot be reached.
    """
    with _loss_raises(_not_connected):
        WorkerGroup(strategy).wait()


@contextlib.contextmanager
def _loss_raises(error_of: Callable[[str], Exception]) -> Iterator[None]:
    """Where TensorFlow reports that another worker cannot be reached, raise the error that `error_of` makes of the reason."""
    try:
        yield
    except tf.errors.OpError as error:
        # Without the places in the graph, which name devices of workers.
        message = re.sub(r"\{\{.*?\}\}", "", str(error))
        if not isinstance(error, LOST) and not (isinstance(error, LOST_IF_NAMED) and NAMES.search(message)):
            raise
        # TensorFlow says it after the places in the program.
        reason = errors.first_line(str(error).strip().split("\n\n")[-1] or error)
        raise error_of(reason) from error


def _not_connected(reason: str) -> errors.Unavailable:
    found = cluster()
    addresses = found.addresses if found else ()
    closed = [f"worker {i} ({address})" for i, address in enumerate(addresses) if rendezvous.unreachable(address)]
    where = f"{', '.join(closed)} does not accept connections from here" if closed else reason
    met = f"the {len(addresses) or 'other'} workers met, but TensorFlow could not exchange a number between them ({where})"
    return errors.Unavailable(f"{met}. Open their ports in the firewall; on GPUs read what NCCL_DEBUG=INFO prints")


class WorkerGroup:
    """Exchange values between the workers of a strategy; in a single process each method returns what it was given.

    Each method is a collective operation: all workers must call the methods in the same order, and a call returns when every worker has
    made it.

    Attributes:
        index: of this worker; size: how many there are.
        chief: whether this is the first worker, which alone writes.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self.strategy = strategy
        self.index, self.size = 0, 1
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            resolver = strategy.cluster_resolver
            self.index, self.size = resolver.task_id, resolver.cluster_spec().num_tasks("worker")
        self.chief = self.index == 0
        self.local = strategy.num_replicas_in_sync // self.size
        self._summed = tf.function(self._sum, input_signature=[tf.TensorSpec([None], tf.int32)], autograph=False)

    def sum(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the sums over all workers of `int32[n]` numbers."""
        numbers = np.asarray(numbers, np.int32)
        return self._summed(numbers).numpy() if self.size > 1 else numbers

    def from_chief(self, value=None):
        """Return the chief's value on every worker; it must be what JSON can hold."""
        return json.loads(self.bytes_from_chief(json.dumps(value).encode())) if self.size > 1 else value

    def bytes_from_chief(self, content: bytes) -> bytes:
        """Return the chief's bytes on every worker."""
        if self.size == 1:
            return content
        pieces, rest = self.sum(divmod(len(content), PIECE) if self.chief else (0, 0)).tolist()
        got = []
        for start in range(0, pieces * PIECE + rest, PIECE):
            padded = np.zeros(PIECE if start < pieces * PIECE else rest, np.uint8)
            if self.chief:
                padded[:] = np.frombuffer(content, np.uint8, len(padded), start)
            padded = np.pad(padded, (0, -len(padded) % 4))
            got.append(self.sum(padded.view(np.int32)).tobytes())  # whole numbers: adding zeros changes no bit
        return b"".join(got)[: pieces * PIECE + rest]

    def wait(self) -> None:
        """Return when all workers have come here."""
        self.sum([0])

    @contextlib.contextmanager
    def chief_first(self) -> Iterator[None]:
        """Let the chief run the block before the others do, who find what it has made."""
        if not self.chief:
            self.wait()
        yield
        if self.chief:
            self.wait()

    def worker_loss_as_error(self) -> contextlib.AbstractContextManager[None]:
        """Turn what TensorFlow raises in this context when another worker has gone into `errors.WorkerLost`."""
        if self.size == 1:
            return contextlib.nullcontext()
        lost, todo = f"another of the {self.size} workers was lost", "start all workers again, and they continue"
        return _loss_raises(lambda reason: errors.WorkerLost(f"{lost} ({reason}); {todo}"))

    def _sum(self, numbers: tf.Tensor) -> tf.Tensor:
        def on_replica(numbers):
            replica = tf.distribute.get_replica_context()
            first = replica.replica_id_in_sync_group % self.local == 0  # of its worker: each counts once
            return replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.where(first, numbers, tf.zeros_like(numbers)))

        return self.strategy.experimental_local_results(self.strategy.run(on_replica, args=(numbers,)))[0]


def _seconds() -> float:
    text = os.environ.get("TFPAR_WAIT_SECONDS", SECONDS)
    with errors.translated(ValueError, errors.SettingsError, f"TFPAR_WAIT_SECONDS={text}: give seconds, as 300"):
        return float(text)
