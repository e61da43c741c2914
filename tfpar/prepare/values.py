"""Images that a program has: arrays, `tf.data` datasets, and whatever else yields (image, label)."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tfpar import errors
from tfpar.prepare.inputs import Input, Source

_ROWS = 1024  # of an array, read at once
_TO_PIXELS = (
    "(255 * images).round().astype('uint8') if they go from 0 to 1, images.astype('uint8') if they go from 0 to 255; in a tf.data "
    "pipeline dataset.map(lambda image, label: (tf.cast(tf.round(image), 'uint8'), label)), of 255 * image if they go from 0 to 1"
)
_EMPTY = "the source yields nothing; give (image, label) elements, and a function that returns a generator instead of a used one"
_TO_LABELS = "one whole number, text, or one-hot row per image"


class _Part(NamedTuple):
    images: np.ndarray
    labels: np.ndarray  # whole numbers or text [N]
    weights: np.ndarray | None


# ---- arrays


def digits() -> Source:
    """Return scikit-learn's digits."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)  # they count from 0 to 16
    return arrays((pixels, labels), "digits")


def arrays(source, name: str = "arrays") -> Source:
    """Return (images, labels) or (images, labels, weights), or two such tuples, as a source.

    Raises:
        errors.DataError: they are not images, labels and weights of one length.
    """
    parts = [_part(given) for given in _given(source)]
    if len({part.images.shape[1:] for part in parts}) > 1:
        shapes = " and ".join(str(part.images.shape[1:]) for part in parts)
        raise errors.DataError(f"arrays: train and validation differ in size ({shapes}). Give images of one size")
    classes = np.unique(np.concatenate([part.labels for part in parts]))

    def inputs(part):
        labels = np.searchsorted(classes, part.labels)
        for i, image in enumerate(part.images):
            yield Input(str(i), int(labels[i]), image, weight=None if part.weights is None else float(part.weights[i]))

    named = dict(zip(("train", "validation"), parts, strict=False))
    return Source(
        name=name,
        class_names=[str(value) for value in classes],
        splits={split: lambda part=part: inputs(part) for split, part in named.items()},
        counts={split: len(part.images) for split, part in named.items()},
        channels=parts[0].images.shape[3],
        size=parts[0].images.shape[1:3],
    )


def identity(source) -> str:
    """Return the text by which a prepared directory remembers arrays."""
    digest = hashlib.sha256()
    for array in itertools.chain.from_iterable(_given(source)):
        array = _labels(array) if array.dtype.kind == "O" else array  # the bytes of objects are addresses
        digest.update(f"{np.shape(array)}".encode())
        for start in range(0, len(array), _ROWS):  # never a copy of the whole, which may be larger than the memory
            digest.update(np.ascontiguousarray(array[start : start + _ROWS]).tobytes())
    return f"arrays:{digest.hexdigest()}"


def _given(source) -> list[tuple[np.ndarray, ...]]:
    """Return what was given as tuples of arrays, train and perhaps validation."""
    tuples = list(source) if source and isinstance(source[0], (tuple, list)) else [source]
    if not 1 <= len(tuples) <= 2 or not all(isinstance(one, (tuple, list)) and len(one) in (2, 3) for one in tuples):
        raise errors.DataError(
            "arrays: give (images, labels), (images, labels, weights), or two such tuples: train and validation"
        )
    try:
        return [tuple(np.asarray(array) for array in one) for one in tuples]
    except (TypeError, ValueError) as error:  # rows of different lengths
        raise errors.DataError(f"arrays: {error}; give (images, labels) as NumPy arrays") from error


def _part(given: tuple[np.ndarray, ...]) -> _Part:
    images, labels, weights = (*given, None)[:3]
    images = _pixels(images[..., np.newaxis] if images.ndim == 3 else images)
    names = _labels(labels)
    if len(names) != len(images):
        raise errors.DataError(
            f"arrays: {len(images)} images and labels {labels.dtype}{list(labels.shape)}; give {_TO_LABELS}"
        )
    return _Part(images, names, None if weights is None else _weights(weights, len(images)))


def _pixels(images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        convert = f"; convert them: {_TO_PIXELS}" if images.dtype.kind == "f" else ""
        raise errors.DataError(
            f"images are {images.dtype}{list(images.shape)}; give uint8 [N, height, width] or [N, height, width, 1 or 3]{convert}"
        )
    return images


def _labels(labels: np.ndarray) -> np.ndarray:
    """Return labels as whole numbers or text [N]; one-hot rows become the number of their column."""
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "iufb":
        if ((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all():
            return labels.argmax(axis=1)
        raise errors.DataError(f"labels {labels.dtype}{list(labels.shape)} are not one-hot rows; give {_TO_LABELS}")
    if labels.dtype.kind in "SO":
        texts = [label.decode() if isinstance(label, bytes) else label for label in labels.ravel()]
        if all(isinstance(text, str) and text for text in texts):
            return np.asarray(texts)
    if labels.dtype.kind not in "iubU":
        raise errors.DataError(f"labels are {labels.dtype}{list(labels.shape)}; give {_TO_LABELS}")
    return labels.ravel()


def _weights(weights: np.ndarray, count: int) -> np.ndarray:
    right = weights.dtype.kind in "iuf" and weights.size == count
    if not right or not ((weights >= 0) & (weights < 1e9)).all():
        raise errors.DataError(f"weights are {weights.dtype}{list(weights.shape)}; give {count} numbers from 0 to 1e9")
    return weights.ravel()


# ---- streams


def stream(elements, size: tuple[int, int] | None) -> Source:
    """Return what yields (image, label) or (image, label, weight) as a source; batches of them work as well.

    Args:
        elements: a `tf.data.Dataset`, a generator, another iterable, or a function that returns one.
        size: what the images become; None requires that they share one size.

    Raises:
        errors.DataError: there are no elements, or they are of another kind.
    """
    examples = _examples(elements)
    try:
        first = next(examples)
    except StopIteration:
        raise errors.DataError(_EMPTY) from None
    shape, index, digest = first[0].shape, {}, _Digest()  # classes are numbered as they come

    def inputs() -> Iterator[Input]:
        for i, (image, label, weight) in enumerate(itertools.chain([first], examples)):
            if size is None and image.shape[:2] != shape[:2]:
                raise errors.DataError(
                    f"image {i} is {image.shape[0]}x{image.shape[1]}, the first {shape[0]}x{shape[1]}; give image_size"
                )
            digest.add(image, label, weight)
            yield Input(str(i), index.setdefault(label, len(index)), image, weight=weight)

    return Source("stream", index, {"train": inputs}, {"train": None}, shape[2], shape[:2], identity=digest.text)


def identity_of_stream(elements) -> str:
    """Return the text by which a prepared directory remembers a stream, which is read for it."""
    digest = _Digest()
    for example in _examples(elements):
        digest.add(*example)
    if not digest.sum:
        raise errors.DataError(_EMPTY)
    return digest.text()


class _Digest:
    """A sum of the digests of all examples, which does not depend on their order: a dataset may be shuffled."""

    def __init__(self):
        self.sum = 0

    def add(self, image: np.ndarray, label, weight: float | None) -> None:
        content = hashlib.sha256(f"{image.shape} {label!r} {weight!r}".encode() + image.tobytes()).digest()
        self.sum = (self.sum + int.from_bytes(content, "big")) % (1 << 256)

    def text(self) -> str:
        return f"stream:{self.sum:064x}"


def _examples(elements) -> Iterator[tuple[np.ndarray, int | str, float | None]]:
    """Yield each example of a stream: uint8 [height, width, channels], label, weight."""
    for element in _iterated(elements):
        if isinstance(element, dict):  # as TensorFlow Datasets yields them
            element = tuple(element.get(key) for key in ("image", "label"))
        right = isinstance(element, (tuple, list)) and len(element) in (2, 3)
        if not right or any(part is None for part in element):
            raise errors.DataError(
                f"the source yields {type(element).__name__}; give (image, label) or (image, label, weight)"
            )
        image, label, *weight = (np.asarray(part) for part in element)
        if image.ndim == 4:
            part = _part((image, label, *weight))
        else:
            image = image[..., np.newaxis] if image.ndim == 2 else image
            part = _part((image[np.newaxis], label[np.newaxis], *(one[np.newaxis] for one in weight)))
        weights = itertools.repeat(None) if part.weights is None else map(float, part.weights)
        yield from zip(part.images, part.labels.tolist(), weights, strict=False)


def _iterated(elements) -> Iterator:
    if not hasattr(elements, "element_spec"):
        found = elements() if callable(elements) else elements
        if not np.iterable(found):
            raise errors.DataError(
                f"the source {elements!r:.99} yields nothing; give a function that returns an iterable"
            )
        return iter(found)
    import tensorflow as tf

    if elements.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise errors.DataError("the dataset never ends; take repeat() away")

    def until_an_error():
        try:
            yield from elements.as_numpy_iterator()
        except tf.errors.OpError as error:
            raise errors.DataError(f"the dataset failed ({errors.first_line(error)})") from error

    return until_an_error()
