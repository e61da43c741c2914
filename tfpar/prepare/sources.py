"""Where images come from: every source becomes the same thing, named splits of (source, label, picture).

| source | name | splits |
|---|---|---|
| scikit-learn's digits | `digits` | train |
| TensorFlow Datasets | `fashion_mnist`, or `tfds:NAME` to force it | train, validation, test as it has them |
| a folder of class folders | its path | train |
| a folder with split folders, in any case | its path | `train` or `training`, the first of `validation valid val dev eval test`, and `test` |
| a table (see `tables`) | a path that ends in `.csv` or `.parquet` | as its column `split` says, by the same names; else train |
| arrays | `(images, labels)` or `(images, labels, weights)`, or what `keras.datasets.*.load_data()` returns | train, validation |
| a stream | a `tf.data.Dataset`, a generator, or a function that returns one, of (image, label) or (image, label, weight) | train |
"""

import os
import re
import sys
from pathlib import Path

from tfpar import errors, files, validate
from tfpar.prepare import folders, tables, values
from tfpar.prepare.inputs import Input, Source

_TAKEN_BY = {"splits": ("folder", "table"), "group_by": ("folder", "table"), "tfds_manual_dir": ("tfds",)}


def find(
    source, *, tfds_manual_dir: str | None = None, splits: bool | None = None, group_by: str | None = None, size=None
) -> Source:
    """Find out what a source is, and print a line where two readings are possible.

    Args:
        source: see above.
        tfds_manual_dir, splits, group_by: as for `prepare.dataset`; None where it was not given.
        size: what the images will become; None where it was not given.

    Raises:
        errors.InputNotFound: there is no such source.
        errors.DataError: it is there and holds no labelled pictures.
        errors.SettingsError: it does not take one of the options.
        errors.Unavailable: it would have to be downloaded, and that failed.
    """
    kind = kind_of(source, splits=splits, group_by=group_by, tfds_manual_dir=tfds_manual_dir)
    if kind == "arrays":
        return values.arrays(source)
    if kind == "stream":
        return values.stream(source, size)
    text = os.fspath(source)
    if kind == "digits":
        if Path(text).exists():
            print("digits: the data set inside scikit-learn; for the folder of that name say ./digits")
        return values.digits()
    if kind == "table":
        return tables.source(Path(text), splits, group_by)
    if kind == "tfds":
        if not text.startswith("tfds:") and not _is_tfds_name(text):
            why = f"{files.printable(text)}: no such folder or table, and no TensorFlow data set of that name"
            todo = "digits, a folder of class folders, a table, or a name from https://www.tensorflow.org/datasets"
            raise errors.InputNotFound(f"{why}. Give {todo}")
        return _tfds(text.removeprefix("tfds:"), tfds_manual_dir)
    if _is_tfds_name(text):
        print(f"{text}: the folder of that name; for the TensorFlow data set say tfds:{text}")
    return folders.source(Path(text), splits, _pattern(group_by))


def identity(source) -> str:
    """Return the text by which a prepared directory remembers its source; a stream is read for it."""
    kind = kind_of(source)
    if kind == "arrays":
        return values.identity(source)
    if kind == "stream":
        return values.identity_of_stream(source)
    text = os.fspath(source)
    if kind in ("folder", "table"):
        return f"{kind}:{files.printable(os.path.abspath(text))}"
    return text if kind == "digits" else f"tfds:{text.removeprefix('tfds:')}"


def kind_of(source, **options) -> str:
    """Return the kind of a source: `"arrays"`, `"stream"`, `"digits"`, `"tfds"`, `"table"` or `"folder"`.

    Raises:
        errors.SettingsError: it is none, or does not take an option that was given.
    """
    kind = _kind(source)
    for option, value in options.items():
        if value is not None and kind not in _TAKEN_BY[option]:
            kinds = " or ".join(_TAKEN_BY[option])
            raise errors.SettingsError(f"{option} was given, only for {kinds}; leave it out for {kind}")
    return kind


def _kind(source) -> str:
    if isinstance(source, (tuple, list)):
        return "arrays"
    if not isinstance(source, (str, os.PathLike)) and (callable(source) or hasattr(source, "__iter__")):
        return "stream"
    validate.path("source", source)  # a data set's name, too, could be one
    text = os.fspath(source)
    if text == "digits":
        return "digits"
    if text.startswith("tfds:"):
        return "tfds"
    if os.path.lexists(text):
        return "table" if text.lower().endswith(tables.KINDS) and not os.path.isdir(text) else "folder"
    return "tfds"


def _pattern(group_by: str | None) -> re.Pattern | None:
    """Return the regular expression of `--group-by` for a folder."""
    if group_by is None:
        return None
    if not isinstance(group_by, str):
        validate.reject("group_by", group_by, "a regular expression as text")
    wrong = f"group_by={group_by!r}: {errors.REASON}. Give a regular expression"
    with errors.translated(re.error, errors.SettingsError, wrong):
        pattern = re.compile(group_by)
    if not pattern.groups:
        validate.reject("group_by", group_by, "a regular expression with a group, such as '(p[0-9]+)_'")
    return pattern


# ---- TensorFlow Datasets


def _is_tfds_name(text: str) -> bool:
    if not re.fullmatch(r"[A-Za-z]\w*([/:][\w.*-]+)*", text):
        return False
    import tensorflow_datasets as tfds

    return re.split("[/:]", text)[0] in tfds.list_builders(with_community_datasets=False)


def _tfds(name: str, manual_dir: str | None) -> Source:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    missing = (tfds.core.registered.DatasetNotFoundError, ValueError, KeyError, AssertionError)
    with errors.translated(missing, errors.InputNotFound, f"tfds:{name}: {errors.REASON}"):
        builder = tfds.builder(name)
    features, (image, label) = dict(builder.info.features.items()), builder.info.supervised_keys or (None, None)
    picture, classes = features.get(image), features.get(label)
    if not isinstance(picture, tfds.features.Image) or not isinstance(classes, tfds.features.ClassLabel):
        raise errors.DataError(f"tfds:{name}: not a data set of pictures with one class each; choose another")
    _download(builder, name, manual_dir)
    if "train" not in (there := builder.info.splits):
        raise errors.DataError(f"tfds:{name}: has no train split, only {', '.join(there)}; choose another")
    named = folders.roles({"train", "validation", "test"} & set(there))

    def inputs(split):
        read = tfds.ReadConfig(add_tfds_id=True, interleave_cycle_length=1, try_autocache=False)
        encoded = {image: tfds.decode.SkipDecoding()}  # pictures.py decodes every source alike
        rows = builder.as_dataset(split=split, read_config=read, decoders=encoded)
        why = f"its files in {builder.data_path} are damaged ({errors.REASON}); remove them, and prepare again"
        with errors.translated(tf.errors.OpError, errors.DataError, f"tfds:{name}: {why}"):
            for batch in tfds.as_numpy(rows.batch(256)):  # one by one costs 1 ms each
                for source, number, content in zip(batch["tfds_id"], batch[label], batch[image], strict=True):
                    yield Input(source.decode(), classes.names[number], content)

    height, width, channels = picture.shape
    return Source(
        name=files.name_of(name),
        class_names=list(classes.names),
        splits={split: lambda theirs=theirs: inputs(theirs) for split, theirs in named.items()},
        counts={split: there[theirs].num_examples for split, theirs in named.items()},
        channels=1 if channels == 1 else 3,
        size=(height, width) if height and width else None,
    )


def _download(builder, name: str, manual_dir: str | None) -> None:
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty() and "ipykernel" not in sys.modules:  # a log would fill with its progress bars
        tfds.disable_progress_bar()
    if manual_dir is not None and not validate.path("tfds_manual_dir", manual_dir).is_dir():
        raise errors.InputNotFound(f"{manual_dir}: no such folder (--tfds-manual-dir)")
    todo = "Connect to a network, or name a folder with its files with --tfds-manual-dir"
    failed = f"tfds:{name}: could not be downloaded or prepared ({errors.REASON}). {todo}"
    with errors.translated(Exception, errors.Unavailable, failed):
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
