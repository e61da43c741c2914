"""Keras' callbacks in a run, and their state through an interruption."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras

from tfpar import validate


def checked(callbacks) -> list[keras.callbacks.Callback]:
    """Return the callbacks as a list.

    Raises:
        errors.SettingsError: they are something else.
    """
    kind = keras.callbacks.Callback
    if not isinstance(callbacks, (list, tuple)) or not all(isinstance(callback, kind) for callback in callbacks):
        validate.reject("callbacks", callbacks, "a list of keras.callbacks.Callback")
    return list(callbacks)


def states(callbacks: Sequence[keras.callbacks.Callback]) -> dict:
    """Return the state of each callback that has `get_state()`, by its position, as JSON can hold it."""
    return {
        str(i): keras.saving.serialize_keras_object(callback.get_state())
        for i, callback in enumerate(callbacks)
        if hasattr(callback, "get_state")
    }


def restore(callbacks: Sequence[keras.callbacks.Callback], earlier: dict) -> list[str]:
    """Give the callbacks their states back; return the class names of those that start anew."""
    anew = []
    for i, callback in enumerate(callbacks):
        if hasattr(callback, "set_state") and str(i) in earlier:
            callback.set_state(keras.saving.deserialize_keras_object(earlier[str(i)]))
        else:
            anew.append(type(callback).__name__)
    return anew


class EpochEnd(keras.callbacks.Callback):
    """The first callback: it adds the validation numbers to the logs, so that the others see them."""

    def __init__(self, finish_epoch: Callable[[dict], None]):
        super().__init__()
        self.finish_epoch = finish_epoch

    def on_epoch_end(self, epoch, logs=None):
        self.finish_epoch(logs)
