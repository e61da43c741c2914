"""The training step under a strategy. The arithmetic is fixed first; devices are assigned to it afterwards.

Floating-point addition is not associative, and a difference in rounding does not stay small. When a network of six convolutions
is trained with 1 shard and with 4, the weights differ (relative L2 norm) by 2e-9 after 1 step, 7e-5 after 40 and 2e-3 after 160
(tutorial/en/05_replicas.md draws this). With the same `shards`, this step gives the same bits on any number of replicas that divides
`shards`, on the same kind of processor and with the same version of TensorFlow, because the arithmetic does not depend on the replicas:

1. The global batch of `B` rows always consists of `V` **shards** of `B/V` consecutive rows. Replica `r` of `R` computes the
   shards `[rV/R, (r+1)V/R)`. By default `V` is the number of replicas.
2. A pure function computes each shard from the model's variables, the loss scale, the shard's rows, the step number and the shard
   number (`shard`). Operations whose bits depend on the threads are replaced or refused (`tensorflow_repairs`, `accepted`).
3. The `V` vectors of gradients and state are added in a fixed order, a binary tree over the shard numbers, and the sum is divided by
   `V` (`exchange`). Losses and logits are not added; they are collected in the order of the images.
4. Every replica applies the same update to its copy of the weights (`step`).

The tree over four shards, on 1, 2 or 4 replicas:

        rows of the global batch      shards        the tree
        [0 .. B/4)                    shard 0  --+
        [B/4 .. B/2)                  shard 1  --+-- sum --+
        [B/2 .. 3B/4)                 shard 2  --+         +-- sum -> update
        [3B/4 .. B)                   shard 3  --+-- sum --+

Fixed virtual shards follow the virtual nodes of VirtualFlow (Or et al. 2022) and the accuracy-consistent elasticity of EasyScale
(Li et al. 2023). `BatchNormalization` normalizes each shard with that shard's own statistics (ghost batch norm, Hoffer et
al. 2017). Comments that begin with "data-parallel:" mark the lines that exist only because there are several replicas.

Example:
    >>> steps.install(model, shards=4)          # from now on fit uses this step
    >>> model.fit(batches, steps_per_epoch=10, epochs=3)
"""

from tfpar.steps.fit import install
from tfpar.steps.step import Step

__all__ = ["Step", "install"]
