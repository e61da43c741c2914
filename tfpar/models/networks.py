"""Image classifiers of Keras layers."""

import collections
import functools
import os
import re
import reprlib
import sys
import warnings
import zipfile
from collections.abc import Iterator

import keras

from tfpar import errors, validate

# Keras' default of 0.99 needs hundreds of steps before the averages mean anything: with 13 steps an epoch the
# validation accuracy of the small CNN fell to 0.54-0.91 after 15 epochs, with 0.9 it reached 0.989-1.0.
MOMENTUM = 0.9

_UNREADABLE = (ValueError, TypeError, KeyError, OSError, zipfile.BadZipFile)  # what Keras raises for a damaged file
DEPTHS = (20, 32, 44, 56)  # of `resnet`


def small_cnn(image_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Return three pairs of 3x3 convolutions (16, 32, 64 channels) with max-pooling between them.

    73,114 weights for 28x28 gray pictures of ten classes. Pictures of at least 4x4 pixels.

    Example:
        >>> models.small_cnn((28, 28, 1), 10).count_params()
        73114
    """
    inputs, x = _input("small_cnn", image_shape, num_classes, least=4)
    for channels in (16, 32, 64):
        if channels > 16:
            x = keras.layers.MaxPooling2D()(x)
        x = _convolution(_convolution(x, channels), channels)
    return keras.Model(inputs, _head(x, num_classes), name="small_cnn")


def resnet(image_shape: tuple[int, int, int], num_classes: int, *, depth: int = 20) -> keras.Model:
    """Return the residual network for small pictures of He et al. 2016 (arXiv:1512.03385, section 4.2).

    `6n + 2` layers in three groups of 16, 32 and 64 channels. Where a group changes the shape, the shortcut is a 1x1
    convolution (option B of the paper).

    Args:
        image_shape: height, width, channels; at least 8x8 pixels.
        num_classes: length of the logits.
        depth: 20, 32, 44 or 56.

    Raises:
        errors.SettingsError: another depth, or pictures too small.
    """
    if not isinstance(depth, int) or depth not in DEPTHS:
        validate.reject("depth", depth, "20, 32, 44 or 56")
    inputs, x = _input(f"resnet{depth}", image_shape, num_classes, least=8)
    x = _convolution(x, 16)
    for channels in (16, 32, 64):
        for block in range((depth - 2) // 6):
            x = _residual(x, channels, stride=2 if channels > 16 and block == 0 else 1)
    return keras.Model(inputs, _head(x, num_classes), name=f"resnet{depth}")


def resnet18(image_shape: tuple[int, int, int], num_classes: int, *, channels: int = 64) -> keras.Model:
    """Return the residual network of 18 layers for photographs of He et al. 2016 (arXiv:1512.03385, table 1).

    A 7x7 convolution and a max-pooling, each with stride 2, then four groups of two blocks: with 64 channels 64, 128, 256 and 512 of
    them. The last ones see a 32nd of the sides of a picture. 11,191,242 weights for ten classes; with 32 channels, which is
    `resnet18_half` on the command line, 2,806,250. The half one learns from a thousand photographs in minutes on two cores.

    Args:
        image_shape: height, width, channels; at least 32x32 pixels.
        num_classes: length of the logits.
        channels: of the first group, from 1 to 1024; each following group has twice as many.

    Example:
        >>> models.resnet18((96, 96, 3), 10).count_params()
        11191242
    """
    validate.integer("channels", channels, 1, 1024)
    inputs, x = _input("resnet18", image_shape, num_classes, least=32)
    x = keras.layers.MaxPooling2D(3, strides=2, padding="same")(_convolution(x, channels, stride=2, size=7))
    for group in (1, 2, 4, 8):
        x = _residual(x, group * channels, stride=1 if group == 1 else 2)
        x = _residual(x, group * channels, stride=1)
    return keras.Model(inputs, _head(x, num_classes), name="resnet18" if channels == 64 else f"resnet18_{channels}")


# By the names of the command line.
OWN = {"small_cnn": small_cnn, "resnet18": resnet18, "resnet18_half": functools.partial(resnet18, channels=32)}
OWN |= {f"resnet{depth}": functools.partial(resnet, depth=depth) for depth in DEPTHS}


def backbone(
    name: str, image_shape: tuple[int, int, int], num_classes: int, *, weights: str | None = None, freeze: bool = False
) -> keras.Model:
    """Return a `keras.applications` network with its own preprocessing inside and a new head.

    Args:
        name: as Keras spells it, such as `"MobileNetV2"` or `"EfficientNetB0"`.
        image_shape: height, width, channels; gray pictures are repeated to three channels.
        num_classes: length of the logits.
        weights: None for random ones (its batch normalization then has `MOMENTUM`, not Keras' 0.99 to 0.9997), `"imagenet"` (downloaded), or a file of the network without its top, as its
            `save_weights` writes it.
        freeze: train the head alone.

    Raises:
        errors.SettingsError: no such network, or it does not take such pictures or weights.
        errors.InputNotFound, errors.Unavailable: the weights are not there.
    """
    build, freeze = _find_backbone(name), validate.boolean("freeze", freeze)
    _check(image_shape, num_classes)
    if image_shape[-1] not in (1, 3):
        raise errors.SettingsError(f"{name} with pictures {tuple(image_shape)}: give 1 or 3 channels")
    _check_weights_file(weights)
    if freeze and weights is None:
        raise errors.SettingsError(f"{name} with freeze and random weights: give weights, or leave freeze out")
    inputs = keras.Input(image_shape, dtype="uint8", name="images")
    x = keras.layers.Concatenate()([inputs] * 3) if image_shape[-1] == 1 else inputs
    module = sys.modules[build.__module__]  # where its preprocess_input is
    try:
        with warnings.catch_warnings():  # thousands, one for each variable of a file that does not fit
            warnings.simplefilter("ignore")
            body = build(include_top=False, weights=weights, input_shape=(*image_shape[:2], 3), pooling="avg")
    except Exception as error:
        why = errors.first_line(error)
        if isinstance(error, ValueError):
            raise errors.SettingsError(f"{name} with pictures {image_shape} and weights {weights}: {why}") from error
        if isinstance(error, OSError) or why.startswith("URL fetch failure"):
            why = f"{name}: weights {weights} cannot be loaded ({why})"
            raise errors.Unavailable(f"{why}; name a file of them") from error
        raise
    for layer in body._flatten_layers() if weights is None else ():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = MOMENTUM
    body.trainable = not freeze
    x = body(module.preprocess_input(keras.ops.cast(x, "float32")))
    return keras.Model(inputs, _logits(x, num_classes), name=f"{name}_classifier")


def build(
    name: str, image_shape: tuple[int, int, int], num_classes: int, *, weights: str | None = None, freeze: bool = False
) -> keras.Model:
    """Return a model by the name the command line uses: one of `OWN`, or a `keras.applications` network.

    Args:
        name, image_shape, num_classes, freeze: as for `backbone`.
        weights: as for `backbone`; of a network of `OWN` a file of all its weights; or the directory of a run or a `model.keras`,
            whose layers are taken by name and shape, all but the head (see `transfer`).

    Raises:
        errors.SettingsError: no such model, or it does not take these settings.
    """
    validate.boolean("freeze", freeze)
    if is_model(weights):
        model = build(name, image_shape, num_classes)
        transfer(model, weights)
        for layer in model.layers[:-1] if freeze else ():
            layer.trainable = False
        return model
    if not isinstance(name, str) or name not in OWN:
        return backbone(name, image_shape, num_classes, weights=weights, freeze=freeze)
    _check_weights_file(weights)
    if freeze or weights == "imagenet":
        given = "freeze" if freeze else "weights imagenet"
        raise errors.SettingsError(f"{name} with {given}: it has no pretrained backbone; take one such as MobileNetV2")
    model = OWN[name](image_shape, num_classes)
    if weights is not None:
        why = f"model {name} and weights {weights} do not fit: {errors.REASON}"
        with errors.translated((ValueError, OSError), errors.SettingsError, why), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.load_weights(weights)
    return model


def is_model(weights: str | os.PathLike | None) -> bool:
    """Tell whether weights are named by a run or by a saved model."""
    named = isinstance(weights, (str, os.PathLike)) and weights != "imagenet"
    return named and (os.path.isdir(weights) or str(weights).endswith(".keras"))


def file_of(weights: str | os.PathLike) -> str:
    """Return the file of weights: of a run its final model."""
    return os.path.join(weights, "model.keras") if os.path.isdir(weights) else os.fspath(weights)


def transfer(model: keras.Model, weights: str | os.PathLike) -> None:
    """Give a model the weights of another one, layer by layer by name and shape, all but the head; print how many fitted.

    Names that Keras counts up (`conv2d_7`) are compared by the order of their kind.

    Args:
        model: gets the weights.
        weights: directory of a run, or a `model.keras`.

    Raises:
        errors.SettingsError: no layer fits, or the file cannot be loaded.
        errors.InputNotFound: there is no such file.
    """
    _check_weights_file(path := file_of(weights))
    other = load(path, errors.SettingsError)
    source, (*body, _head_of_model) = _layers_by_name(other), _layers_by_name(model).items()
    left = []
    for name, layer in body:
        here = [tuple(v.shape) for v in layer.weights]
        there = [tuple(v.shape) for v in source[name].weights] if name in source else "none of that name"
        if here == there:
            layer.set_weights(source[name].get_weights())
            getattr(layer, "finalize_state", lambda: None)()  # of Normalization, which computes with a copy
        else:
            left.append(f"{layer.name} {here}, there {there}")
    if len(left) == len(body):
        todo = "take the same network, such as --model of that run"
        raise errors.SettingsError(f"{path}: no layer of it fits into {model.name}; {todo}")
    rest = f"; not loaded: {'; '.join(left)}" if left else ""
    here, there = (collections.Counter(type(layer).__name__ for layer in m._flatten_layers()) for m in (model, other))
    if here != there:
        more = [f"{count} {kind}" for kind, count in ((there - here) + (here - there)).items()]
        rest += f"; the networks differ in {', '.join(more)}: check what they do to the pixels"
    print(f"{len(body) - len(left)} of {len(body) + 1} layers loaded from {path}, head new{rest}")


def load(path: str | os.PathLike, failed: type) -> keras.Model:
    """Read a model from a .keras file, without its loss and optimizer.

    Raises:
        errors.InputNotFound: there is no such file.
        failed: Keras cannot read it.
    """
    if not os.path.isfile(path):
        raise errors.InputNotFound(f"{path}: no such file; give one that model.save wrote")
    with errors.translated(_UNREADABLE, failed, f"{path}: cannot be loaded as a model ({errors.REASON})"):
        return keras.saving.load_model(path, compile=False)


def _layers_by_name(model: keras.Model) -> dict[tuple[str, int], keras.Layer]:
    """Return the layers with weights, by their names without Keras' counts, and how many of that name came before."""
    found: dict[tuple[str, int], keras.Layer] = {}
    for layer, *_around in layers_with_weights(model):
        name = re.sub(r"_\d+$", "", layer.name)
        found[name, sum(key[0] == name for key in found)] = layer
    return found


def layers_with_weights(layer: keras.Layer, *around: keras.Layer) -> Iterator[tuple[keras.Layer, ...]]:
    """Yield each layer that has weights of its own, in the order of the model, with the layers around it, the innermost first."""
    for inner in layer._flatten_layers(include_self=False, recursive=False):
        yield from layers_with_weights(inner, layer, *around)
    if layer._trainable_variables or layer._non_trainable_variables:
        yield (layer, *around)


def _input(name: str, image_shape, num_classes: int, *, least: int):
    """Return the pixels as they come and from 0 to 1, after a check of the arguments of a model."""
    _check(image_shape, num_classes)
    if min(image_shape[:2]) < least:
        raise errors.SettingsError(f"{name} with pictures {tuple(image_shape)}: give at least {least}x{least} pixels")
    inputs = keras.Input(image_shape, dtype="uint8", name="images")
    return inputs, keras.layers.Rescaling(1 / 255)(inputs)


def _convolution(x, channels: int, *, stride: int = 1, size: int = 3, relu: bool = True):
    # Without a bias: BatchNorm takes it away again, and its gradient would be nothing but rounding.
    options = {"strides": stride, "padding": "same", "use_bias": False, "kernel_initializer": "he_normal"}
    x = keras.layers.Conv2D(channels, size, **options)(x)
    x = keras.layers.BatchNormalization(momentum=MOMENTUM)(x)
    return keras.layers.ReLU()(x) if relu else x


def _residual(x, channels: int, *, stride: int):
    shortcut = x
    if x.shape[-1] != channels:
        shortcut = _convolution(x, channels, stride=stride, size=1, relu=False)
    x = _convolution(x, channels, stride=stride)
    x = _convolution(x, channels, relu=False)
    return keras.layers.ReLU()(keras.layers.Add()([x, shortcut]))


def _head(x, num_classes: int):
    return _logits(keras.layers.GlobalAveragePooling2D()(x), num_classes)


def _logits(x, num_classes: int):
    return keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)


def check_data_format() -> None:
    """Refuse to build a network while Keras takes the channels of images first."""
    if keras.config.image_data_format() != "channels_last":
        todo = "call keras.config.set_image_data_format('channels_last') first, or set it in keras.json"
        raise errors.SettingsError(f"keras.config.image_data_format() is channels_first; {todo}")


def _check(image_shape, num_classes) -> None:
    check_data_format()
    validate.image_shape(image_shape)
    validate.integer("num_classes", num_classes, 1, validate.MOST_CLASSES)


def _find_backbone(name: str):
    known = {key: value for key, value in vars(keras.applications).items() if key[:1].isupper() and callable(value)}
    if not isinstance(name, str) or name not in known:
        near, names = errors.nearest(str(name), [*OWN, *known]), ", ".join([*OWN, *sorted(known)])
        raise errors.SettingsError(f"model {reprlib.repr(name)} is unknown; {near}give {names}")
    return known[name]


def _check_weights_file(weights: str | None) -> None:
    if weights is not None and not isinstance(weights, (str, os.PathLike)):
        validate.reject("weights", weights, "none, imagenet or a file")
    if weights not in (None, "imagenet") and not os.path.isfile(weights):
        raise errors.InputNotFound(f"{weights}: no such file of weights; give none, imagenet, a file or a run")
