"""Batch normalization as TensorFlow's single fused operation, while a shard or the inference is traced.

Keras 3 composes the layer of some ten float32 operations, each of which reads and writes all activations (keras-core#225). The
fused operation passes over them twice, and takes 16-bit activations as they are, with float32 statistics. Models, files and plain
Keras outside of the trace do not change.

Example:
    >>> with normalization.computed("fused", training=True):
    ...     logits = model(images, training=True)
"""

import contextlib
from collections.abc import Iterator
from unittest import mock

import keras
import tensorflow as tf

COMPOSED = keras.layers.BatchNormalization.call
LEAST_EPSILON = 1.001e-5  # of cuDNN
DTYPES = (tf.float32, tf.bfloat16, tf.float16)


@contextlib.contextmanager
def computed(how: str, *, training: bool) -> Iterator[None]:
    """Let each `BatchNormalization` that is traced meanwhile be computed `"fused"`, or as `"keras"` does it.

    Args:
        how: `"fused"` or `"keras"`.
        training: whether a training step is traced, in which only layers in training mode are fused, or an inference. On GPUs the
            gradient of the fused operation is not deterministic in inference mode.
    """
    of_step = training

    def call(self, inputs, training=None, mask=None):
        if bool(training) == of_step and is_covered(self, inputs, mask) and (self.trainable or not training):
            return _fused(self, inputs, bool(training))
        return COMPOSED(self, inputs, training=training, mask=mask)

    with mock.patch.object(keras.layers.BatchNormalization, "call", call if how == "fused" else COMPOSED):
        yield


def is_covered(layer: keras.layers.BatchNormalization, inputs, mask) -> bool:
    """Tell whether the fused operation computes what the layer does: it normalizes the last of four axes."""
    ordinary = (
        mask is None
        and not getattr(layer, "renorm", False)
        and not layer.synchronized
        and layer.epsilon >= LEAST_EPSILON
    )
    own = type(layer)._moments is not keras.layers.BatchNormalization._moments
    return ordinary and not own and len(inputs.shape) == 4 and layer.axis in (-1, 3) and inputs.dtype in DTYPES


def _fused(self, inputs, training: bool):
    moving = [tf.cast(v, tf.float32) for v in (self.moving_mean, self.moving_variance)]
    scale = tf.cast(self.gamma, tf.float32) if self.scale else tf.ones_like(moving[0])
    offset = tf.cast(self.beta, tf.float32) if self.center else tf.zeros_like(moving[0])
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs, scale=scale, offset=offset, mean=[] if training else moving[0], variance=[] if training else moving[1],
        epsilon=self.epsilon, is_training=training,
    )  # fmt: skip
    if training:
        count = tf.cast(tf.size(inputs, tf.int64) // inputs.shape[-1], tf.float32)
        found = mean, variance * ((count - 1) / count)  # Keras averages the variance of the batch, not the unbiased one
        for average, before, now in zip((self.moving_mean, self.moving_variance), moving, found, strict=True):
            average.assign(before * self.momentum + now * (1.0 - self.momentum))
    return tf.cast(outputs, self.compute_dtype)
