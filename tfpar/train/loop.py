"""The loop of a run: begin or restore; for each stage train its epochs, run inference and save; finish.

Every worker of a run goes through the same moments. The chief alone prints, logs and writes; what only it can know
(a signal it got, how long a call took, whether a checkpoint is due) the workers agree on after each call.
"""

import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import keras
import numpy as np

from tfpar import devices, engine, errors, files, machine, results, schedule
from tfpar.results import predictions, report, writing
from tfpar.results.reading import HISTORY, stage_path
from tfpar.settings import MOST_STEPS_PER_CALL, Settings
from tfpar.signals import Interrupted, StopSignal
from tfpar.steps import objective
from tfpar.steps.step import Counts, Step
from tfpar.train import callbacks as callbacks_of
from tfpar.train import checkpoint, freezing, identity
from tfpar.train.inference import Inference
from tfpar.workers.group import WorkerGroup

TRAINED = "trained_weights"  # a column of history.csv where a stage says what trains
CALL_SECONDS = 0.25  # how long one call into TensorFlow may last with "auto": a signal waits for its end
SHARE_OF_START = 0.1  # of a running average: what may be left of its first value at the end of a run


@dataclass
class Progress:
    """How far a run has come; with the model's variables it is the whole state, and what a checkpoint holds.

    Attributes:
        counts: of the step.
        stage: the present one, counted from 0; the number of stages when all are finished.
        stage_start: the step it began with.
        rows: of `history.csv`.
        seconds: of training in this epoch.
        ending: whether a callback has ended this stage.
    """

    counts: Counts
    stage: int = 0
    stage_start: int = 0
    rows: list[dict] = field(default_factory=list)
    seconds: float = 0.0
    ending: bool = False

    def as_json(self) -> dict:
        values = asdict(self)
        counts = values.pop("counts")
        return values | {"hits": counts.pop("correct")} | counts  # its name in checkpoints of the first version

    @classmethod
    def of_json(cls, values: dict, counts: Counts) -> "Progress":
        """Read what `as_json` has made, and write the counts into those of a step."""
        counts.step, counts.losses, counts.correct = values["step"], values["losses"], values["hits"]
        counts.images = values["images"]
        return cls(counts, *(values[name] for name in ("stage", "stage_start", "rows", "seconds", "ending")))

    @property
    def inside_epoch(self) -> bool:
        """Whether the steps of an epoch have begun and its row is not written."""
        return self.counts.step != (self.rows[-1]["step"] if self.rows else 0)

    @property
    def stage_epochs(self) -> int:
        """The finished epochs of the present stage."""
        return sum(row["stage"] == self.stage + 1 for row in self.rows)


class Training:
    """The training of a run, on one of its workers."""

    def __init__(
        self, model: keras.Model, data, directory: Path, settings: Settings, fingerprint: dict, callbacks: list,
        group: WorkerGroup,
    ):  # fmt: skip
        """Prepare a run.

        Args:
            model, data, directory, callbacks: as for `train.run`.
            settings: resolved.
            fingerprint: from `identity.fingerprint`; what a continued run must have again.
            group: of all workers.
        """
        self.model, self.data, self.directory, self.settings = model, data, directory, settings
        self.fingerprint, self.callbacks, self.group = fingerprint, callbacks, group
        automatic = 1 if sys.stdout.isatty() else 2
        self.verbose = (automatic if settings.verbose in (None, "auto") else settings.verbose) * group.chief
        batch = settings.global_batch_size
        self.devices = devices.describe(group.strategy, global_batch_size=batch, shards=settings.shards)
        self.epoch_steps = engine.steps_per_epoch(data.train, global_batch_size=batch)
        self.factor = schedule.scale(model.optimizer, batch, scale_learning_rate=settings.scale_learning_rate)
        with freezing.at_most(model, settings.stages):
            self.step = Step(model, learning_rate=self.rate, **settings.of_the_step())
        self.inference = Inference(model, loss=self.step.loss, batch_norm=settings.batch_norm)
        self.variables, self.given_weights = checkpoint.variables_of(model), freezing.count(model)
        self.progress = Progress(self.step.counts)
        self.callback_states: dict | None = None  # of an earlier process, until they are given back
        self.automatic_steps = 0  # per call; 0: nothing is traced yet
        self.checkpoint_due = False

    def run(self, stop: StopSignal) -> results.Run:
        """Begin or continue, and return the finished run; `stop` asks for the end."""
        self.stop = stop
        self._begin()
        try:
            while self.progress.stage < len(self.settings.stages):
                with freezing.at(self.model, self.settings.stages, self.progress.stage):
                    self._train_stage()
                self._finish_stage()
        except Interrupted:
            self._save()
            raise Interrupted(self.step.counts.step, of=self._steps()) from None
        return self._finish()

    # ---- the run

    def _begin(self) -> None:
        """Write run.json, or continue from the newest checkpoint."""
        found = self._open() if self.group.chief else None
        self._print(self.devices)
        self._warn_of_slow_averages()
        progress = self._restored(found)
        if progress:
            self.progress = Progress.of_json(progress, self.step.counts)
            self.callback_states = progress["callbacks"]
            if self.group.chief:
                epochs = self._epochs()
                epoch = min(len(self.progress.rows) + 1, epochs)
                print(f"continuing after step {self.step.counts.step}, in epoch {epoch} of {epochs}")

    def _warn_of_slow_averages(self) -> None:
        steps, slow = self._steps(), []
        averaging = [each for each in self.model._flatten_layers() if isinstance(each, keras.layers.BatchNormalization)]
        for number in range(len(self.settings.stages)):
            with freezing.at(self.model, self.settings.stages, number):
                slow += [each for each in averaging if each.trainable and each.momentum**steps > SHARE_OF_START]
        if slow:
            why = f"layer {slow[0].name}: its running averages need more than the {steps} steps of this run"
            todo = f"train longer, or build it with a smaller momentum than {slow[0].momentum:g}"
            self._print(f"{why}, so validation lags behind training; {todo}")

    def _restored(self, found: tuple[dict, list] | None, count: int | None = None) -> dict | None:
        """Write the values of a checkpoint that the chief has found, or the first `count`, on all workers; return its progress."""
        if self.group.size > 1:
            known = self.group.from_chief(found and (found[0], [entry for entry, _ in found[1]]))
            content = self.group.bytes_from_chief(b"".join(piece for _, piece in found[1]) if found else b"")
            found = known and (known[0], checkpoint.cut(content, known[1]))
        if not found:
            return None
        checkpoint.restore(self.variables[:count], found[1][:count], self.group.strategy)
        return found[0]

    def restore(self) -> None:
        """Give the model the weights of a finished run; nothing is written, unless a checkpoint is damaged."""
        found = checkpoint.newest(self.directory / "checkpoints") if self.group.chief else None
        if not self._restored(found, len(self.model.variables)):  # the optimizer's and the metrics' come behind
            self.model.load_weights(self.directory / "model.keras")

    def _open(self) -> tuple[dict, list] | None:
        """Write run.json, and return the newest checkpoint of a run that is there already."""
        files.remove_leftovers(self.directory)
        found = checkpoint.newest(self.directory / "checkpoints")
        environment = identity.environment()
        if (self.directory / "run.json").exists():
            there = results.Run(self.directory)  # read again: another process may have been faster to the lock
            identity.agree(there.settings, self.fingerprint, self.model)
            if not found and (there.finished or there.stages > 1):
                place = self.directory / "checkpoints"
                raise errors.DataError(f"{place}: none is valid, so the run cannot continue; start over with --fresh")
            if not found and there.stages:  # it ended between the first stage's results and the first checkpoint
                print(f"{self.directory}: no checkpoint yet, so the first stage is trained again")
            identity.tell_changes(there.facts["environment"], environment)
        self.facts = {
            "format": 1,
            "settings": self.fingerprint,
            "data": {
                "directory": os.path.abspath(self.data.directory), "name": self.data.name, "fingerprint": self.data.fingerprint,
                "class_names": self.data.class_names, "image_shape": list(self.data.image_shape), "verified": self.data.verified,
                "examples": {name: len(split.labels) for name, split in self.data.splits.items()},
                "beside": os.path.relpath(self.data.directory, self.directory),
            },
            "command": machine.command(),
            "devices": self.devices,
            "environment": environment,
            "finished": False,
        }  # fmt: skip
        writing.write_facts(self.directory, self.facts)
        return found

    def _save(self) -> None:
        values = checkpoint.values_of(self.variables)  # by all workers: a metric's is the sum of what each holds
        if self.group.chief:
            progress = self.progress.as_json() | {"callbacks": callbacks_of.states(self.callbacks)}
            checkpoint.save(self.directory / "checkpoints", self.variables, progress, values=values)
        self.saved = time.monotonic()

    def _finish(self) -> results.Run:
        if self.group.chief:
            last = self.directory / stage_path(len(self.settings.stages)) / "model.keras"
            files.write(self.directory / "model.keras", last.read_bytes())
            report.write(results.Run(self.directory), self.data.validation)
            writing.write_facts(self.directory, self.facts | {"finished": True})
        self.group.wait()
        return results.Run(self.directory)

    # ---- one stage

    def _train_stage(self) -> None:
        progress, settings = self.progress, self.settings
        stage, batch = settings.stages[progress.stage], settings.global_batch_size
        if self.step.is_outdated():
            self.step.renew()
            self.automatic_steps = 0  # its steps take another time
        described = schedule.describe(stage, epoch_steps=self.epoch_steps, factor=self.factor, global_batch_size=batch)
        self._print(f"stage {progress.stage + 1} of {len(settings.stages)}: {described}")
        # The first callback: it adds the validation numbers to the logs, so that the others see them.
        first = keras.callbacks.LambdaCallback(on_epoch_end=lambda _epoch, logs: self._finish_epoch(logs))
        logs = [callbacks_of.Scalars(self.directory / "tensorboard", write_graph=False)] * self.group.chief
        bar = [callbacks_of.ProgressBar(lambda: progress.rows[-1]["images_per_second"])] * (self.verbose != 0)
        own = callbacks_of.of_worker(self.callbacks, chief=self.group.chief)
        callbacks = keras.callbacks.CallbackList(
            [first, *own, *logs, *bar], model=self.model, add_history=True, verbose=self.verbose, epochs=self._epochs(),
            steps=self.epoch_steps, stage=progress.stage + 1, resumed=self.callback_states is not None,
        )  # fmt: skip
        start = {"first_step": progress.counts.step}
        batches = iter(engine.train_batches(self.data.train, self.group.strategy, **start, **settings.of_the_batches()))
        self.model.stop_training = progress.ending
        self.saved = time.monotonic()
        if self.step.last_rate is None:  # from here on a callback that assigns another one is noticed
            self.step.last_rate = self.step.assigned_rate()
        self._restore_callbacks("stage")
        with callbacks_of.rows_kept(own, len(progress.rows)):
            callbacks.on_train_begin()
        self._restore_callbacks("epoch")
        end = progress.stage_start + schedule.steps_of(stage, self.epoch_steps)
        while progress.inside_epoch or (not progress.ending and progress.counts.step < end):
            self._train_epoch(callbacks, batches, end)
        callbacks.on_train_end()

    def _train_epoch(self, callbacks, batches, end: int) -> None:
        progress, counts = self.progress, self.step.counts
        first = progress.stage_start + progress.stage_epochs * self.epoch_steps
        last = min(first + self.epoch_steps, end)
        if counts.step == first:
            self.model.reset_metrics()
            counts.restart()
            progress.seconds = 0.0
        callbacks.on_epoch_begin(len(progress.rows))
        self._restore_callbacks("step")
        logs = self._logs()
        while counts.step < last and not progress.ending:
            callbacks.on_train_batch_begin(counts.step - first)
            self._call(batches, last - counts.step)
            logs = self._logs()
            callbacks.on_train_batch_end(counts.step - first - 1, dict(logs))
            self._agree()
            if counts.step < last and self.checkpoint_due:
                self._save()
        callbacks.on_epoch_end(len(progress.rows), logs)
        self._agree()
        if self.checkpoint_due:
            self._save()

    def _call(self, batches, left: int) -> None:
        """Take as many steps as one call may last; the number changes no bit of the result."""
        given = self.settings.steps_per_call
        count = min(left, MOST_STEPS_PER_CALL, max(self.automatic_steps, 1) if given == "auto" else given)
        count = 1 if self.settings.checkpoint_seconds == 0 else count
        started = time.perf_counter()
        self.step(batches, count)
        seconds = time.perf_counter() - started
        self.progress.seconds += seconds
        # The first call traces, so its time is not counted; the number of steps may at most double.
        most = min(2 * count, int(CALL_SECONDS * count / seconds))
        self.automatic_steps = max(1, most) if self.automatic_steps else 1

    def _agree(self) -> None:
        """Learn from all workers what one alone knows: a signal, an ended stage, a due checkpoint, the next call's length."""
        due = time.monotonic() - self.saved >= self.settings.checkpoint_seconds
        of_chief = [due, self.automatic_steps] if self.group.chief else [0, 0]
        known = [self.stop.requested, bool(self.model.stop_training), *of_chief]
        asked, ending, due, steps = self.group.sum(known).tolist()
        self.progress.ending, self.checkpoint_due, self.automatic_steps = bool(ending), bool(due), steps
        if asked:
            raise Interrupted(self.step.counts.step)

    def _stop_if_requested(self) -> None:
        if self.group.sum([self.stop.requested])[0]:
            raise Interrupted(self.step.counts.step)

    def _finish_epoch(self, logs: dict) -> None:
        """Run inference on the validation set and write the epoch's row; other callbacks see its numbers in `logs`."""
        progress, counts = self.progress, self.step.counts
        for callback in self.callbacks:
            callback.on_test_begin()
        logits, losses = self.inference(self.data.validation, between=self._stop_if_requested)
        others = (
            objective.metrics_of(self.step.loss, self.data.validation.labels, logits) if self.step.more_metrics else {}
        )
        accuracy = float((logits.argmax(axis=1) == self.data.validation.labels).mean())
        tested = others | {"loss": predictions.mean(losses), "accuracy": accuracy}
        for callback in self.callbacks:
            callback.on_test_end(tested)
        logs |= {f"val_{name}": value for name, value in tested.items()} | {"learning_rate": self.rate(counts.step - 1)}
        row = {
            "stage": progress.stage + 1, "epoch": len(progress.rows) + 1, "step": counts.step,
            "images_per_second": counts.images / progress.seconds,
        }  # fmt: skip
        row |= {name: kind(logs[name]) for name, kind in HISTORY.items() if name not in row}
        names = [name for name, value in others.items() if np.ndim(value) == 0 and name in logs and name not in row]
        row |= {key: float(logs[key]) for name in names for key in (name, f"val_{name}")}
        if any(stage.trainable for stage in self.settings.stages):
            for earlier in progress.rows:  # of a run whose later stages were added
                earlier.setdefault(TRAINED, self.given_weights)
            row[TRAINED] = freezing.count(self.model)
        progress.rows.append(row)
        if self.group.chief:
            writing.write_history(self.directory, progress.rows)

    def _finish_stage(self) -> None:
        """Run inference on the whole validation set with the weights of the stage's end, and save it."""
        number = self.progress.stage + 1
        logits, losses = self.inference(self.data.validation, between=self._stop_if_requested)
        table = predictions.table(logits, self.data.validation)
        metrics = predictions.metrics(table, losses, self.data.class_names)
        if self.group.chief:
            with freezing.at_most(self.model, self.settings.stages):  # as the optimizer knows it
                writing.write_stage(self.directory, number, table, metrics, self.model)
        correct = round(metrics["accuracy"] * metrics["examples"])
        found = f"accuracy {metrics['accuracy']:.4f} ({correct} of {metrics['examples']})"
        self._print(f"stage {number}: {found}, in {self.directory / stage_path(number)}")
        self.progress.stage, self.progress.stage_start, self.progress.ending = number, self.step.counts.step, False
        self._save()
        self._stop_if_requested()

    # ---- small answers

    def _print(self, line: str) -> None:
        if self.verbose:
            print(line)

    def rate(self, number: int) -> float:
        """Return the learning rate of a step of the present stage."""
        stage, warmup = self.settings.stages[self.progress.stage], 0
        if self.progress.stage == 0:
            given = self.settings.warmup_epochs
            warmup = round(self.epoch_steps * (schedule.WARMUP * stage.epochs if given is None else given))
        step, steps = number - self.progress.stage_start, schedule.steps_of(stage, self.epoch_steps)
        return schedule.rate(stage, step=step, steps=steps, warmup=warmup, factor=self.factor)

    def _steps(self) -> int:
        """Return the steps of the whole run, as far as no callback ends a stage."""
        left = self.settings.stages[self.progress.stage :]
        return self.progress.stage_start + sum(schedule.steps_of(stage, self.epoch_steps) for stage in left)

    def _epochs(self) -> int:
        """Return the epochs of the run up to the end of the present stage."""
        stage, stages = self.progress.stage, self.settings.stages
        done = sum(row["stage"] <= stage for row in self.progress.rows)
        return done + stages[stage].epochs if stage < len(stages) else done

    def _logs(self) -> dict:
        counts = self.step.counts
        images = max(counts.images, 1)
        logs = {"loss": counts.losses / images, "accuracy": counts.correct / images}
        if not self.step.more_metrics:  # Keras' own would be read from the devices, and are less exact
            return logs
        return objective.plain(self.model.get_metrics_result()) | logs

    def _restore_callbacks(self, moment: str) -> None:
        """Give the callbacks their states back after the last of Keras' hooks that they have behind them."""
        if self.progress.inside_epoch:
            behind = "step"  # on_train_begin and on_epoch_begin
        else:  # none, or on_train_begin
            behind = "stage" if self.step.counts.step == self.progress.stage_start else "epoch"
        if self.callback_states is not None and moment == behind:
            callbacks_of.restore(self.callbacks, self.callback_states, chief=self.group.chief)
            self.callback_states = None
