"""What Keras needs to train on several workers, until Keras itself does.

`model.fit` under `tf.distribute.MultiWorkerMirroredStrategy` fails in Keras 3 (keras#20585, open since 2024, called
unsupported), and so does `model.evaluate`. `repair` sets three attributes of one model; no function of Keras is replaced. `tests/steps/test_keras_repairs.py`
passes with Keras 3.12 and 3.15, and fails when one of them is no longer needed. On one worker nothing is touched.

Example:
    >>> with strategy.scope():
    ...     model = build()
    >>> keras_repairs.repair(model)                  # steps.install does it too
    >>> model.fit(batches, steps_per_epoch=10); model.evaluate(images, labels)
"""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf


def repair(model: keras.Model) -> None:
    """Let `fit` and `evaluate` of a compiled model work on several workers; `compile` undoes it."""
    if not isinstance(model.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return
    inputs = keras.KerasTensor((1, *model.inputs[0].shape[1:]), model.inputs[0].dtype)
    # Otherwise `fit` would take a batch from the data and average it over the workers outside of a tf.function, which fails.
    with model.distribute_strategy.scope():
        model.optimizer.build(model.trainable_variables)
        model._symbolic_build(data_batch=(inputs, np.zeros(1, np.int32)))
    model._maybe_symbolic_build = lambda iterator=None, data_batch=None: None
    model.train_function = _without_reduction(model, model.train_step)
    model.test_function = _without_reduction(model, model.test_step)


def _without_reduction(model: keras.Model, step: Callable) -> Callable:
    """Return a train or test function. Keras' own reduces the logs of every replica along an axis they do not have; the
    metrics know the sum over all replicas."""

    @tf.function(reduce_retracing=True, autograph=False)
    def one_step(batch):
        model.distribute_strategy.run(step, args=(batch,))

    def function(iterator):
        one_step(next(iterator))
        return model.get_metrics_result()

    return function
