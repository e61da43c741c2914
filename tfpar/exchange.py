"""The one exchange of a step: what the replicas found is added in one order, whatever their number.

shards      the tree (V = 4)        replicas may be 1, 2 or 4
0  --+
1  --+-- sum --+
2  --+         +-- sum
3  --+-- sum --+
"""

from __future__ import annotations

import tensorflow as tf

# A function of its own, which the graph rewriter must not open: it would fuse operations across the border between
# shard and update, and it does so differently for one replica than for several (seen with ResNet-20).
sealed = tf.function(experimental_attributes={"_noinline": True}, autograph=False)

# Every single addition is sealed: the graph rewriter would turn a chain of them into one that adds from left to right.
_add = sealed(lambda a, b: a + b)


def tree(parts: list[tf.Tensor]) -> tf.Tensor:
    """Add the parts in the one order: the sum of each half first."""
    if len(parts) == 1:
        return parts[0]
    half = len(parts) // 2
    return _add(tree(parts[:half]), tree(parts[half:]))


def whole_subtrees(shards: int, replicas: int) -> bool:
    """Tell whether cutting the tree over the shards in halves ends exactly at the replicas' shares."""
    while replicas > 1 and shards > 1 and shards % 2 == 0 and replicas % 2 == 0:
        shards, replicas = shards // 2, replicas // 2
    return replicas == 1


def exchanged(context, sums: tf.Tensor, rows: tf.Tensor, *, all_reduce: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the sum over all shards and the rows of all images, on every replica.

    Args:
        context: of this replica.
        sums: `float32[n, size]`: one partial sum of this replica's shards, or its shards one by one.
        rows: `float32[images, width]`: what is kept of each of its images.
        all_reduce: `"ordered"`, or `"fast"`, which takes one partial sum.

    Returns:
        `float32[size]` and `float32[replicas * images, width]`.
    """
    replicas = context.num_replicas_in_sync
    if replicas == 1:
        return tree(tf.unstack(sums)), rows
    size, images, width = sums.shape[1], rows.shape[0], rows.shape[1]
    if all_reduce == "fast" or (replicas == 2 and sums.shape[0] == 1):
        # a + b is b + a: with two parts every all-reduce gives the tree's bits. Each image's row comes from one replica;
        # the others add zero.
        own = tf.one_hot(context.replica_id_in_sync_group, replicas, True, False, dtype=tf.bool)
        placed = tf.where(own[:, tf.newaxis, tf.newaxis], rows[tf.newaxis], tf.zeros_like(rows)[tf.newaxis])
        vector = tf.concat([sums[0], tf.reshape(placed, [-1])], axis=0)
        # data-parallel: the one moment in a step when replicas exchange anything.
        total, placed = tf.split(context.all_reduce(tf.distribute.ReduceOp.SUM, vector), [size, -1])
        return total, tf.reshape(placed, [replicas * images, width])
    vector = tf.concat([tf.reshape(sums, [-1]), tf.reshape(rows, [-1])], axis=0)
    # data-parallel: the one moment in a step when replicas exchange anything.
    gathered = tf.ensure_shape(context.all_gather(vector[tf.newaxis], axis=0), [replicas, *vector.shape])
    of_shards, of_images = tf.split(gathered, [sums.shape[0] * size, -1], axis=1)
    parts = tf.unstack(tf.reshape(of_shards, [replicas * sums.shape[0], size]))
    return tree(parts), tf.reshape(of_images, [replicas * images, width])
