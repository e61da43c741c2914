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

from tfpar.engine.batches import inference_batches, steps_per_epoch, train_batches
from tfpar.engine.permutation import order
from tfpar.settings import AUGMENTATIONS

__all__ = ["AUGMENTATIONS", "inference_batches", "order", "steps_per_epoch", "train_batches"]
