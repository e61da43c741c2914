"""Stages, and the learning rate of every step as a function of the step's number alone.

A rate is stated for a global batch of 256 images. SGD's is multiplied by `B / 256` (the linear scaling rule of Goyal
et al. 2017, arXiv:1706.02677), because a step over k times the images stands for k steps; AdamW's is never scaled.

Example:
    >>> stages = [Stage(epochs=10, learning_rate=0.2, final_learning_rate=0.02), Stage(epochs=5, learning_rate=0.02)]
    >>> round(schedule.rate(stages[0], step=30, steps=100, warmup=10, factor=0.5), 6)
    0.073
"""

from __future__ import annotations

import re
import reprlib
from typing import NamedTuple

from tfpar import errors, validate

WARMUP = 0.1  # of the first stage
MOST_EPOCHS, MOST_RATE = 999_999, 3e38  # a rate is float32


class Stage(NamedTuple):
    """A part of the training: how many epochs, at which rate, falling to which (linearly; None: it stays)."""

    epochs: int
    learning_rate: float
    final_learning_rate: float | None = None


def parse(text: str) -> Stage:
    """Read a stage as the command line writes it: `EPOCHS@RATE` or `EPOCHS@RATE:FINAL`.

    Raises:
        errors.SettingsError: it is not written so.

    Example:
        >>> schedule.parse("10@0.2:0.02")
        Stage(epochs=10, learning_rate=0.2, final_learning_rate=0.02)
    """
    try:
        epochs, rate, final = re.fullmatch(r"(\d{1,6})@([^:]+)(?::([^:]+))?", text).groups()
        return checked(Stage(int(epochs), float(rate), final and float(final)))
    except (AttributeError, TypeError, ValueError) as error:
        raise errors.SettingsError(f"stage {text!r}: write EPOCHS@RATE or EPOCHS@RATE:FINAL, as 10@0.2:0.02") from error


def checked(stage: Stage) -> Stage:
    """Return the stage as plain numbers.

    Raises:
        errors.SettingsError: no epochs, or a rate that is negative or no number.
    """
    try:
        epochs, rate, final = stage if isinstance(stage, (tuple, list)) else ()
        epochs = validate.integer("epochs", epochs, 1, MOST_EPOCHS)
        rate = validate.number("learning_rate", rate, 0, MOST_RATE)
        final = None if final is None else validate.number("final_learning_rate", final, 0, MOST_RATE)
        if rate == 0:
            validate.reject("learning_rate", rate, "a rate above 0")
    except (TypeError, ValueError) as error:  # SettingsError among them
        why = f" ({error})" if isinstance(error, errors.SettingsError) else ""
        raise errors.SettingsError(
            f"{reprlib.repr(stage)}: give Stage(epochs, learning_rate, final_learning_rate) with at least 1 epoch and a rate above 0{why}"
        ) from error
    return Stage(epochs, rate, final)


def rate(stage: Stage, *, step: int, steps: int, warmup: int = 0, factor: float = 1.0) -> float:
    """Return the learning rate of one step.

    Args:
        stage: whose step it is.
        step: counted from 0 within the stage.
        steps: of the whole stage.
        warmup: steps over which the rate rises linearly from 0; of the first stage only.
        factor: `B / 256`, or 1.
    """
    value = stage.learning_rate
    if stage.final_learning_rate is not None:
        value += (stage.final_learning_rate - value) * step / steps
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
    rates = f"{stage.learning_rate:g}"
    if stage.final_learning_rate is not None:
        rates += f" to {stage.final_learning_rate:g}"
    scaled = "" if factor == 1 else f" x {factor:g} for a batch of {global_batch_size}"
    return f"{stage.epochs} epochs of {epoch_steps} steps, learning rate {rates}{scaled}"
