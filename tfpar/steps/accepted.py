"""Which models, optimizers and arguments of `compile` the step honours; everything else is refused before the first step.

Honoured with the numbers of plain Keras: every functional or Sequential model of Keras' or your own layers with one image input and
logits `[batch, classes]`; `add_loss`, regularizers and constraints; float state of layers (each step sets it to the mean over the
shards); random layers, also those without a seed generator; frozen layers; losses and metrics (see `objective`); all arguments of
optimizers but those below; `loss_weights`, `jit_compile`, `auto_scale_loss` of `compile`.

Refused, because the step would ignore it or its result would depend on the number of replicas:

| what | take instead |
|---|---|
| `train_step`, `compute_loss`, `compute_metrics` overridden | a loss, a metric, a layer with `add_loss`, or Keras' own `fit` |
| `run_eagerly`, `steps_per_execution`, `weighted_metrics` of `compile` | nothing, `steps_per_call`, `metrics` |
| several inputs or outputs, dictionaries, images of any size, a subclassed model | one functional model per size |
| a softmax or sigmoid at the end | logits |
| metrics inside layers | `compile(metrics=[...])` |
| state of layers that is not float, variables of no layer | float state created with `add_weight` |
| random operations of TensorFlow (`tf.random.uniform`) | `keras.random`, `tf.random.stateless_uniform` |
| variables in float64 | float32 |
| `BatchNormalization(synchronized=True)`, layers that look across replicas | the layer's own shard |
| `gradient_accumulation_steps`, `use_ema`, `loss_scale_factor` of an optimizer | more shards; nothing; `mixed_float16` |
"""

from __future__ import annotations

import contextlib
import reprlib

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.distribute import distribute_lib

from tfpar import errors

REPLACED = ("train_step", "compute_loss", "stateless_compute_loss", "compute_metrics", "make_train_function")
REPLACED_BY_A_RUN = ("test_step", "make_test_function")
# Operations behind which a softmax or sigmoid is still one.
PASSING = ("Activation", "Identity", "Dropout", "Reshape", "Flatten", "Cast", "GetItem", "Squeeze", "ExpandDims")
STATEFUL_RANDOM = {
    "RandomUniform", "RandomUniformInt", "RandomStandardNormal", "TruncatedNormal", "ParameterizedTruncatedNormal",
    "RandomGamma", "RandomPoisson", "RandomPoissonV2", "RandomShuffle", "Multinomial",
}  # fmt: skip


def check(model: keras.Model, *, sets_rate: bool = False) -> None:
    """Refuse what the step would ignore, or what would make results depend on the number of replicas.

    Args:
        model: of Keras.
        sets_rate: whether the caller sets the learning rate of every step and runs inference itself, as `train.run` does.

    Raises:
        errors.SettingsError: with the remedy.
    """
    if keras.backend.backend() != "tensorflow":
        raise errors.SettingsError(
            f"Keras' backend is {keras.backend.backend()}, tfpar needs tensorflow; set KERAS_BACKEND=tensorflow"
        )
    if not isinstance(model, keras.Model):
        raise errors.SettingsError(f"model={reprlib.repr(model)}: give a compiled keras.Model")
    if not model.compiled or model.optimizer is None:
        raise errors.SettingsError(
            "the model is not compiled; call model.compile(optimizer=..., loss=..., metrics=['accuracy'])"
        )
    _check_compile(model)
    _check_overrides(model, REPLACED + REPLACED_BY_A_RUN * sets_rate)
    _check_shapes(model)
    _check_layers(model)
    if _gives_probabilities(model):
        raise errors.SettingsError(
            f"model {model.name} ends in a softmax or sigmoid; give logits: leave the last activation out and compile with "
            "SparseCategoricalCrossentropy(from_logits=True)"
        )
    _check_optimizer(model.optimizer, sets_rate)


def check_placement(model: keras.Model) -> None:
    """Refuse variables that replicas would not have copies of.

    Raises:
        errors.SettingsError: model or optimizer were created outside of `strategy.scope()`.
    """
    if model.distribute_strategy.num_replicas_in_sync == 1:
        return
    for variable in [*model.variables, *model.optimizer.variables]:
        if not isinstance(variable.value, tf.distribute.DistributedValues):
            raise errors.SettingsError(
                f"variable {variable.path} was created outside of strategy.scope(), so the replicas have no copies of it; "
                "create the model and its optimizer inside: with strategy.scope(): ..."
            )


def check_graph(function) -> None:
    """Refuse a traced shard that depends on more than its arguments.

    Raises:
        errors.SettingsError: it reads a variable of no layer, or draws stateful random numbers.
    """
    if function.graph.variables:
        names = ", ".join(sorted(variable.name.split(":")[0] for variable in function.graph.variables)[:3])
        raise errors.SettingsError(
            f"the model reads variables past the step ({names}), so their gradients and changes would be lost: they belong to no "
            "layer, or to a metric, or a tf.function inside the model reads them. Create them with add_weight of a layer, seed "
            "generators as attributes of a layer, and leave @tf.function away from layers, or give it the values as arguments"
        )
    definition = function.graph.as_graph_def()
    nodes = [*definition.node, *(node for called in definition.library.function for node in called.node_def)]
    drawn = sorted({node.op for node in nodes if node.op in STATEFUL_RANDOM})
    if drawn:
        raise errors.SettingsError(
            f"the model draws random numbers with {', '.join(drawn)} of TensorFlow, which no step can repeat; take keras.random "
            "with a keras.random.SeedGenerator"
        )


def _check_compile(model: keras.Model) -> None:
    if model.run_eagerly or tf.config.functions_run_eagerly():
        raise errors.SettingsError(
            "run_eagerly=True: the step is always a graph; compile without it, and look at values with keras.ops or tf.print"
        )
    if model.steps_per_execution != 1:
        raise errors.SettingsError(
            f"steps_per_execution={model.steps_per_execution}: Keras' own several steps per call overrun the epoch or fail "
            "under a strategy. Compile with steps_per_execution=1, and give steps_per_call (to steps.install together with "
            "steps_per_epoch)"
        )


def _check_overrides(model: keras.Model, names: tuple[str, ...]) -> None:
    for name in names:
        owner = next((kind for kind in type(model).__mro__ if name in vars(kind)), None)
        if name in vars(model) or (owner is not None and not owner.__module__.startswith("keras.")):
            raise errors.SettingsError(
                f"model {model.name} ({type(model).__name__}) overrides {name}, which tfpar replaces by its own; express it as a "
                "loss or a metric of compile or as a layer with add_loss, or train this model with Keras' own fit"
            )


def _check_shapes(model: keras.Model) -> None:
    if isinstance(model, keras.Sequential) and not getattr(model, "inputs", None):
        raise errors.SettingsError(
            f"model {model.name} has no input yet; begin it with keras.Input((height, width, channels), dtype='uint8')"
        )
    if not getattr(model, "inputs", None):
        raise errors.SettingsError(
            f"model {model.name} ({type(model).__name__}) is subclassed, and its shapes are not known; make it functional: "
            "inputs = keras.Input((height, width, channels), dtype='uint8'); keras.Model(inputs, network(inputs))"
        )
    given, made = _ends(model)
    if not isinstance(given, keras.KerasTensor) or not isinstance(made, keras.KerasTensor) or len(made.shape) != 2:
        raise errors.SettingsError(
            f"model {model.name} takes {_shapes(given)} and gives {_shapes(made)}; give one with one input and logits [batch, classes], "
            "the logits neither in a list nor in a dictionary"
        )
    if None in given.shape[1:] or made.shape[1] is None:
        raise errors.SettingsError(
            f"model {model.name} takes {tuple(given.shape)} and gives {tuple(made.shape)}; give every side of the images, as in "
            "keras.Input((224, 224, 3), dtype='uint8')"
        )


def _shapes(structure):
    return keras.tree.map_structure(lambda tensor: tuple(tensor.shape), structure)


def _check_layers(model: keras.Model) -> None:
    for layer in model._flatten_layers(include_self=True, recursive=True):
        if isinstance(layer, keras.layers.BatchNormalization) and layer.synchronized:
            raise errors.SettingsError(
                f"layer {layer.name} has synchronized=True, which ties the shards together; "
                "build it with synchronized=False: each shard is normalized by itself, on any number of replicas"
            )
        metrics = layer.__dict__.get("_metrics") or []
        if metrics:
            raise errors.SettingsError(
                f"layer {layer.name} has a metric of its own ({metrics[0].name}), which the step would not update; "
                "give it to compile(metrics=[...])"
            )
    wide = [variable.path for variable in model.variables if variable.dtype == "float64"]
    if wide:
        raise errors.SettingsError(
            f"variable {wide[0]} is float64; replicas exchange float32, so build the model with dtype float32"
        )


def _gives_probabilities(model: keras.Model) -> bool:
    """Tell whether the output is a softmax or sigmoid: by the last operations, or, where they are no layers of Keras, because
    the rows for random images sum to 1."""
    tensor = _ends(model)[1]
    while (operation := tensor._keras_history.operation) is not None:
        if isinstance(operation, keras.Model):
            return _gives_probabilities(operation)
        kind, activation = type(operation).__name__, getattr(operation, "activation", None)
        if kind in ("Softmax", "Sigmoid") or activation in (keras.activations.softmax, keras.activations.sigmoid):
            return True
        inputs = operation._inbound_nodes[-1].input_tensors if operation._inbound_nodes else []
        if kind not in PASSING or activation not in (None, keras.activations.linear) or len(inputs) != 1:
            break
        tensor = inputs[0]
    known = isinstance(operation, keras.Layer) and not isinstance(operation, keras.layers.Lambda)
    if known and type(operation).__module__.startswith("keras."):
        return False
    shape, dtype = _ends(model)[0].shape[1:], _ends(model)[0].dtype
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (2, *shape)), dtype)
    found = tf.function(lambda x: tf.cast(model(x, training=False), tf.float32), autograph=False)(images).numpy()
    return found.shape[1] > 1 and bool((found >= 0).all()) and np.allclose(found.sum(axis=1), 1, atol=0.01)


def _ends(model: keras.Model) -> tuple:
    """Return the input of a built model, also where it is alone in a list or dictionary, and the structure of its outputs."""
    functional = model._functional if isinstance(model, keras.Sequential) else model
    return functional.inputs[0] if len(functional.inputs) == 1 else functional.input, functional.output


def _check_optimizer(optimizer: keras.optimizers.Optimizer, sets_rate: bool) -> None:
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if sets_rate and isinstance(inner._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
        raise errors.SettingsError(
            f"the optimizer carries a {type(inner._learning_rate).__name__}; give it a plain number, and say the rates in the "
            "stages: Stage(epochs=10, learning_rate=0.2, final_learning_rate=0.02)"
        )
    if inner.gradient_accumulation_steps:
        raise errors.SettingsError(
            f"the optimizer has gradient_accumulation_steps={inner.gradient_accumulation_steps}; leave that out and take "
            "more shards: they are computed one after the other, at the memory of one"
        )
    if inner.use_ema:
        raise errors.SettingsError(
            "the optimizer has use_ema=True, which changes the weights when fit ends, or fails under a strategy; leave it out"
        )
    if inner.loss_scale_factor:
        raise errors.SettingsError(
            "the optimizer has loss_scale_factor; leave it out, or use mixed_float16, which scales the loss itself"
        )


@contextlib.contextmanager
def replicas_hidden():
    """Let a layer that asks for the replicas, or exchanges something with them, raise `errors.SettingsError`."""

    def refuse(*_given, **_options):
        raise errors.SettingsError(
            "a layer of the model looks across replicas (it reads their number or its replica's id, or calls all_reduce or "
            "all_gather). tfpar computes a shard without knowing the replicas, so that the bits do not depend on their number. "
            "Let the layer use its own shard alone, or train this model with Keras' own fit"
        )

    kinds = (distribute_lib._DefaultReplicaContext, tf.distribute.Strategy)  # of a trace outside of all strategies
    names = ["replica_id_in_sync_group", "num_replicas_in_sync", "all_reduce", "all_gather", "merge_call"]
    hidden = [(owner, name) for owner in kinds for name in names if hasattr(owner, name)]
    with contextlib.ExitStack() as stack:
        for owner, name in hidden:
            owner = next(kind for kind in owner.__mro__ if name in vars(kind))
            kept = vars(owner)[name]
            setattr(owner, name, property(refuse) if isinstance(kept, property) else refuse)
            stack.callback(setattr, owner, name, kept)
        yield
