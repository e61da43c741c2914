"""Inference takes chunks one by one or several at a time, and returns the same bits."""

import keras
import numpy as np
import pytest

from tfpar import devices, models
from tfpar.train import inference


def inferred(images, *, side=12, replicas=1):
    """Return what inference over that many images returns, as bytes, and how often it was called into TensorFlow."""
    with devices.strategy(simulate=replicas).scope():
        keras.utils.set_random_seed(0)
        model = models.build("small_cnn", (side, side, 1), 5)
        model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    random = np.random.default_rng(0)
    split = random.integers(0, 256, (images, side, side, 1), np.uint8), random.integers(0, 5, images, np.int32)
    calls = []
    logits, losses = inference.Inference(model)(split, between=lambda: calls.append(1))
    assert logits.shape == (images, 5) and losses.shape == (images,)
    return logits.tobytes() + losses.tobytes(), len(calls)


@pytest.mark.parametrize(("images", "calls"), [(1, 1), (64, 1), (65, 1), (129, 2), (200, 2)])
def test_a_cpu_that_is_the_only_replica_takes_two_small_chunks_at_a_time(monkeypatch, images, calls):
    two, number = inferred(images)
    assert number == calls
    monkeypatch.setattr(inference, "SMALL", 0)
    one, number = inferred(images)
    assert number == -(-images // 64)
    assert two == one


def test_replicas_take_one_chunk_each():
    one, two = inferred(200), inferred(200, replicas=2)
    assert two[0] == one[0] and two[1] == one[1] == 2
