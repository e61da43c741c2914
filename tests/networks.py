"""The network of the tests, and a callback. Importing this starts nothing."""

import signal

import keras

from tfpar import devices

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


class StopAfter(keras.callbacks.Callback):
    """Sends SIGTERM to its own process after some batches."""

    def __init__(self, steps):
        super().__init__()
        self.left = steps

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGTERM)
