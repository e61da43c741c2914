"""The law: the same bits for every number of replicas and of steps per call."""

import contextlib
import traceback

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import LOSS, tiny

from tfpar import devices, engine, errors, models, steps
from tfpar.steps import accepted, exchange, randomness
from tfpar.train import checkpoint, inference

BATCH = 48
WEIGHTS = np.linspace(0.5, 2, 10)


def adamw():
    return keras.optimizers.AdamW(0.01, global_clipnorm=1.0)


def bits(model):
    """Return everything that training leaves behind, as bytes."""
    return [np.asarray(v).tobytes() for v in checkpoint.variables_of(model)]


def train(digits, *, per_call=1, **setting):
    """Return (bits, losses and hits, logits) after a few steps."""
    return next(train_several(digits, per_calls=[per_call], **setting))


def train_several(digits, *, replicas, shards, per_calls, count=7, optimizer=None, make=tiny, all_reduce="ordered"):
    """Yield the same for several numbers of steps per call, each from the same start, with one trace."""
    strategy = devices.strategy(simulate=replicas)
    model = make(strategy, optimizer=optimizer)
    step = steps.Step(model, shards=shards, seed=5, learning_rate=lambda n: 0.1 / (n + 1), all_reduce=all_reduce)
    infer = inference.Inference(model, loss=step.loss)
    variables = checkpoint.variables_of(model)
    start = [({"shape": list(v.shape)}, np.asarray(v).tobytes()) for v in variables]
    for per_call in per_calls:
        checkpoint.restore(variables, start, strategy)
        step.counts.step, step.last_rate = 0, None
        step.counts.restart()
        iterator = iter(
            engine.train_batches(
                digits.train, strategy, global_batch_size=BATCH, seed=1, augment="crop-flip", class_weights=WEIGHTS
            )
        )
        while step.counts.step < count:
            step(iterator, min(per_call, count - step.counts.step))
        logits, losses = infer(digits.validation)
        yield (
            bits(model),
            (step.counts.losses, step.counts.correct, step.counts.images),
            logits.tobytes() + losses.tobytes(),
        )


@pytest.mark.arithmetic
@pytest.mark.parametrize(
    ("shards", "replicas", "per_call"),
    [
        (1, 1, 3),
        (4, 2, 1),
        (4, 4, 3),
        pytest.param(6, 3, 8, marks=pytest.mark.slow),
        pytest.param(12, 3, 1, marks=pytest.mark.by_hand),
    ],
)
def test_replicas_and_steps_per_call_change_no_bit(digits, shards, replicas, per_call, oracle):
    assert train(digits, replicas=replicas, shards=shards, per_call=per_call) == oracle(shards)


@pytest.mark.parametrize(("shards", "replicas", "at_once"), [(1, 1, 1), (4, 1, 2), (4, 2, 1)])
def test_one_cpu_computes_two_shards_at_a_time(shards, replicas, at_once):
    step = steps.Step(tiny(devices.strategy(simulate=replicas)), shards=shards)
    assert step.shards_at_once == at_once


@pytest.fixture(scope="module")
def oracle(digits):
    """The run on one device, one step per call, by number of shards."""
    known = {}

    def run(shards):
        if shards not in known:
            known[shards] = train(digits, replicas=1, shards=shards)
        return known[shards]

    return run


@pytest.mark.slow
@pytest.mark.arithmetic
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_with_adamw(digits, policy):
    keras.config.set_dtype_policy(policy)
    assert train(digits, replicas=2, shards=4, per_call=3, optimizer=adamw) == train(
        digits, replicas=1, shards=4, optimizer=adamw
    )


@pytest.mark.by_hand
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("optimizer", [None, adamw], ids=["sgd", "adamw"])
@pytest.mark.parametrize("shards", [1, 2, 4, 6, 8, 12])
def test_the_whole_grid(digits, shards, optimizer, policy):
    keras.config.set_dtype_policy(policy)
    one = None
    for replicas in (r for r in range(1, 9) if shards % r == 0):
        several = train_several(digits, replicas=replicas, shards=shards, per_calls=[1, 3, 8], optimizer=optimizer)
        for per_call, result in zip((1, 3, 8), several, strict=True):
            one = one or result
            assert result == one, (replicas, per_call)


FAMILIES = [
    "resnet20", "MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "EfficientNetV2B0", "ResNet50", "ResNet50V2",
    "DenseNet121", "VGG16", "ConvNeXtTiny", "NASNetMobile", "Xception", "InceptionV3", "InceptionResNetV2",
]  # fmt: skip


@pytest.mark.by_hand
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FAMILIES)
def test_one_of_each_family(digits, name):
    from tfpar import models

    side = 75 if "Inception" in name or name == "Xception" else 32
    images = np.repeat(np.repeat(digits.train.images[:64], side // 8 + 1, 1), side // 8 + 1, 2)[:, :side, :side]
    split = (np.ascontiguousarray(np.repeat(images, 3, 3)), digits.train.labels[:64], digits.train.sources[:64])
    results = []
    for replicas in (1, 2, 4):
        strategy = devices.strategy(simulate=replicas)
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model = models.build(name, (side, side, 3), 10)
            model.compile(keras.optimizers.SGD(0.01, momentum=0.9), LOSS, metrics=["accuracy"])
        step = steps.Step(model, shards=4)
        step(iter(engine.train_batches(split, strategy, global_batch_size=8)), 2)
        results.append((bits(model), step.counts.losses))
    assert results[0] == results[1] == results[2]


@pytest.mark.arithmetic
@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_the_first_loss_is_plain_keras_loss(digits, replicas):
    strategy = devices.strategy(simulate=replicas)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1), dtype="uint8"),
                keras.layers.Rescaling(1 / 255),
                keras.layers.Flatten(),
                keras.layers.Dense(10),
            ]
        )
        model.compile(keras.optimizers.SGD(0.1), LOSS, metrics=["accuracy"])
    images, labels = next(
        iter(engine.train_batches(digits.train, devices.strategy(simulate=1), global_batch_size=BATCH))
    )
    expected = float(LOSS(labels, model(images)))
    step = steps.Step(model, shards=4)
    step(iter(engine.train_batches(digits.train, strategy, global_batch_size=BATCH)), 1)
    assert step.counts.losses / step.counts.images == pytest.approx(expected, rel=1e-6)


@pytest.mark.arithmetic
@pytest.mark.parametrize("class_weights", [None, WEIGHTS], ids=["even", "weighted"])
def test_one_shard_is_plain_keras_training(digits, class_weights):
    """Without random layers, one shard's step is Keras' own step, penalties, decay and class weights included."""

    def make(rate=0.1):
        keras.utils.set_random_seed(0)
        layers = [
            keras.Input((8, 8, 1), dtype="uint8"), keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(4, 3, use_bias=False),
            keras.layers.BatchNormalization(), keras.layers.ReLU(), keras.layers.Flatten(),
            keras.layers.Dense(10, kernel_regularizer="l2"),
        ]  # fmt: skip
        model = keras.Sequential(layers)
        model.compile(
            keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=1e-3), LOSS, metrics=["accuracy"]
        )
        return model

    strategy = devices.strategy(simulate=1)
    batches = engine.train_batches(digits.train, strategy, global_batch_size=BATCH, class_weights=class_weights)
    plain, ours = make(), make()
    plain.fit(batches, steps_per_epoch=3, verbose=0)
    steps.install(ours, shards=1)
    ours.fit(batches, steps_per_epoch=3, verbose=0)
    for a, b in zip(plain.get_weights(), ours.get_weights(), strict=True):
        assert np.allclose(a, b, atol=1e-5)
    assert not np.allclose(make().get_weights()[0], ours.get_weights()[0], atol=1e-3)


@pytest.mark.slow
@pytest.mark.arithmetic
def test_under_fit_any_strategy_gives_the_same_history(digits):
    histories = []
    for replicas in (1, 2):
        strategy = devices.strategy(simulate=replicas)
        model = tiny(strategy, metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(3, name="top3")])
        steps.install(model, shards=4)
        batches = engine.train_batches(digits.train, strategy, global_batch_size=BATCH)
        histories.append(model.fit(batches, steps_per_epoch=4, epochs=2, verbose=0).history)
        assert len(model.evaluate(digits.validation.images, digits.validation.labels, verbose=0)) == 3
    assert histories[0] == histories[1] and set(histories[0]) == {"loss", "accuracy", "top3"}
    assert histories[0]["loss"][1] < histories[0]["loss"][0]


class Counting(keras.callbacks.Callback):
    """Notes which steps Keras counts."""

    def on_train_begin(self, logs=None):
        self.counted = []

    def on_train_batch_end(self, batch, logs=None):
        self.counted.append(batch)


@pytest.mark.parametrize(
    "replicas", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.by_hand)]
)
def test_fit_with_several_steps_per_call_takes_exactly_the_steps_of_the_epoch(digits, replicas):
    results = []
    for per_call in (1, 4):
        strategy = devices.strategy(simulate=replicas)
        model, counting = tiny(strategy), Counting()
        step = steps.install(model, shards=4, steps_per_call=per_call, steps_per_epoch=10)
        calls, plain = [], step.run
        step.run = lambda *given, calls=calls, plain=plain: (calls.append(int(given[2])), plain(*given))[1]
        batches = engine.train_batches(digits.train, strategy, global_batch_size=BATCH)
        history = model.fit(batches, steps_per_epoch=10, epochs=2, verbose=0, callbacks=[counting]).history
        assert (
            step.counts.step == int(np.asarray(model.optimizer.iterations)) == 20
            and counting.counted == [*range(10)] * 2
        )
        assert calls == ([1] * 20 if per_call == 1 else [4, 4, 2] * 2)
        results.append(
            (history, bits(model), model.evaluate(digits.validation.images, digits.validation.labels, verbose=0))
        )
    assert results[0] == results[1]


def test_a_fit_that_was_ended_inside_a_call_does_not_shift_the_next(digits):
    model = tiny()
    step = steps.install(model, shards=2, steps_per_call=4, steps_per_epoch=10)
    calls, plain = [], step.run
    step.run = lambda *given: (calls.append(int(given[2])), plain(*given))[1]
    batches = engine.train_batches(digits.train, model.distribute_strategy, global_batch_size=BATCH)
    stop = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: setattr(model, "stop_training", batch == 5)
    )
    with pytest.raises(errors.SettingsError, match="2 steps into a call"):
        model.fit(batches, steps_per_epoch=10, verbose=0, callbacks=[stop])
    assert step.counts.step == 4  # the steps of full calls
    model.fit(batches, steps_per_epoch=10, verbose=0)
    assert step.counts.step == 14 and calls == [4, 4, 4, 2]


@pytest.mark.slow
def test_compiling_again_puts_the_step_back(digits):
    results = []
    for replicas in (1, 2):
        strategy = devices.strategy(simulate=replicas)
        model = tiny(strategy)
        step = steps.install(model, shards=4, seed=7, batch_norm="keras")
        batches = engine.train_batches(digits.train, strategy, global_batch_size=BATCH)
        model.fit(batches, steps_per_epoch=2, verbose=0)
        with strategy.scope():
            model.compile(keras.optimizers.AdamW(0.01), LOSS, metrics=["accuracy"])
        model.fit(batches, steps_per_epoch=2, verbose=0)
        assert step.counts.step == 4 and step.model.optimizer is model.optimizer
        again = model.train_function.step
        assert (again.exchange.shards, again.seed, again.batch_norm) == (4, 7, "keras")
        results.append(bits(model))
    assert results[0] == results[1]
    with pytest.raises(errors.SettingsError, match="probabilities"):
        model.compile("sgd", "sparse_categorical_crossentropy")
    model.compile("sgd", LOSS)  # the optimizer is created under the strategy
    model.fit(batches, steps_per_epoch=2, verbose=0)
    assert step.model.train_function.step.counts.step == 6


@pytest.mark.parametrize(
    "given", [{"steps_per_call": 4}, {"steps_per_call": 0}, {"steps_per_call": 513, "steps_per_epoch": 9}]
)
def test_steps_per_call_out_of_range_are_refused(given):
    with pytest.raises(errors.SettingsError, match=r"steps_per_(call|epoch)="):
        steps.install(tiny(), **given)


@pytest.mark.arithmetic
@pytest.mark.slow
def test_a_model_compiled_for_xla_keeps_the_law(digits):
    results = []
    for replicas in (1, 2):
        model = tiny(devices.strategy(simulate=replicas))
        with model.distribute_strategy.scope():
            model.compile(keras.optimizers.SGD(0.1), LOSS, jit_compile=True)
        step = steps.Step(model, shards=4)
        batches = engine.train_batches(digits.train, model.distribute_strategy, global_batch_size=BATCH, augment="flip")
        step(iter(batches), 3)
        results.append((bits(model), step.counts.losses))
        assert "_XlaMustCompile" in step.shard.function.function_def.attr
    assert results[0] == results[1]


def test_xla_with_determinism_and_max_pooling_is_refused(monkeypatch):
    """XLA itself would end with an error of TensorFlow."""
    monkeypatch.setattr(accepted, "is_op_determinism_enabled", lambda: True)
    model = models.small_cnn((8, 8, 1), 10)
    batch = np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, np.int32)
    for jit_compile in (False, True):
        model.compile("sgd", LOSS, jit_compile=jit_compile)
        refused = pytest.raises(errors.SettingsError, match="no deterministic gradient of max pooling; leave out --xla")
        with refused if jit_compile else contextlib.nullcontext():
            steps.Step(model).gradient(batch)


def test_a_plain_fit_afterwards_is_keras_own_again(digits):
    strategy = devices.strategy(simulate=2)
    model = tiny(strategy)
    batches = engine.train_batches(digits.train, strategy, global_batch_size=BATCH)
    steps.install(model, shards=2)
    model.fit(batches, steps_per_epoch=2, verbose=0)
    model.make_train_function(force=True)
    model.fit(batches, steps_per_epoch=2, verbose=0)
    trainable = [{copy.numpy().tobytes() for copy in v.value.values} for v in model.trainable_variables]
    assert all(len(copies) == 1 for copies in trainable)


@pytest.mark.slow
def test_a_frozen_network_is_neither_sent_nor_changed(digits):
    from tfpar import models

    images = np.ascontiguousarray(np.repeat(np.repeat(np.repeat(digits.train.images[:48], 4, 1), 4, 2), 3, 3))
    strategy = devices.strategy(simulate=3)
    with strategy.scope():
        model = models.backbone("MobileNetV2", (32, 32, 3), 10)
        model.layers[-2].trainable = False  # as freeze=True does with pretrained weights
        model.compile("sgd", LOSS)
    before = [w.tobytes() for w in model.get_weights()]
    step = steps.Step(model, shards=3)
    step(iter(engine.train_batches((images, digits.train.labels[:48]), strategy, global_batch_size=12)), 2)
    changed = [v.path for a, v in zip(before, model.weights, strict=True) if a != v.numpy().tobytes()]
    assert step.shard.averaged == [] and changed and all(path.startswith("logits") for path in changed)


def test_batches_that_cannot_be_cut_are_refused(digits):
    model = tiny()
    steps.install(model, shards=4)
    with pytest.raises(errors.SettingsError, match="cannot be cut into 4 equal shards; give batches from engine"):
        model.fit(digits.train.images, digits.train.labels, batch_size=100, verbose=0)
    with pytest.raises(errors.SettingsError, match="cannot be cut into 4 equal shards"):
        model.train_on_batch(digits.train.images[:10], digits.train.labels[:10])
    for batch in (48, 96):  # another size later is no harm
        batches = engine.train_batches(digits.train, devices.strategy(simulate=1), global_batch_size=batch)
        model.fit(batches, steps_per_epoch=2, verbose=0)


@pytest.mark.parametrize(("label", "replicas"), [(10, 1), (-1, 2)])
def test_labels_outside_of_the_logits_are_refused(digits, label, replicas):
    labels = digits.train.labels.copy()
    labels[5] = label
    model = tiny(strategy := devices.strategy(simulate=replicas))
    steps.install(model, shards=2)
    batches = engine.train_batches((digits.train.images, labels), strategy, global_batch_size=128)
    with pytest.raises(errors.SettingsError, match=f"label {label}: the model has 10 logits, so labels are 0 to 9"):
        model.fit(batches, steps_per_epoch=20, verbose=0)


@pytest.mark.slow
def test_fast_is_close_and_not_the_same(digits, oracle):
    ordered, fast = oracle(4), train(digits, replicas=4, shards=4, all_reduce="fast")
    assert fast[1][0] == pytest.approx(ordered[1][0], rel=1e-3) and fast[0] != ordered[0]


def test_a_step_depends_on_its_number_and_random_layers_on_the_shard(digits):
    state = tf.constant([7, 0], tf.uint32)
    keys = {
        tuple(randomness.seed_state(state, s, tf.constant(n, tf.int64), tf.constant(v)).numpy())
        for s in (0, 1)
        for n in range(4)
        for v in range(4)
    }
    assert len(keys) == 32 and all(second == 0 for _, second in keys)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m.compile(keras.optimizers.SGD(gradient_accumulation_steps=2), LOSS), "more shards"),
        (lambda m: m.compile(keras.optimizers.SGD(use_ema=True), LOSS), "leave it out"),
        (lambda m: m.compile("sgd", keras.losses.SparseCategoricalCrossentropy()), "from_logits=True"),
        (lambda m: m.compile("sgd", "sparse_categorical_crossentropy"), "from_logits=True"),
        (lambda m: m.compile("sgd", lambda y, p: tf.reduce_mean(p)), "instead of one value for each"),
        (
            lambda m: m.compile("sgd", lambda y, p: tf.reduce_mean(LOSS(y, p))),
            r"gives \(\) for 4 images instead of one value",
        ),
        (lambda m: m.compile("sgd", LOSS, steps_per_execution=4), "steps_per_execution=1"),
    ],
)
def test_what_breaks_the_law_is_refused_with_the_remedy(change, text):
    model = tiny()
    change(model)
    with pytest.raises(errors.SettingsError, match=text):
        steps.install(model)


def test_models_that_are_refused():
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    flat = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    for outputs, text in (
        (keras.layers.Dense(3, activation="softmax")(flat), "ends in a softmax or sigmoid; give logits"),
        (keras.layers.Softmax()(keras.layers.Dense(3)(flat)), "ends in a softmax or sigmoid; give logits"),
        (keras.layers.Dense(3)(keras.layers.BatchNormalization(synchronized=True)(flat)), "synchronized=False"),
    ):
        model = keras.Model(inputs, outputs)
        model.compile("sgd", LOSS)
        with pytest.raises(errors.SettingsError, match=text):
            steps.install(model)
    with pytest.raises(errors.SettingsError, match="not compiled"):
        steps.install(keras.Model(inputs, keras.layers.Dense(3)(flat)))
    with pytest.raises(
        errors.SettingsError,
        match="3 shards cannot be divided evenly among 2 replicas; take a multiple of 2, such as 4",
    ):
        steps.install(tiny(devices.strategy(simulate=2)), shards=3)


@pytest.mark.by_hand
def test_the_seal_around_the_shard_is_still_needed(digits, monkeypatch):
    """Fails when the graph rewriter no longer fuses across the border, and `not_inlined` can go."""
    from tfpar import models

    def resnet(strategy, optimizer=None):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model = models.resnet((8, 8, 1), 10)
            model.compile(keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=5e-4), LOSS, metrics=["accuracy"])
        return model

    arguments = {"shards": 4, "count": 6, "make": resnet}
    assert train(digits, replicas=1, **arguments) == train(digits, replicas=4, **arguments)
    monkeypatch.setattr(exchange, "not_inlined", tf.function)
    assert train(digits, replicas=1, **arguments) != train(digits, replicas=4, **arguments)


def test_a_mistake_in_a_loss_of_the_users_own_keeps_its_stack_trace():
    def mistaken(labels, logits):
        return len(3) if tf.executing_eagerly() else logits[:, 0]  # Keras' own trial of it is a graph

    model = tiny()
    model.compile("sgd", mistaken)
    with pytest.raises(errors.SettingsError, match="has no len") as caught:
        steps.Step(model)
    assert [frame.name for frame in traceback.extract_tb(caught.value.__cause__.__traceback__)][-1] == "mistaken"
