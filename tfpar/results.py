"""The files of a run: write, read, compare.

```
RUN/run.json                        settings, data, devices, threads, versions; written first
RUN/history.csv                     one row per epoch
RUN/stages/01/predictions.parquet   one row per validation image
RUN/stages/01/metrics.json          computed from the predictions, so exact
RUN/stages/01/model.keras           the model at the end of the stage
RUN/checkpoints/                    see checkpoint.py
RUN/model.keras                     the final model
RUN/report.html                     see report.py
RUN/tensorboard/                    what TensorBoard shows
```

Example:
    >>> run = results.Run("runs/digits")
    >>> run.metrics(stage=2)["accuracy"]
    0.9944134078212291
    >>> results.compare(run, run, stages=(1, 2))["gained"]
    3
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tfpar import errors, files, rules

HISTORY = {
    "stage": int, "epoch": int, "step": int, "loss": float, "accuracy": float, "val_loss": float, "val_accuracy": float,
    "learning_rate": float, "images_per_second": float,
}  # fmt: skip
TOP = 5


class Run:
    """A run directory, read back. Tables are `pyarrow.Table`s; stages are counted from 1, and the last is the default."""

    def __init__(self, directory: str | os.PathLike):
        """Open a run.

        Raises:
            errors.InputNotFound: there is none.
            errors.DataError: its run.json is damaged.
        """
        self.directory = rules.path("directory", directory)
        if not (self.directory / "run.json").is_file():
            raise errors.InputNotFound(
                f"{self.directory}: no run there. Make one with: tfpar train DATA --run {self.directory}"
            )
        try:
            self.facts = json.loads((self.directory / "run.json").read_bytes())
            self.settings, self.class_names = self.facts["settings"], self.facts["data"]["class_names"]
        except (ValueError, KeyError, TypeError) as error:
            raise errors.DataError(
                f"{self.directory / 'run.json'}: damaged; start over with --fresh, which keeps the old run beside"
            ) from error

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
    def history(self) -> pa.Table:
        """One row per epoch: stage, epoch, step, loss, accuracy, val_loss, val_accuracy, learning_rate, images_per_second."""
        with open(self._existing("history.csv"), newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return pa.table({name: [kind(row[name]) for row in rows] for name, kind in HISTORY.items()})

    def predictions(self, *, stage: int | None = None) -> pa.Table:
        """One row per validation image: index, source, label, predicted, confidence, probabilities."""
        with self._whole(self._stage(stage) + "/predictions.parquet") as path:
            return pq.read_table(path)

    def metrics(self, *, stage: int | None = None) -> dict:
        """Examples, loss, accuracy, top5_accuracy, and per class how many were correct."""
        with self._whole(self._stage(stage) + "/metrics.json") as path:
            return json.loads(path.read_bytes())

    def model(self, *, stage: int | None = None):
        """Load the model of the end of a stage, or the final one; never runs code from the file."""
        import keras

        with self._whole("model.keras" if stage is None else self._stage(stage) + "/model.keras") as path:
            return keras.saving.load_model(path, safe_mode=True)

    @contextlib.contextmanager
    def _whole(self, name: str):
        path = self._existing(name)
        try:
            yield path
        except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile) as error:
            raise errors.DataError(f"{path}: damaged ({' '.join(str(error).split())[:100]})") from error

    def _stage(self, stage: int | None) -> str:
        return stage_path(self.stages if stage is None else stage)

    def _existing(self, name: str) -> Path:
        path = self.directory / name
        if not path.is_file():
            raise errors.InputNotFound(f"{path}: not there (yet); this run has the results of {self.stages} stage(s)")
        return path


def stage_path(stage: int) -> str:
    """Return the folder of a stage inside a run; stages count from 1."""
    return f"stages/{stage:02d}"


def own_directory(directory: Path) -> Path:
    """Make the directory of a run, or refuse one that holds something else.

    Raises:
        errors.OutputError: something else lies there, or it cannot be made.
    """
    there = {path.name for path in directory.iterdir() if not files.is_leftover(path)} if directory.is_dir() else set()
    if "run.json" not in there and there - {".lock", "workers"}:
        raise errors.OutputError(f"{directory}: something else lies there; name another --run")
    return files.make_directory(directory)


def put_aside(directory: Path) -> None:
    """Rename an earlier run to RUN.1, RUN.2, ...; where there is none, do nothing.

    Raises:
        errors.OutputError: another process trains in it, or it cannot be renamed.
    """
    if not (directory / "run.json").exists():
        return
    number = 1
    whole = Path(os.path.abspath(directory))  # also where it was given as .
    while (beside := whole.with_name(f"{whole.name}.{number}")).exists():
        number += 1
    with files.locked(directory / ".lock", "another run"):
        try:
            whole.rename(beside)
        except OSError as error:
            raise errors.OutputError(
                f"{directory}: cannot be renamed ({error.strerror}); name another --run"
            ) from error
    print(f"the earlier run is kept as {directory}.{number}")


def predictions_table(logits: np.ndarray, split) -> pa.Table:
    """Return what `predictions.parquet` holds, one row per image in the split's order.

    Args:
        logits: `float32[N, classes]`.
        split: `(images, labels, sources)`.
    """
    probabilities = softmax(logits)
    predicted = logits.argmax(axis=1).astype(np.int32)
    return pa.table(
        {
            "index": np.arange(len(logits), dtype=np.int64),
            "source": pa.array(split[2], pa.string()),
            "label": np.asarray(split[1], np.int32),
            "predicted": predicted,
            "confidence": probabilities[np.arange(len(logits)), predicted],
            "probabilities": pa.FixedSizeListArray.from_arrays(probabilities.ravel(), logits.shape[1]),
        }
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of `float32[N, classes]` logits, as `float32`, computed in 64 bits."""
    wide = logits.astype(np.float64)
    exponents = np.exp(wide - wide.max(axis=1, keepdims=True))
    return (exponents / exponents.sum(axis=1, keepdims=True)).astype(np.float32)


def metrics(predictions: pa.Table, losses: np.ndarray, class_names: list[str]) -> dict:
    """Compute a stage's metrics from its predictions.

    Args:
        predictions: from `predictions_table`.
        losses: `float32[N]`, the compiled loss of each image.
        class_names: by label.

    Returns:
        `examples`, `loss`, `accuracy`, `top5_accuracy`, and `per_class` {name: {`examples`, `correct`}}.
    """
    labels, predicted = predictions["label"].to_numpy(), predictions["predicted"].to_numpy()
    probabilities = probabilities_of(predictions)
    own = probabilities[np.arange(len(labels)), labels][:, np.newaxis]
    # Ties count by position, as a sort would put them.
    before = (probabilities > own) | (
        (probabilities == own) & (np.arange(probabilities.shape[1]) < labels[:, np.newaxis])
    )
    correct = predicted == labels
    return {
        "examples": len(labels),
        "loss": mean(losses) if np.isfinite(losses).all() else None,  # JSON has no word for what a diverged run gives
        "accuracy": float(correct.mean()),
        "top5_accuracy": float(((before.sum(axis=1) < TOP) & np.isfinite(own[:, 0])).mean()),
        "per_class": {
            name: {"examples": int((labels == label).sum()), "correct": int(correct[labels == label].sum())}
            for label, name in enumerate(class_names)
        },
    }


def probabilities_of(predictions: pa.Table) -> np.ndarray:
    """Return the probabilities of a predictions table as `float32[N, classes]`."""
    column = predictions["probabilities"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(predictions), -1)


def mean(values: np.ndarray) -> float:
    """Return the mean of float32 numbers, summed without a rounding error."""
    return math.fsum(values.tolist()) / len(values)


def write_stage(directory: Path, stage: int, predictions: pa.Table, computed: dict, model) -> None:
    """Write the three files of a finished stage, `metrics.json` last: with it the stage is there."""
    place = files.make_directory(directory / stage_path(stage))
    files.write(place / "predictions.parquet", lambda path: pq.write_table(predictions, path))
    files.write(place / "model.keras", model.save)
    files.write(place / "metrics.json", json.dumps(computed, indent=1, ensure_ascii=False) + "\n")


def write_history(directory: Path, rows: list[dict]) -> None:
    """Write all rows; a number is written so that reading gives back the same float."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: repr(row[name]) for name in HISTORY} for row in rows)
    files.write(directory / "history.csv", text.getvalue())


def write_facts(directory: Path, facts: dict) -> None:
    """Write run.json."""
    files.write(directory / "run.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def compare(first: Run, second: Run, *, stages: tuple[int | None, int | None] = (None, None)) -> dict:
    """Compare the predictions of two runs, or of two stages of one, image by image.

    Returns:
        `accuracy` of both, `same_bits` (all probabilities equal), `agreed` (images with the same answer), `gained` and
        `lost` (images that only the second, or only the first, has right).

    Raises:
        errors.SettingsError: they are predictions of different images.

    Example:
        >>> results.compare(Run("runs/a"), Run("runs/b"))["same_bits"]
        True
    """
    tables = [run.predictions(stage=stage) for run, stage in zip((first, second), stages, strict=True)]
    if tables[0].select(["source", "label"]) != tables[1].select(["source", "label"]):
        raise errors.SettingsError(
            f"{first.directory} and {second.directory} predict different images; compare runs on the same data"
        )
    correct = [table["predicted"].to_numpy() == table["label"].to_numpy() for table in tables]
    return {
        "accuracy": tuple(float(right.mean()) for right in correct),
        "same_bits": probabilities_of(tables[0]).tobytes() == probabilities_of(tables[1]).tobytes(),
        "agreed": int((tables[0]["predicted"].to_numpy() == tables[1]["predicted"].to_numpy()).sum()),
        "gained": int((~correct[0] & correct[1]).sum()),
        "lost": int((correct[0] & ~correct[1]).sum()),
    }
