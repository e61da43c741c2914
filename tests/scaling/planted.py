"""Models for measuring processes, which import them by name, with a slowness planted where the test wants it."""

import os
import time

import keras
import tensorflow as tf

from tfpar import devices, models
from tfpar.engine import permutation
from tfpar.steps import exchange

SECONDS = 0.05

if os.environ.get("CUDA_VISIBLE_DEVICES", "-1") != "-1":  # where a test plays a machine with GPUs
    strategy_of, visible = devices.strategy, len(os.environ["CUDA_VISIBLE_DEVICES"].split(","))
    devices.strategy = lambda: strategy_of(simulate=visible)


def plain():
    print("what a model's function prints disturbs nobody")
    model = models.small_cnn((8, 8, 1), 10)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def slept(tensor):
    """Return the tensor after a while."""
    with tf.control_dependencies([tf.numpy_function(lambda _: time.sleep(SECONDS), [tf.reshape(tensor, [-1])[0]], [])]):
        return tf.identity(tensor)


def slow_input():
    """Each call of the pipeline sleeps for so many seconds a batch that it makes, and nothing runs beside it."""
    order = permutation.order
    permutation.order = lambda positions, **options: order(slept(positions), **options)
    return plain()


def slow_exchange():
    exchanged = exchange.Exchange.__call__
    exchange.Exchange.__call__ = lambda made, context, parts, rows: exchanged(made, context, [*map(slept, parts)], rows)
    return plain()


def slow_second_worker():
    from tfpar.steps.shard import Shard

    if os.environ.get("JOB_COMPLETION_INDEX") == "1":
        computed = Shard.__call__
        Shard.__call__ = lambda shard, *arguments: [slept(each) for each in computed(shard, *arguments)]
    return plain()


def broken():
    raise ZeroDivisionError("a mistake of the user")


def no_model():
    return "resnet20"
