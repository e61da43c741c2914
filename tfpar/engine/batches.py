"""The batches of training and inference, gathered whole from the mapped array."""

import os

import numpy as np
import tensorflow as tf

from tfpar import devices, errors, validate
from tfpar.engine import augmentation, permutation
from tfpar.engine.distribute import for_replicas
from tfpar.settings import checked

INFERENCE_CHUNK = 64  # images; independent of the number of replicas, so that inference gives the same bits


def steps_per_epoch(split, *, global_batch_size: int) -> int:
    """Return `ceil(N / B)`: an epoch sees every image at least once, and up to B - 1 of the next round.

    Raises:
        errors.SettingsError: the split is none, or the batch no whole number of at least 1.

    Example:
        >>> engine.steps_per_epoch(data.train, global_batch_size=256)  # of 1,618 images: 7 x 256 are 1,792
        7
    """
    batch = validate.integer("global_batch_size", global_batch_size, 1, validate.MOST_BATCH)
    return -(-len(validate.split(split, one_hot=True)[0]) // batch)


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
        split: `(images, labels, ...)`: `uint8[N, height, width, channels]` and `int32[N]`, or one-hot labels `[N, classes]`
            for a loss that takes those. Weights `[N]` from 0 to 1e9, as the third of a tuple or those of a prepared split, multiply
            the loss of each image.
        strategy: whose replicas get the batches.
        global_batch_size: images of one step over all replicas; a multiple of the replicas.
        seed: of the order and of the augmentation.
        first_step: where to start; `fit(initial_epoch=2)` goes with `first_step=2 * epoch`.
        augment: `"none"`, `"flip"` (left-right), or `"crop-flip"` (shifted by up to an eighth of the side as well).
        class_weights: one number per class, as a list or Keras' dictionary; multiplies the weights of the split.

    Returns:
        A `tf.data.Dataset` on one device, else a distributed one, of `(uint8[B/R, height, width, channels],
        int32[B/R])`, or `float32[B/R, classes]` for one-hot labels; with weights of either kind a third member `float32[B/R]`.

    Raises:
        errors.SettingsError: the batch cannot be divided among the replicas, or an argument is out of its range.
    """
    local_batch = devices.per_replica(global_batch_size, strategy)
    global_batch_size = local_batch * strategy.num_replicas_in_sync  # as a plain integer
    first_step = validate.integer("first_step", first_step, 0, validate.MOST_POSITION // global_batch_size)
    seed, augment = checked("seed", seed), checked("augment", augment)
    images, labels = _constants(validate.split(split, one_hot=True))
    weights = _weights(split, class_weights)
    examples, block = len(split[0]), permutation.block_of(split[0])
    read_ahead = permutation.ReadAhead(split[0], seed=seed) if block and permutation.of_a_file(split[0]) else None

    def batches(steps: tf.Tensor, replicas: tf.Tensor):
        # data-parallel: replica r of R takes the rows [rB/R, (r+1)B/R) of the global batch.
        first_rows = replicas * local_batch
        positions = _rows(steps * global_batch_size + first_rows, local_batch)
        if read_ahead:
            tf.numpy_function(read_ahead, [positions[0]], [])
        chosen = permutation.order(positions, examples=examples, seed=seed, block=block)
        x, y = tf.gather(images, chosen), tf.gather(labels, chosen)
        if augment != "none":
            of = {"seed": seed, "global_batch_size": global_batch_size, "rows": local_batch}
            drawn = augmentation.draws(steps, first_rows, **of)
            x = augmentation.flipped_and_shifted(x, drawn, crop=augment == "crop-flip")
        return (x, y) if weights is None else (x, y, tf.gather(weights, chosen))

    return for_replicas(batches, strategy, batch_bytes=local_batch * split[0][:1].nbytes, first_step=first_step)


def inference_batches(split, strategy: tf.distribute.Strategy):
    """Return each image of a split once, in order, in chunks whose size does not depend on the number of replicas.

    The last chunk repeats the last image until it is full, and so do whole chunks where the replicas outnumber
    those that are left: whoever collects the results keeps the first N rows. So nothing is dropped, no replica is
    handed an empty batch (which crashes TensorFlow, or spoils the weights), and no result depends on who computed it.

    Returns:
        A finite dataset of `(uint8[64, height, width, channels], int32[64])` per replica.
    """
    replicas, (images, labels) = devices.replicas_of(strategy), _constants(validate.split(split))
    examples = len(split[0])

    def batches(steps: tf.Tensor, replica: tf.Tensor):
        chosen = tf.minimum(_rows((steps * replicas + replica) * INFERENCE_CHUNK, INFERENCE_CHUNK), examples - 1)
        return tf.gather(images, chosen), tf.gather(labels, chosen)

    steps, batch_bytes = -(-examples // (INFERENCE_CHUNK * replicas)), INFERENCE_CHUNK * split[0][:1].nbytes
    return for_replicas(batches, strategy, batch_bytes=batch_bytes, steps=steps)


def _rows(firsts: tf.Tensor, count: int) -> tf.Tensor:
    """Return the `count` numbers from each first on, as one vector."""
    return tf.reshape(firsts[:, tf.newaxis] + tf.range(count, dtype=tf.int64), [-1])


def _constants(split) -> tuple[tf.Tensor, tf.Tensor]:
    """Return images and labels as tensors; labels as the `int32[N]` or `float32[N, classes]` that batches have."""
    images, labels = split
    return _constant(images), _constant(labels.astype(np.int32 if labels.ndim == 1 else np.float32, copy=False))


def _weights(split, class_weights) -> tf.Tensor | None:
    """Return the weight of each image, `float32[N]`: its own times that of its class."""
    labels, given = split[1], split.weights if hasattr(split, "weights") else (*split, None)[2]
    todo = "give a number from 0 to 1e9 for each image"
    with errors.translated((ValueError, TypeError), errors.SettingsError, f"weights: {errors.REASON}; {todo}"):
        own = np.asarray(given)
        if given is None or isinstance(next(iter(own.flat), None), (str, bytes, os.PathLike)):  # the images' names
            given, own = None, np.ones(len(labels), np.float32)
        own = own.astype(np.promote_types(own.dtype, np.float32))
    if own.dtype.kind != "f" or own.shape != labels.shape[:1] or not ((own >= 0) & (own <= 1e9)).all():
        raise errors.SettingsError(f"weights {own.dtype}{list(own.shape)} for {len(labels)} images: {todo}")
    classes = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    class_weights = validate.class_weights(class_weights, classes, exactly=False)
    if class_weights is not None:
        own = own * np.asarray(class_weights, np.float32)[labels.argmax(axis=1) if labels.ndim == 2 else labels]
    return None if given is None and class_weights is None else tf.constant(own, tf.float32)


def _constant(array: np.ndarray) -> tf.Tensor:
    """Return an array as a tensor in the CPU's memory; a mapped one is not copied, and not read."""
    with tf.device("CPU:0"):
        if array.flags.writeable and array.flags.c_contiguous and array.ctypes.data % 64 == 0 and array.size:
            return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
        return tf.convert_to_tensor(array)
