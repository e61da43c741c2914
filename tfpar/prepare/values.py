"""Images that a program has: arrays, `tf.data` datasets, and whatever else yields (image, label)."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from tfpar import errors, files
from tfpar.prepare.inputs import Input, Source

_ROWS = 1024  # of an array, read at once
_TO_PIXELS = (
    "(255 * images).round().astype('uint8') if they go from 0 to 1, images.astype('uint8') if they go from 0 to 255; in a tf.data "
    "pipeline dataset.map(lambda image, label: (tf.cast(tf.round(image), 'uint8'), label)), of 255 * image if they go from 0 to 1"
)
_TO_LABELS = "one whole number, text, or one-hot row per image"


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
    shapes = [images.shape[1:] for images, _, _ in parts]
    if len(set(shapes)) > 1:
        raise errors.DataError(f"arrays: train and validation are {' and '.join(map(str, shapes))}. Give one size")

    def inputs(images, labels, weights):
        for i, image in enumerate(images):
            yield Input(str(i), labels[i].item(), image, weight=None if weights is None else float(weights[i]))

    named = dict(zip(("train", "validation"), parts, strict=False))
    return Source(
        name=name,
        class_names=np.unique(np.concatenate([labels for _, labels, _ in parts])).tolist(),
        splits={split: lambda part=part: inputs(*part) for split, part in named.items()},
        counts={split: len(images) for split, (images, _, _) in named.items()},
        channels=shapes[0][2],
        size=shapes[0][:2],
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
        todo = "give NumPy arrays (images, labels) or (images, labels, weights), or train and validation"
        raise errors.DataError(todo)
    uneven = f"arrays: {errors.REASON}; give (images, labels) as NumPy arrays"
    with errors.translated((TypeError, ValueError), errors.DataError, uneven):  # rows of different lengths
        return [tuple(np.asarray(array) for array in one) for one in tuples]


def _part(given: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return images `uint8[N, height, width, channels]`, labels as whole numbers or text `[N]`, and weights `[N]` or None."""
    images, labels, weights = (*given, None)[:3]
    images = _pixels(images[..., np.newaxis] if images.ndim == 3 else images)
    names = _labels(labels)
    if len(names) != len(images):
        raise errors.DataError(f"arrays: {len(images)} images and labels {_kind(labels)}; give {_TO_LABELS}")
    return (images, names, None if weights is None else _weights(weights, len(images)))


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _pixels(images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        objects = "; all of one size" if images.ndim else "; of two datasets give one, first.concatenate(second)"
        convert = {"f": f"; convert them: {_TO_PIXELS}", "O": objects}
        right = "uint8 [N, height, width] or [N, height, width, 1 or 3]"
        raise errors.DataError(f"images are {_kind(images)}; give {right}{convert.get(images.dtype.kind, '')}")
    return images


def _labels(labels: np.ndarray) -> np.ndarray:
    """Return labels as whole numbers or text [N]; one-hot rows become the number of their column."""
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "iufb":
        if ((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all():
            return labels.argmax(axis=1)
        raise errors.DataError(f"labels {_kind(labels)} are not one-hot rows; give {_TO_LABELS}")
    if labels.dtype.kind in "SOU":
        texts = [files.printable(label) if isinstance(label, bytes) else label for label in labels.ravel()]
        if empty := [i for i, text in enumerate(texts) if isinstance(text, str) and not text]:
            raise errors.DataError(f"label {empty[0]} is an empty text; give {_TO_LABELS}")
        if all(isinstance(text, str) for text in texts):
            return np.asarray(texts)
    if labels.dtype.kind not in "iub":
        raise errors.DataError(f"labels are {_kind(labels)}; give {_TO_LABELS}")
    return labels.ravel()


def _weights(weights: np.ndarray, count: int) -> np.ndarray:
    right = weights.dtype.kind in "iuf" and weights.size == count
    if not right or not ((weights >= 0) & (weights < 1e9)).all():
        raise errors.DataError(f"weights are {_kind(weights)}; give {count} numbers from 0 to 1e9")
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
    first = next(examples)
    shape, digests = first[0].shape, []

    def inputs() -> Iterator[Input]:
        for i, (image, label, weight) in enumerate(itertools.chain([first], examples)):
            if size is None and image.shape[:2] != shape[:2]:
                here, first_side = ("x".join(map(str, sides[:2])) for sides in (image.shape, shape))
                raise errors.DataError(f"image {i} is {here}, the first {first_side}; give image_size")
            digests.append(_digest(image, label, weight))
            yield Input(str(i), label, image, weight=weight)

    counts = {"train": None}
    return Source("stream", [], {"train": inputs}, counts, shape[2], shape[:2], identity=lambda: _summed(digests))


def identity_of_stream(elements) -> str:
    """Return the text by which a prepared directory remembers a stream, which is read for it."""
    return _summed(_digest(*example) for example in _examples(elements))


def _digest(image: np.ndarray, label, weight: float | None) -> int:
    content = hashlib.sha256(f"{image.shape} {label!r} {weight!r}".encode() + image.tobytes()).digest()
    return int.from_bytes(content, "big")


def _summed(digests: Iterable[int]) -> str:
    """Return the identity of a stream; it does not depend on the order, because a dataset may be shuffled."""
    return f"stream:{sum(digests) % (1 << 256):064x}"


def _examples(elements) -> Iterator[tuple[np.ndarray, int | str, float | None]]:
    """Yield each example of a stream: uint8 [height, width, channels], label, weight."""
    element = None
    for element in _iterated(elements):
        if isinstance(element, dict):  # as TensorFlow Datasets yields them
            element = tuple(element.get(key) for key in ("image", "label"))
        right = isinstance(element, (tuple, list)) and len(element) in (2, 3)
        if not right or any(part is None for part in element):
            raise errors.DataError(f"the source yields {type(element).__name__}; give (image, label[, weight])")
        given = tuple(np.asarray(part) for part in element)
        if given[0].ndim < 4:  # an image, not a batch
            given = tuple(part[np.newaxis] for part in given)
        images, labels, weights = _part(given)
        numbers = itertools.repeat(None) if weights is None else map(float, weights)
        yield from zip(images, labels.tolist(), numbers, strict=False)
    if element is None:
        todo = "give (image, label) elements, and a function that returns a generator instead of a used one"
        raise errors.DataError(f"the source yields nothing; {todo}")


def _iterated(elements) -> Iterator:
    if not hasattr(elements, "element_spec"):
        found = elements() if callable(elements) else elements
        if not np.iterable(found):
            raise errors.DataError(f"{elements!r:.99} yields nothing; give a function that returns an iterable")
        yield from found
        return
    import tensorflow as tf

    if elements.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise errors.DataError("the dataset never ends; take repeat() away")
    with errors.translated(tf.errors.OpError, errors.DataError, f"the dataset failed ({errors.REASON})"):
        yield from elements.as_numpy_iterator()
