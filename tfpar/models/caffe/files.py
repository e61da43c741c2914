"""Caffe's files: prototxt in the syntax of any year, and the blobs of a caffemodel.

The names and types (`messages.ini`) come from BVLC/caffe@9b89154, src/caffe/proto/caffe.proto. Text is parsed strictly, because a misspelt field would
otherwise mean its default. Of a binary file only names and blobs are read.

Example:
    >>> net = files.read_net("lenet.prototxt")
    >>> [layer.type for layer in net.layers][:3]
    ['Input', 'Convolution', 'Pooling']
"""

import configparser
import functools
import itertools
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory, text_format

from tfpar import errors, validate

_NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
NO_NORMALIZATION = 3  # of a loss: NONE
TEXT, BINARY = "tfpar.caffe.text", "tfpar.caffe.binary"  # sections of messages.ini
TYPES_OF_V1, FIELDS_OF_V0 = "types of V1 and V0", "fields of V0"  # others
SCALARS = ("string", "bool", "int64", "uint32", "double", "bytes")
DATA_PARAMS = ("data_param", "image_data_param", "window_data_param", "memory_data_param", "hdf5_data_param")
TRANSFORMED = ("scale", "mean_file", "crop_size", "mirror")


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


def read_net(path: str | os.PathLike) -> Net:
    """Read a network in the syntax of any year.

    Raises:
        errors.InputNotFound: there is no such file.
        errors.DataError: it cannot be parsed; the message begins with file:line:column.
    """
    text, parsed = _parse(path, "Net")
    layers = [*(_today(layer) for layer in parsed.layers), *parsed.layer]
    if not layers:
        raise errors.DataError(f"{path}:1:1: no layer in it; give the prototxt of a network")
    lines = _lines_of_layers(text)
    lines = lines if len(lines) == len(layers) else [1] * len(layers)  # as in `layer: [{...}, {...}]`
    found = _without_padding(list(zip(layers, lines, strict=True)))
    if parsed.input:
        first, dims = _classes(TEXT)["Layer"](name="input", type="Input", top=parsed.input), parsed.input_dim
        for shape in [it.dim for it in parsed.input_shape] or [dims[n : n + 4] for n in range(0, len(dims), 4)]:
            first.input_param.shape.add(dim=shape)
        found.insert(0, (first, 1))
    return Net(Path(path), parsed, [layer for layer, _ in found], {id(layer): line for layer, line in found})


def read_solver(path: str | os.PathLike):
    """Read a solver; raises as `read_net`."""
    solver = _parse(validate.path("solver", path), "Solver")[1]
    if solver.HasField("type") and solver.HasField("solver_type"):
        raise errors.DataError(f"{path}: type and solver_type are one setting; leave solver_type out")
    return solver


def read_weights(path: str | os.PathLike) -> dict[str, list[np.ndarray]]:
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
    if any(isinstance(name, bytes) for name, _ in named):  # not UTF-8
        raise errors.DataError(f"{path}: the names of its layers are damaged; copy it again from where it came")
    found = {name: [_array(blob, f"{path}: layer {name}") for blob in blobs] for name, blobs in named if blobs}
    if not found:
        why = "no weights in it, so it is no caffemodel"
        raise errors.DataError(f"{path}: {why}; give the file that Caffe has written")
    return found


def read_mean(path: str | os.PathLike) -> np.ndarray:
    """Read a mean picture (a .binaryproto) as `float32[height, width, channels]`; raises as `read_weights`."""
    mean = _array(_parse_binary(path, "Blob"), f"{path}")
    if mean.ndim < 3 or not mean.size:
        todo = "give the .binaryproto that Caffe has written, or numbers"
        raise errors.DataError(f"{path}: no mean picture in it; {todo}")
    return mean.reshape(mean.shape[-3:]).transpose(1, 2, 0)


def beside(file: Path, named: str) -> Path | None:
    """Return the file that another one names: by the path as it stands, from the other's folder, or in that folder; None if it is not there."""
    there = (Path(named), file.parent / named, file.parent / Path(named).name)
    return next((path for path in there if path.is_file()), None)


# ---- the schema


@functools.cache
def _sections() -> configparser.ConfigParser:
    found = configparser.ConfigParser(delimiters=":", interpolation=None)
    found.optionxform = str  # names keep their capitals
    found.read(Path(__file__).with_name("messages.ini"), encoding="utf-8")
    return found


@functools.cache
def _classes(package: str) -> dict[str, type]:
    """Build the message classes of a section of messages.ini."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package)
    table = _sections()[package]
    parameters = [f"{name[1:]} {_parameters_of(name[1:])}" for name in table if name.startswith("+")]
    for name, content in table.items():
        added = file.message_type.add(name=name.removeprefix("+"))
        for group in content.replace("+", ";".join(parameters)).split(";"):
            kind, *words = group.split()
            for word in words:
                _add_field(added, kind, word, package)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    names = [added.name for added in file.message_type]
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in names}


def _parameters_of(name: str) -> str:
    """Return the field with the parameters of a type of layer, such as `inner_product_param`."""
    return re.sub("(?<=[a-z5])(?=[A-Z])", "_", name).lower() + "_param"


def _add_field(to, kind: str, word: str, package: str) -> None:
    name, _, value = word.removeprefix("*").partition("=")
    numbered = package == BINARY
    added = to.field.add(name=name, number=int(value) if numbered else len(to.field) + 1)
    added.label = added.LABEL_REPEATED if word.startswith("*") else added.LABEL_OPTIONAL
    if value and not numbered:
        added.default_value = value
    if kind in SCALARS:
        added.type = getattr(added, f"TYPE_{kind.upper()}")
    elif "|" in kind:  # inside a message of its own: values share the names of their scope
        enum = to.nested_type.add(name=f"Of_{name}").enum_type.add(name="Enum")
        for number, option in enumerate(kind.split("|")):
            enum.value.add(name=option or "_", number=number)
        added.type, added.type_name = added.TYPE_ENUM, f".{package}.{to.name}.Of_{name}.Enum"
    else:
        added.type, added.type_name = added.TYPE_MESSAGE, f".{package}.{kind}"


# ---- text


def _parse(path: str | os.PathLike, kind: str):
    """Return the text of a file and the message in it."""
    text = _content(path).decode("utf-8-sig", errors="replace")  # comments may be in another encoding
    if "\0" in text and "\ufffd" in text:
        raise errors.DataError(f"{path}: a binary file; give a prototxt")
    parsed = _classes(TEXT)[kind]()
    try:
        text_format.Parse(text, parsed)
    except text_format.ParseError as error:
        line, column = error.GetLine() or text.count("\n") + 1, error.GetColumn() or 1
        why = errors.first_line(re.sub(rf"^[\d: ]+('.*': )?|{TEXT}\.", "", str(error)))  # without the whole line
        todo = "correct the file (fields of Caffe's forks are unknown)" if "no field" in why else "correct the file"
        raise errors.DataError(f"{path}:{line}:{column}: {why.rstrip('.')}{_layer_at(text, line)}; {todo}") from error
    return text, parsed


def _layer_at(text: str, line: int) -> str:
    """Return the name and the type of the layer that a line is in, for a message."""
    starts = [1, *sorted(_lines_of_layers(text)), text.count("\n") + 2]
    start, end = next((a, b) for a, b in itertools.pairwise(starts) if a <= line < b)
    layer = "\n".join(text.split("\n")[start - 1 : end - 1])
    words = [re.search(rf"\b{word}\s*:\s*[\"']?([\w/.-]+)", layer) for word in ("name", "type")]
    return f" (in layer {words[0][1]} of type {words[1][1]})" if start > 1 and all(words) else ""


def _content(path: str | os.PathLike) -> bytes:
    with errors.translated(_NOT_THERE, errors.InputNotFound, f"{path}: no such file"):
        return Path(path).read_bytes()


def _lines_of_layers(text: str) -> list[int]:
    """Return the line where each layer of the file begins, the older `layers` first, as `read_net` does."""
    found, depth = {"layers": [], "layer": []}, 0
    tokens = r"#[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|\blayers?\b(?=\s*:?\s*[{<])|[{}<>]"
    for token in re.finditer(tokens, text):
        if token[0] in ("layers", "layer") and depth == 0:
            found[token[0]].append(text.count("\n", 0, token.start()) + 1)
        depth += (token[0] in "{<") - (token[0] in "}>")
    return found["layers"] + found["layer"]


# ---- older syntax


def _today(old):
    """Return a layer of V1 or V0 in today's syntax."""
    sections = _sections()
    new = _classes(TEXT)["Layer"]()
    word = old.layer.type.upper() or old.DESCRIPTOR.fields_by_name["type"].enum_type.values_by_number[old.type].name
    for described, value in old.ListFields():
        if described.name not in ("type", "param", "blobs"):
            _set(new, described.name, value)
    new.name = old.name or old.layer.name
    new.type = sections[TYPES_OF_V1].get(word, "".join(part.capitalize() for part in word.split("_")))
    parameters = _parameters_of("Convolution" if new.type == "Padding" else new.type)
    for described, value in old.layer.ListFields():
        _set(getattr(new, parameters, None), sections[FIELDS_OF_V0].get(described.name, described.name), value)
    inner = old.layer if old.HasField("layer") else old
    columns = {"lr_mult": inner.blobs_lr, "decay_mult": inner.weight_decay, "name": old.param}
    for number in range(max(map(len, columns.values()))):
        new.param.add(**{name: values[number] for name, values in columns.items() if number < len(values)})
    for name in DATA_PARAMS:  # what is now the transformation was theirs
        given = getattr(new, name)
        for described, value in given.ListFields():
            if described.name in TRANSFORMED:
                setattr(new.transform_param, described.name, value)
    return new


def _set(message, name: str, value) -> None:
    """Set a field of a message, where it has one; what is a list there is appended to."""
    if name not in getattr(getattr(message, "DESCRIPTOR", None), "fields_by_name", ()):
        return
    there = getattr(message, name)
    if hasattr(there, "extend"):
        there.extend(value if hasattr(value, "extend") else [value])
    elif hasattr(value, "ListFields"):
        there.CopyFrom(value)
    else:
        setattr(message, name, value)


def _without_padding(layers: list[tuple[Any, int]]) -> list[tuple[Any, int]]:
    """Give the pads of V0's layers `padding` to the layers that read them."""
    padded = {layer.top[0]: layer for layer, _ in layers if layer.type == "Padding" and layer.top}
    for layer, _ in layers:
        before = padded.get(layer.bottom[0]) if layer.bottom else None
        if before is not None and layer.type in ("Convolution", "Pooling"):
            _set(getattr(layer, _parameters_of(layer.type)), "pad", [*before.convolution_param.pad, 0][0])
            layer.bottom[0] = before.bottom[0]
    return [pair for pair in layers if pair[0].type != "Padding"]


# ---- binary


def _parse_binary(path: str | os.PathLike, kind: str):
    content = _content(path)
    if content.startswith(b"\x89HDF"):
        raise errors.DataError(f"{path}: an HDF5 file is not supported; give the one with snapshot_format BINARYPROTO")
    why = f"{path}: damaged, or not written by Caffe; copy it again from where it came"
    with errors.translated((message.DecodeError, UnicodeDecodeError), errors.DataError, why):
        return _classes(BINARY)[kind].FromString(content)


def _array(blob, where: str) -> np.ndarray:
    """Return the numbers of a blob in the shape it states."""
    content, kind = (blob.data, "<f4") if blob.data else (blob.double_data, "<f8")
    sides = blob.num, blob.channels, blob.height, blob.width  # of old files
    shape = sides if any(sides) else tuple(blob.shape.dim)  # a single number has neither
    content = content[0] if len(content) == 1 else b"".join(content)
    size = math.prod(shape) * np.dtype(kind).itemsize
    if min(shape, default=1) < 0 or len(content) != size:
        found = f"a blob of shape {list(shape)} with {len(content):,} bytes instead of {size:,}"
        raise errors.DataError(f"{where}: {found}; damaged")
    return np.frombuffer(content, kind).astype(np.float32, copy=False).reshape(shape)
