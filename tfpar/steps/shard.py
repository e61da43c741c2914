"""One shard of the global batch as a pure function: weights, state, random keys and images in; gradient, state and logits out.

It does not know how many replicas there are, reads no variable and changes none. A replica computes its shards one after the
other, and `exchange` adds the vectors of all shards in one order.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tfpar import errors
from tfpar.steps import exchange, objective, tensorflow_repairs


class Shard:
    """A shard of one model, traced for one shape of batch.

    Attributes:
        function: of TensorFlow; `function.graph` holds every operation of the shard.
        vector: how a gradient and the averaged state lie in `float32[size]`.
        averaged: the float state that a shard changes, such as running averages; a frozen network has none.
    """

    def __init__(
        self,
        model: keras.Model,
        loss: objective.ImageLoss,
        batch: Sequence[tf.TensorSpec],
        *,
        seed: int,
        jit_compile: bool,
    ):
        """Trace the shard once for all replicas, outside of them: a trace of a large network takes seconds.

        Args:
            model: compiled and built.
            loss: of each image.
            batch: of one shard: `uint8[rows, height, width, channels]`, `int32[rows]` and, with class weights, `float32[rows]`.
            seed: of the run.
            jit_compile: compile the shard by XLA.

        Raises:
            errors.SettingsError: the model has a sum in no fixed order, or a layer that looks across replicas.
        """
        self.model, self.loss, self.seed = model, loss, seed
        self.seeds = [generator.state for generator in seed_generators(model)]
        self.state = [v for v in model.non_trainable_variables if not any(v is seed for seed in self.seeds)]
        self.scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        self.averaged: list[keras.Variable] = []
        function = tf.function(jit_compile=True, autograph=False) if jit_compile else exchange.not_inlined
        with tensorflow_repairs.fixed_order(), objective.replicas_hidden():
            self.function = function(self._compute).get_concrete_function(
                *([tf.TensorSpec(v.shape, v.dtype) for v in group] for group in self._variables()),
                tf.TensorSpec([], tf.float32), tuple(batch), tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.int32),
            )  # fmt: skip
        self.vector = Vector(model.trainable_variables, self.averaged)
        unordered = [] if jit_compile else tensorflow_repairs.unordered_sums(self.function)
        if unordered:
            raise errors.SettingsError(
                f"the model calls a tf.function that was traced before, with a sum in no fixed order ({unordered[0]}), so its "
                "gradient is not repeatable. Build the model, with that tf.function, again and install the step first"
            )

    def values(self) -> list:
        """Return the present values of everything that a shard takes from the model's variables."""
        scale = tf.convert_to_tensor(self.model.optimizer.dynamic_scale.value) if self.scaled else tf.constant(1.0)
        return [*([tf.convert_to_tensor(v.value) for v in group] for group in self._variables()), scale]

    def __call__(self, values: list, batch: Sequence[tf.Tensor], step: tf.Tensor, shard: tf.Tensor):
        """Compute a shard.

        Args:
            values: from `values()`.
            batch: as described to `__init__`.
            step, shard: `int64[]` and `int32[]`, their numbers; the random keys follow from them.

        Returns:
            `float32[size]`, see `Vector`, and `float32[rows, 2 + classes]`: loss, label and logits of each image.
        """
        return self.function(*values, tuple(batch), step, shard)

    def _variables(self):
        return self.model.trainable_variables, self.state, self.seeds

    def _compute(self, trainable, state, seeds, scale, batch, step, shard):
        tf.compat.v1.get_default_graph()._distribution_strategy_stack = []  # a shard belongs to no replica
        images, labels, *weights = batch
        given = self._in_order(state, [_key(s, self.seed, step, shard) for s in seeds])
        with tf.GradientTape() as tape:
            tape.watch(trainable)
            logits, changed, penalties = self.model.stateless_call(
                trainable, given, images, training=True, return_losses=True
            )
            # Never Keras' reduced loss: it is divided by the number of replicas.
            losses = self.loss(labels, logits) * (weights[0] if weights else 1)
            objective_value = tf.reduce_mean(losses) + sum(tf.cast(p, tf.float32) for p in penalties)
            objective_value = objective_value * scale if self.scaled else objective_value
        gradients = tape.gradient(objective_value, trainable, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        averages = [
            (variable, after)
            for variable, before, after in zip(self.model.non_trainable_variables, given, changed, strict=True)
            if after is not before and keras.backend.is_float_dtype(variable.dtype)
        ]
        self.averaged = [variable for variable, _ in averages]
        rows = [losses[:, tf.newaxis], tf.cast(labels, tf.float32)[:, tf.newaxis], tf.cast(logits, tf.float32)]
        return Vector.pack(gradients, [value for _, value in averages]), tf.concat(rows, axis=1)

    def _in_order(self, state, keys):
        """Return state and keys in the order of `model.non_trainable_variables`."""
        state, by_seed = iter(state), {id(seed): key for seed, key in zip(self.seeds, keys, strict=True)}
        return [by_seed[id(v)] if id(v) in by_seed else next(state) for v in self.model.non_trainable_variables]


class Vector:
    """How tensors lie in one vector `float32[size]`, the form in which replicas exchange them.

    Example:
        >>> vector = Vector(model.trainable_variables)
        >>> gradients, = vector.unpack(Vector.pack(gradients))
    """

    def __init__(self, *groups: Sequence[keras.Variable]):
        """Describe a vector with a value for each variable of these groups, one after the other."""
        self.groups = groups
        self.sizes = [int(np.prod(variable.shape)) for group in groups for variable in group]

    @property
    def size(self) -> int:
        return sum(self.sizes)

    @staticmethod
    def pack(*groups: Sequence[tf.Tensor]) -> tf.Tensor:
        """Return the values of all groups as `float32[size]`."""
        values = [value for group in groups for value in group]
        return tf.concat([tf.reshape(tf.cast(tf.convert_to_tensor(v), tf.float32), [-1]) for v in values], axis=0)

    def unpack(self, vector: tf.Tensor) -> list[list[tf.Tensor]]:
        """Return the values of each group, with the shapes and dtypes of its variables."""
        pieces = iter(tf.split(vector, self.sizes))
        return [[tf.cast(tf.reshape(next(pieces), v.shape), v.dtype) for v in group] for group in self.groups]


def seed_generators(model: keras.Model) -> list[keras.random.SeedGenerator]:
    """Return the seed generators of a model's random layers, in a fixed order, each once."""
    layers = model._flatten_layers(include_self=True, recursive=True)
    return list({id(generator): generator for layer in layers for generator in layer._seed_generators}.values())


def _key(layer_seed: tf.Tensor, seed: int, step: tf.Tensor, shard: tf.Tensor) -> tf.Tensor:
    """Return the state a random layer draws from: a hash of its seed, the run's, the step and the shard, counter at 0.

    Drawing adds 1 to the second number, so step and shard must not stand there.
    """
    mixed = tf.random.stateless_uniform(
        [2], [tf.cast(layer_seed[0], tf.int64), step], None, None, tf.int64, alg="philox"
    )
    last = tf.stack([mixed[0] + tf.cast(shard, tf.int64), mixed[1] + tf.constant(seed, tf.int64)])
    hashed = tf.random.stateless_uniform([1], last, None, None, tf.uint32, alg="philox")
    return tf.concat([hashed, tf.zeros([1], tf.uint32)], axis=0)
