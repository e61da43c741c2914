"""A network while it is built: its blobs, and the weights of its layers."""

import collections
import functools
import itertools
import math
import re
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfpar import errors
from tfpar.models.caffe.files import refuse
from tfpar.models.caffe.layers import INPUTS, SUM, TABLE, WITH_WEIGHTS
from tfpar.models.caffe.selection import Selection

# What a layer raises that Keras cannot express: errors of `layers`, and of Keras about parameters and shapes.
UNSUPPORTED = (ValueError, MemoryError, tf.errors.ResourceExhaustedError)
NAMES_OF_OPERATIONS = r"(abs(olute)?|clip|flip|pad|power|split|square)(_\d+)?"  # of keras.ops, which count them up


class Network:
    """A network while it is built.

    Attributes:
        batch_size: of its data layer for training.
        blobs: the tensors by their names; a layer in place gives its name to a new one.
        outputs: what each layer gives, by the layer's name.
        made: the Keras layer with the weights of each layer, by the layer's name.
        unfilled: layers with neither weights nor a filler for them.
        notes: names of layers, by what is to be said about them.
        multipliers: by the Keras layer, the `param` of each of its weights, with `lr_mult` and `decay_mult`; not of `BatchNorm`, whose
            weights are averages.
    """

    def __init__(self, selection: Selection, source: object):
        """Begin a network; `source` is the path of the weights, for messages."""
        self.net, self.batch_size, self.source = selection.net, selection.batch_size, source
        self.blobs: dict[str, keras.KerasTensor] = {}
        self.outputs: dict[str, keras.KerasTensor] = {}
        self.made: dict[str, keras.Layer] = {}
        self.unfilled: list[str] = []
        self.notes: dict[str, list[str]] = collections.defaultdict(list)
        self.multipliers: dict[keras.Layer, list] = {}
        self.names = {"images", "scaled", "minus_mean"}
        self.shared: dict[str, tuple[keras.Layer, int]] = {}

    def add(self, layer, weights: list[np.ndarray] | None) -> None:
        """Add the Keras layers of a layer of Caffe, whose blobs of the file, if it has some, are `weights`.

        Raises:
            errors.DataError: its type or a parameter is not supported.
            errors.SettingsError: the weights have other shapes.
        """
        where = self.net.where(layer)
        refuse(layer.type not in TABLE, f"{where} is not supported; supported are {', '.join(TABLE)}")
        function, parameters = TABLE[layer.type]
        inputs, name = [self.blobs[blob] for blob in layer.bottom], self._free_name(layer)
        first = [functools.partial(self.weigh, layer, weights)] if function in WITH_WEIGHTS else []
        first += [len(layer.top)] if layer.type == "Slice" else []
        try:
            refuse(len(inputs) not in INPUTS.get(function, (1,)), f"{len(inputs)} inputs")
            refuse(len(layer.top) > 1 and layer.type not in ("Slice", "Split"), f"{len(layer.top)} outputs")
            is_sum = layer.type == "Eltwise" and layer.eltwise_param.operation == SUM
            refuse(
                is_sum and layer.top[0] == layer.bottom[0],
                "Caffe sets its first bottom to 0 before it adds, because it is the top as well; name another top",
            )
            found = function(*first, getattr(layer, parameters or "name"), name, *inputs)
        except errors.SettingsError:
            raise
        except UNSUPPORTED as error:
            raise errors.DataError(f"{where} is not supported here: {errors.first_line(error)}") from error
        found = found if isinstance(found, list) else [found] * len(layer.top)
        for number, (top, tensor) in enumerate(zip(layer.top, found, strict=True)):
            called = name + f".{number}" * (layer.type == "Slice")
            if tensor._keras_history.operation.name != called and layer.type != "Split":
                tensor = keras.layers.Identity(name=called)(tensor)  # every layer keeps its name
            self.blobs[top] = tensor
            self.outputs.setdefault(layer.name, tensor)
        if is_by_batch(layer):
            self.notes["use_global_stats false is not used at prediction, which takes the averages"].append(layer.name)
        if not all(layer.propagate_down):
            self.notes["propagate_down false is not used, so what they read is trained"].append(layer.name)

    def _free_name(self, layer) -> str:
        """Return the name of a layer in Keras, which allows no name twice, and TensorFlow's scopes few characters."""
        wanted = re.sub(r"[^\w.>-]", ".", layer.name, flags=re.ASCII) or layer.type
        names = (wanted + f".{number}" * (number > 1) for number in itertools.count(1))
        name = next(it for it in names if it not in self.names and not re.fullmatch(NAMES_OF_OPERATIONS, it))
        self.names.add(name)
        return name

    def weigh(self, layer, found, own: keras.Layer, x, shapes: Sequence[tuple], fillers: Sequence, convert: Callable):
        """Call a Keras layer, and give it weights: those of the file, else what the fillers draw.

        Args:
            layer: of Caffe.
            found: its blobs of the file, or None.
            own: of Keras; that of an earlier layer takes its place if both share their weights.
            x: its input.
            shapes: of its blobs in Caffe; those of blobs without a filler do not count.
            fillers: of each blob; a number is a constant, None is xavier.
            convert: `convert(*blobs)` returns the weights of the Keras layer.
        """
        refuse(layer.name in self.made, "a second layer with weights of this name")
        shapes = [shape for shape, _ in zip(shapes, fillers, strict=False)]
        made = own if layer.type == "BatchNorm" else self._shared(layer, own, len(shapes))  # Caffe clears its `param`
        y, blobs = made(x), found and self._fitted(layer, found, shapes)
        if blobs is None and made not in self.made.values():
            self.unfilled += [layer.name] * (fillers[0] is None)
            blobs = [_drawn(filler, shape) for filler, shape in zip(fillers, shapes, strict=True)]
        if blobs:  # of layers that share them the last that has some, as Caffe copies them
            made.set_weights(convert(*blobs))
        self.made[layer.name] = made
        return y

    def _shared(self, layer, own: keras.Layer, count: int) -> keras.Layer:
        """Return the Keras layer whose `count` weights have the names in `param`, else `own`, and note its multipliers."""
        params = [*layer.param, *(type(layer)().param.add() for _ in range(count))][:count]
        owners = [self.shared.get(param.name) for param in params]
        made = next((owner for owner, _ in filter(None, owners)), own)
        if made is not own:
            names = ", ".join(param.name for param in params if param.name)
            whole = owners == [(made, number) for number in range(count)]
            refuse(not whole, f"some weights are shared ({names}); share all of them or none")
            both = [it.get_config() | {"name": "", "rows": getattr(it, "rows", "")} for it in (made, own)]
            refuse(both[0] != both[1], "shared weights with other parameters")
        self.shared |= {param.name: (made, number) for number, param in enumerate(params) if param.name}
        for stated, param in zip(self.multipliers.setdefault(made, params), params, strict=True):
            for field in ("lr_mult", "decay_mult"):
                said = {str(getattr(it, field)) for it in (stated, param) if it.HasField(field)}  # NaN is NaN
                refuse(len(said) > 1, f"shared weights with another {field}; give the same to all")
            stated.MergeFrom(param)
        return made

    def _fitted(self, layer, found: list[np.ndarray], shapes: Sequence[tuple]) -> list[np.ndarray]:
        """Return blobs in the shapes of a layer; ones in front may be missing or be there, as Caffe compares shapes."""
        there, here = [list(blob.shape) for blob in found], [list(shape) for shape in shapes]
        why = f"its weights have the shapes {there} in {self.source}, {here} in the network"
        todo = "give the file of this network, and images of the size that it was trained on"
        alike = [*map(_without_ones, there)] == [*map(_without_ones, here)]
        refuse(not alike, f"{self.net.where(layer)}: {why}; {todo}", errors.SettingsError)
        return [blob.reshape(shape) for blob, shape in zip(found, shapes, strict=True)]


def is_by_batch(layer) -> bool:
    """Tell whether a layer takes the statistics of the batch even in prediction, by `use_global_stats: false`."""
    return layer.batch_norm_param.HasField("use_global_stats") and not layer.batch_norm_param.use_global_stats


def _without_ones(shape: list[int]) -> list[int]:
    """Return a shape without the ones in front."""
    return list(itertools.dropwhile(lambda side: side == 1, shape))


def _drawn(filler, shape: tuple) -> np.ndarray:
    """Return a blob that a filler has filled."""
    if isinstance(filler, float):
        return np.full(shape, filler, np.float32)
    kind = filler.type if filler else "xavier"
    fans = math.prod(shape[1:]), math.prod(shape) / shape[min(1, len(shape) - 1)]
    n = (*fans, sum(fans) / 2)[filler.variance_norm if filler else 0]
    makers = {
        "constant": lambda: keras.initializers.Constant(filler.value),
        "xavier": lambda: keras.initializers.RandomUniform(-math.sqrt(3 / n), math.sqrt(3 / n)),
        "msra": lambda: keras.initializers.RandomNormal(0.0, math.sqrt(2 / n)),
        "gaussian": lambda: keras.initializers.RandomNormal(filler.mean, filler.std),
        "uniform": lambda: keras.initializers.RandomUniform(filler.min, filler.max),
    }
    sparse = bool(filler) and filler.sparse >= 0
    refuse(sparse or kind not in makers, f"the filler {kind}{' with sparse' * sparse}")
    return keras.ops.convert_to_numpy(makers[kind]()(shape))
