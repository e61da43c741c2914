"""The directory of a run, as `train` makes and fills it: every file appears whole or not at all."""

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tfpar import errors, files
from tfpar.results.reading import HISTORY, stage_path


def claim_directory(directory: Path) -> Path:
    """Make the directory of a run, or refuse one that holds something else.

    Raises:
        errors.OutputError: the directory holds other files, or it cannot be made.
    """
    there = {path.name for path in directory.iterdir() if not files.is_leftover(path)} if directory.is_dir() else set()
    if "run.json" not in there and there - {".lock", "workers"}:
        raise errors.OutputError(f"{directory}: exists and is not a run; name another --run")
    return files.make_directory(directory)


def keep_earlier_run(directory: Path) -> None:
    """Rename an earlier run to RUN.1, RUN.2, ...; where there is none, do nothing.

    Raises:
        errors.OutputError: another process trains in it, or it cannot be renamed.
    """
    if (directory / "run.json").exists():
        with files.locked(directory / ".lock", "another run"):
            print(f"the earlier run is kept as {files.set_aside(directory)}")


def write_stage(directory: Path, stage: int, predictions: pa.Table, computed: dict, model) -> None:
    """Write the three files of a finished stage, `metrics.json` last: with it the stage is there."""
    place = files.make_directory(directory / stage_path(stage))
    files.write(place / "predictions.parquet", lambda path: pq.write_table(predictions, path))
    files.write(place / "model.keras", model.save)
    files.write(place / "metrics.json", json.dumps(computed, indent=1, ensure_ascii=False) + "\n")


def write_history(directory: Path, rows: list[dict]) -> None:
    """Write all rows; a number is written so that reading gives back the same float."""
    text = io.StringIO()
    names = [*HISTORY, *(name for name in rows[-1] if name not in HISTORY)]
    writer = csv.DictWriter(text, names, lineterminator="\n", restval="nan")
    writer.writeheader()
    writer.writerows({name: repr(row[name]) for name in names if name in row} for row in rows)
    files.write(directory / "history.csv", text.getvalue())


def write_facts(directory: Path, facts: dict) -> None:
    """Write run.json."""
    files.write(directory / "run.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
