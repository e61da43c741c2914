"""Which layers train in a stage; all others are frozen by Keras' own attribute `trainable`.

Example:
    >>> with freezing.at(model, [Stage(5, 0.1, trainable="head")], 0):
    ...     len(model.trainable_variables)          # kernel and bias of the last layer
    2
"""

import contextlib
import fnmatch
import math
import reprlib
import textwrap
from collections.abc import Iterator, Sequence

import keras

from tfpar import errors, schedule
from tfpar.models import networks
from tfpar.schedule import Stage


def at(model: keras.Model, stages: Sequence[Stage], number: int) -> contextlib.AbstractContextManager[None]:
    """Freeze what does not train in a stage, counted from 0, and give all layers their `trainable` back at the end."""
    named = schedule.trainable_at(stages, number)
    return _frozen(model, [] if named is None else [named])


def at_most(model: keras.Model, stages: Sequence[Stage]) -> contextlib.AbstractContextManager[None]:
    """Let all weights train where a stage says what trains: the optimizer is built for these, and more such stages may be added.

    Raises:
        errors.SettingsError: a name or pattern that no layer with weights has.
    """
    named = [stage.trainable for stage in stages if stage.trainable is not None]
    return _frozen(model, [*named, "all"] if named else [])


def freeze(model: keras.Model, names: str | Sequence[str]) -> None:
    """Let the named layers train and no other: what `Stage.trainable` may be.

    Raises:
        errors.SettingsError: a name or pattern that no layer with weights has.
    """
    chosen = _named(model, [names] if isinstance(names, str) else names)
    model.trainable = True
    for layer in model._flatten_layers(include_self=True, recursive=True):
        inside = layer._flatten_layers(include_self=False, recursive=False)
        if not inside:
            named = id(layer) in chosen or not (layer._trainable_variables or layer._non_trainable_variables)
            layer.trainable = named and not getattr(layer, "is_constant", False)  # as the band of Caffe's LRN
            continue
        for variable in layer._trainable_variables:  # of a layer that has other layers inside and weights of its own
            variable.trainable = id(layer) in chosen


def count(model: keras.Model) -> int:
    """Return how many weights train now."""
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


@contextlib.contextmanager
def _frozen(model: keras.Model, each: Sequence[str | Sequence[str]]) -> Iterator[None]:
    """Apply `freeze` with each of these in turn; at the end give all layers their `trainable` back, so that the same call can
    continue the run."""
    layers = [(layer, layer._trainable) for layer in model._flatten_layers(include_self=True, recursive=True)]
    variables = [(variable, variable.trainable) for variable in model.variables]
    try:
        for names in each:
            freeze(model, names)
        yield
    finally:
        for layer, trainable in layers:
            layer._trainable = trainable
        for variable, trainable in variables:
            variable.trainable = trainable


def _named(model: keras.Model, names: Sequence[str]) -> set[int]:
    """Return the layers with weights that are named, or lie inside a layer that is."""
    layers = list(networks.layers_with_weights(model))  # each with itself and all layers around it
    chosen: set[int] = set()
    for name in names:
        if name == "head":
            found = [around for around in layers if around[0]._trainable_variables][-1:]
        else:
            pattern = "*" if name == "all" else name
            found = [around for around in layers if any(fnmatch.fnmatchcase(a.name, pattern) for a in around)]
        if not found:
            known = textwrap.shorten(", ".join(around[0].name for around in layers), 1500, placeholder=" ...")
            why = f"trainable={reprlib.repr(name)}: no layer with weights has this name"
            raise errors.SettingsError(f"{why}; give all, head, or a name or pattern of {known}")
        chosen |= {id(around[0]) for around in found}
    return chosen
