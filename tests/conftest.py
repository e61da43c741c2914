"""What the tests share. Eight simulated devices are set up before anything starts TensorFlow."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # the oracle of these tests is the CPU

from pathlib import Path

import keras
import pytest

from tfpar import devices, models, prepare

devices.strategy(simulate=8)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The prepared digits."""
    return prepare.dataset("digits", tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture
def shared():
    """The folder of real data beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("needs the data folder beside the checkout, which is not there")
    return SHARED


@pytest.fixture(autouse=True)
def _default_policy():
    yield
    keras.config.set_dtype_policy("float32")


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def tiny(strategy=None, *, shape=(8, 8, 1), classes=10, optimizer=None, metrics=("accuracy",), seed=0):
    """Return a compiled model with everything the law has to stand: dropout, BatchNorm, a regularizer, a constraint."""
    keras.utils.set_random_seed(seed)
    with (strategy or devices.strategy(simulate=1)).scope():
        inputs = keras.Input(shape, dtype="uint8")
        x = keras.layers.Rescaling(1 / 255)(inputs)
        x = keras.layers.Conv2D(6, 3, strides=2, use_bias=False, kernel_regularizer=keras.regularizers.L2(1e-3))(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))
        x = keras.layers.Dropout(0.3)(keras.layers.Flatten()(x))
        x = keras.layers.Dense(12, activation="relu", kernel_constraint=keras.constraints.MaxNorm(2.0))(x)
        model = keras.Model(
            inputs, keras.layers.Dense(classes, dtype="float32")(keras.layers.Dropout(0.2)(x)), name="tiny"
        )
        optimizer = (
            optimizer() if optimizer else keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        )
        if keras.config.dtype_policy().name == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        model.compile(optimizer, LOSS, metrics=list(metrics))
    return model


def small_cnn(strategy, data):
    """Return the default network, compiled."""
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = models.small_cnn(data.image_shape, data.num_classes)
        model.compile(keras.optimizers.SGD(momentum=0.9), LOSS, metrics=["accuracy"])
    return model
