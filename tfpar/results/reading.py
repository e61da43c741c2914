"""A run directory, read back, and two runs compared."""

import contextlib
import csv
import json
import os
import re
import zipfile
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tfpar import errors, files, validate
from tfpar.results.predictions import probabilities_of

HISTORY = {
    "stage": int, "epoch": int, "step": int, "loss": float, "accuracy": float, "val_loss": float, "val_accuracy": float,
    "learning_rate": float, "images_per_second": float,
}  # fmt: skip


class Run:
    """A run directory, read back. Tables are `pyarrow.Table`s; stages are counted from 1, and the last is the default."""

    def __init__(self, directory: str | os.PathLike):
        """Open a run.

        Raises:
            errors.InputNotFound: there is none.
            errors.DataError: its run.json is damaged.
        """
        self.directory = place = validate.path("directory", directory)
        path = place / "run.json"
        if not path.is_file():
            raise errors.InputNotFound(f"{place}: no run there. Make one: tfpar train DATA --run {files.word(place)}")
        damaged = f"{path}: damaged. Start over with --fresh, which keeps the old run."
        with errors.translated((ValueError, KeyError, TypeError, AttributeError), errors.DataError, damaged):
            self.facts = json.loads(path.read_bytes())
            self.settings, self.class_names = self.facts["settings"], self.facts["data"]["class_names"]
            self.settings.setdefault("batch_norm", "keras")  # an earlier version wrote none, and computed as Keras does

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r}, stages={self.stages}, finished={self.finished})"

    @property
    def stages(self) -> int:
        """How many stages have their results."""
        return len(list(self.directory.glob("stages/*/metrics.json")))

    @property
    def finished(self) -> bool:
        return bool(self.facts["finished"])

    @property
    def data_directory(self) -> Path:
        """The prepared directory that it was trained on, also where both have moved together."""
        recorded = Path((data := self.facts["data"])["directory"])
        moved = self.directory / data.get("beside", recorded)
        return moved if moved.exists() and not recorded.exists() else recorded

    @property
    def history(self) -> pa.Table:
        """One row per epoch: stage, epoch, step, loss, accuracy, val_loss, val_accuracy, learning_rate, images_per_second, and two
        columns, `NAME` and `val_NAME`, for each other metric of `compile` that is a number; where a stage says what trains, `trained_weights`, their number."""
        with open(self._existing("history.csv"), newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        names = list(rows[0]) if rows else list(HISTORY)
        return pa.table({name: [HISTORY.get(name, float)(row[name]) for row in rows] for name in names})

    def predictions(self, *, stage: int | None = None) -> pa.Table:
        """One row per validation image: index, source, label, predicted, confidence, probabilities."""
        with self._whole(self._stage(stage) + "/predictions.parquet") as path:
            return pq.read_table(path)

    def metrics(self, *, stage: int | None = None) -> dict:
        """Examples, loss, accuracy, top5_accuracy, and per class how many were correct."""
        with self._whole(self._stage(stage) + "/metrics.json") as path:
            return json.loads(path.read_bytes())

    def model(self, *, stage: int | None = None, custom_objects: dict | None = None, compile: bool = True):
        """Load the model of the end of a stage, or the final one; never runs code from the file.

        Args:
            stage: counted from 1; None is the final model.
            custom_objects: classes and functions of your own that the model uses, by name.
            compile: also load optimizer, loss and metrics.

        Raises:
            errors.InputNotFound, errors.DataError: the file is missing or damaged.
            errors.SettingsError: the model uses a class that `custom_objects` lacks, or a Lambda layer.
        """
        import keras

        compile = validate.boolean("compile", compile)
        with self._whole("model.keras" if stage is None else self._stage(stage) + "/model.keras") as path:
            return keras.saving.load_model(path, custom_objects=custom_objects, compile=compile, safe_mode=True)

    @contextlib.contextmanager
    def _whole(self, name: str):
        path = self._existing(name)
        try:
            yield path
        except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile) as error:
            raise _not_loaded(path, error) from error

    def _stage(self, stage: int | None) -> str:
        return stage_path(self.stages if stage is None else validate.integer("stage", stage, 1, 10**6))

    def _existing(self, name: str) -> Path:
        path = self.directory / name
        if not path.is_file():
            raise errors.InputNotFound(f"{path}: not there (yet); this run has the results of {self.stages} stage(s)")
        return path


def _not_loaded(path: Path, error: Exception) -> Exception:
    """Return the error that says why a table, metrics or a model could not be loaded."""
    said = " ".join(str(error).split())
    missing = re.search(r"(?:Could not locate|Unknown) (?:class|function|object|layer|loss|metric)[^']*'([^']+)'", said)
    if missing:
        name = missing[1].split(">")[-1]
        call = f"results.Run(...).model(custom_objects={{'{name}': {name}}})"
        return errors.SettingsError(f"{path}: the model uses {name}, a class or function of yours. In Python: {call}")
    if "lambda" in said.lower() and "safe_mode" in said:
        call = "If you trust this file: keras.saving.load_model(..., safe_mode=False)"
        return errors.SettingsError(f"{path}: the model has a Lambda layer, and tfpar runs no code from files. {call}")
    if _is_intact_zip(path):
        cause = re.split(r"Exception encountered: |during deserialization: ", said)[-1][:200]
        todo = f"Correct that class or function, or build the model as for training and call model.load_weights({str(path)!r})"
        return errors.SettingsError(f"{path}: Keras cannot build the model from its configuration ({cause}). {todo}")
    return errors.DataError(f"{path}: damaged ({said[:100]})")


def _is_intact_zip(path: Path) -> bool:
    with contextlib.suppress(zipfile.BadZipFile, zlib.error, EOFError, OSError), zipfile.ZipFile(path) as file:
        return file.testzip() is None
    return False


def stage_path(stage: int) -> str:
    """Return the folder of a stage inside a run; stages count from 1."""
    return f"stages/{stage:02d}"


def compare(first: Run | str, second: Run | str, *, stages: tuple[int | None, int | None] = (None, None)) -> dict:
    """Compare the predictions of two runs, or of two stages of one, image by image.

    Args:
        first, second: the runs, or their directories.
        stages: of the first and of the second run; None is the last.

    Returns:
        `accuracy` of both, `same_bits` (all probabilities equal), `agreed` (images with the same answer), `gained` and
        `lost` (images that only the second, or only the first, has right).

    Raises:
        errors.InputNotFound, errors.SettingsError: there is no such run or stage, or these are predictions of different images.

    Example:
        >>> results.compare("runs/a", "runs/b")["same_bits"]
        True
    """
    with errors.translated((TypeError, ValueError), errors.SettingsError, f"{stages=}: give two, such as (1, 2)"):
        stages = [stage for stage, _ in zip(stages, "ab", strict=True)]
    first, second = (run if isinstance(run, Run) else Run(run) for run in (first, second))
    tables = [run.predictions(stage=stage) for run, stage in zip((first, second), stages, strict=True)]
    if tables[0].select(["source", "label"]) != tables[1].select(["source", "label"]):
        both = f"{first.directory} and {second.directory}"
        raise errors.SettingsError(f"{both} predict different images; compare runs on the same data")
    correct = [table["predicted"].to_numpy() == table["label"].to_numpy() for table in tables]
    return {
        "accuracy": tuple(float(right.mean()) for right in correct),
        "same_bits": probabilities_of(tables[0]).tobytes() == probabilities_of(tables[1]).tobytes(),
        "agreed": int((tables[0]["predicted"].to_numpy() == tables[1]["predicted"].to_numpy()).sum()),
        "gained": int((~correct[0] & correct[1]).sum()),
        "lost": int((correct[0] & ~correct[1]).sum()),
    }
