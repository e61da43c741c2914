"""Every hook and argument of Keras gives the numbers of plain Keras, or raises an error before the first step.

What does not fit into a row of `keras_rows`: runs, the learning rate, sources, signals.
"""

import contextlib
import csv
import functools
import os
import random
import re
import shlex
import shutil
import signal
import unicodedata
from concurrent import futures
from pathlib import Path
from unittest import mock

import keras
import keras_rows
import numpy as np
import pytest
import tensorflow as tf
from keras_rows import Largest, Penalized, compiled, network, without_decay
from networks import LOSS
from PIL import Image

from tfpar import arguments, cli, devices, engine, errors, files, models, prepare, results, signals, steps, train
from tfpar.prepare import folders
from tfpar.results.reading import HISTORY
from tfpar.settings import Settings
from tfpar.steps import accepted, objective, randomness
from tfpar.train import callbacks as callbacks_of
from tfpar.train import identity

layers = keras.layers


def fitted(build, data, *, ours, count=4, shards=1, **options):
    """Return weights and logs of a few steps with plain Keras or with tfpar's step."""
    keras.utils.set_random_seed(1)
    model = build()
    if ours:
        steps.install(model, shards=shards)
    batches = engine.train_batches(
        (data.train.images, data.train.labels), devices.strategy(simulate=1), global_batch_size=64
    )
    history = model.fit(batches, steps_per_epoch=count, verbose=0, **options).history
    return [np.asarray(w) for w in model.get_weights()], {name: values[-1] for name, values in history.items()}


class Unseeded(layers.Layer):
    def call(self, x, training=None):
        noise = keras.random.normal(keras.ops.shape(x))
        return x + noise if training else x


def test_random_numbers_without_a_seed_generator_are_new_in_every_step_and_the_same_on_two_replicas(digits):
    found = []
    for replicas in (1, 2):
        strategy = devices.strategy(simulate=replicas)
        keras.utils.set_random_seed(1)
        with strategy.scope():
            model = compiled(network(Unseeded(), layers.Dense(4)))
        step = steps.Step(model, shards=2)
        batches = engine.train_batches(digits.train, strategy, global_batch_size=32)
        step(iter(batches), 3)
        found.append([np.asarray(w).tobytes() for w in model.get_weights()])
    assert found[0] == found[1]
    image = digits.train.images[:2], digits.train.labels[:2]
    first = step.gradient(image).numpy()
    step.counts.step += 1
    assert not np.array_equal(first, step.gradient(image).numpy())


def test_the_table_names_what_is_refused():
    for word in (
        "train_step",
        "compute_loss",
        "run_eagerly",
        "steps_per_execution",
        "weighted_metrics",
        "subclassed",
        "softmax",
    ):
        assert word in accepted.__doc__, word


def test_models_and_batches_of_different_strategies_are_refused(digits):
    two = devices.strategy(simulate=2)
    outside = compiled(network())
    steps.install(outside, shards=2)
    with pytest.raises(errors.SettingsError, match=r"batches are for 2 replicas, and the model was created for 1"):
        outside.fit(engine.train_batches(digits.train, two, global_batch_size=32), steps_per_epoch=1, verbose=0)
    layer = layers.Dense(10)
    layer.build((None, 64))
    with two.scope():
        inputs = keras.Input((8, 8, 1), dtype="uint8")
        mixed = keras.Model(inputs, layer(layers.Flatten()(layers.Rescaling(1 / 255)(inputs))))
        compiled(mixed)
    with pytest.raises(errors.SettingsError, match=r"created outside of strategy\.scope"):
        steps.install(mixed, shards=2)


def test_arguments_of_fit_that_would_be_lost_are_refused(digits):
    model, one = compiled(network()), devices.strategy(simulate=1)
    steps.install(model, shards=1)
    batches = engine.train_batches(digits.train, one, global_batch_size=64)
    with pytest.raises(errors.SettingsError, match="class_weights="):
        model.fit(batches, steps_per_epoch=2, class_weight={0: 2.0})
    with pytest.raises(errors.SettingsError, match="give steps_per_epoch"):
        model.fit(batches)
    with pytest.raises(errors.SettingsError, match="give validation_steps"):
        model.fit(batches, steps_per_epoch=2, validation_data=batches)


# ---- the learning rate


class Rate(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.model.optimizer.learning_rate.assign(0.01 / (1 + batch))


def test_fit_obeys_a_callback_from_the_next_step_and_refuses_one_within_a_call(digits):
    (weights, _), (expected, _) = (
        fitted(lambda: compiled(network()), digits, ours=ours, callbacks=[Rate()]) for ours in (True, False)
    )
    np.testing.assert_allclose(weights[0], expected[0], rtol=1e-4, atol=1e-6)
    model = compiled(network())
    steps.install(model, shards=1, steps_per_call=2, steps_per_epoch=4)
    with pytest.raises(errors.SettingsError, match="within a call"):
        model.fit(
            engine.train_batches(digits.train, devices.strategy(simulate=1), global_batch_size=64),
            steps_per_epoch=4,
            verbose=0,
            callbacks=[Rate()],
        )


class StopBehind(keras.callbacks.Callback):
    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = batch == self.batch


def test_a_callback_that_stops_fit_within_a_call_is_refused_and_at_its_end_obeyed(digits):
    batches = engine.train_batches(digits.train, devices.strategy(simulate=1), global_batch_size=64)
    model = compiled(network())
    step = steps.install(model, shards=1, steps_per_call=4, steps_per_epoch=12)
    model.fit(batches, steps_per_epoch=12, verbose=0, callbacks=[StopBehind(7)])
    assert step.counts.step == 8
    with pytest.raises(errors.SettingsError, match=r"stopped 2 steps into a call.*; give steps_per_call=1"):
        model.fit(batches, steps_per_epoch=12, verbose=0, callbacks=[StopBehind(5)])
    model.fit(batches, steps_per_epoch=12, verbose=0, epochs=1, initial_epoch=1)  # takes no step


NET = """input: "data" input_shape { dim: 1 dim: 1 dim: 8 dim: 8 }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 2 kernel_size: 3 } }"""


def test_images_with_channels_first_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(keras.config, "image_data_format", lambda: "channels_first")
    (tmp_path / "net").write_text(NET)
    for attempt in (lambda: models.small_cnn((8, 8, 1), 10), lambda: models.caffe.load(tmp_path / "net")):
        with pytest.raises(errors.SettingsError, match="set_image_data_format"):
            attempt()


def test_a_rate_in_16_bits_is_not_taken_for_one_that_a_callback_assigned(digits, tmp_path):
    keras.config.set_floatx("float16")
    try:
        run = trained(digits, tmp_path / "run", stages=[(1, 0.1)])
    finally:
        keras.config.set_floatx("float32")
    assert run.finished


def test_a_run_whose_name_is_no_text_is_refused(digits, tmp_path):
    with pytest.raises(errors.SettingsError, match="rename it"):
        trained(digits, tmp_path / "run_\udcff")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "callback",
    [
        Rate(),
        keras.callbacks.LearningRateScheduler(lambda epoch: 0.1),
        keras.callbacks.ReduceLROnPlateau(),
        keras.callbacks.BackupAndRestore("b"),
    ],
)
def test_a_run_refuses_callbacks_that_do_what_it_does_itself(digits, tmp_path, callback):
    with pytest.raises(errors.SettingsError):
        trained(digits, tmp_path / "run", callbacks=[callback], steps_per_call=1)


# ---- runs


def trained(data, directory, *, model=None, stages=((2, 0.1), (1, 0.01)), **options):
    keras.utils.set_random_seed(2)
    model = model or compiled(network())
    options = {"global_batch_size": 256, "verbose": 0} | options
    return train.run(model, data, directory, stages=[train.Stage(*stage) for stage in stages], **options)


class Watching(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_begin(self, logs=None):
        self.seen.append(("begin", self.params["stage"], self.params["resumed"]))

    def on_train_end(self, logs=None):
        self.seen.append(("end", self.params["stage"]))
        self.of_stage = self.model.history.history["val_loss"]

    def on_test_begin(self, logs=None):
        self.tested = None

    def on_test_end(self, logs=None):
        self.tested = dict(logs)

    def on_epoch_end(self, epoch, logs=None):
        self.logs = dict(logs)
        assert {f"val_{name}" for name in self.tested} == {name for name in logs if name.startswith("val_")}
        assert self.tested["loss"] == logs["val_loss"]


def squared(labels, logits):
    return keras.ops.mean(keras.ops.square(logits), axis=-1)


def test_custom_metrics_are_in_the_history_and_a_stage_is_one_fit(digits, tmp_path):
    watching, logger = Watching(), keras.callbacks.CSVLogger(str(tmp_path / "log.csv"))
    metrics = ["accuracy", squared, keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")]
    run = trained(digits, tmp_path / "run", model=compiled(network(), metrics=metrics), callbacks=[watching, logger])
    assert watching.seen == [("begin", 1, False), ("end", 1), ("begin", 2, False), ("end", 2)]
    table = run.history
    assert watching.of_stage == table["val_loss"].to_pylist()[-1:]
    assert {"squared", "val_squared", "top2", "val_top2"} <= set(table.column_names)
    logits = run.model(compile=False).predict(digits.validation.images, verbose=0)
    assert table["val_squared"].to_pylist()[-1] == pytest.approx(float(np.square(logits).mean()), rel=1e-4)
    top = (np.argsort(-logits, axis=1)[:, :2] == digits.validation.labels[:, np.newaxis]).any(axis=1).mean()
    assert table["val_top2"].to_pylist()[-1] == watching.logs["val_top2"] == pytest.approx(top)
    with open(tmp_path / "log.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2"]


def test_the_same_cell_twice_continues_and_a_finished_run_gives_its_weights(digits, tmp_path):
    def cell():
        model = keras.Sequential(
            [keras.Input((8, 8, 1), dtype="uint8"), layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(10)]
        )
        return compiled(model), trained(digits, tmp_path / "run", model=compiled(model))

    first, _ = cell()
    second, run = cell()
    assert first.name != second.name
    for ours, theirs in zip(second.get_weights(), run.model().get_weights(), strict=True):
        assert np.array_equal(ours, theirs)


class Softened(keras.losses.Loss):
    """Without get_config: its temperature is in no configuration."""

    def __init__(self, temperature):
        super().__init__()
        self.temperature = temperature

    def call(self, labels, logits):
        return keras.losses.sparse_categorical_crossentropy(labels, logits / self.temperature, from_logits=True)


@pytest.mark.slow
def test_state_that_does_not_serialize_is_a_setting_too(digits, tmp_path):
    trained(digits, tmp_path / "loss", model=compiled(network(), loss=Softened(2.0)))
    with pytest.raises(errors.SettingsError, match="loss_gives"):
        trained(digits, tmp_path / "loss", model=compiled(network(), loss=Softened(3.0)))
    trained(digits, tmp_path / "decay", model=without_decay(var_names=["kernel"]))
    with pytest.raises(errors.SettingsError, match="excluded_from_weight_decay"):
        trained(
            digits,
            tmp_path / "decay",
            model=compiled(network(), optimizer=keras.optimizers.AdamW(0.01, weight_decay=0.5)),
        )


class Block(layers.Layer):
    """Its configuration says nothing of the layers inside, of which the last has no configuration."""

    def __init__(self, factor):
        super().__init__()
        self.inner = keras.Sequential([layers.Dense(6, kernel_regularizer=keras.regularizers.L2(factor))])

    def call(self, x):
        return self.inner(x)


class Around(layers.Layer):
    def __init__(self, factor, **options):
        super().__init__(**options)
        self.block = Block(factor)

    def call(self, x):
        return self.block(x)

    def get_config(self):
        return super().get_config()


def test_a_setting_that_a_run_did_not_have_is_another_one(digits):
    first = given_to_a_run(digits, network())
    without = [key for key, value in first.items() if value is None]
    assert "class_weights" in without
    for key in without:
        with pytest.raises(errors.SettingsError, match=f"{key} is null in the run, 1 now"):
            identity.agree(first, first | {key: 1}, compiled(network()))


def test_another_keras_is_named_where_it_may_write_the_model_otherwise(digits):
    first = given_to_a_run(digits, network())
    other = first | {"model_config": "0123456789abcdef"}
    with pytest.raises(
        errors.SettingsError, match=r"than 3\.0\.1, which began the run: continue with keras==3\.0\.1, another"
    ):
        identity.agree(other, first, compiled(network()), of_keras="3.0.1")
    with pytest.raises(errors.SettingsError, match="Give those again"):
        identity.agree(other, first, compiled(network()))


class Within(keras.Model):
    def __init__(self, factor, **options):
        super().__init__(**options)
        self.dense = layers.Dense(6, kernel_regularizer=keras.regularizers.L2(factor))

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return {}


@pytest.mark.parametrize("kind", [Around, Within])
def test_what_own_layers_have_inside_is_a_setting_too(digits, kind):
    first, again, other = (given_to_a_run(digits, network(kind(factor))) for factor in (0.1, 0.1, 0.2))
    identity.agree(first, again, compiled(network()))
    with pytest.raises(errors.SettingsError, match="the inside of your layers"):
        identity.agree(first, other, compiled(network()))
    earlier = {key: value for key, value in first.items() if key != "inside_own_layers"}
    identity.agree(earlier, first, compiled(network()))  # a run of an earlier version
    plain = network(keras.Sequential([layers.Dense(3), layers.Dense(4)]))
    assert "inside_own_layers" not in given_to_a_run(digits, plain)


class Raw(layers.Layer):
    """Its configuration holds a function and an array as they are, as Keras allows."""

    def __init__(self):
        super().__init__()

        def twice(x):
            return 2 * x

        self.activation = twice

    def call(self, x):
        return self.activation(x)

    def get_config(self):
        return super().get_config() | {"activation": self.activation, "table": np.arange(3)}


def test_objects_in_a_configuration_inside_are_the_same_in_another_process(digits):
    class Outer(Around):
        def __init__(self, factor, **options):
            super().__init__(factor, **options)
            self.raw = Raw()

    first, again = (given_to_a_run(digits, network(Outer(0.1))) for _ in range(2))
    assert first["inside_own_layers"] == again["inside_own_layers"]


def given_to_a_run(data, model, **options):
    return identity.fingerprint(
        compiled(model, **options), data, Settings(stages=[train.Stage(1, 0.1)]).resolved(1, None)
    )


COUNTED = {
    "TimeDistributed": lambda x: layers.TimeDistributed(layers.Dense(3))(x),
    "Bidirectional": lambda x: layers.Bidirectional(layers.LSTM(3))(x),
    "cells": lambda x: layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)])(x),
    "Pipeline": lambda x: layers.Pipeline([layers.Dense(3), keras.Sequential([layers.Dense(2)])])(x),
    "a layer as activation": lambda x: layers.Dense(3, activation=layers.LeakyReLU(0.1))(x),
    "a layer with the name of an argument": lambda x: layers.Activation("relu")(layers.Dense(3)(x)),
    "an activation with the name of an operation": lambda x: keras.ops.relu(layers.Dense(3, activation="relu")(x)),
}


@pytest.mark.parametrize("name", COUNTED)
def test_names_that_keras_counts_up_make_no_difference_in_a_wrapper_either(digits, name):
    def built():
        inputs = keras.Input((8, 8, 1), dtype="uint8")
        x = COUNTED[name](layers.Reshape((8, 8))(layers.Rescaling(1 / 255)(inputs)))
        return keras.Model(inputs, layers.Dense(10)(layers.Flatten()(x)))

    keras.backend.clear_session()
    first, again, model = given_to_a_run(digits, built()), given_to_a_run(digits, built()), built()
    assert first == again
    with identity.lambdas_without_lines:  # of a run of an earlier version
        earlier = first | {"model_config": identity._model_fingerprint(model, outer=True)}
    identity.agree(earlier, again, compiled(model))


LAMBDAS = """
activation = lambda x: [2 * each for each in (x,)][0]
layer = layers.Lambda(lambda x: FACTOR * x)
loss = lambda y, z: keras.losses.sparse_categorical_crossentropy(y, FACTOR * z, from_logits=True)
"""


def with_lambdas(data, file, text):
    """Return what a run remembers of a program with lambdas; `file` need not exist."""
    found = {"keras": keras, "layers": layers, "__name__": "own"}
    exec(compile(text, str(file), "exec"), found)
    model = network(found["layer"], layers.Dense(5, activation=found["activation"]))
    return given_to_a_run(data, model, loss=found["loss"])


def test_a_lambda_is_the_same_in_another_line_of_another_file_and_another_when_it_computes_otherwise(digits, tmp_path):
    def of(text, name):
        (tmp_path / name).write_text(text)
        return with_lambdas(digits, tmp_path / name, text)

    two, three = (LAMBDAS.replace("FACTOR", factor) for factor in ("2.0", "3.0"))
    first, later, other = of(two, "1.py"), of(f"# a comment{two}", "2.py"), of(three, "3.py")
    assert first == later
    assert first["model_config"] != other["model_config"] and first["loss"] != other["loss"]


def test_a_lambda_without_its_source_is_refused_before_the_first_step(digits):
    """Keras shows the source in a warning, and fails where it is not there, as in `python -c`."""
    with pytest.raises(errors.SettingsError, match="write functions with def"):
        with_lambdas(digits, "<stdin>", LAMBDAS.replace("FACTOR", "2.0"))


class Callable:
    def __call__(self, y_true, y_pred):
        return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": functools.partial(keras.losses.sparse_categorical_crossentropy, from_logits=True)},
        {"loss": Callable()},
        {"metrics": ["accuracy", functools.partial(keras.metrics.sparse_top_k_categorical_accuracy, k=2)]},
        {"metrics": [Callable()]},
    ],
)
def test_what_could_not_be_saved_at_the_end_of_a_stage_is_refused_at_the_start(digits, tmp_path, options):
    with pytest.raises(errors.SettingsError, match=r"cannot be saved.*write functions with def"):
        trained(digits, tmp_path / "run", model=compiled(network(), **options))


@pytest.mark.parametrize(
    ("metric", "refused"),
    [
        (keras.metrics.SparseTopKCategoricalAccuracy(5, name="accuracy"), True),
        (keras.metrics.SparseTopKCategoricalAccuracy(5, name="step"), True),
        (keras.metrics.SparseCategoricalAccuracy(name="val_loss"), True),
        (keras.metrics.SparseCategoricalAccuracy(name="accuracy"), False), ("accuracy", False), (Largest(), False),
    ],
)  # fmt: skip
def test_a_metric_with_the_name_of_another_column_is_refused(metric, refused):
    model = compiled(network(), metrics=[metric])
    objective.build(model)
    with pytest.raises(errors.SettingsError, match="name of a column") if refused else contextlib.nullcontext():
        objective.check_names(model, HISTORY)


def test_a_run_of_an_earlier_version_with_such_a_metric_opens(digits, tmp_path):
    def again(**options):
        model = compiled(network(), metrics=[keras.metrics.SparseTopKCategoricalAccuracy(5, name="accuracy")])
        return trained(digits, tmp_path / "run", model=model, stages=[(1, 0.1)], **options)

    with mock.patch.object(objective, "check_names"):
        again()
    assert again().finished
    with pytest.raises(errors.SettingsError, match="name of a column"):
        again(fresh=True)
    assert not (tmp_path / "run.1").exists()


def test_a_run_with_an_own_layer_says_which_class_it_needs(digits, tmp_path):
    run = trained(digits, tmp_path / "run", model=compiled(network(Penalized())))
    with pytest.raises(errors.SettingsError, match=r"Penalized.*custom_objects"):
        run.model()
    assert run.model(custom_objects={"Penalized": Penalized}).count_params()


def test_prediction_and_export_need_no_loss_and_evaluation_finds_the_data_that_moved_along(
    digits, tmp_path, monkeypatch, capsys
):
    (tmp_path / "project").mkdir()
    shutil.copytree(digits.directory, tmp_path / "project" / "data")
    data = prepare.load(tmp_path / "project" / "data")
    losses = {"own": Softened(2.0), "standard": None}
    for name, loss in losses.items():
        trained(data, tmp_path / "project" / name, model=compiled(network(), **({"loss": loss} if loss else {})))
    (tmp_path / "project").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    Image.fromarray(digits.train.images[0, ..., 0]).save("one.png")
    assert cli.main(["predict", "own", "one.png"]) == 0 and "one.png: " in capsys.readouterr().out
    assert cli.main(["export", "own", "--to", "saved_model"]) == 0
    assert cli.main(["evaluate", "own"]) == 78 and "the model uses Softened" in capsys.readouterr().err
    assert cli.main(["evaluate", "standard"]) == 0 and '"examples": 179' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("layer", "other"),
    [
        (layers.Activation("relu", name="relu"), layers.Activation("tanh", name="tanh")),
        (layers.Activation("relu", name="relu_1"), layers.Activation("tanh", name="tanh_1")),
        (layers.Dense(3, "relu", name="relu_1"), layers.Dense(3, "gelu", name="gelu_1")),
    ],
)
def test_a_name_that_is_also_a_value_hides_no_difference(digits, layer, other):
    assert (
        given_to_a_run(digits, network(layer))["model_config"] != given_to_a_run(digits, network(other))["model_config"]
    )


class Encoder(layers.Layer):
    """As in keras.io's vision transformer: its configuration lacks an argument, and `__init__` does not take the name."""

    def __init__(self, patches, units):
        super().__init__()
        self.patches, self.dense = patches, layers.Dense(units)

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return super().get_config() | {"patches": self.patches}


class Unnamed(Encoder):
    """Keras writes its arguments, but not those of every layer, which it does not take."""

    def get_config(self):
        return super(Encoder, self).get_config() | {"patches": self.patches, "units": 3}


class Forgetful(layers.Layer):
    """Opens with another factor than it was trained with."""

    def __init__(self, factor=1.0, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return super().get_config()


class Built(keras.Model):
    def __init__(self, units):
        inputs = keras.Input((8, 8, 1), dtype="uint8")
        x = layers.Dense(units)(layers.Flatten()(layers.Rescaling(1 / 255)(inputs)))
        super().__init__(inputs, layers.Dense(10)(x))

    def get_config(self):
        return {"name": self.name}


class Twice(keras.Sequential):
    """Keras would create its layers twice."""

    def __init__(self, **options):
        super().__init__(**options)
        self.add(layers.Dense(4))


class BlockOf(keras.Sequential):
    def __init__(self, units):
        super().__init__([layers.Dense(units)])


class Passed(keras.Sequential):
    def __init__(self, *given, **options):
        super().__init__(*given, **options)


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: network(Encoder(4, 3)), r"from its get_config \(missing a required argument: 'units'"),
        (
            lambda: network(layers.Dense(4), keras.Sequential([keras.Input((4,)), Unnamed(4, 3)])),
            r"from its get_config \(got an unexpected keyword",
        ),
        (
            lambda: network(Forgetful(3.0)),
            "get_config of Forgetful leaves out factor, so the saved model would open with",
        ),
        (lambda: Built(3), r"from its get_config \(missing a required argument: 'units'"),
    ],
)
def test_a_layer_that_keras_could_not_build_again_is_refused_before_the_first_step(digits, tmp_path, build, why):
    with pytest.raises(errors.SettingsError, match=rf"{why}.*let get_config return") as refused:
        trained(digits, tmp_path / "run", model=compiled(build()))
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


class BuiltOfOwn(keras.Model):
    """Its configuration has its argument alone, so Keras does not write the layers inside."""

    def __init__(self, units=3, **options):
        inputs = keras.Input((8, 8, 1), dtype="uint8")
        x = Encoder(4, units)(layers.Flatten()(layers.Rescaling(1 / 255)(inputs)))
        super().__init__(inputs, layers.Dense(10)(x), **options)

    def get_config(self):
        return {"units": 3}


def test_layers_that_keras_can_build_again_are_taken():
    """The first creates a layer inside, which has no configuration and needs none."""
    identity.check_opens_again(BuiltOfOwn())

    class Whole(Around):
        def get_config(self):
            return super().get_config() | {"factor": 0.1}

    around = network(Whole(0.1), Forgetful(), Passed([layers.Dense(3)]), layers.Dense(3), kind=keras_rows.OwnCall)
    identity.check_opens_again(around)


@pytest.mark.parametrize("build", [Twice, lambda: BlockOf(3)])
def test_a_sequential_that_creates_its_layers_itself_is_refused_before_the_first_step(build):
    with pytest.raises(errors.SettingsError, match="and adds its layers; create them in a function"):
        identity.check_opens_again(network(build()))


def test_the_reason_why_a_model_cannot_be_saved_is_a_whole_sentence(digits, tmp_path):
    class Calling(layers.Layer):
        def __init__(self, something):
            super().__init__()

        def call(self, x):
            return x

    with pytest.raises(errors.SettingsError, match=r"by passing non-serializable argument values.*; write functions"):
        trained(digits, tmp_path / "run", model=compiled(network(Calling(object()))))


def test_an_intact_file_is_not_called_damaged_where_a_class_is_wrong(digits, tmp_path):
    with mock.patch.object(identity, "check_opens_again"):  # as an earlier version began it
        run = trained(digits, tmp_path / "run", model=compiled(network(Encoder(4, 3))), stages=[(1, 0.1)])
    said = r"cannot build the model from its configuration \(.*unexpected keyword.*load_weights"
    with pytest.raises(errors.SettingsError, match=said):
        run.model(custom_objects={"Encoder": Encoder})
    model = compiled(network(Encoder(4, 3)))
    model.load_weights(run.directory / "model.keras")
    (tmp_path / "run" / "model.keras").write_bytes((tmp_path / "run" / "model.keras").read_bytes()[:-100])
    with pytest.raises(errors.DataError, match="damaged"):
        run.model(custom_objects={"Encoder": Encoder})


@pytest.mark.slow
def test_class_weights_in_every_form(digits, tmp_path):
    numbers = np.bincount(digits.train.labels)
    balanced = (len(digits.train.labels) / (10 * numbers)).tolist()
    found = [
        trained(digits, tmp_path / str(i), class_weights=given, stages=[(1, 0.1)]).settings["class_weights"]
        for i, given in enumerate(("balanced", dict(enumerate(balanced)), balanced))
    ]
    assert found[0] == found[1] == found[2] == balanced


# ---- sources


def pictures(folder, count=6, shade=0):
    Path(folder).mkdir(parents=True)
    for i in range(count):
        Image.fromarray(np.full((9, 9, 3), 20 * i + shade, np.uint8)).save(f"{folder}/{i}.png")


@pytest.mark.parametrize(
    "names", [("Train", "VAL"), ("training", "validation"), ("train", "dev"), ("Training", "Eval"), ("train", "test")]
)
def test_folders_of_splits_under_their_usual_names(tmp_path, names):
    for split in names:
        for name in ("cat", "dog"):
            pictures(tmp_path / "in" / split / name)
    data = prepare.dataset(tmp_path / "in", tmp_path / "out")
    assert data.class_names == ["cat", "dog"] and len(data.train.labels) == len(data.validation.labels) == 12


def test_doubtful_folders_are_refused_and_both_answers_work(tmp_path):
    for name in ("train", "val", "Val"):
        for kind in ("cat", "dog"):
            pictures(tmp_path / "twice" / name / kind)
    with pytest.raises(errors.DataError, match=r"two folders for one split .*--splits.*--no-splits"):
        prepare.dataset(tmp_path / "twice", tmp_path / "a")
    both = prepare.dataset(tmp_path / "twice", tmp_path / "a", splits=True)
    assert both.class_names == ["cat", "dog"] and len(both.validation.labels) == 24 == 2 * len(both.train.labels)
    assert prepare.dataset(tmp_path / "twice", tmp_path / "d", splits=False).class_names == ["Val", "train", "val"]
    for name in ("test", "train"):
        pictures(tmp_path / "lab" / name)
    with pytest.raises(errors.DataError, match="--no-splits if the folders beside it are classes"):
        prepare.dataset(tmp_path / "lab", tmp_path / "e")
    for name in ("car", "train"):
        pictures(tmp_path / "vehicles" / name)
    with pytest.raises(errors.DataError, match="--no-splits"):
        prepare.dataset(tmp_path / "vehicles", tmp_path / "b")
    assert prepare.dataset(tmp_path / "vehicles", tmp_path / "b", splits=False).class_names == ["car", "train"]
    with pytest.raises(errors.DataError, match="no folder train"):
        prepare.dataset(tmp_path / "vehicles", tmp_path / "c", splits=True)


@pytest.mark.parametrize(
    ("names", "are_classes"),
    [
        (("training_set", "test_set"), False), (("train2017", "val2017"), False), (("Train images", "Dev images"), False),
        (("freight_train", "passenger_train"), True), (("train_station", "valley"), True), (("car_test", "dog"), True),
    ],
)  # fmt: skip
def test_folders_whose_names_hold_the_word_of_a_split_are_not_taken_for_classes(
    tmp_path, monkeypatch, names, are_classes
):
    for number, name in enumerate(names):
        for kind in ("cat", "dog"):
            pictures(tmp_path / "in" / name / kind, shade=number)
    if not are_classes:
        with pytest.raises(errors.DataError, match=r"read like splits\. Rename them train.*--no-splits"):
            prepare.dataset(tmp_path / "in", tmp_path / "out")
    data = prepare.dataset(tmp_path / "in", tmp_path / "out", splits=None if are_classes else False)
    assert data.class_names == sorted(names)
    monkeypatch.setattr(folders, "read_like_splits", lambda _names: False)  # an earlier version took all for classes
    prepare.dataset(tmp_path / "in", tmp_path / "before")
    monkeypatch.undo()
    assert prepare.dataset(tmp_path / "in", tmp_path / "before").class_names == sorted(names)


def test_foreign_files_and_spellings_do_not_matter(tmp_path, capsys):
    pictures(tmp_path / "in" / "train" / unicodedata.normalize("NFC", "crème"))
    pictures(tmp_path / "in" / "val" / unicodedata.normalize("NFD", "crème"))
    for split in ("train", "val"):
        pictures(tmp_path / "in" / split / "tea")
        for i in range(6):
            (tmp_path / "in" / split / "tea" / f"._{i}.png").write_bytes(b"\0\5\x16\7")
            (tmp_path / "in" / split / "tea" / f"{i}.json").write_text("{}")
        (tmp_path / "in" / split / "__MACOSX").mkdir()
    data = prepare.dataset(tmp_path / "in", tmp_path / "out")
    assert data.class_names == [unicodedata.normalize("NFC", "crème"), "tea"] and len(data.train.labels) == 12
    assert "one class" in capsys.readouterr().out
    with open(data.directory / "skipped.csv", newline="") as file:
        reasons = {row["reason"] for row in csv.DictReader(file)}
    assert reasons == {"hidden, or of a file type that is not a picture"}


def test_a_level_of_folders_too_few_or_too_many_is_explained(tmp_path):
    pictures(tmp_path / "flat")
    with pytest.raises(errors.DataError, match="lie directly in it; put each into a folder named after its class"):
        prepare.dataset(tmp_path / "flat", tmp_path / "a")
    for name in ("cat", "dog"):
        pictures(tmp_path / "deep" / "images" / name)
    with pytest.raises(errors.DataError, match=r"holds cat, dog: give .*deep/images"):
        prepare.dataset(tmp_path / "deep", tmp_path / "b")
    with pytest.raises(errors.DataError, match=r"holds cat, dog: give .*further/deep/images"):
        (tmp_path / "further").mkdir()
        prepare.dataset((tmp_path / "deep").rename(tmp_path / "further" / "deep").parent, tmp_path / "b")


def test_a_source_that_changed_moved_or_went_away(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        pictures(f"photos/{name}")
    before = prepare.dataset("photos", "data")
    os.rename("photos/cat/0.png", "photos/dog/renamed.png")
    os.rename("photos/dog/1.png", "photos/cat/of_dog_1.png")
    os.mkdir("photos/hen")
    for i in (2, 3):
        os.rename(f"photos/dog/{i}.png", f"photos/hen/{i}.png")
    with pytest.raises(
        errors.SettingsError, match=r"older than its source photos: 2 new .*2 removed .*2 moved .*--fresh"
    ):
        prepare.dataset("photos", "data")
    assert prepare.dataset("photos", "data", fresh=True).class_names == ["cat", "dog", "hen"]
    assert prepare.load("data.1").fingerprint == before.fingerprint
    os.mkdir("project")
    os.rename("photos", "project/photos")
    os.rename("data", "project/data")
    monkeypatch.chdir("project")
    moved = prepare.dataset("photos", "data")
    assert moved.class_names == ["cat", "dog", "hen"]
    with open("photos/hen/2.png", "ab") as file:
        file.write(b"more")
    with pytest.raises(errors.SettingsError, match=r"source is .*, asked for .*/project/photos"):
        prepare.dataset("photos", "data")


def test_another_source_of_the_same_name_is_not_taken_for_one_that_moved(tmp_path, monkeypatch):
    """Its files have the same names and sizes; those of a copy have the same bytes."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        pictures(f"a/photos/{name}")
    first = prepare.dataset("a/photos", "data")
    shutil.copytree("a/photos", "b/photos")
    for path in Path("b").rglob("*.png"):
        path.write_bytes(path.read_bytes()[::-1])
    shutil.copytree("a/photos", "c/photos")
    os.utime("c/photos/cat/0.png")  # a copy by cp -r has other times
    assert prepare.dataset("c/photos", "data").fingerprint == first.fingerprint
    with pytest.raises(errors.SettingsError, match=r"source is .*a/photos, asked for .*b/photos.*tfpar train data$"):
        prepare.dataset("b/photos", "data")
    for name in ("hen", "owl"):
        pictures(f"d/photos/train/{name}")
        pictures(f"d/photos/val/{name}")
        pictures(f"d/photos/Val/{name}")
    shutil.rmtree("a")
    for splits in (None, True):
        with pytest.raises(errors.SettingsError, match=r"source is .*a/photos, asked for .*d/photos"):
            prepare.dataset("d/photos", "data", splits=splits)


def test_the_command_in_a_message_works_when_it_is_pasted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        pictures(f"-the pho'tos/{name}")
    options = ["--group-by=-?/([0-9])", "--validation-fraction=0.3", "--seed=3"]
    assert cli.main(["prepare", "./-the pho'tos", "./-the data", *options]) == 0
    pictures("-the pho'tos/hen")
    assert cli.main(["prepare", "./-the pho'tos", "./-the data", *options]) == 78
    said = capsys.readouterr().err
    again, train = re.search(r"again: tfpar (.*) \(the old.*name: tfpar (.*)$", said).groups()
    assert cli.main(shlex.split(again)) == 0 and prepare.load("./-the data").num_classes == 3
    assert arguments.parser({}).parse_args(shlex.split(train)).data == "./-the data"
    with pytest.raises(errors.InputNotFound) as none:
        results.Run("-no run")
    words = shlex.split(str(none.value).split("tfpar ")[1])
    assert arguments.parser({}).parse_args(words).run == "./-no run"


def test_a_directory_is_not_renamed_from_inside(tmp_path, monkeypatch):
    for name in ("cat", "dog"):
        pictures(tmp_path / "photos" / name)
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    first = prepare.dataset("../photos", ".")
    (tmp_path / "data" / "below").mkdir()
    for place, directory in ((".", tmp_path / "data"), ("..", tmp_path / "data" / "below")):
        monkeypatch.chdir(directory)
        with pytest.raises(errors.OutputError, match="from inside of it; run the command from another folder"):
            files.set_aside(place)
    assert prepare.load(tmp_path / "data").fingerprint == first.fingerprint and not (tmp_path / "data.1").exists()


def test_a_source_that_is_gone_is_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        pictures(f"photos/{name}")
    first = prepare.dataset("photos", "data")
    os.rename("photos", "elsewhere")
    assert prepare.dataset("photos", "data").fingerprint == first.fingerprint


# ---- signals


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU"])
def test_signals_of_batch_systems_ask_for_the_end(name):
    try:
        with signals.StopSignal(deferred=True) as stop:
            signal.raise_signal(getattr(signal, name))
        assert stop.requested
    finally:
        signal.signal(getattr(signal, name), signal.SIG_DFL)


def test_a_limit_of_cpu_time_is_told_again_and_again_and_the_state_is_saved_once():
    try:
        with signals.StopSignal(), signals.StopSignal(deferred=True) as stop:
            os.kill(os.getpid(), signal.SIGXCPU)
        os.kill(os.getpid(), signal.SIGXCPU)  # as the kernel does every second; it would end this process
        assert stop.requested
    finally:
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)


@pytest.mark.parametrize("given", [None, keras.callbacks.TerminateOnNaN(), [], [keras.callbacks.TerminateOnNaN()]])
def test_callbacks_are_given_as_to_fit(given):
    assert len(callbacks_of.checked(given)) == len(given if isinstance(given, list) else [given] * (given is not None))


def test_a_signal_that_is_ignored_stays_ignored():
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.StopSignal(deferred=True) as stop:
            signal.raise_signal(signal.SIGHUP)
        assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, earlier)


def test_a_run_says_how_many_steps_it_was_stopped_after(digits, tmp_path):
    stopping = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: batch == 1 and signal.raise_signal(signal.SIGTERM)
    )
    with pytest.raises(train.Interrupted, match="stopped after step 2 of 21, state saved"):
        trained(digits, tmp_path / "run", callbacks=[stopping], steps_per_call=1)
    said = r"this run has 1 shard for 2 replicas; continue on 1 replica, or start over with --shards 2 --fresh"
    with pytest.raises(errors.SettingsError, match=said):
        two = devices.strategy(simulate=2)
        with two.scope():
            model = compiled(network())
        trained(digits, tmp_path / "run", model=model, steps_per_call=1)
    assert not results.Run(tmp_path / "run").finished
    with pytest.raises(
        errors.SettingsError, match="continue on 1 or 2 or 3 or 6 replicas, or start over with --shards 4"
    ):
        Settings().resolved(4, {"shards": 6})


# ---- found by a review


class Ready(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.model.optimizer.learning_rate = 5.0


def one_hot_loss(labels, logits):
    return -tf.reduce_sum(labels * tf.nn.log_softmax(logits), axis=1) * (labels.shape[1] / 10)


@pytest.mark.slow
def test_a_rate_before_the_first_step_a_vector_metric_and_a_loss_that_reads_shapes(digits, tmp_path):
    with pytest.raises(errors.SettingsError, match="Stage"):
        trained(digits, tmp_path / "a", callbacks=[Ready()])
    model = compiled(network(), loss=one_hot_loss, metrics=["accuracy", keras.metrics.F1Score(average=None)])
    watching = Watching()
    run = trained(digits, tmp_path / "b", model=model, callbacks=[watching])
    assert watching.logs["val_f1_score"].shape == (10,) and "f1_score" not in run.history.column_names
    more = compiled(network(), loss=one_hot_loss, metrics=["accuracy", "mse"])
    assert trained(digits, tmp_path / "b", model=more).finished  # metrics are no setting of a run
    assert np.array_equal(more.get_weights()[0], model.get_weights()[0])


def test_a_log_that_holds_other_runs_is_left_alone(digits, tmp_path):
    (tmp_path / "log.csv").write_text("epoch,accuracy\n" + "0,0.5\n" * 20)
    logger = keras.callbacks.CSVLogger(str(tmp_path / "log.csv"), append=True)
    trained(digits, tmp_path / "run", callbacks=[logger])
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 24 and logger.append


def test_only_the_chief_writes_the_files_of_callbacks(tmp_path):
    class Stopping(keras.callbacks.EarlyStopping):
        pass

    logger, saver = keras.callbacks.CSVLogger(str(tmp_path / "log.csv")), keras.callbacks.ModelCheckpoint("m.keras")
    given = [Stopping(), logger, saver]
    assert callbacks_of.of_worker(given, chief=True) == given
    assert callbacks_of.of_worker(given, chief=False) == given[:1]


def test_answers_about_splits_are_remembered_and_fresh_loses_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("train/cat", "train/dog", "val/cat", "val/dog", "more/cat"):
        pictures(f"photos/{folder}")
    os.symlink("/nonexistent", "photos/train/cat/link.png")
    first = prepare.dataset("photos", "data", splits=True)
    assert prepare.dataset("photos", "data", splits=True).fingerprint == prepare.dataset("photos", "data").fingerprint
    with pytest.raises(errors.InputNotFound):
        prepare.dataset("no_such_source", "data", fresh=True)
    with pytest.raises(errors.DataError):
        prepare.dataset("photos/train/cat", "data", fresh=True)
    assert prepare.load("data").fingerprint == first.fingerprint and not os.path.exists("data.1")


def test_digits_is_not_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        pictures(f"digits/{name}")
    assert prepare.dataset("./digits", "data").num_classes == 2
    with pytest.raises(errors.SettingsError, match="source is folder:"):
        prepare.dataset("digits", "data")


def test_after_a_refused_compile_fit_does_not_train_with_another_step(digits):
    model, one = compiled(network()), devices.strategy(simulate=1)
    step = steps.install(model, shards=1, steps_per_call=2, steps_per_epoch=4)
    batches = engine.train_batches(digits.train, one, global_batch_size=64)
    with pytest.raises(errors.SettingsError, match="give both the same"):
        model.fit(batches, steps_per_epoch=3, verbose=0)
    with pytest.raises(errors.SettingsError, match="probabilities"):
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy())
    before = model.get_weights()
    for _ in range(2):
        with pytest.raises(errors.SettingsError, match="probabilities"):
            model.fit(batches, steps_per_epoch=4, verbose=0)
    assert all(map(np.array_equal, before, model.get_weights())) and step.counts.step == 0
    model.compile("sgd", LOSS)
    model.make_train_function(force=True)
    model.fit(digits.train.images, digits.train.labels, class_weight={0: 2.0}, verbose=0)


class Restless(layers.Layer):
    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x))


def test_what_another_thread_draws_while_a_shard_is_traced_is_no_fault():
    def draw():
        return np.random.rand(), random.random(), keras_rows.rand(), keras_rows.uniform(0, 1)

    layer = keras_rows.WithGenerator(np.random.mtrand._rand, lambda g: 1.0)
    model = network(layer)
    with randomness.nothing_drawn(model):
        assert keras_rows.rand is not np.random.mtrand.rand
        with futures.ThreadPoolExecutor(1) as pool:
            pool.submit(draw).result()
    assert keras_rows.rand is np.random.rand and keras_rows.uniform == random.uniform
    with pytest.raises(errors.SettingsError, match="draws from random"), randomness.nothing_drawn(model):
        draw()


def test_inference_is_repeatable_where_a_layer_draws(digits):
    from tfpar.train.inference import Inference

    infer = Inference(compiled(network(Restless(), layers.Dense(5), layers.Dense(10, name="more"))))
    first = infer(digits.validation)[0]
    keras.random.normal((3,))
    assert np.array_equal(first, infer(digits.validation)[0])
