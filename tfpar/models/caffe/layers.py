"""Caffe's layers as Keras layers that compute the same: a function for each type, and the table of them.

The rules come from BVLC/caffe@9b89154, src/caffe/layers. A blob of Caffe `[batch, channels, height, width]` is a tensor
`[batch, height, width, channels]` here; other blobs keep their axes.
"""

import contextlib
import math
from collections.abc import Callable

import keras
import numpy as np
from keras import layers, ops

from tfpar.models.caffe.files import refuse

AXES = {1: 3, 2: 1, 3: 2}  # of a picture: Caffe's and ours
LOWEST = -3.4028235e38  # of float32; minus infinity is no JSON
MAX, STOCHASTIC, CEIL, PROD, SUM, ACROSS_CHANNELS = 0, 2, 0, 0, 1, 0  # Caffe's numbers


@contextlib.contextmanager
def in_float32():
    """Build layers that compute in float32, whatever the precision of the others."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _fillers(p, name: str = "weight_filler", otherwise: float | None = None) -> list:
    """Return the fillers of weights and bias; `otherwise` where the file states none for the weights."""
    own = getattr(p, name) if p.HasField(name) else otherwise
    return [own, p.bias_filler] if p.bias_term else [own]


def _is_picture(x) -> bool:
    return len(x.shape) == 4


def _place(x, axis: int) -> int:
    """Return an axis of Caffe, which may count from behind; the batch is none."""
    place = axis + len(x.shape) if axis < 0 else axis
    refuse(not 1 <= place < len(x.shape), f"axis {axis} of {len(x.shape)}")
    return place


def _axis(x, axis: int) -> int:
    """Return our number of an axis of Caffe."""
    place = _place(x, axis)
    return AXES[place] if _is_picture(x) else place


def _size(p, name: str, short: str = "", default=(1, 1)) -> tuple[int, int] | None:
    """Return height and width of a size, written `kernel_size` once or twice, or `kernel_h` and `kernel_w`."""
    given, sides = getattr(p, name), [f"{short or name}_{side}" for side in "hw"]
    values = [given] * p.HasField(name) if isinstance(given, int) else [*given]
    if sides[0] in p.DESCRIPTOR.fields_by_name and any(map(p.HasField, sides)):
        values += [getattr(p, side) for side in sides]
    refuse(len(values) > 2 or max(values, default=0) >= 2**31, f"{name} {values}")
    return (values[0], values[-1]) if values else default


# ---- layers with weights


def _convolution(weigh, p, name, x):
    refuse(not _is_picture(x) or _place(x, p.axis) != 1, f"axis {p.axis} of {len(x.shape)}")
    kernel, stride, pad = _size(p, "kernel_size", "kernel", None), _size(p, "stride"), _size(p, "pad", default=(0, 0))
    dilation = _size(p, "dilation")
    channels, filters, groups = x.shape[-1], p.num_output, p.group
    empty = not kernel or 0 in (*kernel, *stride, *dilation, filters, groups)
    stated = f"{filters} outputs of kernel {kernel}, stride {stride}, {groups} groups for {channels} channels"
    refuse(empty or channels % groups or filters % groups, stated)
    if any(pad):
        x = layers.ZeroPadding2D(((pad[0],) * 2, (pad[1],) * 2), name=f"{name}.pad")(x)
    apart = stride != (1, 1) and dilation != (1, 1)  # Keras refuses both at once
    options = {"strides": (1, 1) if apart else stride, "dilation_rate": dilation, "use_bias": p.bias_term}
    options["name"] = f"{name}.dense" if apart else name
    depthwise = groups == channels > 1 and len({*options["strides"]}) == 1
    if depthwise:
        made = layers.DepthwiseConv2D(kernel, depth_multiplier=filters // groups, **options)
    else:
        made = layers.Conv2D(filters, kernel, groups=groups, **options)

    def convert(weights, *bias):
        weights = weights.reshape(channels, -1, *kernel) if depthwise else weights.transpose(1, 0, 2, 3)
        return [weights.transpose(2, 3, 0, 1), *bias]

    y = weigh(made, x, [(filters, channels // groups, *kernel), (filters,)], _fillers(p), convert)
    return layers.MaxPooling2D(1, strides=stride, name=name)(y) if apart else y


def _depthwise(weigh, p, name, x):
    p.group = x.shape[-1]
    return _convolution(weigh, p, name, x)


def _inner_product(weigh, p, name, x):
    refuse(_place(x, p.axis) != 1 or not p.num_output, f"{p.num_output} outputs along axis {p.axis}")
    sides, outputs = x.shape[1:], p.num_output
    inputs = math.prod(sides)

    def convert(weights, *bias):
        rows = weights if p.transpose else weights.T
        if len(sides) == 3:  # channels, height, width -> height, width, channels
            rows = rows.reshape(sides[2], *sides[:2], outputs).transpose(1, 2, 0, 3).reshape(inputs, outputs)
        return [rows, *bias]

    x = layers.Flatten(name=f"{name}.flat")(x) if len(sides) > 1 else x
    shapes = [(inputs, outputs) if p.transpose else (outputs, inputs), (outputs,)]
    made = layers.Dense(outputs, use_bias=p.bias_term, name=name)
    made.rows = f"{sides}, {p.transpose}"  # their order, of which no other layer can share it
    return weigh(made, x, shapes, _fillers(p), convert)


def _scale(weigh, p, name, x, by=None):
    if by is not None:
        of_channels = len(by.shape) == 2 and p.axis == 0 and _is_picture(x)
        fits = of_channels or by.shape == x.shape
        refuse(not fits or p.bias_term, "a second input of other than one number a channel, or a bias")
        return layers.Multiply(name=name)([x, _of_channels(name, by) if of_channels else by])
    channels, flat = x.shape[_axis(x, 1)], len(x.shape) == 2
    channels_alone = _place(x, p.axis) == 1 and p.num_axes == 1 and (flat or _is_picture(x))
    refuse(not channels_alone, f"{p.num_axes} axes from axis {p.axis} of {len(x.shape)}")
    x = layers.Reshape((1, 1, channels), name=f"{name}.picture")(x) if flat else x
    made = layers.DepthwiseConv2D(1, use_bias=p.bias_term, name=f"{name}.factor" if flat else name)

    def convert(by, *bias):
        return [by.reshape(1, 1, channels, 1), *bias]

    y = weigh(made, x, [(channels,)] * 2, _fillers(p, "filler", 1.0), convert)
    return layers.Reshape((channels,), name=name)(y) if flat else y


def _of_channels(name, x):
    """Return one number for each channel as a picture of one pixel."""
    return layers.Reshape((1, 1, x.shape[-1]), name=f"{name}.factor")(x)


def _axpy(_, name, by, x, y):
    refuse(not _is_picture(x) or by.shape[-1] != x.shape[-1], f"inputs of {by.shape[1:]} and {x.shape[1:]}")
    return layers.Add(name=name)([layers.Multiply(name=f"{name}.product")([x, _of_channels(name, by)]), y])


def _batch_norm(weigh, p, name, x):
    made = layers.BatchNormalization(
        axis=-1 if _is_picture(x) else 1, momentum=p.moving_average_fraction, epsilon=p.eps, center=False, scale=False,
        trainable=not p.use_global_stats, name=name,
    )  # fmt: skip
    made.is_constant = p.use_global_stats

    def convert(mean, variance, factor):  # Caffe keeps sums, and what to divide them by
        return [blob / factor if factor[0] else np.zeros_like(blob) for blob in (mean, variance)]

    channels = (x.shape[_axis(x, 1)],)
    return weigh(made, x, [channels, channels, (1,)], [0.0, 1.0, 1.0], convert)


def _prelu(weigh, p, name, x):
    sides = [1 if p.channel_shared or axis != _axis(x, 1) else x.shape[axis] for axis in range(1, len(x.shape))]
    made = layers.PReLU(shared_axes=[axis for axis, side in enumerate(sides, 1) if side == 1] or None, name=name)
    filler = p.filler if p.HasField("filler") else 0.25
    return weigh(made, x, [(math.prod(sides),)], [filler], lambda alpha: [alpha.reshape(sides)])


# ---- layers without weights


def _pooling(p, name, x):
    refuse(not _is_picture(x) or p.pool == STOCHASTIC, "stochastic pooling, or no height and width")
    sides = x.shape[1:3]
    kernel, stride, pad = _size(p, "kernel_size", "kernel", None), _size(p, "stride"), _size(p, "pad", default=(0, 0))
    beside = p.global_pooling and (kernel or stride != (1, 1) or pad != (0, 0))
    refuse(beside, "a kernel, stride or pad beside global_pooling; leave it out")
    kernel = sides if p.global_pooling else kernel
    refuse(not kernel or 0 in (*kernel, *stride), f"kernel {kernel} with stride {stride}")
    axes, ceil = zip(sides, kernel, stride, pad, strict=True), p.round_mode == CEIL and p.ceil_mode
    sizes, around = zip(*(_windows(*axis, ceil=ceil, padded=any(pad)) for axis in axes), strict=True)
    kind = layers.MaxPooling2D if p.pool == MAX else layers.AveragePooling2D
    divisors = np.outer(*sizes)
    clipped = p.pool != MAX and (divisors != math.prod(kernel)).any()
    if np.any(around) and p.pool == MAX:
        x = ops.pad(x, [(0, 0), *around, (0, 0)], constant_values=LOWEST if x.dtype == "float32" else -6e4)
    elif np.any(around):
        x = layers.ZeroPadding2D(around, name=f"{name}.pad")(x)
    y = kind(kernel, strides=stride, name=f"{name}.mean" if clipped else name)(x)
    # Caffe divides by the part of a window that lies in the picture or its padding.
    factors = (math.prod(kernel) / np.maximum(divisors, 1))[..., np.newaxis]
    return layers.Rescaling(factors.tolist(), name=name)(y) if clipped else y


def _windows(side: int, kernel: int, stride: int, pad: int, *, ceil: bool, padded: bool):
    """Return the sizes of a pooling's windows within the padded picture along one axis, and the padding before and after it."""
    count = (math.ceil if ceil else math.floor)((side + 2 * pad - kernel) / stride) + 1
    count -= padded and (count - 1) * stride >= side + pad
    refuse(count < 1 or pad >= kernel, f"a kernel of {kernel} on {side} pixels with a pad of {pad}")
    starts = np.arange(count) * stride
    past_the_end = int(starts[-1]) + kernel - side - pad
    return np.minimum(starts + kernel, side + 2 * pad) - starts, (pad, max(past_the_end, 0))


@in_float32()
def _lrn(p, name, x):
    n = p.local_size
    refuse(n % 2 == 0 or not _is_picture(x), f"local_size {n}, which must be odd, of {len(x.shape)} axes")
    x = x if x.dtype == "float32" else layers.Activation("linear", name=f"{name}.float32")(x)
    if p.norm_region == ACROSS_CHANNELS:  # their sum is a convolution with a band of ones
        channels = np.arange(x.shape[-1])
        band = layers.Conv2D(len(channels), 1, use_bias=False, trainable=False, name=f"{name}.band")
        band.is_constant, total = True, band(ops.square(x))
        near = abs(channels - channels[:, np.newaxis]) <= n // 2
        band.set_weights([near[np.newaxis, np.newaxis].astype(np.float32)])
        inner = layers.Rescaling(p.alpha / n, p.k, name=f"{name}.inner")(total)
    else:  # without k
        padded = layers.ZeroPadding2D(n // 2, name=f"{name}.pad")(ops.square(x))
        mean = layers.AveragePooling2D(n, 1, name=f"{name}.mean")(padded)
        inner = layers.Rescaling(p.alpha, 1.0, name=f"{name}.inner")(mean)
    return layers.Multiply(name=name)([x, ops.power(inner, -p.beta)])


def _exp(p, name, x):
    refuse(p.base != -1 and p.base <= 0, f"base {p.base:g}")
    by = 1.0 if p.base == -1 else math.log(p.base)
    inner = layers.Rescaling(p.scale * by, p.shift * by, name=f"{name}.inner")(x)
    return layers.Activation("exponential", name=name)(inner)


def _swish(p, name, x):
    inner = layers.Rescaling(p.beta, name=f"{name}.inner")(x)
    return layers.Multiply(name=name)([x, layers.Activation("sigmoid", name=f"{name}.gate")(inner)])


def _power(p, name, x):
    inner = layers.Rescaling(p.scale, p.shift, name=name if p.power == 1 else f"{name}.inner")(x)
    return inner if p.power == 1 else ops.square(inner) if p.power == 2 else ops.power(inner, p.power)


def _eltwise(p, name, *inputs):
    alike = len({x.shape for x in inputs}) == 1
    stated = f"inputs {[x.shape[1:] for x in inputs]} with {len(p.coeff)} coefficients"
    refuse(not alike or len(p.coeff) not in (0, len(inputs)) or (p.coeff and p.operation == PROD), stated)
    by = p.coeff if p.coeff and p.operation == SUM else [1] * len(inputs)
    factors = enumerate(zip(inputs, by, strict=True))
    inputs = [x if c == 1 else layers.Rescaling(c, name=f"{name}.{k}")(x) for k, (x, c) in factors]
    return (layers.Multiply, layers.Add, layers.Maximum)[p.operation](name=name)(inputs)


def _concat(p, name, *inputs):
    axis = _axis(inputs[0], p.concat_dim if p.HasField("concat_dim") else p.axis)
    return layers.Concatenate(axis=axis, name=name)(inputs) if len(inputs) > 1 else inputs[0]


def _slice(parts: int, p, name, x):
    axis = _axis(x, p.slice_dim if p.HasField("slice_dim") else p.axis)
    sizes = np.diff([0, *p.slice_point, x.shape[axis]])
    stated = f"{x.shape[axis]} values cut at {[*p.slice_point]} into {parts}"
    refuse((len(sizes) != parts or min(sizes) < 1) if p.slice_point else x.shape[axis] % parts, stated)
    return [*ops.split(x, [*p.slice_point] or parts, axis=axis)]


def _flatten(p, name, x):
    shape, first, last = _shape(x), _place(x, p.axis), _place(x, p.end_axis)
    if (first, last) == (1, len(shape) - 1):
        return layers.Flatten(name=name)(_in_caffes_order(name, x))
    return _reshaped(name, x, [*shape[:first], -1, *shape[last + 1 :]])


def _reshape(p, name, x):
    before = _shape(x)
    first = p.axis + (len(before) + 1 if p.axis < 0 else 0)
    end = len(before) if p.num_axes == -1 else first + p.num_axes
    copied = [*before[first:], *[0] * len(p.shape.dim)]
    dims = [dim or there for dim, there in zip(p.shape.dim, copied, strict=False)]
    return _reshaped(name, x, [*before[:first], *dims, *before[end:]])


def _shape(x) -> list[int]:
    """Return a shape in Caffe's order, with -1 for the batch."""
    return [-1, x.shape[3], *x.shape[1:3]] if _is_picture(x) else [-1, *x.shape[1:]]


def _in_caffes_order(name, x):
    """Return a picture with its channels first, where that is another order."""
    same = not _is_picture(x) or x.shape[1] == x.shape[2] == 1 or x.shape[3] == 1
    return x if same else layers.Permute((3, 1, 2), name=f"{name}.channels_first")(x)


def _reshaped(name, x, shape: list[int]):
    """Return a tensor in another shape; both are in Caffe's order."""
    refuse(shape[:1] != [-1] or min(shape) < -1, f"the shape {shape}, which changes the batch")
    x = _in_caffes_order(name, x)
    if len(shape) != 4:
        return layers.Reshape(shape[1:], name=name)(x)
    return layers.Permute((2, 3, 1), name=name)(layers.Reshape(shape[1:], name=f"{name}.shape")(x))


def _activation(function: str) -> Callable:
    return lambda _, name, x: layers.Activation(function, name=name)(x)


# The function of each type, and the field of its parameters. Axpy, ConvolutionDepthwise (a group for each channel), DepthwiseConvolution
# (its groups as stated) and ReLU6 are of Caffe's forks.
TABLE: dict[str, tuple[Callable, str]] = {
    "AbsVal": (lambda _, name, x: ops.absolute(x), ""),
    "Axpy": (_axpy, ""),
    "BNLL": (_activation("softplus"), ""),
    "BatchNorm": (_batch_norm, "batch_norm_param"),
    "Clip": (lambda p, name, x: ops.clip(x, p.min, p.max), "clip_param"),
    "Concat": (_concat, "concat_param"),
    "Convolution": (_convolution, "convolution_param"),
    "ConvolutionDepthwise": (_depthwise, "convolution_param"),
    "DepthwiseConvolution": (_convolution, "convolution_param"),
    "Dropout": (lambda p, name, x: layers.Dropout(p.dropout_ratio, name=name)(x), "dropout_param"),
    "ELU": (lambda p, name, x: layers.ELU(p.alpha, name=name)(x), "elu_param"),
    "Eltwise": (_eltwise, "eltwise_param"),
    "Exp": (_exp, "exp_param"),
    "Flatten": (_flatten, "flatten_param"),
    "InnerProduct": (_inner_product, "inner_product_param"),
    "LRN": (_lrn, "lrn_param"),
    "PReLU": (_prelu, "prelu_param"),
    "Pooling": (_pooling, "pooling_param"),
    "Power": (_power, "power_param"),
    "ReLU": (lambda p, name, x: layers.ReLU(negative_slope=p.negative_slope, name=name)(x), "relu_param"),
    "ReLU6": (lambda _, name, x: layers.ReLU(6.0, name=name)(x), ""),
    "Reshape": (_reshape, "reshape_param"),
    "Scale": (_scale, "scale_param"),
    "Sigmoid": (_activation("sigmoid"), ""),
    "Slice": (_slice, "slice_param"),
    "Softmax": (lambda p, name, x: layers.Softmax(_axis(x, p.axis), name=name)(x), "softmax_param"),
    "Split": (lambda _, name, x: x, ""),
    "Swish": (_swish, "swish_param"),
    "TanH": (_activation("tanh"), ""),
}
INPUTS = {_concat: range(1, 10**6), _eltwise: range(2, 10**6), _axpy: (3,), _scale: (1, 2)}  # how many; of others 1
WITH_WEIGHTS = (_batch_norm, _convolution, _depthwise, _inner_product, _prelu, _scale)
