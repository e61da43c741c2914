"""The computation of one shard of the global batch, as a pure function. TensorFlow traces the function once; the step calls it for each shard.

Inputs: the values of the trainable and the non-trainable variables, the loss scale, images, labels and weights, the step number and the
shard number. Outputs: one vector (the gradient, multiplied by the loss scale, and the changed state), and for each image its loss, its
penalty, its label and its logits. The function does not know how many replicas there are, reads no variable and changes none.
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tfpar import errors
from tfpar.steps import accepted, exchange, normalization, objective, tensorflow_repairs
from tfpar.steps.randomness import drawn_from, nothing_drawn, seed_state

COLUMNS = 3  # of the rows, before the logits: loss, penalty, label


class Shard:
    """The computation of one shard, traced for one model and one batch shape.

    Attributes:
        function: the `tf.ConcreteFunction`; `function.graph` holds every operation of the shard.
        trained: the trainable variables that the loss depends on; the others have no gradient, and the optimizer leaves them unchanged.
        averaged: the non-trainable float variables that the model changes in training, such as the moving averages of
            `BatchNormalization`. A step sets each to its mean over the shards.
        vector: the layout of the gradients of `trained` and the values of `averaged` in `float32[size]`.
    """

    def __init__(self, model: keras.Model, loss: objective.ImageLoss, batch: Sequence, *, seed: int, batch_norm: str):
        """Trace the shard once for all replicas, outside any replica context, because tracing a large network takes seconds.

        Args:
            model: compiled and built.
            loss: returns the loss of each image.
            batch: `tf.TensorSpec`s of one shard: `[rows, height, width, channels]` in the dtype of the model's input, `int32[rows]` and optionally
                `float32[rows]`, the weight of each image.
            seed: seed of the run.
            batch_norm: `"fused"` or `"keras"`, see `normalization`.

        Raises:
            errors.SettingsError: the model depends on more than these inputs, or an operation adds in no fixed order.
        """
        self.model, self.loss, self.seed = model, loss, seed
        self.seed_states = {id(each.state) for layer in model._flatten_layers() for each in layer._seed_generators}
        self.trained: list[keras.Variable] = []
        self.averaged: list[keras.Variable] = []
        xla = is_compiled_by_xla(model)
        decorate = tf.function(jit_compile=True, autograph=False) if xla else exchange.not_inlined
        normalized = normalization.computed(batch_norm, training=True)
        try:
            with tensorflow_repairs.fixed_order(), accepted.replicas_hidden(), normalized, nothing_drawn(model):
                self.function = decorate(self._compute).get_concrete_function(
                    *([tf.TensorSpec(v.shape, v.dtype) for v in group] for group in variables_of(model)),
                    tf.TensorSpec([], tf.float32), tuple(batch), tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.int32),
                )  # fmt: skip
        except errors.SettingsError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, NotImplementedError) as error:  # of a layer's code
            todo = "Correct it; a layer changes its state by assign() of a keras.Variable, outside of tf.cond and loops"
            raise errors.SettingsError(f"the step cannot be traced: {errors.first_line(error)}. {todo}") from error
        self.vector = Vector(self.trained, self.averaged)
        accepted.raise_first(accepted.refusals_of_graph(self.function, xla=xla))

    def values(self) -> list:
        """Return the current values of the model's variables, and the loss scale."""
        optimizer = self.model.optimizer
        scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        return [*values_of(self.model), tf.convert_to_tensor(optimizer.dynamic_scale.value if scaled else 1.0)]

    def __call__(self, values: list, batch: Sequence[tf.Tensor], step: tf.Tensor, shard: tf.Tensor):
        """Compute a shard.

        Args:
            values: from `values()`.
            batch: as described to `__init__`.
            step, shard: the step number `int64[]` and the shard number `int32[]`, from which the seeds of random layers are derived.

        Returns:
            `float32[size]`, see `Vector`, and `float32[rows, 3 + classes]`: loss, penalty, label and logits of each image.
        """
        return self.function(*values, tuple(batch), step, shard)

    def _compute(self, trainable, state, scale, batch, step, shard):
        # Layers and losses must not see replicas while the shard is traced.
        tf.compat.v1.get_default_graph()._distribution_strategy_stack = []
        images, labels, *weights = batch
        model, variables = self.model, self.model.non_trainable_variables
        draws = [id(variable) in self.seed_states for variable in variables]
        before = [seed_state(v, self.seed, step, shard) if drawn else v for v, drawn in zip(state, draws, strict=True)]
        unseeded = seed_state(tf.zeros([2], tf.uint32), self.seed, step, shard)
        given = [*zip(model.trainable_variables, trainable, strict=True), *zip(variables, before, strict=True)]
        with tf.GradientTape() as tape, drawn_from(unseeded):
            tape.watch(trainable)
            with _StateAsVariables(given, collect_losses=True) as scope:
                logits, penalties = model(images, training=True), model.losses
            for variable, value in zip(model.trainable_variables, trainable, strict=True):
                if scope.get_current_value(variable) is not value:  # a pure function would lose it
                    why = f"weight {variable.path} is trained, and its layer assigns it (as SpectralNormalization does)"
                    raise errors.SettingsError(f"{why}; leave that layer out")
            # Not Keras' reduced loss, which is divided by the number of replicas.
            losses = self.loss(labels, logits)
            if weights:
                losses *= tf.cast(weights[0], tf.float32)
            penalty = sum((tf.cast(p, tf.float32) for p in penalties), 0.0)
            objective_value = (tf.reduce_mean(losses) + penalty) * scale
        gradients = tape.gradient(objective_value, trainable)
        trained = [(v, g) for v, g in zip(model.trainable_variables, gradients, strict=True) if g is not None]
        if not trained:
            raise errors.SettingsError(f"the loss of {model.name} has no trainable variable; unfreeze a layer")
        # The scope holds the tensor that it got where nothing assigns the variable.
        after = [scope.get_current_value(variable) for variable in variables]
        together = zip(variables, before, after, draws, strict=True)
        changed = [(v, new) for v, old, new, drawn in together if new is not old and not drawn]
        for variable, _ in changed:
            if not keras.backend.is_float_dtype(variable.dtype):
                why = f"state {variable.path} is {variable.dtype} and changes in training, so it has no mean"
                raise errors.SettingsError(f"{why}; make it float32")
        self.trained, self.averaged = [v for v, _ in trained], [v for v, _ in changed]
        rows = [losses, tf.fill(tf.shape(losses), penalty), tf.cast(objective.integers(labels), tf.float32)]
        rows = tf.concat([tf.stack(rows, axis=1), tf.cast(logits, tf.float32)], axis=1)
        return Vector.pack([gradient for _, gradient in trained], [value for _, value in changed]), rows


class Vector:
    """The layout of several tensors in one vector `float32[size]`, the form in which replicas exchange them.

    Example:
        >>> vector = Vector(model.trainable_variables)
        >>> gradients, = vector.unpack(Vector.pack(gradients))
    """

    def __init__(self, *groups: Sequence[keras.Variable]):
        """Describe a vector with a value for each variable of these groups, one after the other."""
        self.groups = groups
        self.sizes = [int(np.prod(variable.shape)) for group in groups for variable in group]
        self.size = sum(self.sizes)

    @staticmethod
    def pack(*groups: Sequence[tf.Tensor]) -> tf.Tensor:
        """Return the values of all groups as `float32[size]`."""
        values = [value for group in groups for value in group]
        return tf.concat([tf.reshape(tf.cast(tf.convert_to_tensor(v), tf.float32), [-1]) for v in values], axis=0)

    def unpack(self, vector: tf.Tensor) -> list[list[tf.Tensor]]:
        """Return the values of each group, with the shapes and dtypes of its variables."""
        pieces = iter(tf.split(vector, self.sizes))
        return [[tf.cast(tf.reshape(next(pieces), v.shape), v.dtype) for v in group] for group in self.groups]


def variables_of(model: keras.Model) -> tuple[list[keras.Variable], list[keras.Variable]]:
    """Return the trainable and the non-trainable variables of a model."""
    return model.trainable_variables, model.non_trainable_variables


def values_of(model: keras.Model) -> list[list[tf.Tensor]]:
    """Return the current values of the trainable and the non-trainable variables, on this replica."""
    return [[tf.convert_to_tensor(v.value) for v in group] for group in variables_of(model)]


def is_compiled_by_xla(model: keras.Model) -> bool:
    """Return whether the model was compiled with `jit_compile=True`. Keras resolves "auto" to XLA without a strategy and to no XLA
    under one, which would change the bits; here "auto" means no XLA."""
    return model._compile_config.config.get("jit_compile") is True


class _StateAsVariables(keras.StatelessScope):
    """No gradient flows through the state that a layer assigns and then reads, as none flows through a variable."""

    def add_update(self, update):
        variable, value = update
        super().add_update((variable, tf.stop_gradient(value)))
