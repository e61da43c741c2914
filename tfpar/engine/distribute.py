"""`tf.data` pipelines for replicas: each replica finds its own batches, several of which one call makes."""

import ctypes
import functools
import platform

import tensorflow as tf
from tensorflow.python.distribute.input_lib import DistributedDatasetsFromFunction

from tfpar import devices

ENDLESS = 1 << 48  # steps
TOGETHER_BYTES, MOST_TOGETHER = 2 << 20, 16  # batches that one call makes
AHEAD_BYTES = 4 << 20  # of a batch; above it fewer wait ready


def ahead(batch_bytes: int, local: int) -> tuple[int, int]:
    """Return how many batches one call makes, and how many calls run or hold their batches ready, for `local` replicas."""
    together = min(max(1, TOGETHER_BYTES // batch_bytes), MOST_TOGETHER)
    waiting = 2 if batch_bytes > AHEAD_BYTES else 4  # small batches wait for threads to wake, large ones for memory
    return together, max(waiting, waiting * local // together)


def for_replicas(
    batches, strategy: tf.distribute.Strategy, *, batch_bytes: int, first_step: int = 0, steps: int = ENDLESS
):
    """Return a dataset in which each replica finds its batches of all steps.

    Args:
        batches: a function of `(steps, replicas)`, two `int64[n]`, that returns these `n` batches one behind the other.
        strategy: whose replicas get them.
        batch_bytes: of the images of one.
        first_step, steps: where to start, and how many.
    """
    replicas = strategy.num_replicas_in_sync
    _keep_freed_memory()
    options = tf.data.Options()
    # The default graph rewrites copy the captured array, which may be larger than the memory.
    options.experimental_optimization.apply_default_optimizations = False
    # Its thread sleeps for up to ten seconds, and the end of an iterator waits for it.
    options.autotune.enabled = False
    options.deterministic = True

    def dataset(context=None) -> tf.data.Dataset:
        # data-parallel: one pipeline for each CPU replica, one a process for GPUs; it yields its replicas' batches in turn.
        pipelines = context.num_input_pipelines if context else 1
        local = replicas // pipelines
        together, calls = ahead(batch_bytes, local)
        first_replica = context.input_pipeline_id * local if context else 0
        first, last = first_step * local, min((first_step + steps) * local, tf.int64.max)

        def several(number: tf.Tensor):
            numbers = number + tf.range(together, dtype=tf.int64)
            members = batches(numbers // local, first_replica + numbers % local)
            if together == 1:
                return members
            return tuple(tf.reshape(member, [together, -1, *member.shape[1:]]) for member in members)

        # Parallel calls keep as many ready; a prefetch behind them would only hand each to one more thread.
        elements = tf.data.Dataset.range(first, last, together).map(several, num_parallel_calls=calls)
        if together > 1:
            elements = elements.unbatch().take(last - first)
        return elements.with_options(options)

    return distributed(dataset, strategy)


def distributed(dataset, strategy: tf.distribute.Strategy):
    """Return `dataset(context)` for all replicas of a strategy; `dataset()` itself on one device."""
    if devices.is_default(strategy):
        return dataset()
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) and "CPU" in devices.names(strategy)[0]:
        workers = strategy.num_replicas_in_sync
        return _LocalBatches(dataset(tf.distribute.InputContext(workers, strategy.cluster_resolver.task_id, workers)))
    return strategy.distribute_datasets_from_function(dataset, _input_options(strategy))


class _LocalBatches(DistributedDatasetsFromFunction):  # Keras knows it by the name of this class
    """The batches of a worker with one CPU replica, as they are: what TensorFlow would put between has autotune on (see
    `_input_options`), and in a worker cannot be told otherwise."""

    def __init__(self, dataset: tf.data.Dataset):
        self._dataset = dataset

    def __iter__(self):
        return iter(self._dataset)

    element_spec = property(lambda self: self._dataset.element_spec)
    cardinality = property(lambda self: self._dataset.cardinality())


def _input_options(strategy: tf.distribute.Strategy) -> tf.distribute.InputOptions | None:
    """Return None where devices need copies made for them (GPUs), else let each CPU replica read a pipeline of its own.

    What TensorFlow puts between a pipeline and the devices has autotune on, whatever the pipeline's options say, and
    its thread keeps the end of an iterator waiting: up to a second after every `fit`.
    """
    mirrored = isinstance(strategy, tf.distribute.MirroredStrategy)  # TensorFlow offers it for no other
    if not mirrored or any("CPU" not in name for name in devices.names(strategy)):
        return None
    return tf.distribute.InputOptions(
        experimental_fetch_to_device=False,
        experimental_place_dataset_on_device=True,
        experimental_replication_mode=tf.distribute.InputReplicationMode.PER_REPLICA,
    )


@functools.cache
def _keep_freed_memory() -> None:
    """Let glibc keep the memory of old batches for new ones.

    By default it returns large pieces to the system, which clears them before it hands them out again: at 224 px that
    took as long as the reading itself. It keeps pieces of up to 32 MB alone. Larger batches are five times as fast with
    TensorFlow's own allocator, which oneDNN brings, and TF_CPU_ALLOCATOR_USE_BFC=true without it.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        trim_threshold, mmap_threshold = -1, -3  # the numbers of malloc.h
        libc.mallopt(mmap_threshold, 1 << 30) or libc.mallopt(mmap_threshold, 32 << 20)  # the most of older ones
        libc.mallopt(trim_threshold, (1 << 31) - 1)
