"""Stages, and the learning rate of every step as a function of the step's number alone.

A rate is stated for a global batch of 256 images. SGD's is multiplied by `B / 256` (the linear scaling rule of Goyal
et al. 2017, arXiv:1706.02677), because a step over k times the images stands for k steps; AdamW's is never scaled.

Example:
    >>> stages = [Stage(epochs=10, learning_rate=0.2, final_learning_rate=0.02), Stage(epochs=5, learning_rate=0.02)]
    >>> round(schedule.rate(stages[0], step=30, steps=100, warmup=10, factor=0.5), 6)
    0.073
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from tfpar import errors, validate

WARMUP = 0.1  # of the first stage
MOST_EPOCHS, MOST_RATE = 999_999, 3e38  # a rate is float32


class Schedule(NamedTuple):
    """How the learning rate changes within a stage, as Caffe's solvers name it; steps count from the beginning of the stage.

    `train.run` multiplies the rates by `global_batch_size / 256` for SGD, and lets them rise over the first tenth of the first stage;
    for Caffe's own numbers give `scale_learning_rate=False` and `warmup_epochs=0`.

    | policy | rate at step `i`, from `b`, the stage's `learning_rate` | parameters |
    |---|---|---|
    | `constant` | `b` | |
    | `linear`, `cosine` | from `b` to the stage's `final_learning_rate`, 0 if it has none | |
    | `step` | `b * gamma ** (i // steps[0])` | gamma, steps |
    | `multistep` | `b * gamma ** (how many of steps are <= i)` | gamma, steps |
    | `exp` | `b * gamma ** i` | gamma |
    | `inv` | `b * (1 + gamma * i) ** -power` | gamma, power |
    | `poly` | `b * (1 - i / steps[0]) ** power`; `steps` may be left out: the steps of the stage | power |
    | `sigmoid` | `b / (1 + exp(-gamma * (i - steps[0])))` | gamma, steps |

    With `end`, of any policy, the stage ends after so many steps, within its last epoch.

    Example:
        >>> Stage(10, 0.01, schedule=Schedule("inv", gamma=0.0001, power=0.75))
        Stage(epochs=10, ...)
    """

    policy: str
    gamma: float | None = None
    power: float | None = None
    steps: tuple[int, ...] = ()
    end: int | None = None


# The parameters of each policy, and what it multiplies the rate by at step `i` of a stage of `n`.
POLICIES = {
    "constant": ((), lambda s, i, n: 1.0),
    "step": (("gamma", "steps"), lambda s, i, n: s.gamma ** (i // s.steps[0])),
    "multistep": (("gamma", "steps"), lambda s, i, n: s.gamma ** sum(step <= i for step in s.steps)),
    "exp": (("gamma",), lambda s, i, n: s.gamma**i),
    "inv": (("gamma", "power"), lambda s, i, n: (1 + s.gamma * i) ** -s.power),
    "poly": (("power",), lambda s, i, n: max(0.0, 1 - i / (s.steps[0] if s.steps else n)) ** s.power),
    "sigmoid": (("gamma", "steps"), lambda s, i, n: 1 / (1 + math.exp(min(s.gamma * (s.steps[0] - i), 700.0)))),
}
# How much of the way from the first rate to the last is done.
TO_FINAL = {"linear": lambda done: done, "cosine": lambda done: (1 - math.cos(math.pi * done)) / 2}


class Stage(NamedTuple):
    """A part of the training.

    Attributes:
        epochs: how many.
        learning_rate: at its beginning.
        final_learning_rate: at its end, of the schedules `"linear"` and `"cosine"`.
        trainable: which layers train: `"all"`, `"head"` (the last layer with weights), the name of a layer or a pattern such as
            `"block5_*"`, which is looked for in nested models too, or a list of these. All others are frozen, and a frozen
            `BatchNormalization` runs in inference mode. None leaves it as the stage before had it, and the first stage as the
            model was given. A layer that is itself named `all` or `head` is reached by a pattern such as `hea[d]`.
        schedule: `"linear"`, `"cosine"`, `"constant"` or a `Schedule`. None is linear with a `final_learning_rate`, else constant.

    Example:
        >>> stages = [Stage(5, 0.1, trainable="head"), Stage(10, 0.01, 0, trainable="all", schedule="cosine")]
    """

    epochs: int
    learning_rate: float
    final_learning_rate: float | None = None
    trainable: str | Sequence[str] | None = None
    schedule: str | Schedule | None = None


FORM = r"(\d{1,6})@([^:~/]+)(?::([^:~/]+))?(?:~(\w+))?(?:/(.+))?"


def parse(text: str) -> Stage:
    """Read a stage as the command line writes it: `EPOCHS@RATE`, `:FINAL`, `~SCHEDULE` and `/TRAINABLE`; the last three may be left out.

    Raises:
        errors.SettingsError: it is not written so.

    Example:
        >>> schedule.parse("10@0.2:0.02")
        Stage(epochs=10, learning_rate=0.2, final_learning_rate=0.02, trainable=None, schedule=None)
        >>> schedule.parse("10@0.1:0~cosine/head,block5_*").trainable
        ('head', 'block5_*')
    """
    wrong = f"stage {text!r}: write EPOCHS@RATE[:FINAL][~SCHEDULE][/TRAINABLE], as 10@0.2:0.02 or 5@0.1:0~cosine/head"
    with errors.translated((AttributeError, TypeError, ValueError), errors.SettingsError, wrong):
        epochs, rate, final, policy, trainable = re.fullmatch(FORM, text).groups()
        names = tuple(trainable.split(",")) if trainable and "," in trainable else trainable
        stage = Stage(int(epochs), float(rate), final and float(final), names, policy)
    with errors.translated(errors.SettingsError, errors.SettingsError, f"stage {text!r}: {errors.REASON}"):
        return checked(stage)


def checked(stage: Stage) -> Stage:
    """Return the stage as plain numbers, words and tuples.

    Raises:
        errors.SettingsError: no epochs, a rate that is negative or no number, no such schedule, or parameters that it does not take.
    """
    if not isinstance(stage, (tuple, list)) or not 3 <= len(stage) <= len(Stage._fields):
        validate.reject("stage", stage, "Stage(epochs, learning_rate), with at least 1 epoch and a rate above 0")
    epochs, rate, final, trainable, given = Stage(*stage)
    epochs = validate.integer("epochs", epochs, 1, MOST_EPOCHS)
    if validate.number("learning_rate", rate, 0, MOST_RATE) == 0:
        validate.reject("learning_rate", rate, "a rate above 0")
    final = None if final is None else validate.number("final_learning_rate", final, 0, MOST_RATE)
    names = [trainable] if isinstance(trainable, str) else trainable
    right = isinstance(names, (tuple, list)) and names and all(isinstance(n, str) and n for n in names)
    if names is not None and not right:
        validate.reject("trainable", trainable, "all, head, the name or pattern of a layer, or a list of these")
    trainable = tuple(trainable) if isinstance(trainable, list) else trainable
    return Stage(epochs, float(rate), final, trainable, None if given is None else _checked_schedule(given, final))


def _checked_schedule(given, final: float | None) -> Schedule | str:
    given = Schedule(given) if isinstance(given, str) else given
    if not isinstance(given, (tuple, list)) or not 1 <= len(given) <= len(Schedule._fields):
        validate.reject("schedule", given, "linear, cosine, constant, or a Schedule")
    policy, gamma, power, steps, end = Schedule(*given)
    needed = {*POLICIES.get(validate.choice("schedule", policy, (*TO_FINAL, *POLICIES)), ((),))[0]}
    there = {name: value for name, value in (("gamma", gamma), ("power", power)) if value is not None}
    steps = steps if isinstance(steps, (tuple, list)) else (steps,)
    if {*there, *["steps"] * bool(steps)} not in (needed, needed | {"steps"} if policy == "poly" else needed):
        names = ", ".join(sorted(needed)) or "none"
        validate.reject("schedule", given, f"with {policy} just these parameters: {names}")
    if final is not None and policy in POLICIES:
        validate.reject("final_learning_rate", final, f"none with {policy}, only with linear and cosine")
    most = 1 if policy in ("step", "multistep", "exp") else MOST_RATE  # a factor above 1 ends in infinity
    least = -MOST_RATE if policy == "sigmoid" else 0  # it falls where gamma is negative
    numbers = {name: validate.number(name, value, least, most) for name, value in there.items()}
    if end is not None:
        numbers["end"] = validate.integer("end", end, 1, 2**62)
    steps = tuple(validate.integer("steps", step, 1, 2**62) for step in steps)
    if len(steps) > 1 and (policy != "multistep" or sorted(steps) != list(steps)):
        validate.reject("steps", steps, "one number; with multistep also several, in rising order")
    return Schedule(policy, **numbers, steps=steps) if numbers or steps else policy


def trainable_at(stages: Sequence[Stage], number: int) -> str | Sequence[str] | None:
    """Return what trains in a stage, counted from 0: what it names, or else the last one before it that names something."""
    return next((stage.trainable for stage in reversed(stages[: number + 1]) if stage.trainable is not None), None)


def plain(stage: Stage) -> list:
    """Return a stage as `run.json` holds it: what an earlier version did not know is left out where it is not given."""
    values = list(stage)
    if isinstance(stage.schedule, Schedule) and stage.schedule.end is None:
        values[-1] = stage.schedule[:-1]
    while len(values) > 3 and values[-1] is None:
        values.pop()
    return values


def steps_of(stage: Stage, epoch_steps: int) -> int:
    """Return the steps of a stage: of all its epochs, or until the `end` of its schedule."""
    end = getattr(stage.schedule, "end", None)
    return min(stage.epochs * epoch_steps, end or 2**62)


def rate(stage: Stage, *, step: int, steps: int, warmup: int = 0, factor: float = 1.0) -> float:
    """Return the learning rate of one step.

    Args:
        stage: whose step it is.
        step: counted from 0 within the stage.
        steps: of the whole stage.
        warmup: steps over which the rate rises linearly from 0; of the first stage only.
        factor: `B / 256`, or 1.
    """
    value, final = stage.learning_rate, stage.final_learning_rate
    given = stage.schedule or ("constant" if final is None else "linear")
    given = Schedule(given) if isinstance(given, str) else given
    if given.policy in TO_FINAL:
        value += ((final or 0.0) - value) * TO_FINAL[given.policy](step / steps)
    else:
        value *= POLICIES[given.policy][1](given, step, steps)
    if step < warmup:
        value *= (step + 1) / warmup
    return value * factor


def scale(optimizer, global_batch_size: int, *, scale_learning_rate: bool = True) -> float:
    """Return the factor on all rates: `B / 256` for SGD, else 1."""
    import keras  # here, so that the command line reads its stages without waiting for it

    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return global_batch_size / 256 if scale_learning_rate and isinstance(inner, keras.optimizers.SGD) else 1.0


def describe(stage: Stage, *, epoch_steps: int, factor: float, global_batch_size: int) -> str:
    """Return the line about a stage: its epochs, its steps, its rates."""
    scaled = "" if factor == 1 else f" x {factor:g} for a batch of {global_batch_size}"
    trains = "" if stage.trainable is None else f"; trains {trained(stage.trainable)}"
    counted = f"{stage.epochs} epoch{'s'[: stage.epochs > 1]} of {epoch_steps} step{'s'[: epoch_steps > 1]}"
    return f"{counted}, learning rate {rates(stage)}{scaled}{trains}"


def rates(stage: Stage) -> str:
    """Return the rates of a stage in words.

    Example:
        >>> schedule.rates(Stage(10, 0.2, 0, schedule="cosine"))
        '0.2 to 0, cosine'
        >>> schedule.rates(Stage(10, 0.01, schedule=Schedule("inv", gamma=0.0001, power=0.75)))
        '0.01, inv gamma=0.0001 power=0.75'
    """
    text = f"{stage.learning_rate:g}"
    if stage.final_learning_rate is not None:
        text += f" to {stage.final_learning_rate:g}"
    if stage.schedule is None:
        return text
    policy, *parameters = (stage.schedule,) if isinstance(stage.schedule, str) else stage.schedule
    named = zip(Schedule._fields[1:], parameters, strict=False)
    return f"{text}, {' '.join([policy, *(f'{name}={value}' for name, value in named if value not in (None, ()))])}"


def trained(names: str | Sequence[str] | None) -> str:
    """Return what `Stage.trainable` names, in words; empty for None."""
    return ", ".join([names] if isinstance(names, str) else names or ())
