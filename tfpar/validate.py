"""Checks of the values that users give. A message names the value and what to give instead.

Each function returns the value as a plain Python or NumPy object, or refuses it before any work begins.

Example:
    >>> validate.integer("seed", -1, 0, 99)
    Traceback (most recent call last):
    tfpar.errors.SettingsError: seed=-1: give a whole number from 0 to 99
"""

import errno
import math
import numbers
import operator
import os
import reprlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from tfpar import errors

MOST_SEED = 2**32 - 1
MOST_BATCH = 2**24
MOST_SHARDS = 4096
MOST_DEVICES = 1_000_000  # of a prediction
MOST_REPLICAS = 256  # on one machine: simulated ones, or workers
MOST_CLASSES = 2**20
MOST_POSITION = 2**62  # of the stream of images; counted in 64 bits


def reject(name: str, value, rule: str):
    """Raise the error that names the value and the rule."""
    raise errors.SettingsError(f"{name}={reprlib.repr(value)}: give {rule}")


def integer(name: str, value, lowest: int, highest: int) -> int:
    """Return a whole number within its range; a truth value, or a number with a fraction, is none.

    Raises:
        errors.SettingsError: with the value and the range.
    """
    try:
        # Also of tensors and arrays without dimensions.
        found = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = None
    if found is None or not lowest <= found <= highest:
        reject(name, value, f"a whole number from {lowest} to {highest}")
    return found


def number(name: str, value, lowest: float, highest: float) -> float:
    """Return a number within its range.

    Raises:
        errors.SettingsError: with the value and the range.
    """
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not lowest <= value <= highest or not math.isfinite(value):
        reject(name, value, f"a number from {lowest:g} to {highest:g}")
    return float(value)


def boolean(name: str, value) -> bool:
    """Return a truth value of Python or NumPy, or 0 or 1.

    Raises:
        errors.SettingsError: it is something else, such as the text "no", which would count as true.
    """
    if not is_truth(value) and not (isinstance(value, int) and value in (0, 1)):
        reject(name, value, "True or False")
    return bool(value)


def is_truth(value) -> bool:
    """Tell whether a value is a truth value of Python or NumPy."""
    return type(value).__name__ in ("bool", "bool_")


def choice(name: str, value, words: Sequence[str]) -> str:
    """Return one of the words.

    Raises:
        errors.SettingsError: with the value and the words.
    """
    if not isinstance(value, str) or value not in words:
        reject(name, value, " or ".join(words))
    return value


def path(name: str, value) -> Path:
    """Return a path that the system can take; whether something is there is not looked at.

    Raises:
        errors.SettingsError: it is no text, is empty, holds a zero byte, or is too long.
    """
    rule = "the path of a file or folder, as text without zero bytes"
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        reject(name, value, rule)
    try:
        os.lstat(value)
    except ValueError:  # a zero byte, or half a character
        reject(name, value, rule)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            reject(name, value, "a shorter path")
    return Path(value)


def image_shape(value) -> tuple[int, int, int]:
    """Return height, width and channels of images.

    Raises:
        errors.SettingsError: they are not three whole numbers from 1 to 65,535.
    """
    if not isinstance(value, (tuple, list)) or len(value) != 3:
        reject("image_shape", value, "height, width and channels, such as (28, 28, 1)")
    return tuple(integer("image_shape", side, 1, 65_535) for side in value)


def split(value, *, one_hot: bool = False) -> tuple:
    """Return the images and the labels of a split.

    Raises:
        errors.SettingsError: they are not `uint8[N, height, width, channels]` and whole numbers `[N]`, N at least 1; with
            `one_hot` the labels may be numbers `[N, classes]` as well.
    """
    import numpy as np  # not above: `tfpar --help` needs the limits, and is immediate

    rule = "(images, labels): uint8 [N, height, width, channels] and whole numbers [N], N at least 1"
    rule += ", or one-hot labels [N, classes]" * one_hot
    images, labels = value[:2] if isinstance(value, (tuple, list)) and len(value) > 1 else (None, None)
    if not (isinstance(images, np.ndarray) and isinstance(labels, np.ndarray)):
        reject("split", value, rule)
    rows = one_hot and labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "iufb"
    right = images.dtype == np.uint8 and images.ndim == 4 and images.size and labels.shape[:1] == images.shape[:1]
    if not right or not (rows or (labels.ndim == 1 and labels.dtype.kind in "iu")):
        found = f"{images.dtype}{list(images.shape)} and {labels.dtype}{list(labels.shape)}"
        raise errors.SettingsError(f"split={found}: give {rule}")
    return images, labels


def class_weights(value, classes: int, *, exactly: bool = True) -> list[float] | None:
    """Return one weight for each class, or for more than `classes` where that is not the exact number; None stays None.

    Raises:
        errors.SettingsError: another length, or a weight that is negative or no number.
    """
    if value is None:
        return None
    rule = f"{classes} numbers, one for each class"
    if isinstance(value, dict):  # as Keras' class_weight: 1 where a class is missing
        if not value or not all(isinstance(label, numbers.Integral) and 0 <= label < classes for label in value):
            reject("class_weights", value, f"labels from 0 to {classes - 1} as keys, or {rule}")
        value = [value.get(label, 1.0) for label in range(classes)]
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes)) or getattr(value, "ndim", 1) == 0:
        reject("class_weights", value, rule)
    weights = [number("class_weights", weight, 0, 1e9) for weight in value]
    if len(weights) < classes or (exactly and len(weights) > classes):
        raise errors.SettingsError(f"{len(weights)} class weights for {classes} classes; give one for each")
    return weights
