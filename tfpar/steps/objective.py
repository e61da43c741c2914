"""The loss and the metrics of a compiled model, image by image."""

import inspect
import reprlib
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras.src import backend as keras_backend
from keras.src.metrics import confusion_metrics

from tfpar import errors


class ImageLoss(NamedTuple):
    """The loss of each image: `loss(labels, logits)` takes `int32[batch]` and `[batch, classes]`, returns `float32[batch]`.

    Attributes:
        loss: of Keras, called without its reduction, which would divide by the number of replicas.
        one_hot: whether it takes one-hot labels, which are made of the integers here.
        weight: the `loss_weights` of `compile`.
        metrics: the compiled metrics, each with whether it takes one-hot labels.
    """

    loss: keras.losses.Loss
    one_hot: bool = False
    weight: float = 1.0
    metrics: tuple[tuple[keras.metrics.Metric, bool], ...] = ()

    def __call__(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        labels = labels_for(self.one_hot, labels, logits)
        kind = self.loss.dtype or tf.float32  # as Keras does before it calls a loss
        losses = tf.cast(self.loss.call(tf.cast(labels, kind), tf.cast(logits, kind)), tf.float32)
        return losses if self.weight == 1 else losses * tf.constant(self.weight, tf.float32)


def labels_for(one_hot: bool, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return integer labels, moved into the range of the logits (the step refuses those outside of it), or `float32[batch, classes]`.

    Raises:
        errors.SettingsError: the batches have one-hot labels, and integers are needed.
    """
    if labels.shape.rank == 1:
        labels = tf.clip_by_value(labels, 0, logits.shape[-1] - 1)
        return tf.one_hot(labels, logits.shape[-1]) if one_hot else labels
    if one_hot and labels.shape[1:] == logits.shape[1:]:
        return labels
    takes = f"[batch, {logits.shape[-1]}]" if one_hot else "integers [batch]"
    todo = "give integer labels [batch], which serve every loss, or compile with a loss for one-hot labels"
    raise errors.SettingsError(f"the batches have labels {labels.shape}, and the loss takes {takes}; {todo}")


def integers(labels: tf.Tensor) -> tf.Tensor:
    """Return the class of each image, whether labels are integers or one-hot."""
    return labels if labels.shape.rank == 1 else tf.argmax(labels, axis=1)


def build(model: keras.Model) -> ImageLoss:
    """Build loss, metrics and optimizer of a compiled model, and return the loss of each image, with the metrics.

    Accepted, as objects, functions or names, with or without a number as `loss_weights`:

    | loss | labels that it is given |
    |---|---|
    | `SparseCategoricalCrossentropy(from_logits=True)` | integers |
    | `CategoricalCrossentropy`, `CategoricalFocalCrossentropy` (`from_logits=True`), with or without `label_smoothing` | one-hot |
    | `BinaryCrossentropy`, `BinaryFocalCrossentropy` (`from_logits=True`) | one-hot |
    | `CategoricalHinge`, `Hinge`, `SquaredHinge` | one-hot |
    | `MeanSquaredError`, `MeanAbsoluteError`, `MeanAbsolutePercentageError`, `MeanSquaredLogarithmicError`, `Huber`, `LogCosh`, `CosineSimilarity` | one-hot |
    | a loss or function of your own | integers, or one-hot where it does not take integers |

    Refused: crossentropies without `from_logits=True`, `KLDivergence` and `Poisson` (they take probabilities), `Dice`, `Tversky`,
    `Circle` and `CTC` (they give no value for each image alone).

    A metric of Keras gets labels in the form that it takes, and so does a class that you derive from one. A function or a metric of your
    own gets labels as the loss does, as in Keras, and in the other form where it does not take these. Refused: metrics of Keras that take
    probabilities, and metrics that keep their state in no variable (Keras traces `update_state` once).

    Raises:
        errors.SettingsError: a loss or a metric that is refused, with the remedy.
    """
    classes = model.outputs[0].shape[-1]
    images = np.zeros((2, *model.inputs[0].shape[1:]), model.inputs[0].dtype)
    rows = classes + 1  # so that labels in the wrong form fit no axis of the logits
    integers, logits = keras.KerasTensor((rows,), "int32"), keras.KerasTensor((rows, classes), "float32")
    with model.distribute_strategy.scope():
        loss = _image_loss(model, integers, logits, classes)
        # What fit does first: it builds the metrics here, and has nothing to build inside a replica.
        loss = loss._replace(metrics=tuple(_build_metrics(model, loss.one_hot, integers, logits)))
        model._symbolic_build(data_batch=(tf.constant(images), tf.zeros([2], tf.int32), None))
        model.optimizer.build(model.trainable_variables)
    return loss


def name_of(model: keras.Model) -> dict | str:
    """Return what a run remembers of a compiled model's loss: its name or its configuration, and its weight."""
    given = next(iter(tf.nest.flatten(model.loss)), None)
    known = given if isinstance(given, str) else keras.losses.serialize(given)
    weights = [weight for weight in tf.nest.flatten(model._compile_loss._user_loss_weights) if weight not in (None, 1)]
    return {"loss": known, "weights": weights} if weights else known


# What Keras, NumPy and TensorFlow raise in a loss or metric that takes labels in another form, or is not written with keras.ops.
MISTAKES = (ValueError, TypeError, LookupError, AttributeError, AssertionError, NotImplementedError, tf.errors.OpError)
_GENERAL = (
    keras.metrics.Metric,
    keras.metrics.Mean,
    keras.metrics.Sum,
    keras.metrics.MeanMetricWrapper,
)  # say nothing of labels
_PROBABILITIES = "compile with SparseCategoricalCrossentropy or CategoricalCrossentropy(from_logits=True)"


def _image_loss(model: keras.Model, integers, logits, classes: int) -> ImageLoss:
    if model._compile_loss is not None and not model._compile_loss.built:
        why = f"loss={reprlib.repr(model.loss)} of compile: {errors.REASON}"
        with errors.translated((ValueError, KeyError), errors.SettingsError, why):
            model._compile_loss.build(integers, logits)
    losses = model._compile_loss._flat_losses if model._compile_loss else []
    if len(losses) != 1:
        raise errors.SettingsError(f"compile with one loss; this model has {len(losses)}")
    loss, weight = losses[0].loss, losses[0].loss_weights
    if loss.reduction not in ("sum_over_batch_size", "mean") or type(loss).__call__ is not keras.losses.Loss.__call__:
        why = f"loss {loss.name} has reduction={loss.reduction!r} or overrides __call__"
        raise errors.SettingsError(f"{why}; leave reduction out, and override call")
    function = getattr(loss, "fn", None)  # of a loss that wraps a function, as all that Keras names do
    if _takes_probabilities(function, getattr(loss, "_fn_kwargs", {})):
        raise errors.SettingsError(f"loss {loss.name} takes probabilities; {_PROBABILITIES}")
    reasons = []
    for one_hot in [True] if function and _is_one_hot(function) else [False, True]:
        found = ImageLoss(loss, one_hot, 1.0 if weight is None else float(weight))
        reasons.append(_why_not_per_image(found, classes))
        if not reasons[-1][0]:
            return found
    why, cause = min(reasons, key=lambda reason: reason[1] is not None)  # a wrong value says more than an exception
    raise errors.SettingsError(f"loss {loss.name} {why}; {_PROBABILITIES}") from cause


def _takes_probabilities(function: Callable | None, options: dict) -> bool:
    """Tell whether a function of Keras for losses or metrics takes probabilities instead of logits."""
    if function is not None and "from_logits" in inspect.signature(function).parameters:
        default = inspect.signature(function).parameters["from_logits"].default
        return options.get("from_logits", default) is not True
    return getattr(function, "__name__", "") in ("kl_divergence", "poisson", "categorical_generalized_cross_entropy")


def _why_not_per_image(loss: ImageLoss, classes: int) -> tuple[str, Exception | None]:
    """Say why the loss does not give each image a value that depends on this image alone, and which error says so; else `""`."""
    logits = tf.random.stateless_normal([4, classes], [1, 2])
    labels = tf.range(4) % min(2, classes)  # two of each class, for losses that compare images
    if getattr(loss.loss, "_fn_kwargs", {}).get("ignore_class") is not None:
        return "has ignore_class, so its mean depends on the labels; leave these images out of the data", None
    try:
        traced = tf.function(loss.__call__, autograph=False).get_concrete_function(labels, logits)  # as in the step
        together = traced(labels, logits)
        alone = [loss(labels[i : i + 1], logits[i : i + 1]) for i in range(4)]
    # So all of Keras' losses refuse other labels or shapes. A mistake in a loss of the user's own looks the same; the
    # stack trace of the cause shows where.
    except MISTAKES as error:
        return f"does not take labels and logits [batch, {classes}] ({errors.first_line(error)})", error
    if loss.one_hot and classes == 1:
        return "takes one-hot labels, which say nothing of 1 logit; give two logits", None
    if together.shape != (4,) or any(each.shape != (1,) for each in alone):
        return f"gives {together.shape} for 4 images instead of one value for each", None
    if not np.allclose(together, tf.concat(alone, 0), rtol=1e-4, atol=1e-5, equal_nan=True):
        return "gives an image another value together with others than alone, so shards would change it", None
    return "", None


def _build_metrics(model: keras.Model, one_hot: bool, integers, logits) -> Iterator[tuple[keras.metrics.Metric, bool]]:
    """Build the compiled metrics, and yield each with whether it takes one-hot labels."""
    compiled = model._compile_metrics
    if compiled is None:
        return
    if compiled._user_weighted_metrics:
        raise errors.SettingsError("weighted_metrics of compile are not weighted; give them as metrics")
    labels = {False: integers, True: keras.KerasTensor(logits.shape, "float32")}
    if not compiled.built:  # names such as "accuracy" mean what they would mean with the loss's labels
        compiled.build(labels[one_hot], logits)
    for metric in compiled.metrics:
        forms = _forms_to_try(metric, one_hot)
        if len(forms) == 1 and _metric_takes_probabilities(metric):
            todo = "leave it out, or give AUC from_logits=True, BinaryAccuracy threshold=0"
            raise errors.SettingsError(f"metric {metric.name} takes no logits; {todo}")
        yield metric, _form_of(metric, forms, labels, logits)


def _form_of(metric: keras.metrics.Metric, forms: list[bool], labels: dict, logits) -> bool:
    """Return the first form of the labels, one-hot or not, that a metric takes."""
    mistakes = []
    for one_hot in forms:
        try:
            keras_backend.compute_output_spec(metric.update_state, labels[one_hot], logits)
            before = _in_python(metric)
            keras_backend.compute_output_spec(metric.update_state, labels[one_hot], logits)
            changed = [f"self.{name}" for name, value in _in_python(metric).items() if value != before.get(name)]
        except MISTAKES as error:
            mistakes.append(error)
            continue
        if metric.variables and not changed:
            return one_hot
        why = f"metric {metric.name} keeps {', '.join(changed) or 'its state'} in no variable, and Keras traces update_state once"
        raise errors.SettingsError(f"{why}; create it with add_weight, or leave it out")
    why = f"metric {metric.name} does not take labels and logits [batch, {logits.shape[-1]}] ({errors.first_line(mistakes[0])})"
    todo = "leave it out" if len(forms) == 1 else "write it with keras.ops, or leave it out"
    raise errors.SettingsError(f"{why}; {todo}") from mistakes[0]


def _in_python(metric: keras.metrics.Metric) -> dict:
    """Return the attributes of a metric in a form that shows whether a call changed one."""
    return keras.tree.map_structure(lambda value: id(value) if tf.is_tensor(value) else repr(value), {**vars(metric)})


def check_names(model: keras.Model, taken: Collection[str]) -> None:
    """Refuse a compiled metric with a name that means something else, such as a top-5 accuracy with the name `accuracy`.

    Raises:
        errors.SettingsError: with the remedy.
    """
    of_keras = (keras.metrics.sparse_categorical_accuracy, keras.metrics.categorical_accuracy)
    for metric in model._compile_metrics.metrics if model._compile_metrics else ():
        accuracy = metric.name == "accuracy" and getattr(metric, "_fn", None) in of_keras
        if metric.name in taken and not accuracy:
            why = f"metric {metric.name} has the name of a column of history.csv"
            raise errors.SettingsError(f"{why}; give it another name")


def metrics_of(loss: ImageLoss, labels: np.ndarray, logits: np.ndarray) -> dict:
    """Return what the compiled metrics give for all images of a split, by name; the metrics themselves are not touched.

    Args:
        loss: from `build`; holds the metrics.
        labels: `int32[N]`.
        logits: `float32[N, classes]`.
    """
    found = {}
    for metric, one_hot in loss.metrics:
        given = labels_for(one_hot, tf.constant(labels), tf.constant(logits))
        state = metric.stateless_update_state(metric.stateless_reset_state(), given, tf.constant(logits))
        with keras.StatelessScope(state_mapping=list(zip(metric.variables, state, strict=True))):
            result = metric.result()
            found |= plain(result if isinstance(result, dict) else {metric.name: result})  # it may be a variable
    return found


def plain(found: dict) -> dict:
    """Return the values of metrics as NumPy arrays, and as plain numbers where they are numbers."""
    arrays = {name: keras.ops.convert_to_numpy(value) for name, value in found.items()}
    return {name: array.item() if array.size == 1 else array for name, array in arrays.items()}


def _forms_to_try(metric: keras.metrics.Metric, one_hot: bool) -> list[bool]:
    """Return in which forms to offer labels to a metric, one-hot or not: one form to a metric of Keras; first that form to a class made
    of it with another `update_state`; first the form of the loss (`one_hot`) to all others."""

    def of_keras(thing) -> bool:
        return f"{thing.__module__}".startswith("keras.") and thing not in _GENERAL

    kinds = [kind for kind in type(metric).__mro__ if issubclass(kind, keras.metrics.Metric)]
    updated_by = next(kind for kind in kinds if "update_state" in vars(kind))
    function = getattr(metric, "_fn", None) or next(filter(of_keras, kinds), updated_by)
    first = one_hot
    if of_keras(function):
        first = not metric.sparse_y_true if isinstance(metric, keras.metrics.IoU) else _is_one_hot(function)
    only_keras = all(f"{each.__module__}".startswith("keras.") for each in (updated_by, function))
    return [first] if only_keras else [first, not first]


def _is_one_hot(function: Callable) -> bool:
    """Tell whether a loss or metric takes one-hot labels: all of Keras' do, except those that say `sparse`."""
    return function.__module__.startswith("keras.src.") and "sparse" not in function.__name__.lower()


def _metric_takes_probabilities(metric: keras.metrics.Metric) -> bool:
    """Tell whether a metric compares its predictions with a probability or class, or requires that they are some."""
    if type(metric) in (keras.metrics.Accuracy, keras.metrics.Mean, keras.metrics.Sum):
        return True
    if isinstance(metric, keras.metrics.AUC):
        return not metric._from_logits
    function, options = getattr(metric, "_fn", None), getattr(metric, "_fn_kwargs", {})
    if function is keras.metrics.binary_accuracy:
        return options.get("threshold", 0.5) != 0
    counting = any(kind.__module__ == confusion_metrics.__name__ for kind in type(metric).__mro__)
    return counting or bool(getattr(metric, "threshold", None)) or _takes_probabilities(function, options)
