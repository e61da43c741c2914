"""The same bits every time: sums in a fixed order. A repair that is no longer needed fails here."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import LOSS, tiny

from tfpar import check, errors, models, steps
from tfpar.steps import tensorflow_repairs

FAMILIES = [
    "resnet20", "MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "EfficientNetV2B0", "ResNet50", "ResNet50V2",
    "DenseNet121", "VGG16", "ConvNeXtTiny", "NASNetMobile", "Xception", "InceptionV3", "InceptionResNetV2",
]  # fmt: skip
ROUNDED = [1e8, -1e8, 1.0]  # (a + b) + c is 1, (c + a) + b is 0


def sums_of_three():
    """Return two functions of the same sum: in the first no buffer may be reused, in the second the last one may."""
    return (tf.function(lambda a, b, c: tf.add_n([a, b, c])), tf.function(lambda a, b, c: tf.add_n([a, b, c * c])))


def test_add_n_has_no_order_of_its_own_and_gets_one():
    values = [tf.fill([4], value) for value in ROUNDED]
    plain = [float(function(*values)[0]) for function in sums_of_three()]
    assert plain == [1, 0], "AddN adds in a fixed order: take the repair away"
    with tensorflow_repairs.fixed_order():
        assert [float(function(*values)[0]) for function in sums_of_three()] == [1, 1]
    assert tensorflow_repairs.gen_math_ops.add_n is tensorflow_repairs._add_n


class Branching(keras.layers.Layer):
    """A tensor that is used three times in a function, in a branch and in a loop."""

    def __init__(self):
        super().__init__()
        self.scale = self.add_weight(shape=(10,), initializer="ones")
        self.thrice = tf.function(lambda x, scale: x * scale + tf.tanh(x) + tf.sin(x))

    def call(self, x):
        x = self.thrice(x, tf.convert_to_tensor(self.scale.value))
        x = tf.cond(tf.reduce_sum(x) > 0, lambda: x * x + tf.tanh(x) + tf.sin(x), lambda: x)
        _, x = tf.while_loop(
            lambda i, _: i < 3, lambda i, x: (i + 1, 0.1 * x * self.scale.value + tf.tanh(x) + tf.sin(x)), (0, x)
        )
        return tf.add_n([x, tf.tanh(x), tf.sin(x)])


def branching():
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    x = keras.layers.Dense(10)(keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs)))
    model = keras.Model(inputs, keras.layers.Dense(10)(Branching()(x)))
    model.compile("sgd", LOSS)
    return model


def batch_of(shape, rows=8):
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (rows, *shape), dtype=np.uint8), draw.integers(0, 10, rows).astype(np.int32)


@pytest.mark.parametrize("build", [tiny, branching])
def test_a_shard_adds_in_a_fixed_order(build, monkeypatch):
    step = steps.Step(build(), batch_norm="keras")  # whose layers are used three times
    step.gradient(batch_of((8, 8, 1)))
    assert tensorflow_repairs.unordered_sums(step.shard.function) == []
    monkeypatch.setattr(tensorflow_repairs, "fixed_order", contextlib.nullcontext)
    with pytest.raises(errors.SettingsError, match="a sum in no fixed order"):
        steps.Step(build(), batch_norm="keras").gradient(batch_of((8, 8, 1)))


QUICK = ("resnet20", "MobileNetV2", "ConvNeXtTiny")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.by_hand) for name in FAMILIES]
)
def test_a_shard_of_each_family_adds_in_a_fixed_order(name):
    side = 75 if "Inception" in name or name == "Xception" else 32
    model = models.build(name, (side, side, 3), 10)
    model.compile("sgd", LOSS)
    step = steps.Step(model)
    spec = (tf.TensorSpec([2, side, side, 3], tf.uint8), tf.TensorSpec([2], tf.int32))
    assert tensorflow_repairs.unordered_sums(step.trace(spec).function) == []


def test_a_function_that_was_traced_before_is_refused():
    model = branching()
    images, labels = batch_of((8, 8, 1))
    model.train_on_batch(images, labels)  # Keras' own: its gradients add in no fixed order, and TensorFlow keeps them
    with pytest.raises(errors.SettingsError, match=r"tf\.function that was traced before"):
        steps.Step(model).gradient((images, labels))


def compiled(name, side, jit_compile=False):
    keras.utils.set_random_seed(0)
    model = models.build(name, (side, side, 3), 10)
    model.compile("sgd", LOSS, jit_compile=jit_compile)
    return model


@pytest.mark.slow
@pytest.mark.arithmetic
@pytest.mark.parametrize("repeats", [10, pytest.param(20, marks=pytest.mark.by_hand)])
def test_a_gradient_at_96_px_is_the_same_each_time_on_a_busy_machine(repeats):
    assert check.same_gradient(compiled("resnet20", 96), *batch_of((96, 96, 3), 16), repeats=repeats)


@pytest.mark.slow
@pytest.mark.arithmetic
@pytest.mark.parametrize("repeats", [5, pytest.param(40, marks=pytest.mark.by_hand)])
def test_a_step_of_four_shards_is_the_same_each_time_on_a_busy_machine(repeats):
    """Two of the four shards are computed at the same time, and share TensorFlow's threads."""
    model = compiled("resnet20", 96)
    step, batches = steps.Step(model, shards=4), iter(tf.data.Dataset.from_tensors(batch_of((96, 96, 3), 32)).repeat())
    assert step.shards_at_once == 2
    start, found = model.get_weights(), set()
    with check._busy():
        for _ in range(repeats):
            model.set_weights(start)
            step(batches, 1)
            found.add(b"".join(weight.tobytes() for weight in model.get_weights()))
    assert len(found) == 1


@pytest.mark.by_hand
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("jit_compile", [False, True], ids=["plain", "xla"])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("side", [128, 224])
@pytest.mark.parametrize("name", ["resnet20", "resnet56", *FAMILIES[1:]])
def test_gradients_at_real_sizes_are_the_same_idle_and_busy(name, side, policy, jit_compile):
    keras.config.set_dtype_policy(policy)
    model, batch = compiled(name, side, jit_compile), batch_of((side, side, 3))
    for busy in (False, True):
        assert check.same_gradient(model, *batch, repeats=20, busy=busy)
