"""Make TensorFlow compute the same bits every time: enter `fixed_order` while a graph is traced and run.

Two things in TensorFlow decide the order of a sum that no user sees, and a sum in another order has other bits:

- **`AddN`** adds its inputs starting with whichever buffer it may reuse, so the order depends on which operation finished
  first. A gradient tape writes an `AddN` wherever a tensor is used more than once: a sum of three for each of Keras'
  BatchNormalization layers, of up to seven in NASNet. With two inputs the order does not matter, since a + b = b + a.
  `enable_op_determinism` does not help. Seen in TensorFlow 2.20 and 2.21: the gradient of ResNet-20 at 96 px, batch 16, differs
  in two repeats of three on an idle machine.
- **The arithmetic optimizer** orders sums by the names of their operations, and Keras counts its layers' names up within a
  process, so the second NASNetMobile of a process would get other bits than the first. It would also turn a chain of additions
  back into an `AddN`.

`tests/steps/test_tensorflow_repairs.py` fails when one of them is no longer needed.

Example:
    >>> add = tf.function(lambda a, b, c: tf.add_n([a, b, c]))
    >>> with fixed_order():
    ...     total = add(tf.constant(1e8), tf.constant(-1e8), tf.constant(1.0))      # traced here for the first time
    >>> float(total)
    1.0
"""

import contextlib
import functools
from collections.abc import Iterator
from unittest import mock

import tensorflow as tf
from tensorflow.python.ops import gen_math_ops

_add_n = gen_math_ops.add_n


@contextlib.contextmanager
def fixed_order() -> Iterator[None]:
    """Let every graph that is traced meanwhile add in one order: of three or more inputs, from the first to the last."""
    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    try:
        with mock.patch.object(gen_math_ops, "add_n", _chain):  # both the tape and tf.add_n call it by this name
            yield
    finally:
        tf.config.optimizer.set_experimental_options({"arithmetic_optimization": True} | before)


def nodes_of(function) -> list:
    """Return the operations of a concrete function, and of all functions that it calls."""
    definition = function.graph.as_graph_def()
    return [*definition.node, *(node for called in definition.library.function for node in called.node_def)]


def unordered_sums(function) -> list[str]:
    """Return the names of the operations of a concrete function, and of all that it calls, that add in no fixed order."""
    return [node.name for node in nodes_of(function) if node.op == "AddN" and node.attr["N"].i > 2]


def _chain(inputs, name=None):
    """Add two at a time. Not with `AddV2`: the sums of loops hold lists of tensors, which it does not take."""
    if len(inputs) < 2:
        return _add_n(inputs, name=name)
    return functools.reduce(lambda a, b: _add_n([a, b], name=name), inputs)
