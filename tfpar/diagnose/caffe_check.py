"""A converted network beside OpenCV's reading of the same files, layer by layer."""

import math
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
from google.protobuf import text_format

from tfpar import errors
from tfpar.models.caffe import building, conversion
from tfpar.models.caffe.files import File, refuse
from tfpar.models.caffe.selection import Selection, computes

BOUND = 5e-6  # of the largest value of a layer
OTHERWISE = {
    "k": lambda layer: layer.lrn_param.k != 1,
    "transpose": lambda layer: layer.inner_product_param.transpose,
    "beta": lambda layer: layer.swish_param.beta != 1,
    "concat_dim": lambda layer: layer.concat_param.concat_dim > 1,
    "slice_dim": lambda layer: layer.slice_param.slice_dim > 1,
    "use_global_stats: false": building.is_by_batch,
}


def differences(net: File, weights: File, image: File | None = None) -> Iterator[tuple[str, float]]:
    """Send one image through both, and yield each layer with its largest difference, as a part of its largest value.

    Args:
        net, weights: a prototxt and its caffemodel.
        image: a picture, scaled to the input; None is random numbers.

    Raises:
        errors.Unavailable: OpenCV below 5 is not installed, it cannot read the files, or it does not compute a layer as Caffe does.
    """
    model = conversion.network(net, weights)
    outputs = conversion.network_of(model).outputs
    x = _input(model.input_shape[1:], image)
    theirs = _by_opencv(net, weights, x, list(outputs))
    refuse(not theirs, f"nothing was compared: OpenCV knows no layer of {net} by its name", errors.Unavailable)
    ours = keras.Model(model.input, [outputs[name] for name in theirs]).predict(x, verbose=0)
    for (name, there), here in zip(theirs.items(), ours, strict=True):
        there = there.transpose(0, 2, 3, 1) if there.ndim == 4 else there
        alike = here.size == there.size  # OpenCV keeps 1x1 maps that are flat here
        difference = np.abs(here.reshape(there.shape) - there).max() if alike else math.inf
        yield name, float(difference / max(np.abs(there).max(), 1e-30))


def _input(shape: tuple[int, int, int], image) -> np.ndarray:
    if image is None:
        return np.random.default_rng(0).normal(0, 50, (1, *shape)).astype(np.float32)
    from tfpar.prepare import pictures

    with pictures.quiet(), errors.translated(pictures.BadPicture, errors.InputNotFound, f"{image}: {errors.REASON}"):
        pixels = pictures.load(image, shape[:2], channels=shape[2])
    return np.ascontiguousarray(pixels[np.newaxis, ..., ::-1], dtype=np.float32)


def _without_rules(selection: Selection, layers: list) -> bytes:
    """Return a prototxt of some layers alone: OpenCV takes no notice of `include` and `exclude`, and may crash on a branch that nothing reads."""
    for layer in layers:
        layer.ClearField("include")
        layer.ClearField("exclude")
    return text_format.MessageToString(type(selection.net.message)(input=[selection.input], layer=layers)).encode()


def _by_opencv(net, weights, x: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    install = "Type: pip install 'opencv-python-headless>=4.8,<5'"
    missing = f"nothing was compared: OpenCV is not installed. {install}"
    with errors.translated(ImportError, errors.Unavailable, missing):
        import cv2
    why = f"nothing was compared: OpenCV {cv2.__version__} no longer reads Caffe. {install}"
    refuse(not hasattr(cv2.dnn, "readNetFromCaffe"), why, errors.Unavailable)
    selection = Selection(net, "TEST")
    layers = selection.needed(selection.layers[-1].top[0])
    for layer in layers:
        words = [word for word, is_odd in OTHERWISE.items() if is_odd(layer)]
        why = f"OpenCV does not compute {' and '.join(words)} of layer {layer.name} as Caffe does"
        refuse(words, f"nothing was compared: {why}; compare a copy of {net} without that word", errors.Unavailable)
    content = [Path(net).read_bytes(), Path(weights).read_bytes()]
    if any(computes(layer) and layer not in layers for layer in selection.net.layers):
        content[0] = _without_rules(selection, layers)
    why = f"nothing was compared: OpenCV cannot read {net}: {errors.REASON}"
    with errors.translated(cv2.error, errors.Unavailable, why):
        there = cv2.dnn.readNetFromCaffe(*(np.frombuffer(each, np.uint8) for each in content))
        there.enableWinograd(False)  # it adds up to 3e-6
        there.enableFusion(False)
        there.setInput(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
        tops = {layer.name: layer.top[0] for layer in layers}
        known = {*there.getLayerNames()}  # by the name of a layer, or of its output
        called = {name: name if name in known else tops.get(name) for name in names}
        called = {name: other for name, other in called.items() if other in known}
        return dict(zip(called, there.forward([*called.values()]), strict=True)) if called else {}
