"""Fused batch normalization: what Keras computes, to the last digits of float32, and the same bits on every number of replicas."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import LOSS, tiny
from same import same_files

from tfpar import devices, errors, prepare, steps, train
from tfpar.steps import normalization, tensorflow_repairs
from tfpar.train import identity, inference

layers = keras.layers


def batch_of(shape, rows=8):
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (rows, *shape), np.uint8), draw.integers(0, 10, rows, np.int32)


def compiled(*middle, shape=(8, 8, 3), jit_compile=False):
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input(shape, dtype="uint8")
    for layer in (layers.Rescaling(1 / 255), *middle, layers.Flatten(), layers.Dense(10, dtype="float32")):
        x = layer(x)
    model = keras.Model(inputs, x)
    model.compile("sgd", LOSS, jit_compile=jit_compile)
    return model


def operations(model, how, shape=(8, 8, 3)):
    step = steps.Step(model, batch_norm=how)
    spec = (tf.TensorSpec([4, *shape], tf.uint8), tf.TensorSpec([4], tf.int32))
    return [node.op for node in tensorflow_repairs.nodes_of(step.trace(spec).function)]


def both(model, batch):
    """Return, computed by Keras and fused: the losses, and each gradient and average."""
    for how in ("keras", "fused"):
        step = steps.Step(model, batch_norm=how)
        step.gradient(batch)
        shard = step.shard
        vector, rows = shard(shard.values(), [tf.constant(m) for m in batch], tf.constant(0, tf.int64), tf.constant(0))
        gradients, state = shard.vector.unpack(vector)
        yield rows[:, 0].numpy(), [np.asarray(tf.cast(value, tf.float32)) for value in (*gradients, *state)]


def agree(of_keras, of_fused, loss=1e-6, each=1e-5):
    (losses, values), (fused_losses, fused) = of_keras, of_fused
    assert np.mean(fused_losses) == pytest.approx(np.mean(losses), rel=loss)
    for one, other in zip(values, fused, strict=True):
        assert np.abs(other - one).max() <= each * np.abs(one).max()


PLAIN = [
    layers.BatchNormalization, lambda: layers.BatchNormalization(scale=False), lambda: layers.BatchNormalization(center=False),
    lambda: layers.BatchNormalization(axis=3, momentum=0.7, epsilon=0.01),
    lambda: layers.BatchNormalization(gamma_initializer="random_normal", beta_regularizer="l2", moving_mean_initializer="ones"),
]  # fmt: skip


@pytest.mark.parametrize("layer", PLAIN)
@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.by_hand)], ids=["plain", "xla"])
def test_a_fused_layer_gives_the_numbers_of_keras(layer, jit_compile):
    model = compiled(layers.Conv2D(6, 3, use_bias=False), layer(), layers.ReLU(), jit_compile=jit_compile)
    agree(*both(model, batch_of((8, 8, 3))))


def test_a_shard_of_one_value_has_no_variance():
    agree(*both(compiled(layers.BatchNormalization(), shape=(1, 1, 3)), batch_of((1, 1, 3), rows=1)))


@pytest.mark.slow
@pytest.mark.arithmetic
def test_a_deep_network_has_the_loss_and_the_gradient_of_keras():
    """Without ReLU: where rounding turns the sign of one activation, a gradient jumps, between float32 and float64 too."""
    blocks = [
        [layers.Conv2D(8, 3, padding="same", use_bias=False), layers.BatchNormalization(), layers.Activation("tanh")]
        for _ in range(8)
    ]
    model = compiled(*(layer for block in blocks for layer in block), shape=(16, 16, 3))
    found = list(both(model, batch_of((16, 16, 3), rows=32)))
    agree(*found, each=1e-4)
    one, other = (np.concatenate([np.ravel(v) for v in values]) for _, values in found)
    assert np.linalg.norm(other - one) < 1e-5 * np.linalg.norm(one)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_activations_of_16_bits_stay_so(policy):
    keras.config.set_dtype_policy(policy)
    found = []
    model = compiled(
        layers.Conv2D(6, 3, use_bias=False),
        layers.BatchNormalization(),
        layers.Lambda(lambda x: found.append(x.dtype) or x),
    )
    found.clear()
    assert "FusedBatchNormV3" in operations(model, "fused")
    assert set(found) == {tf.as_dtype(policy.removeprefix("mixed_"))}
    agree(*both(model, batch_of((8, 8, 3))), loss=0.01, each=0.1)


class Masked(layers.BatchNormalization):
    def call(self, inputs, training=None):
        return super().call(inputs, training=training, mask=tf.ones(tf.shape(inputs)[:-1], tf.bool))


class InInferenceMode(layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=False, mask=mask)


class OwnMoments(layers.BatchNormalization):
    def _moments(self, inputs, mask):
        mean, variance = super()._moments(inputs, mask)
        return mean, 2 * variance


RENORM = pytest.mark.skipif(
    "renorm" not in inspect.signature(layers.BatchNormalization).parameters, reason="Keras before 3.13 has no renorm"
)
KEPT = [
    (Masked,), (InInferenceMode,), (OwnMoments,), (lambda: layers.BatchNormalization(axis=1),),
    pytest.param((lambda: layers.BatchNormalization(renorm=True),), marks=RENORM),
    (lambda: layers.BatchNormalization(epsilon=1e-6),),
    (layers.Flatten, layers.BatchNormalization), (lambda: layers.BatchNormalization(trainable=False),),
]  # fmt: skip


@pytest.mark.parametrize("kept", KEPT)
def test_what_the_fused_operation_does_not_cover_stays_with_keras(kept):
    model = compiled(layers.Conv2D(6, 3, use_bias=False), *(layer() for layer in kept))
    assert "FusedBatchNormV3" not in operations(model, "fused")
    agree(*both(model, batch_of((8, 8, 3))), loss=0, each=0)


def test_it_can_be_turned_off_and_leaves_keras_alone():
    model = tiny()
    assert "FusedBatchNormV3" in operations(model, "fused", (8, 8, 1))
    assert "FusedBatchNormV3" not in operations(model, "keras", (8, 8, 1))
    assert layers.BatchNormalization.call is normalization.COMPOSED
    with pytest.raises(errors.SettingsError, match=r"batch_norm='slow': give fused or keras"):
        steps.Step(model, batch_norm="slow")


def test_inference_is_fused_and_gives_the_numbers_of_keras():
    model, split = tiny(), batch_of((8, 8, 1), rows=70)
    fused, keras_own = (inference.Inference(model, batch_norm=how)(split)[0] for how in ("fused", "keras"))
    np.testing.assert_allclose(fused, keras_own, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(keras_own, model.predict(split[0], verbose=0), rtol=1e-5, atol=1e-6)


def trained(data, directory, *, replicas=1, **settings):
    model = tiny(devices.strategy(simulate=replicas), classes=data.num_classes)
    stages = [train.Stage(1, 0.1)] * settings.pop("count", 1)
    return train.run(model, data, directory, stages=stages, global_batch_size=16, shards=4, verbose=0, **settings)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    images, labels = batch_of((8, 8, 1), rows=120)
    return prepare.dataset((images, labels), tmp_path_factory.mktemp("data") / "data")


@pytest.mark.slow
@pytest.mark.by_hand
@pytest.mark.parametrize("how", ["fused", "keras"])
def test_a_run_has_the_same_bits_on_every_number_of_replicas(data, tmp_path, how):
    runs = [trained(data, tmp_path / str(n), replicas=n, batch_norm=how) for n in (1, 2, 4)]
    assert runs[0].facts["settings"]["batch_norm"] == how
    assert same_files(runs[0], runs[1])
    assert same_files(runs[0], runs[2])


@pytest.mark.slow
def test_a_run_goes_on_as_it_began(data, tmp_path):
    trained(data, tmp_path / "run", batch_norm="keras")
    continued = trained(data, tmp_path / "run", count=2)
    assert continued.facts["settings"]["batch_norm"] == "keras"
    assert same_files(continued, trained(data, tmp_path / "whole", batch_norm="keras", count=2))
    with pytest.raises(errors.SettingsError, match='batch_norm is "keras" in the run, "fused" now'):
        trained(data, tmp_path / "run", batch_norm="fused", count=3)


def test_a_run_that_does_not_say_was_computed_by_keras():
    now = {"stages": [], "batch_norm": "fused", "model": "tiny"}
    with pytest.raises(errors.SettingsError, match='batch_norm is "keras" in the run, "fused" now'):
        identity.agree({"stages": [], "model": "tiny"}, now, tiny())
