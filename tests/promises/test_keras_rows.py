"""Each row of `keras_rows` beside plain Keras on one device and one shard."""

import keras
import keras_rows as table
import numpy as np
import pytest
import tensorflow as tf
from networks import LOSS

from tfpar import devices, engine, errors, steps
from tfpar.train import callbacks as callbacks_of

# Everything is looked at where a row is about it; a validation and a prediction take as long as the rest.
WHOLE = {"Model.test_step", "Model.predict_step"}


def begun(build, *, ours):
    """Return a model with tfpar's step or with Keras' own."""
    keras.utils.set_random_seed(1)
    model = build()
    if ours:
        steps.install(model, shards=1)
    else:
        model.run_eagerly = True  # the same numbers, and no time for a trace
    return model


@pytest.fixture(scope="module")
def batches(digits):
    return engine.train_batches(digits.train[:2], devices.strategy(simulate=1), global_batch_size=64)


def outcome(model, batches, **options):
    """Return what `fit` leaves: the last logs, then the weights."""
    history = model.fit(batches, **{"steps_per_epoch": 3, "verbose": 0} | options).history
    return {name: values[-1] for name, values in history.items()}, [np.asarray(w) for w in model.get_weights()]


def same(ours, theirs, atol=2e-6):
    """Compare two outcomes."""
    (logs, weights), (expected_logs, expected) = ours, theirs
    assert set(logs) == set(expected_logs)
    for key, value in expected_logs.items():
        assert logs[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
    for found, plain in zip(weights, expected, strict=True):
        np.testing.assert_allclose(found, plain, rtol=1e-4, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.by_hand] * (i % 4 > 0)) for i, n in enumerate(table.HONOURED)]
)
def test_honoured_with_the_numbers_of_keras(digits, batches, name):
    found = []
    split = digits.validation.images[:64], digits.validation.labels[:64]
    for ours in (True, False):
        model = begun(table.HONOURED[name], ours=ours)
        found.append(outcome(model, batches, **({"validation_data": split} if name in WHOLE else {})))
        if name in WHOLE:
            found[-1][1].append(model.predict(split[0], verbose=0))
    same(*found, atol=1e-4 if name == "Layer.dtype" else 2e-6)  # 16-bit products are rounded as the processor does it


def refused(said, attempt):
    with pytest.raises(errors.SettingsError, match=said) as caught:
        attempt()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", table.REFUSED)
def test_refused_before_the_first_step_with_the_remedy(batches, name):
    table.OUTSIDE[:], table.GENERATOR[:] = [tf.Variable(2.0)], [tf.random.Generator.from_seed(1)]
    build, said = table.REFUSED[name]
    refused(said, lambda: outcome(begun(build, ours=True), batches))


@pytest.mark.parametrize("name", table.REFUSED_BY_A_RUN)
def test_refused_by_a_run(name):
    build, said = table.REFUSED_BY_A_RUN[name]
    refused(said, lambda: steps.Step(build(), learning_rate=lambda step: 0.1))


@pytest.mark.parametrize("name", table.CALLBACKS_REFUSED_BY_A_RUN)
def test_callbacks_refused_by_a_run(name):
    refused("leave it out|the stages", lambda: callbacks_of.checked([table.CALLBACKS_REFUSED_BY_A_RUN[name]()]))


class Summing(keras.optimizers.Adam):
    """Adam in plain Keras that is given the sum for each row, as tfpar's step gives it."""

    def apply_gradients(self, grads_and_vars):
        return super().apply_gradients(
            [(tf.convert_to_tensor(gradient), variable) for gradient, variable in grads_and_vars]
        )


def test_a_gradient_of_rows_is_summed_before_the_optimizer_squares_it(batches):
    def build(kind=keras.optimizers.Adam):
        inputs = keras.Input((8, 8, 1), dtype="uint8")
        x = keras.layers.Embedding(256, 4)(keras.layers.Flatten()(inputs))
        model = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling1D()(x)))
        return table.compiled(model, optimizer=kind(0.01, epsilon=1e-3))

    plain, summed = (
        outcome(begun(lambda kind=kind: build(kind), ours=False), batches) for kind in (keras.optimizers.Adam, Summing)
    )
    same(outcome(begun(build, ours=True), batches), summed)
    assert not np.allclose(plain[1][0], summed[1][0], rtol=1e-4, atol=2e-6)


class Centered(keras.layers.Layer):
    """As in a center loss: subtracts an average that this call has just updated."""

    def build(self, shape):
        self.average = self.add_weight(shape=(shape[-1],), initializer="zeros", trainable=False)

    def call(self, x, training=None):
        if training:
            self.average.assign(0.5 * self.average + 0.5 * keras.ops.mean(x, axis=0))
        return x - self.average


def test_no_gradient_flows_through_state_that_a_layer_has_assigned(batches):
    def build():
        return table.compiled(table.network(keras.layers.Dense(6), Centered(), keras.layers.Dense(5)))

    same(*(outcome(begun(build, ours=ours), batches) for ours in (True, False)))


@pytest.mark.slow
@pytest.mark.parametrize("name", table.CALLBACKS)
def test_callbacks_of_fit_have_the_effect_that_they_have_in_keras(digits, batches, name, tmp_path):
    found, noticed = [], []
    for which in ("ours", "theirs"):
        (tmp_path / which).mkdir()
        given = table.CALLBACKS[name](tmp_path / which)
        model = begun(table.compiled, ours=which == "ours")
        split = digits.validation.images[:64], digits.validation.labels[:64]
        found.append(outcome(model, batches, epochs=2, callbacks=given, validation_data=split))
        files = {path.relative_to(tmp_path / which).parts[0] for path in (tmp_path / which).rglob("*")}
        noticed.append((files, getattr(given[0], "seen", None)))
    same(*found)
    assert noticed[0] == noticed[1]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (not said)) for n, (*_, said) in table.GIVEN.items()]
)
def test_what_fit_is_given(digits, name):
    change, options, said = table.GIVEN[name]
    members = change(digits.train.images[:192], digits.train.labels[:192])
    batches = tf.data.Dataset.from_tensor_slices(members).batch(64, drop_remainder=True).repeat()
    if "validation" in name:
        options = {"validation_data": (digits.validation.images[:64], digits.validation.labels[:64])} | options
    if said:
        refused(said, lambda: outcome(begun(table.compiled, ours=True), batches, **options))
    else:
        same(*(outcome(begun(table.compiled, ours=ours), batches, **options) for ours in (True, False)))


def test_what_is_set_on_the_model_after_install_is_not_lost(batches):
    for change, said in (
        (lambda model: setattr(model, "steps_per_execution", 2), "steps_per_execution"),
        (lambda model: setattr(model, "run_eagerly", True), "run_eagerly"),
    ):
        model = begun(table.compiled, ours=True)
        change(model)
        refused(said, lambda model=model: outcome(model, batches))


@pytest.mark.parametrize(
    ("name", "attribute", "value"),
    [
        (None, "momentum", 0.5),
        (None, "weight_decay", 0.1),
        ("dropout", "rate", 0.5),
        ("logits", "kernel_regularizer", keras.regularizers.L2(0.1)),
    ],
)
def test_what_a_graph_keeps_is_refused_when_it_changes_and_honoured_after_compile(batches, name, attribute, value):
    model = begun(
        lambda: table.compiled(table.network(keras.layers.Dropout(0.1, name="dropout"), name="whole")), ours=True
    )
    outcome(model, batches)
    model.predict(
        np.zeros((2, 8, 8, 1)), verbose=0
    )  # neither what the model does itself nor an equal value is a change
    model.optimizer.momentum, model.optimizer.learning_rate = np.float64(model.optimizer.momentum), 0.05
    outcome(model, batches)
    setattr(model.get_layer(name) if name else model.optimizer, attribute, value)
    refused(f"{attribute} is", lambda: outcome(model, batches))
    model.compile(model.optimizer, LOSS, metrics=["accuracy"])
    outcome(model, batches)


class Scaled(keras.layers.Layer):
    """Has a number of its own, and notes in another what it was called with."""

    def __init__(self, **options):
        super().__init__(**options)
        self.factor = 1.0

    def call(self, x):
        self.rows = x.shape[0]
        return x * self.factor


class Weighted(keras.losses.Loss):
    def __init__(self):
        super().__init__()
        self.weight = 1.0

    def call(self, y_true, y_pred):
        return self.weight * keras.ops.mean(keras.ops.square(y_pred), axis=-1)


class Callable:
    """A loss that is no class of Keras."""

    __name__ = "callable"

    def __init__(self):
        self.weight = 1.0

    def __call__(self, y_true, y_pred):
        return self.weight * keras.ops.mean(keras.ops.square(y_pred), axis=-1)


class Counting(keras.optimizers.SGD):
    """Counts in Python what Keras calls, in the trace of the update."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.updates = 0

    def update_step(self, *arguments, **options):
        self.updates += 1
        super().update_step(*arguments, **options)


class Absolute(keras.regularizers.Regularizer):
    def __init__(self):
        self.strength = 0.01

    def __call__(self, x):
        return self.strength * keras.ops.sum(keras.ops.abs(x))


def test_an_own_optimizer_may_count_and_a_layer_note_its_rows(digits, batches):
    model = begun(lambda: table.compiled(table.network(Scaled()), optimizer=Counting(0.1)), ours=True)
    outcome(model, batches, epochs=2)
    model.compile(Counting(0.1), LOSS)  # the trace notes the rows that were there before
    outcome(model, batches, validation_data=(digits.train.images[:7], digits.train.labels[:7]), epochs=2)


def test_compile_in_a_callback_goes_on_with_the_new_optimizer(batches):
    model = begun(table.compiled, ours=True)
    rates = []
    compiling = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, _: model.compile(keras.optimizers.SGD(10.0**-epoch), LOSS),
        on_epoch_end=lambda epoch, _: rates.append(float(model.train_function.step.assigned_rate())),
    )
    outcome(model, batches, callbacks=[compiling], epochs=3)
    assert rates == pytest.approx([1, 0.1, 0.01]) and model.train_function.step.counts.step == 9


@pytest.mark.parametrize("which", ["factor", "weight", "strength", "callable"])
def test_a_number_of_an_own_class_that_a_callback_changes_is_refused(digits, batches, which):
    layer, kernel = Scaled(), keras.layers.Dense(4, kernel_regularizer=Absolute())
    loss = Callable() if which == "callable" else Weighted()
    model = begun(lambda: table.compiled(table.network(layer, kernel), loss=loss), ours=True)
    things = {"factor": layer, "weight": loss, "strength": kernel.kernel_regularizer, "callable": loss}
    name = "weight" if which == "callable" else which
    outcome(model, batches)
    model.predict(digits.train.images[:5], verbose=0)  # calls the layer with other rows
    outcome(model, batches)
    changing = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, _: setattr(things[which], name, 0.5**epoch / 10)
    )
    refused(f"{name} is 0.1, and the step was traced", lambda: outcome(model, batches, callbacks=[changing]))


def test_a_momentum_that_comes_after_the_optimizer_was_built_needs_a_new_one(batches):
    model = begun(lambda: table.compiled(table.network(), optimizer=keras.optimizers.SGD(0.1)), ours=True)
    outcome(model, batches)
    model.optimizer.momentum = 0.9
    refused("built without momentum", lambda: outcome(model, batches))
    refused("built without momentum", lambda: model.compile(model.optimizer, LOSS))
    refused("built without momentum", lambda: outcome(model, batches))
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), LOSS, metrics=["accuracy"])
    outcome(model, batches)


@pytest.mark.parametrize("given", ["validation_data", "validation_split"])
def test_labels_of_two_forms_are_refused_where_keras_validates(digits, batches, given):
    model = begun(lambda: table.compiled(metrics=["accuracy", keras.metrics.TopKCategoricalAccuracy(3)]), ours=True)
    split = digits.validation.images[:64], digits.validation.labels[:64]
    refused(
        "top_k_categorical_accuracy and the loss",
        lambda: outcome(model, batches, **{given: split if "data" in given else 0.5}),
    )
    outcome(model, batches)


@pytest.mark.filterwarnings("ignore:Layer")  # that has nothing to quantize
def test_a_model_that_is_quantized_after_install_keeps_the_step(batches):
    def quantized(ours):
        model = begun(table.compiled, ours=ours)
        model.quantize("int8")
        found = outcome(model, batches)
        assert not ours or model.train_function.step.counts.step == 3  # not Keras' own step
        return found

    same(quantized(True), quantized(False))
