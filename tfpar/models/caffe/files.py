"""Caffe's files: prototxt in the syntax of any year, and the blobs of a caffemodel.

The names and types (`schema.textproto`) come from BVLC/caffe@9b89154, src/caffe/proto/caffe.proto. Text is parsed strictly, because a
misspelt field would otherwise mean its default. Of a binary file only names and blobs are read.

Example:
    >>> net = files.read_net("lenet.prototxt")
    >>> [layer.type for layer in net.layers][:3]
    ['Input', 'Convolution', 'Pooling']
"""

import functools
import itertools
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory, text_format, unknown_fields

from tfpar import errors, validate

File = str | os.PathLike  # its path
_NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
TEXT, BINARY = "tfpar.caffe.text", "tfpar.caffe.binary"  # packages of schema.textproto
DATA_PARAMS = ("data_param", "image_data_param", "window_data_param", "memory_data_param", "hdf5_data_param")
# Types of layers that are not the word of V1 or V0 with its first letters in capitals.
TYPES = {
    "RELU": "ReLU", "LRN": "LRN", "TANH": "TanH", "ABSVAL": "AbsVal", "BNLL": "BNLL", "MVN": "MVN", "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output", "IM2COL": "Im2col", "ARGMAX": "ArgMax", "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "CONV": "Convolution", "POOL": "Pooling", "INNERPRODUCT": "InnerProduct", "IMAGES": "ImageData",
}  # fmt: skip


def refuse(condition, message: str, kind: type = errors.DataError) -> None:
    """Raise an error where a condition holds."""
    if condition:
        raise kind(message)


class Net(NamedTuple):
    """A parsed prototxt.

    Attributes:
        path: of the file.
        message: the whole of it.
        layers: in today's syntax.
        lines: of the file, where each layer begins, by its `id`.
    """

    path: Path
    message: Any
    layers: list
    lines: dict[int, int]

    def where(self, layer) -> str:
        """Return file, line, name and type of a layer, for a message."""
        return f"{self.path}:{self.lines.get(id(layer), 1)}: layer {layer.name} of type {layer.type}"


def read_net(path: File) -> Net:
    """Read a network in the syntax of any year.

    Raises:
        errors.InputNotFound: there is no such file.
        errors.DataError: it cannot be parsed; the message begins with file:line:column.
    """
    text, parsed = _parse(path, "Net")
    _join_padding(parsed.layers)
    layers = [*map(_today, parsed.layers), *parsed.layer]
    starts = [line for line, _ in _layers_in(text)]  # not of `layer: [{}, {}]`
    lines = dict(zip(map(id, layers), starts, strict=True)) if len(starts) == len(layers) else {}
    if parsed.input:
        dims = parsed.input_dim
        shapes = parsed.input_shape or [{"dim": dims[n : n + 4]} for n in range(0, len(dims), 4)]
        layers.insert(0, _classes()[f"{TEXT}.Layer"](type="Input", top=parsed.input, input_param={"shape": shapes}))
    return Net(Path(path), parsed, [layer for layer in layers if layer.type != "Padding"], lines)


def read_solver(path: File):
    """Read a solver; raises as `read_net`."""
    return _parse(validate.path("solver", path), "Solver")[1]


def read_weights(path: File) -> dict[str, list[np.ndarray]]:
    """Read a caffemodel.

    Returns:
        A dictionary from the name of each layer to its blobs, `float32` in the shapes of the file; old files state four sides for
        every blob.

    Raises:
        errors.InputNotFound: there is no such file.
        errors.DataError: it is no caffemodel, or damaged.
    """
    parsed = _parse_binary(validate.path("weights", path), "Net")
    named = [(layer.name, layer.blobs) for layer in parsed.layer]
    named += [(layer.name or layer.layer.name, layer.blobs or layer.layer.blobs) for layer in parsed.layers]
    found = {str(name): [_array(blob, f"{path}: layer {name}") for blob in blobs] for name, blobs in named if blobs}
    refuse(not found, f"{path}: no weights in it, so it is no caffemodel; give the file that Caffe has written")
    return found


def read_mean(path: File) -> np.ndarray:
    """Read a mean picture (a .binaryproto) as `float32[height, width, channels]`; raises as `read_weights`."""
    mean = _array(_parse_binary(path, "Blob"), f"{path}")
    is_picture = mean.ndim >= 3 and mean.size == math.prod(mean.shape[-3:])
    refuse(not is_picture, f"{path}: no mean picture in it; give the .binaryproto that Caffe has written, or numbers")
    return mean.reshape(mean.shape[-3:]).transpose(1, 2, 0)


def beside(file: Path, named: str) -> Path | None:
    """Return the file that another one names: by the path as it stands, from the other's folder, or in that folder; None if it is not there."""
    there = (Path(named), file.parent / named, file.parent / Path(named).name)
    return next((path for path in there if path.is_file()), None)


@functools.cache
def _classes() -> dict[str, type]:
    """Return the class of each message."""
    schema = Path(__file__).with_name("schema.textproto").read_text(encoding="utf-8")
    files, pool = text_format.Parse(schema, descriptor_pb2.FileDescriptorSet()).file, descriptor_pool.DescriptorPool()
    for file in files:
        pool.Add(file)
    return message_factory.GetMessageClassesForFiles([file.name for file in files], pool)


# ---- text


def _parse(path: File, kind: str):
    """Return the text of a file and the message in it."""
    text = _content(path).decode("utf-8-sig", errors="replace")  # comments may be in another encoding
    refuse("\0" in text and "\ufffd" in text, f"{path}: a binary file; give a prototxt")
    parsed = _classes()[f"{TEXT}.{kind}"]()
    try:
        text_format.Parse(text, parsed)
    except text_format.ParseError as error:
        line, column = error.GetLine() or text.count("\n") + 1, error.GetColumn() or 1
        why = errors.first_line(re.sub(rf"^[\d: ]+('.*': )?|{TEXT}\.", "", str(error)))  # without the whole line
        todo = "correct the file (fields of Caffe's forks are unknown)" if "no field" in why else "correct the file"
        raise errors.DataError(f"{path}:{line}:{column}: {why.rstrip('.')}{_layer_at(text, line)}; {todo}") from error
    return text, parsed


def _content(path: File) -> bytes:
    with errors.translated(_NOT_THERE, errors.InputNotFound, f"{path}: no such file"):
        return Path(path).read_bytes()


def _layers_in(text: str) -> list[tuple[int, str]]:
    """Return the layers of a text, each with the line where it begins; those of V0 are inside of `layers`."""
    text = re.sub(r"(\"[^\"\n]*\"|'[^'\n]*')|#.*", r"\1", text)  # without comments
    for word in ("layers", "layer"):
        first, *layers = re.split(rf"(?=\b{word}\s*:?\s*[{{<])", text)
        if layers:
            break
    starts = itertools.accumulate((piece.count("\n") for piece in layers), initial=first.count("\n") + 1)
    return list(zip(starts, layers, strict=False))


def _layer_at(text: str, line: int) -> str:
    """Return the name and the type of the layer that a line is in, for a message."""
    layer = ["", *(layer for start, layer in _layers_in(text) if start <= line)][-1]
    words = [re.search(rf"\b{word}\s*:\s*[\"']?([\w/.-]+)", layer) for word in ("name", "type")]
    return f" (in layer {words[0][1]} of type {words[1][1]})" if all(words) else ""


# ---- older syntax


def _join_padding(layers: list) -> None:
    """Give the pads of V0's layers `padding` to the layers that read them."""
    padded = {layer.top[0]: layer for layer in layers if layer.layer.type == "padding" and layer.top}
    for layer in layers:
        before = padded.get(layer.bottom[0]) if layer.bottom else None
        if before is not None and layer.layer.type in ("conv", "pool"):
            layer.layer.pad, layer.bottom[0] = before.layer.pad, before.bottom[0]


def _today(old):
    """Return a layer of V1 or V0 in today's syntax: its bytes, read as today's messages, whose fields have the same numbers."""
    word = old.layer.type.upper() or old.Type.Name(old.type)
    new = _classes()[f"{TEXT}.Layer"].FromString(old.SerializeToString())
    new.name, new.type = old.name or old.layer.name, TYPES.get(word, word.title().replace("_", ""))
    parameters = getattr(new, re.sub("(?<=[a-z])(?=[A-Z])", "_", new.type).lower() + "_param", None)
    if parameters is not None:
        parameters.MergeFromString(old.layer.SerializeToString())
    inner = old.layer if old.HasField("layer") else old
    for lr_mult, decay_mult, name in itertools.zip_longest(inner.blobs_lr, inner.weight_decay, old.param):
        new.param.add(lr_mult=lr_mult, decay_mult=decay_mult, name=name)
    for name in DATA_PARAMS:  # what is now the transformation was theirs
        new.transform_param.MergeFromString(getattr(new, name).SerializeToString())
    return new


# ---- binary


def _parse_binary(path: File, kind: str):
    hdf5 = "HDF5 is not supported, so give what Caffe writes with snapshot_format BINARYPROTO"
    why = f"{path}: damaged, or not written by Caffe; copy it again from where it came ({hdf5})"
    with errors.translated((message.DecodeError, UnicodeDecodeError), errors.DataError, why):
        return _classes()[f"{BINARY}.{kind}"].FromString(_content(path))


def _array(blob, where: str) -> np.ndarray:
    """Return the numbers of a blob in the shape it states."""
    kind, fields = "<f8" if blob.double_data else "<f4", unknown_fields.UnknownFieldSet(blob)
    singly = np.array([it.data for it in fields if it.field_number == it.wire_type == 5], "<u4")  # not packed
    content = b"".join(filter(None, [*blob.data, *blob.double_data, singly.tobytes()]))
    sides = blob.num, blob.channels, blob.height, blob.width  # of old files
    shape = sides if any(sides) else tuple(blob.shape.dim)  # a single number has neither
    size = math.prod(shape) * np.dtype(kind).itemsize
    found = f"a blob of shape {list(shape)} with {len(content):,} bytes instead of {size:,}"
    refuse(min(shape, default=1) < 0 or len(content) != size, f"{where}: {found}; damaged")
    return np.frombuffer(content, kind).astype(np.float32, copy=False).reshape(shape)
