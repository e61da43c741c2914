"""Which devices compute, and the `tf.distribute` strategy over them.

A replica is one copy of the model on one device. Data parallelism gives each replica its rows of the global
batch and adds up what they found. `strategy()` picks the replicas; everything else in tfpar follows from it.

Example:
    >>> strategy = devices.strategy(simulate=4)      # before anything starts TensorFlow
    >>> print(devices.describe(strategy, global_batch_size=128))
    4 replicas (CPU:0, CPU:1, CPU:2, CPU:3): global batch 128 -> 32 per replica
"""

import tensorflow as tf

from tfpar import errors, validate
from tfpar.settings import checked, multiple
from tfpar.workers import cluster, group


def strategy(*, simulate: int | None = None) -> tf.distribute.Strategy:
    """Return the strategy for all devices of this machine, or for simulated ones.

    The devices of all workers where the environment names several (`MultiWorkerMirroredStrategy`, see `workers`), else
    all GPUs when there are several (`MirroredStrategy`), else the one device, with TensorFlow's default strategy, which
    adds nothing to a step.

    Args:
        simulate: make that many replicas on this machine's CPU instead. They share its cores, so they teach and
            test, and gain no speed. One is the CPU alone.

    Raises:
        errors.SettingsError: `simulate` is no whole number from 1 to 256, or TensorFlow already runs with fewer devices.
        errors.Unavailable: another worker did not come.

    Example:
        >>> with devices.strategy().scope():
        ...     model = models.small_cnn((28, 28, 1), 10)
    """
    if cluster():
        if simulate is not None:
            raise errors.SettingsError(f"simulate={simulate} in one of several workers; leave simulate out")
        return group.strategy()
    if simulate is not None:
        return _simulated(simulate)
    if len(tf.config.list_logical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def _simulated(replicas: int) -> tf.distribute.Strategy:
    replicas = validate.integer("simulate", replicas, 1, validate.MOST_REPLICAS)
    if replicas == 1:
        gpus = tf.config.list_physical_devices("GPU")
        return tf.distribute.OneDeviceStrategy("CPU:0") if gpus else tf.distribute.get_strategy()
    cpu = tf.config.list_physical_devices("CPU")[0]
    there = len(tf.config.get_logical_device_configuration(cpu) or [None])
    if there < replicas:
        # data-parallel: one CPU is cut into several devices, so that several replicas fit on a laptop.
        why = f"simulate={replicas}: TensorFlow has already started with {there} CPU device(s)"
        todo = "call devices.strategy before anything else uses TensorFlow (restart the kernel first)"
        with errors.translated(RuntimeError, errors.SettingsError, f"{why}; {todo}"):
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
    # TensorFlow's default for several CPUs numbers its groups per process: a second strategy of another size would
    # fail with "joining a group with size 4, but that group has size 2". This one has no groups.
    cpus = [f"CPU:{index}" for index in range(replicas)]
    return tf.distribute.MirroredStrategy(cpus, cross_device_ops=tf.distribute.ReductionToOneDevice())


def is_default(strategy: tf.distribute.Strategy) -> bool:
    """Tell whether this is TensorFlow's default strategy: one device, nothing distributed."""
    return type(strategy).__name__ == "_DefaultDistributionStrategy"


def names(strategy: tf.distribute.Strategy) -> list[str]:
    """Return the short names of the devices a strategy computes on, in the order of its replicas."""
    if is_default(strategy):
        return ["GPU:0" if tf.config.list_logical_devices("GPU") else "CPU:0"]
    return [":".join(device.split(":")[-2:]) for device in strategy.extended.worker_devices]


def replicas_of(strategy: tf.distribute.Strategy) -> int:
    """Return the number of replicas of a strategy.

    Raises:
        errors.SettingsError: it is no strategy.
    """
    if not isinstance(strategy, tf.distribute.Strategy):
        validate.reject("strategy", strategy, "what devices.strategy() returns")
    return strategy.num_replicas_in_sync


def per_replica(global_batch_size: int, strategy: tf.distribute.Strategy) -> int:
    """Return the images of one replica in one step.

    Raises:
        errors.SettingsError: the global batch is no whole number, or cannot be divided evenly among the replicas.
    """
    replicas = replicas_of(strategy)
    global_batch_size = validate.integer("global_batch_size", global_batch_size, 1, validate.MOST_BATCH)
    problem = f"global batch {global_batch_size} cannot be divided evenly among {replicas} replicas"
    # data-parallel: the global batch stays, each replica gets its part of it
    return multiple(global_batch_size, replicas, problem) // replicas


def describe(
    strategy: tf.distribute.Strategy, *, global_batch_size: int | None = None, shards: int | None = None
) -> str:
    """Return the one line that says who computes what.

    Raises:
        errors.SettingsError: the global batch cannot be divided evenly among the replicas.
    """
    replicas = replicas_of(strategy)
    workers = group.WorkerGroup(strategy).size
    where = ", ".join(names(strategy)) + f" on each of {workers} workers" * (workers > 1)
    line = f"{replicas} replica{'s'[: replicas > 1]} ({where})"
    if global_batch_size is not None:
        line += f": global batch {global_batch_size} -> {per_replica(global_batch_size, strategy)} per replica"
    if (shards := checked("shards", shards)) is not None:
        line += f", in {shards} shard{'s'[: shards > 1]}"
    return line
