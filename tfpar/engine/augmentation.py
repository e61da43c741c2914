"""Augmentation of a whole batch at once. What happens to an image follows from the seed, its step and its row in the global
batch, so it does not depend on the number of replicas."""

import tensorflow as tf


def draws(steps: tf.Tensor, first_rows: tf.Tensor, *, seed: int, global_batch_size: int, rows: int) -> tf.Tensor:
    """Return three random numbers for each image of these batches, from (seed, step) and its row in the global batch
    alone: what happens to an image does not depend on who computes it."""

    def of_a_batch(member):
        step, first_row = member
        key = tf.stack([tf.constant(seed, tf.int64), step])
        everyone = tf.random.stateless_uniform([global_batch_size, 3], key, alg="philox")
        return everyone[first_row : first_row + rows]

    found = tf.map_fn(of_a_batch, (steps, first_rows), fn_output_signature=tf.float32)
    return tf.reshape(found, [steps.shape[0] * rows, 3])


# By XLA twice as fast. It changes no bit: whole numbers, but for a single product that is rounded down.
@tf.function(jit_compile=True)
def flipped_and_shifted(x: tf.Tensor, draws: tf.Tensor, crop: bool) -> tf.Tensor:
    """Flip and shift each image, in one gather over the whole batch. Pixels beyond the edge repeat the edge."""
    count, height, width, channels = x.shape
    kind = tf.int32 if count * height * width < 2**31 else tf.int64
    rows, columns = tf.range(height, dtype=kind)[tf.newaxis], tf.range(width, dtype=kind)[tf.newaxis]
    columns = tf.where(draws[:, :1] < 0.5, columns, width - 1 - columns)
    if crop:
        rows = tf.clip_by_value(rows + _shift(draws[:, 1:2], height, kind), 0, height - 1)
        columns = tf.clip_by_value(columns + _shift(draws[:, 2:3], width, kind), 0, width - 1)
    image = tf.range(count, dtype=kind)[:, tf.newaxis, tf.newaxis]
    places = (image * height + rows[:, :, tf.newaxis]) * width + columns[:, tf.newaxis, :]
    return tf.gather(tf.reshape(x, [-1, channels]), places)


def _shift(draw: tf.Tensor, side: int, kind: tf.DType) -> tf.Tensor:
    reach = max(1, side // 8)
    return tf.cast(tf.floor(draw * (2 * reach + 1)), kind) - reach
