"""Caffe's rules in NumPy, float64, N,C,H,W. Written from what Caffe computes, without looking at tfpar's code.

A layer is a plain dict: name, type, bottom, top, and `p`, the fields of its parameter message. A field that is repeated
is a list. `forward` runs a network; `draw` invents the weights that a layer needs, so that activations stay of order 1.
"""

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

LOWEST = float(np.finfo(np.float32).min)


def many(p, name):
    """Return a field as a list: empty, one value, or several."""
    value = p.get(name, [])
    return value if isinstance(value, list) else [value]


def one(p, name, default=None):
    return many(p, name)[-1] if many(p, name) else default


def pair(p, name, short, default):
    """Return height and width of `kernel_size` (once or twice), or of `kernel_h` and `kernel_w`."""
    if f"{short}_h" in p or f"{short}_w" in p:
        return one(p, f"{short}_h", default), one(p, f"{short}_w", default)
    values = many(p, name) or [default]
    return values[0], values[-1]


def per_channel(values, x, axis=1):
    """Reshape values to multiply x from `axis` on."""
    return values.reshape(values.shape + (1,) * (x.ndim - axis - values.ndim))


def convolution(p, blobs, x):
    (kh, kw), (sh, sw) = pair(p, "kernel_size", "kernel", None), pair(p, "stride", "stride", 1)
    (ph, pw), (dh, dw) = pair(p, "pad", "pad", 0), pair(p, "dilation", "dilation", 1)
    padded, group = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw))), one(p, "group", 1)
    windows = sliding_window_view(padded, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), (2, 3))
    windows = windows[:, :, ::sh, ::sw, ::dh, ::dw]
    parts = zip(np.split(windows, group, 1), np.split(blobs[0], group), strict=True)
    y = np.concatenate([np.tensordot(part, kernel, ([1, 4, 5], [1, 2, 3])) for part, kernel in parts], -1)
    return np.moveaxis(y + (blobs[1] if one(p, "bias_term", True) else 0), -1, 1)


def windows_of(size, kernel, stride, pad, any_pad, floor):
    """Yield begin and end of each window on one axis, in the padded image; an end never lies past the padding."""
    steps = (size + 2 * pad - kernel) / stride
    count = (math.floor(steps) if floor else math.ceil(steps)) + 1
    if any_pad and (count - 1) * stride >= size + pad:
        count -= 1
    for i in range(count):
        yield i * stride - pad, min(i * stride - pad + kernel, size + pad)


def pooling(p, _, x):
    sizes = x.shape[2:]
    kernel = sizes if one(p, "global_pooling", False) else pair(p, "kernel_size", "kernel", None)
    stride, pad = pair(p, "stride", "stride", 1), pair(p, "pad", "pad", 0)
    floor = one(p, "round_mode", "CEIL") == "FLOOR" or not one(p, "ceil_mode", True)
    rows, columns = (list(windows_of(*a, any(pad), floor)) for a in zip(sizes, kernel, stride, pad, strict=True))
    y = np.zeros((*x.shape[:2], len(rows), len(columns)))
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            window = x[:, :, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
            if one(p, "pool", "MAX") == "MAX":
                y[:, :, i, j] = window.max((2, 3), initial=LOWEST)
            else:
                y[:, :, i, j] = window.sum((2, 3)) / ((bottom - top) * (right - left))
    return y


def inner_product(p, blobs, x):
    weight = blobs[0] if one(p, "transpose", False) else blobs[0].T
    return x.reshape(len(x), -1) @ weight + (blobs[1] if one(p, "bias_term", True) else 0)


def flatten(p, _, x):
    first, last = one(p, "axis", 1) % x.ndim, one(p, "end_axis", -1) % x.ndim
    return x.reshape(*x.shape[:first], -1, *x.shape[last + 1 :])


def reshape(p, _, x):
    first, count = one(p, "axis", 0), one(p, "num_axes", -1)
    first = first if first >= 0 else x.ndim + 1 + first
    last = x.ndim if count == -1 else first + count
    dims = [x.shape[first + i] if dim == 0 else dim for i, dim in enumerate(many(one(p, "shape", {}), "dim"))]
    return x.reshape(*x.shape[:first], *dims, *x.shape[last:])


def prelu(p, blobs, x):
    slope = blobs[0].reshape(()) if one(p, "channel_shared", False) else per_channel(blobs[0], x)
    return np.maximum(x, 0) + slope * np.minimum(x, 0)


def exp(p, _, x):
    base = one(p, "base", -1)
    return (math.e if base == -1 else base) ** (one(p, "shift", 0) + one(p, "scale", 1) * x)


def lrn(p, _, x):
    size, alpha, beta = one(p, "local_size", 5), one(p, "alpha", 1.0), one(p, "beta", 0.75)
    half = size // 2
    if one(p, "norm_region", "ACROSS_CHANNELS") == "ACROSS_CHANNELS":
        squares = np.pad(x**2, ((0, 0), (half, half), (0, 0), (0, 0)))
        sums = sum(squares[:, i : i + x.shape[1]] for i in range(size))
        return x * (one(p, "k", 1.0) + alpha / size * sums) ** -beta
    squares = np.pad(x**2, ((0, 0), (0, 0), (half, half), (half, half)))
    return x * (1 + alpha * sliding_window_view(squares, (size, size), (2, 3)).mean((4, 5))) ** -beta


def batch_norm(p, blobs, x):
    factor = blobs[2].reshape(())
    mean, variance = (blob / factor if factor else blob * 0 for blob in blobs[:2])
    return (x - per_channel(mean, x)) / np.sqrt(per_channel(variance, x) + one(p, "eps", 1e-5))


def scale(p, blobs, x, factor=None):
    axis = one(p, "axis", 1) % x.ndim
    own = factor is None
    y = x * per_channel(blobs[0] if own else factor, x, axis)
    return y + per_channel(blobs[own], x, axis) if one(p, "bias_term", False) else y


def eltwise(p, _, *x):
    operation = one(p, "operation", "SUM")
    if operation == "SUM":
        return sum(c * each for c, each in zip(many(p, "coeff") or [1] * len(x), x, strict=True))
    return (np.multiply if operation == "PROD" else np.maximum).reduce(x)


def concat(p, _, *x):
    return np.concatenate(x, one(p, "axis", one(p, "concat_dim", 1)))


def slices(p, count, x):
    axis = one(p, "axis", one(p, "slice_dim", 1))
    return np.split(x, many(p, "slice_point") or count, axis)


def softmax(p, _, x):
    powers = np.exp(x - x.max(one(p, "axis", 1), keepdims=True))
    return powers / powers.sum(one(p, "axis", 1), keepdims=True)


def depthwise(p, blobs, x):
    return convolution(p | {"group": x.shape[1]}, blobs, x)


RULES = {
    "Convolution": convolution,
    "DepthwiseConvolution": convolution,
    "ConvolutionDepthwise": depthwise,
    "Pooling": pooling,
    "InnerProduct": inner_product,
    "Flatten": flatten,
    "Reshape": reshape,
    "ReLU": lambda p, _, x: np.maximum(x, 0) + one(p, "negative_slope", 0) * np.minimum(x, 0),
    "PReLU": prelu,
    "ELU": lambda p, _, x: np.where(x > 0, x, one(p, "alpha", 1) * np.expm1(np.minimum(x, 0))),
    "Sigmoid": lambda p, _, x: 1 / (1 + np.exp(-x)),
    "TanH": lambda p, _, x: np.tanh(x),
    "Swish": lambda p, _, x: x / (1 + np.exp(-one(p, "beta", 1) * x)),
    "ReLU6": lambda p, _, x: np.clip(x, 0, 6),
    "Axpy": lambda p, _, factor, x, y: factor.reshape(*x.shape[:2], 1, 1) * x + y,
    "Clip": lambda p, _, x: np.clip(x, one(p, "min"), one(p, "max")),
    "BNLL": lambda p, _, x: np.logaddexp(0, x),
    "AbsVal": lambda p, _, x: np.abs(x),
    "Exp": exp,
    "Power": lambda p, _, x: (one(p, "shift", 0) + one(p, "scale", 1) * x) ** one(p, "power", 1),
    "LRN": lrn,
    "BatchNorm": batch_norm,
    "Scale": scale,
    "Eltwise": eltwise,
    "Concat": concat,
    "Dropout": lambda p, _, x: x,
    "Softmax": softmax,
}


def meets(rule, state):
    stages = many(state, "stage")
    return (
        one(rule, "phase", state["phase"]) == state["phase"]
        and one(rule, "min_level", -math.inf) <= one(state, "level", 0) <= one(rule, "max_level", math.inf)
        and all(stage in stages for stage in many(rule, "stage"))
        and not any(stage in stages for stage in many(rule, "not_stage"))
    )


def stays(layer, state):
    """Tell whether a layer belongs to the network in this state."""
    if layer.get("include"):
        return any(meets(rule, state) for rule in layer["include"])
    return not any(meets(rule, state) for rule in layer.get("exclude", []))


def forward(layers, blobs, x, draw=None, state=None):
    """Return the last top of the network, and of each name its last value. `draw` fills in missing weights."""
    values, shared = {}, {}
    for layer in layers:
        if not stays(layer, {"phase": "TEST", **(state or {})}):
            continue
        kind, name, tops = layer["type"], layer["name"], layer["top"]
        bottoms = [values[bottom] for bottom in layer["bottom"]]
        if draw and name not in blobs and (drawn := draw(layer, bottoms)):
            blobs[name] = drawn
        for i, param in enumerate(layer.get("param", [])):
            if "name" in param:
                blobs[name][i] = shared.setdefault(param["name"], blobs[name][i])
        if kind == "Input":
            results = [x.astype(np.float64)]
        elif kind == "Split":
            results = bottoms * len(tops)
        elif kind == "Slice":
            results = slices(layer["p"], len(tops), bottoms[0])
        else:
            own = [np.asarray(blob, np.float64) for blob in blobs.get(name, [])]
            results = [RULES[kind](layer["p"], own, *bottoms)]
        values.update(zip(tops, results, strict=True))
        last = tops[-1]
    return values[last], values


def drawer(seed, factor=2.5, scale_bias=0.0):
    """Return a function that draws a layer's weights: float32, of He's size; BatchNorm's fit what it reads, about."""
    rng = np.random.default_rng(seed)

    def normal(shape, deviation):
        return (deviation * rng.standard_normal(shape, np.float32)).astype(np.float32)

    def draw(layer, bottoms):
        p, x = layer["p"], bottoms[0] if bottoms else None
        bias = [normal(one(p, "num_output"), 0.3)] if one(p, "bias_term", True) and "num_output" in p else []
        if "Convolution" in layer["type"]:
            groups = x.shape[1] if layer["type"] == "ConvolutionDepthwise" else one(p, "group", 1)
            shape = (one(p, "num_output"), x.shape[1] // groups, *pair(p, "kernel_size", "kernel", None))
            return [normal(shape, np.sqrt(2 / np.prod(shape[1:]))), *bias]
        if layer["type"] == "InnerProduct":
            shape = (one(p, "num_output"), x[0].size)
            shape = shape[::-1] if one(p, "transpose", False) else shape
            return [normal(shape, np.sqrt(2 / x[0].size)), *bias]
        if layer["type"] == "BatchNorm":
            axes = tuple(axis for axis in range(x.ndim) if axis != 1)
            mean, variance = x.mean(axes) + rng.uniform(-0.3, 0.3), x.var(axes) * rng.uniform(0.7, 1.4) + 0.1
            return [np.float32(factor * mean), np.float32(factor * variance), np.full(1, factor, np.float32)]
        if layer["type"] == "Scale" and len(bottoms) == 1:
            own = [np.float32(rng.uniform(0.5, 1.5, x.shape[one(p, "axis", 1)]))]
            return own + [np.float32(scale_bias) + normal(own[0].shape, 0.3)] * one(p, "bias_term", False)
        if layer["type"] == "PReLU":
            return [np.float32(rng.uniform(-0.2, 0.5, () if one(p, "channel_shared", False) else x.shape[1]))]
        return []

    return draw
