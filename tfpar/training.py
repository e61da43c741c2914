"""A run at work: stages, epochs and calls; what is saved when, and what several workers agree on between two calls.

Every worker of a run goes through the same moments. The chief alone prints, logs and writes; what only it can know
(a signal it got, how long a call took, whether a checkpoint is due) it shares after each call.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import keras

from tfpar import checkpoint, devices, engine, errors, files, inference, report, results, schedule, settings, steps
from tfpar.schedule import Stage
from tfpar.signals import Interrupted, Stop
from tfpar.workers import Group


class Training:
    """One run at work. Its progress is a handful of numbers; with the variables they are the whole state."""

    def __init__(self, model: keras.Model, data, directory: Path, values: dict, callbacks, stop: Stop, group: Group):
        self.model, self.data, self.directory, self.values = model, data, directory, values
        self.stop, self.group, self.verbose = stop, group, 0
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
        self.due = False  # a checkpoint

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
        found = self._open() if self.group.chief else None
        self._say(devices.describe(self.group.strategy, global_batch_size=self.batch, shards=self.values["shards"]))
        if self.group.size > 1:  # the others get from the chief what it found
            known = self.group.from_chief(found and (found[0], [entry for entry, _ in found[1]]))
            content = self.group.bytes_from_chief(b"".join(piece for _, piece in found[1]) if found else b"")
            found = known and (known[0], checkpoint.cut(content, known[1]))
        self.resumed = found[0] if found else None
        if found:
            self._restore(*found)

    def _open(self) -> tuple[dict, list] | None:
        """Write run.json, and return the newest checkpoint of a run that is there already."""
        files.remove_leftovers(self.directory)
        found = checkpoint.newest(self.directory / "checkpoints")
        environment = settings.environment()
        self.facts = {
            "format": 1,
            "settings": self.values,
            "data": {
                "directory": os.path.abspath(self.data.directory), "name": self.data.name, "fingerprint": self.data.fingerprint,
                "class_names": self.data.class_names, "image_shape": list(self.data.image_shape), "verified": self.data.verified,
            },
            "devices": devices.describe(self.group.strategy, global_batch_size=self.batch, shards=self.values["shards"]),
            "environment": environment,
            "finished": False,
        }  # fmt: skip
        if (self.directory / "run.json").exists():
            there = results.Run(self.directory)  # read again: another process may have been faster to the lock
            settings.agree(there.settings, self.values)
            if not found and (there.finished or there.stages > 1):
                raise errors.DataError(
                    f"{self.directory / 'checkpoints'}: none is valid, so the run cannot continue; start over with --fresh"
                )
            if not found and there.stages:  # it ended between the first stage's results and the first checkpoint
                print(f"{self.directory}: no checkpoint yet, so the first stage is trained again")
            settings.tell_changes(there.facts["environment"], environment)
        results.write_facts(self.directory, self.facts)
        return found

    def _restore(self, progress: dict, values) -> None:
        with self.group.strategy.scope():
            checkpoint.restore(self.variables, values, self.group.strategy)
        self.step.number, self.stage, self.stage_start = progress["step"], progress["stage"], progress["stage_start"]
        self.rows, self.ending, self.seconds = progress["rows"], progress["ending"], progress["seconds"]
        self.step.losses, self.step.hits, self.step.images = progress["losses"], progress["hits"], progress["images"]
        epoch, epochs = min(len(self.rows) + 1, self._epochs()), self._epochs()
        if self.group.chief:
            print(f"continuing after step {self.step.number}, in epoch {epoch} of {epochs}")

    def _save(self) -> None:
        values = checkpoint.values_of(self.variables)  # by all workers: a metric's is the sum of what each holds
        if self.group.chief:
            self._write(values)
        self.saved = time.monotonic()

    def _write(self, values) -> None:
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
        checkpoint.save(self.directory / "checkpoints", self.variables, progress, values=values)

    def _finish(self) -> results.Run:
        if self.group.chief:
            last = self.directory / results.stage_path(len(self.stages)) / "model.keras"
            files.write(self.directory / "model.keras", last.read_bytes())
            report.write(results.Run(self.directory), self.data.validation)
            results.write_facts(self.directory, self.facts | {"finished": True})
        self.group.wait()
        return results.Run(self.directory)

    # ---- one stage

    def _train_stage(self) -> None:
        stage = self.stages[self.stage]
        told = schedule.told(stage, epoch_steps=self.epoch_steps, factor=self.factor, global_batch_size=self.batch)
        self._say(f"stage {self.stage + 1} of {len(self.stages)}: {told}")
        logs = [keras.callbacks.TensorBoard(self.directory / "tensorboard", write_graph=False)] * self.group.chief
        callbacks = keras.callbacks.CallbackList(
            [_EpochEnd(self), *self.callbacks, *logs],
            add_progbar=self.verbose != 0, model=self.model, verbose=self.verbose, epochs=self._epochs(), steps=self.epoch_steps,
        )  # fmt: skip
        batches = engine.train_batches(
            self.data.train, self.group.strategy, global_batch_size=self.batch, seed=self.values["seed"],
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
            self._agree()
            if self.step.number < last and self.due:
                self._save()
        callbacks.on_epoch_end(len(self.rows), logs)
        self._agree()
        if self.due:
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

    def _agree(self) -> None:
        """Learn from all workers what one alone knows: a signal, an ended stage, a due checkpoint, the next call's length."""
        due = time.monotonic() - self.saved >= self.checkpoint_seconds
        own = [self.stop.asked, bool(self.model.stop_training), *([due, self.auto] if self.group.chief else [0, 0])]
        asked, ending, due, self.auto = self.group.sum(own).tolist()
        self.ending, self.due = bool(ending), bool(due)
        if asked:
            raise Interrupted(self.step.number)

    def _between(self) -> None:
        if self.group.sum([self.stop.asked])[0]:
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
        if self.group.chief:
            results.write_history(self.directory, self.rows)

    def _finish_stage(self) -> None:
        """Run inference on the whole validation set with the weights of the stage's end, and save it."""
        logits, losses = self.inference(self.data.validation, between=self._between)
        predictions = results.predictions_table(logits, self.data.validation)
        computed = results.metrics(predictions, losses, self.data.class_names)
        if self.group.chief:
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
        if not self.step.more_metrics:  # Keras' own would be read from the devices, and are less exact
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
            elif self.group.chief:
                print(f"callback {type(callback).__name__} has no get_state and set_state: it starts anew")
        self.resumed = None


class _EpochEnd(keras.callbacks.Callback):
    """The first callback: it adds the validation numbers, so that the others see them."""

    def __init__(self, training: Training):
        super().__init__()
        self.training = training

    def on_epoch_end(self, epoch, logs=None):
        self.training.finish_epoch(logs)
