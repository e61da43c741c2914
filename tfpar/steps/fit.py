"""`model.fit` with tfpar's step."""

import inspect
from collections.abc import Iterator

import keras
import tensorflow as tf

from tfpar import errors, validate
from tfpar.settings import MOST_STEPS_PER_CALL
from tfpar.steps import accepted, keras_repairs
from tfpar.steps.step import Step


def install(
    model: keras.Model,
    *,
    shards: int | None = None,
    seed: int = 0,
    first_step: int = 0,
    batch_norm: str = "fused",
    steps_per_call: int = 1,
    steps_per_epoch: int | None = None,
) -> Step:
    """Make `model.fit` take tfpar's step: any strategy, the same bits.

    With several steps per call Keras still counts and reports every step, so callbacks, progress bar, `evaluate` and
    `predict` stay as they are; the work is done when a call is full, and at the end of the epoch. A later `compile` puts
    the step back, with the new optimizer and loss; `model.make_train_function(force=True)` returns to Keras' own.

    Args:
        model: compiled, with one input and logits `[batch, classes]` as its output.
        shards: parts the global batch is always computed in; None is one per replica. A multiple of the replicas.
        seed: of all random layers, beside the seed of each layer.
        first_step: the number of the first step; random layers draw for the step's number.
        batch_norm: `"fused"`, or `"keras"` for Keras' own, slower computation of `BatchNormalization`.
        steps_per_call: steps in one call into TensorFlow, from 1 to 512; several spare Python's time between small steps.
        steps_per_epoch: the same as given to `fit`; needed for several steps per call, whose last call is shortened.

    Returns:
        The step, which counts.

    Raises:
        errors.SettingsError: the model, its loss, its optimizer, the shards or the numbers break the law; the message
            says how. `fit` raises it too: after the step for a label without a logit, and at its end if it was stopped within a call.

    Example:
        >>> steps.install(model, shards=4, steps_per_call=4, steps_per_epoch=10)    # calls of 4, 4 and 2 steps
        >>> model.fit(batches, steps_per_epoch=10, epochs=3)
    """
    of_step = {"shards": shards, "seed": seed, "batch_norm": batch_norm}
    train_function = _TrainFunction(Step(model, first_step=first_step, **of_step), steps_per_call, steps_per_epoch)

    def use():
        keras_repairs.repair(model)
        model.train_function = train_function

    def renew():
        counts = train_function.step.counts
        train_function.step = Step(model, **of_step)
        train_function.step.counts = counts
        use()

    def compile_again(*arguments, **options):
        with model.distribute_strategy.scope():  # an optimizer that is named as text is created here
            type(model).compile(model, *arguments, **options)
        renew()

    def fit(*arguments, **options):
        if model.train_function is None:  # after quantize, or a compile that was refused
            renew()
        if model.train_function is train_function:
            given = inspect.signature(type(model).fit).bind(model, *arguments, **options).arguments
            accepted.raise_first(_refusals(given, train_function))
            accepted.check(model)  # it may have been changed since
        train_function.asked = 0
        history = type(model).fit(model, *arguments, **options)
        train_function.check_end()
        return history

    use()
    object.__setattr__(model, "fit", fit)
    object.__setattr__(model, "compile", compile_again)  # Keras' own drops the function without a message
    return train_function.step


def _refusals(given: dict, train_function: "_TrainFunction") -> Iterator[str]:
    """Yield what is wrong with arguments of `fit` that the endless batches of the engine do not go with."""
    if given.get("class_weight") is not None or given.get("sample_weight") is not None:
        yield "fit cannot apply class_weight or sample_weight to these batches; give engine.train_batches(class_weights=[...])"
    loss = train_function.step.loss
    validated = given.get("validation_split") or given.get("validation_data") is not None
    for name in [metric.name for metric, one_hot in loss.metrics if validated and one_hot != loss.one_hot]:
        yield f"metric {name} and the loss take labels in two forms, and Keras' validation has one; use train.run, or leave it out"
    steps, installed = given.get("steps_per_epoch"), train_function.steps_per_epoch
    if train_function.steps_per_call > 1 and steps != installed:
        yield f"steps_per_epoch is {steps} in fit and {installed} in steps.install; with several steps per call, give both the same"
    for batches, steps in (("x", "steps_per_epoch"), ("validation_data", "validation_steps")):
        cardinality = getattr(given.get(batches), "cardinality", 0)
        number = int(cardinality() if callable(cardinality) else cardinality)
        if given.get(steps) is None and (number == tf.data.INFINITE_CARDINALITY or number > 1 << 40):
            yield f"these batches are endless; give {steps}=engine.steps_per_epoch(split, global_batch_size=...)"


class _TrainFunction:
    """What `fit` calls for each step that it counts; the work is done when a call is full, or the epoch is over."""

    def __init__(self, step: Step, steps_per_call: int, steps_per_epoch: int | None):
        steps_per_call = validate.integer("steps_per_call", steps_per_call, 1, MOST_STEPS_PER_CALL)
        if steps_per_call > 1 and steps_per_epoch is None:
            validate.reject("steps_per_call", steps_per_call, "1, or steps_per_epoch as well, as given to fit")
        if steps_per_call > 1:
            steps_per_epoch = validate.integer("steps_per_epoch", steps_per_epoch, 1, validate.MOST_POSITION)
        self.step, self.steps_per_call, self.steps_per_epoch = step, steps_per_call, steps_per_epoch
        self.asked = 0  # steps of this epoch that fit has asked for
        self.logs = {}  # what fit is told
        self.rate = None  # the optimizer's, at the first of them

    def __call__(self, iterator) -> dict:
        self.asked += 1
        last = self.asked == self.steps_per_epoch
        if self.steps_per_call > 1:
            self._check_rate()
        if last or self.asked % self.steps_per_call == 0:
            self.step(iterator, (self.asked - 1) % self.steps_per_call + 1)
            self.logs = self.step.model.get_metrics_result()
        if last:
            self.asked = 0
        return self.logs or self.step.model.get_metrics_result()

    def check_end(self) -> None:
        """Refuse that `fit` has counted steps that were not taken."""
        if left := self.asked % self.steps_per_call:
            why = f"fit stopped {left} steps into a call, by a callback or at the end of the data"
            raise errors.SettingsError(f"{why}, and these were not taken; give steps_per_call=1")

    def _check_rate(self) -> None:
        """Refuse a learning rate that changes within a call: its steps are taken at the end of the call, with the last one."""
        optimizer, first = self.step.model.optimizer, self.asked % self.steps_per_call == 1
        scheduled = isinstance(optimizer._learning_rate, keras.optimizers.schedules.LearningRateSchedule)
        rate = self.step.assigned_rate()
        if not first and not scheduled and rate != self.rate:
            both = f"a callback changed the learning rate from {self.rate:g} to {rate:g}"
            raise errors.SettingsError(f"{both} within a call; give steps_per_call=1")
        self.rate = rate
