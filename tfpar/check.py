"""The invariants, as claims anyone can test: each function prints one line and returns whether it holds.

Example:
    >>> check.same_weights(run_on_one.model(), run_on_four.model())
    same weights: True (... numbers, bit for bit)
    True
"""

import contextlib
import threading
from collections.abc import Iterator
from concurrent import futures

import keras
import numpy as np
import tensorflow as tf

from tfpar import engine, results, steps, validate
from tfpar.engine import permutation
from tfpar.results.predictions import TOP, probabilities_of


def same_weights(first: keras.Model, second: keras.Model) -> bool:
    """Tell whether two models hold the same bits, batch-normalization statistics included."""
    pairs = list(zip(first.get_weights(), second.get_weights(), strict=False))
    same = len(first.weights) == len(second.weights) and all(_bits(a) == _bits(b) for a, b in pairs)
    return _claim("same weights", same, f"{sum(a.size for a, _ in pairs):,} numbers, bit for bit")


def same_order(
    split, strategy: tf.distribute.Strategy, *, global_batch_size: int, seed: int = 0, steps: int = 10
) -> bool:
    """Tell whether the replicas of a strategy together see the images that the order names, step for step."""
    batches = iter(engine.train_batches(split, strategy, global_batch_size=global_batch_size, seed=seed))
    of_split, same = {"examples": len(split[0]), "seed": seed, "block": permutation.block_of(split[0])}, True
    for step in range(steps):
        seen = strategy.experimental_local_results(next(batches)[0])
        positions = step * global_batch_size + tf.range(global_batch_size, dtype=tf.int64)
        chosen = permutation.order(positions, **of_split).numpy()
        same &= np.array_equal(np.concatenate([images.numpy() for images in seen]), split[0][chosen])
    return _claim("same order", bool(same), f"{steps} steps, {strategy.num_replicas_in_sync} replica(s)")


def exact_metrics(run: results.Run, *, stage: int | None = None) -> bool:
    """Tell whether a stage's metrics are what NumPy finds in its predictions, every image counted once."""
    stated, predictions = run.metrics(stage=stage), run.predictions(stage=stage)
    labels, probabilities = predictions["label"].to_numpy(), probabilities_of(predictions)
    once = np.array_equal(predictions["index"].to_numpy(), np.arange(stated["examples"]))
    ranked = np.argsort(-probabilities, axis=1, kind="stable")
    correct = ranked[:, 0] == labels
    among_five = (ranked[:, :TOP] == labels[:, np.newaxis]).any(axis=1)
    same = once and stated["accuracy"] == correct.mean() and stated["top5_accuracy"] == among_five.mean()
    of_classes = [int(correct[labels == label].sum()) for label in range(len(run.class_names))]
    same &= [entry["correct"] for entry in stated["per_class"].values()] == of_classes
    return _claim("exact metrics", bool(same), f"{stated['examples']:,} images, each once")


def replicas_in_sync(model: keras.Model) -> bool:
    """Tell whether all replicas of a model hold the same bits."""
    copies = [[_bits(copy) for copy in getattr(v.value, "values", (v.value,))] for v in model.weights]
    same, replicas = all(len(set(bits)) == 1 for bits in copies), max(len(bits) for bits in copies)
    return _claim("replicas in sync", same, f"{replicas} replica(s), {len(copies)} variables")


def same_gradient(
    model: keras.Model, images: np.ndarray, labels: np.ndarray, *, repeats: int = 10, busy: bool = True
) -> bool:
    """Tell whether this machine finds the same gradient of one batch every time.

    Args:
        model: compiled; it is not changed.
        images: `uint8[batch, height, width, channels]`; labels: `int32[batch]`.
        repeats: how often the gradient is computed.
        busy: keep TensorFlow's threads busy with other work meanwhile.
    """
    step, busy = steps.Step(model), validate.boolean("busy", busy)
    batch = (tf.constant(images), tf.constant(labels))
    with _busy() if busy else contextlib.nullcontext():
        found = {_bits(step.gradient(batch)) for _ in range(repeats)}
    how = f"{repeats} times on {'a busy' if busy else 'an idle'} machine, {len(found)} result(s)"
    return _claim("same gradient", len(found) == 1, how)


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    """Keep TensorFlow's threads busy, so that operations finish in another order each time."""
    idle, work = threading.Event(), tf.random.stateless_uniform([384, 384], [1, 2])

    def multiply():
        while not idle.is_set():
            tf.linalg.matmul(work, work).numpy()

    with futures.ThreadPoolExecutor(1) as pool:
        pool.submit(multiply)
        try:
            yield
        finally:
            idle.set()


def _bits(value) -> bytes:
    return np.asarray(value).tobytes()


def _claim(name: str, holds: bool, how: str) -> bool:
    print(f"{name}: {holds} ({how})")
    return holds
