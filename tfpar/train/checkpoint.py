"""Exact resume: everything a run depends on, at any step, in files that appear whole or not at all.

```
RUN/checkpoints/000007/variables.bin   weights, statistics, seeds, optimizer, metrics: their bytes, one after the other
RUN/checkpoints/000007/manifest.json   written last: what is where, checksums, and the progress of the run
```
A directory without a valid manifest does not exist. The newest valid checkpoint wins; a damaged one is named and the
one before is used. The last two are kept, and an older one goes only after the new one was read back.

Keras' own savers leave out the state of the seed generators, and so does `tf.train.Checkpoint`; weights alone would
resume with other dropout masks.

Example:
    >>> checkpoint.save("runs/digits/checkpoints", variables, {"step": 130})
    >>> progress, values = checkpoint.newest("runs/digits/checkpoints")
    >>> progress["step"]
    130
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tfpar import errors, files

FORMAT = 1
KEPT = 2


def variables_of(model: keras.Model) -> list[keras.Variable]:
    """Return every variable of a compiled model that training changes or depends on, in a fixed order."""
    metrics = [variable for metric in model.metrics for variable in metric.variables]
    return [*model.trainable_variables, *model.non_trainable_variables, *model.optimizer.variables, *metrics]


def values_of(variables: list[keras.Variable]) -> list[np.ndarray]:
    """Return the variables' values; with several workers all of them must call it."""
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def save(directory: str | os.PathLike, variables: list, progress: dict, *, values: list | None = None) -> Path:
    """Write a checkpoint, read it back, and only then remove all but the last two.

    Args:
        directory: the run's `checkpoints`; one that did not validate must be gone (see `newest`), it would be counted.
        variables: from `variables_of`.
        progress: what JSON can hold; floats come back as they were.
        values: from `values_of`, where all workers had to read them.

    Raises:
        errors.InputOutputFailed: the disk is full or gone, or gave back other bytes; older checkpoints are intact.
    """
    directory = files.make_directory(directory)
    newest_number = max((int(place.name) for place in _places(directory)), default=0)
    place = directory / f"{newest_number + 1:06d}"
    values = values_of(variables) if values is None else values
    content = b"".join(value.tobytes() for value in values)
    described = [
        {"path": variable.path, "dtype": value.dtype.name, "shape": list(value.shape), "bytes": value.nbytes}
        for variable, value in zip(variables, values, strict=True)
    ]
    files.make_directory(place)
    files.write(place / "variables.bin", content)
    manifest = {
        "format": FORMAT, "progress": progress, "variables": described, "bytes": len(content),
        "content_sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip
    files.write(place / "manifest.json", json.dumps(manifest | {"sha256": files.fingerprint(manifest)}))
    failed = f"checkpoint verification failed ({errors.REASON}). Check this disk"
    with errors.translated(errors.DataError, errors.InputOutputFailed, failed):
        _read(place)
    files.sync(directory)
    for old in _places(directory)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return place


def newest(directory: str | os.PathLike) -> tuple[dict, list[tuple[dict, bytes]]] | None:
    """Return the progress and the variables of the newest valid checkpoint; None where there is none.

    A damaged one is named in a line and removed, and the one before is used.

    Raises:
        errors.InputOutputFailed: one cannot be read now, which says nothing of its bytes; all are left.
    """
    for place in reversed(_places(Path(directory))):
        try:
            manifest, content = _read(place)
            return manifest["progress"], cut(content, manifest["variables"])
        except errors.DataError as damage:
            print(f"{damage}; looking for the one before")
            shutil.rmtree(place, ignore_errors=True)
    return None


def cut(content: bytes, entries: list[dict]) -> list[tuple[dict, bytes]]:
    """Return the manifest's entries of the variables, each with its bytes."""
    ends = np.cumsum([entry["bytes"] for entry in entries])
    return [(entry, content[end - entry["bytes"] : end]) for entry, end in zip(entries, ends, strict=True)]


def restore(variables: list[keras.Variable], values: list, strategy: tf.distribute.Strategy) -> None:
    """Write the values of a checkpoint into the variables, on every replica.

    Raises:
        errors.SettingsError: they are the variables of another model or optimizer.
    """
    if [list(v.shape) for v in variables] != [entry["shape"] for entry, _ in values]:
        raise errors.SettingsError("the checkpoint is of another model, optimizer or metrics; start over with --fresh")
    arrays = [
        np.frombuffer(content, keras.ops.convert_to_numpy(variable).dtype).reshape(entry["shape"])
        for variable, (entry, content) in zip(variables, values, strict=True)
    ]

    def write():
        first = tf.equal(tf.distribute.get_replica_context().replica_id_in_sync_group, 0)
        for variable, array in zip(variables, arrays, strict=True):
            if _summed_over_replicas(variable):  # a metric: its value is the sum of what the replicas hold
                variable.value.assign(tf.where(first, array, tf.zeros_like(array)))

    for variable, array in zip(variables, arrays, strict=True):
        if not _summed_over_replicas(variable):
            variable.assign(array)
    strategy.run(tf.function(write, autograph=False))


def _summed_over_replicas(variable: keras.Variable) -> bool:
    return variable.value.synchronization == tf.VariableSynchronization.ON_READ


def _places(directory: Path) -> list[Path]:
    """Return the checkpoints of a run, the oldest first, whether they are valid or not."""
    return sorted((path for path in directory.glob("[0-9]*") if path.name.isdecimal()), key=lambda path: int(path.name))


def _read(place: Path) -> tuple[dict, bytes]:
    """Return manifest and content of one checkpoint.

    Raises:
        errors.DataError: it is damaged; the message names the file.
        errors.InputOutputFailed: it cannot be read.
    """
    path = place / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        stated = manifest.pop("sha256")
        if stated != files.fingerprint(manifest) or manifest["format"] != FORMAT:
            raise ValueError("another checksum or format")
        path = place / "variables.bin"
        content = path.read_bytes()
        if len(content) != manifest["bytes"] or hashlib.sha256(content).hexdigest() != manifest["content_sha256"]:
            raise ValueError("another checksum")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise errors.DataError(f"{path}: missing") from error
    except (IsADirectoryError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.DataError(f"{path}: damaged ({error})") from error
    except OSError as error:
        raise errors.InputOutputFailed(f"{path}: cannot be read ({error.strerror}). {files.remedy(error)}") from error
    return manifest, content
