"""Input: images per second into batches, shuffled globally, by tfpar and by its peers, from the same pictures.

    python -m tests.benchmarks.input PHOTOS              # a folder of class folders, such as the grocery photographs
    python -m tests.benchmarks.input PHOTOS --case 224   # those cases alone whose names begin so

`memcpy` is the limit: two threads that copy whole batches into a ring of buffers larger than any cache. The peers that
read JPEG files do more work: what tfpar does once, they do in every epoch. Those that read arrays do the same. What is a
`tf.data.Dataset` is consumed inside a TensorFlow function, as a training step does.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tests import benchmarks

SECONDS, DRAIN_SECONDS = 2.0, 1.0  # of one turn
STEPS_A_CALL, COPIES = 32, 64
ARRAYS = ["memcpy", "memcpy_shuffled", "tfpar", "cache_shuffle", "grain", "torch", "ffcv"]
FILES = ["tfdata_guide", "image_dataset_from_directory", "tfds_folder", "torch_files", "dali"]
CASES = {  # name: (side of the square, batch, augmentation, contenders, base)
    "224-64": (224, 64, "none", ARRAYS, "memcpy"),
    "224-64-files": (224, 64, "none", ["tfpar", *FILES], "tfpar"),
    "224-256": (224, 256, "none", ARRAYS, "memcpy"),
    "96-64": (96, 64, "none", ARRAYS, "memcpy"),
    "96-64-files": (96, 64, "none", ["tfpar", *FILES], "tfpar"),
    "28-64": (28, 64, "none", ["memcpy", "tfpar", "cache_shuffle", "grain", "torch"], "cache_shuffle"),
    "28-256": (28, 256, "none", ["memcpy", "tfpar", "cache_shuffle", "grain", "torch"], "cache_shuffle"),
    "224-64-crop-flip": (224, 64, "crop-flip", ["tfpar", "elementwise"], "elementwise"),
    "32-64-crop-flip": (32, 64, "crop-flip", ["tfpar", "elementwise"], "elementwise"),
    "28-256-crop-flip": (28, 256, "crop-flip", ["tfpar", "elementwise"], "elementwise"),
}


def memcpy(data, batch, **_):
    def copy(target, number):
        first = number * batch % (len(data.train.images) - batch)
        np.copyto(target, data.train.images[first : first + batch])

    return _copied(copy, data, batch)


def memcpy_shuffled(data, batch, **_):
    def copy(target, number):
        chosen = np.random.default_rng(number).integers(0, len(data.train.images), batch)
        np.take(data.train.images, chosen, axis=0, out=target, mode="clip")

    return _copied(copy, data, batch)


def _copied(copy, data, batch):
    """Yield batches that two threads copy into a ring of buffers, each its half of them, without waiting for the other."""
    images = data.train.images
    buffers = max(4, (1 << 28) // (batch * images[0].nbytes))
    ring = [np.zeros((batch, *images.shape[1:]), np.uint8) for _ in range(buffers)]

    def copies(numbers):
        for number in numbers:
            copy(ring[number % buffers], number)

    with ThreadPoolExecutor(2) as pool:
        for first in itertools.count(0, COPIES):
            middle, end = first + COPIES // 2, first + COPIES
            list(pool.map(copies, [range(first, middle), range(middle, end)]))
            yield COPIES * batch


def _in_a_graph(dataset, batch):
    """Yield from a dataset as training takes its batches: inside a TensorFlow function, several a call."""
    import tensorflow as tf

    @tf.function
    def several(iterator):
        for _ in tf.range(STEPS_A_CALL):
            next(iterator)

    iterator = iter(dataset)
    while True:
        several(iterator)
        yield STEPS_A_CALL * batch


def tfpar(data, batch, augment, **_):
    from tfpar import devices, engine

    batches = engine.train_batches(data.train, devices.strategy(), global_batch_size=batch, augment=augment)
    return _in_a_graph(batches, batch)


def cache_shuffle(data, batch, **_):
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices((np.array(data.train.images), data.train.labels)).cache()
    dataset = dataset.shuffle(len(data.train.labels)).repeat().batch(batch).prefetch(tf.data.AUTOTUNE)
    return _in_a_graph(dataset, batch)


def elementwise(data, batch, **_):
    """The same augmentation as TensorFlow's guides write it: one image at a time, mapped with AUTOTUNE."""
    import tensorflow as tf

    side = data.image_shape[0]
    reach = max(1, side // 8)

    def augmented(image, label):
        places = tf.clip_by_value(tf.range(-reach, side + reach), 0, side - 1)
        padded = tf.gather(tf.gather(image, places), places, axis=1)  # the edge repeated
        cropped = tf.image.random_crop(padded, data.image_shape)
        return tf.image.random_flip_left_right(cropped), label

    dataset = tf.data.Dataset.from_tensor_slices((np.array(data.train.images), data.train.labels))
    dataset = dataset.shuffle(len(data.train.labels)).repeat().map(augmented, num_parallel_calls=tf.data.AUTOTUNE)
    return _in_a_graph(dataset.batch(batch).prefetch(tf.data.AUTOTUNE), batch)


def grain(data, batch, **_):
    import grain.python as pygrain

    class Source:
        def __len__(self):
            return len(data.train.labels)

        def __getitem__(self, index):
            return data.train.images[index], data.train.labels[index]

    options = pygrain.ReadOptions(num_threads=16, prefetch_buffer_size=16)  # its own threads; it would hold 500 batches
    dataset = pygrain.MapDataset.source(Source()).seed(0).shuffle().repeat().batch(batch).to_iter_dataset(options)
    for images, _labels in dataset:
        yield len(images)


class Arrays:
    """A PyTorch data set over the same mapped array."""

    def __init__(self, data):
        self.images, self.labels = data.train.images, data.train.labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


def _endless(loader):
    while True:
        for images, _labels in loader:
            yield len(images)


def torch(data, batch, **_):
    from torch.utils.data import DataLoader

    return _endless(
        DataLoader(Arrays(data), batch, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)
    )


def torch_files(data, batch, photos, **_):
    from PIL import Image
    from torch.utils.data import DataLoader

    class Files(Arrays):
        def __getitem__(self, index):
            with Image.open(Path(photos) / data.train.sources[index]) as image:
                return np.asarray(image.convert("RGB").resize(data.image_shape[:2])), self.labels[index]

    return _endless(
        DataLoader(Files(data), batch, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)
    )


def ffcv(data, batch, **_):
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor
    from ffcv.writer import DatasetWriter

    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/data.beton"
        fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
        DatasetWriter(path, fields, num_workers=1).from_indexed_dataset(Arrays(data))
        pipelines = {"image": [SimpleRGBImageDecoder(), ToTensor()], "label": [IntDecoder(), ToTensor()]}
        yield from _endless(
            Loader(path, batch, num_workers=2, order=OrderOption.RANDOM, os_cache=True, pipelines=pipelines)
        )


def tfdata_guide(data, batch, photos, **_):
    import tensorflow as tf

    paths = [str(Path(photos) / source) for source in data.train.sources]

    def read(path, label):
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.image.resize(image, data.image_shape[:2]), label

    dataset = tf.data.Dataset.from_tensor_slices((paths, data.train.labels)).shuffle(len(paths)).repeat()
    dataset = dataset.map(read, num_parallel_calls=tf.data.AUTOTUNE).batch(batch)
    return _in_a_graph(dataset.prefetch(tf.data.AUTOTUNE), batch)


def image_dataset_from_directory(data, batch, photos, **_):
    import keras

    dataset = keras.utils.image_dataset_from_directory(
        photos, image_size=data.image_shape[:2], batch_size=batch, verbose=False
    )
    return _in_a_graph(dataset.repeat(), batch)


def tfds_folder(data, batch, photos, **_):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "train").symlink_to(Path(photos).resolve())
        dataset = tfds.ImageFolder(directory).as_dataset(split="train", as_supervised=True, shuffle_files=True)
        dataset = dataset.repeat().map(
            lambda image, label: (tf.image.resize(image, data.image_shape[:2]), label),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        yield from _in_a_graph(dataset.batch(batch).prefetch(tf.data.AUTOTUNE), batch)


def dali(data, batch, photos, **_):
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=batch, num_threads=2, device_id=None)
    def pipeline():
        content, labels = fn.readers.file(file_root=photos, random_shuffle=True)
        images = fn.resize(fn.decoders.image(content, device="cpu"), size=list(data.image_shape[:2]))
        return images, labels

    built = pipeline()
    built.build()
    while True:
        images, _labels = built.run()
        yield len(images)


def _prepared(photos: str, side: int, place: Path):
    from tfpar import prepare

    if side == 28:  # 60,000 gray pictures, as many as Fashion-MNIST has
        if not (place / "28" / "dataset.json").exists():
            random = np.random.default_rng(0)
            pixels, labels = random.integers(0, 256, (60_000, 28, 28), np.uint8), np.arange(60_000) % 10
            return prepare.dataset((pixels, labels), place / "28")
        return prepare.load(place / "28", verify=False)
    return prepare.dataset(photos, place / str(side), image_size=side)


def _contender(name: str, photos: str, place: str, case: str) -> None:
    side, batch, augment, _names, _base = CASES[case]
    batches = globals()[name](_prepared(photos, side, Path(place)), batch=batch, augment=augment, photos=photos)

    def turn() -> float:
        started, images = time.perf_counter(), 0
        while time.perf_counter() - started < DRAIN_SECONDS:  # what waited in queues since the last turn
            next(batches)
        started = time.perf_counter()
        while time.perf_counter() - started < SECONDS:
            images += next(batches)
        return images / (time.perf_counter() - started)

    benchmarks.answer(turn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--case", nargs="+", default=[""], help="how its name begins")
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as place:
        for case, (side, _batch, _augment, names, base) in CASES.items():
            if case.startswith(tuple(given.case)):
                _prepared(given.photos, side, Path(place))
                print(case)
                numbers = benchmarks.take_turns(__spec__.name, names, given.photos, place, case, turns=given.turns)
                benchmarks.table(numbers, base, "images per second")
                results[case] = numbers
    benchmarks.write("input", results)


if __name__ == "__main__":
    _contender(*sys.argv[2:]) if sys.argv[1:2] == ["--contender"] else main()
