"""Which models, optimizers and arguments of `compile` the step honours; everything else is refused before the first step.

What tfpar requires of a model, yours or one of `tfpar.models`:

1. One input: images of a known size. A run gives them as they are on the disk: `keras.Input((224, 224, 3), dtype="uint8")`.
2. One output: logits `[batch, classes]`, neither in a list nor in a dictionary, without a softmax or sigmoid.
3. It is functional or Sequential. A subclassed model, a layer of your own, a model from a file: call it as a layer of a functional one,
   `keras.Model(inputs, yours(inputs))`.
4. Each class of your own has `get_config`, so that the run can save the model, and is registered (`keras.saving`), so that it opens again.
   `get_config` of a layer returns every argument of its `__init__`, which takes `**kwargs`.
5. It is created and compiled under its strategy, with one optimizer and one loss that takes logits.

Honoured with the numbers of plain Keras: every functional or Sequential model of Keras' or your own layers with one image input and
logits `[batch, classes]`; `add_loss`, regularizers and constraints; float state of layers (each step sets it to the mean over the
shards); random layers, also those without a seed generator; frozen layers; losses and metrics (see `objective`); all arguments of
optimizers but those below; `loss_weights`, `jit_compile`, `auto_scale_loss` of `compile`.

One difference: a sparse gradient (`tf.IndexedSlices`, of `Embedding` or `keras.ops.take`) reaches the optimizer as the sum for each row.
Plain Keras on TensorFlow gives Adam and others that square a gradient the parts, and they square each part alone.

Refused, because the step would ignore it or its result would depend on the number of replicas:

| what | take instead |
|---|---|
| `train_step`, `compute_loss`, `compute_metrics`, an optimizer's `scale_loss` overridden; in a run also `test_step`, `predict_step` | a loss, a metric, a layer with `add_loss`, or Keras' own `fit` |
| `run_eagerly`, `steps_per_execution`, `weighted_metrics` of `compile` | nothing, `steps_per_call`, `metrics` |
| several inputs or outputs, dictionaries, images of any size, a subclassed model | one functional model per size; yours as its layer |
| a softmax or sigmoid at the end | logits |
| metrics inside layers | `compile(metrics=[...])` |
| layers that assign their trained weights (`SpectralNormalization`) | other layers |
| state of layers that is not float, variables of no layer | float state created with `add_weight` |
| state assigned inside `tf.cond`, or as a `tf.Variable` | `assign` of the variable, with a value of `keras.ops.where` |
| functions of `tf.random`, `numpy.random` or `random` in a layer or a loss | `keras.random`, `tf.random.stateless_uniform` |
| another rate of a `Dropout`, momentum, weight decay, regularizer, or number of a layer or loss of your own after the first step | a variable of the layer (`add_weight`), the same, or `compile` with a new optimizer after the change |
| Python in the graph (`tf.py_function`); recurrent layers with `stateful=True` | `keras.ops`; the default |
| variables in float64 | float32 |
| `BatchNormalization(synchronized=True)`, layers that look across replicas | the layer's own shard |
| batches that are not images, integer labels `[batch]` and perhaps weights `[batch]` | `engine.train_batches` |
| a mask at the output, `ignore_class` of a loss | data without these images |
| `MultiOptimizer`; in a run an optimizer with a schedule | one optimizer; stages |
| `gradient_accumulation_steps`, `use_ema`, `loss_scale_factor` of an optimizer | more shards; nothing; `mixed_float16` |
"""

import contextlib
import numbers
import reprlib
from collections.abc import Iterator
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.distribute import distribute_lib
from tensorflow.python.framework.config import is_op_determinism_enabled
from tensorflow.python.util import _pywrap_util_port

from tfpar import devices, errors, machine
from tfpar.steps import tensorflow_repairs

REPLACED = ("train_step", "compute_loss", "stateless_compute_loss", "compute_metrics", "make_train_function")
REPLACED_BY_A_RUN = ("test_step", "make_test_function", "predict_step", "make_predict_function")
REFUSED_OF_OPTIMIZERS = {
    "gradient_accumulation_steps": "leave that out and take more shards: they need less memory than the whole batch",
    "use_ema": "leave it out: it changes the weights when fit ends, or fails under a strategy",
    "loss_scale_factor": "leave it out, or use mixed_float16, which scales the loss itself",
}
# Operations behind which a softmax or sigmoid is still one.
PASSING = ("Activation", "Identity", "Dropout", "Reshape", "Flatten", "Cast", "GetItem", "Squeeze", "ExpandDims")
STATEFUL_RANDOM = {
    "RandomUniform", "RandomUniformInt", "RandomStandardNormal", "TruncatedNormal", "ParameterizedTruncatedNormal",
    "RandomGamma", "RandomPoisson", "RandomPoissonV2", "RandomShuffle", "Multinomial",
}  # fmt: skip


REQUIRED = (
    "tfpar requires a functional or Sequential model with one input and one output, logits [batch, classes], neither in a list nor in a "
    "dictionary: give every side of the images, as in keras.Input((224, 224, 3), dtype='uint8'), and call a subclassed model as a layer, "
    "keras.Model(inputs, yours(inputs))"
)  # and what the docstring above lists


def check(model: keras.Model, *, sets_rate: bool = False) -> None:
    """Refuse what the step would ignore, or what would make results depend on the number of replicas.

    Args:
        model: of Keras.
        sets_rate: whether the caller sets the learning rate of every step and runs inference itself, as `train.run` does.

    Raises:
        errors.SettingsError: with the remedy.
    """
    raise_first(_refusals(model, sets_rate))


def raise_first(refusals: Iterator[str]) -> None:
    """Raise `errors.SettingsError` with the first message, if there is one."""
    if refusal := next(refusals, None):
        raise errors.SettingsError(refusal)


def refusals_of_graph(function, *, xla: bool) -> Iterator[str]:
    """Yield why a traced shard depends on more than its arguments, or, without XLA, has a sum in no fixed order: it reads a
    variable of no layer, draws stateful random numbers, or calls a function traced before; or why XLA cannot compile it."""
    if function.graph.variables:
        names = ", ".join(sorted(variable.name.split(":")[0] for variable in function.graph.variables)[:3])
        why = "they belong to no layer or to a metric, or a tf.function inside reads them"
        todo = "Create them with add_weight of a layer, seed generators as attributes of a layer, and leave @tf.function out"
        yield f"the model reads variables outside of the step ({names}): {why}. {todo}"
    operations = {node.op for node in tensorflow_repairs.nodes_of(function)}
    if xla and is_op_determinism_enabled() and operations & {"MaxPoolGrad", "MaxPoolGradV2", "MaxPool3DGrad"}:
        why = "XLA has no deterministic gradient of max pooling"
        yield f"{why}; leave out --xla (jit_compile) or --deterministic, or take a network without it, such as resnet20"
    if called := operations & {"PyFunc", "PyFuncStateless", "EagerPyFunc"}:
        yield f"{min(called)} calls Python within the step, which may give another value each time; use keras.ops instead"
    if drawn := operations & STATEFUL_RANDOM:
        yield f"{', '.join(sorted(drawn))} of TensorFlow cannot repeat a step; use keras.random with a SeedGenerator"
    if not xla and (unordered := tensorflow_repairs.unordered_sums(function)):
        why = f"the model calls a tf.function that was traced before, with a sum in no fixed order ({unordered[0]})"
        yield f"{why}. Build the model, with that tf.function, again and install the step first"


def _refusals(model: keras.Model, sets_rate: bool) -> Iterator[str]:
    """Yield what the step does not honour, with the remedy. Each condition relies on the conditions before it."""
    if keras.backend.backend() != "tensorflow":
        yield f"Keras' backend is {keras.backend.backend()}, tfpar needs tensorflow; set KERAS_BACKEND=tensorflow"
    if not isinstance(model, keras.Model):
        yield f"model={reprlib.repr(model)}: give a compiled keras.Model"
    if not model.compiled or model.optimizer is None:
        yield "the model is not compiled; call model.compile(optimizer=..., loss=..., metrics=['accuracy'])"
    if model.run_eagerly or tf.config.functions_run_eagerly():
        yield "run_eagerly=True: the step is always a graph; compile without it, and look at values with tf.print"
    if model.steps_per_execution != 1:
        yield f"steps_per_execution={model.steps_per_execution} overruns the epoch; give steps_per_execution=1, and steps_per_call"
    yield from _refused_methods(model, REPLACED + REPLACED_BY_A_RUN * sets_rate)
    yield from _refused_shapes(model)
    yield from _refused_layers(model)
    yield from _refused_dtypes(model)
    if _gives_probabilities(model):
        yield f"model {model.name} ends in a softmax or sigmoid; give logits, and compile with a loss that has from_logits=True"
    yield from _refused_optimizers(model, sets_rate)
    several = model.distribute_strategy.num_replicas_in_sync > 1
    for variable in [*model.variables, *model.optimizer.variables] if several else ():
        if not isinstance(variable.value, tf.distribute.DistributedValues):
            yield f"variable {variable.path} was created outside of strategy.scope(); create model and optimizer inside it"


def check_dtypes(model: keras.Model) -> keras.Model:
    """Return a model; refuse one with which TensorFlow would end in an error of oneDNN, or crash (see `machine.too_low_for`)."""
    raise_first(_refused_dtypes(model))
    return model


def _refused_dtypes(model: keras.Model) -> Iterator[str]:
    on_cpus = any("CPU" in name for name in devices.names(model.distribute_strategy))
    for dtype in sorted({layer.compute_dtype for layer in model._flatten_layers()}):
        if on_cpus and (limit := machine.too_low_for(dtype)) and _pywrap_util_port.IsMklEnabled():
            todo = "unset it, give TF_ENABLE_ONEDNN_OPTS=0, or compute in float32"
            yield f"with {limit} TensorFlow cannot compute in {dtype} on this processor; {todo}"


def _refused_methods(thing: keras.Model | keras.optimizers.Optimizer, names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        owner = next((kind for kind in type(thing).__mro__ if name in vars(kind)), None)
        if name in vars(thing) or (owner is not None and not owner.__module__.startswith("keras.")):
            yield f"{type(thing).__name__} {thing.name} overrides {name}; give a loss, a metric or a layer with add_loss, or use Keras' own fit"


def _refused_shapes(model: keras.Model) -> Iterator[str]:
    if not getattr(model, "inputs", None):
        yield f"model {model.name} has no known input; begin it with keras.Input(...). {REQUIRED}"
    given, made = _ends(model)
    single = isinstance(given, keras.KerasTensor) and isinstance(made, keras.KerasTensor)
    if not single or len(made.shape) != 2 or None in (*given.shape[1:], made.shape[1]):
        shapes = [keras.tree.map_structure(lambda tensor: tuple(tensor.shape), end) for end in (given, made)]
        yield f"model {model.name} takes {shapes[0]} and gives {shapes[1]}. {REQUIRED}"
    if getattr(made, "_keras_mask", None) is not None:
        yield f"model {model.name} gives logits with a mask, which drops images from Keras' loss; end the mask before the logits"


def _refused_layers(model: keras.Model) -> Iterator[str]:
    for layer in model._flatten_layers(include_self=True, recursive=True):
        if isinstance(layer, keras.layers.BatchNormalization) and layer.synchronized:
            yield f"layer {layer.name} has synchronized=True, which ties the shards together; build it with synchronized=False"
        if getattr(layer, "stateful", False):
            yield f"layer {layer.name} is stateful, so an image would depend on the batch before; leave stateful=True out"
        if metrics := layer.__dict__.get("_metrics"):
            yield f"layer {layer.name} has a metric of its own ({metrics[0].name}); give it to compile(metrics=[...])"
    for variable in model.variables:
        if variable.dtype == "float64":
            yield f"variable {variable.path} is float64, and replicas exchange float32; build the model with dtype float32"


def _gives_probabilities(model: keras.Model) -> bool:
    """Tell whether the output is a softmax or sigmoid: by the last operations, or, where they are no layers of Keras, because
    the rows for random images sum to 1."""
    tensor = _ends(model)[1]
    while (operation := tensor._keras_history.operation) is not None:
        if isinstance(operation, keras.Model) and getattr(operation, "inputs", None):  # otherwise it is subclassed
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


def _refused_optimizers(model: keras.Model, sets_rate: bool) -> Iterator[str]:
    inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    yield from _refused_methods(inner, ("scale_loss", *["finalize_variable_values"] * sets_rate))
    known = {id(variable) for variable in inner._trainable_variables}
    if inner.built and any(id(variable) not in known for variable in model.trainable_variables):
        yield "the optimizer was built for other weights (of another model, or before a layer was unfrozen); compile again with a new optimizer"
    if known and getattr(inner, "momentum", 0) and not getattr(inner, "momentums", True):
        yield "the optimizer was built without momentum; compile with a new optimizer"
    if hasattr(inner, "optimizers"):
        yield f"{type(inner).__name__} holds several optimizers, and the step sums the gradients of one; compile with one of them"
    if sets_rate and not isinstance(inner._learning_rate, keras.Variable):
        yield (
            f"the optimizer carries a {type(inner._learning_rate).__name__}; give it a plain number, and say the rates in the "
            "stages: Stage(epochs=10, learning_rate=0.2, final_learning_rate=0.02)"
        )
    for name, remedy in REFUSED_OF_OPTIMIZERS.items():
        if getattr(inner, name):
            yield f"the optimizer has {name}={getattr(inner, name)}; {remedy}"


def constants(model: keras.Model) -> Iterator[tuple]:
    """Yield the numbers that a trace keeps, such as the rate of a `Dropout`, the momentum of `SGD`, or a weight of your own loss: layer, loss,
    regularizer, constraint, or optimizer of Keras; name of the attribute; value."""
    optimizers = model.optimizer, getattr(model.optimizer, "inner_optimizer", model.optimizer)
    losses = [each.loss for each in model._compile_loss._flat_losses]
    things = [
        each for each in optimizers if type(each).__module__.startswith("keras.")
    ]  # an own one may count in its update
    things += [*model._flatten_layers(), *losses, *(loss.fn for loss in losses if hasattr(loss, "fn"))]
    kinds = keras.regularizers.Regularizer, keras.constraints.Constraint
    attributes = [(thing, getattr(thing, "__dict__", {})) for thing in things if not isinstance(thing, keras.Model)]
    attributes += [(each, vars(each)) for _, there in attributes for each in there.values() if isinstance(each, kinds)]
    for thing, there in attributes:
        for name, value in there.items():
            number = value is None or (isinstance(value, numbers.Real) and not isinstance(value, bool))
            if number and name[0] != "_":
                yield thing, name, value


@contextlib.contextmanager
def assignments() -> Iterator[set[tuple[int, str]]]:
    """Yield the attributes of layers, as (id of the layer, name), that are assigned meanwhile."""
    found, assign = set(), keras.Layer.__setattr__

    def noting(layer, name, value):
        found.add((id(layer), name))
        assign(layer, name, value)

    with mock.patch.object(keras.Layer, "__setattr__", noting):
        yield found


@contextlib.contextmanager
def replicas_hidden():
    """Let a layer that asks for the replicas, or exchanges something with them, raise `errors.SettingsError`."""

    def refuse(*_given, **_options):
        why = "it reads their number or its replica's id, or calls all_reduce or all_gather: bits would depend on their number"
        todo = "Let it use its own shard alone, or train this model with Keras' own fit"
        raise errors.SettingsError(f"a layer of the model looks across replicas ({why}). {todo}")

    kinds = (distribute_lib._DefaultReplicaContext, tf.distribute.Strategy)  # of a trace outside of all strategies
    names = ["replica_id_in_sync_group", "num_replicas_in_sync", "all_reduce", "all_gather", "merge_call"]
    hidden = [(owner, name) for owner in kinds for name in names if hasattr(owner, name)]
    with contextlib.ExitStack() as stack:
        for owner, name in hidden:
            owner = next(kind for kind in owner.__mro__ if name in vars(kind))
            instead = property(refuse) if isinstance(vars(owner)[name], property) else refuse
            stack.enter_context(mock.patch.object(owner, name, instead))
        yield
