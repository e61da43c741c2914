"""The step: each replica computes its shards, the replicas exchange the results, and every replica applies the same update."""

import contextlib
import math
import numbers
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from tfpar import devices, errors, validate
from tfpar.settings import MOST_STEPS_PER_CALL, checked, multiple
from tfpar.steps import accepted, objective, tensorflow_repairs
from tfpar.steps.exchange import Exchange
from tfpar.steps.shard import COLUMNS, Shard, is_compiled_by_xla

RATE_OF_STAGES = "{who} {what}; train.run sets it in every step, so give the rates in the stages: Stage(10, 0.2, 0.02)"


@dataclass
class Counts:
    """What a step counts.

    Attributes:
        step: steps done since the run began.
        losses, correct: sum of the losses in 64 bits, and number of correct answers, of the images since `restart()`.
        images: how many those were.
    """

    step: int = 0
    losses: float = 0.0
    correct: int = 0
    images: int = 0

    def restart(self) -> None:
        """Reset the sums at the start of an epoch."""
        self.losses, self.correct, self.images = 0.0, 0, 0


class Step:
    """Training steps of one model: call it with an iterator of batches and a number of steps.

    It counts the steps itself, because an optimizer's `iterations` skips steps that overflow in mixed precision.

    Attributes:
        counts: steps done, and loss and correct answers of their images, added in the order of the steps.
        exchange: how the replicas exchange vectors.
        shards_at_once: how many shards a replica computes at the same time, and holds in memory: two where one replica has all cores of
            the process, because the operations of one small shard leave cores idle; otherwise one.
        loss: returns the loss of each image.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        shards: int | None = None,
        seed: int = 0,
        first_step: int = 0,
        learning_rate: Callable[[int], float] | None = None,
        all_reduce: str = "ordered",
        batch_norm: str = "fused",
    ):
        """Build everything that the step needs.

        Args:
            model: compiled.
            shards: number of shards in the global batch; None is one per replica.
            seed: seed of the run, from which random layers draw.
            first_step: number of the first step.
            learning_rate: function from the number of a step to its learning rate. If None, the optimizer's own is used.
            all_reduce: `"ordered"` or `"fast"`.
            batch_norm: `"fused"`, or `"keras"`: composed of several operations, as Keras does it (see `normalization`).

        Raises:
            errors.SettingsError: the model, its loss or its optimizer is refused (see `accepted`), or the numbers do not fit.
        """
        accepted.check(model, sets_rate=learning_rate is not None)
        self.model, self.strategy, self.seed = model, model.distribute_strategy, checked("seed", seed)
        first_step = validate.integer("first_step", first_step, 0, validate.MOST_POSITION)
        if not (learning_rate is None or callable(learning_rate)):
            validate.reject("learning_rate", learning_rate, "a function of the step's number, or None")
        self.learning_rate, self.counts = learning_rate, Counts(first_step)
        self.batch_norm = checked("batch_norm", batch_norm) or "fused"
        self.exchange = _exchange(self.strategy, shards, all_reduce)
        self.shards_at_once = min(self.exchange.shards_per_replica, 1 + (devices.names(self.strategy) == ["CPU:0"]))
        self.loss = objective.build(model)
        # Whether there are metrics besides the accuracy, which the step counts itself.
        self.more_metrics = [metric.name for metric, _ in self.loss.metrics] not in ([], ["accuracy"])
        self.jit_compile = is_compiled_by_xla(model)
        self.variables = model.variables
        self.last_rate: np.float32 | None = None  # that this step has assigned
        self.renew()

    def renew(self) -> None:
        """Discard the traced shard, as is needed after layers were frozen or unfrozen. The counts are kept."""
        self.shard = self.spec = None
        self.traced: list[tuple] = []  # see `accepted.constants`
        self.training = [variable.trainable for variable in self.variables]
        self.run = tf.function(self._run, autograph=True, reduce_retracing=True)

    def __call__(self, iterator, count: int) -> None:
        """Run `count` steps (at most `MOST_STEPS_PER_CALL`) in one TensorFlow call, and add their losses and correct answers to `counts`."""
        spec = getattr(iterator, "element_spec", None)
        self._check_batches(spec)
        self.trace(spec)
        first, rates = self.counts.step, np.zeros(MOST_STEPS_PER_CALL, np.float32)  # one length, so one trace
        if self.learning_rate:
            self._check_rate()
            rates = rates.astype(keras.backend.standardize_dtype(self.model.optimizer.learning_rate.dtype))
            rates[:count] = [self.learning_rate(first + k) for k in range(count)]
            self.last_rate = rates[count - 1]
        with all_reduce_left_to_the_step(self.model.optimizer), tensorflow_repairs.fixed_order():
            numbers = tf.constant(first, tf.int64), tf.constant(count), tf.constant(rates)
            losses, correct, labels = self.run(iterator, *numbers)
        _check_labels(labels.numpy(), self.model.outputs[0].shape[-1])
        for step_losses, step_correct in zip(losses.numpy(), correct.numpy(), strict=True):
            self.counts.losses += math.fsum(step_losses.tolist())
            self.counts.correct += int(step_correct.sum())
            self.counts.images += len(step_losses)
        self.counts.step += count

    def _check_batches(self, element_spec) -> None:
        """Refuse batches that were made for a strategy other than the model's."""
        of_batch = len(getattr(tf.nest.flatten(element_spec)[0], "_value_specs", [None]))
        if of_batch != self.exchange.replicas and not self.exchange.several_workers:
            both = f"{of_batch} replica{'s' if of_batch > 1 else ''}, and the model was created for {self.exchange.replicas}"
            todo = "give both the same strategy: create the model inside strategy.scope()"
            raise errors.SettingsError(f"the batches are for {both}; {todo}")

    def assigned_rate(self) -> np.float32:
        """Return the optimizer's current learning rate."""
        return np.float32(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))

    def _check_rate(self) -> None:
        """Refuse a learning rate that other code has assigned since the last step."""
        rate = self.assigned_rate()
        if self.last_rate is not None and rate != self.last_rate:
            raise errors.SettingsError(RATE_OF_STAGES.format(who="a callback", what=f"assigned learning_rate={rate:g}"))

    def is_outdated(self) -> bool:
        """Return whether a layer was frozen or unfrozen since this step was made or renewed."""
        return self.training != [variable.trainable for variable in self.variables]

    def trace(self, element_spec) -> Shard:
        """Return the shard for the batches of one replica; traced on the first call, and again if `element_spec` changes."""
        if self.is_outdated():
            todo = "in a run say it in the stages: Stage(5, 0.1, trainable='head'), and for fit call compile again"
            raise errors.SettingsError(f"a layer was frozen or unfrozen after this step was made; {todo}")
        for thing, name, value in self.traced:
            now = getattr(thing, name, None)
            if now is not value and not (isinstance(now, numbers.Real) and now == value):
                why = f"{getattr(thing, 'name', type(thing).__name__)}.{name} is {now!r:.40}, and the step was traced with {value!r:.40}"
                todo = "compile with a new optimizer after such a change, make it a variable of the layer (add_weight), or leave it out"
                raise errors.SettingsError(f"{why}; {todo}")
        members = element_spec if isinstance(element_spec, tuple) else (element_spec,)
        batch = [_of_one_shard(member, self.exchange.shards_per_replica) for member in members]
        if self.shard is None or batch != self.spec:
            accepted.raise_first(self._refused_members(batch))
            before = {(id(thing), name): value for thing, name, value in accepted.constants(self.model)}
            with accepted.assignments() as assigned:
                self.shard = Shard(self.model, self.loss, batch, seed=self.seed, batch_norm=self.batch_norm)
            for place in assigned:  # what a layer sets itself when it is called is not a change
                before.pop(place, None)
            found = accepted.constants(self.model)
            self.spec, self.traced = batch, [it for it in found if before.get((id(it[0]), it[1]), self) == it[2]]
        return self.shard

    def _refused_members(self, batch: list[tf.TensorSpec]) -> Iterator[str]:
        (given, *others), image = [tuple(member.shape[1:]) for member in batch], tuple(self.model.inputs[0].shape[1:])
        if given != image or len(others) not in (1, 2) or others[1:] not in ([], [()]):
            yield f"batches hold members {[given, *others]}; give images {image}, labels, and optionally one weight for each image"
        if self.more_metrics and batch[1].shape.rank == 2:
            yield "metrics besides accuracy need integer labels [batch]; give the batches those, or compile with accuracy alone"

    def gradient(self, batch: tuple, *, shard: int = 0) -> tf.Tensor:
        """Compute one shard with the current weights on one device, and return its vector `float32[size]`: the gradient, multiplied by the
        loss scale of `mixed_float16`, then the state.

        Args:
            batch: images `[rows, height, width, channels]` in the dtype of the model's input, and labels `int32[rows]`.
            shard: the shard number.
        """
        count = self.exchange.shards_per_replica
        traced = self.trace(tuple(tf.TensorSpec([count * len(m), *m.shape[1:]], m.dtype) for m in batch))
        numbers = tf.constant(self.counts.step, tf.int64), tf.constant(shard)
        with tensorflow_repairs.fixed_order():
            return traced(traced.values(), batch, *numbers)[0]

    # ---- in the graph

    def _run(self, iterator, first: tf.Tensor, count: tf.Tensor, rates: tf.Tensor):
        losses = tf.TensorArray(tf.float32, count)
        correct, labels = tf.TensorArray(tf.bool, count), tf.TensorArray(tf.int32, count)
        for i in tf.range(count):
            if self.learning_rate:
                self.model.optimizer.learning_rate.assign(rates[i])
            number = first + tf.cast(i, tf.int64)
            # data-parallel: every replica runs the same step on its own rows of the global batch.
            per_image = self.strategy.run(self._replica_step, args=(next(iterator), number))
            loss, right, label = [self.strategy.experimental_local_results(v)[0] for v in per_image]
            losses, correct, labels = losses.write(i, loss), correct.write(i, right), labels.write(i, label)
        return losses.stack(), correct.stack(), labels.stack()

    @tf.autograph.experimental.do_not_convert
    def _replica_step(self, batch, number: tf.Tensor):
        """Take one step on one replica: its shards, the sum over all shards, the update."""
        context = tf.distribute.get_replica_context()
        vectors, rows = self._compute_shards(context, batch, number)
        total, rows = self.exchange(context, vectors, rows)
        self.update(context, total / self.exchange.shards)
        losses, penalties, labels = tf.unstack(rows[:, :COLUMNS], axis=1)
        labels, logits = tf.cast(labels, tf.int32), rows[:, COLUMNS:]
        self._update_metrics(context, losses + penalties, labels, logits)
        return losses, tf.argmax(logits, axis=1, output_type=tf.int32) == labels, labels

    def _compute_shards(self, context, batch, number: tf.Tensor):
        """Compute this replica's shards, `shards_at_once` at a time; return their vectors, and all rows of losses and logits."""
        count, values = self.exchange.shards_per_replica, self.shard.values()
        batches = zip(*(tf.split(member, count) for member in batch), strict=True)
        vectors, rows = [], []
        for k, shard_batch in enumerate(batches):
            # A shard waits for an earlier one, so that memory holds the activations of `shards_at_once` shards.
            with tf.control_dependencies(vectors[: k + 1 - self.shards_at_once][-1:]):
                vector, row = self.shard(values, shard_batch, number, context.replica_id_in_sync_group * count + k)
            vectors.append(vector)
            rows.append(row)
        return vectors, tf.concat(rows, axis=0)

    def update(self, context, mean: tf.Tensor) -> None:
        """Apply the mean over all shards, `float32[size]`, on this replica."""
        gradients, state = self.shard.vector.unpack(mean)
        # data-parallel: the same sum and the same optimizer state on every replica give the same new weights.
        self.model.optimizer.apply_gradients(zip(gradients, self.shard.trained, strict=True))
        context.merge_call(_write, args=([v.value for v in self.shard.averaged], state))

    def _update_metrics(self, context, losses, labels, logits) -> None:
        """Update Keras' metrics with the whole global batch, on replica 0 only: Keras sums metric variables over the replicas when
        it reads them, so updating on every replica would count each image `R` times."""

        def update():
            self.model._loss_tracker.update_state(losses)
            for metric, one_hot in self.loss.metrics:
                metric.update_state(objective.labels_for(one_hot, labels, logits), logits)
            return tf.constant(0)

        tf.cond(tf.equal(context.replica_id_in_sync_group, 0), update, lambda: tf.constant(0))


def _check_labels(labels: np.ndarray, classes: int) -> None:
    """Refuse labels outside the model's classes, which the loss has moved into their range (see `objective.labels_for`). The steps of this
    call have been applied by then."""
    outside = labels[(labels < 0) | (labels >= classes)]
    if outside.size:
        why = f"label {outside[0]}: the model has {classes} logits, so labels are 0 to {classes - 1}"
        raise errors.SettingsError(f"{why}; number the classes from 0, or build the model with more logits")


def _exchange(strategy: tf.distribute.Strategy, shards: int | None, all_reduce: str) -> Exchange:
    replicas = strategy.num_replicas_in_sync
    shards = checked("shards", shards) or replicas
    multiple(shards, replicas, f"{shards} shards cannot be divided evenly among {replicas} replicas")
    several_workers = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return Exchange(shards, replicas, checked("all_reduce", all_reduce), several_workers)


def _of_one_shard(spec, count: int) -> tf.TensorSpec:
    """Return the spec of a shard's part of a batch that one replica cuts into `count` shards."""
    spec = getattr(spec, "_value_specs", (spec,))[0]  # of the first replica, where the dataset is distributed
    rows = getattr(spec, "shape", [None])[0]
    if rows is None or rows % count:
        why = f"batches of {rows or 'an unknown number of'} images per replica cannot be cut into {count} equal shards"
        raise errors.SettingsError(f"{why}; give batches from engine.train_batches, or batch(B, drop_remainder=True)")
    return tf.TensorSpec([rows // count, *spec.shape[1:]], spec.dtype)


def all_reduce_left_to_the_step(optimizer: keras.optimizers.Optimizer) -> contextlib.AbstractContextManager:
    """Disable the optimizer's own all-reduce during a step, because the gradients have already been summed. It is restored afterwards,
    so that a plain `fit` with the same optimizer still sums its gradients."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)  # on the wrapper of mixed_float16 it would do nothing
    return mock.patch.object(inner, "_all_reduce_sum_gradients", lambda pairs: pairs)


def _write(strategy: tf.distribute.Strategy, variables, values) -> None:
    """Write each replica's value into its copy of each variable."""
    for variable, value in zip(variables, values, strict=True):
        strategy.extended.update(variable, lambda v, new: v.assign(new), args=(value,), group=False)
