"""Where images come from: every source becomes the same thing, named splits of (source, label, picture).

| source | name | splits |
|---|---|---|
| scikit-learn's digits | `digits` | train |
| TensorFlow Datasets | `fashion_mnist`, or `tfds:NAME` to force it | train, validation, test as it has them |
| a folder of class folders | its path | train |
| a folder with split folders, in any case | its path | `train` or `training`, the first of `validation valid val dev eval test`, and `test` |
| arrays | `(images, labels)`, or what `keras.datasets.*.load_data()` returns | train, validation |
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfpar import errors, files, validate
from tfpar.prepare import folders

_ROWS = 1024  # of an array, read at once


class Input(NamedTuple):
    """One input: its name in the source, its class (an index, or None), and a path, encoded bytes or pixels."""

    source: str
    label: int | None
    picture: Path | bytes | np.ndarray
    reason: str = ""  # why it cannot become an example, where that is known without decoding it


class Source(NamedTuple):
    """A source that was found to exist; `splits` gives the inputs of each split, in a fixed order, any number of times."""

    name: str
    class_names: list[str]
    splits: dict[str, Callable[[], Iterator[Input]]]
    counts: dict[str, int]
    channels: int = 3
    size: tuple[int, int] | None = None  # height and width, where all pictures are known to share them
    stamp: dict | None = None  # number, bytes and newest time of its files, where it is a folder
    hint: str = ""  # where the classes may be, if there is only one


def find(source, *, tfds_manual_dir: str | None = None, splits: bool | None = None) -> Source:
    """Find out what a source is, and say so in a line where two readings are possible.

    Raises:
        errors.InputNotFound: there is no such source.
        errors.DataError: it is there and holds no labelled pictures.
        errors.Unavailable: it would have to be downloaded, and that failed.
    """
    if isinstance(source, (tuple, list)):
        return _arrays(source, "arrays")
    text = _text(source)
    if text == "digits":
        if Path(text).exists():
            print("digits: the data set inside scikit-learn; for the folder of that name say ./digits")
        return _digits()
    if text.startswith("tfds:"):
        return _tfds(text.removeprefix("tfds:"), tfds_manual_dir)
    if os.path.lexists(text):
        if re.fullmatch(r"\w+", text) and _is_tfds_name(text):
            print(f"{text}: the folder of that name; for the TensorFlow data set say tfds:{text}")
        return _folder(Path(text), splits)
    if re.fullmatch(r"[A-Za-z]\w*([/:][\w.*-]+)*", text) and _is_tfds_name(re.split("[/:]", text)[0]):
        return _tfds(text, tfds_manual_dir)
    raise errors.InputNotFound(
        f"{files.printable(text)}: no such folder, and no TensorFlow data set of that name. "
        "Give digits, a folder of class folders, or a name from https://www.tensorflow.org/datasets"
    )


def identity(source) -> str:
    """Return the text by which a prepared directory remembers its source."""
    if isinstance(source, (tuple, list)):
        digest = hashlib.sha256()
        for pair in _pairs(source):
            for array in pair:
                digest.update(f"{np.shape(array)}".encode())
                for start in range(
                    0, len(array), _ROWS
                ):  # never a copy of the whole, which may be larger than the memory
                    digest.update(np.ascontiguousarray(array[start : start + _ROWS]).tobytes())
        return f"arrays:{digest.hexdigest()}"
    text = _text(source)
    if text != "digits" and os.path.lexists(text):
        return f"folder:{files.printable(os.path.abspath(text))}"
    return text if text == "digits" else f"tfds:{text.removeprefix('tfds:')}"


def _text(source) -> str:
    validate.path("source", source)  # a data set's name, too, could be one
    return os.fspath(source)


# ---- arrays


def _digits() -> Source:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)  # they count from 0 to 16
    return _arrays((pixels, labels), "digits")


def _arrays(source, name: str) -> Source:
    pairs = [(_pixels(images), labels) for images, labels in _pairs(source)]
    for images, labels in pairs:
        if labels.size != len(images) or labels.dtype.kind not in "iu":
            raise errors.DataError(
                f"arrays: {len(images)} images and labels {labels.dtype}{list(labels.shape)}; give one whole number per image"
            )
    if len({images.shape[1:] for images, _ in pairs}) > 1:
        raise errors.DataError(
            f"arrays: train {pairs[0][0].shape[1:]} and validation {pairs[1][0].shape[1:]} differ in size"
        )
    classes = np.unique(np.concatenate([labels.ravel() for _, labels in pairs]))

    def inputs(images, labels):
        labels = np.searchsorted(classes, labels.ravel())
        return lambda: (Input(str(i), int(labels[i]), images[i]) for i in range(len(images)))

    splits = {split: inputs(*pair) for split, pair in zip(("train", "validation"), pairs, strict=False)}
    counts = {split: len(pair[0]) for split, pair in zip(splits, pairs, strict=True)}
    height, width, channels = pairs[0][0].shape[1:]
    return Source(name, [str(value) for value in classes], splits, counts, channels, (height, width))


def _pairs(source) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return what was given as pairs of arrays, train and perhaps validation."""
    pairs = list(source) if source and isinstance(source[0], (tuple, list)) else [source]
    if not 1 <= len(pairs) <= 2 or not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
        raise errors.DataError("arrays: give (images, labels), or two such pairs: train and validation")
    try:
        return [(np.asarray(images), np.asarray(labels)) for images, labels in pairs]
    except (TypeError, ValueError) as error:  # rows of different lengths
        raise errors.DataError(f"arrays: {error}; give (images, labels) as NumPy arrays") from error


def _pixels(images: np.ndarray) -> np.ndarray:
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise errors.DataError(
            f"arrays: images are {images.dtype}{list(images.shape)}; give uint8 [N, height, width] or [N, height, width, 1 or 3]"
        )
    return images


# ---- folders


def _folder(root: Path, splits: bool | None) -> Source:
    classes, listed = folders.find(root, splits)
    index = {name: i for i, name in enumerate(classes)}

    def inputs(split):
        for name, path in listed[split]:
            source = files.printable(path.relative_to(root).as_posix())
            reason = "" if name is not None else "not inside a class folder"
            reason = folders.BESIDE if folders.foreign(path.name) else reason
            yield Input(source, index.get(name), path, reason)

    return Source(
        name=files.name_of(root),
        class_names=classes,
        splits={split: lambda split=split: inputs(split) for split in listed},
        counts={split: len(found) for split, found in listed.items()},
        stamp=folders.stamp(listed),
        hint=folders.superfluous(root) if len(classes) < 2 else "",
    )


# ---- TensorFlow Datasets


def _is_tfds_name(name: str) -> bool:
    import tensorflow_datasets as tfds

    return name in tfds.list_builders(with_community_datasets=False)


def _tfds(name: str, manual_dir: str | None) -> Source:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name)
    except (tfds.core.registered.DatasetNotFoundError, ValueError, KeyError, AssertionError) as error:
        raise errors.InputNotFound(f"tfds:{name}: {str(error).splitlines()[0]}") from error
    keys = builder.info.supervised_keys
    features = builder.info.features
    if keys is None or not (
        isinstance(features[keys[0]], tfds.features.Image) and isinstance(features[keys[1]], tfds.features.ClassLabel)
    ):
        raise errors.DataError(f"tfds:{name}: not a data set of pictures with one class each; choose another")
    _download(builder, name, manual_dir)
    named = _tfds_splits(name, builder.info.splits)
    image, label = keys

    def inputs(split):
        read = tfds.ReadConfig(add_tfds_id=True, interleave_cycle_length=1, try_autocache=False)
        # The encoded bytes, as they are on the disk: pictures.py decodes every source alike.
        encoded = {image: tfds.decode.SkipDecoding()}
        rows = builder.as_dataset(split=split, read_config=read, decoders=encoded)
        try:
            for batch in tfds.as_numpy(rows.batch(256)):  # one by one costs 1 ms each
                for source, number, content in zip(batch["tfds_id"], batch[label], batch[image], strict=True):
                    yield Input(source.decode(), int(number), content)
        except tf.errors.OpError as error:
            raise errors.DataError(
                f"tfds:{name}: its files in {builder.data_path} are damaged ({errors.first_line(error)}); remove them, and prepare again"
            ) from error

    height, width, channels = features[image].shape
    return Source(
        name=files.name_of(name),
        class_names=list(features[label].names),
        splits={split: lambda theirs=theirs: inputs(theirs) for split, theirs in named.items()},
        counts={split: builder.info.splits[theirs].num_examples for split, theirs in named.items()},
        channels=1 if channels == 1 else 3,
        size=(height, width) if height and width else None,
    )


def _tfds_splits(name: str, there) -> dict[str, str]:
    """Return which split of a TensorFlow data set becomes train, validation and test."""
    if "train" not in there:
        raise errors.DataError(f"tfds:{name}: has no train split, only {', '.join(there)}; choose another")
    held_out = next((split for split in ("validation", "test") if split in there), None)
    named = {"train": "train"} | ({"validation": held_out} if held_out else {})
    return named | ({"test": "test"} if held_out == "validation" and "test" in there else {})


def _download(builder, name: str, manual_dir: str | None) -> None:
    import tensorflow_datasets as tfds

    config = tfds.download.DownloadConfig(manual_dir=manual_dir) if manual_dir else None
    if manual_dir and not Path(manual_dir).is_dir():
        raise errors.InputNotFound(f"{manual_dir}: no such folder (--tfds-manual-dir)")
    try:
        builder.download_and_prepare(download_config=config)
    except Exception as error:
        raise errors.Unavailable(
            f"tfds:{name}: could not be downloaded or prepared ({' '.join(str(error).split())[:200]}). "
            "Connect to a network, or put its files into a folder and name that with --tfds-manual-dir"
        ) from error
