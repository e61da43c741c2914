"""How fast one machine answers with a model, in every way that people deploy it: from `predict` to LiteRT.

Each way is measured by two numbers: the **latency**, the time of one image, and the **throughput**, images per second in batches.
Each way takes `uint8[batch, height, width, channels]` in NumPy's memory and returns logits `float32[batch, classes]`
there, so the time to copy them in and out is part of both numbers.

Example:
    >>> rows = platforms.compare("runs/digits")
    >>> print(platforms.table(rows))
    way...          one image: median  99th percentile  a batch: images/s  difference     correct
    predict                    ... us           ... us                ...       0e+00  ... of 179
    ...
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from tfpar import errors, export, files, machine, results, validate
from tfpar.results import tables
from tfpar.steps import accepted

BATCH, CALIBRATING = 256, 100  # images: of a call for the throughput; that show LiteRT int8 the ranges of its values
SECONDS, FEWEST_CALLS, MOST_CALLS = 1.0, 30, 20_000  # of a measurement
LITERT, BOUND = "LiteRT float32", 1e-4  # by which its logits may differ from Keras', in parts of the largest logit
Way = Callable[[np.ndarray], np.ndarray]


class Row(NamedTuple):
    """One way: median (`p50`) and 99th percentile (`p99`) of the seconds of an image, images a second, the largest difference
    from Keras' logits divided by the largest logit, and how many of the compared images are right."""

    way: str
    p50: float
    p99: float
    throughput: float
    difference: float
    correct: int
    images: int


def latency(f: Way, images: np.ndarray, *, seconds: float = SECONDS) -> tuple[float, float]:
    """Return the median and the 99th percentile of the seconds that `f` takes for one image.

    Each call takes the next image, after three calls that trace and compile. There are at least 30 calls; with
    fewer than 100, the 99th percentile is almost the longest.

    Args:
        f: takes images and returns logits.
        images: `uint8[N, height, width, channels]`, N at least 1.
        seconds: for how long it is called, up to 20,000 times; 0 to 600.

    Raises:
        errors.SettingsError: the images are no such array, or the seconds are out of range.

    Example:
        >>> p50, p99 = platforms.latency(model.predict, data.validation.images)
    """
    return tuple(map(float, np.percentile(_measured(f, images, 1, seconds, FEWEST_CALLS), (50, 99))))


def throughput(f: Way, batch: np.ndarray, *, seconds: float = SECONDS) -> float:
    """Return how many images a second `f` answers when it gets the same batch again and again, at least three times.

    Args:
        f, seconds: as for `latency`.
        batch: `uint8[batch, height, width, channels]`.

    Raises:
        errors.SettingsError: as for `latency`.
    """
    return float(1 / np.mean(_measured(f, batch, None, seconds, 3)) * len(batch))


def _measured(f: Way, images: np.ndarray, size: int | None, seconds: float, fewest: int) -> list[float]:
    """Return the seconds of each call with `size` images; None is all of them."""
    validate.split((images, np.zeros(np.shape(images)[:1], int)))
    parts = itertools.cycle([images] if size is None else [images[i : i + size] for i in range(0, len(images), size)])
    for part in itertools.islice(parts, 3):
        f(part)
    taken, end = [], time.perf_counter() + validate.number("seconds", seconds, 0, 600)
    while len(taken) < fewest or (len(taken) < MOST_CALLS and time.perf_counter() < end):
        part, started = next(parts), time.perf_counter()
        f(part)
        taken.append(time.perf_counter() - started)
    return taken


def ways(model: keras.Model, images: np.ndarray) -> dict[str, Way]:
    """Return the ways in which this machine can compute a model, by their names: images in, logits out.

    `predict`, `model(x)`, `tf.function` and `XLA` on the CPU and, where there is one, on the GPU; LiteRT, converted by
    `tfpar.export`, in float32 and int8, with one thread or all, whichever is faster. Where the extra `litert` is not
    installed, or LiteRT lacks an operation of the network (in 16 bits), a printed line says that it is left out.

    Args:
        model: a classifier: `uint8` images in, logits out.
        images: `uint8[N, height, width, channels]`, from which LiteRT int8 learns the ranges of its values.
    """
    places = {" on the CPU": "CPU", " on the GPU": "GPU"} if tf.config.list_logical_devices("GPU") else {"": None}
    found = {name + place: f for place, device in places.items() for name, f in _of_keras(model, device).items()}
    try:
        found |= _of_litert(model, images)
    except RuntimeError as reason:
        print(f"LiteRT is left out: {errors.first_line(reason)}")
    return found


def _of_keras(model: keras.Model, device: str | None) -> dict[str, Way]:
    """Return the ways of TensorFlow on a device, which gets a copy of the weights; None is the only device."""
    if device:
        with tf.device(device):
            original, model = model, keras.models.clone_model(model)
            model.set_weights(original.get_weights())

    def called(f: Callable) -> Way:
        def answer(images):
            with tf.device(device):
                return np.asarray(f(images))

        return answer if device else lambda images: np.asarray(f(images))

    return {
        "predict": called(lambda images: model.predict(images, batch_size=len(images), verbose=0)),
        "model(x)": called(lambda images: model(images, training=False)),
        "tf.function": called(tf.function(lambda images: model(images, training=False))),
        "XLA": called(tf.function(lambda images: model(images, training=False), jit_compile=True)),
    }


def _of_litert(model: keras.Model, images: np.ndarray) -> dict[str, Way]:
    def examples() -> Iterator[list[np.ndarray]]:
        yield from ([image[None]] for image in images[:CALIBRATING])

    int8, found = {"optimizations": [tf.lite.Optimize.DEFAULT], "representative_dataset": examples}, {}
    with tempfile.TemporaryDirectory() as place:  # LiteRT maps its files, so they may go
        for name, options in ((LITERT, {}), ("LiteRT int8", int8)):
            path = Path(place, f"{name}.tflite")
            export.convert(model, path, "tflite", **options)(images[:1])
            found[name] = _with_best_threads(path)
    return found


def _with_best_threads(path: Path) -> Way:
    """Answer with one thread or with all: for a small network, waking the others takes longer than the work itself."""
    several, best = [export.tflite(path, threads=threads) for threads in {1, len(machine.cores())}], {}

    def answer(images):
        if (shape := images.shape) not in best:
            best[shape] = min(several, key=lambda f: np.median(_measured(f, images, None, 0, 5)))
        return best[shape](images)

    return answer


def measure(
    model: keras.Model, images: np.ndarray, labels: np.ndarray, *, batch: int = BATCH, seconds: float = SECONDS
) -> list[Row]:
    """Measure all `ways`, and compare their logits with those of `model(x)`.

    Args:
        model, images: as for `ways`; as many images are compared as a batch has, or all.
        labels: integers `[N]`, the right answers.
        batch: images of a call when the throughput is measured; where there are fewer images, they repeat.
        seconds: of each of the two measurements of a way.

    Raises:
        errors.SettingsError: images and labels are no split, or a number is out of range.
        RuntimeError: the logits of LiteRT in float32 differ from Keras' by more than 1e-4 of the largest.
    """
    images, labels = validate.split((images, labels))
    repeated = np.arange(validate.integer("batch", batch, 1, validate.MOST_BATCH)) % len(images)
    part, compared, rows = images[repeated], min(batch, len(images)), []
    by_keras = np.asarray(model(part, training=False))
    for name, f in ways(model, images).items():
        logits = f(part)
        difference = float(np.abs(logits - by_keras).max() / (np.abs(by_keras).max() or 1))
        if name == LITERT and not difference <= BOUND:
            raise RuntimeError(f"{name}: its logits differ from Keras' by {difference:.1e} of the largest logit")
        correct = int((logits.argmax(1) == labels[repeated])[:compared].sum())
        speeds = *latency(f, images, seconds=seconds), throughput(f, part, seconds=seconds)
        rows.append(Row(name, *speeds, difference, correct, compared))
    return rows


def compare(run: str | Path, *, batch: int = BATCH) -> list[Row]:
    """Measure the final model of a run with its validation images, and draw the rows into `RUN/platforms.png`.

    Args:
        run: directory of a finished run.
        batch: as for `measure`, which raises too.

    Raises:
        errors.InputNotFound: the run is not finished, or its data is gone.
        errors.SettingsError: the data is no longer that of the run.
        errors.InputOutputFailed: the picture cannot be written.
    """
    run = results.Run(run)
    data = export.data_of(run)
    model = accepted.check_dtypes(run.model(compile=False))
    rows = measure(model, data.validation.images, data.validation.labels, batch=batch)
    figure = draw({row.way: (row.p50, row.throughput) for row in rows})
    files.write(run.directory / "platforms.png", lambda path: figure.savefig(path, dpi=120))
    return rows


def table(rows: list[Row]) -> str:
    """Return the rows as a table for the screen; times are in microseconds (us)."""
    lines = [("way", "one image: median", "99th percentile", "a batch: images/s", "difference", "correct")]
    for row in rows:
        speeds = f"{1e6 * row.p50:,.1f} us", f"{1e6 * row.p99:,.1f} us", f"{row.throughput:,.0f}"
        lines.append((row.way, *speeds, f"{row.difference:.0e}", f"{row.correct:,} of {row.images:,}"))
    return tables.text(lines)


def draw(points: dict[str, tuple[float, float]]) -> Figure:
    """Draw latency against throughput, both on logarithmic axes; the upper left corner is the best.

    Args:
        points: by name the seconds of one image, and images a second.
    """
    axes = Figure(figsize=(8, 4.5), layout="constrained").subplots()
    # The fastest first: its name above its point, the next name below.
    for number, (name, point) in enumerate(sorted(points.items(), key=lambda item: -item[1][1])):
        axes.scatter(*point)
        axes.annotate(name, point, xytext=(6, (4, -12)[number % 2]), textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlabel="latency of one image in seconds", ylabel="images a second, in batches")
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    return axes.figure
