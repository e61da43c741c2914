"""Image classifiers as plain, uncompiled `keras.Model`s.

All of them take `uint8` images as they are on the disk, rescale inside, and return logits (`float32`, also under
mixed precision): the loss is then `SparseCategoricalCrossentropy(from_logits=True)`. They hold built-in layers only,
so that a saved one opens where tfpar is not installed.

Example:
    >>> with strategy.scope():           # data-parallel: the variables must be born where the replicas are
    ...     model = models.resnet(data.image_shape, data.num_classes, depth=20)
"""

from tfpar.models import caffe
from tfpar.models.networks import backbone, build, resnet, resnet18, small_cnn

__all__ = ["backbone", "build", "caffe", "resnet", "resnet18", "small_cnn"]
