"""Caffe's layers as Keras layers that compute the same: one function for each type, and the table of them.

What each computes was read in BVLC/caffe@9b89154 (src/caffe/layers) and is tested beside a statement of it in NumPy. A blob of Caffe
`[batch, channels, height, width]` is a tensor `[batch, height, width, channels]` here; other blobs keep their order of axes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import layers, ops

from tfpar import errors
from tfpar.models.caffe import files

AXES = {0: 0, 1: 3, 2: 1, 3: 2}  # of a picture: of Caffe's axes to ours
LOWEST = -3.4028235e38  # float32's; minus infinity cannot be saved as JSON
WITH_FILLERS = ("Convolution", "InnerProduct", "Scale", "PReLU")


class Network:
    """A network while it is built, layer by layer.

    Attributes:
        blobs: the tensors by their names; a layer in place gives its name to a new one.
        outputs: what each layer gives, by the layer's name.
        weights: the blobs of a caffemodel by the name of the layer.
        made: by the layer's name the Keras layer with its weights.
        shapes: by the layer's name the shapes of its blobs, as Caffe has them.
        unfilled: layers with neither weights nor a filler.
    """

    def __init__(self, weights: dict[str, list[np.ndarray]], where: Callable[[object], str]):
        """Begin a network.

        Args:
            weights: from `files.read_weights`; empty without.
            where: returns file, line, name and type of a layer, for messages.
        """
        self.blobs: dict[str, keras.KerasTensor] = {}
        self.outputs: dict[str, keras.KerasTensor] = {}
        self.made: dict[str, keras.Layer] = {}
        self.shared: dict[tuple, keras.Layer] = {}  # by the names of their weights
        self.sharing: dict[str, tuple] = {}
        self.unfilled: list[str] = []
        self.weights, self.where = weights, where

    def add(self, layer) -> None:
        """Add the Keras layers of a layer of Caffe.

        Raises:
            errors.DataError: it has a type or a parameter that is not supported, or reads a blob that is not there.
            errors.SettingsError: the weights contradict its shapes.
        """
        if layer.type not in TABLE:
            raise errors.DataError(f"{self.where(layer)} is not supported; supported are {', '.join(sorted(TABLE))}")
        if missing := [name for name in layer.bottom if name not in self.blobs]:
            raise errors.DataError(
                f"{self.where(layer)} reads {missing[0]}, which no layer before it gives; correct the file"
            )
        try:
            found = TABLE[layer.type](self, layer, *(self.blobs[name] for name in layer.bottom))
        except ValueError as error:  # of Keras: shapes that do not fit
            raise errors.DataError(f"{self.where(layer)} does not fit: {errors.first_line(error)}") from error
        found = found if isinstance(found, list) else [found] * len(layer.top)
        for number, (name, tensor) in enumerate(zip(layer.top, found, strict=True)):
            called = keras_name(layer.name) + f".{number}" * (len(set(map(id, found))) > 1)
            if tensor._keras_history.operation.name != called and layer.type != "Split":
                tensor = layers.Identity(name=called)(tensor)  # so that every layer keeps its name
            self.blobs[name] = self.outputs[layer.name] = tensor

    def refuse(self, layer, what: str):
        """Refuse a parameter."""
        raise errors.DataError(f"{self.where(layer)}: {what} is not supported")

    def with_weights(self, layer, x, shapes: Sequence[tuple], fillers: Sequence, make: Callable, convert: Callable):
        """Call a Keras layer with weights; layers whose `param` all have the same names are one layer.

        Args:
            layer: of Caffe.
            x: its input.
            shapes: of its blobs in Caffe.
            fillers: of each blob: Caffe's, or a number for a constant.
            make: `make(*initializers)` returns the Keras layer.
            convert: `convert(*blobs)` returns the values of the Keras layer's weights.
        """
        names = tuple(param.name for param in layer.param)
        if any(names):
            if (
                "" in names
                or len(names) != len(shapes)
                or any(self.sharing.setdefault(n, names) != names for n in names)
            ):
                self.refuse(
                    layer, f"sharing the weights {', '.join(filter(None, names))} alone (share all of them, or none)"
                )
            if names in self.shared:
                self.made[layer.name] = self.shared[names]
                return self.shared[names](x)
        found = self._blobs_of(layer, shapes)
        if found is None and fillers[0] is None:
            self.unfilled.append(layer.name)
        made = make(*(_initializer(self, layer, f, shape) for f, shape in zip(fillers, shapes, strict=True)))
        y = made(x)
        if found is not None:
            made.set_weights(convert(*found))
        self.made[layer.name] = self.shared[names] = made
        return y

    def _blobs_of(self, layer, shapes: Sequence[tuple]) -> list[np.ndarray] | None:
        """Return the weights of a layer in Caffe's shapes; leading ones may be missing or be there, as Caffe compares them."""
        if layer.name not in self.weights:
            return None
        found = self.weights[layer.name]
        stripped = [np.trim_zeros(np.array(shape) - 1, "f") + 1 for shape in [*[blob.shape for blob in found], *shapes]]
        pairs = zip(stripped, stripped[len(found) :], strict=False)
        if len(found) != len(shapes) or any(list(there) != list(here) for there, here in pairs):
            there = ", ".join(str(list(blob.shape)) for blob in found)
            here = ", ".join(str(list(shape)) for shape in shapes)
            raise errors.SettingsError(
                f"{self.where(layer)}: its weights have the shapes {there} in the caffemodel, the network has {here}; give the "
                "file that belongs to this network, and pictures of the size it was trained on"
            )
        return [blob.reshape(shape) for blob, shape in zip(found, shapes, strict=True)]


def keras_name(name: str) -> str:
    """Return the name of a layer in Keras, which allows no slash."""
    return name.replace("/", ".")


@contextlib.contextmanager
def in_float32():
    """Build layers that compute in float32, whatever the precision of the others."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _initializer(network: Network, layer, filler, shape: tuple) -> keras.initializers.Initializer:
    """Return what a filler of Caffe draws from, for a blob of this shape; a number is a constant, None is xavier."""
    if isinstance(filler, float):
        return keras.initializers.Constant(filler)
    kind = "xavier" if filler is None else filler.type
    fans = math.prod(shape[1:]), math.prod(shape) / shape[min(1, len(shape) - 1)]
    n = (*fans, sum(fans) / 2)[filler.variance_norm if filler else 0]
    if kind == "constant":
        return keras.initializers.Constant(filler.value)
    if kind == "xavier":
        return keras.initializers.RandomUniform(-math.sqrt(3 / n), math.sqrt(3 / n))
    if kind == "msra":
        return keras.initializers.RandomNormal(0.0, math.sqrt(2 / n))
    if kind == "gaussian" and filler.sparse < 0:
        return keras.initializers.RandomNormal(filler.mean, filler.std)
    if kind == "uniform":
        return keras.initializers.RandomUniform(filler.min, filler.max)
    return network.refuse(layer, f"the filler {kind}{' with sparse' * (kind == 'gaussian')}")


def _fillers(p) -> list:
    """Return the fillers of weights and bias; None where the file states none for the weights."""
    weights = p.weight_filler if p.HasField("weight_filler") else None
    return [weights, p.bias_filler][: 1 + p.bias_term]


def _is_picture(x) -> bool:
    return len(x.shape) == 4


def _is_flat(x) -> bool:
    """Tell whether the order of the values of a picture is the same in Caffe and here."""
    return not _is_picture(x) or x.shape[1] == x.shape[2] == 1 or x.shape[3] == 1


# ---- layers with weights


def _convolution(network: Network, layer, x):
    p, name = layer.convolution_param, keras_name(layer.name)
    if not _is_picture(x) or p.axis != 1:
        network.refuse(layer, "an input that is no picture, or another axis")
    kernel, stride, pad, dilation = (
        files.size(p, both, short) or default
        for both, short, default in (
            ("kernel_size", "kernel", None), ("stride", "stride", (1, 1)), ("pad", "pad", (0, 0)), ("dilation", "dilation", (1, 1)),
        )
    )  # fmt: skip
    channels, filters, groups = x.shape[-1], p.num_output, p.group
    if not kernel or not filters or 0 in (*kernel, *stride, *dilation, groups) or channels % groups or filters % groups:
        network.refuse(layer, f"{filters} outputs of kernel {kernel} in {groups} groups for {channels} channels")
    taken = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    same = stride == (1, 1) and [2 * side for side in pad] == taken
    if any(pad) and not same:
        x = layers.ZeroPadding2D(((pad[0],) * 2, (pad[1],) * 2), name=f"{name}.pad")(x)
    apart = stride != (1, 1) and dilation != (1, 1)  # Keras refuses both at once
    options = {
        "strides": (1, 1) if apart else stride, "padding": "same" if same else "valid", "dilation_rate": dilation,
        "use_bias": p.bias_term, "name": name + ".dense" * apart,
    }  # fmt: skip
    depthwise = groups == channels > 1 and options["strides"][0] == options["strides"][1]

    def make(kernel_initializer, bias_initializer=None):
        options["bias_initializer"] = bias_initializer
        if depthwise:
            return layers.DepthwiseConv2D(
                kernel, depth_multiplier=filters // groups, depthwise_initializer=kernel_initializer, **options
            )
        return layers.Conv2D(filters, kernel, groups=groups, kernel_initializer=kernel_initializer, **options)

    def convert(weights, *bias):
        if depthwise:  # [filters, 1, height, width] -> [height, width, channels, multiplier]
            weights = weights.reshape(channels, -1, *kernel)
        return [weights.transpose(2, 3, 0, 1) if depthwise else weights.transpose(2, 3, 1, 0), *bias]

    shapes = [(filters, channels // groups, *kernel), (filters,)][: 1 + p.bias_term]
    y = network.with_weights(layer, x, shapes, _fillers(p), make, convert)
    return layers.MaxPooling2D(1, strides=stride, name=name)(y) if apart else y


def _inner_product(network: Network, layer, x):
    p, name = layer.inner_product_param, keras_name(layer.name)
    if p.axis != 1 or not p.num_output:
        network.refuse(layer, f"{p.num_output} outputs along axis {p.axis}")
    picture = x.shape[1:] if _is_picture(x) else None
    if len(x.shape) > 2:
        x = layers.Flatten(name=f"{name}.flat")(x)
    inputs, outputs = x.shape[-1], p.num_output

    def make(kernel_initializer, bias_initializer=None):
        return layers.Dense(
            outputs, use_bias=p.bias_term, kernel_initializer=kernel_initializer, bias_initializer=bias_initializer, name=name
        )  # fmt: skip

    def convert(weights, *bias):
        rows = weights if p.transpose else weights.T
        if picture:  # from channels, height, width to height, width, channels
            height, width, channels = picture
            rows = rows.reshape(channels, height, width, outputs).transpose(1, 2, 0, 3).reshape(inputs, outputs)
        return [rows, *bias]

    shapes = [(inputs, outputs) if p.transpose else (outputs, inputs), (outputs,)][: 1 + p.bias_term]
    return network.with_weights(layer, x, shapes, _fillers(p), make, convert)


def _scale(network: Network, layer, x, *factor):
    p, name = layer.scale_param, keras_name(layer.name)
    if factor:
        by = factor[0]
        if p.bias_term or (by.shape != x.shape and not (len(by.shape) == 2 and p.axis == 0 and _is_picture(x))):
            network.refuse(
                layer,
                "a bias beside a second input, or a second input that has neither one number a channel nor the same shape",
            )
        if len(by.shape) == 2 and _is_picture(x):
            by = layers.Reshape((1, 1, by.shape[1]), name=f"{name}.factor")(by)
        return layers.Multiply(name=name)([x, by])
    if p.axis != 1 or p.num_axes != 1:
        network.refuse(layer, f"axis {p.axis} with {p.num_axes} axes")
    channels, flat = x.shape[-1 if _is_picture(x) else 1], len(x.shape) == 2
    if flat:
        x = layers.Reshape((1, 1, channels), name=f"{name}.picture")(x)

    def make(depthwise_initializer, bias_initializer=None):
        return layers.DepthwiseConv2D(
            1, use_bias=p.bias_term, depthwise_initializer=depthwise_initializer, bias_initializer=bias_initializer,
            name=name + ".factor" * flat,
        )  # fmt: skip

    fillers = [p.filler if p.HasField("filler") else 1.0, p.bias_filler][: 1 + p.bias_term]
    y = network.with_weights(
        layer, x, [(channels,)] * (1 + p.bias_term), fillers, make,
        lambda gamma, *beta: [gamma.reshape(1, 1, channels, 1), *beta],
    )  # fmt: skip
    return layers.Reshape((channels,), name=name)(y) if flat else y


def _batch_norm(network: Network, layer, x):
    p, channels = layer.batch_norm_param, x.shape[-1 if _is_picture(x) else 1]

    def convert(mean, variance, factor):
        by = 0.0 if factor[0] == 0 else 1 / factor[0]
        return [mean * by, variance * by]

    def make(*_initializers):
        return layers.BatchNormalization(
            axis=-1 if _is_picture(x) else 1, momentum=p.moving_average_fraction, epsilon=p.eps, center=False, scale=False,
            trainable=not p.use_global_stats, name=keras_name(layer.name),
        )  # fmt: skip

    return network.with_weights(layer, x, [(channels,), (channels,), (1,)], [0.0] * 3, make, convert)


def _prelu(network: Network, layer, x):
    p = layer.prelu_param
    count = 1 if p.channel_shared else x.shape[-1 if _is_picture(x) else 1]
    shared = list(range(1, len(x.shape) - (not p.channel_shared)))

    def make(alpha_initializer):
        return layers.PReLU(
            alpha_initializer=alpha_initializer, shared_axes=shared or None, name=keras_name(layer.name)
        )

    def convert(alpha):
        return [alpha.reshape([1] * (len(x.shape) - 2) + [count])]

    filler = p.filler if p.HasField("filler") else 0.25
    return network.with_weights(layer, x, [(count,)], [filler], make, convert)


# ---- layers without weights


def _pooling(network: Network, layer, x):
    p, name = layer.pooling_param, keras_name(layer.name)
    if not _is_picture(x) or p.pool == 2:
        network.refuse(layer, "an input that is no picture, or stochastic pooling")
    sides, maximum = x.shape[1:3], p.pool == 0
    kernel = sides if p.global_pooling else files.size(p, "kernel_size", "kernel")
    stride, pad = files.size(p, "stride", "stride") or (1, 1), files.size(p, "pad", "pad") or (0, 0)
    if p.global_pooling:
        stride, pad = (1, 1), (0, 0)
    if not kernel or 0 in (*kernel, *stride):
        network.refuse(layer, f"kernel {kernel} with stride {stride}")
    rounded = math.ceil if p.round_mode == 0 else math.floor
    windows = [_windows(*axis, rounded, any(pad)) for axis in zip(sides, kernel, stride, pad, strict=True)]
    if min(windows) < 1:
        network.refuse(layer, f"kernel {kernel} on {sides[0]}x{sides[1]} pixels")
    kind = layers.MaxPooling2D if maximum else layers.AveragePooling2D
    options = {"pool_size": kernel, "strides": stride, "name": name}
    ends = [
        (out - 1) * s + k - i - q for out, s, k, i, q in zip(windows, stride, kernel, sides, pad, strict=True)
    ]  # how far the last window goes past the picture
    if not any(pad) and max(ends) <= 0:
        return kind(**options)(x)
    if all(map(_pads_like_same, windows, sides, kernel, stride, pad, ends)) and (maximum or not any(pad)):
        return kind(**options, padding="same")(x)
    around = [(q, max(end, 0)) for q, end in zip(pad, ends, strict=True)]
    if maximum:
        x = ops.pad(x, [(0, 0), *around, (0, 0)], constant_values=LOWEST if x.dtype == "float32" else -6e4)
        return kind(**options)(x)
    x = layers.ZeroPadding2D(around, name=f"{name}.pad")(x)
    full = [np.minimum(np.arange(out) * s + k, i + 2 * q) - np.arange(out) * s
            for out, s, k, i, q in zip(windows, stride, kernel, sides, pad, strict=True)]  # fmt: skip
    divisors = np.outer(*full)  # of each window: clipped to the picture and its padding
    if (divisors == math.prod(kernel)).all():
        return kind(**options)(x)
    y = kind(**options | {"name": f"{name}.mean"})(x)
    return layers.Rescaling((math.prod(kernel) / np.maximum(divisors, 1))[..., np.newaxis].tolist(), name=name)(y)


def _windows(side: int, kernel: int, stride: int, pad: int, rounded: Callable, padded: bool) -> int:
    """Return how many windows there are along an axis."""
    out = rounded((side + 2 * pad - kernel) / stride) + 1
    return out - 1 if padded and (out - 1) * stride >= side + pad else out


def _pads_like_same(out: int, side: int, kernel: int, stride: int, pad: int, end: int) -> bool:
    total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
    return out == math.ceil(side / stride) and (pad, max(end, 0)) == (total // 2, total - total // 2)


def _lrn(network: Network, layer, x):
    p, name, n = layer.lrn_param, keras_name(layer.name), layer.lrn_param.local_size
    if n % 2 == 0 or not _is_picture(x):
        network.refuse(layer, f"local_size {n} (an odd number is needed)")
    with in_float32():
        x = x if x.dtype == "float32" else layers.Activation("linear", name=f"{name}.float32")(x)
        squares = ops.square(x)
        if p.norm_region == 0:  # across channels: their sum is a convolution with a band of ones
            channels = x.shape[-1]
            band = (abs(np.subtract.outer(range(channels), range(channels))) <= n // 2).astype(np.float32)
            convolution = layers.Conv2D(channels, 1, use_bias=False, trainable=False, name=f"{name}.band")
            summed = convolution(squares)
            convolution.set_weights([band.reshape(1, 1, channels, channels)])
            inner = layers.Rescaling(p.alpha / n, p.k, name=f"{name}.inner")(summed)
        else:  # Caffe does not use k here
            padded = layers.ZeroPadding2D(n // 2, name=f"{name}.pad")(squares)
            mean = layers.AveragePooling2D(n, 1, name=f"{name}.mean")(padded)
            inner = layers.Rescaling(p.alpha, 1.0, name=f"{name}.inner")(mean)
        return layers.Multiply(name=name)([x, ops.power(inner, -p.beta)])


def _relu(network: Network, layer, x):
    return layers.ReLU(negative_slope=layer.relu_param.negative_slope, name=keras_name(layer.name))(x)


def _activation(function: str):
    return lambda network, layer, x: layers.Activation(function, name=keras_name(layer.name))(x)


def _exp(network: Network, layer, x):
    p = layer.exp_param
    if p.base != -1 and p.base <= 0:
        network.refuse(layer, f"base {p.base:g}")
    by = 1.0 if p.base == -1 else math.log(p.base)
    inner = layers.Rescaling(p.scale * by, p.shift * by, name=f"{keras_name(layer.name)}.inner")(x)
    return layers.Activation("exponential", name=keras_name(layer.name))(inner)


def _power(network: Network, layer, x):
    p, name = layer.power_param, keras_name(layer.name)
    if p.power == 1:
        return layers.Rescaling(p.scale, p.shift, name=name)(x)
    inner = layers.Rescaling(p.scale, p.shift, name=f"{name}.inner")(x)
    return ops.square(inner) if p.power == 2 else ops.power(inner, p.power)


def _eltwise(network: Network, layer, *inputs):
    p, name = layer.eltwise_param, keras_name(layer.name)
    if len(inputs) < 2 or len({tuple(x.shape) for x in inputs}) > 1 or (p.coeff and len(p.coeff) != len(inputs)):
        network.refuse(
            layer, f"inputs of the shapes {[tuple(x.shape[1:]) for x in inputs]} with {len(p.coeff)} coefficients"
        )
    if p.operation == 1:
        inputs = [
            x if c == 1 else layers.Rescaling(c, name=f"{name}.{number}")(x)
            for number, (x, c) in enumerate(zip(inputs, p.coeff or [1] * len(inputs), strict=True))
        ]
    return (layers.Multiply, layers.Add, layers.Maximum)[p.operation](name=name)(inputs)


def _axis(network: Network, layer, x, axis: int) -> int:
    """Return our number of an axis of Caffe, which is not the batch."""
    axis += len(x.shape) if axis < 0 else 0
    if not 1 <= axis < len(x.shape):
        network.refuse(layer, f"axis {axis}")
    return AXES[axis] if _is_picture(x) else axis


def _concat(network: Network, layer, *inputs):
    p = layer.concat_param
    axis = _axis(network, layer, inputs[0], p.concat_dim if p.HasField("concat_dim") else p.axis)
    return inputs[0] if len(inputs) == 1 else layers.Concatenate(axis=axis, name=keras_name(layer.name))(inputs)


def _slice(network: Network, layer, x):
    p = layer.slice_param
    axis = _axis(network, layer, x, p.slice_dim if p.HasField("slice_dim") else p.axis)
    parts, size = len(layer.top), x.shape[axis]
    points = list(p.slice_point) or [size * k // parts for k in range(1, parts)]
    if (
        len(points) != parts - 1
        or (not p.slice_point and size % parts)
        or sorted({0, *points, size}) != [0, *points, size]
    ):
        network.refuse(layer, f"{size} values cut at {points} into {parts} outputs")
    return list(ops.split(x, points, axis=axis)) if points else [x]


def _flatten(network: Network, layer, x):
    p = layer.flatten_param
    if p.axis != 1 or p.end_axis not in (-1, len(x.shape) - 1):
        network.refuse(layer, f"axis {p.axis} to {p.end_axis}")
    return layers.Flatten(name=keras_name(layer.name))(_in_caffes_order(layer, x))


def _in_caffes_order(layer, x):
    return x if _is_flat(x) else layers.Permute((3, 1, 2), name=f"{keras_name(layer.name)}.caffe")(x)


def _reshape(network: Network, layer, x):
    p, name = layer.reshape_param, keras_name(layer.name)
    before = [None, x.shape[3], *x.shape[1:3]] if _is_picture(x) else list(x.shape)
    start = p.axis + (len(before) + 1 if p.axis < 0 else 0)
    end = len(before) if p.num_axes == -1 else start + p.num_axes
    dims = [before[start + k] if dim == 0 else dim for k, dim in enumerate(p.shape.dim)]
    after = before[:start] + dims + before[end:]
    count = math.prod(before[1:])
    if -1 in after[1:]:
        known = math.prod(side for side in after[1:] if side != -1)
        after = [count // known if side == -1 else side for side in after]
    if start > len(before) or (start == 0 and after[:1] not in ([None], [-1])) or math.prod(after[1:]) != count:
        network.refuse(
            layer, f"the shape {list(p.shape.dim)} for an input of {before[1:]}, or one that changes the batch"
        )
    picture = len(after) == 4
    flat = picture and (after[2] == after[3] == 1 or after[1] == 1)
    x = _in_caffes_order(layer, x)
    if not picture or flat:
        return layers.Reshape(tuple(after[2:] + after[1:2] if picture else after[1:]), name=name)(x)
    y = layers.Reshape(tuple(after[1:]), name=f"{name}.caffe_shape")(x)
    return layers.Permute((2, 3, 1), name=name)(y)


def _softmax(network: Network, layer, x):
    axis = _axis(network, layer, x, layer.softmax_param.axis)
    return layers.Softmax(axis=axis, name=keras_name(layer.name))(x)


TABLE: dict[str, Callable] = {
    "AbsVal": lambda network, layer, x: ops.absolute(x),
    "BNLL": _activation("softplus"),
    "BatchNorm": _batch_norm,
    "Concat": _concat,
    "Convolution": _convolution,
    "Dropout": lambda network, layer, x: layers.Dropout(layer.dropout_param.dropout_ratio, name=keras_name(layer.name))(
        x
    ),
    "ELU": lambda network, layer, x: layers.ELU(layer.elu_param.alpha, name=keras_name(layer.name))(x),
    "Eltwise": _eltwise,
    "Exp": _exp,
    "Flatten": _flatten,
    "InnerProduct": _inner_product,
    "LRN": _lrn,
    "PReLU": _prelu,
    "Pooling": _pooling,
    "Power": _power,
    "ReLU": _relu,
    "Reshape": _reshape,
    "Scale": _scale,
    "Sigmoid": _activation("sigmoid"),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": lambda network, layer, x: x,
    "TanH": _activation("tanh"),
}
