"""Random numbers while a shard is traced: from what they follow, and which are refused because the trace would keep them.

Example:
    >>> state = randomness.seed_state(tf.constant([7, 0], tf.uint32), 0, tf.constant(12, tf.int64), tf.constant(3))
    >>> state.shape, state.dtype  # of step 12 and shard 3: the same on every replica
    (TensorShape([2]), tf.uint32)
"""

import contextlib
import functools
import inspect
import itertools
import random
import sys
import sysconfig
import threading
import types
from collections.abc import Iterator
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from keras.src.random import seed_generator

from tfpar import errors

GENERATORS = (random.Random, np.random.RandomState, np.random.Generator)
INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
NO_DRAWS = ("seed", "getstate", "setstate", "get_state", "set_state")
_one_trace = threading.RLock()  # whoever traces replaces functions of modules


def seed_state(layer_seed: tf.Tensor, seed: int, step: tf.Tensor, shard: tf.Tensor) -> tf.Tensor:
    """Return the seed state `uint32[2]` of a random layer: a hash of layer seed, run seed, step and shard, and a counter of 0.

    Keras increments the counter at each draw. A counter that started at the shard number would repeat draws of the next shard, so step
    and shard are hashed.
    """
    draw = functools.partial(tf.random.stateless_uniform, minval=None, maxval=None, alg="philox")
    mixed = draw([2], [tf.cast(layer_seed[0], tf.int64), step], dtype=tf.int64)
    last = tf.stack([mixed[0] + tf.cast(shard, tf.int64), mixed[1] + tf.constant(seed, tf.int64)])
    return tf.concat([draw([1], last, dtype=tf.uint32), tf.zeros([1], tf.uint32)], axis=0)


@contextlib.contextmanager
def drawn_from(state: tf.Tensor) -> Iterator[None]:
    """Let `keras.random` draw from this state where it gets no seed. Keras' own global generator would give the same numbers in every
    step, because a pure function changes no variable."""
    draws = itertools.count()

    def next_state(ordered: bool = True) -> tf.Tensor:
        return state + tf.constant([0, next(draws)], tf.uint32)

    with mock.patch.object(seed_generator, "global_seed_generator", lambda: mock.Mock(next=next_state)):
        yield


@contextlib.contextmanager
def nothing_drawn(model: keras.Model) -> Iterator[None]:
    """Raise `errors.SettingsError` if this thread draws from `random` or `numpy.random`: the trace would keep the number for all steps.

    Noticed are the functions of both modules, also where a module of the user's has imported one by its name, and a generator that is an
    attribute of a layer. Unnoticed are other generators that were made before."""
    drawn, noted, thread, seeded = [], {}, threading.get_ident(), np.random.default_rng
    things = [thing for layer in model._flatten_layers() for thing in vars(layer).values()]
    own = [thing for thing in things if type(thing) in GENERATORS and thing is not np.random.mtrand._rand]

    def noting(function):
        def call(*arguments, **options):  # in another thread a generator may make batches
            if threading.get_ident() == thread and not (function is seeded and (arguments or options)):
                drawn.append(function)
            return function(*arguments, **options)

        return call

    with _one_trace, contextlib.ExitStack() as stack:
        for module in (random, np.random):
            drawing = {name: getattr(module, name) for name in module.__all__ if name not in NO_DRAWS}
            functions = {name: noting(each) for name, each in drawing.items() if not inspect.isclass(each)}
            noted |= {id(drawing[name]): function for name, function in functions.items()}
            stack.enter_context(mock.patch.multiple(module, **functions))
        for names in [vars(module) for module in [*sys.modules.values()] if _is_of_user(module)]:
            imported = {name: each for name, each in [*names.items()] if id(each) in noted}
            names.update({name: noted[id(each)] for name, each in imported.items()})
            stack.callback(names.update, imported)
        before = [*map(_state, own)]
        yield
    if drawn or [*map(_state, own)] != before:
        why = "the model or its loss draws from random or numpy.random (as AugMix does), in each step the same number"
        raise errors.SettingsError(f"{why}; use keras.random with a SeedGenerator, or leave that layer out")


def _is_of_user(module) -> bool:
    """Tell whether a module is neither installed nor a part of Python."""
    file = getattr(module, "__file__", None) or ""
    return isinstance(module, types.ModuleType) and not file.startswith(INSTALLED)


def _state(generator) -> str:
    if isinstance(generator, np.random.Generator):
        return repr(generator.bit_generator.state)
    return repr(generator.getstate() if isinstance(generator, random.Random) else generator.get_state())
