"""Arrays, tf.data datasets and generators."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfpar import errors, prepare
from tfpar.prepare import pictures

DRAW = np.random.default_rng(0)
IMAGES = DRAW.integers(0, 256, (40, 6, 5, 3), np.uint8)
LABELS = np.arange(40) % 4
NAMES = np.array(["ant", "bee", "cat", "dog"])


def same(one, other):
    return all(
        np.array_equal(one.splits[split].images, other.splits[split].images)
        and np.array_equal(one.splits[split].labels, other.splits[split].labels)
        for split in ("train", "validation")
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return prepare.dataset((IMAGES, LABELS), tmp_path_factory.mktemp("values") / "d")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (LABELS + 1, ["1", "2", "3", "4"]),
        (NAMES[LABELS], NAMES.tolist()),
        (NAMES[LABELS].astype("S"), NAMES.tolist()),
        (NAMES[LABELS].astype(object), NAMES.tolist()),
        (np.eye(4)[LABELS], ["0", "1", "2", "3"]),
        (np.eye(4, dtype=bool)[LABELS], ["0", "1", "2", "3"]),
        (LABELS[:, np.newaxis].astype(np.uint8), ["0", "1", "2", "3"]),
        (LABELS.tolist(), ["0", "1", "2", "3"]),
    ],
)
def test_labels_of_every_form(labels, names, reference, tmp_path):
    data = prepare.dataset((IMAGES, labels), tmp_path / "d")
    assert same(data, reference) and data.class_names == names
    assert same(prepare.dataset((IMAGES, labels), tmp_path / "d"), reference)


def dataset():
    return tf.data.Dataset.from_tensor_slices((IMAGES, LABELS))


def elements():
    yield from zip(IMAGES, LABELS, strict=True)


@pytest.mark.parametrize(
    "source",
    [
        dataset,
        lambda: dataset().batch(7),
        lambda: dataset().map(lambda image, label: {"image": image, "label": label, "id": 3}),
        lambda: dataset().map(lambda image, label: (image, tf.one_hot(label, 4))),
        lambda: dataset().batch(9).map(lambda image, label: (image, tf.one_hot(label, 4))),
        lambda: elements(),
        lambda: elements,
        lambda: ((Image.fromarray(image), int(label)) for image, label in elements()),
    ],
)
def test_streams(source, reference, tmp_path):
    data = prepare.dataset(source(), tmp_path / "d")
    assert same(data, reference) and data.class_names == ["0", "1", "2", "3"]
    assert same(prepare.dataset(source(), tmp_path / "d"), reference)  # found there


def test_a_stream_of_decoded_pictures_has_the_pixels_of_their_folder(shared, tmp_path):
    root = shared / "grocery_photos" / "images"
    of_folder = prepare.dataset(root, tmp_path / "f", image_size=32)
    paths = of_folder.train.sources + of_folder.validation.sources
    stream = ((pictures.load(root / path, (32, 32)), path.split("/")[0]) for path in paths)
    of_stream = prepare.dataset(stream, tmp_path / "s")
    pixels = [
        {image.tobytes() for split in (data.train, data.validation) for image in split.images}
        for data in (of_folder, of_stream)
    ]
    assert pixels[0] == pixels[1] and of_folder.class_names == of_stream.class_names


def test_classes_of_a_stream_are_sorted_numbers_as_numbers(tmp_path):
    labels = np.arange(40)[::-1] % 12
    data = prepare.dataset(zip(IMAGES, labels, strict=True), tmp_path / "d")
    assert data.class_names == [str(number) for number in range(12)]
    names = prepare.dataset(zip(IMAGES, NAMES[::-1][LABELS], strict=True), tmp_path / "e")
    assert names.class_names == NAMES.tolist()


def test_another_stream_is_not_taken_for_the_one_that_was_prepared_and_a_shuffled_one_is(tmp_path):
    first = prepare.dataset(dataset(), tmp_path / "d")
    assert prepare.dataset(dataset().shuffle(40, seed=1), tmp_path / "d").fingerprint == first.fingerprint
    with pytest.raises(errors.SettingsError, match="source is stream:"):
        prepare.dataset(zip(IMAGES, (LABELS + 1) % 4, strict=True), tmp_path / "d")


def test_weights(tmp_path):
    weights = np.arange(40) / 8
    arrays = prepare.dataset((IMAGES, LABELS, weights), tmp_path / "a")
    stream = prepare.dataset(zip(IMAGES, LABELS, weights, strict=True), tmp_path / "s")
    for data in (arrays, stream):
        for split in (data.train, data.validation):
            assert split.weights.tolist() == [weights[int(source)] for source in split.sources]
    assert arrays.fingerprint == stream.fingerprint


def checked(image, label):
    with tf.control_dependencies([tf.debugging.assert_less(label, tf.constant(3, tf.int64))]):
        return tf.identity(image), label


FLOATS = IMAGES / np.float32(255)
SIZES = ((IMAGES[i, : 6 - i % 2], LABELS[i]) for i in range(40))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ((iter, iter), r"images are object.*of two datasets give one"),
        ((FLOATS, LABELS), r"images are float32.*\(255 \* images\)"),
        (zip(FLOATS, LABELS, strict=True), r"images are float32.*\(255 \* images\)"),
        (tf.data.Dataset.from_tensor_slices((FLOATS, LABELS)), r"pipeline dataset\.map\(lambda image, label: \(tf\.cast"),
        (lambda: SIZES, "image 1 is 5x5, the first 6x5; give image_size"),
        (iter(()), "yields nothing"),
        (iter([IMAGES[0]]), "yields ndarray; give"),
        (iter([{"image": IMAGES[0]}]), "yields tuple; give"),
        (dataset().repeat(), "never ends"),
        (dataset().map(checked), "the dataset failed"),
        ((IMAGES, np.full((40, 4), 0.25)), "not one-hot rows"),
        ((IMAGES, np.array([None] * 40)), "labels are object"),
        ((IMAGES, LABELS / 2), "labels are float64"),
        (zip(IMAGES, [0, "cat"] * 20, strict=True), "labels are of two kinds; give whole numbers or text"),
        ((IMAGES, np.array(["cat", ""] * 20)), "label 1 is an empty text; give one whole number"),
        ((np.array([IMAGES[0], IMAGES[1][1:]], dtype=object), LABELS[:2]), "images are object.*all of one size"),
        ((IMAGES, LABELS, -LABELS), "weights are int64"),
        ((IMAGES, LABELS, LABELS[1:]), "weights are"),
        ((IMAGES, LABELS[1:]), "40 images and labels"),
    ],
)  # fmt: skip
def test_what_cannot_be_prepared_is_refused_and_leaves_nothing(source, text, tmp_path):
    with pytest.raises(errors.DataError, match=text):
        prepare.dataset(source, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_an_error_of_the_users_own_generator_is_theirs(tmp_path):
    def broken():
        yield IMAGES[0], 0
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        prepare.dataset(broken, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_mixed_sizes_become_the_size_that_was_asked_for(tmp_path):
    mixed = ((image[: 6 - i % 2], label) for i, (image, label) in enumerate(elements()))
    assert prepare.dataset(mixed, tmp_path / "d", image_size=4).image_shape == (4, 4, 3)
