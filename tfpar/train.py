"""Stage 4: train in stages; after each stage run inference on the validation set and save it.

Example:
    >>> with devices.strategy().scope():
    ...     model = models.small_cnn(data.image_shape, data.num_classes)
    ...     model.compile(keras.optimizers.SGD(momentum=0.9),
    ...                   keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    >>> run = train.run(model, data, "runs/fashion", global_batch_size=256,
    ...                 stages=[train.Stage(epochs=10, learning_rate=0.1), train.Stage(epochs=5, learning_rate=0.01)])
    >>> run.metrics(stage=1)["accuracy"]

Stopped at any moment, the same call continues where it was, and ends with the same files as one never stopped.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import keras

from tfpar import (
    checkpoint,
    devices,
    engine,
    errors,
    files,
    inference,
    objective,
    report,
    results,
    rules,
    schedule,
    settings,
    steps,
)
from tfpar.profiling import profile
from tfpar.schedule import Stage
from tfpar.signals import Interrupted, Stop

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
        directory: of the run (see `results`).
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
        verbose: 0 prints nothing, 1 Keras' bars, 2 a line per epoch; None is 1 on a terminal, else 2.

    Returns:
        The finished run.

    Raises:
        Interrupted: a signal came; the state is saved.
        errors.SettingsError: the run was begun with other settings, or they contradict each other.
        errors.OutputError: the directory holds something else, or another process trains in it.
    """
    objective.check(model, sets_rate=True)
    settings.check_fit(model, data)
    directory = rules.path("directory", directory)
    earlier = None if fresh or not (directory / "run.json").exists() else results.Run(directory)
    replicas = model.distribute_strategy.num_replicas_in_sync
    if shards is None:
        shards = earlier.settings["shards"] if earlier else replicas
    if global_batch_size is None:
        global_batch_size = earlier.settings["global_batch_size"] if earlier else engine.default_batch(shards)
    settings.check_numbers(
        global_batch_size=global_batch_size, shards=shards, seed=seed, warmup_epochs=warmup_epochs,
        steps_per_call=steps_per_call, checkpoint_seconds=checkpoint_seconds, stages=stages, augment=augment,
        all_reduce=all_reduce, weights=weights, callbacks=callbacks,
    )  # fmt: skip
    class_weights = rules.class_weights(class_weights, data.num_classes)
    values = settings.of(
        model, data, stages, global_batch_size=global_batch_size, shards=shards, seed=seed, augment=augment,
        class_weights=class_weights, scale_learning_rate=scale_learning_rate, warmup_epochs=warmup_epochs, all_reduce=all_reduce,
        weights=weights,
    )  # fmt: skip
    if earlier:
        settings.agree(earlier.settings, values)
        if earlier.finished and len(earlier.settings["stages"]) == len(stages):
            return earlier
    with Stop() as stop:
        stop.held = True
        training = _Training(model, data, directory, values, callbacks, stop)
        training.steps_per_call, training.checkpoint_seconds = steps_per_call, checkpoint_seconds
        training.verbose = verbose if verbose is not None else 1 if sys.stdout.isatty() else 2
        if fresh and (directory / "run.json").exists():
            with files.locked(directory / ".lock", "another run"):
                results.put_aside(directory)
        with files.locked(results.own_directory(directory) / ".lock", "another run"):
            return training.run()


class _Training:
    """One run at work. Its progress is a handful of numbers; with the variables they are the whole state."""

    def __init__(self, model: keras.Model, data, directory: Path, values: dict, callbacks, stop: Stop):
        self.model, self.data, self.directory, self.values, self.stop = model, data, directory, values, stop
        self.callbacks = list(callbacks)
        self.stages = [Stage(*stage) for stage in values["stages"]]
        self.batch = values["global_batch_size"]
        self.epoch_steps = engine.steps_per_epoch(data.train, global_batch_size=self.batch)
        self.factor = schedule.scale(model.optimizer, self.batch, scale_learning_rate=values["scale_learning_rate"])
        self.step = steps.Step(
            model,
            shards=values["shards"],
            seed=values["seed"],
            learning_rate=self.rate,
            all_reduce=values["all_reduce"],
        )
        self.inference = inference.Inference(model, loss=self.step.loss)
        self.variables = checkpoint.variables_of(model)
        self.stage, self.stage_start = 0, 0  # the stage, counted from 0, and the step it began with
        self.rows: list[dict] = []  # of history.csv
        self.ending = False  # a callback has ended this stage
        self.seconds = 0.0  # of training in this epoch
        self.auto = 0  # steps per call; 0: nothing is traced yet

    # ---- the run

    def run(self) -> results.Run:
        self._begin()
        try:
            while self.stage < len(self.stages):
                self._train_stage()
                self._finish_stage()
        except Interrupted:
            self._save()
            raise Interrupted(self.step.number) from None
        return self._finish()

    def _begin(self) -> None:
        """Write run.json, or continue from the newest checkpoint."""
        files.remove_leftovers(self.directory)
        strategy = self.model.distribute_strategy
        found = checkpoint.newest(self.directory / "checkpoints")
        environment = settings.environment()
        self.facts = {
            "format": 1,
            "settings": self.values,
            "data": {
                "directory": os.path.abspath(self.data.directory), "name": self.data.name, "fingerprint": self.data.fingerprint,
                "class_names": self.data.class_names, "image_shape": list(self.data.image_shape), "verified": self.data.verified,
            },
            "devices": devices.describe(strategy, global_batch_size=self.batch, shards=self.values["shards"]),
            "environment": environment,
            "finished": False,
        }  # fmt: skip
        if (self.directory / "run.json").exists():
            there = results.Run(self.directory)  # read again: another process may have been faster to the lock
            settings.agree(there.settings, self.values)
            if there.stages and not found:
                raise errors.DataError(
                    f"{self.directory / 'checkpoints'}: none is valid, so the run cannot continue; start over with --fresh"
                )
            settings.tell_changes(there.facts["environment"], environment)
        results.write_facts(self.directory, self.facts)
        self._say(self.facts["devices"])
        self.resumed = found[0] if found else None
        if found:
            self._restore(*found)

    def _restore(self, progress: dict, values) -> None:
        with self.model.distribute_strategy.scope():
            checkpoint.restore(self.variables, values, self.model.distribute_strategy)
        self.step.number, self.stage, self.stage_start = progress["step"], progress["stage"], progress["stage_start"]
        self.rows, self.ending, self.seconds = progress["rows"], progress["ending"], progress["seconds"]
        self.step.losses, self.step.hits, self.step.images = progress["losses"], progress["hits"], progress["images"]
        print(
            f"continuing after step {self.step.number}, in epoch {min(len(self.rows) + 1, self._epochs())} of {self._epochs()}"
        )

    def _save(self) -> None:
        carried = {
            str(i): keras.saving.serialize_keras_object(c.get_state())
            for i, c in enumerate(self.callbacks)
            if hasattr(c, "get_state")
        }
        progress = {
            "step": self.step.number, "stage": self.stage, "stage_start": self.stage_start, "rows": self.rows,
            "ending": self.ending, "seconds": self.seconds, "losses": self.step.losses, "hits": self.step.hits,
            "images": self.step.images, "callbacks": carried,
        }  # fmt: skip
        checkpoint.save(self.directory / "checkpoints", self.variables, progress)
        self.saved = time.monotonic()

    def _finish(self) -> results.Run:
        last = self.directory / results.stage_path(len(self.stages)) / "model.keras"
        files.write(self.directory / "model.keras", last.read_bytes())
        report.write(results.Run(self.directory), self.data.validation)
        results.write_facts(self.directory, self.facts | {"finished": True})
        return results.Run(self.directory)

    # ---- one stage

    def _train_stage(self) -> None:
        stage = self.stages[self.stage]
        told = schedule.told(stage, epoch_steps=self.epoch_steps, factor=self.factor, global_batch_size=self.batch)
        self._say(f"stage {self.stage + 1} of {len(self.stages)}: {told}")
        callbacks = keras.callbacks.CallbackList(
            [_EpochEnd(self), *self.callbacks, keras.callbacks.TensorBoard(self.directory / "tensorboard", write_graph=False)],
            add_progbar=self.verbose != 0, model=self.model, verbose=self.verbose, epochs=self._epochs(), steps=self.epoch_steps,
        )  # fmt: skip
        batches = engine.train_batches(
            self.data.train, self.model.distribute_strategy, global_batch_size=self.batch, seed=self.values["seed"],
            first_step=self.step.number, augment=self.values["augment"], class_weights=self.values["class_weights"],
        )  # fmt: skip
        iterator = iter(batches)
        self.model.stop_training = self.ending
        self.saved = time.monotonic()
        self._resume_callbacks("stage")
        callbacks.on_train_begin()
        self._resume_callbacks("epoch")
        while self._inside_epoch() or (not self.ending and self._stage_epoch() < stage.epochs):
            self._train_epoch(callbacks, iterator)
        callbacks.on_train_end()

    def _train_epoch(self, callbacks, iterator) -> None:
        last = self.stage_start + (self._stage_epoch() + 1) * self.epoch_steps
        first = last - self.epoch_steps
        if self.step.number == first:
            self.model.reset_metrics()
            self.step.reset()
            self.seconds = 0.0
        callbacks.on_epoch_begin(len(self.rows))
        self._resume_callbacks("step")
        logs = self._logs()
        while self.step.number < last and not self.ending:
            callbacks.on_train_batch_begin(self.step.number - first)
            self._call(iterator, last - self.step.number)
            logs = self._logs()
            callbacks.on_train_batch_end(self.step.number - first - 1, logs)
            self.ending = bool(self.model.stop_training)
            self._between()
            if self.step.number < last and time.monotonic() - self.saved >= self.checkpoint_seconds:
                self._save()
        callbacks.on_epoch_end(len(self.rows), logs)
        self.ending = bool(self.model.stop_training)
        self._between()
        if time.monotonic() - self.saved >= self.checkpoint_seconds:
            self._save()

    def _call(self, iterator, left: int) -> None:
        """Take as many steps as one call may last; the number changes no bit of the result."""
        count = min(left, max(self.auto, 1) if self.steps_per_call == "auto" else self.steps_per_call)
        count = 1 if self.checkpoint_seconds == 0 else min(count, steps.MOST_STEPS_PER_CALL)
        started = time.perf_counter()
        self.step(iterator, count)
        seconds = time.perf_counter() - started
        self.seconds += seconds
        # The first call traces, so it says nothing; later ones may at most double.
        self.auto = 1 if self.auto == 0 else max(1, min(2 * count, int(steps.CALL_SECONDS * count / seconds)))

    def _between(self) -> None:
        if self.stop.asked:
            raise Interrupted(self.step.number)

    def finish_epoch(self, logs: dict) -> None:
        """Run inference on the validation set and write the epoch's row; other callbacks see its numbers in `logs`."""
        logits, losses = self.inference(self.data.validation, between=self._between)
        logs["loss"], logs["accuracy"] = self.step.losses / self.step.images, self.step.hits / self.step.images
        logs["val_loss"] = results.mean(losses)
        logs["val_accuracy"] = float((logits.argmax(axis=1) == self.data.validation.labels).mean())
        logs["learning_rate"] = self.rate(self.step.number - 1)
        speed = self.step.images / self.seconds
        row = {
            "stage": self.stage + 1,
            "epoch": len(self.rows) + 1,
            "step": self.step.number,
            "images_per_second": speed,
        }
        self.rows.append(row | {name: kind(logs[name]) for name, kind in results.HISTORY.items() if name not in row})
        results.write_history(self.directory, self.rows)

    def _finish_stage(self) -> None:
        """Run inference on the whole validation set with the weights of the stage's end, and save it."""
        logits, losses = self.inference(self.data.validation, between=self._between)
        predictions = results.predictions_table(logits, self.data.validation)
        computed = results.metrics(predictions, losses, self.data.class_names)
        results.write_stage(self.directory, self.stage + 1, predictions, computed, self.model)
        correct = round(computed["accuracy"] * computed["examples"])
        place = self.directory / results.stage_path(self.stage + 1)
        self._say(
            f"stage {self.stage + 1}: accuracy {computed['accuracy']:.4f} ({correct} of {computed['examples']}), in {place}"
        )
        self.stage, self.stage_start, self.ending = self.stage + 1, self.step.number, False
        self._save()
        self._between()

    # ---- small answers

    def _say(self, line: str) -> None:
        if self.verbose:
            print(line)

    def rate(self, number: int) -> float:
        """Return the learning rate of a step of the present stage."""
        stage = self.stages[self.stage]
        warmup = 0
        if self.stage == 0:
            epochs = self.values["warmup_epochs"]
            warmup = round(self.epoch_steps * (schedule.WARMUP * stage.epochs if epochs is None else epochs))
        total = stage.epochs * self.epoch_steps
        return schedule.rate(stage, step=number - self.stage_start, steps=total, warmup=warmup, factor=self.factor)

    def _epochs(self) -> int:
        """Return the epochs of the run up to the end of the present stage."""
        done = sum(row["stage"] <= self.stage for row in self.rows)
        return done + self.stages[self.stage].epochs if self.stage < len(self.stages) else done

    def _stage_epoch(self) -> int:
        """Return how many epochs of the present stage are finished."""
        return sum(row["stage"] == self.stage + 1 for row in self.rows)

    def _logs(self) -> dict:
        images = max(self.step.images, 1)
        logs = {"loss": self.step.losses / images, "accuracy": self.step.hits / images}
        if len(self.step.metric_names) <= len(logs):  # Keras' own would be read from the devices, and are less exact
            return logs
        return {name: float(value) for name, value in self.model.get_metrics_result().items()} | logs

    def _inside_epoch(self) -> bool:
        """Tell whether the steps of an epoch have begun and its row is not written."""
        return self.step.number != (self.rows[-1]["step"] if self.rows else 0)

    def _moment(self) -> str:
        """Return which of Keras' hooks a resumed run has behind it: its callbacks get their state back after that one."""
        if self._inside_epoch():
            return "step"  # on_train_begin and on_epoch_begin
        return "stage" if self.step.number == self.stage_start else "epoch"  # none, or on_train_begin alone

    def _resume_callbacks(self, moment: str) -> None:
        if self.resumed is None or moment != self._moment():
            return
        for i, callback in enumerate(self.callbacks):
            if hasattr(callback, "set_state") and str(i) in self.resumed["callbacks"]:
                callback.set_state(keras.saving.deserialize_keras_object(self.resumed["callbacks"][str(i)]))
            else:
                print(f"callback {type(callback).__name__} has no get_state and set_state: it starts anew")
        self.resumed = None


class _EpochEnd(keras.callbacks.Callback):
    """The first callback: it adds the validation numbers, so that the others see them."""

    def __init__(self, training: _Training):
        super().__init__()
        self.training = training

    def on_epoch_end(self, epoch, logs=None):
        self.training.finish_epoch(logs)
