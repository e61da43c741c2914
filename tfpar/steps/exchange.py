"""The one exchange of a step: it adds the vectors of all shards in a fixed order, on any number of replicas and workers.

The order is the binary tree over the shard numbers that `tfpar.steps` draws. How the replicas compute it:

- In one process every replica gathers all vectors and adds the tree itself.
- Between workers each node of the tree is a round of **pairs**: a replica that holds the left sum and one that holds the right sum add
  the two, and then both hold the node's sum. Neither the order within a pair nor the names of the workers matter. If the
  number of replicas `R` is a power of two, the sum takes log2(R) rounds, and each replica sends its vector once a round; to gather
  everything would send R - 1 vectors. Other numbers take at most twice the rounds.
  The `g` GPUs of a machine share its link, over which `g` vectors go in each round. For ResNet-50 (102 MB) on 128 machines of 8 H200,
  `scaling.formulas` gives 19 ms, and 1.3 ms for `"fast"`; it would be 3.8 ms if each GPU sent its own 1/g of the sum (not built).
- Two replicas, and any number of replicas with `"fast"`, take one all-reduce.

The rows (loss, penalty, label and logits of each image) travel in the same message. Where the message is summed, each replica puts its
rows at its own position and -0.0 elsewhere, because adding -0.0 changes no bit.
"""

import collections
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tensorflow as tf

# Decorator for a tf.function that TensorFlow's graph optimizer (Grappler) must not inline. After inlining, it would fuse operations of
# the shard with those of the update, differently for one replica than for several (seen with ResNet-20).
not_inlined = tf.function(experimental_attributes={"_noinline": True}, autograph=False)

# Each addition is its own function. Otherwise Grappler could replace the tree of additions by one AddN, which has no fixed order.
_add = not_inlined(lambda a, b: a + b)

FIRST_GROUP = 1 << 20  # TensorFlow uses the lower keys for its own groups of devices, from 1 on
# The most pieces, of 4 MB or more, into which one collective splits a vector. With TensorFlow's default of 2 a replica held 1.2 gradients
# more, and the exchange took longer.
PIECES = 24
# The next instance key of each (replica, a, b). Both replicas of a pair must number their sums alike, so all replicas must trace the
# same exchanges in the same order.
_uses = collections.defaultdict(itertools.count)


@dataclass(frozen=True)
class Exchange:
    """What a replica sends and holds, and the sum over all shards.

    Attributes:
        shards, replicas: how many there are; `shards` is a multiple of `replicas`.
        all_reduce: `"ordered"`, or `"fast"`, which is TensorFlow's own sum.
        several_workers: whether the strategy is a `MultiWorkerMirroredStrategy`.
    """

    shards: int
    replicas: int
    all_reduce: str = "ordered"
    several_workers: bool = False

    @property
    def shards_per_replica(self) -> int:
        return self.shards // self.replicas

    @property
    def sends(self) -> int:
        """The vectors that a replica contributes: one if its shards are one subtree, otherwise one for each shard."""
        # Halving the tree k times gives each of 2^k replicas one node.
        one_subtree = self.replicas & (self.replicas - 1) == 0
        return 1 if self.all_reduce == "fast" or one_subtree else self.shards_per_replica

    @property
    def holds(self) -> int:
        """The most vectors that a replica holds at once: those of its shards, those that it sends, those that it receives, the sum
        and the mean."""
        received = self.replicas * self.sends if self._gathers else 1
        return self.shards_per_replica + self.sends + received + 2

    @property
    def _gathers(self) -> bool:
        return self.replicas > 1 and not (self.several_workers or self._one_sum_of_all)

    @property
    def _one_sum_of_all(self) -> bool:
        # a + b is b + a: with two vectors every all-reduce gives the tree's bits.
        return self.all_reduce == "fast" or self.replicas == 2

    def __call__(self, context, parts: list[tf.Tensor], rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the sum over all shards and the rows of all images, on every replica.

        Args:
            context: the replica context.
            parts: vectors `float32[size]` of this replica's shards, in their order, or the `sends` sums of these.
            rows: `float32[images, width]`: the results of this replica's images.

        Returns:
            `float32[size]` and `float32[replicas * images, width]`.
        """
        sums = parts if self.sends == len(parts) else [tree(parts)]
        if self.replicas == 1:
            return sums[0], rows
        size, (images, width) = sums[0].shape[0], rows.shape
        if not self._gathers:
            placed = tf.reshape(_placed(context, rows), [-1])
            vectors = [
                tf.concat([part, placed if k == 0 else _negative_zeros(placed)], axis=0) for k, part in enumerate(sums)
            ]
            # data-parallel: the only communication between replicas in a step.
            if self._one_sum_of_all:
                total = context.all_reduce(tf.distribute.ReduceOp.SUM, vectors[0])
            else:
                number = int(tf.get_static_value(context.replica_id_in_sync_group))
                total = sum_in_pairs(vectors, replica=number, replicas=self.replicas, reduce=_pairs_one_by_one(number))
            total, placed = tf.split(total, [size, -1])
            return total, tf.reshape(placed, [self.replicas * images, width])
        vector = tf.concat([*sums, tf.reshape(rows, [-1])], axis=0)
        # data-parallel: copying is cheap within one process, so every replica gathers all vectors and adds the tree itself.
        gathered = tf.ensure_shape(context.all_gather(vector[tf.newaxis], axis=0), [self.replicas, *vector.shape])
        of_shards, of_images = tf.split(gathered, [len(sums) * size, -1], axis=1)
        parts = tf.unstack(tf.reshape(of_shards, [self.replicas * len(sums), size]))
        return tree(parts), tf.reshape(of_images, [self.replicas * images, width])


def in_order(context, rows: tf.Tensor) -> tf.Tensor:
    """Return the rows `float32[images, width]` of all replicas, in the order of the replicas, on every replica.

    Not with `all_gather`: over workers it returns them in the order of their names as text (0, 1, 10, 2 in TensorFlow 2.21).
    """
    if context.num_replicas_in_sync == 1:
        return rows
    placed = context.all_reduce(tf.distribute.ReduceOp.SUM, _placed(context, rows))
    return tf.reshape(placed, [-1, rows.shape[1]])


def tree(parts: list[tf.Tensor]) -> tf.Tensor:
    """Add the parts in a fixed order: the sum of each half first."""
    if len(parts) == 1:
        return parts[0]
    half = len(parts) // 2
    return _add(tree(parts[:half]), tree(parts[half:]))


def sum_in_pairs(own: Sequence, *, replica: int, replicas: int, reduce: Callable):
    """Return the sum of the tree over the parts of all replicas, on every replica. All replicas hold the same number of parts.

    Args:
        own: the parts of this replica.
        replica, replicas: the number of this replica, and how many there are.
        reduce: takes a vector and two replicas, of which this is one, and returns the sum of the vectors of both.
    """
    count = len(own)

    def holders(low, high):
        return range(low // count, (high - 1) // count + 1)

    def node(low, high):
        """Return the sum of the parts `[low, high)` on each replica that holds one of them; None on the others."""
        if replica not in holders(low, high):
            return None
        if high - low == 1:
            return own[low - replica * count]
        middle = (low + high) // 2
        left, right = node(low, middle), node(middle, high)
        total = _add(left, right) if left is not None and right is not None else None
        of_left, of_right = holders(low, middle), holders(middle, high)
        have_total = [r for r in of_left if r in of_right]  # at most one, whose parts lie on both sides
        have_left, have_right = ([r for r in of if r not in have_total] for of in (of_left, of_right))
        for a, b in zip(have_left, have_right, strict=False):
            if replica in (a, b):
                total = reduce(left if replica == a else right, a, b)
        pairs = min(len(have_left), len(have_right))
        have_total += have_left[:pairs] + have_right[:pairs]
        lack_total = have_left[pairs:] + have_right[pairs:]  # where a level does not split evenly
        for a, b in zip(have_total, lack_total, strict=False):
            if replica in (a, b):
                total = reduce(total if replica == a else _negative_zeros(own[0]), min(a, b), max(a, b))
        return total

    return node(0, count * replicas)


def _pairs_one_by_one(replica: int) -> Callable:
    """Return a function that returns the sum of the vectors of the replicas `a < b`, on both.

    A replica runs its collectives in the order in which they were created. On a GPU, two replicas that start different ones first
    would deadlock."""
    before: list[tf.Tensor] = []

    def reduce(vector: tf.Tensor, a: int, b: int) -> tf.Tensor:
        with tf.control_dependencies(before):
            total = tf.raw_ops.CollectiveReduceV2(
                input=vector, group_size=2, group_key=FIRST_GROUP + b * (b - 1) // 2 + a,
                instance_key=next(_uses[replica, a, b]), ordering_token=[], merge_op="Add", final_op="Id",
                max_subdivs_per_device=PIECES,
            )  # fmt: skip
        before[:] = [total]
        return total

    return reduce


def _placed(context, rows: tf.Tensor) -> tf.Tensor:
    """Return `float32[replicas, images, width]`: this replica's rows at its position, nothing at the others'."""
    here = tf.equal(tf.range(context.num_replicas_in_sync), context.replica_id_in_sync_group)
    return tf.where(here[:, tf.newaxis, tf.newaxis], rows, _negative_zeros(rows))


def _negative_zeros(vector: tf.Tensor) -> tf.Tensor:
    """Return -0.0 everywhere: adding it changes no bit, while adding 0.0 would turn -0.0 into 0.0."""
    return tf.fill(vector.shape, tf.constant(-0.0, vector.dtype))
