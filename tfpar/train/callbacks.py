"""Keras' callbacks in a run, and their state through an interruption."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import keras

from tfpar import errors, files, validate
from tfpar.steps.step import RATE_OF_STAGES


def checked(callbacks) -> list[keras.callbacks.Callback]:
    """Return the callbacks as a list.

    Raises:
        errors.SettingsError: they are something else, or a callback does what only the run may do.
    """
    kind = keras.callbacks.Callback
    if not isinstance(callbacks, (list, tuple)) or not all(isinstance(callback, kind) for callback in callbacks):
        validate.reject("callbacks", callbacks, "a list of keras.callbacks.Callback")
    for callback in callbacks:
        if isinstance(callback, (keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau)):
            raise errors.SettingsError(
                RATE_OF_STAGES.format(who=type(callback).__name__, what="changes the learning rate")
            )
        if isinstance(callback, (keras.callbacks.BackupAndRestore, keras.callbacks.SwapEMAWeights)):
            raise errors.SettingsError(
                f"{type(callback).__name__} writes the model's weights, which train.run saves and restores itself; leave it out"
            )
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


def keep_rows(callbacks: Sequence[keras.callbacks.Callback], epochs: int) -> None:
    """Let each `CSVLogger` go on behind the rows of the epochs that are finished, which it would delete at the start of a stage."""
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.CSVLogger) and epochs and os.path.exists(callback.filename):
            callback.append = True
            with open(callback.filename, encoding="utf-8") as file:
                lines = file.readlines()
            files.write(
                callback.filename, "".join(lines[: epochs + 1])
            )  # a killed run may have logged an epoch too many


class EpochEnd(keras.callbacks.Callback):
    """The first callback: it adds the validation numbers to the logs, so that the others see them."""

    def __init__(self, finish_epoch: Callable[[dict], None]):
        super().__init__()
        self.finish_epoch = finish_epoch

    def on_epoch_end(self, epoch, logs=None):
        self.finish_epoch(logs)
