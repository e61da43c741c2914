"""`train.run`: check everything that was given, and continue the run or begin it."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import keras

from tfpar import errors, files, results, validate
from tfpar.results import writing
from tfpar.results.reading import HISTORY
from tfpar.schedule import Stage
from tfpar.settings import FIELDS, Settings
from tfpar.signals import StopSignal
from tfpar.steps import accepted, objective
from tfpar.train import callbacks as callbacks_of
from tfpar.train import identity
from tfpar.train.loop import Training
from tfpar.workers.group import WorkerGroup, check_connection


def run(
    model: keras.Model,
    data,
    directory: str | os.PathLike,
    *,
    stages: Sequence[Stage],
    global_batch_size: int | None = None,
    shards: int | None = None,
    seed: int = 0,
    augment: str = "none",
    class_weights: Sequence[float] | dict[int, float] | str | None = None,
    scale_learning_rate: bool = True,
    warmup_epochs: float | None = None,
    all_reduce: str = "ordered",
    batch_norm: str | None = None,
    steps_per_call: int | str = "auto",
    checkpoint_seconds: float = 60,
    fresh: bool = False,
    weights: str = "none",
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: int | str | None = None,
) -> results.Run:
    """Train a compiled model in stages, or continue where an earlier call was stopped.

    A stage is one `fit` for callbacks: `on_train_begin` and `on_train_end` are called once for each stage, and once more when an
    interrupted stage continues, so `EarlyStopping` starts afresh in each stage, and `restore_best_weights` takes effect before the
    stage's inference. `params["stage"]` and `params["resumed"]` tell a callback where it is; `model.history` holds the epochs of the
    present stage since it began or continued. The run sets the learning rate of every step (see `schedule`) and refuses a callback that
    changes it. A callback that sets `model.stop_training` ends its stage: after the epoch, or within an epoch after the present call.
    `on_test_begin` and `on_test_end` surround each validation, which has no batches of its own: `on_test_batch_end` is not called.

    Args:
        model: compiled under its strategy; takes `uint8` images, gives logits `[batch, classes]`.
        data: from `prepare.load`; `train` and `validation` are used.
        directory: of the run (see `results`); with several workers one that all of them see.
        stages: one after the other, each with its rates and, if you like, the layers that train in it (see `Stage`). The optimizer's
            slots go on from stage to stage; those of a weight that joins are as the optimizer makes them.
        global_batch_size: images of one step over all replicas; None is 128, rounded up to a multiple of the shards.
        shards: parts the batch is computed in, whoever computes them (see `steps`); None is one per replica.
        seed: of the order, the augmentation and the random layers; from 0 to 2**32 - 1.
        augment: `"none"`, `"flip"` or `"crop-flip"`.
        class_weights: one number per class, on the loss, also as a dictionary; `"balanced"` gives each class the same total weight
            (images / (classes x images of the class)).
        scale_learning_rate: multiply the rates by `global_batch_size / 256` (SGD only).
        warmup_epochs: of the first stage; None is a tenth of it.
        all_reduce: `"ordered"`, or `"fast"`: TensorFlow's own, the same bits for the same number of replicas only.
        batch_norm: `"fused"`, or `"keras"`: composed of several operations, slower (see `steps.normalization`); None is what
            the run began with, and "fused" for a new one.
        steps_per_call: steps in one call into TensorFlow; `"auto"` keeps a call near a quarter of a second.
        checkpoint_seconds: time between two checkpoints; 0 is one after every step.
        fresh: start over; an earlier run is kept beside as `RUN.1`, `RUN.2`, ...
        weights: a name for what the model's weights were before; a continued run must have the same.
        callbacks: of Keras; one with `get_state()` and `set_state(state)` is carried through interruptions.
        verbose: 0 prints only where a run continues, and what has changed since; 1 Keras' bars, 2 a line per epoch; None, or
            "auto" as in `fit`, is 1 on a terminal, else 2.

    Returns:
        The finished run. The model in memory has the run's weights, also where the run was finished before.

    Raises:
        Interrupted: a signal came; the state is saved.
        errors.SettingsError: the run was begun with other settings, or they contradict each other.
        errors.OutputError: the directory holds something else, or another process trains in it.
        errors.WorkerLost: another worker has gone; start all again.
    """
    given = locals()
    settings = Settings(**{name: given[name] for name in FIELDS})
    if not settings.stages:
        validate.reject("stages", stages, "a list of at least one stage, such as [Stage(epochs=10, learning_rate=0.1)]")
    callbacks, directory = callbacks_of.checked(callbacks), validate.path("directory", directory)
    with errors.translated(UnicodeError, errors.SettingsError, f"{str(directory)!r} is not in UTF-8; rename it"):
        str(directory).encode()
    accepted.check(model, sets_rate=True)
    settings = replace(settings, class_weights=identity.check_fit(model, data, class_weights))
    group = WorkerGroup(model.distribute_strategy)
    with group.worker_loss_as_error():
        check_connection(group.strategy)
        there = group.chief and not fresh and (directory / "run.json").exists()
        earlier = group.from_chief(results.Run(directory).facts if there else None)
        settings = settings.resolved(group.strategy.num_replicas_in_sync, earlier and earlier["settings"])
        fingerprint = identity.fingerprint(model, data, settings)
        if earlier:
            of_keras = earlier.get("environment", {}).get("keras", keras.__version__)
            identity.agree(earlier["settings"], fingerprint, model, of_keras=of_keras)
        training = Training(model, data, directory, settings, fingerprint, callbacks, group)
        if not earlier:  # an earlier version took these
            objective.check_names(model, HISTORY)
            identity.check_opens_again(model)
        if earlier and earlier["finished"] and len(earlier["settings"]["stages"]) == len(settings.stages):
            training.restore()
            return results.Run(directory)  # nothing is written
        claimed = _claimed(directory, fresh) if group.chief else contextlib.nullcontext()
        with StopSignal(deferred=True) as stop, claimed:
            return training.run(stop)


@contextlib.contextmanager
def _claimed(directory: Path, fresh: bool):
    """Hold the run's lock; with `fresh` an earlier run is kept beside before."""
    if fresh:
        writing.keep_earlier_run(directory)
    with files.locked(writing.claim_directory(directory) / ".lock", "another run"):
        yield
