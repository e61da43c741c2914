"""Models for measuring processes, which import them by name; a slowness is planted where the test wants it."""

import os
import time

import keras
import tensorflow as tf

from tfpar import devices
from tfpar.engine import permutation
from tfpar.steps import exchange

SECONDS = 0.06
OF_INPUT = 0.08  # of each batch; four of them may be made at once

if os.environ.get("CUDA_VISIBLE_DEVICES", "-1") != "-1":  # where a test plays a machine with GPUs
    strategy_of, visible = devices.strategy, len(os.environ["CUDA_VISIBLE_DEVICES"].split(","))
    devices.strategy = lambda: strategy_of(simulate=visible)


def plain():
    print("what the function of a model prints disturbs nobody")
    layers = [keras.layers.Rescaling(1 / 255), keras.layers.AveragePooling2D(16), keras.layers.Flatten()]
    model = keras.Sequential([keras.Input((96, 96, 3)), *layers, keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def slept(tensor, seconds=SECONDS):
    """Return the tensor after a while."""
    first = tf.reshape(tensor, [-1])[0]
    with tf.control_dependencies([tf.numpy_function(lambda _: time.sleep(seconds), [first], [])]):
        return tf.identity(tensor)


def slow_input():
    order = permutation.order
    permutation.order = lambda positions, **options: order(slept(positions, OF_INPUT), **options)
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
