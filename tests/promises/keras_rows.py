"""What a Keras user overrides or passes, as one table: honoured with the numbers of plain Keras, or refused with a remedy.

A row begins with what it is about: `Class.attribute`, `compile(argument)`, `fit(argument)`, or the kind of thing.
`test_keras_rows` tries each row beside plain Keras. `keras_attributes` names the attributes of Keras that no row is about.
"""

import random
from random import uniform

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import LOSS
from numpy.random import rand

layers, losses, metrics, optimizers = keras.layers, keras.losses, keras.metrics, keras.optimizers
SGD = optimizers.SGD


def network(*extra, kind=keras.Model, last=None, first=None, **options):
    inputs = keras.Input((8, 8, 1), dtype="uint8") if first is None else first
    x = layers.Flatten()(layers.Rescaling(1 / 255)(inputs))
    for layer in extra:
        x = layer(x)
    x = layers.Dense(10, kernel_initializer="zeros", name="logits")(x)
    return kind(inputs, last(x) if last else x, **options)


def compiled(model=None, **options):
    model = model or network()
    model.compile(**{"optimizer": SGD(0.1, momentum=0.9), "loss": LOSS, "metrics": ["accuracy"]} | options)
    return model


def optimizer(kind=SGD, rate=0.1, **options):
    return lambda: compiled(network(layers.Dense(6)), optimizer=kind(rate, **options))


def made(*extra, **options):
    return lambda: compiled(network(*(layer() for layer in extra), **options))


# ---- what users write


class OwnCall(keras.Model):
    def call(self, x, training=None, mask=None):
        return super().call(x, training=training) * (2.0 if training else 1.0)


class OwnResult(keras.Model):
    def get_metrics_result(self):
        return super().get_metrics_result() | {"more": 2 * super().get_metrics_result()["accuracy"]}


class OwnFit(keras.Model):
    def fit(self, *arguments, **options):
        history = super().fit(*arguments, **options)
        history.history["fitted"] = [1]
        return history


class OwnCompile(keras.Model):
    def compile(self, *arguments, factor=1.0, **options):
        super().compile(*arguments, **options)
        self.factor = factor


class OwnTest(keras.Model):
    def test_step(self, data):
        return {**super().test_step(data), "seven": 7.0}


class OwnPredict(keras.Model):
    def predict_step(self, data):
        return keras.ops.softmax(super().predict_step(data))


def overriding(name):
    """Return a class of models whose method of this name calls that of Keras."""

    def method(self, *arguments, **options):
        return getattr(super(kind, self), name)(*arguments, **options)

    kind = type("Own", (keras.Model,), {name: method})
    return lambda: compiled(network(kind=kind))


class OwnTracker(keras.Model):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.size = metrics.Mean(name="size")

    def call(self, x, training=None):
        y = super().call(x, training=training)
        self.size.update_state(y)
        return y


class Subclassed(keras.Model):
    def call(self, x):
        return x


class Penalized(layers.Layer):
    def call(self, x):
        self.add_loss(0.01 * keras.ops.mean(x**2))
        return x


class Averaging(layers.Layer):
    def __init__(self, kind="float32"):
        super().__init__()
        self.kind = kind

    def build(self, shape):
        self.seen = self.add_weight(shape=(), initializer="zeros", dtype=self.kind, trainable=False)

    def call(self, x, training=None):
        if training:
            self.seen.assign(self.seen + 1)
        return x


class Branching(Averaging):
    def call(self, x, training=None):
        if training:
            tf.cond(keras.ops.max(x) > 0, lambda: self.seen.assign_add(1.0), lambda: self.seen.assign_add(2.0))
        return x


class Raw(Averaging):
    def call(self, x, training=None):
        if training:
            self.seen.value.assign_add(1.0)
        return x


class Unused(layers.Layer):
    """Has a weight that the loss does not depend on: Keras leaves it alone, also its decay."""

    def build(self, shape):
        self.idle = self.add_weight(shape=(3,), initializer="ones")

    def call(self, x):
        return x


class Measured(layers.Layer):
    def __init__(self):
        super().__init__()
        self.size = metrics.Mean(name="size")

    def call(self, x):
        self.size.update_state(x)
        return x


OUTSIDE, GENERATOR = [], []  # filled by the test: importing this starts nothing


class Outside(layers.Layer):
    def call(self, x):
        return x * OUTSIDE[0]


class OfTensorFlow(layers.Layer):
    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def call(self, x):
        return x + self.draw(x)


class WithGenerator(layers.Layer):
    def __init__(self, own, number):
        super().__init__()
        self.own, self.number = own, number

    def call(self, x):
        return x + self.number(self.own)


class Doubled(SGD):
    def apply_gradients(self, grads_and_vars):
        return super().apply_gradients([(2 * gradient, variable) for gradient, variable in grads_and_vars])


class Halved(SGD):
    def apply(self, grads, trainable_variables=None):
        return super().apply([0.5 * gradient for gradient in grads], trainable_variables)


class Signs(SGD):
    def update_step(self, gradient, variable, learning_rate):
        self.assign_sub(variable, learning_rate * keras.ops.sign(gradient))


class Scaling(SGD):
    def scale_loss(self, loss):
        return 3.0 * loss


class OwnFinal(SGD):
    def finalize_variable_values(self, var_list):
        for variable in var_list:
            variable.assign(2 * variable)


class Summed(losses.Loss):
    def call(self, y_true, y_pred):
        return keras.ops.sum(keras.ops.square(keras.ops.one_hot(keras.ops.reshape(y_true, (-1,)), 10) - y_pred), -1)


class Weighing(losses.Loss):
    def __call__(self, y_true, y_pred, sample_weight=None):
        return 2.0 * super().__call__(y_true, y_pred, sample_weight)


class Largest(metrics.Metric):
    def __init__(self):
        super().__init__(name="largest")
        self.most = self.add_weight(shape=(), initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.most.assign(keras.ops.maximum(self.most, keras.ops.max(y_pred)))

    def result(self):
        return {"largest": 1 * self.most, "largest_twice": 2 * self.most}


class Ramp(optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.05 * (1.0 + keras.ops.cast(step, "float32"))


def l2_of_logits(y_true, y_pred):
    return keras.ops.mean(keras.ops.square(y_pred), axis=-1)


def without_decay(**which):
    made = optimizers.AdamW(0.01, weight_decay=0.5)
    model = network()
    made.exclude_from_weight_decay(**which if which else {"var_list": [model.layers[-1].kernel]})
    return compiled(model, optimizer=made)


def in_a_list():
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    return compiled(keras.Model([inputs], network().layers[-1](layers.Flatten()(layers.Rescaling(1 / 255)(inputs)))))


def in_a_dictionary():
    inputs = keras.Input((8, 8, 1), dtype="uint8", name="image")
    return compiled(keras.Model({"image": inputs}, network()(inputs)))


def sequential(*more):
    extra = [layers.Rescaling(1 / 255), layers.Flatten(), *more, layers.Dense(10, kernel_initializer="zeros")]
    return keras.Sequential([keras.Input((8, 8, 1), dtype="uint8"), *extra])


def shared():
    layer = layers.Dense(64, activation="tanh")
    return compiled(network(layer, layer))


def branches():
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    x = layers.Rescaling(1 / 255)(inputs)
    both = [layers.Flatten()(layers.Conv2D(3, 3)(x)), layers.Flatten()(x)]
    return compiled(keras.Model(inputs, layers.Dense(10)(layers.Concatenate()(both))))


def nested():
    inner = keras.Sequential([keras.Input((64,)), layers.Dense(8), layers.Dropout(0.0)])
    return compiled(network(keras.Model(inner.inputs, inner(inner.inputs[0]))))


def low_rank():
    layer = layers.Dense(16)
    model = network(layer)
    layer.enable_lora(2)
    return compiled(model)


def rows_as_a_sequence(batch_shape=(None, 8, 8, 1), **options):
    inputs = keras.Input(batch_shape=batch_shape, dtype="uint8")
    x = layers.Masking()(layers.Reshape((8, 8))(layers.Rescaling(1 / 255)(inputs)))
    return compiled(keras.Model(inputs, layers.Dense(10)(layers.LSTM(6, **options)(x))))


def half(**options):
    """Under mixed_float16 Keras wraps the optimizer; the policy is the layers' own, so nothing global is set."""
    policy = keras.DTypePolicy("mixed_float16")
    last = layers.Dense(10, kernel_initializer="zeros", dtype="float32")
    model = network(layers.Dense(8, dtype=policy), last=lambda x: last(x))
    model.dtype_policy = policy
    return compiled(model, **options)


def only_input(**options):
    return lambda: compiled(network(first=keras.Input(**options)))


def frozen():
    model = network()
    model.trainable = False
    return compiled(model)


def two_inputs():
    more = keras.Input((3,))
    model = network()
    return compiled(keras.Model([model.input, more], layers.Concatenate()([model.output, more])))


def binary():
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    model = keras.Model(inputs, layers.Dense(1)(layers.Flatten()(inputs)))
    return compiled(model, loss=losses.BinaryCrossentropy(from_logits=True), metrics=None)


def ending(activation):
    return lambda: compiled(network(last=layers.Dense(10, activation=activation)))


def masked():
    return compiled(network(layers.Masking(), layers.Dense(5)))


def of_all_sizes():
    inputs = keras.Input((None, None, 1), dtype="uint8")
    return compiled(
        keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(layers.Rescaling(1 / 255)(inputs))))
    )


def outputs(of):
    model = network()
    return compiled(keras.Model(model.input, of(model.output)))


def several_optimizers():
    if not hasattr(optimizers, "OptimizerMap"):
        pytest.skip("this version of Keras has no MultiOptimizer")
    table = optimizers.OptimizerMap(SGD(0.1), {"logits/.*": optimizers.Adam(0.01)})
    return compiled(optimizer=optimizers.MultiOptimizer(table))


# ---- the rows

HONOURED = {
    "Layer.call, a generator of NumPy with a seed": made(lambda: OfTensorFlow(lambda x: np.random.default_rng(0).random())),
    "Layer.call, a generator that draws nothing": made(lambda: WithGenerator(np.random.default_rng(1), lambda g: 1.0)),
    # models
    "model, functional": compiled,
    "model, Sequential with Input": lambda: compiled(sequential()),
    "model, its input in a list": in_a_list,
    "model, its input in a dictionary": in_a_dictionary,
    "model, nested": nested,
    "model, a layer used twice": shared,
    "model, branches": branches,
    "model, float32 input": only_input(shape=(8, 8, 1), dtype="float32"),
    "model, fixed batch size": only_input(batch_shape=(64, 8, 8, 1), dtype="uint8"),
    "model, logits through log_softmax": ending("log_softmax"),
    "model, an image as a sequence with a mask": rows_as_a_sequence,
    "model, low-rank adaptation": low_rank,
    "Model.call, of a functional subclass": lambda: compiled(network(kind=OwnCall)),
    "Model.fit": lambda: compiled(network(kind=OwnFit)),
    "Model.compile": lambda: compiled(network(kind=OwnCompile), factor=2.0),
    "Model.get_metrics_result": lambda: compiled(network(kind=OwnResult)),
    "Model.test_step": lambda: compiled(network(kind=OwnTest)),
    "Model.predict_step": lambda: compiled(network(kind=OwnPredict)),
    # compile
    "compile(optimizer), its name": lambda: compiled(optimizer="adam"),
    "compile(optimizer), its configuration": lambda: compiled(optimizer=optimizers.serialize(SGD(0.3))),
    "compile(loss), a dictionary by output": lambda: compiled(loss={"logits": LOSS}),
    "compile(loss), Loss.call": lambda: compiled(loss=Summed()),
    "compile(loss), Loss.dtype": lambda: compiled(loss=losses.SparseCategoricalCrossentropy(from_logits=True, dtype="float64")),
    "compile(loss), a function": lambda: compiled(loss=l2_of_logits),
    "compile(loss_weights), a number": lambda: compiled(loss_weights=0.5),
    "compile(loss_weights), a list": lambda: compiled(loss_weights=[0.5]),
    "compile(loss_weights), a dictionary": lambda: compiled(loss={"logits": LOSS}, loss_weights={"logits": 0.5}),
    "compile(metrics), none": lambda: compiled(metrics=None),
    "compile(metrics), names and objects": lambda: compiled(
        metrics=["accuracy", metrics.SparseTopKCategoricalAccuracy(3), "sparse_categorical_accuracy"]
    ),
    "compile(metrics), a function": lambda: compiled(metrics=[l2_of_logits]),
    "compile(metrics), Metric.update_state, Metric.result, Metric.reset_state, Metric.add_weight": lambda: compiled(metrics=[Largest()]),
    "compile(metrics), nested": lambda: compiled(metrics=[["accuracy"]]),
    "compile(metrics), a dictionary by output": lambda: compiled(metrics={"logits": ["accuracy"]}),
    "compile(jit_compile)": lambda: compiled(jit_compile=True),
    "compile(auto_scale_loss), on": lambda: half(auto_scale_loss=True),
    "compile(auto_scale_loss), off": lambda: half(auto_scale_loss=False),
    # layers
    "Layer.add_loss": made(lambda: layers.Dense(6), Penalized),
    "Layer.losses, of regularizers": made(
        lambda: layers.Dense(
            7, kernel_regularizer="l2", bias_regularizer=keras.regularizers.L1L2(0.1, 0.1), activity_regularizer="l1"
        )
    ),
    "Layer.losses, of an orthogonal regularizer": made(
        lambda: layers.Dense(7, kernel_regularizer="orthogonal_regularizer")
    ),
    "Layer.add_weight, a constraint": made(lambda: layers.Dense(7, kernel_constraint=keras.constraints.UnitNorm())),
    "Layer.add_weight, float state": made(Averaging),
    "Layer.add_weight, float16 state": made(lambda: Averaging("float16")),
    "Layer.add_weight, integer state that stays": made(lambda: layers.BatchNormalization(), lambda: layers.Normalization(mean=0.5, variance=2.0)),
    "Layer.trainable": made(lambda: layers.Dense(9, trainable=False)),
    "Layer.trainable, of BatchNormalization": made(lambda: layers.BatchNormalization(trainable=False)),
    "Layer.call, a weight that the loss does not depend on": lambda: compiled(network(Unused()), optimizer=SGD(0.1, weight_decay=0.1)),
    "Layer.call, called with training=True": lambda: compiled(network(last=lambda x: layers.BatchNormalization()(x, training=True))),
    "Layer.dtype": made(lambda: layers.Dense(8, dtype="mixed_bfloat16")),
    # optimizers
    "Optimizer.learning_rate, Optimizer.iterations, a schedule": lambda: compiled(optimizer=SGD(optimizers.schedules.CosineDecay(0.1, 4))),
    "Optimizer.learning_rate, an own schedule": lambda: compiled(optimizer=SGD(Ramp())),
    "Optimizer.learning_rate, a function": lambda: compiled(optimizer=SGD(lambda: 0.2)),
    "Optimizer(weight_decay)": optimizer(weight_decay=0.1),
    "Optimizer(clipnorm)": optimizer(clipnorm=0.05),
    "Optimizer(clipvalue)": optimizer(clipvalue=0.01),
    "Optimizer(global_clipnorm)": optimizer(optimizers.Adam, 0.01, global_clipnorm=0.1),
    "Optimizer(ema_momentum), without use_ema": optimizer(ema_momentum=0.5),
    "Optimizer.exclude_from_weight_decay, by name": lambda: without_decay(var_names=["kernel"]),
    "Optimizer.exclude_from_weight_decay, by variable": without_decay,
    "Optimizer.apply_gradients": optimizer(Doubled),
    "Optimizer.apply": optimizer(Halved),
    "Optimizer.update_step": optimizer(Signs),
    "Optimizer.finalize_variable_values": optimizer(OwnFinal),
    "optimizer, LossScaleOptimizer": lambda: compiled(optimizer=optimizers.LossScaleOptimizer(SGD(0.1), initial_scale=256.0)),
    **{
        f"optimizer, {kind.__name__}": optimizer(kind, 0.01)
        for kind in (
            optimizers.Adadelta, optimizers.Adafactor, optimizers.Adagrad, optimizers.Adam, optimizers.AdamW, optimizers.Adamax,
            optimizers.Ftrl, optimizers.Lamb, optimizers.Lion, optimizers.Muon, optimizers.Nadam, optimizers.RMSprop,
            *([optimizers.ScheduleFreeAdamW] if hasattr(optimizers, "ScheduleFreeAdamW") else []),  # not before Keras 3.13
        )
    },
    "optimizer, SGD with Nesterov": optimizer(momentum=0.9, nesterov=True),
}  # fmt: skip


REFUSED = {
    **{
        f"Model.{name}": (overriding(name), f"overrides {name}")
        for name in ("train_step", "compute_loss", "stateless_compute_loss", "compute_metrics", "make_train_function")
    },
    "Model.metrics, one of its own": (lambda: compiled(network(kind=OwnTracker)), "metric of its own"),
    "Model.trainable, nothing to train": (frozen, "no trainable variable"),
    "model, subclassed": (lambda: compiled(Subclassed()), "functional"),
    "model, Sequential without Input": (lambda: compiled(keras.Sequential([layers.Flatten(), layers.Dense(10)])), r"begin it with keras\.Input"),
    "model, several inputs": (two_inputs, "one input"),
    "model, outputs in a dictionary": (lambda: outputs(lambda x: {"logits": x}), "neither in a list"),
    "model, outputs in a list": (lambda: outputs(lambda x: [x]), "neither in a list"),
    "model, several outputs": (lambda: outputs(lambda x: (x, layers.Dense(2)(x))), "one input"),
    "model, any size": (of_all_sizes, "give every side"),
    "model, one logit": (binary, "give two logits"),
    "model, softmax": (lambda: compiled(network(last=keras.ops.softmax)), "give logits"),
    "model, sigmoid": (ending("sigmoid"), "give logits"),
    "model, softmax before another layer": (
        lambda: compiled(network(last=lambda x: layers.Reshape((10,))(layers.Softmax()(x)))), "give logits",
    ),
    "model, softmax in a Lambda": (lambda: compiled(network(last=layers.Lambda(lambda x: keras.ops.softmax(x)))), "give logits"),
    "model, a mask at the end": (masked, "mask"),
    "compile(run_eagerly), Model.run_eagerly": (lambda: compiled(run_eagerly=True), "run_eagerly"),
    "compile(steps_per_execution)": (lambda: compiled(steps_per_execution=2), "steps_per_execution"),
    "compile(weighted_metrics)": (lambda: compiled(weighted_metrics=["accuracy"]), "weighted_metrics"),
    "compile(loss), none": (lambda: compiled(loss=None), "compile with one loss"),
    "Loss.call, which ignores images": (
        lambda: compiled(loss=losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=3)), "ignore_class",
    ),
    "Loss(reduction)": (lambda: compiled(loss=losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")), "leave reduction out"),
    "Loss.__call__": (lambda: compiled(loss=Weighing()), "__call__"),
    "Layer.metrics": (made(Measured), "metric of its own"),
    "Layer.add_weight, integer state": (made(lambda: Averaging("int32")), "is int32 and changes"),
    "Layer.add_weight, float64": (made(lambda: layers.Dense(4, dtype="float64")), "is float64"),
    "Layer.call, a variable of no layer": (made(Outside), "belong to no layer"),
    "Layer.call, state assigned in a branch": (made(Branching), r"Branching\.call\(\): .*changes its state by assign\(\)"),
    "Layer.call, state assigned as a tf.Variable": (made(Raw), r"Raw\.call\(\): .*changes its state by assign\(\)"),
    "Layer.call, which assigns its trained weights": (
        made(lambda: layers.SpectralNormalization(layers.Dense(4))), "its layer assigns it",
    ),
    "Layer.call, random numbers of TensorFlow": (made(lambda: OfTensorFlow(lambda x: tf.random.normal(tf.shape(x)))), "RandomStandardNormal"),
    "Layer.call, a function of Python": (made(lambda: OfTensorFlow(lambda x: tf.ensure_shape(tf.numpy_function(np.ones_like, [x], x.dtype), x.shape))), "calls Python within the step"),
    "Layer.call, random numbers of NumPy": (made(lambda: OfTensorFlow(lambda x: float(np.random.rand()))), "draws from random or numpy"),
    "Layer.call, a function of NumPy by its name": (made(lambda: OfTensorFlow(lambda x: float(rand()))), "draws from random or numpy"),
    "Lambda, a function of Python by its name": (made(lambda: layers.Lambda(lambda x: x + uniform(0, 1))), "draws from random or numpy"),
    "Layer.call, a function of Python by its name": (made(lambda: OfTensorFlow(lambda x: uniform(0, 1))), "draws from random or numpy"),
    "Layer.call, a generator of NumPy that the layer has": (made(lambda: WithGenerator(np.random.default_rng(1), lambda g: g.random())), "draws from random or numpy"),
    "Layer.call, a generator of Python that the layer has": (made(lambda: WithGenerator(random.Random(1), lambda g: g.random())), "draws from random or numpy"),
    "Layer.call, random numbers of Python": (made(lambda: OfTensorFlow(lambda x: random.random())), "draws from random or numpy"),
    "layer, AugMix": (
        made(lambda: layers.Dense(192), lambda: layers.Reshape((8, 8, 3)), lambda: layers.AugMix(seed=1), layers.Flatten), "as AugMix does",
    ),
    "layer, stateful=True": (lambda: rows_as_a_sequence(batch_shape=(64, 8, 8, 1), stateful=True), "leave stateful=True out"),
    "Layer.call, a generator of TensorFlow": (
        made(lambda: OfTensorFlow(lambda x: GENERATOR[0].normal(tf.shape(x)))), "variables outside of the step",
    ),
    "Optimizer.scale_loss": (optimizer(Scaling), "scale_loss"),
    "Optimizer(gradient_accumulation_steps)": (optimizer(gradient_accumulation_steps=2), "more shards"),
    "Optimizer(use_ema)": (optimizer(use_ema=True), "use_ema"),
    "Optimizer(loss_scale_factor)": (optimizer(loss_scale_factor=2.0), "loss_scale_factor"),
    "optimizer, MultiOptimizer": (several_optimizers, "compile with one"),
}  # fmt: skip

# Refused by `train.run`, which infers and sets the learning rate itself; under `fit` these are honoured.
REFUSED_BY_A_RUN = {
    **{
        f"Model.{name}": (overriding(name), f"overrides {name}")
        for name in ("test_step", "make_test_function", "predict_step", "make_predict_function")
    },
    "Optimizer.learning_rate, a schedule": (lambda: compiled(optimizer=SGD(Ramp())), "the stages"),
    "Optimizer.learning_rate, a function": (
        lambda: compiled(optimizer=SGD(lambda: 0.2)),
        "the stages",
    ),
    "Optimizer.finalize_variable_values": (optimizer(OwnFinal), "overrides finalize_variable_values"),
}


class Halving(keras.callbacks.Callback):
    """Changes the weights after every step, and the rate before it."""

    def on_train_batch_begin(self, batch, logs=None):
        self.model.optimizer.learning_rate = 0.1 / (1 + batch)

    def on_train_batch_end(self, batch, logs=None):
        kernel = self.model.layers[-1].kernel
        kernel.assign(0.5 * kernel)


class Ending(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = batch == 1


class Watching(keras.callbacks.Callback):
    """Notes which methods are called, and with which logs."""

    def __init__(self):
        super().__init__()
        self.seen = []
        for name in dir(self):
            if name.startswith("on_"):
                setattr(self, name, lambda *given, name=name, **logs: self.seen.append((name, *map(self.told, given))))

    @staticmethod
    def told(given):
        return sorted(given) if isinstance(given, dict) else given

    def set_params(self, params):
        self.seen.append(("params", sorted(params.items())))


calls = keras.callbacks
# For each: callbacks that write into a folder. `fit` with each leaves the same weights, logs and files as with plain Keras.
CALLBACKS = {
    "Callback.on_train_batch_begin, Callback.on_train_batch_end and Callback.model": lambda to: [Halving()],
    "Callback.on_epoch_begin, LearningRateScheduler": lambda to: [calls.LearningRateScheduler(lambda epoch: 0.1 / (1 + epoch))],
    "Callback.on_epoch_end, ReduceLROnPlateau": lambda to: [calls.ReduceLROnPlateau("loss", 0.1, 0, min_delta=9.0)],
    "Callback.on_epoch_end, EarlyStopping": lambda to: [calls.EarlyStopping("loss", 9.0, restore_best_weights=True)],
    "Callback.on_train_batch_end, stops": lambda to: [Ending()],
    "callbacks, files: ModelCheckpoint, CSVLogger, TensorBoard, BackupAndRestore": lambda to: [
        calls.ModelCheckpoint(f"{to}/best.weights.h5", "val_loss", save_best_only=True, save_weights_only=True),
        calls.CSVLogger(f"{to}/log.csv"), calls.TensorBoard(f"{to}/board"), calls.BackupAndRestore(f"{to}/backup"),
    ],
    "Callback.on_train_begin, Callback.on_train_end, Callback.on_test_begin, Callback.on_test_end, Callback.on_test_batch_begin, "
    "Callback.on_test_batch_end, Callback.on_batch_begin, Callback.on_batch_end, Callback.set_params, TerminateOnNaN, History, "
    "LambdaCallback": lambda to: [
        Watching(), calls.TerminateOnNaN(), calls.History(), calls.LambdaCallback(),
    ],
}  # fmt: skip
CALLBACKS_REFUSED_BY_A_RUN = {
    "callback, LearningRateScheduler": lambda: calls.LearningRateScheduler(lambda epoch: 0.1),
    "callback, ReduceLROnPlateau": calls.ReduceLROnPlateau,
    "callback, SwapEMAWeights": calls.SwapEMAWeights,
    "callback, BackupAndRestore": lambda: calls.BackupAndRestore("nowhere"),
}

# What `fit` is given: (change of images and labels, options, what the refusal says or None).
GIVEN = {
    "fit(x), labels int64": (lambda x, y: (x, y.astype("int64")), {}, None),
    "fit(x), float weights": (lambda x, y: (x, y, y / 9), {}, None),
    "fit(x), no labels": (lambda x, y: (x,), {}, "give images"),
    "fit(x), one-hot labels of a loss for integers": (lambda x, y: (x, keras.utils.to_categorical(y)), {}, "integer labels"),
    "fit(x), labels in a column": (lambda x, y: (x, y[:, None]), {}, "integer"),
    "fit(x), weights in a column": (lambda x, y: (x, y, y[:, None]), {}, "one weight"),
    "fit(x), images of another size": (lambda x, y: (x[:, :5], y), {}, "give images"),
    "fit(initial_epoch)": (lambda x, y: (x, y), {"initial_epoch": 1, "epochs": 2}, None),
    "fit(epochs), fit(validation_freq), fit(validation_data), fit(verbose)": (lambda x, y: (x, y), {"epochs": 2, "validation_freq": 2, "verbose": 2}, None),
    "fit(validation_batch_size), fit(validation_steps)": (
        lambda x, y: (x, y), {"validation_batch_size": 16, "validation_steps": 2}, None,
    ),
    "fit(steps_per_epoch), none": (lambda x, y: (x, y), {"steps_per_epoch": None}, "steps_per_epoch"),
    "fit(class_weight)": (lambda x, y: (x, y), {"class_weight": {0: 2.0}}, "class_weights="),
    "fit(sample_weight)": (lambda x, y: (x, y), {"sample_weight": 1}, "class_weights="),
}  # fmt: skip
