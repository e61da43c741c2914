"""Inference over a whole split, the same bits for every number of replicas.

A split is always cut into the same chunks of 64 images (`engine.inference_batches`); a chunk is one pure function of
weights and images, and the replicas only decide who computes which.

Example:
    >>> logits, losses = inference.Inference(model)(data.validation)
    >>> float((logits.argmax(axis=1) == data.validation.labels).mean())
    0.9...
"""

import itertools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from tfpar import devices, engine, errors, prepare, results
from tfpar.engine.batches import INFERENCE_CHUNK
from tfpar.settings import checked
from tfpar.steps import accepted, exchange, normalization, objective, randomness, shard, tensorflow_repairs

SMALL = 2 << 20  # bytes of a chunk: pictures of up to 104 px in colour


class Inference:
    """Logits and loss of every image of a split; traced once, and called as often as one likes."""

    def __init__(self, model: keras.Model, *, loss: objective.ImageLoss | None = None, batch_norm: str = "fused"):
        """Take a compiled model and its loss (from `objective.build`; built here when not given); `batch_norm` as for `steps.Step`."""
        self.model, self.strategy = accepted.check_dtypes(model), model.distribute_strategy
        self.loss, self.batch_norm = loss or objective.build(model), checked("batch_norm", batch_norm) or "fused"
        self.chunk = exchange.not_inlined(self._chunk)
        self.run = tf.function(self._run, autograph=False, reduce_retracing=True)

    def __call__(self, split, *, between: Callable[[], None] = lambda: None) -> tuple[np.ndarray, np.ndarray]:
        """Run inference over a split; `between` is called between two calls into TensorFlow.

        Returns:
            `float32[N, classes]` logits and `float32[N]` losses, one row per image, in the split's order.
        """
        rows, batches = [], iter(engine.inference_batches(split, self.strategy))
        # The operations of one small chunk leave cores idle, and two large ones might not fit into the memory.
        alone = self.strategy.num_replicas_in_sync == 1 and devices.names(self.strategy) == ["CPU:0"]
        two = alone and split[0][:INFERENCE_CHUNK].nbytes <= SMALL
        while together := list(itertools.islice(batches, 1 + two)):
            with tensorflow_repairs.fixed_order():
                rows.append(self.run(together).numpy())
            between()
        rows = np.concatenate(rows)[: len(split[0])]  # what fills the last chunk is dropped
        return np.ascontiguousarray(rows[:, 1:]), rows[:, 0].copy()

    def _run(self, batches):
        of_replicas = [self.strategy.run(self._replica, args=(batch,)) for batch in batches]
        return tf.concat([self.strategy.experimental_local_results(rows)[0] for rows in of_replicas], axis=0)

    def _replica(self, batch):
        rows = self.chunk(*shard.values_of(self.model), *batch)
        # data-parallel: chunks come back in the order of the replicas, which is the order of the images.
        return exchange.in_order(tf.distribute.get_replica_context(), rows)

    def _chunk(self, trainable, state, images, labels):
        groups = zip(shard.variables_of(self.model), (trainable, state), strict=True)
        given = [pair for variables, values in groups for pair in zip(variables, values, strict=True)]
        # A layer that draws in inference draws the same every time.
        drawn = randomness.drawn_from(tf.zeros([2], tf.uint32))
        with drawn, normalization.computed(self.batch_norm, training=False), keras.StatelessScope(given):
            logits = self.model(images, training=False)
        losses = self.loss(labels, logits)
        return tf.concat([losses[:, tf.newaxis], tf.cast(logits, tf.float32)], axis=1)


def split_for(run: results.Run, data: prepare.Dataset, name: str):
    """Return a split of a data set for a run's model.

    Raises:
        errors.SettingsError: there is none, or it has pictures of another shape, or other classes.
        errors.DataError: no image is in it.
    """
    split, shape = data.splits.get(name), tuple(run.facts["data"]["image_shape"])
    if split is None:
        raise errors.SettingsError(f"{data.directory} has no split {name}; it has {', '.join(data.splits)}")
    if not len(split.labels):
        raise errors.DataError(f"{data.directory}: its split {name} has no image; name another --split")
    if tuple(data.image_shape) != shape:
        both = f"{data.directory} has pictures {tuple(data.image_shape)}, the run was trained on {shape}"
        raise errors.SettingsError(f"{both}; prepare them with --image-size {shape[0]}x{shape[1]}")
    if data.class_names != run.class_names:
        both = f"{data.directory} has {data.num_classes} classes, the run was trained on {len(run.class_names)}"
        other = sorted(set(data.class_names) ^ set(run.class_names))[:5]
        why = f"only one of them has {', '.join(other)}" if other else "they stand in another order"
        raise errors.SettingsError(f"{both}; {why}")
    return split
