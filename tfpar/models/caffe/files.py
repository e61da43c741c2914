"""Caffe's files: prototxt in the syntax of any year, and the blobs of a caffemodel.

The names and types come from BVLC/caffe@9b89154, src/caffe/proto/caffe.proto. Text is parsed strictly, because a misspelt field would
otherwise mean its default. Of a binary file only names and blobs are read.

Example:
    >>> net = files.read_net("lenet.prototxt")
    >>> [layer.type for layer in net.layers][:3]
    ['Input', 'Convolution', 'Pooling']
"""

from __future__ import annotations

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

# A line is a message: groups of a type and names. `*name` is a list, `name=default` has a default. Types: s text, b bool, i integer, u integer
# from 0, f number, x bytes; several words with `|` are an enum; all else is a message. `+` are all messages after it, as `snake_case_param`.
MESSAGES = """
Net: s name *input; i *input_dim; Shape *input_shape; b force_backward debug_info; State state; V1 *layers; Layer *layer
State: TRAIN|TEST phase=TEST; i level=0; s *stage
Rule: TRAIN|TEST phase; i min_level max_level; s *stage *not_stage
Shape: i *dim
Blob: f *data *diff; i num channels height width; Shape shape
Filler: s type=constant; f value=0 min=0 max=1 mean=0 std=1; i sparse=-1; FAN_IN|FAN_OUT|AVERAGE variance_norm=FAN_IN
Param: s name; f lr_mult=1 decay_mult=1; STRICT|PERMISSIVE share_mode
Layer: s name type *bottom *top; TRAIN|TEST phase; f *loss_weight; Param *param; Blob *blobs; b *propagate_down; Rule *include *exclude; +
V1: s *bottom *top name; V1_TYPES type=NONE; Rule *include *exclude; Blob *blobs; s *param; STRICT|PERMISSIVE *blob_share_mode;\
 f *blobs_lr *weight_decay *loss_weight; V0 layer; +
V0: s name type source meanfile det_crop_mode; b biasterm mirror shuffle_images; Filler weight_filler bias_filler; MAX|AVE|STOCHASTIC pool;\
 u num_output pad kernelsize group stride local_size batchsize cropsize rand_skip concat_dim new_num new_channels new_height new_width\
 det_context_pad; f dropout_ratio alpha beta k scale *blobs_lr *weight_decay det_fg_threshold det_bg_threshold det_fg_fraction; Blob *blobs
Solver: s net train_net *test_net lr_policy regularization_type=L2 type=SGD snapshot_prefix *weights; Net net_param train_net_param\
 *test_net_param; State train_state *test_state; i *test_iter test_interval display average_loss max_iter iter_size=1 stepsize *stepvalue\
 snapshot device_id random_seed; b test_compute_loss test_initialization snapshot_diff debug_info snapshot_after_train layer_wise_reduce;\
 f base_lr gamma power momentum weight_decay clip_gradients=-1 delta=1e-8 momentum2=0.999 rms_decay=0.99; CPU|GPU solver_mode;\
 SGD|NESTEROV|ADAGRAD|RMSPROP|ADADELTA|ADAM solver_type; HDF5|BINARYPROTO snapshot_format
+Transform: f scale=1 *mean_value; b mirror force_color force_gray; u crop_size; s mean_file
+Loss: i ignore_label; FULL|VALID|BATCH_SIZE|NONE normalization=VALID; b normalize
+Accuracy: u top_k=1; i axis=1 ignore_label
+ArgMax: b out_max_val; u top_k; i axis
+BatchNorm: b use_global_stats; f moving_average_fraction=0.999 eps=1e-5
+Concat: i axis=1; u concat_dim
+ContrastiveLoss: f margin; b legacy_version
+Convolution: u num_output *pad *kernel_size *stride *dilation pad_h pad_w kernel_h kernel_w stride_h stride_w group=1;\
 b bias_term=true force_nd_im2col; Filler weight_filler bias_filler; DEFAULT|CAFFE|CUDNN engine; i axis=1
+Data: s source mean_file; u batch_size rand_skip crop_size prefetch; LEVELDB|LMDB backend; f scale; b mirror force_encoded_color
+Dropout: f dropout_ratio=0.5
+DummyData: Filler *data_filler; Shape *shape; u *num *channels *height *width
+Eltwise: PROD|SUM|MAX operation=SUM; f *coeff; b stable_prod_grad
+Elu: f alpha=1
+Exp: f base=-1 scale=1 shift=0
+Flatten: i axis=1 end_axis=-1
+HDF5Data: s source; u batch_size; b shuffle
+HDF5Output: s file_name
+HingeLoss: |L1|L2 norm
+ImageData: s source mean_file root_folder; u batch_size rand_skip new_height new_width crop_size; b shuffle is_color mirror; f scale
+InfogainLoss: s source; i axis
+InnerProduct: u num_output; b bias_term=true transpose; Filler weight_filler bias_filler; i axis=1
+Input: Shape *shape
+Lrn: u local_size=5; f alpha=1 beta=0.75 k=1; ACROSS_CHANNELS|WITHIN_CHANNEL norm_region; DEFAULT|CAFFE|CUDNN engine
+MemoryData: u batch_size channels height width
+Pooling: MAX|AVE|STOCHASTIC pool; u pad kernel_size stride pad_h pad_w kernel_h kernel_w stride_h stride_w; CEIL|FLOOR round_mode;\
 DEFAULT|CAFFE|CUDNN engine; b global_pooling
+Power: f power=1 scale=1 shift=0
+Prelu: Filler filler; b channel_shared
+Python: s module layer param_str; b share_in_parallel
+Relu: f negative_slope=0; DEFAULT|CAFFE|CUDNN engine
+Reshape: Shape shape; i axis=0 num_axes=-1
+Scale: i axis=1 num_axes=1; Filler filler bias_filler; b bias_term
+Sigmoid: DEFAULT|CAFFE|CUDNN engine
+Slice: i axis=1; u *slice_point slice_dim
+Softmax: DEFAULT|CAFFE|CUDNN engine; i axis=1
+Tanh: DEFAULT|CAFFE|CUDNN engine
+WindowData: s source mean_file crop_mode root_folder; f scale fg_threshold bg_threshold fg_fraction; u batch_size crop_size context_pad;\
 b mirror cache_images
"""
V1_TYPES = (
    "NONE|ACCURACY|BNLL|CONCAT|CONVOLUTION|DATA|DROPOUT|EUCLIDEAN_LOSS|FLATTEN|HDF5_DATA|HDF5_OUTPUT|IM2COL|IMAGE_DATA|INFOGAIN_LOSS|"
    "INNER_PRODUCT|LRN|MULTINOMIAL_LOGISTIC_LOSS|POOLING|RELU|SIGMOID|SOFTMAX|SOFTMAX_LOSS|SPLIT|TANH|WINDOW_DATA|ELTWISE|POWER|"
    "SIGMOID_CROSS_ENTROPY_LOSS|HINGE_LOSS|MEMORY_DATA|ARGMAX|THRESHOLD|DUMMY_DATA|SLICE|MVN|ABSVAL|SILENCE|CONTRASTIVE_LOSS|EXP|DECONVOLUTION"
)
# Of the binary form, with Caffe's own numbers. Lists of numbers are declared as bytes, which NumPy reads without a copy.
BINARY = """
Net: V1 *layers=2; Layer *layer=100
Layer: s name=1; Blob *blobs=7
V1: V0 layer=1; s name=4; Blob *blobs=6
V0: s name=1; Blob *blobs=50
Blob: i num=1 channels=2 height=3 width=4; x *data=5; Shape shape=7; x *double_data=8
Shape: i *dim=1
"""
_NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
NO_NORMALIZATION = 3  # of a loss: NONE
TEXT, BINARY_PACKAGE = "tfpar.caffe.text", "tfpar.caffe.binary"
KINDS = {"s": "STRING", "b": "BOOL", "i": "INT64", "u": "UINT32", "f": "DOUBLE", "x": "BYTES"}
# Types of layers of V1 and V0 that are not today's word in capitals.
OLD_TYPES = {
    "RELU": "ReLU", "LRN": "LRN", "TANH": "TanH", "ABSVAL": "AbsVal", "BNLL": "BNLL", "MVN": "MVN", "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output", "ARGMAX": "ArgMax", "SOFTMAX_LOSS": "SoftmaxWithLoss", "CONV": "Convolution", "POOL": "Pooling",
    "INNERPRODUCT": "InnerProduct", "IMAGES": "ImageData",
}  # fmt: skip
# The fields of V0 that are called otherwise today.
V0_FIELDS = {
    "kernelsize": "kernel_size", "biasterm": "bias_term", "batchsize": "batch_size", "cropsize": "crop_size", "meanfile": "mean_file",
}  # fmt: skip
DATA_PARAMS = ("data_param", "image_data_param", "window_data_param", "memory_data_param", "hdf5_data_param")
TRANSFORMED = ("scale", "mean_file", "crop_size", "mirror")


class Net(NamedTuple):
    """A parsed prototxt.

    Attributes:
        path: of the file.
        message: the whole of it.
        layers: in today's syntax.
        lines: of the file, where each layer begins.
    """

    path: Path
    message: Any
    layers: list
    lines: list[int]


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
    return Net(Path(path), parsed, [layer for layer, _ in found], [line for _, line in found])


def read_solver(path: str | os.PathLike):
    """Read a solver; raises as `read_net`."""
    return _parse(path, "Solver")[1]


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
    named = {layer.name: layer.blobs for layer in parsed.layer}
    for layer in parsed.layers:
        named[layer.name or layer.layer.name] = layer.blobs or layer.layer.blobs
    if any(isinstance(name, bytes) for name in named):  # not UTF-8
        raise errors.DataError(f"{path}: the names of its layers are damaged; copy it again from where it came")
    found = {name: [_array(blob, f"{path}: layer {name}") for blob in blobs] for name, blobs in named.items() if blobs}
    if not found:
        raise errors.DataError(
            f"{path}: no weights in it, so it is no caffemodel; give the file that Caffe has written"
        )
    return found


def read_mean(path: str | os.PathLike) -> np.ndarray:
    """Read a mean picture (a .binaryproto) as `float32[height, width, channels]`; raises as `read_weights`."""
    mean = _array(_parse_binary(path, "Blob"), f"{path}")
    if mean.ndim < 3 or not mean.size:
        raise errors.DataError(
            f"{path}: no mean picture in it; give the .binaryproto that Caffe has written, or numbers"
        )
    return mean.reshape(mean.shape[-3:]).transpose(1, 2, 0)


def size(parameters, both: str, short: str = "") -> tuple[int, int] | None:
    """Return height and width of a size, written `kernel_size` once or twice, or `kernel_h` and `kernel_w`; None if it is not given.

    Example:
        >>> convolution = files.read_net("lenet.prototxt").layers[1]
        >>> files.size(convolution.convolution_param, "kernel_size", "kernel")
        (5, 5)
    """
    given = getattr(parameters, both)
    values = [given] * parameters.HasField(both) if isinstance(given, int) else [*given]
    sides = [f"{short or both}_{side}" for side in "hw"]
    if sides[0] in parameters.DESCRIPTOR.fields_by_name and any(map(parameters.HasField, sides)):
        values = [getattr(parameters, side) for side in sides]
    return (values[0], values[-1]) if values else None


def beside(file: Path, named: str) -> Path | None:
    """Return the file that another one names: by the path as it stands, from the other's folder, or in that folder; None if it is not there."""
    there = (Path(named), file.parent / named, file.parent / Path(named).name)
    return next((path for path in there if path.is_file()), None)


# ---- the schema


@functools.cache
def _classes(messages: str, package: str) -> dict[str, type]:
    """Build the message classes of a table."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package)
    table = dict(line.split(": ") for line in messages.replace("V1_TYPES", V1_TYPES).strip().splitlines())
    parameters = [name[1:] for name in table if name.startswith("+")]
    fields = [f"{name} {_parameters_of(name)}" for name in parameters]
    for name, content in table.items():
        added = file.message_type.add(name=name.removeprefix("+"))
        for group in content.replace("+", "; ".join(fields)).split("; "):
            kind, *words = group.split()
            for word in words:
                _add_field(added, kind, word, package)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    names = {f"{package}.{added.name}": added.name for added in file.message_type}
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(path)) for path, name in names.items()}


def _parameters_of(name: str) -> str:
    """Return the field with the parameters of a type of layer, such as `inner_product_param`."""
    return re.sub("(?<=[a-z5])(?=[A-Z])", "_", name).lower() + "_param"


def _add_field(to, kind: str, word: str, package: str) -> None:
    name, _, value = word.removeprefix("*").partition("=")
    numbered = package == BINARY_PACKAGE
    added = to.field.add(name=name, number=int(value) if numbered else len(to.field) + 1)
    added.label = added.LABEL_REPEATED if word.startswith("*") else added.LABEL_OPTIONAL
    if value and not numbered:
        added.default_value = value
    if kind in KINDS:
        added.type = getattr(added, f"TYPE_{KINDS[kind]}")
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
    content = _content(path)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        raise errors.DataError(
            f"{path}:{line}:{column}: no text (a byte that is not UTF-8); give a prototxt"
        ) from error
    parsed = _classes(MESSAGES, TEXT)[kind]()
    try:
        text_format.Parse(text, parsed)
    except text_format.ParseError as error:
        line, column = error.GetLine() or text.count("\n") + 1, error.GetColumn() or 1
        why = re.sub(r"^[\d: ]+", "", errors.first_line(error)).replace(f"{TEXT}.", "")
        inside = _layer_at(text, line) if kind == "Net" else ""
        raise errors.DataError(f"{path}:{line}:{column}: {why}{inside}; correct the file") from error
    return text, parsed


def _layer_at(text: str, line: int) -> str:
    """Return the name and the type of the layer that a line is in, for a message."""
    starts = [1, *sorted(_lines_of_layers(text)), text.count("\n") + 2]
    start, end = next((a, b) for a, b in itertools.pairwise(starts) if a <= line < b)
    layer = "\n".join(text.split("\n")[start - 1 : end - 1])
    words = [re.search(rf"\b{word}\s*:\s*[\"']?([\w/.-]+)", layer) for word in ("name", "type")]
    return f" (in layer {words[0][1]} of type {words[1][1]})" if start > 1 and all(words) else ""


def _content(path: str | os.PathLike) -> bytes:
    with errors.turned(_NOT_THERE, errors.InputNotFound, f"{path}: no such file"):
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
    new = _classes(MESSAGES, TEXT)["Layer"](bottom=old.bottom, top=old.top, name=old.name or old.layer.name)
    word = old.layer.type.upper() or old.DESCRIPTOR.fields_by_name["type"].enum_type.values_by_number[old.type].name
    new.type = OLD_TYPES.get(word, "".join(part.capitalize() for part in word.split("_")))
    for described, value in old.ListFields():
        if described.name in new.DESCRIPTOR.fields_by_name and described.name not in ("type", "param", "blobs"):
            _set(new, described.name, value, add=False)
    parameters = _parameters_of("Convolution" if new.type == "Padding" else new.type)
    for described, value in old.layer.ListFields():
        _set(getattr(new, parameters, None), V0_FIELDS.get(described.name, described.name), value)
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


def _set(message, name: str, value, *, add: bool = True) -> None:
    """Set a field of a message, where it has one; a number is appended to a list."""
    if name not in getattr(getattr(message, "DESCRIPTOR", None), "fields_by_name", ()):
        return
    if hasattr(value, "ListFields"):
        getattr(message, name).CopyFrom(value)
    elif hasattr(getattr(message, name), "extend"):
        there = getattr(message, name)
        there.extend([value] if add else value[len(there) :])
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
        raise errors.DataError(f"{path}: an HDF5 file, which is not supported; give the binary .caffemodel")
    why = f"{path}: damaged, or not written by Caffe; copy it again from where it came"
    with errors.turned((message.DecodeError, UnicodeDecodeError), errors.DataError, why):
        return _classes(BINARY, BINARY_PACKAGE)[kind].FromString(content)


def _array(blob, where: str) -> np.ndarray:
    """Return the numbers of a blob in the shape it states."""
    content, kind = (blob.data, "<f4") if blob.data else (blob.double_data, "<f8")
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else (blob.num, blob.channels, blob.height, blob.width)
    content = content[0] if len(content) == 1 else b"".join(content)
    size = math.prod(shape) * np.dtype(kind).itemsize
    if min(shape, default=1) < 0 or len(content) != size:
        raise errors.DataError(
            f"{where}: a blob of shape {list(shape)} with {len(content):,} bytes instead of {size:,}; damaged"
        )
    return np.frombuffer(content, kind).astype(np.float32, copy=False).reshape(shape)
