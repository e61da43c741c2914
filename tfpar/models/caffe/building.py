"""A network while it is built: its blobs, and the weights of its layers."""

import functools
import itertools
import math
import re
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfpar import errors
from tfpar.models.caffe.layers import INPUTS, TABLE, WITH_WEIGHTS, Unsupported

# What a layer raises that Keras cannot express; the last three come from Keras, about shapes.
UNSUPPORTED = (Unsupported, ValueError, MemoryError, tf.errors.ResourceExhaustedError)
NAMES_OF_OPERATIONS = r"(abs(olute)?|clip|flip|pad|power|split|square)(_\d+)?"  # of keras.ops, which count them up


class Network:
    """A network while it is built.

    Attributes:
        blobs: the tensors by their names; a layer in place gives its name to a new one.
        outputs: what each layer gives, by the layer's name.
        made: the Keras layer with the weights of each layer, by the layer's name.
        unfilled: layers with neither weights nor a filler for them.
        multipliers: by the Keras layer, the `param` of each of its weights, with `lr_mult` and `decay_mult`; not of `BatchNorm`, whose
            weights are averages.
    """

    def __init__(self, weights: dict[str, list[np.ndarray]], *, source: object, where: Callable[[object], str]):
        """Begin a network.

        Args:
            weights: from `files.read_weights`.
            source: the path of the weights, for messages.
            where: returns file, line, name and type of a layer, for messages.
        """
        self.blobs: dict[str, keras.KerasTensor] = {}
        self.outputs: dict[str, keras.KerasTensor] = {}
        self.made: dict[str, keras.Layer] = {}
        self.unfilled: list[str] = []
        self.multipliers: dict[keras.Layer, list] = {}
        self.weights, self.source, self.where = weights, source, where
        self.names = {"images", "scaled", "minus_mean"}
        self.shared: dict[str, tuple[keras.Layer, int]] = {}

    def add(self, layer) -> None:
        """Add the Keras layers of a layer of Caffe.

        Raises:
            errors.DataError: its type or a parameter is not supported.
            errors.SettingsError: the weights have other shapes.
        """
        if layer.type not in TABLE:
            raise errors.DataError(f"{self.where(layer)} is not supported; supported are {', '.join(TABLE)}")
        function, parameters = TABLE[layer.type]
        inputs, name = [self.blobs[blob] for blob in layer.bottom], self._free_name(layer)
        try:
            Unsupported.where(len(inputs) not in INPUTS.get(function, (1,)), f"{len(inputs)} inputs")
            Unsupported.where(len(layer.top) > 1 and layer.type not in ("Slice", "Split"), f"{len(layer.top)} outputs")
            first = [functools.partial(self.weigh, layer)] if function in WITH_WEIGHTS else []
            first += [len(layer.top)] if layer.type == "Slice" else []
            found = function(*first, getattr(layer, parameters or "name"), name, *inputs)
            found = found if isinstance(found, list) else [found] * len(layer.top)
        except errors.SettingsError:
            raise
        except UNSUPPORTED as error:
            raise errors.DataError(f"{self.where(layer)} is not supported here: {errors.first_line(error)}") from error
        for number, (top, tensor) in enumerate(zip(layer.top, found, strict=True)):
            called = name + f".{number}" * (layer.type == "Slice")
            if tensor._keras_history.operation.name != called and layer.type != "Split":
                tensor = keras.layers.Identity(name=called)(tensor)  # every layer keeps its name
            self.blobs[top] = tensor
            self.outputs.setdefault(layer.name, tensor)

    def _free_name(self, layer) -> str:
        """Return the name of a layer in Keras, which allows no name twice, and TensorFlow's scopes few characters."""
        wanted = re.sub(r"[^\w.>-]", ".", layer.name, flags=re.ASCII) or layer.type
        names = itertools.chain([wanted], (f"{wanted}.{number}" for number in itertools.count(2)))
        name = next(it for it in names if it not in self.names and not re.fullmatch(NAMES_OF_OPERATIONS, it))
        self.names.add(name)
        return name

    def weigh(self, layer, made: keras.Layer, x, shapes: Sequence[tuple], fillers: Sequence, convert: Callable):
        """Call a Keras layer, and give it weights: those of the file, else what the fillers draw.

        Args:
            layer: of Caffe. Layers whose `param` have the same names are one Keras layer.
            made: of Keras.
            x: its input.
            shapes: of its blobs in Caffe.
            fillers: of each blob; a number is a constant, None is xavier.
            convert: `convert(*blobs)` returns the weights of the Keras layer.
        """
        names = [param.name for param in layer.param if layer.type != "BatchNorm"]  # Caffe clears those of BatchNorm
        owners = [self.shared.get(name) for name in names]
        if any(owners):
            own, (made, _) = made, next(filter(None, owners))
            whole = owners == [(made, number) for number in range(len(shapes))]
            Unsupported.where(not whole, f"some weights are shared ({', '.join(names)}); share all of them or none")
            both = [it.get_config() | {"name": "", "rows": getattr(it, "rows", "")} for it in (made, own)]
            Unsupported.where(both[0] != both[1], "shared weights with other parameters")
        self.shared |= {name: (made, number) for number, name in enumerate(names) if name}
        Unsupported.where(layer.name in self.made, "a second layer with weights of this name")
        y, blobs = made(x), self._blobs_of(layer, shapes)
        if blobs is None and made not in self.made.values():
            self.unfilled += [layer.name] * (fillers[0] is None)
            blobs = [_drawn(filler, shape) for filler, shape in zip(fillers, shapes, strict=True)]
        if blobs:  # of layers that share them the last that has some, as Caffe copies them
            made.set_weights(convert(*blobs))
        if layer.type != "BatchNorm":
            self._multiply(made, layer, len(shapes))
        self.made[layer.name] = made
        return y

    def _multiply(self, made, layer, count: int) -> None:
        """Note what a layer states of `lr_mult` and `decay_mult`, of which layers that share weights must state the same, or nothing."""
        for _ in range(count - len(layer.param)):
            layer.param.add()
        for stated, param in zip(self.multipliers.setdefault(made, layer.param[:count]), layer.param, strict=False):
            for field in ("lr_mult", "decay_mult"):
                said = {str(getattr(it, field)) for it in (stated, param) if it.HasField(field)}  # NaN is NaN
                Unsupported.where(len(said) > 1, f"shared weights with another {field}; give the same to all")
                if param.HasField(field):
                    setattr(stated, field, getattr(param, field))

    def _blobs_of(self, layer, shapes: Sequence[tuple]) -> list[np.ndarray] | None:
        """Return a layer's blobs of the file; ones in front may be missing or be there, as Caffe compares shapes."""
        if layer.name not in self.weights:
            return None
        found = self.weights[layer.name]
        there, here = [list(blob.shape) for blob in found], [list(shape) for shape in shapes]
        if [*map(_without_ones, there)] != [*map(_without_ones, here)]:
            why = f"its weights have the shapes {there} in {self.source}, {here} in the network"
            todo = "give the file of this network, and images of the size that it was trained on"
            raise errors.SettingsError(f"{self.where(layer)}: {why}; {todo}")
        return [blob.reshape(shape) for blob, shape in zip(found, shapes, strict=True)]


def _without_ones(shape: list[int]) -> list[int]:
    """Return a shape without the ones in front."""
    return list(itertools.dropwhile(lambda side: side == 1, shape))


def _drawn(filler, shape: tuple) -> np.ndarray:
    """Return a blob that a filler has filled."""
    kind = "constant" if isinstance(filler, float) else "xavier" if filler is None else filler.type
    fans = math.prod(shape[1:]), math.prod(shape) / shape[min(1, len(shape) - 1)]
    n = (*fans, sum(fans) / 2)[filler.variance_norm if hasattr(filler, "variance_norm") else 0]
    random = {
        "constant": lambda: keras.initializers.Constant(filler if isinstance(filler, float) else filler.value),
        "xavier": lambda: keras.initializers.RandomUniform(-math.sqrt(3 / n), math.sqrt(3 / n)),
        "msra": lambda: keras.initializers.RandomNormal(0.0, math.sqrt(2 / n)),
        "gaussian": lambda: keras.initializers.RandomNormal(filler.mean, filler.std),
        "uniform": lambda: keras.initializers.RandomUniform(filler.min, filler.max),
    }
    sparse = getattr(filler, "sparse", -1) >= 0
    Unsupported.where(sparse or kind not in random, f"the filler {kind}{' with sparse' * sparse}")
    return keras.ops.convert_to_numpy(random[kind]()(shape))
