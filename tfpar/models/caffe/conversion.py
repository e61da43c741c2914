"""From Caffe's files to Keras models."""

import contextlib
import re
import weakref
from collections.abc import Iterable, Sequence

import keras
import numpy as np

from tfpar import errors, validate
from tfpar.models import networks
from tfpar.models.caffe import files
from tfpar.models.caffe.building import Network
from tfpar.models.caffe.files import File, refuse
from tfpar.models.caffe.layers import in_float32
from tfpar.models.caffe.selection import Selection

_built: weakref.WeakKeyDictionary[keras.Model, Network] = weakref.WeakKeyDictionary()


def network(
    net: File, weights: File | None = None, *, image_shape: tuple[int, int, int] | None = None, phase: str = "TEST"
) -> keras.Model:
    """Return the bare network as Caffe computes it, for its features or to compare it.

    Args:
        net: a prototxt, in the syntax of any year.
        weights: a caffemodel, whose layers are matched by name. None: what the fillers draw.
        image_shape: height, width, channels; None is what the file states.
        phase: `"TEST"` or `"TRAIN"`, for the `include` and `exclude` rules.

    Returns:
        `float32[batch, height, width, channels]` in, in the channel order of the network and without preprocessing; the last blob
        out, channels last, after the final softmax where the file has one.

    Raises:
        errors.InputNotFound: there is no such file.
        errors.DataError: a file is damaged or cannot be parsed, or a layer is not supported.
        errors.SettingsError: the weights contradict the network (both shapes are named), or no image shape is known.

    Example:
        >>> model = caffe.network("lenet.prototxt", "lenet.caffemodel")
        >>> features = keras.Model(model.input, model.get_layer("ip1").output)
    """
    selection = Selection(net, phase)
    blob = selection.layers[-1].top[0]
    needed, blobs = selection.needed(blob), files.read_weights(weights) if weights is not None else {}
    inputs = keras.Input(selection.image_shape(image_shape), dtype="float32", name="images")
    with in_float32():
        built = _build(selection, inputs, blobs, weights, needed)
    return _model(selection, inputs, built.blobs[blob], built)


def load(
    net: File,
    weights: File | None = None,
    *,
    image_shape: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
    scale: float | None = None,
    mean: float | Sequence[float] | File | None = None,
    order: str = "bgr",
    phase: str = "TEST",
) -> keras.Model:
    """Return an image classifier with its preprocessing inside, uncompiled, like every other model of tfpar.

    Caffe computes `(pixel - mean) * scale` of pixels from 0 to 255, whose channels are blue, green, red where its own reader made the
    data. Deploy files state none of this, and a wrong guess is hard to notice: LeNet with a scale of 1 instead of 1/256 reaches 0.987
    instead of 0.9905 on MNIST. A printed line says what was assumed.

    Args:
        net, weights, image_shape, phase: as for `network`.
        num_classes: length of the logits: where the last layer with weights has others, it gets as many outputs and is initialized. None
            leaves it as it is.
        scale: factor on the pixels; None is what a data layer of the file states, else 1.
        mean: subtracted first: a number, one for each channel in the network's order, or a `.binaryproto`; None as for `scale`, else 0.
        order: `"bgr"` or `"rgb"`: the channels that the network was trained on.

    Returns:
        `uint8[batch, height, width, channels]` in, red first; logits `float32[batch, classes]` out, without the final softmax.

    Raises:
        errors.InputNotFound, errors.DataError: as for `network`.
        errors.SettingsError: as for `network`, or the network does not end in one number a class.

    Example:
        >>> model = caffe.load("lenet.prototxt", "lenet.caffemodel", scale=1 / 256)
    """
    validate.choice("order", order, ("bgr", "rgb"))
    selection, blobs = Selection(net, phase), files.read_weights(weights) if weights is not None else {}
    logits = selection.logits()
    needed = selection.needed(logits)
    head = selection.head(needed, num_classes, blobs)
    shape = selection.image_shape(image_shape)
    scale, mean = selection.preprocessing(shape, scale, mean, order, trained=weights is not None)
    inputs = keras.Input(shape, dtype="uint8", name="images")
    built = _build(selection, _preprocessed(inputs, scale, mean, order), blobs, weights, needed, head)
    outputs = built.blobs[logits]
    if len(outputs.shape) == 4 and outputs.shape[1] == outputs.shape[2] == 1:
        outputs = keras.layers.Flatten(dtype="float32", name="logits.flat")(outputs)
    why = f"for images of {shape} it gives {tuple(outputs.shape[1:])} instead of one number a class"
    todo = "give the image_shape that it was made for, or take caffe.network"
    refuse(len(outputs.shape) != 2, f"{net}: {why}; {todo}", errors.SettingsError)
    why = f"it gives {outputs.shape[-1]} logits for {num_classes} classes; give its last layers that many outputs"
    refuse(num_classes not in (None, outputs.shape[-1]), f"{net}: {why}", errors.SettingsError)
    if outputs.dtype != "float32":
        outputs = keras.layers.Activation("linear", dtype="float32", name="logits.float32")(outputs)
    return _model(selection, inputs, outputs, built)


def network_of(model: keras.Model) -> Network:
    """Return what a network was built of, which no Keras model holds.

    Raises:
        errors.SettingsError: it was not made by `load` or `network` in this process.
    """
    why = f"model {getattr(model, 'name', model)} was not made by caffe.load, which knows its lr_mult"
    refuse(model not in _built, f"{why}; load the prototxt", errors.SettingsError)
    return _built[model]


@in_float32()
def _preprocessed(x, scale: float, mean: np.ndarray, order: str):
    """Return `(pixel - mean) * scale` of images whose channels are red, green, blue, in the network's order."""
    if x.shape[-1] == 3 and order == "bgr":
        x = keras.ops.flip(x, -1)
    if mean.ndim == 3:
        minus = keras.layers.Normalization(axis=(1, 2, 3), name="minus_mean")
        minus.build((None, *mean.shape))
        minus.adapt_mean.assign(mean)
        minus.finalize_state()
        x = minus(x)
    elif mean.any():
        x = keras.layers.Rescaling(1.0, (-mean).tolist(), name="minus_mean")(x)
    return keras.layers.Rescaling(scale, name="scaled")(x)


def _build(selection: Selection, x, blobs: dict, weights, needed: list, head=None) -> Network:
    """Build the layers that are needed, from the head on in float32, and note what fits no weights."""
    networks.check_data_format()
    built = Network(selection, weights)
    built.blobs[selection.input] = x
    with contextlib.ExitStack() as stack:
        for layer in needed:
            if layer is head:
                stack.enter_context(in_float32())
            built.add(layer, blobs.get(layer.name))
    why = f"none of its layers ({_some(blobs)}) is in {selection.net.path}; give the file of this network"
    refuse(blobs and not built.made.keys() & blobs.keys(), f"{weights}: {why}", errors.SettingsError)
    for name, made in built.made.items():
        if made in built.multipliers and not any(param.lr_mult for param in built.multipliers[made]):
            made.trainable = False
            built.notes["frozen by lr_mult 0"].append(name)
    given = [made for name, made in built.made.items() if name in blobs]
    filled = [name for name, made in built.made.items() if made not in given and (blobs or name in built.unfilled)]
    by_xavier = " (by xavier, the file has no weight_filler)"
    built.notes["without weights, so initialized"] = [name + by_xavier * (name in built.unfilled) for name in filled]
    built.notes[f"weights of {weights} that no layer takes"] = [name for name in blobs if name not in built.made]
    selection.notes += [f"{what}: {_some(names)}" for what, names in built.notes.items() if names]
    return built


def _some(names: Iterable[str]) -> str:
    """Return the first names of many."""
    first, rest = [*names][:8], len([*names][8:])
    return ", ".join(first) + f" and {rest} more" * bool(rest)


def _model(selection: Selection, inputs, outputs, built: Network) -> keras.Model:
    """Return the model, and print the notes."""
    twice = f"{selection.net.path}: {errors.REASON}; give that layer another name"  # as of `a/pad` beside a padded layer `a`
    deep = f"{selection.net.path}: more layers in a row than Keras can follow; in Python call sys.setrecursionlimit(10000) first"
    with (
        errors.translated(RecursionError, errors.DataError, deep),
        errors.translated(ValueError, errors.DataError, twice),
    ):
        name = re.sub(r"[^\w.-]", "_", selection.net.message.name, flags=re.ASCII).lstrip("_-")
        model = keras.Model(inputs, outputs, name=name or "caffe")
    _built[model] = built
    for note in selection.notes:
        print(f"{selection.net.path}: {note}")
    return model
