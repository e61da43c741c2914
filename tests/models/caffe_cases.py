"""Small networks with every layer and option, and where Caffe's rules differ from Keras' layers: for test_caffe_layers."""

import itertools

import numpy as np

INPUT = (3, 8, 7)  # channels, height, width


def layer(kind, bottom=None, top=None, name=None, param=None, include=None, exclude=None, **p):
    """Return a layer's description; `net` fills in what is left out."""
    extra = {"param": param, "include": include, "exclude": exclude}
    given = {"name": name, "type": kind, "bottom": bottom, "top": top, "p": p}
    return given | {key: value for key, value in extra.items() if value}


def net(*layers, shape=INPUT):
    """Return the layers one after the other, behind an Input layer: each reads the one before and is named by its kind."""
    given = [layer("Input", bottom=(), top="data", name="data", shape={"dim": [1, *shape]}), *layers]
    done, last = [], None
    for i, each in enumerate(given):
        name = each["name"] or f"{each['type'].lower()}{i}"
        bottom, top = (
            each[key] if each[key] is not None else other for key, other in (("bottom", last), ("top", name))
        )
        bottom, top = ([names] if isinstance(names, str) else list(names) for names in (bottom, top))
        done.append(each | {"name": name, "bottom": bottom, "top": top})
        last = top[0]
    return done


def conv(outputs=4, kernel=3, **more):
    return layer("Convolution", num_output=outputs, kernel_size=kernel, **more)


def pool(kind, kernel, stride=1, **more):
    return layer("Pooling", pool=kind, kernel_size=kernel, stride=stride, **more)


def dense(outputs=5, **more):
    return layer("InnerProduct", num_output=outputs, **more)


def sized(kernel, stride=(1, 1), pad=(0, 0), dilation=None):
    """Return the fields for different heights and widths."""
    pairs = {"kernel": kernel, "stride": stride, "pad": pad}
    return {f"{name}_{side}": pair[i] for name, pair in pairs.items() for i, side in enumerate("hw")} | (
        {"dilation": list(dilation)} if dilation else {}
    )


def relu(**more):
    return layer("ReLU", **more)


CASES = {
    # Convolution
    "convolution": net(conv()),
    "convolution without bias": net(conv(bias_term=False)),
    "convolution of one pixel": net(conv(kernel=1)),
    "convolution, stride 2": net(conv(stride=2)),
    "convolution, stride 2 and pad 1": net(conv(stride=2, pad=1)),
    "convolution, stride 3 and pad 2": net(conv(kernel=5, stride=3, pad=2)),
    "convolution, even kernel, pad 1": net(conv(kernel=2, stride=2, pad=1)),
    "convolution, even kernel, pad 2": net(conv(kernel=4, pad=2)),
    "convolution, pad as in same": net(conv(pad=1)),
    "convolution, pad larger than the kernel": net(conv(pad=4)),
    "convolution, stride larger than the kernel": net(conv(kernel=1, stride=3)),
    "convolution, h and w": net(layer("Convolution", num_output=4, **sized((3, 2), (2, 1), (0, 1)))),
    "convolution, 1x7": net(layer("Convolution", num_output=4, **sized((1, 7), pad=(0, 3)))),
    "convolution, sizes twice": net(conv(kernel=[2, 3], stride=[1, 2], pad=[1, 0])),
    "convolution, pad_w alone": net(conv(pad_w=2)),
    "convolution, dilation 2": net(conv(dilation=2)),
    "convolution, dilation 2 as in same": net(conv(dilation=2, pad=2)),
    "convolution, dilation twice": net(conv(dilation=[1, 3], pad=2)),
    "convolution, dilation 2 and stride 2": net(conv(dilation=2, stride=2, pad=3)),
    "convolution, dilation 2 and strides 1, 3": net(conv(dilation=2, stride=[1, 3], pad=1)),
    "convolution, dilation 3 of one pixel": net(conv(kernel=1, dilation=3, stride=2)),
    "convolution, 2 groups": net(conv(6, group=2), shape=(4, 8, 7)),
    "convolution, 3 groups, stride and pad": net(conv(6, group=3, stride=2, pad=1)),
    "convolution, 2 groups and dilation": net(conv(6, group=2, dilation=2, pad=2), shape=(4, 8, 7)),
    "convolution, 2 groups, dilation and stride": net(conv(6, group=2, dilation=2, stride=2), shape=(4, 8, 7)),
    "depthwise": net(conv(3, group=3, pad=1)),
    "depthwise, stride 2, without bias": net(conv(3, group=3, pad=1, stride=2, bias_term=False)),
    "depthwise, two outputs a channel": net(conv(6, group=3)),
    "depthwise, strides 1 and 2": net(conv(6, group=3, stride=[1, 2], pad=1)),
    "depthwise, dilation 2": net(conv(3, group=3, dilation=2)),
    "depthwise, dilation 2 and stride 2": net(conv(6, group=3, dilation=2, stride=2, pad=2)),
    "depthwise, of forks": net(
        layer("DepthwiseConvolution", num_output=3, group=3, kernel_size=3, pad=1),
        layer("ConvolutionDepthwise", num_output=3, kernel_size=3, stride=2),
    ),
    "convolution, one group of one channel": net(conv(4, group=1), shape=(1, 8, 7)),
    "two convolutions": net(conv(), relu(), conv(5, pad=1)),
    # Pooling: 4 parts of the rule, both kinds
    **{
        f"{kind} pooling, {name}": net(layer("Pooling", pool=kind, **p), shape=shape)
        for kind in ("MAX", "AVE")
        for name, shape, p in [
            ("stride left out", INPUT, {"kernel_size": 2}),
            ("valid", (2, 8, 6), {"kernel_size": 2, "stride": 2}),
            ("ceil", (2, 8, 7), {"kernel_size": 3, "stride": 2}),
            ("floor", (2, 8, 7), {"kernel_size": 3, "stride": 2, "round_mode": "FLOOR"}),
            ("ceil by two", (2, 8, 8), {"kernel_size": 3, "stride": 3}),
            ("padded as in same", INPUT, {"kernel_size": 3, "pad": 1}),
            ("padded, stride 2", INPUT, {"kernel_size": 3, "stride": 2, "pad": 1}),
            ("ceil_mode of a fork", (2, 8, 7), {"kernel_size": 3, "stride": 2, "ceil_mode": False}),
            ("padded, floor", INPUT, {"kernel_size": 3, "stride": 2, "pad": 1, "round_mode": "FLOOR"}),
            ("padded by 2", INPUT, {"kernel_size": 5, "stride": 3, "pad": 2}),
            ("padded, one window less", (2, 5, 5), {"kernel_size": 2, "stride": 2, "pad": 1}),
            ("a window in padding alone", (2, 6, 7), {"kernel_size": 2, "stride": 4, "pad": 1}),
            ("h and w", INPUT, sized((3, 2), (2, 1), (1, 0))),
            ("padded on one side alone", (2, 9, 9), {"kernel_size": 3, "stride": 2, "pad_w": 1}),
            ("strides 1 and 3", INPUT, {"kernel_size": 3, "stride_h": 1, "stride_w": 3}),
            ("as large as the image", (2, 5, 5), {"kernel_size": 5}),
            (
                "larger than the image with its padding on one side",
                (2, 4, 4),
                {"kernel_size": 5, "pad": 2, "stride": 2},
            ),
            ("global", INPUT, {"global_pooling": True}),
            ("of one pixel, stride 2", (2, 7, 7), {"kernel_size": 1, "stride": 2}),
        ]
    },
    "max pooling is the default": net(layer("Pooling", kernel_size=2, stride=2)),
    "max pooling of negative numbers, padded": net(
        layer("Power", scale=0.1, shift=-5), pool("MAX", 3, 2, pad=1), shape=(2, 7, 7)
    ),
    "a convolution after a window in padding alone": net(pool("AVE", 2, 4, pad=1), conv(kernel=1), shape=(2, 6, 7)),
    # InnerProduct: rows in C,H,W order
    "inner product": net(dense()),
    "inner product without bias": net(dense(bias_term=False)),
    "inner product, transposed": net(dense(transpose=True)),
    "inner product after convolution and pooling": net(conv(), pool("MAX", 2, 2), dense()),
    "two inner products": net(conv(), dense(6), relu(), dense(4, transpose=True)),
    "inner product after a global pooling": net(conv(), layer("Pooling", pool="AVE", global_pooling=True), dense()),
    "inner product of one channel": net(dense(), shape=(1, 4, 3)),
    # Flatten, Reshape
    "flatten": net(conv(), layer("Flatten")),
    "flatten, then inner product": net(conv(), layer("Flatten"), dense()),
    "flatten of 1x1": net(layer("Pooling", pool="AVE", global_pooling=True), layer("Flatten"), dense()),
    "flatten twice": net(layer("Flatten"), layer("Flatten"), dense()),
    "reshape to two axes": net(layer("Reshape", shape={"dim": [0, -1]}), dense()),
    "reshape to other channels": net(layer("Reshape", shape={"dim": [0, 6, 4, -1]}), conv(kernel=2)),
    "reshape that copies": net(layer("Reshape", shape={"dim": [0, 0, -1, 4]}), conv(kernel=2)),
    "reshape from two axes to four": net(dense(24), layer("Reshape", shape={"dim": [0, 2, 3, 4]}), conv(kernel=2)),
    "reshape from axis 1": net(layer("Reshape", axis=1, shape={"dim": [-1, 4, 2]}), conv(kernel=2)),
    "reshape of axes 2 and 3": net(layer("Reshape", axis=2, num_axes=2, shape={"dim": [7, 8]}), conv(kernel=2)),
    # Activations
    "relu": net(relu()),
    "relu with a slope": net(relu(negative_slope=0.2)),
    "prelu": net(conv(), layer("PReLU")),
    "prelu, one slope": net(conv(), layer("PReLU", channel_shared=True)),
    "prelu after inner product": net(dense(), layer("PReLU")),
    "prelu of three axes": net(layer("Reshape", shape={"dim": [0, 3, -1]}), layer("PReLU"), dense()),
    "batch norm of three axes": net(layer("Reshape", shape={"dim": [0, 3, -1]}), layer("BatchNorm"), dense()),
    "prelu, one slope, after inner product": net(dense(), layer("PReLU", channel_shared=True)),
    "elu": net(layer("ELU")),
    "elu, alpha 0.3": net(layer("ELU", alpha=0.3)),
    "sigmoid": net(layer("Sigmoid")),
    "tanh": net(layer("TanH")),
    "swish": net(layer("Swish")),
    "swish, beta 2": net(layer("Swish", beta=2.0)),
    "clip, as ReLU6": net(conv(), layer("Power", scale=4.0), layer("Clip", min=0.0, max=6.0)),
    "relu 6": net(conv(), layer("Power", scale=4.0), layer("ReLU6")),
    "bnll": net(layer("BNLL")),
    "absval": net(layer("AbsVal")),
    "exp": net(layer("Exp")),
    "exp, base 2, scaled and shifted": net(layer("Exp", base=2.0, scale=0.5, shift=0.3)),
    "exp, base e, shifted": net(layer("Exp", shift=-1.5)),
    "power 1": net(layer("Power", scale=0.5, shift=2.0)),
    "power with nothing": net(layer("Power")),
    "power 2": net(layer("Power", power=2.0, scale=0.5, shift=2.0)),
    "power 3": net(layer("Power", power=3.0)),
    "power 0": net(layer("Power", power=0.0, scale=0.5, shift=2.0)),
    "power 0.5": net(layer("AbsVal"), layer("Power", power=0.5, scale=2.0, shift=0.1)),
    "power -1.5": net(layer("AbsVal"), layer("Power", power=-1.5, shift=0.5)),
    "dropout": net(layer("Dropout", dropout_ratio=0.9)),
    "softmax": net(dense(), layer("Softmax")),
    "softmax over channels": net(conv(), layer("Softmax")),
    "softmax of 1x1": net(conv(), layer("Pooling", pool="AVE", global_pooling=True), layer("Softmax")),
    "softmax over rows": net(layer("Softmax", axis=2)),
    # LRN: with the stock alpha 1e-4 wrong code passes
    "lrn": net(layer("LRN", local_size=3, alpha=2.0, beta=0.75), shape=(7, 4, 3)),
    "lrn with its defaults": net(layer("LRN"), shape=(7, 4, 3)),
    "lrn, k 2": net(layer("LRN", local_size=5, alpha=2.0, beta=0.5, k=2.0), shape=(7, 4, 3)),
    "lrn, k 0.5": net(layer("LRN", local_size=3, alpha=2.0, beta=1.2, k=0.5), shape=(7, 4, 3)),
    "lrn wider than the channels": net(layer("LRN", local_size=9, alpha=2.0), shape=(3, 4, 3)),
    "lrn of one channel": net(layer("LRN", local_size=1, alpha=2.0), shape=(3, 4, 3)),
    "lrn within": net(layer("LRN", local_size=3, alpha=2.0, norm_region="WITHIN_CHANNEL")),
    "lrn within, k is not used": net(
        layer("LRN", local_size=5, alpha=2.0, beta=0.4, k=7.0, norm_region="WITHIN_CHANNEL")
    ),
    "lrn within wider than the image": net(
        layer("LRN", local_size=7, alpha=2.0, norm_region="WITHIN_CHANNEL"), shape=(2, 3, 4)
    ),
    # BatchNorm, Scale
    "batch norm": net(conv(), layer("BatchNorm")),
    "batch norm, eps": net(conv(), layer("BatchNorm", eps=0.1, use_global_stats=True)),
    "batch norm and scale": net(conv(), layer("BatchNorm"), layer("Scale", bias_term=True)),
    "batch norm and scale without bias": net(conv(), layer("BatchNorm"), layer("Scale")),
    "batch norm, scale, relu in place": net(
        conv(top="a"),
        *(layer(kind, "a", "a", **p) for kind, p in [("BatchNorm", {}), ("Scale", {"bias_term": True}), ("ReLU", {})]),
        conv(3, bottom="a"),
    ),
    "batch norm read before its scale": net(
        conv(),
        layer("BatchNorm", top="normed"),
        layer("Scale", "normed", "scaled", bias_term=True),
        layer("Eltwise", ["normed", "scaled"], operation="MAX"),
    ),
    "batch norm after inner product": net(dense(), layer("BatchNorm"), layer("Scale", bias_term=True)),
    "scale": net(layer("Scale")),
    "scale with bias": net(layer("Scale", bias_term=True)),
    "scale after inner product": net(dense(), layer("Scale", bias_term=True), relu()),
    "scale in place, then read": net(conv(top="a"), layer("Scale", "a", "a", bias_term=True), dense(bottom="a")),
    "scale by a second bottom": net(
        conv(top="a"),
        layer("Pooling", "a", pool="AVE", global_pooling=True),
        dense(4),
        layer("Sigmoid", top="gate"),
        layer("Scale", ["a", "gate"], axis=0),
    ),
    "scale by a second bottom, flattened": net(
        conv(top="a"),
        layer("Pooling", "a", pool="AVE", global_pooling=True),
        layer("Flatten", top="gate"),
        layer("Scale", ["a", "gate"], axis=0),
        dense(),
    ),
    "axpy": net(
        conv(top="x"),
        conv(bottom="data", top="y"),
        layer("Pooling", "x", pool="AVE", global_pooling=True),
        layer("Sigmoid", top="gate"),
        layer("Axpy", ["gate", "x", "y"]),
    ),
    "axpy of a vector": net(
        conv(top="x"),
        conv(bottom="data", top="y"),
        dense(4, bottom="x", top="gate"),
        layer("Axpy", ["gate", "x", "y"]),
    ),
    # Several bottoms and tops
    "eltwise": net(conv(top="a"), conv(bottom="data", top="b"), layer("Eltwise", ["a", "b"])),
    "eltwise, coefficients": net(
        conv(top="a"), conv(bottom="data", top="b"), layer("Eltwise", ["a", "b"], operation="SUM", coeff=[1.0, -1.0])
    ),
    "eltwise, three coefficients": net(
        conv(top="a"),
        conv(bottom="data", top="b"),
        conv(bottom="data", top="c"),
        layer("Eltwise", ["a", "b", "c"], coeff=[0.5, 2.0, -0.25]),
    ),
    "eltwise, product": net(
        conv(top="a"), conv(bottom="data", top="b"), layer("Eltwise", ["a", "b", "a"], operation="PROD")
    ),
    "eltwise, maximum": net(conv(top="a"), conv(bottom="data", top="b"), layer("Eltwise", ["a", "b"], operation="MAX")),
    "eltwise of one blob twice": net(conv(top="a"), layer("Eltwise", ["a", "a"])),
    "eltwise after inner products": net(dense(top="a"), dense(bottom="data", top="b"), layer("Eltwise", ["a", "b"])),
    "concat": net(conv(top="a"), conv(2, bottom="data", top="b"), layer("Concat", ["a", "b"])),
    "concat by its old name": net(
        conv(top="a"), conv(2, bottom="data", top="b"), layer("Concat", ["a", "b"], concat_dim=1)
    ),
    "concat on axis 2": net(
        conv(top="a"), conv(bottom="data", top="b", stride=[2, 1]), layer("Concat", ["a", "b"], axis=2)
    ),
    "concat on axis 3": net(
        conv(top="a"), conv(bottom="data", top="b", stride=[1, 2]), layer("Concat", ["a", "b"], axis=3), dense()
    ),
    "concat on axis -1": net(
        conv(top="a"), conv(bottom="data", top="b", stride=[1, 2]), layer("Concat", ["a", "b"], axis=-1)
    ),
    "concat of vectors": net(dense(top="a"), dense(3, bottom="data", top="b"), layer("Concat", ["a", "b"])),
    "concat of one blob": net(conv(), layer("Concat")),
    "concat of the input and its features": net(conv(pad=1), layer("Concat", ["data", "convolution1"]), dense()),
    "slice into equal parts": net(
        conv(6), layer("Slice", top=["a", "b", "c"]), layer("Eltwise", ["a", "b", "c"], coeff=[1.0, 2.0, -3.0])
    ),
    "slice at points": net(
        conv(6), layer("Slice", top=["a", "b", "c"], axis=1, slice_point=[1, 3]), layer("Concat", ["c", "a", "b"])
    ),
    "slice at one point": net(
        conv(6), layer("Slice", top=["a", "b"], slice_point=2), conv(3, bottom="a", top="c"), dense(bottom="b", top="d")
    ),
    "slice into one part": net(conv(), layer("Slice", top=["a"]), relu()),
    "the first axis from behind": net(
        conv(axis=-3), layer("Scale", axis=-3, bias_term=True), layer("Flatten", axis=-3), dense(axis=-1)
    ),
    "slice on axis 2": net(
        layer("Slice", top=["a", "b"], axis=2, slice_point=3), layer("Concat", ["b", "a"], axis=2), dense()
    ),
    "slice on axis 3 by its old name": net(
        layer("Slice", top=["a", "b"], slice_dim=3, slice_point=2), layer("Concat", ["b", "a"], axis=3)
    ),
    "slice of vectors": net(dense(6), layer("Slice", top=["a", "b"]), layer("Eltwise", ["a", "b"], operation="PROD")),
    "split": net(
        conv(), layer("Split", top=["a", "b"]), relu(bottom="a", top="a"), layer("Concat", ["a", "b", "convolution1"])
    ),
    # Names: in place, read twice, shared weights
    "a blob read twice": net(conv(top="a"), conv(bottom="a", top="b", pad=1), layer("Eltwise", ["b", "a"])),
    "in place between two readers": net(
        conv(top="a"),
        layer("Power", "a", "old", scale=2.0),
        relu(bottom="a", top="a"),
        layer("Power", "a", "new", scale=3.0),
        layer("Concat", ["old", "new"]),
    ),
    "in place of the input": net(
        layer("Power", "data", "data", scale=0.5, shift=1.0), conv(bottom="data", top="a"), layer("ELU", "a", "a")
    ),
    "in place three times": net(
        conv(top="a"),
        layer("Scale", "a", "a", bias_term=True),
        relu(bottom="a", top="a"),
        layer("Dropout", "a", "a"),
        dense(bottom="a"),
    ),
    "a name used again": net(conv(top="a"), conv(bottom="a", top="a"), conv(bottom="a", top="a"), dense(bottom="a")),
    "names with slashes": net(
        conv(name="inception_3a/1x1", top="inception_3a/1x1"),
        relu(name="inception_3a/relu_1x1", bottom="inception_3a/1x1", top="inception_3a/1x1"),
        dense(name="loss3/classifier"),
    ),
    "names that Keras does not take": net(
        conv(name="conv 1:a", top="x y"), relu(name="/relu", bottom="x y", top="x y"), dense(name="fc-8 (new)")
    ),
    "names that differ in a slash": net(conv(name="a/b"), conv(name="a_b"), conv(name="a.b")),
    "weights shared": net(
        conv(3, pad=1, param=[{"name": "w"}, {"name": "b"}]),
        relu(),
        conv(3, pad=1, param=[{"name": "w"}, {"name": "b"}]),
    ),
    "weights shared between two branches": net(
        layer("Slice", top=["left", "right"], axis=3),
        conv(bottom="left", top="a", param=[{"name": "w"}, {"name": "b"}]),
        conv(bottom="right", top="b", param=[{"name": "w"}, {"name": "b"}]),
        layer("Eltwise", ["a", "b"], coeff=[1.0, -1.0]),
        shape=(3, 8, 8),
    ),
    # Which layers there are
    "include and exclude by phase": net(
        conv(top="a"),
        layer("Power", "a", "a", scale=9.0, include=[{"phase": "TRAIN"}]),
        layer("Power", "a", "a", scale=0.5, include=[{"phase": "TRAIN"}, {"phase": "TEST"}]),
        layer("Power", "a", "a", shift=4.0, exclude=[{"phase": "TEST"}]),
        layer("Power", "a", "a", shift=0.3, exclude=[{"phase": "TRAIN"}]),
    ),
    "include without a state": net(
        conv(top="a"),
        layer("Power", "a", "a", scale=9.0, include=[{"stage": "deploy"}]),
        layer("Power", "a", "a", scale=0.5, include=[{"not_stage": "deploy"}]),
        layer("Power", "a", "a", shift=4.0, exclude=[{"max_level": 0}]),
        layer("Power", "a", "a", shift=0.3, include=[{"min_level": 0, "phase": "TEST"}]),
    ),
    "one layer a phase, both of one name": net(
        conv(3, name="c", top="a", include=[{"phase": "TRAIN"}], pad=1),
        conv(5, name="c", bottom="data", top="a", include=[{"phase": "TEST"}]),
        relu(bottom="a"),
    ),
    # Whole networks
    "squeeze and excite": net(
        conv(6, pad=1, top="x"),
        layer("Pooling", pool="AVE", global_pooling=True),
        conv(2, 1),
        relu(),
        conv(6, 1),
        layer("Sigmoid"),
        layer("Flatten", top="gate"),
        layer("Scale", ["x", "gate"], axis=0),
        layer("Eltwise", ["x", "scale8"]),
        dense(),
        layer("Softmax"),
    ),
    "residual": net(
        conv(4, 3, pad=1, bias_term=False, top="x"),
        layer("BatchNorm", "x", "x"),
        layer("Scale", "x", "x", bias_term=True),
        relu(bottom="x", top="x"),
        conv(4, 3, pad=1, bottom="x", bias_term=False, top="y"),
        layer("BatchNorm", "y", "y"),
        layer("Scale", "y", "y", bias_term=True),
        layer("Eltwise", ["x", "y"], "z"),
        relu(bottom="z", top="z"),
        pool("AVE", 3, 2, pad=1, bottom="z"),
        dense(),
        layer("Softmax"),
    ),
    "siblings of GoogLeNet": net(
        conv(4, 1, top="a"),
        conv(2, 1, bottom="data", top="b1"),
        conv(4, 5, bottom="b1", pad=2, top="b"),
        pool("MAX", 3, 1, pad=1, bottom="data", top="c1"),
        conv(3, 1, bottom="c1", top="c"),
        layer("Concat", ["a", "b", "c"]),
        layer("LRN", local_size=5, alpha=2.0),
        pool("MAX", 3, 2),
        layer("Dropout", dropout_ratio=0.4),
        dense(),
        layer("Softmax"),
    ),
}

# Written in the three syntaxes that Caffe has had.
OLD = net(
    conv(6, 3, pad=2, stride=2, name="c1"),
    relu(name="r1", bottom="c1", top="c1"),
    pool("MAX", 3, 2, name="p1"),
    layer("LRN", name="n1", local_size=3, alpha=2.0, beta=0.75),
    conv(4, 1, bias_term=False, group=2, name="c2"),
    layer("TanH", name="t", bottom="c2", top="c2"),
    layer("Concat", ["n1", "c2"], name="both"),
    pool("AVE", 2, 1, name="p2"),
    dense(7, name="f1"),
    layer("Sigmoid", name="s"),
    layer("Dropout", name="d", bottom="s", top="s", dropout_ratio=0.5),
    dense(5, name="f2", bottom="s"),
    layer("Softmax", name="prob"),
    shape=(3, 11, 9),
)


def pooling_geometries(seed, count):
    """Yield random poolings that Caffe takes: the padding smaller than the kernel, no window of no pixel for AVE."""
    rng = np.random.default_rng(seed)
    for i in itertools.count():
        size, kernel = rng.integers(1, 13, 2), rng.integers(1, 6, 2)
        stride, pad = rng.integers(1, 6, 2), rng.integers(0, 3, 2) * rng.integers(0, 2)
        kind, floor = rng.choice(["MAX", "AVE"]), rng.random() < 0.3
        # Without padding a stride larger than the kernel can begin a window past the image: Caffe divides by zero there.
        past = (kind == "AVE") & (not pad.any()) & (stride > kernel).any()
        if (pad >= kernel).any() or (size + 2 * pad < kernel).any() or past:
            continue
        if count == 0:
            return
        count -= 1
        p = sized(kernel.tolist(), stride.tolist(), pad.tolist()) | ({"round_mode": "FLOOR"} if floor else {})
        name = f"{i}: {kind} {'x'.join(map(str, size))}, " + ", ".join(f"{key} {value}" for key, value in p.items())
        yield name, net(layer("Pooling", pool=str(kind), **p), shape=(2, *size.tolist()))
