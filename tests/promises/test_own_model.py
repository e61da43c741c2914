"""Models that did not come from tfpar: what it takes to train them, and the one list in the message where they do not fit."""

import keras
import numpy as np
import pytest
from networks import LOSS
from same import same_files

from tfpar import check, devices, errors, models, prepare, steps, train
from tfpar.steps import accepted

layers = keras.layers


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    images = np.random.default_rng(0).integers(0, 256, (90, 8, 8, 1), np.uint8)
    return prepare.dataset((images, np.arange(90) % 3), tmp_path_factory.mktemp("data") / "data")


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """A model in the style of PyTorch: layers in `__init__`, their order in `call`."""

    def __init__(self, classes=3, **options):
        super().__init__(**options)
        self.classes = classes
        self.convolution, self.norm = layers.Conv2D(4, 3, use_bias=False), layers.BatchNormalization(momentum=0.9)
        self.flat, self.dropout, self.logits = layers.Flatten(), layers.Dropout(0.2), layers.Dense(classes)

    def call(self, images, training=False):
        x = self.norm(self.convolution(keras.ops.cast(images, "float32") / 255), training=training)
        return self.logits(self.dropout(self.flat(x), training=training))

    def get_config(self):
        return {"name": self.name, "classes": self.classes}


def subclassed(_place):
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    return keras.Model(inputs, Subclassed(name="yours")(inputs))


def preprocessing(_place):
    means = layers.Normalization(mean=[100.0], variance=[5000.0])
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    x = layers.RandomFlip("horizontal")(layers.Resizing(12, 12)(means(inputs)))
    x = layers.CenterCrop(10, 10)(layers.RandomRotation(0.1)(x))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layers.Conv2D(4, 3)(x))))


def theirs(place):
    """A classifier of plain Keras, float in and probabilities out, with names of its own; its layers but the last, in a file."""
    inputs = keras.Input((8, 8, 1), name="picture")
    x = layers.Flatten(name="flat")(layers.SeparableConv2D(6, 3, activation="gelu", name="stem_a")(inputs))
    model = keras.Model(inputs, layers.Dense(5, activation="softmax", name="answer")(x), name="theirs")
    model.save(place / "theirs.keras")
    loaded = keras.saving.load_model(place / "theirs.keras", compile=False)
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    features = keras.Model(loaded.input, loaded.get_layer("flat").output)(layers.Rescaling(1 / 255)(inputs))
    return keras.Model(inputs, layers.Dense(3, name="logits")(features))


@pytest.mark.slow
@pytest.mark.parametrize("build", [subclassed, preprocessing, theirs])
def test_it_trains_with_the_bits_of_one_replica_and_opens_again(build, data, tmp_path):
    runs = []
    for replicas in (1, 2):
        keras.utils.set_random_seed(0)
        with devices.strategy(simulate=replicas).scope():
            model = build(tmp_path)
            model.compile(keras.optimizers.SGD(momentum=0.9), LOSS, metrics=["accuracy"])
        before = [v.numpy() for v in model.trainable_variables]
        stages = [train.Stage(1, 0.5, trainable="head"), train.Stage(1, 0.5, trainable="all")]
        where = tmp_path / f"run{replicas}"
        runs.append(train.run(model, data, where, stages=stages, global_batch_size=20, shards=2, verbose=0))
        assert all(np.any(a != b) for a, b in zip(before, model.trainable_variables, strict=True))
    assert same_files(*runs)
    images = data.validation.images
    assert np.array_equal(runs[1].model().predict(images, verbose=0), model.predict(images, verbose=0))


def test_a_file_of_plain_keras_with_the_right_ends_is_taken_as_it_is(tmp_path):
    """A model saved by plain Keras with its optimizer, loss and metric: load it under the strategy, and nothing else."""
    inputs = keras.Input((8, 8, 1), dtype="uint8", name="a")
    model = keras.Model(inputs, layers.Dense(3, name="z")(layers.Flatten()(layers.Rescaling(1 / 255)(inputs))))
    model.compile("sgd", LOSS, metrics=["accuracy"])
    model.save(tmp_path / "m.keras")
    with devices.strategy(simulate=2).scope():
        loaded = keras.saving.load_model(tmp_path / "m.keras")
    steps.install(loaded, shards=2)
    assert check.same_weights(model, loaded)
    with pytest.raises(errors.SettingsError, match="no layer of it fits into small_cnn; take the same network"):
        models.build("small_cnn", (8, 8, 1), 3, weights=tmp_path / "m.keras")


def two_inputs():
    both = [keras.Input((8, 8, 1), dtype="uint8"), keras.Input((4,))]
    return keras.Model(both, layers.Dense(3)(layers.Concatenate()([layers.Flatten()(both[0]), both[1]])))


def two_outputs():
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    x = layers.Flatten()(inputs)
    return keras.Model(inputs, [layers.Dense(3)(x), layers.Dense(2)(x)])


@pytest.mark.parametrize(
    ("build", "found"),
    [
        (two_inputs, r"takes \[\(None, 8, 8, 1\), \(None, 4\)\] and gives \(None, 3\)"),
        (two_outputs, r"gives \[\(None, 3\), \(None, 2\)\]"),
        (Subclassed, "has no known input"),
    ],
)
def test_other_ends_are_refused_with_the_list_of_what_is_required(build, found):
    model = build()
    model.compile("sgd", LOSS)
    with pytest.raises(errors.SettingsError, match=found) as refused:
        steps.install(model)
    assert str(refused.value).endswith(accepted.REQUIRED)
    assert "call a subclassed model as a layer" in accepted.REQUIRED and "call it as a layer" in accepted.__doc__
