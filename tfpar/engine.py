"""The data engine. `tf.data` that feeds replicas at memory speed, in an order that is a pure function.

Training reads one endless stream of positions 0, 1, 2, ... Step `s` with global batch `B` covers the positions
`[sB, (s+1)B)`. Position `p` of a split with `N` images is image `permutation(seed, p div N)[p mod N]`, computed from
the number alone. So any step can be made without the steps before it: to resume is to know one number, and no change
of replicas or workers changes what a step sees.

    positions  0 1 2 3 4 5 6 7 8 9 ...      N = 5, B = 4, two replicas
    images     3 0 4 1 2|1 4 0 2 3|...      a new permutation every N positions, nothing dropped, nothing repeated
    step 0    [3 0|4 1]                     replica 0 gets 3 0, replica 1 gets 4 1
    step 1           [2 1|4 0]

A whole batch is gathered at once from the mapped array: one operation a batch instead of a dozen an image. Small
batches are gathered several at once, because waking a thread takes longer than a small batch does.

Example:
    >>> batches = engine.train_batches(data.train, strategy, global_batch_size=256, seed=0)
    >>> epoch = engine.steps_per_epoch(data.train, global_batch_size=256)
    >>> model.fit(batches, steps_per_epoch=epoch, epochs=3)
"""

from __future__ import annotations

import ctypes
import functools
import platform

import numpy as np
import tensorflow as tf
from tensorflow.python.distribute.input_lib import DistributedDatasetsFromFunction

from tfpar import devices, rules, stream
from tfpar.stream import order

__all__ = ["AUGMENTATIONS", "INFERENCE_CHUNK", "inference_batches", "order", "steps_per_epoch", "train_batches"]

AUGMENTATIONS = ("none", "flip", "crop-flip")
FOR_EVER = 1 << 48  # steps
DEFAULT_BATCH = 128  # images of a step where nobody says otherwise
TOGETHER_BYTES, MOST_TOGETHER = 2 << 20, 16  # batches that one call makes
AHEAD_BYTES = 4 << 20  # of a batch; above it fewer wait ready
INFERENCE_CHUNK = 64  # images; the same for every number of replicas, so that inference gives the same bits


def default_batch(shards: int) -> int:
    """Return 128, rounded up to a multiple of the shards."""
    return -(-DEFAULT_BATCH // shards) * shards


def steps_per_epoch(split, *, global_batch_size: int) -> int:
    """Return `ceil(N / B)`: an epoch sees every image at least once, and up to B - 1 of the next round.

    Raises:
        errors.SettingsError: the split is none, or the batch no whole number of at least 1.
    """
    batch = rules.whole("global_batch_size", global_batch_size, 1, rules.MOST_BATCH)
    return -(-len(rules.split(split)[0]) // batch)


def train_batches(
    split,
    strategy: tf.distribute.Strategy,
    *,
    global_batch_size: int,
    seed: int = 0,
    first_step: int = 0,
    augment: str = "none",
    class_weights=None,
):
    """Return the endless training batches, one element per replica and step, for `model.fit` or a loop.

    Args:
        split: `(images, labels, ...)`: `uint8[N, height, width, channels]` and `int32[N]`.
        strategy: whose replicas get the batches.
        global_batch_size: images of one step over all replicas; a multiple of the replicas.
        seed: of the order and of the augmentation.
        first_step: where to start; `fit(initial_epoch=2)` goes with `first_step=2 * epoch`.
        augment: `"none"`, `"flip"` (left-right), or `"crop-flip"` (shifted by up to an eighth of the side as well).
        class_weights: one number per class; adds a third member `float32[batch]` to the elements.

    Returns:
        A `tf.data.Dataset` on one device, else a distributed one, of `(uint8[B/R, height, width, channels],
        int32[B/R])`.

    Raises:
        errors.SettingsError: the batch cannot be dealt to the replicas, or an argument is out of its range.
    """
    if not isinstance(strategy, tf.distribute.Strategy):
        rules.refuse("strategy", strategy, "what devices.strategy() returns")
    global_batch_size = rules.whole("global_batch_size", global_batch_size, 1, rules.MOST_BATCH)
    seed, first_step = (
        rules.whole("seed", seed, 0, rules.MOST_SEED),
        rules.whole("first_step", first_step, 0, rules.MOST_POSITION // global_batch_size),
    )
    rules.word("augment", augment, AUGMENTATIONS)
    class_weights = rules.class_weights(class_weights, int(rules.split(split)[1].max()) + 1, exactly=False)
    local_batch = devices.per_replica(global_batch_size, strategy)
    images, labels = _constants(split)
    weights = None if class_weights is None else tf.constant(class_weights, tf.float32)
    examples, block = len(split[0]), stream.block_of(split[0])
    read_ahead = stream.ReadAhead(split[0], seed=seed) if block and stream.of_a_file(split[0]) else None

    def batches(steps: tf.Tensor, replicas: tf.Tensor):
        # data-parallel: replica r of R takes the rows [rB/R, (r+1)B/R) of the global batch.
        first_rows = replicas * local_batch
        positions = _rows(steps * global_batch_size + first_rows, local_batch)
        if read_ahead:
            tf.numpy_function(read_ahead, [positions[0]], [])
        chosen = order(positions, examples=examples, seed=seed, block=block)
        x, y = tf.gather(images, chosen), tf.gather(labels, chosen)
        if augment != "none":
            of = {"seed": seed, "global_batch_size": global_batch_size, "rows": local_batch}
            x = _augmented(x, _draws(steps, first_rows, **of), crop=augment == "crop-flip")
        return (x, y) if weights is None else (x, y, tf.gather(weights, y))

    return _dealt(batches, strategy, batch_bytes=local_batch * split[0][:1].nbytes, first_step=first_step)


def inference_batches(split, strategy: tf.distribute.Strategy):
    """Return the images of a split once, in their order, as chunks of the same size for every number of replicas.

    The last chunk repeats the last image until it is full, and so do whole chunks where the replicas outnumber
    those that are left: whoever collects the results keeps the first N rows. So nothing is dropped, no replica is
    handed an empty batch (which crashes TensorFlow, or spoils the weights), and no result depends on who computed it.

    Returns:
        A finite dataset of `(uint8[64, height, width, channels], int32[64])` per replica.
    """
    examples, replicas = len(split[0]), strategy.num_replicas_in_sync
    images, labels = _constants(split)

    def batches(steps: tf.Tensor, replica: tf.Tensor):
        chosen = tf.minimum(_rows((steps * replicas + replica) * INFERENCE_CHUNK, INFERENCE_CHUNK), examples - 1)
        return tf.gather(images, chosen), tf.gather(labels, chosen)

    steps, batch_bytes = -(-examples // (INFERENCE_CHUNK * replicas)), INFERENCE_CHUNK * split[0][:1].nbytes
    return _dealt(batches, strategy, batch_bytes=batch_bytes, steps=steps)


def _rows(firsts: tf.Tensor, count: int) -> tf.Tensor:
    """Return the `count` numbers from each first on, as one vector."""
    return tf.reshape(firsts[:, tf.newaxis] + tf.range(count, dtype=tf.int64), [-1])


def _dealt(batches, strategy: tf.distribute.Strategy, *, batch_bytes: int, first_step: int = 0, steps: int = FOR_EVER):
    """Return a dataset in which each replica finds its batches of all steps.

    Args:
        batches: a function of `(steps, replicas)`, two `int64[n]`, that returns these `n` batches one behind the other.
        strategy: whose replicas get them.
        batch_bytes: of the images of one.
        first_step, steps: where to start, and how many.
    """
    replicas = strategy.num_replicas_in_sync
    together = min(max(1, TOGETHER_BYTES // batch_bytes), MOST_TOGETHER)
    ahead = 2 if batch_bytes > AHEAD_BYTES else 4  # small batches wait for threads to wake, large ones for memory
    _keep_freed_memory()

    def dataset(context=None) -> tf.data.Dataset:
        # data-parallel: one pipeline for each CPU replica, one a process for GPUs; it yields its replicas' batches in turn.
        pipelines = context.num_input_pipelines if context else 1
        local = replicas // pipelines
        first_replica = context.input_pipeline_id * local if context else 0
        first, last = first_step * local, min((first_step + steps) * local, tf.int64.max)

        def several(number: tf.Tensor):
            numbers = number + tf.range(together, dtype=tf.int64)
            members = batches(numbers // local, first_replica + numbers % local)
            if together == 1:
                return members
            return tuple(tf.reshape(member, [together, -1, *member.shape[1:]]) for member in members)

        # Parallel calls keep as many ready; a prefetch behind them would only hand each to one more thread.
        calls = max(ahead, ahead * local // together)
        elements = tf.data.Dataset.range(first, last, together).map(several, num_parallel_calls=calls)
        if together > 1:
            elements = elements.unbatch().take(last - first)
        return elements.with_options(_options())

    return distributed(dataset, strategy)


def distributed(dataset, strategy: tf.distribute.Strategy):
    """Return `dataset(context)` for all replicas of a strategy; `dataset()` itself on one device."""
    if devices.is_default(strategy):
        return dataset()
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) and "CPU" in devices.names(strategy)[0]:
        workers = strategy.num_replicas_in_sync
        return _OwnRows(dataset(tf.distribute.InputContext(workers, strategy.cluster_resolver.task_id, workers)))
    return strategy.distribute_datasets_from_function(dataset, _input_options(strategy))


class _OwnRows(DistributedDatasetsFromFunction):  # Keras knows it by the name of this class
    """The batches of a worker with one CPU replica, as they are: what TensorFlow would put between has autotune on (see
    `_input_options`), and in a worker cannot be told otherwise."""

    def __init__(self, dataset: tf.data.Dataset):
        self._dataset = dataset

    def __iter__(self):
        return iter(self._dataset)

    @property
    def element_spec(self):
        return self._dataset.element_spec

    @property
    def cardinality(self):
        return self._dataset.cardinality()


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


def _options() -> tf.data.Options:
    options = tf.data.Options()
    # The default graph rewrites copy the captured array, which may be larger than the memory.
    options.experimental_optimization.apply_default_optimizations = False
    # Its thread sleeps for up to ten seconds, and the end of an iterator waits for it.
    options.autotune.enabled = False
    options.deterministic = True
    return options


def _constants(split) -> tuple[tf.Tensor, tf.Tensor]:
    """Return images and labels as tensors; labels of any whole kind as the `int32` that batches have."""
    return _constant(split[0]), _constant(split[1].astype(np.int32, copy=False))


def _constant(array: np.ndarray) -> tf.Tensor:
    """Return an array as a tensor in the CPU's memory; a mapped one is not copied, and not read."""
    with tf.device("CPU:0"):
        if array.flags.writeable and array.flags.c_contiguous and array.ctypes.data % 64 == 0 and array.size:
            return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
        return tf.convert_to_tensor(array)


def _draws(steps: tf.Tensor, first_rows: tf.Tensor, *, seed: int, global_batch_size: int, rows: int) -> tf.Tensor:
    """Return three random numbers for each image of these batches, from (seed, step) and its row in the global batch
    alone: what happens to an image does not depend on who computes it."""

    def draws(member):
        step, first_row = member
        key = tf.stack([tf.constant(seed, tf.int64), step])
        everyone = tf.random.stateless_uniform([global_batch_size, 3], key, alg="philox")
        return everyone[first_row : first_row + rows]

    found = tf.map_fn(draws, (steps, first_rows), fn_output_signature=tf.float32)
    return tf.reshape(found, [steps.shape[0] * rows, 3])


# By XLA twice as fast. It changes no bit: whole numbers, but for a single product that is rounded down.
@tf.function(jit_compile=True)
def _augmented(x: tf.Tensor, draws: tf.Tensor, crop: bool) -> tf.Tensor:
    """Flip and shift each image, in one gather over the whole batch. Pixels beyond the edge repeat the edge."""
    count, height, width, channels = x.shape
    kind = tf.int32 if count * height * width < 2**31 else tf.int64
    rows, columns = tf.range(height, dtype=kind)[tf.newaxis], tf.range(width, dtype=kind)[tf.newaxis]
    columns = tf.where(draws[:, :1] < 0.5, columns, width - 1 - columns)
    if crop:
        rows = tf.clip_by_value(rows + _shift(draws[:, 1:2], height, kind), 0, height - 1)
        columns = tf.clip_by_value(columns + _shift(draws[:, 2:3], width, kind), 0, width - 1)
    else:
        rows = tf.tile(rows, [count, 1])
    image = tf.range(count, dtype=kind)[:, tf.newaxis, tf.newaxis]
    places = (image * height + rows[:, :, tf.newaxis]) * width + columns[:, tf.newaxis, :]
    return tf.gather(tf.reshape(x, [-1, channels]), places)


def _shift(draw: tf.Tensor, side: int, kind: tf.DType) -> tf.Tensor:
    reach = max(1, side // 8)
    return tf.cast(tf.floor(draw * (2 * reach + 1)), kind) - reach
