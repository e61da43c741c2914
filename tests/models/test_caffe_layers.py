"""Caffe's layers against Caffe's rules in float64: small networks with every layer and every option."""

import caffe_cases
import caffe_rules
import caffe_write
import keras
import numpy as np
import pytest

from tfpar import errors
from tfpar.models import caffe

TOLERANCE = 2e-6  # of the largest output


def opened(folder, layers, blobs, version=2, state=None, shape=None, **how):
    """Write a network and its weights, and open them."""
    (folder / "net.prototxt").write_text(caffe_write.prototxt(layers, version, state))
    weights = None
    if blobs:
        weights = folder / "net.caffemodel"
        weights.write_bytes(
            caffe_write.caffemodel(blobs, version, {each["name"]: each["type"] for each in layers}, **how)
        )
    return caffe.network(folder / "net.prototxt", weights, image_shape=shape)


def picture(layers, seed=0):
    """Return a batch for a network's Input layer, N,C,H,W."""
    return np.random.default_rng(seed).standard_normal((2, *layers[0]["p"]["shape"]["dim"][1:]), np.float32)


def channels_last(x):
    return np.moveaxis(x, 1, -1)


def assert_close(got, expected, tolerance=TOLERANCE):
    """Compare relative to the largest output; windows of no pixel are Caffe's lowest number in both."""
    assert got.shape == expected.shape
    empty = expected == caffe_rules.LOWEST
    assert np.array_equal(got == np.float32(caffe_rules.LOWEST), empty)
    got, expected = np.where(empty, 0, got), np.where(empty, 0, expected)
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def check(folder, layers, seed=1, state=None, **draw):
    """Compare a network with the rules; saved and loaded, it must give the same bits."""
    x, blobs = picture(layers), {}
    expected, _ = caffe_rules.forward(layers, blobs, x, caffe_rules.drawer(seed, **draw), state)
    model = opened(folder, layers, blobs, state=state)
    got = np.asarray(model(channels_last(x), training=False))
    assert got.dtype == np.float32
    assert_close(got, channels_last(expected))
    model.save(folder / "m.keras")
    loaded = keras.saving.load_model(folder / "m.keras", safe_mode=True)
    assert np.array_equal(np.asarray(loaded(channels_last(x), training=False)), got)
    return model


@pytest.mark.parametrize("name", caffe_cases.CASES)
def test_a_layer_computes_what_caffe_computes(name, tmp_path):
    check(tmp_path, caffe_cases.CASES[name])


GEOMETRIES = dict(caffe_cases.pooling_geometries(7, 200))


@pytest.mark.parametrize(
    "name", [name if i < 20 else pytest.param(name, marks=pytest.mark.by_hand) for i, name in enumerate(GEOMETRIES)]
)
def test_pooling_of_any_geometry(name, tmp_path):
    check(tmp_path, GEOMETRIES[name])


@pytest.mark.parametrize("factor", [0, 1, 999.98])
def test_batch_norm_divides_by_its_factor(factor, tmp_path):
    check(tmp_path, caffe_cases.net(caffe_cases.conv(), caffe_cases.layer("BatchNorm", eps=0.5)), factor=factor)


@pytest.mark.parametrize(
    "state",
    [{}, {"stage": "deploy"}, {"stage": ["deploy", "small"]}, {"level": 2}, {"level": -1, "stage": "small"}],
    ids=str,
)
def test_rules_with_stages_and_levels(state, tmp_path):
    layer = caffe_cases.layer
    rules = [
        {"include": [{"stage": "deploy"}]},
        {"include": [{"stage": ["deploy", "small"]}]},
        {"include": [{"not_stage": "deploy"}]},
        {"include": [{"stage": "small", "not_stage": "deploy"}, {"min_level": 1}]},
        {"include": [{"min_level": 0, "max_level": 1}]},
        {"exclude": [{"stage": "small"}, {"max_level": -1}]},
        {"exclude": [{"phase": "TRAIN", "stage": "deploy"}]},
    ]
    scaled = [layer("Power", "a", "a", name=f"p{i}", scale=1.1 + i, **rule) for i, rule in enumerate(rules)]
    check(tmp_path, caffe_cases.net(caffe_cases.conv(top="a"), *scaled), state=state)


def test_the_phase_is_an_argument(tmp_path):
    layers = caffe_cases.net(
        caffe_cases.layer("Power", scale=2.0, include=[{"phase": "TRAIN"}], top="a"),
        caffe_cases.layer("Power", "data", "a", scale=3.0, include=[{"phase": "TEST"}]),
    )
    (tmp_path / "net.prototxt").write_text(caffe_write.prototxt(layers))
    x = channels_last(picture(layers))
    for phase, factor in (("TRAIN", 2), ("TEST", 3)):
        assert np.array_equal(caffe.network(tmp_path / "net.prototxt", phase=phase)(x), factor * x)


def test_one_network_in_three_syntaxes_gives_equal_bits(tmp_path):
    layers, blobs = caffe_cases.OLD, {}
    x = picture(layers)
    expected, _ = caffe_rules.forward(layers, blobs, x, caffe_rules.drawer(3))
    outputs = []
    for version, old in ((2, False), (1, True), (0, True), (1, False)):
        outputs.append(np.asarray(opened(tmp_path, layers, blobs, version, old=old)(channels_last(x), training=False)))
    assert_close(outputs[0], expected)
    assert all(np.array_equal(output, outputs[0]) for output in outputs)


@pytest.mark.parametrize("files", [(2, 1), (1, 2), (0, 2), (2, 0)], ids=str)
def test_text_and_weights_of_different_syntaxes(files, tmp_path):
    layers, blobs = caffe_cases.OLD, {}
    x = picture(layers)
    expected, _ = caffe_rules.forward(layers, blobs, x, caffe_rules.drawer(3))
    types = {each["name"]: each["type"] for each in layers}
    (tmp_path / "n.prototxt").write_text(caffe_write.prototxt(layers, files[0]))
    (tmp_path / "n.caffemodel").write_bytes(caffe_write.caffemodel(blobs, files[1], types))
    assert_close(
        np.asarray(caffe.network(tmp_path / "n.prototxt", tmp_path / "n.caffemodel")(channels_last(x))), expected
    )


@pytest.mark.parametrize("kind", ["conv", "pool"])
def test_a_padding_layer_of_v0(kind, tmp_path):
    """Its pad goes to the layer that reads it."""
    make = caffe_cases.conv(name="last") if kind == "conv" else caffe_cases.pool("AVE", 3, 2, name="last")
    layers = caffe_cases.net(caffe_cases.conv(name="c"), caffe_cases.layer("Padding", name="padding", pad=1), make)
    current = [layers[0], layers[1], layers[3] | {"bottom": ["c"], "p": layers[3]["p"] | {"pad": 1}}]
    x, blobs = picture(layers), {}
    expected, _ = caffe_rules.forward(current, blobs, x, caffe_rules.drawer(4))
    model = opened(tmp_path, layers, blobs, version=0)
    assert_close(np.asarray(model(channels_last(x))), channels_last(expected))


@pytest.mark.parametrize(
    "how", [{"old": True}, {"double": True}, {"old": True, "double": True}, {"packed": False}], ids=str
)
def test_blobs_of_other_files(how, tmp_path):
    """Four numbers in place of a shape, double precision, and a field for each number."""
    layers, blobs = caffe_cases.CASES["two inner products"], {}
    x = picture(layers)
    expected, _ = caffe_rules.forward(layers, blobs, x, caffe_rules.drawer(5))
    assert_close(np.asarray(opened(tmp_path, layers, blobs, **how)(channels_last(x))), expected)


def test_shared_weights_are_one_variable(tmp_path):
    model = check(tmp_path, caffe_cases.CASES["weights shared"])
    assert model.count_params() == 3 * 3 * 3 * 3 + 3


def test_shared_weights_are_those_of_the_last_layer_that_the_file_has(tmp_path, capsys):
    """As Caffe copies them, layer by layer."""
    layers, x = caffe_cases.CASES["weights shared"], picture(caffe_cases.CASES["weights shared"])
    one, other = (caffe_rules.drawer(seed) for seed in (1, 2))
    (first, second), blobs = [each["name"] for each in layers if "param" in each], {}
    expected, _ = caffe_rules.forward(layers, blobs, x, one)
    there = {second: blobs[first]}
    for given in (there, {first: other(layers[1], [x])} | there):
        assert_close(np.asarray(opened(tmp_path, layers, given)(channels_last(x))), channels_last(expected))
        assert "initialized" not in capsys.readouterr().out


def test_averages_are_not_shared(tmp_path):
    """Caffe clears the three `param` of a BatchNorm, as older files have them."""
    named = [{"name": "mean"}, {"name": "variance"}, {"name": "factor"}]
    layers = caffe_cases.net(*(caffe_cases.layer("BatchNorm", param=named) for _ in range(2)))
    x, blobs = picture(layers), {}
    expected, _ = caffe_rules.forward([each | {"param": []} for each in layers], blobs, x, caffe_rules.drawer(1))
    assert_close(np.asarray(opened(tmp_path, layers, blobs)(channels_last(x))), channels_last(expected))


@pytest.mark.parametrize("second", [{}, {"transpose": True}], ids=str)
def test_rows_in_another_order_are_not_shared(second, tmp_path):
    param, size = [{"name": "w"}, {"name": "b"}], np.prod(caffe_cases.INPUT).item()
    first = [] if second else [caffe_cases.dense(size, param=param)]
    last = [
        caffe_cases.layer("Flatten"),
        caffe_cases.dense(size, param=param),
        caffe_cases.dense(size, param=param, **second),
    ]
    layers = caffe_cases.net(*(first + last[1:2] if first else last))
    (tmp_path / "net.prototxt").write_text(caffe_write.prototxt(layers))
    with pytest.raises(errors.DataError, match="shared weights with other parameters"):
        caffe.network(tmp_path / "net.prototxt")


def test_names_of_any_character(tmp_path):
    """TensorFlow takes them for its scopes, which have few."""
    names = ["conv 1/3x3 (a):b", "_2", "Überraschung+", "1"]
    model = check(tmp_path, caffe_cases.net(*(caffe_cases.layer("TanH", name=name) for name in names)))
    assert [layer.name for layer in model.layers[1:]] == ["conv.1.3x3..a..b", "_2", ".berraschung.", "1"]


@pytest.mark.parametrize(("name", "called"), [("(ü) net", "net"), ("网络", "caffe"), ("-a/b", "a_b"), ("", "caffe")])
def test_names_of_networks(name, called, tmp_path):
    layers = caffe_cases.net(caffe_cases.relu())
    text = caffe_write.prototxt(layers).replace('name: "net"', f'name: "{name}"')
    (tmp_path / "net.prototxt").write_text(text, encoding="utf-8")
    model = caffe.network(tmp_path / "net.prototxt")
    assert model.name == called and model.predict(channels_last(picture(layers)), verbose=0).shape == (2, 8, 7, 3)


def test_half_shared_weights_are_refused(tmp_path):
    layers = caffe_cases.net(
        caffe_cases.conv(3, pad=1, param=[{"name": "w"}]), caffe_cases.conv(3, pad=1, param=[{"name": "w"}])
    )
    (tmp_path / "net.prototxt").write_text(caffe_write.prototxt(layers))
    with pytest.raises(errors.DataError):
        caffe.network(tmp_path / "net.prototxt")


@pytest.mark.parametrize("syntax", ["input_dim", "input_shape", "none"])
def test_where_the_size_of_the_input_comes_from(syntax, tmp_path):
    layers = caffe_cases.net(caffe_cases.conv(), caffe_cases.dense())
    x, blobs = picture(layers), {}
    expected, _ = caffe_rules.forward(layers, blobs, x, caffe_rules.drawer(6))
    body = caffe_write.current(layers[1:], [])
    dims = "".join(f" {'input_dim' if syntax == 'input_dim' else 'dim'}: {dim}" for dim in (64, *caffe_cases.INPUT))
    head = {
        "input_dim": f'input: "data"{dims}',
        "input_shape": f'input: "data" input_shape {{{dims} }}',
        "none": 'input: "data"',
    }
    (tmp_path / "n.prototxt").write_text(f"{head[syntax]}\n{body}")
    (tmp_path / "n.caffemodel").write_bytes(caffe_write.caffemodel(blobs))
    shape = (*caffe_cases.INPUT[1:], caffe_cases.INPUT[0]) if syntax == "none" else None
    model = caffe.network(tmp_path / "n.prototxt", tmp_path / "n.caffemodel", image_shape=shape)
    assert_close(np.asarray(model(channels_last(x))), expected)


DATA = """
layer { name: "d" type: "Data" top: "data" top: "label" include { phase: TEST } data_param { source: "x" batch_size: 9 } }
layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "f" type: "InnerProduct" bottom: "c" top: "f" inner_product_param { num_output: 5 } }
layer { name: "accuracy" type: "Accuracy" bottom: "f" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "f" bottom: "label" top: "loss" }
"""
DEPLOY = """
input: "data" input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 7
layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "f" type: "InnerProduct" bottom: "c" top: "f" inner_product_param { num_output: 5 } }
layer { name: "prob" type: "Softmax" bottom: "f" top: "prob" }
"""


@pytest.mark.parametrize("order", ["bgr", "rgb"])
@pytest.mark.parametrize("text", [DATA, DEPLOY], ids=["data", "deploy"])
@pytest.mark.parametrize(
    ("scale", "mean"), [(None, None), (1 / 256, None), (None, [104.0, 117.0, 123.0]), (0.017, [104.0, 117.0, 123.0])]
)
def test_load_takes_pictures_and_gives_logits(text, order, scale, mean, tmp_path):
    """(pixel - mean) * scale, the mean in the order of the network's channels."""
    (tmp_path / "n.prototxt").write_text(text)
    layers = caffe_cases.net(caffe_cases.conv(name="c"), caffe_cases.dense(name="f"))
    pixels, blobs = np.random.default_rng(0).integers(0, 256, (2, 8, 7, 3), np.uint8), {}
    x = pixels[..., ::-1] if order == "bgr" else pixels
    x = np.moveaxis((x - np.array(mean or 0.0)) * (scale or 1), -1, 1)
    logits, _ = caffe_rules.forward(layers, blobs, x, caffe_rules.drawer(8))
    (tmp_path / "n.caffemodel").write_bytes(caffe_write.caffemodel(blobs))
    model = caffe.load(
        tmp_path / "n.prototxt", tmp_path / "n.caffemodel", image_shape=(8, 7, 3), scale=scale, mean=mean, order=order
    )
    assert model.inputs[0].dtype == "uint8" and model.outputs[0].dtype == "float32" and not model.compiled
    got = np.asarray(model(pixels, training=False))
    assert_close(got, logits)
    model.save(tmp_path / "m.keras")
    assert np.array_equal(keras.saving.load_model(tmp_path / "m.keras", safe_mode=True)(pixels, training=False), got)


REAL = {
    "everpeace_mnist__lenet": (1, 28, 28, "_iter_10000"),
    "everpeace_cifar10__cifar10_quick": (3, 32, 32, "_iter_5000"),
}


@pytest.mark.parametrize("name", REAL)
def test_weights_that_caffe_trained(name, shared, tmp_path):
    folder = shared / "caffe"
    if not folder.is_dir():
        pytest.skip("needs the collected Caffe networks beside the checkout, which are not there")
    *shape, suffix = REAL[name]
    layers = caffe_write.read_layers((folder / f"{name}.prototxt").read_text())
    weights = folder / f"{name}{suffix}.caffemodel"
    pixels = np.random.default_rng(2).integers(0, 256, (4, *shape), np.uint8)
    x = np.float32(pixels) / 256
    blobs = caffe_write.read_caffemodel(weights.read_bytes())
    probabilities, values = caffe_rules.forward(layers, blobs, x)
    network = caffe.network(folder / f"{name}.prototxt", weights)
    assert_close(np.asarray(network(channels_last(x), training=False)), probabilities)
    loaded = caffe.load(folder / f"{name}.prototxt", weights, scale=1 / 256, order="rgb")
    assert_close(np.asarray(loaded(channels_last(pixels), training=False)), values["ip2"])
