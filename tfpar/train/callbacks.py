"""Keras' callbacks in a run, and their state through an interruption."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import keras
import numpy as np

from tfpar import errors, files, validate
from tfpar.steps.step import RATE_OF_STAGES


def checked(callbacks) -> list[keras.callbacks.Callback]:
    """Return the callbacks as a list.

    Raises:
        errors.SettingsError: they are something else, or a callback does what only the run may do.
    """
    kind = keras.callbacks.Callback
    # As fit takes them.
    callbacks = [] if callbacks is None else [callbacks] if isinstance(callbacks, kind) else callbacks
    if not isinstance(callbacks, (list, tuple)) or not all(isinstance(callback, kind) for callback in callbacks):
        validate.reject("callbacks", callbacks, "a list of keras.callbacks.Callback")
    for callback in callbacks:
        if isinstance(callback, (keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau)):
            raise errors.SettingsError(RATE_OF_STAGES.format(who=type(callback).__name__, what="sets the rate"))
        if isinstance(callback, (keras.callbacks.BackupAndRestore, keras.callbacks.SwapEMAWeights)):
            raise errors.SettingsError(f"{type(callback).__name__} repeats what train.run does itself; leave it out")
    return list(callbacks)


def states(callbacks: Sequence[keras.callbacks.Callback]) -> dict:
    """Return the state of each callback that has `get_state()`, by its position, as JSON can hold it."""
    keeping = {str(i): callback for i, callback in enumerate(callbacks) if hasattr(callback, "get_state")}
    return {i: keras.saving.serialize_keras_object(callback.get_state()) for i, callback in keeping.items()}


def restore(callbacks: Sequence[keras.callbacks.Callback], earlier: dict, *, chief: bool) -> None:
    """Give the callbacks their states back; the chief names those that start anew."""
    for i, callback in enumerate(callbacks):
        if hasattr(callback, "set_state") and str(i) in earlier:
            callback.set_state(keras.saving.deserialize_keras_object(earlier[str(i)]))
        elif chief:
            print(f"callback {type(callback).__name__} has no get_state and set_state: it starts without state")


def of_worker(callbacks: Sequence[keras.callbacks.Callback], *, chief: bool) -> list[keras.callbacks.Callback]:
    """Return the callbacks that a worker calls: only the chief calls `CSVLogger` and `ModelCheckpoint`, whose files have one name
    (so it alone knows `ModelCheckpoint.best`)."""
    writing = (keras.callbacks.CSVLogger, keras.callbacks.ModelCheckpoint)
    return [callback for callback in callbacks if chief or not isinstance(callback, writing)]


@contextlib.contextmanager
def rows_kept(callbacks: Sequence[keras.callbacks.Callback], epochs: int) -> Iterator[None]:
    """Let each `CSVLogger` go on behind the rows of the finished epochs, which it would delete when a stage begins.

    One that the user gave `append=True` is left alone: its file holds other runs too.
    """
    loggers = [each for each in callbacks if isinstance(each, keras.callbacks.CSVLogger) and not each.append]
    with contextlib.ExitStack() as patches:
        for logger in loggers if epochs else ():
            patches.enter_context(mock.patch.object(logger, "append", True))
            log = Path(logger.filename)
            if log.exists():  # a killed run may have logged an epoch too many
                files.write(log, "".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[: epochs + 1]))
        yield


class ProgressBar(keras.callbacks.ProgbarLogger):
    """Keras' progress bar; what would make its line wider than 80 columns follows on a line of its own."""

    def __init__(self, images_per_second: Callable[[], float]):
        super().__init__()
        self.images_per_second = images_per_second  # of the epoch that ended

    def on_epoch_end(self, epoch, logs=None):
        validated = {name: value for name, value in _scalars(logs).items() if name.startswith("val_")}
        rate = logs["learning_rate"]
        super().on_epoch_end(epoch, {k: v for k, v in logs.items() if k not in {"learning_rate", *validated}})
        found = ", ".join(f"{name.removeprefix('val_')} {value:.4f}" for name, value in validated.items())
        print(f"validation: {found}; learning rate {rate:.4g}; {self.images_per_second():,.0f} images/s")


class Scalars(keras.callbacks.TensorBoard):
    """TensorBoard without the metrics that give a vector, which it cannot draw."""

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, _scalars(logs))

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, _scalars(logs))


def _scalars(logs: dict | None) -> dict:
    return {name: value for name, value in (logs or {}).items() if np.ndim(value) == 0}
