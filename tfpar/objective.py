"""What a compiled model is trained for: its loss, image by image, and what of it the step cannot take."""

from __future__ import annotations

import inspect
import reprlib

import keras
import numpy as np
import tensorflow as tf

from tfpar import errors


def check(model: keras.Model, *, sets_rate: bool = False) -> None:
    """Refuse what would make results depend on the number of replicas, or what is no classifier of images.

    With `sets_rate` the caller sets the learning rate of every step, so the optimizer must not.

    Raises:
        errors.SettingsError: with the remedy.
    """
    if keras.backend.backend() != "tensorflow":
        raise errors.SettingsError(
            f"Keras' backend is {keras.backend.backend()}, tfpar needs tensorflow; set KERAS_BACKEND=tensorflow"
        )
    if not isinstance(model, keras.Model):
        raise errors.SettingsError(f"model={reprlib.repr(model)}: give a compiled keras.Model")
    if not model.compiled or model.optimizer is None:
        raise errors.SettingsError(
            "the model is not compiled; call model.compile(optimizer=..., loss=..., metrics=['accuracy'])"
        )
    if (
        not getattr(model, "inputs", None)
        or len(model.inputs) != 1
        or len(model.outputs) != 1
        or len(model.outputs[0].shape) != 2
    ):
        raise errors.SettingsError(
            f"the model gives {model.output_shape}; give one with one input and logits [batch, classes]"
        )
    for layer in model._flatten_layers(include_self=False, recursive=True):
        if isinstance(layer, keras.layers.BatchNormalization) and layer.synchronized:
            raise errors.SettingsError(
                f"layer {layer.name} has synchronized=True, which ties the shards together; "
                "build it with synchronized=False: each shard is normalized by itself, on any number of replicas"
            )
    if _ends_in_softmax(model):
        raise errors.SettingsError(
            f"model {model.name} ends in a softmax; give logits: leave the last activation out and compile with "
            "SparseCategoricalCrossentropy(from_logits=True)"
        )
    _check_optimizer(model.optimizer, sets_rate)


def _ends_in_softmax(model: keras.Model) -> bool:
    operation = model.outputs[0]._keras_history.operation
    if isinstance(operation, keras.Model):
        return _ends_in_softmax(operation)
    activation = getattr(operation, "activation", None)
    return isinstance(operation, keras.layers.Softmax) or activation in (
        keras.activations.softmax,
        keras.activations.sigmoid,
    )


def _check_optimizer(optimizer: keras.optimizers.Optimizer, sets_rate: bool) -> None:
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if sets_rate and isinstance(inner._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
        raise errors.SettingsError(
            f"the optimizer carries a {type(inner._learning_rate).__name__}; give it a plain number, and say the rates in the "
            "stages: Stage(epochs=10, learning_rate=0.2, final_learning_rate=0.02)"
        )
    if inner.gradient_accumulation_steps:
        raise errors.SettingsError(
            f"the optimizer has gradient_accumulation_steps={inner.gradient_accumulation_steps}; leave that out and take "
            "more shards: they are computed one after the other, at the memory of one"
        )
    if inner.use_ema:
        raise errors.SettingsError(
            "the optimizer has use_ema=True, which changes the weights when fit ends, or fails under a strategy; leave it out"
        )
    if inner.loss_scale_factor:
        raise errors.SettingsError(
            "the optimizer has loss_scale_factor; leave it out, or use mixed_float16, which scales the loss itself"
        )


def build(model: keras.Model) -> keras.losses.Loss:
    """Build loss, metrics and optimizer of a compiled model, and return the loss that gives one value an image.

    Raises:
        errors.SettingsError: it does not, or it takes probabilities instead of logits.
    """
    classes = model.outputs[0].shape[-1]
    images = np.zeros((2, *model.inputs[0].shape[1:]), model.inputs[0].dtype)
    labels = np.arange(2, dtype=np.int32) % classes
    with model.distribute_strategy.scope():
        # What fit does first: it builds the metrics here, and has nothing to build inside a replica.
        model._symbolic_build(data_batch=(tf.constant(images), tf.constant(labels), None))
        model.optimizer.build(model.trainable_variables)
    losses = model._compile_loss._flat_losses if model._compile_loss else []
    if len(losses) != 1 or losses[0].loss_weights not in (None, 1, 1.0):
        raise errors.SettingsError("the model must be compiled with one loss without a weight")
    loss = losses[0].loss
    if _takes_probabilities(loss):
        raise errors.SettingsError(
            f"loss {loss.name} takes probabilities; compile with SparseCategoricalCrossentropy(from_logits=True)"
        )
    try:
        values = per_image(loss, tf.constant(labels), tf.zeros([2, classes]))
    # So all of Keras' losses refuse other labels or shapes. Anything else is a mistake in a loss of the user's own, whose
    # trace shows where.
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        raise errors.SettingsError(
            f"loss {loss.name} does not take int32 labels and logits [batch, {classes}]: {error}"
        ) from error
    if values.shape != (2,):
        raise errors.SettingsError(
            f"loss {loss.name} gives {values.shape} for 2 images; give one that returns a value an image"
        )
    return loss


def _takes_probabilities(loss: keras.losses.Loss) -> bool:
    function = getattr(loss, "fn", None)  # of a loss that wraps a function, as all that Keras names do
    knows_logits = function is not None and "from_logits" in inspect.signature(function).parameters
    return knows_logits and not loss._fn_kwargs.get("from_logits", False)


def per_image(loss: keras.losses.Loss, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return the loss of each image, `float32[batch]`, reduced by nobody."""
    return tf.cast(loss.call(labels, tf.cast(logits, tf.float32)), tf.float32)
