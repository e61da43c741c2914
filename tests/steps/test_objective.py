"""Keras' losses and metrics: each gets labels in the form that it takes, or an error says what to do."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import tiny

from tfpar import devices, engine, errors, steps
from tfpar.steps import objective
from tfpar.train import identity

L, M = keras.losses, keras.metrics
BATCH = 48


def compiled(loss="mse", *, metrics=("accuracy",), replicas=1, **options):
    keras.utils.set_random_seed(0)
    strategy = devices.strategy(simulate=replicas)
    with strategy.scope():
        inputs = keras.Input((8, 8, 1), dtype="uint8")
        x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
        model = keras.Model(inputs, keras.layers.Dense(10)(x))
        model.compile(keras.optimizers.SGD(0.1), loss, metrics=list(metrics), **options)
    return model


def squared(labels, logits):
    """A function of a user's own that takes integers, as `fit` gives them."""
    one_hot = keras.ops.one_hot(keras.ops.reshape(labels, (-1,)), 10)
    return keras.ops.mean(keras.ops.square(one_hot - logits), -1)


def smooth(labels, logits):
    """One that takes one-hot labels, and raises TypeError for integers."""
    return tf.nn.softmax_cross_entropy_with_logits(labels * 0.9 + 0.01, logits)


class Own(keras.losses.Loss):
    """A loss of a user's own that takes one-hot labels."""

    def call(self, labels, logits):
        return tf.nn.softmax_cross_entropy_with_logits(labels, logits)


ACCEPTED = [
    (L.SparseCategoricalCrossentropy(from_logits=True), False), (L.CategoricalCrossentropy(from_logits=True), True),
    (L.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1), True), (L.MeanAbsoluteError(), True),
    (L.CategoricalFocalCrossentropy(from_logits=True), True), (L.BinaryCrossentropy(from_logits=True), True),
    (L.BinaryFocalCrossentropy(from_logits=True), True), (L.CategoricalHinge(), True), (L.Hinge(), True),
    (L.SquaredHinge(), True), (L.MeanSquaredError(), True), (L.MeanAbsolutePercentageError(), True),
    (L.MeanSquaredLogarithmicError(), True), (L.Huber(), True), (L.LogCosh(), True), (L.CosineSimilarity(), True),
    ("mse", True), (["mse"], True), (L.mean_squared_error, True), (squared, False), (Own(), True), (smooth, True),
]  # fmt: skip
REFUSED = [
    (L.SparseCategoricalCrossentropy(), "takes probabilities"), ("categorical_crossentropy", "takes probabilities"),
    ("crossentropy", "takes probabilities"), (L.BinaryCrossentropy(), "takes probabilities"),
    (L.KLDivergence(), "takes probabilities"), (L.Poisson(), "takes probabilities"),
    (L.Dice(), r"gives \(\) for 4 images"), (L.Tversky(), r"gives \(\) for 4 images"),
    (L.Circle(), "does not take"), (L.CTC(), "does not take"), ("nonsense", "loss='nonsense' of compile"),
    (lambda labels, logits: keras.ops.mean(logits), r"gives \(\) for 4 images"),
    (lambda labels, logits: keras.ops.mean(logits, -1) - keras.ops.mean(logits), "another value together with others"),
    (lambda labels, logits: np.mean(logits, -1), "does not take labels.*NumPy"),
    (["mse", "mae"], "compile with one loss; this model has 2"),
]  # fmt: skip


def named(case):
    return str(getattr(case, "name", getattr(case, "__name__", case))) if not isinstance(case, bool) else None


def plain(loss, images, labels, model):
    """Return what plain Keras' `evaluate` says with the labels that the loss takes."""
    return float(np.ravel(model.evaluate(images, labels, batch_size=BATCH, verbose=0))[0])


@pytest.mark.parametrize(("loss", "one_hot"), ACCEPTED, ids=named)
def test_the_first_loss_is_that_of_plain_keras(digits, loss, one_hot):
    model = compiled(loss, loss_weights=[0.5])
    batch = next(iter(engine.train_batches(digits.train, devices.strategy(simulate=1), global_batch_size=BATCH)))
    images, labels = (member.numpy() for member in batch)
    expected = plain(
        loss, images, np.eye(10, dtype=np.float32)[labels] if one_hot else labels, compiled(loss, loss_weights=[0.5])
    )
    step = steps.Step(model, shards=4)
    step(iter(engine.train_batches(digits.train, model.distribute_strategy, global_batch_size=BATCH)), 1)
    assert step.loss.one_hot == one_hot
    assert step.counts.losses / step.counts.images == pytest.approx(expected, rel=1e-6)
    assert identity._plain(objective.name_of(model))["weights"] == [0.5]


@pytest.mark.parametrize(("loss", "text"), REFUSED, ids=named)
def test_a_loss_that_cannot_be_taken_is_refused_with_the_remedy(loss, text):
    with pytest.raises(errors.SettingsError, match=text) as refused:
        objective.build(compiled(loss))
    assert "\n" not in str(refused.value)


METRICS = {
    "categorical_accuracy": M.CategoricalAccuracy, "auc": lambda: M.AUC(from_logits=True, multi_label=True),
    "f1_score": M.F1Score, "top_k_categorical_accuracy": lambda: M.TopKCategoricalAccuracy(3),
    "sparse_top_k_categorical_accuracy": lambda: M.SparseTopKCategoricalAccuracy(3),
    "mean_io_u": lambda: M.MeanIoU(10, sparse_y_pred=False),
}  # fmt: skip


@pytest.mark.parametrize("replicas", [1, 2])
def test_each_metric_is_given_the_labels_that_it_takes(digits, replicas):
    loss = L.SparseCategoricalCrossentropy(from_logits=True)
    model = compiled(loss, metrics=["accuracy", *(make() for make in METRICS.values())], replicas=replicas)
    steps.install(model, shards=2)
    batches = engine.train_batches(digits.train, model.distribute_strategy, global_batch_size=BATCH)
    start = compiled(loss)
    images, labels = next(
        iter(engine.train_batches(digits.train, devices.strategy(simulate=1), global_batch_size=BATCH))
    )
    logits = start.predict(images, verbose=0)
    history = model.fit(batches, steps_per_epoch=1, verbose=0).history
    for name, make in METRICS.items():
        metric = make()
        sparse = name in ("sparse_top_k_categorical_accuracy", "mean_io_u")
        metric.update_state(labels if sparse else tf.one_hot(labels, 10), logits)
        key = next(key for key in history if key.rstrip("_0123456789") == name)
        assert np.allclose(history[key][0], metric.result(), rtol=1e-4), name


def brier(one_hot, logits):
    return keras.ops.sum((one_hot - keras.ops.softmax(logits)) ** 2, -1)


def second(labels, logits):
    return M.sparse_top_k_categorical_accuracy(labels, logits, k=2)


class SoftPrecision(M.Precision):
    def update_state(self, y_true, y_pred, sample_weight=None):
        super().update_state(y_true, keras.ops.softmax(y_pred), sample_weight)


class OwnF1(M.F1Score):
    pass


class OwnAccuracy(M.CategoricalAccuracy):
    """With labels in the other form it computes something, and something wrong."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        super().update_state(y_true, y_pred, sample_weight)


class Right(M.Metric):
    """As in Keras' guide: its result is its variable."""

    def __init__(self):
        super().__init__(name="right")
        self.total = self.add_weight(name="total", initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.total.assign_add(keras.ops.sum(M.sparse_categorical_accuracy(y_true, y_pred)))

    def result(self):
        return self.total


@pytest.mark.parametrize(
    ("make", "one_hot"),
    [
        (lambda: M.MeanMetricWrapper(lambda y, z: M.categorical_accuracy(y, z), "same"), True),
        (lambda: M.MeanMetricWrapper(functools.partial(brier), "brier"), True),
        (lambda: M.MeanMetricWrapper(second, "second"), False),  # it takes no one-hot labels
        (lambda: SoftPrecision(0.1), True), (OwnF1, True), (OwnAccuracy, True), (Right, False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("of_loss", [L.CategoricalCrossentropy, L.SparseCategoricalCrossentropy])
def test_a_metric_of_your_own_gets_the_labels_that_it_takes(make, one_hot, of_loss):
    if of_loss is L.SparseCategoricalCrossentropy and make().name == "same":
        pytest.skip("it takes both forms, so it gets that of the loss")
    loss = objective.build(compiled(of_loss(from_logits=True), metrics=[make()]))
    draw, metric = np.random.default_rng(0), make()
    labels, logits = draw.integers(0, 10, 50).astype("int32"), draw.standard_normal((50, 10)).astype("float32")
    metric.update_state(np.eye(10)[labels] if one_hot else labels, logits)
    other = labels[::-1].copy()
    objective.metrics_of(loss, other, logits)  # leaves no trace
    (found,) = objective.metrics_of(loss, labels, logits).values()
    assert np.allclose(found, metric.result()) and np.any(found)


def takes_both(labels, logits):
    return keras.ops.max(logits, axis=-1)


@pytest.mark.parametrize(
    ("of_loss", "one_hot"), [(L.SparseCategoricalCrossentropy, False), (L.CategoricalCrossentropy, True)]
)
def test_a_function_that_takes_both_forms_gets_that_of_the_loss(of_loss, one_hot):
    loss = objective.build(compiled(of_loss(from_logits=True), metrics=[takes_both]))
    assert [form for _, form in loss.metrics] == [one_hot]


def test_many_models_in_one_program_print_nothing_about_retracing(caplog):
    for _ in range(7):
        objective.build(compiled(L.SparseCategoricalCrossentropy(from_logits=True)))
    assert "retracing" not in caplog.text


class InPython(M.Metric):
    def __init__(self):
        super().__init__(name="in_python")
        self.values = []

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.values.append(keras.ops.mean(y_pred))

    def result(self):
        return sum(self.values)


class InNumPy(InPython):
    def update_state(self, y_true, y_pred, sample_weight=None):
        self.values.append(np.mean(np.asarray(y_pred)))


class CountsBatches(M.Mean):
    """A variable for the sum, and Python for the rest."""

    def __init__(self):
        super().__init__(name="counts_batches")
        self.batches, self.last, self.seen = 0, None, {}

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.batches += 1
        self.last = self.seen["last"] = keras.ops.mean(y_pred)
        return super().update_state(self.last)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (InPython, r"keeps self\.values in no variable"),
        (CountsBatches, r"keeps self\.batches, self\.last, self\.seen in no variable"),
        (InNumPy, "write it with keras.ops"),
    ],
)
def test_a_metric_that_a_traced_step_would_freeze_is_refused(make, text):
    with pytest.raises(errors.SettingsError, match=text) as refused:
        objective.build(compiled(L.SparseCategoricalCrossentropy(from_logits=True), metrics=[make()]))
    assert "\n" not in str(refused.value)


WRONG_METRICS = [M.AUC(), M.Precision(), M.KLDivergence(), M.MeanIoU(10), "binary_accuracy", M.F1Score(threshold=0.5)]


@pytest.mark.parametrize("metric", WRONG_METRICS, ids=named)
def test_a_metric_that_cannot_be_taken_is_refused_with_the_remedy(metric):
    model = compiled(L.SparseCategoricalCrossentropy(from_logits=True), metrics=[metric])
    for _ in range(2):  # the second time it is built already
        with pytest.raises(errors.SettingsError, match=r"metric .*(leave it out)"):
            objective.build(model)


def test_weighted_metrics_are_refused_and_two_of_one_name_are_both_told(digits):
    loss = L.SparseCategoricalCrossentropy(from_logits=True)
    with pytest.raises(errors.SettingsError, match="weighted_metrics"):
        objective.build(compiled(loss, weighted_metrics=["accuracy"]))
    assert steps.Step(compiled(loss, metrics=["accuracy", "accuracy"])).more_metrics
    assert not steps.Step(compiled(loss)).more_metrics
    objective.build(compiled(loss, metrics=[M.BinaryAccuracy(threshold=0)]))


class AsksFor(keras.layers.Layer):
    """A layer that looks across replicas."""

    def __init__(self, what):
        super().__init__()
        self.what = what

    def call(self, x):
        return x * tf.cast(self.what(), x.dtype)


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize(
    "what",
    [
        lambda: tf.distribute.get_strategy().num_replicas_in_sync,
        lambda: tf.distribute.get_replica_context().num_replicas_in_sync,
        lambda: tf.distribute.get_replica_context().replica_id_in_sync_group,
        lambda: tf.distribute.get_replica_context().all_reduce("SUM", tf.constant(1.0)),
    ],
    ids=["number", "number of its context", "id", "all_reduce"],
)
def test_a_layer_that_looks_across_replicas_is_refused_in_one_line(digits, what, replicas):
    strategy = devices.strategy(simulate=replicas)
    with strategy.scope():
        inputs = keras.Input((8, 8, 1), dtype="uint8")
        x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
        layer = AsksFor(lambda: 1)
        model = keras.Model(inputs, keras.layers.Dense(10)(layer(x)))
        model.compile("sgd", L.SparseCategoricalCrossentropy(from_logits=True))
    steps.install(model, shards=2)
    layer.what = what
    batches = engine.train_batches(digits.train, strategy, global_batch_size=BATCH)
    with pytest.raises(errors.SettingsError, match="a layer of the model looks across replicas"):
        model.fit(batches, steps_per_epoch=1, verbose=0)
    assert strategy.num_replicas_in_sync == replicas
    layer.what = lambda: 1
    model.fit(batches, steps_per_epoch=1, verbose=0)


def test_one_hot_losses_keep_the_law(digits):
    found = []
    for replicas in (1, 2):
        strategy = devices.strategy(simulate=replicas)
        model = tiny(strategy)
        with strategy.scope():
            loss = L.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
            model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy", M.F1Score()])
        step = steps.Step(model, shards=4)
        step(iter(engine.train_batches(digits.train, strategy, global_batch_size=BATCH)), 3)
        found.append((step.counts.losses, [w.tobytes() for w in model.get_weights()]))
    assert found[0] == found[1]
