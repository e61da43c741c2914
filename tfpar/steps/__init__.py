"""The training step under a strategy: the arithmetic is fixed first, devices are assigned to it afterwards.

Floating-point addition is not associative, and "the same up to rounding" does not stay so. Six convolutions without
BatchNorm, in 1 and in 4 shards: weights apart by 3e-9 of their length after 1 step, 8e-5 after 26, 0.14 after 80. The
small CNN in 4 shards, added in the tree below and one after the other: 2e-8, 2e-7, 2e-3 (digits, SGD; the picture is in
tutorial/en/05_replicas.md). The step here gives the same bits on any number of replicas, because the
replicas have no say in the arithmetic:

1. The global batch of `B` rows is always `V` **shards** of `B/V` consecutive rows. Replica `r` of `R` computes the
   shards `[rV/R, (r+1)V/R)`, one after the other.
2. A shard is one pure function: weights, state, rows, labels, random key in; gradient, new state, logits out. It
   does not know how many replicas there are.
3. The `V` results are added in one order, a binary tree over the shard numbers, whatever `R` is.
4. Every replica applies the same update to its copy of the weights.

        rows of the global batch      shards        the tree (V = 4)        replicas may be 1, 2 or 4
        [0 .. B/4)                    shard 0  --+
        [B/4 .. B/2)                  shard 1  --+-- sum --+
        [B/2 .. 3B/4)                 shard 2  --+         +-- sum -> update
        [3B/4 .. B)                   shard 3  --+-- sum --+

The idea of fixed virtual shards is that of virtual nodes (VirtualFlow, Or et al. 2022) and of accuracy-consistent
elasticity (EasyScale, Li et al. 2023). Batch normalization sees its own shard (ghost batch norm, Hoffer et al. 2017).

Example:
    >>> steps.install(model, shards=4)          # from here on fit takes this step
    >>> model.fit(batches, steps_per_epoch=epoch, epochs=3)
"""

from tfpar.steps.fit import install
from tfpar.steps.step import Step

__all__ = ["Step", "install"]
