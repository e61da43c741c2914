"""The training step under a strategy: the arithmetic is fixed first, devices are assigned to it afterwards.

Floating-point addition is not associative, and "the same up to rounding" does not stay so. Six convolutions without
BatchNorm, in 1 and in 4 shards: weights apart by 3e-9 of their length after 1 step, 8e-5 after 26, 0.14 after 80. The
small CNN in 4 shards, added in the tree below and one after the other: 2e-8, 2e-7, 2e-3 (digits, SGD; the picture is in
tutorial/en/05_replicas.md). The step here gives the same bits on any number of replicas, because the
replicas have no say in the arithmetic:

1. The global batch of `B` rows is always `V` **shards** of `B/V` consecutive rows. Replica `r` of `R` computes the
   shards `[rV/R, (r+1)V/R)`, one after the other.
2. A shard is one pure function: weights, state, rows, labels, random key in; gradient, new state, logits out. It
   does not know how many replicas there are.
3. The `V` results are added in one order, a binary tree over the shard numbers, whatever `R` is.
4. Every replica applies the same update to its copy of the weights.

        rows of the global batch      shards        the tree (V = 4)        replicas may be 1, 2 or 4
        [0 .. B/4)                    shard 0  --+
        [B/4 .. B/2)                  shard 1  --+-- sum --+
        [B/2 .. 3B/4)                 shard 2  --+         +-- sum -> update
        [3B/4 .. B)                   shard 3  --+-- sum --+

The idea of fixed virtual shards is that of virtual nodes (VirtualFlow, Or et al. 2022) and of accuracy-consistent
elasticity (EasyScale, Li et al. 2023). Batch normalization sees its own shard (ghost batch norm, Hoffer et al. 2017).

Example:
    >>> steps.install(model, shards=4)          # from here on fit takes this step
    >>> model.fit(batches, steps_per_epoch=epoch, epochs=3)
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from tfpar import errors, exchange, keras_repairs, objective, tensorflow_repairs

MOST_STEPS_PER_CALL = 512
CALL_SECONDS = 0.25  # how long one call into TensorFlow may last with "auto": a signal waits for its end


def install(
    model: keras.Model,
    *,
    shards: int | None = None,
    seed: int = 0,
    first_step: int = 0,
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
        steps_per_call: steps in one call into TensorFlow, from 1 to 512; several spare Python's time between small steps.
        steps_per_epoch: the same as given to `fit`; needed for several steps per call, whose last call is shortened.

    Returns:
        The step, which counts.

    Raises:
        errors.SettingsError: the model, its loss, its optimizer, the shards or the numbers break the law; the message
            says how.

    Example:
        >>> steps.install(model, shards=4, steps_per_call=4, steps_per_epoch=10)    # calls of 4, 4 and 2 steps
        >>> model.fit(batches, steps_per_epoch=10, epochs=3)
    """
    if model.compiled and model.steps_per_execution != 1:
        raise errors.SettingsError(
            f"steps_per_execution={model.steps_per_execution}: Keras' own several steps per call overrun the epoch or fail "
            "under a strategy. "
            "Compile with steps_per_execution=1, and give steps.install(model, steps_per_call=..., steps_per_epoch=...)"
        )
    if not 1 <= steps_per_call <= MOST_STEPS_PER_CALL or (steps_per_call > 1 and not steps_per_epoch):
        raise errors.SettingsError(
            f"steps_per_call={steps_per_call}, steps_per_epoch={steps_per_epoch}: give 1 to {MOST_STEPS_PER_CALL} steps "
            "per call, and with more than 1 the steps_per_epoch that fit is given"
        )
    step = Step(model, shards=shards, seed=seed, first_step=first_step)
    asked, last, logs = (
        0,
        None,
        {},
    )  # steps of this epoch that Keras has asked for, where they came from, what it is told

    def train_function(iterator):
        nonlocal asked, last, logs
        if last is None or last() is not iterator:  # another fit: what one before left unfinished is not its business
            asked, last = 0, weakref.ref(iterator)
        asked += 1
        if asked % steps_per_call == 0 or asked == steps_per_epoch:
            step(iterator, (asked - 1) % steps_per_call + 1)
            logs = model.get_metrics_result()
        asked = 0 if asked == steps_per_epoch else asked
        return logs or model.get_metrics_result()

    def compile_again(*arguments, **options):
        type(model).compile(model, *arguments, **options)
        step.__init__(model, shards=shards, seed=seed, first_step=step.number)
        keras_repairs.repair(model)
        model.train_function = train_function

    keras_repairs.repair(model)
    model.train_function = train_function
    object.__setattr__(model, "compile", compile_again)  # Keras' own drops the function without a word
    return step


class Step:
    """Training steps of one model: call it with an iterator of batches and a number of steps.

    It counts the steps itself (`number`): an optimizer's `iterations` skips steps that overflow in mixed precision.

    Attributes:
        number: steps done since the run began.
        losses, hits: float64 sum and count over the images since `reset()`, added in the order of the steps.
        images: how many those were.
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
    ):
        """Build everything the step needs. `learning_rate` gives the rate of a step; None leaves the optimizer's alone."""
        self.model, self.strategy, self.seed = model, model.distribute_strategy, seed
        self.replicas = self.strategy.num_replicas_in_sync
        self.shards = self.replicas if shards is None else shards
        self.number, self.learning_rate = first_step, learning_rate
        if self.shards < 1 or self.shards % self.replicas:
            raise errors.SettingsError(
                f"{self.shards} shards cannot be dealt evenly to {self.replicas} replicas; "
                f"take a multiple of {self.replicas}, such as {-(-self.shards // self.replicas) * self.replicas}"
            )
        if all_reduce not in ("ordered", "fast"):
            raise errors.SettingsError(f"all_reduce={all_reduce!r}: give ordered or fast")
        several_workers = isinstance(self.strategy, tf.distribute.MultiWorkerMirroredStrategy)
        self.exchange = exchange.Exchange(self.shards, self.replicas, all_reduce, several_workers)
        objective.check(model, sets_rate=learning_rate is not None)
        self.loss = objective.build(model)
        metrics = [metric.name for metric in model._compile_metrics.metrics] if model._compile_metrics else []
        self.more_metrics = metrics not in ([], ["accuracy"])  # than what the step counts itself
        self.jit_compile = model._compile_config.config.get("jit_compile") is True  # "auto" is XLA in plain Keras alone
        self.scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        self.seeds = [generator.state for generator in seed_generators(model)]
        self.state = [v for v in model.non_trainable_variables if not _holds(self.seeds, v)]
        self.averaged = []  # the float state that a shard changes, known when it is traced: a frozen network has none
        self.shard = self.spec = None
        self.run = tf.function(self._run, autograph=True, reduce_retracing=True)
        self.reset()

    def reset(self) -> None:
        """Start the sums of an epoch anew."""
        self.losses, self.hits, self.images = 0.0, 0, 0

    def __call__(self, iterator, count: int) -> None:
        """Take `count` steps in one call into TensorFlow, and add up the loss and the hits of their images."""
        spec = getattr(iterator, "element_spec", None)
        if self.shard is None or spec != self.spec:
            self.shard, self.spec = self._traced_shard(spec), spec
        numbers = range(self.number, self.number + count)
        rates = np.zeros(MOST_STEPS_PER_CALL, np.float32)  # always this long: another length would be traced anew
        rates[:count] = [self.learning_rate(n) for n in numbers] if self.learning_rate else 0.0
        with _sums_left_to_the_step(self.model.optimizer), tensorflow_repairs.fixed_order():
            losses, hits = self.run(
                iterator, tf.constant(self.number, tf.int64), tf.constant(count), tf.constant(rates)
            )
        for step_losses, step_hits in zip(losses.numpy(), hits.numpy(), strict=True):
            self.losses += math.fsum(step_losses.tolist())
            self.hits += int(step_hits.sum())
            self.images += len(step_losses)
        self.number += count

    def gradient(self, batch: tuple, *, shard: int = 0) -> tf.Tensor:
        """Return what one shard of the present step finds, on one device: its gradient and averaged state, `float32[size]`.

        Args:
            batch: `uint8[rows, height, width, channels]` images and `int32[rows]` labels of this shard.
            shard: its number.
        """
        own = self.exchange.own
        spec = tuple(tf.TensorSpec([own * len(member), *member.shape[1:]], member.dtype) for member in batch)
        if self.shard is None or spec != self.spec:
            self.shard, self.spec = self._traced_shard(spec), spec
        values = [[tf.convert_to_tensor(v.value) for v in group] for group in self._variables()]
        with tensorflow_repairs.fixed_order():
            numbers = tf.constant(self.number, tf.int64), tf.constant(shard)
            packed, _rows = self.shard(*values, tf.constant(1.0), batch, *numbers)
        return packed

    # ---- in the graph

    def _run(self, iterator, first: tf.Tensor, count: tf.Tensor, rates: tf.Tensor):
        losses = tf.TensorArray(tf.float32, count)
        hits = tf.TensorArray(tf.bool, count)
        for i in tf.range(count):
            if self.learning_rate:
                self.model.optimizer.learning_rate.assign(rates[i])
            number = first + tf.cast(i, tf.int64)
            # data-parallel: every replica runs the same step on its own rows of the global batch.
            per_image = self.strategy.run(self._replica_step, args=(next(iterator), number))
            loss, hit = tf.nest.map_structure(lambda v: self.strategy.experimental_local_results(v)[0], per_image)
            losses, hits = losses.write(i, loss), hits.write(i, hit)
        return losses.stack(), hits.stack()

    @tf.autograph.experimental.do_not_convert
    def _replica_step(self, batch, number: tf.Tensor):
        """Take one step on one replica: its shards, the sum over all shards, the update."""
        context = tf.distribute.get_replica_context()
        sums, rows = self._own_shards(batch, number, context)
        total, rows = self.exchange(context, sums, rows)
        self._update(context, total / self.shards)
        losses, labels, logits = rows[:, 0], tf.cast(rows[:, 1], tf.int32), rows[:, 2:]
        self._update_metrics(context, losses, labels, logits)
        return losses, tf.argmax(logits, axis=1, output_type=tf.int32) == labels

    def _update(self, context, mean: tf.Tensor) -> None:
        gradients, state = self._unpacked(mean, self.model.trainable_variables, self.averaged)
        # data-parallel: the same sum and the same optimizer state on every replica give the same new weights.
        self.model.optimizer.apply(gradients, self.model.trainable_variables)
        context.merge_call(_write, args=([v.value for v in self.averaged], state))

    def _traced_shard(self, element_spec):
        """Trace the shard once, for all replicas and outside of them: a trace of a large network takes seconds."""
        own = self.exchange.own

        def one_shard(spec):
            spec = getattr(spec, "_value_specs", (spec,))[0]  # of the first replica, where the dataset is distributed
            rows = getattr(spec, "shape", [None])[0]
            if rows is None or rows % own:
                raise errors.SettingsError(
                    f"batches of {rows} images per replica cannot be cut into {own} equal shards; give batches from "
                    "engine.train_batches, with a global batch that is a multiple of the shards"
                )
            return tf.TensorSpec([rows // own, *spec.shape[1:]], spec.dtype)

        def values(group):
            return [tf.TensorSpec(v.shape, v.dtype) for v in group]

        sealed = tf.function(jit_compile=True, autograph=False) if self.jit_compile else exchange.sealed
        with tensorflow_repairs.fixed_order(), objective.replicas_hidden():
            shard = sealed(self._shard).get_concrete_function(
                *(values(group) for group in self._variables()),
                tf.TensorSpec([], tf.float32),
                tuple(
                    one_shard(spec) for spec in (element_spec if isinstance(element_spec, tuple) else (element_spec,))
                ),
                tf.TensorSpec([], tf.int64),
                tf.TensorSpec([], tf.int32),
            )
        unordered = [] if self.jit_compile else tensorflow_repairs.unordered_sums(shard)
        if unordered:
            raise errors.SettingsError(
                f"the model calls a tf.function that was traced before, with a sum in no fixed order ({unordered[0]}), so its "
                "gradient is not repeatable. Build the model, with that tf.function, again and install the step first"
            )
        return shard

    def _own_shards(self, batch, number, context):
        """Compute this replica's shards one after the other; return what it sends and its rows of losses and logits."""
        own = self.exchange.own
        first = context.replica_id_in_sync_group * own
        parts = [tf.split(member, own) for member in batch]
        values = [[tf.convert_to_tensor(v.value) for v in group] for group in self._variables()]
        scale = tf.convert_to_tensor(self.model.optimizer.dynamic_scale.value) if self.scaled else tf.constant(1.0)
        sums, rows = [], []
        for k, shard in enumerate(zip(*parts, strict=True)):
            with tf.control_dependencies(sums[-1:]):  # one after the other: the memory holds one shard's activations
                packed, row = self.shard(*values, scale, shard, number, first + k)
            sums.append(packed)
            rows.append(row)
        return self.exchange.partial(sums), tf.concat(rows, axis=0)

    def _shard(self, trainable, state, seeds, scale, batch, number, shard):
        """Compute one shard: a pure function of its arguments, which reads no variable.

        Returns the gradient and the averaged state as one vector, and per image (loss, label, logits).
        """
        tf.compat.v1.get_default_graph()._distribution_strategy_stack = []  # a shard belongs to no replica
        images, labels, *weights = batch
        keys = [_key(s, self.seed, number, shard) for s in seeds]
        passed = self._in_order(state, keys)
        with tf.GradientTape() as tape:
            tape.watch(trainable)
            logits, non_trainable, penalties = self.model.stateless_call(
                trainable, passed, images, training=True, return_losses=True
            )
            # Never Keras' reduced loss: it is divided by the number of replicas.
            losses = self.loss(labels, logits)
            if weights:
                losses *= weights[0]
            objective_value = tf.reduce_mean(losses) + sum(tf.cast(p, tf.float32) for p in penalties)
            objective_value = objective_value * scale if self.scaled else objective_value
        gradients = tape.gradient(objective_value, trainable, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        changed = [
            (v, value)
            for v, before, value in zip(self.model.non_trainable_variables, passed, non_trainable, strict=True)
            if value is not before and keras.backend.is_float_dtype(v.dtype)
        ]
        self.averaged = [v for v, _ in changed]
        averaged = [value for _, value in changed]
        flat = [tf.reshape(tf.cast(tf.convert_to_tensor(t), tf.float32), [-1]) for t in [*gradients, *averaged]]
        row = [losses[:, tf.newaxis], tf.cast(labels, tf.float32)[:, tf.newaxis], tf.cast(logits, tf.float32)]
        return tf.concat(flat, axis=0), tf.concat(row, axis=1)

    def _unpacked(self, flat: tf.Tensor, *groups):
        sizes = [[int(np.prod(v.shape)) for v in group] for group in groups]
        pieces = iter(tf.split(flat, [size for group in sizes for size in group]))
        return [[tf.cast(tf.reshape(next(pieces), v.shape), v.dtype) for v in group] for group in groups]

    def _variables(self):
        return self.model.trainable_variables, self.state, self.seeds

    def _in_order(self, state, keys):
        """Return state and keys in the order of `model.non_trainable_variables`."""
        state, keys = iter(state), iter(keys)
        by_seed = {id(seed): next(keys) for seed in self.seeds}
        return [by_seed[id(v)] if id(v) in by_seed else next(state) for v in self.model.non_trainable_variables]

    def _update_metrics(self, context, losses, labels, logits) -> None:
        """Show the whole global batch to Keras' metrics, on one replica: they are read as the sum over all of them."""
        compiled = self.model._compile_metrics

        def update():
            self.model._loss_tracker.update_state(losses)
            for metric in compiled.metrics if compiled else ():
                metric.update_state(objective.labels_for(objective.takes_one_hot(metric), labels, logits), logits)
            return tf.constant(0)

        tf.cond(tf.equal(context.replica_id_in_sync_group, 0), update, lambda: tf.constant(0))


def seed_generators(model: keras.Model) -> list[keras.random.SeedGenerator]:
    """Return the seed generators of a model's random layers, in a fixed order, each once."""
    found = []
    for layer in model._flatten_layers(include_self=True, recursive=True):
        for generator in layer._seed_generators:
            if not any(generator is other for other in found):
                found.append(generator)
    return found


def _key(layer_seed: tf.Tensor, seed: int, number: tf.Tensor, shard: tf.Tensor) -> tf.Tensor:
    """Return the state a random layer draws from: a hash of its seed, the run's, the step and the shard, counter at 0.

    Drawing adds 1 to the second number, so step and shard must not stand there.
    """
    mixed = tf.random.stateless_uniform(
        [2], [tf.cast(layer_seed[0], tf.int64), number], None, None, tf.int64, alg="philox"
    )
    last = tf.stack([mixed[0] + tf.cast(shard, tf.int64), mixed[1] + tf.constant(seed, tf.int64)])
    hashed = tf.random.stateless_uniform([1], last, None, None, tf.uint32, alg="philox")
    return tf.concat([hashed, tf.zeros([1], tf.uint32)], axis=0)


def _holds(variables, variable) -> bool:
    return any(variable is other for other in variables)


@contextlib.contextmanager
def _sums_left_to_the_step(optimizer: keras.optimizers.Optimizer):
    """Let this one optimizer take its gradients as they are, for they are summed already; only while the step is traced,
    or a plain `fit` with the same optimizer afterwards would add up nothing."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)  # on the wrapper of mixed_float16 it would do nothing
    inner._all_reduce_sum_gradients = lambda gradients_and_variables: gradients_and_variables
    try:
        yield
    finally:
        del inner._all_reduce_sum_gradients


def _write(strategy: tf.distribute.Strategy, variables, values) -> None:
    """Write each replica's value into its copy of each variable."""
    for variable, value in zip(variables, values, strict=True):
        strategy.extended.update(variable, lambda v, new: v.assign(new), args=(value,), group=False)
