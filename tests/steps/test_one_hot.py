"""One-hot labels in the batches: the same step as with integers, and as Keras' own where they are soft."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import tiny

from tfpar import check, devices, engine, errors, steps
from tfpar.prepare import arrays

DRAW = np.random.default_rng(0)
IMAGES, LABELS = DRAW.integers(0, 256, (24, 8, 8, 1), np.uint8), DRAW.integers(0, 10, 24).astype(np.int32)
ONE_HOT = np.eye(10, dtype=np.float32)[LABELS]


def smoothed():
    return keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)


def plain():
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Rescaling(1 / 255), keras.layers.Dense(10)]
    return keras.Sequential(layers)


def trained(labels, simulate=None, own=True, loss=None, metrics=("accuracy",), network=tiny, **options):
    keras.utils.set_random_seed(0)
    strategy = devices.strategy(simulate=simulate)
    with strategy.scope():
        model = network()
        model.compile(keras.optimizers.SGD(0.1), loss or smoothed(), metrics=list(metrics))
    batches = engine.train_batches((IMAGES, labels), strategy, global_batch_size=12, **options)
    if own:
        steps.install(model, shards=2)
    history = model.fit(batches, steps_per_epoch=2, verbose=0).history
    return model, history


def test_they_give_the_bits_of_integers_on_any_number_of_replicas():
    model, history = trained(LABELS)
    for simulate in (None, 2):
        other, same = trained(ONE_HOT, simulate)
        assert check.same_weights(model, other) and history == same


def test_soft_labels_and_class_weights_give_the_numbers_of_keras():
    soft = 0.8 * ONE_HOT + 0.02
    mine, keras_own = (trained(soft, own=own, network=plain, class_weights={3: 2.0, 4: 0.5}) for own in (True, False))
    for one, other in zip(mine[0].get_weights(), keras_own[0].get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert mine[1]["loss"] == pytest.approx(keras_own[1]["loss"], rel=1e-6)
    assert mine[1]["accuracy"] == keras_own[1]["accuracy"]


def test_weights_of_images_multiply_those_of_classes():
    weights = np.linspace(0, 2, 24, dtype=np.float32)
    as_split = arrays.Split(IMAGES, LABELS, [""] * 24, weights)
    for split in ((IMAGES, LABELS, weights), as_split):
        of = {"global_batch_size": 24, "class_weights": list(range(10))}
        images, labels, found = next(iter(engine.train_batches(split, devices.strategy(), **of)))
        position = [next(i for i in range(24) if np.array_equal(IMAGES[i], image)) for image in images.numpy()]
        assert found.numpy().tolist() == [np.float32(weights[i] * LABELS[i]) for i in position]
        assert sorted(position) == list(range(24)) and np.array_equal(LABELS[position], labels)
    with pytest.raises(errors.SettingsError, match="for each"):
        engine.train_batches((IMAGES, LABELS, weights[1:]), devices.strategy(), global_batch_size=24)


@pytest.mark.parametrize(
    ("labels", "loss", "metrics", "text"),
    [
        (ONE_HOT, keras.losses.SparseCategoricalCrossentropy(from_logits=True), ["accuracy"], "takes integers"),
        (ONE_HOT[:, :4], None, ["accuracy"], r"takes \[batch, 10\]"),
        (ONE_HOT, None, [keras.metrics.TopKCategoricalAccuracy(3)], "metrics besides accuracy need integer labels"),
    ],
)
def test_what_does_not_go_together_is_refused(labels, loss, metrics, text):
    with pytest.raises(errors.SettingsError, match=text):
        trained(labels, loss=loss, metrics=metrics)


def test_inference_takes_integers():
    with pytest.raises(errors.SettingsError, match="whole numbers"):
        engine.inference_batches((IMAGES, ONE_HOT), devices.strategy())
    assert engine.steps_per_epoch((IMAGES, ONE_HOT), global_batch_size=5) == 5
    assert isinstance(
        next(iter(engine.train_batches((IMAGES, ONE_HOT), devices.strategy(), global_batch_size=4)))[1], tf.Tensor
    )
