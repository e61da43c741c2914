"""Train in stages; after each stage run inference on the validation set and save it.

Example:
    >>> with devices.strategy().scope():
    ...     model = models.small_cnn(data.image_shape, data.num_classes)
    ...     model.compile(keras.optimizers.SGD(momentum=0.9),
    ...                   keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    >>> run = train.run(model, data, "runs/fashion", global_batch_size=256,
    ...                 stages=[train.Stage(epochs=10, learning_rate=0.1), train.Stage(epochs=5, learning_rate=0.01)])
    >>> run.metrics(stage=1)["accuracy"]

Stopped at any moment, the same call continues where it was, and ends with the same files as one never stopped. On several
workers (see `workers`) all of them make the same call, and the first alone prints and writes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import keras

from tfpar import engine, files, objective, results, rules, settings
from tfpar.profiling import profile
from tfpar.schedule import Stage
from tfpar.signals import Interrupted, Stop
from tfpar.training import Training
from tfpar.workers import Group, check_connection

__all__ = ["Interrupted", "Stage", "profile", "run"]


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
    class_weights: Sequence[float] | None = None,
    scale_learning_rate: bool = True,
    warmup_epochs: float | None = None,
    all_reduce: str = "ordered",
    steps_per_call: int | str = "auto",
    checkpoint_seconds: float = 60,
    fresh: bool = False,
    weights: str = "none",
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: int | None = None,
) -> results.Run:
    """Train a compiled model in stages, or continue where an earlier call was stopped.

    The learning rate is set for every step (see `schedule`); a callback that changes it has no effect. A callback that
    sets `model.stop_training` ends its stage after that epoch.

    Args:
        model: compiled under its strategy; takes `uint8` images, gives logits `[batch, classes]`.
        data: from `prepare.load`; `train` and `validation` are used.
        directory: of the run (see `results`); with several workers one that all of them see.
        stages: one after the other; optimizer slots go on from stage to stage.
        global_batch_size: images of one step over all replicas; None is 128, rounded up to a multiple of the shards.
        shards: parts the batch is computed in, whoever computes them (see `steps`); None is one per replica.
        seed: of the order, the augmentation and the random layers; from 0 to 2**32 - 1.
        augment: `"none"`, `"flip"` or `"crop-flip"`.
        class_weights: one number per class, on the loss.
        scale_learning_rate: multiply the rates by `global_batch_size / 256` (SGD only).
        warmup_epochs: of the first stage; None is a tenth of it.
        all_reduce: `"ordered"`, or `"fast"`: TensorFlow's own, the same bits for the same number of replicas only.
        steps_per_call: steps in one call into TensorFlow; `"auto"` keeps a call near a quarter of a second.
        checkpoint_seconds: time between two checkpoints; 0 is one after every step.
        fresh: start over; an earlier run is kept beside as `RUN.1`, `RUN.2`, ...
        weights: a name for what the model's weights were before; a continued run must have the same.
        callbacks: of Keras; one with `get_state()` and `set_state(state)` is carried through interruptions.
        verbose: 0 prints only where a run continues, and what has changed since; 1 Keras' bars, 2 a line per epoch; None is 1
            on a terminal, else 2.

    Returns:
        The finished run.

    Raises:
        Interrupted: a signal came; the state is saved.
        errors.SettingsError: the run was begun with other settings, or they contradict each other.
        errors.OutputError: the directory holds something else, or another process trains in it.
        errors.WorkerLost: another worker has gone; start all again.
    """
    objective.check(model, sets_rate=True)
    settings.check_fit(model, data)
    group, directory = Group(model.distribute_strategy), rules.path("directory", directory)
    with group.losses_told():
        check_connection(group.strategy)
        there = group.chief and not fresh and (directory / "run.json").exists()
        earlier = group.from_chief(results.Run(directory).facts if there else None)
        if shards is None:
            shards = earlier["settings"]["shards"] if earlier else group.strategy.num_replicas_in_sync
        if global_batch_size is None:
            global_batch_size = earlier["settings"]["global_batch_size"] if earlier else engine.default_batch(shards)
        settings.check_numbers(
            global_batch_size=global_batch_size, shards=shards, seed=seed, warmup_epochs=warmup_epochs,
            steps_per_call=steps_per_call, checkpoint_seconds=checkpoint_seconds, stages=stages, augment=augment,
            all_reduce=all_reduce, weights=weights, callbacks=callbacks,
        )  # fmt: skip
        class_weights = rules.class_weights(class_weights, data.num_classes)
        values = settings.of(
            model, data, stages, global_batch_size=global_batch_size, shards=shards, seed=seed, augment=augment,
            class_weights=class_weights, scale_learning_rate=scale_learning_rate, warmup_epochs=warmup_epochs,
            all_reduce=all_reduce, weights=weights,
        )  # fmt: skip
        if earlier:
            settings.agree(earlier["settings"], values)
            if earlier["finished"] and len(earlier["settings"]["stages"]) == len(stages):
                return results.Run(directory)
        with Stop() as stop:
            stop.held = True
            training = Training(model, data, directory, values, callbacks, stop, group)
            training.steps_per_call, training.checkpoint_seconds = steps_per_call, checkpoint_seconds
            if group.chief:
                training.verbose = verbose if verbose is not None else 1 if sys.stdout.isatty() else 2
            with _owned(directory, fresh=fresh) if group.chief else contextlib.nullcontext():
                return training.run()


@contextlib.contextmanager
def _owned(directory: Path, *, fresh: bool):
    """Hold the run's lock; with `fresh` an earlier run is put aside before."""
    if fresh:
        results.put_aside(directory)
    with files.locked(results.own_directory(directory) / ".lock", "another run"):
        yield
