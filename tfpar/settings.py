"""The settings of a run, each defined once: its default, its range, its words on the command line.

Imports no TensorFlow, so that the command line reads them at once.

Example:
    >>> Settings(stages=[schedule.Stage(10, 0.1)], shards=4).resolved(replicas=2).global_batch_size
    128
    >>> Settings(seed=-1)
    Traceback (most recent call last):
    tfpar.errors.SettingsError: seed=-1: give a whole number from 0 to 4294967295
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

from tfpar import errors, schedule, validate

MOST_STEPS_PER_CALL = 512
DEFAULT_BATCH = 128  # images of a step
AUGMENTATIONS = ("none", "flip", "crop-flip")
ALL_REDUCE = ("ordered", "fast")
BATCH_NORM = ("fused", "keras")


def _setting(default, text: str = "", *, within=None, choices=None, bits: bool = True, check=None):
    """Define a setting.

    Args:
        default: its value where none is given; None, where it is one, is always allowed.
        text: its help on the command line.
        within: lowest and highest number; of an integer where both are integers.
        choices: the words it may be.
        bits: whether the bits of a run depend on it, so that a continued run must have the same.
        check: `check(name, value)` returns the value, for settings of another kind.
    """
    if choices:
        check = functools.partial(validate.choice, words=choices)
    elif isinstance(default, bool):
        check = validate.boolean
    elif within:
        kind = validate.integer if isinstance(within[1], int) else validate.number
        check = functools.partial(kind, lowest=within[0], highest=within[1])
    metadata = {"help": text, "within": within, "choices": choices, "bits": bits, "check": check}
    return field(default=default, metadata=metadata)


def _check_stages(name: str, value) -> tuple[schedule.Stage, ...]:
    if not isinstance(value, (list, tuple)) or isinstance(value, schedule.Stage):
        validate.reject(name, value, "a list of at least one stage, such as [Stage(epochs=10, learning_rate=0.1)]")
    return tuple(schedule.checked(stage) for stage in value)


def _check_auto(name: str, value, lowest: int, highest: int, rule: str) -> int | str:
    """Return `"auto"`, or a whole number within its range."""
    if isinstance(value, str) and value == "auto":
        return value
    with errors.translated(errors.SettingsError, errors.SettingsError, f"{name}={value!r:.60}: give {rule}"):
        return validate.integer(name, value, lowest, highest)


def _check_verbose(name: str, value) -> int | str:
    return _check_auto(name, int(value) if validate.is_truth(value) else value, 0, 2, '0, 1, 2, "auto" or None')


_check_steps = functools.partial(
    _check_auto, lowest=1, highest=MOST_STEPS_PER_CALL, rule=f"auto, or a whole number from 1 to {MOST_STEPS_PER_CALL}"
)


def _check_weights(name: str, value) -> str:
    return value if isinstance(value, str) else validate.reject(name, value, "a name for the weights, as text")


def multiple(number: int, of: int, problem: str) -> int:
    """Return a number that is a multiple of another.

    Raises:
        errors.SettingsError: the problem if it is none, and the next multiple.
    """
    if number < 1 or number % of:
        raise errors.SettingsError(f"{problem}; take a multiple of {of}, such as {max(1, -(-number // of)) * of}")
    return number


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a run; `train.run` describes each of them.

    Raises:
        errors.SettingsError: a value that is not of its kind or out of its range.
    """

    stages: Sequence[schedule.Stage] = _setting((), check=_check_stages)
    global_batch_size: int | None = _setting(None, "default 128", within=(1, validate.MOST_BATCH))
    shards: int | None = _setting(None, "parts of the batch; default 1 per replica", within=(1, validate.MOST_SHARDS))
    seed: int = _setting(0, "of all random numbers; default 0", within=(0, validate.MOST_SEED))
    augment: str = _setting("none", "flip mirrors; crop-flip also shifts by up to 1/8", choices=AUGMENTATIONS)
    class_weights: Sequence[float] | None = _setting(None, "weight of each class in the loss; default: all 1")
    scale_learning_rate: bool = _setting(True, "rates of sgd are for a batch of 256; default")
    warmup_epochs: float | None = _setting(None, "epochs of warm-up; default a tenth of stage 1", within=(0, 1e6))
    all_reduce: str = _setting("ordered", "default ordered; fast: sends less, other bits", choices=ALL_REDUCE)
    batch_norm: str | None = _setting(None, "default fused; keras: slower, as Keras computes it", choices=BATCH_NORM)
    weights: str = _setting("none", check=_check_weights)
    steps_per_call: int | str = _setting("auto", "default auto: 0.25 s a call", bits=False, check=_check_steps)
    checkpoint_seconds: float = _setting(60.0, "seconds between checkpoints; default 60", within=(0, 1e9), bits=False)
    fresh: bool = _setting(False, "start over; the old run is kept beside", bits=False)
    verbose: int | str | None = _setting(None, bits=False, check=_check_verbose)

    def __post_init__(self):
        for name in FIELDS:
            object.__setattr__(self, name, checked(name, getattr(self, name)))
        if self.stages and (self.warmup_epochs or 0) > self.stages[0].epochs:
            first = self.stages[0].epochs
            validate.reject("warmup_epochs", self.warmup_epochs, f"at most the epochs of the first stage, {first}")

    def resolved(self, replicas: int, earlier: dict | None = None) -> "Settings":
        """Return the settings with shards, batch and `batch_norm` filled in, from an earlier run where there is one.

        Raises:
            errors.SettingsError: the shards cannot be shared by the replicas, or the batch cannot be cut into equal shards.
        """
        earlier = earlier or {}
        shards = self.shards or earlier.get("shards", replicas)
        if earlier.get("shards") == shards and shards % replicas:
            fit = " or ".join(str(n) for n in range(1, shards + 1) if shards % n == 0)
            todo = f"continue on {fit} replica{'s'[: shards > 1]}, or start over with --shards {replicas} --fresh"
            raise errors.SettingsError(
                f"this run has {shards} shard{'s'[: shards > 1]} for {replicas} replicas; {todo}"
            )
        multiple(shards, replicas, f"{shards} shards cannot be divided evenly among {replicas} replicas")
        batch = self.global_batch_size or earlier.get("global_batch_size", -(-DEFAULT_BATCH // shards) * shards)
        multiple(batch, shards, f"global batch {batch} cannot be cut into {shards} equal shards")
        batch_norm = self.batch_norm or earlier.get("batch_norm", "fused")
        return replace(self, shards=shards, global_batch_size=batch, batch_norm=batch_norm)

    def of_the_step(self) -> dict:
        """Return the arguments of `steps.Step` that are settings."""
        return {name: getattr(self, name) for name in ("shards", "seed", "all_reduce", "batch_norm")}

    def of_the_batches(self) -> dict:
        """Return the arguments of `engine.train_batches` that are settings."""
        return {name: getattr(self, name) for name in ("global_batch_size", "seed", "augment", "class_weights")}

    def that_decide_the_bits(self) -> dict:
        """Return the settings that must stay when a run continues, as `run.json` holds them."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.metadata["bits"]}
        return values | {"stages": [schedule.plain(stage) for stage in self.stages]}


FIELDS = {each.name: each for each in fields(Settings)}


def checked(name: str, value):
    """Return the value of a setting as a plain object.

    Raises:
        errors.SettingsError: it is not of the setting's kind or out of its range.
    """
    setting = FIELDS[name]
    check = setting.metadata["check"]
    return check(name, value) if check and (value is not None or setting.default is not None) else value
