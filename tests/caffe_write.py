"""Caffe's files by hand, for tests: prototxt text in its three syntaxes, a reader of it, and the binary caffemodel.

The layers are the plain dicts of caffe_rules. Nothing here uses protobuf or tfpar.
"""

import re

import numpy as np

ENUMS = {"pool", "norm_region", "operation", "phase", "round_mode", "variance_norm", "engine", "backend", "solver_mode"}
V1_NAMES = {
    "Convolution": "CONVOLUTION",
    "Pooling": "POOLING",
    "InnerProduct": "INNER_PRODUCT",
    "ReLU": "RELU",
    "LRN": "LRN",
    "TanH": "TANH",
    "AbsVal": "ABSVAL",
    "BNLL": "BNLL",
    "Sigmoid": "SIGMOID",
    "Power": "POWER",
    "Exp": "EXP",
    "Eltwise": "ELTWISE",
    "Concat": "CONCAT",
    "Slice": "SLICE",
    "Split": "SPLIT",
    "Flatten": "FLATTEN",
    "Dropout": "DROPOUT",
    "Softmax": "SOFTMAX",
}
V1_NUMBERS = {"CONVOLUTION": 4, "INNER_PRODUCT": 14, "POOLING": 17, "RELU": 18}  # enum LayerType; the rest as 0, NONE
V0_NAMES = {
    "Convolution": "conv",
    "Pooling": "pool",
    "InnerProduct": "innerproduct",
    "ReLU": "relu",
    "LRN": "lrn",
    "TanH": "tanh",
    "BNLL": "bnll",
    "Sigmoid": "sigmoid",
    "Concat": "concat",
    "Split": "split",
    "Flatten": "flatten",
    "Dropout": "dropout",
    "Softmax": "softmax",
    "Padding": "padding",
}
V0_FIELDS = {"kernel_size": "kernelsize", "bias_term": "biasterm"}


def parameter(kind):
    """Return the name of a layer type's parameter message: inner_product_param, lrn_param, relu_param."""
    kind = {"DepthwiseConvolution": "Convolution", "ConvolutionDepthwise": "Convolution"}.get(kind, kind)
    words = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", kind)
    return f"{words.lower()}_param"


def text(fields, indent=""):
    """Write a message's fields in the text format, one a line."""
    lines = []
    for name, value in fields:
        if isinstance(value, (list, tuple)):
            lines.append(text([(name, each) for each in value], indent))
        elif isinstance(value, dict):
            lines.append(f"{indent}{name} {{\n{text(value.items(), indent + '  ')}{indent}}}\n")
        else:
            if isinstance(value, bool):
                value = str(value).lower()
            elif isinstance(value, str) and name not in ENUMS:
                value = f'"{value}"'
            lines.append(f"{indent}{name}: {value}\n")
    return "".join(lines)


def prototxt(layers, version=2, state=None):
    """Return a network as text; `version` 2 is the current syntax, 1 and 0 are the older ones."""
    return {2: current, 1: first, 0: zeroth}[version](layers, [("name", "net"), ("state", state or [])])


def current(layers, head):
    for layer in layers:
        fields = [
            (key, layer[key])
            for key in ("name", "type", "bottom", "top", "param", "include", "exclude")
            if key in layer
        ]
        head = [*head, ("layer", dict(fields + [(parameter(layer["type"]), layer["p"])] * bool(layer["p"])))]
    return text(head)


def old_inputs(layers):
    for layer in layers:
        if layer["type"] == "Input":
            yield ("input", layer["top"])
            yield ("input_dim", layer["p"]["shape"]["dim"])


def first(layers, head):
    lines = text([*head, *old_inputs(layers)])
    for layer in layers:
        if layer["type"] != "Input":
            fields = [(key, layer[key]) for key in ("name", "bottom", "top", "include", "exclude") if key in layer]
            names = [param["name"] for param in layer.get("param", [])]
            rest = [("param", names), *[(parameter(layer["type"]), layer["p"])] * bool(layer["p"])]
            lines += f"layers {{\n  type: {V1_NAMES[layer['type']]}\n{text(fields + rest, '  ')}}}\n"
    return lines


def zeroth(layers, head):
    head = [*head, *old_inputs(layers)]
    for layer in layers:
        if layer["type"] != "Input":
            inner = {"name": layer["name"], "type": V0_NAMES[layer["type"]]}
            inner |= {V0_FIELDS.get(name, name): value for name, value in layer["p"].items()}
            head.append(("layers", {"layer": inner, "bottom": layer["bottom"], "top": layer["top"]}))
    return text(head)


TOKEN = re.compile(r"""#[^\n]*|"[^"\n]*"|'[^'\n]*'|[{}:;,]|[^\s{}:;,"']+""")


def read_text(source):
    """Read the text format into dicts, a repeated field as a list."""
    tokens = iter([token for token in TOKEN.findall(source) if token[0] not in "#:;,"])

    def message():
        fields = {}
        for name in tokens:
            if name == "}":
                break
            value = next(tokens)
            value = message() if value == "{" else scalar(value)
            fields[name] = [*fields[name], value] if name in fields else [value]
        return {name: values[0] if len(values) == 1 else values for name, values in fields.items()}

    return message()


def scalar(token):
    if token[0] in "\"'":
        return token[1:-1]
    if token in ("true", "false"):
        return token == "true"
    try:
        return float(token) if re.search(r"[.eE]", token) else int(token)
    except ValueError:
        return token


def as_list(value):
    return value if isinstance(value, list) else [value]


def read_layers(source):
    """Read a network in the current syntax or V1 into the dicts of caffe_rules. Its inputs become Input layers."""
    net, names = read_text(source), {v1: name for name, v1 in V1_NAMES.items()}
    layers = []
    if "input" in net:
        dims = net.get("input_dim") or net["input_shape"]["dim"]
        top = as_list(net["input"])
        layers.append({"name": top[0], "type": "Input", "bottom": [], "top": top, "p": {"shape": {"dim": dims}}})
    for layer in as_list(net.get("layer", net.get("layers"))):
        kind = names.get(layer["type"], layer["type"])
        lists = {key: as_list(layer.get(key, [])) for key in ("bottom", "top", "include", "exclude")}
        layers.append({"name": layer["name"], "type": kind, "p": layer.get(parameter(kind), {}), **lists})
    return layers


def varint(number):
    number, digits = number & (1 << 64) - 1, b""
    while number > 127:
        digits, number = digits + bytes([number & 127 | 128]), number >> 7
    return digits + bytes([number])


def integer(field, number):
    return varint(field << 3) + varint(number)


def part(field, content):
    """Return a field of bytes, a string or a message."""
    content = content.encode() if isinstance(content, str) else content
    return varint(field << 3 | 2) + varint(len(content)) + content


def blob(array, old=False, double=False, packed=True):
    """Return a BlobProto; `old` gives four numbers instead of the shape, ones before what is there. A single number has neither."""
    array = np.asarray(array)
    if old:
        shape = b"".join(integer(i + 1, dim) for i, dim in enumerate((1,) * (4 - array.ndim) + array.shape))
    else:
        shape = part(7, part(1, b"".join(varint(dim) for dim in array.shape))) if array.ndim else b""
    if not packed:  # each number is a field of four bytes
        return shape + b"".join(varint(5 << 3 | 5) + value.tobytes() for value in array.astype("<f4").ravel())
    return shape + part(*((8, array.astype("<f8").tobytes()) if double else (5, array.astype("<f4").tobytes())))


def caffemodel(blobs, version=2, types=None, **how):
    """Return the weights {layer: [arrays]} as the bytes of a NetParameter."""
    net = part(1, "net")
    for name, arrays in blobs.items():
        kind, data = (types or {}).get(name, "Layer"), [blob(array, **how) for array in arrays]
        if version == 2:
            net += part(100, part(1, name) + part(2, kind) + b"".join(part(7, each) for each in data))
        elif version == 1:
            number = V1_NUMBERS.get(V1_NAMES.get(kind), 0)
            net += part(2, part(4, name) + integer(5, number) + b"".join(part(6, each) for each in data))
        else:
            inner = part(1, name) + part(2, V0_NAMES.get(kind, kind)) + b"".join(part(50, each) for each in data)
            net += part(2, part(1, inner))
    return net


def fields_of(content):
    """Yield number and content of each field of a message."""
    at = 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            value, shift, at = value | (content[at] & 127) << shift, shift + 7, at + 1
            if content[at - 1] < 128:
                return value

    while at < len(content):
        key = number()
        if key & 7 == 0:
            yield key >> 3, number()
        else:
            size = number() if key & 7 == 2 else {1: 8, 5: 4}[key & 7]
            yield key >> 3, content[at : at + size]
            at += size


def read_caffemodel(content):
    """Return {layer: [arrays]} of a V1 or a current file."""
    found = {}
    for field, layer in fields_of(memoryview(content)):
        if field in (2, 100):
            name, blobs = (4, 6) if field == 2 else (1, 7)
            parts = list(fields_of(layer))
            arrays = [read_blob(each) for number, each in parts if number == blobs]
            found |= {bytes(each).decode(): arrays for number, each in parts if number == name and arrays}
    return found


def read_blob(content):
    """Read a blob of floats whose shape is four numbers, as files of 2014 have it; ones at the front are dropped."""
    parts = dict(fields_of(content))
    shape = [parts[i] for i in (1, 2, 3, 4)]
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return np.frombuffer(parts[5], "<f4").reshape(shape)
