"""Caffe's files: every damage is an error that says where, and what does not match is reported."""

import re

import caffe_rules
import caffe_write
import keras
import numpy as np
import pytest

from tfpar import errors
from tfpar.models import caffe
from tfpar.models.caffe import files as caffe_files

GOOD = """\
name: "good"
layer {
  name: "data"
  type: "Input"
  top: "data"
  input_param { shape: { dim: 1 dim: 3 dim: 8 dim: 8 } }
}
layer {
  name: "conv"
  type: "Convolution"
  bottom: "data"
  top: "conv"
  param { lr_mult: 1 decay_mult: 0.5 }
  include { phase: TEST }
  convolution_param {
    num_output: 4
    bias_term: true
    kernel_size: 3
    stride: 2
    weight_filler {
      type: "gaussian"
      std: 0.01
    }
  }
}
layer {
  name: "pool"
  type: "Pooling"
  bottom: "conv"
  top: "pool"
  pooling_param {
    pool: MAX
    kernel_size: 2
  }
}
layer {
  name: "ip"
  type: "InnerProduct"
  bottom: "pool"
  top: "ip"
  inner_product_param { num_output: 5 }
}
layer {
  name: "prob"
  type: "Softmax"
  bottom: "ip"
  top: "prob"
}
"""
STRIDE, POOL, OUTPUT, BIAS, NAME, STD = (
    "    stride: 2\n",
    "    pool: MAX\n",
    "    num_output: 4\n",
    "    bias_term: true\n",
    '  name: "conv"\n',
    "      std: 0.01\n",
)

# (what is replaced, with what); the error is on the line where the replaced text begins, or on a later one (None).
DAMAGES = {
    "a misspelt field": (STRIDE, "    strde: 2\n"),
    "a misspelt layer": ("layer {\n" + NAME, "layr {\n" + NAME),
    "a misspelt message": ("  convolution_param {\n", "  convolution_parm {\n"),
    "a field in the wrong case": (NAME, '  Name: "conv"\n'),
    "a field of another message": (STRIDE, "    pool: MAX\n"),
    "a field of a fork": (STRIDE, "    deformable_group: 2\n"),
    "a message of a fork": (NAME, "  permute_param { order: 0 }\n" + NAME),
    "a wrong enum": (POOL, "    pool: MEAN\n"),
    "an enum in the wrong case": (POOL, "    pool: max\n"),
    "a quoted enum": (POOL, '    pool: "MAX"\n'),
    "a number that the enum has not": (POOL, "    pool: 7\n"),
    "a wrong phase": ("  include { phase: TEST }\n", "  include { phase: VALIDATION }\n"),
    "a number out of range": (STRIDE, "    stride: 4294967296\n"),
    "a huge number": (OUTPUT, "    num_output: 99999999999999999999\n"),
    "a negative number": (STRIDE, "    stride: -2\n"),
    "a fraction": (STRIDE, "    stride: 2.5\n"),
    "a text where a number belongs": (STRIDE, '    stride: "2"\n'),
    "a number where a text belongs": (NAME, "  name: 7\n"),
    "a word where a text belongs": (NAME, "  name: conv\n"),
    "a number with two points": (STD, "      std: 0.0.1\n"),
    "a decimal comma": (STD, "      std: 0,01\n"),
    "a wrong hexadecimal number": (STRIDE, "    stride: 0xg\n"),
    "a size with its unit": (STRIDE, "    stride: 2px\n"),
    "yes in place of true": (BIAS, "    bias_term: yes\n"),
    "a number that is no boolean": (BIAS, "    bias_term: 2\n"),
    "no quote at the end": (NAME, '  name: "conv\n'),
    "no quote at the beginning": (NAME, '  name: conv"\n'),
    "different quotes": (NAME, "  name: \"conv'\n"),
    "no quotation mark but a typographic one": (NAME, "  name: \u201cconv\u201d\n"),
    "no colon": (STRIDE, "    stride 2\n"),
    "two colons": (STRIDE, "    stride:: 2\n"),
    "an equals sign": (STRIDE, "    stride = 2\n"),
    "no value": (NAME, "  name:\n"),
    "a value alone": (STRIDE, "    2\n"),
    "two semicolons": (STRIDE, "    stride: 2;;\n"),
    "a field twice": (OUTPUT, OUTPUT + OUTPUT),
    "a list for one number": (OUTPUT, "    num_output: [4, 5]\n"),
    "a list without an end": ("    kernel_size: 3\n", "    kernel_size: [3, 3\n"),
    "a list with a comma at its end": ("    kernel_size: 3\n", "    kernel_size: [3, 3,]\n"),
    "a number in place of a message": ("  inner_product_param { num_output: 5 }\n", "  inner_product_param: 5\n"),
    "a message in place of a text": (NAME, '  name { value: "conv" }\n'),
    "a comment of C++": (STRIDE, "    stride: 2 // was 1\n"),
    "a comment of C": (STRIDE, "    /* stride: 2 */\n"),
    "a stray word": (STRIDE, "    stride: 2 please\n"),
    "an extension": (STRIDE, "    [caffe.stride]: 2\n"),
    "a brace too many": ('  top: "conv"\n', '  top: "conv"\n}\n'),
    "a wrong bracket": ("      std: 0.01\n    }\n", "      std: 0.01\n    ]\n"),
    "a brace too few": ("    }\n  }\n}\n", "    }\n  }\n"),
    "a NUL": (STRIDE, "    stride: 2\0\n"),
    "the end is missing": (GOOD[GOOD.index(POOL) + 8 :], ""),
    "a page of HTML": (GOOD, "<!DOCTYPE html>\n<html><head><title>404</title></head></html>\n"),
    "JSON": (GOOD, '{"layer": [{"name": "conv"}]}\n'),
    "a solver": (GOOD, 'net: "net.prototxt"\nbase_lr: 0.01\n'),
    "a conflict of git": (STRIDE, "<<<<<<< HEAD\n" + STRIDE),
}
# Where the parser can only see the damage later.
LATER = {
    "a wrong bracket",
    "a brace too many",
    "a brace too few",
    "no quote at the end",
    "the end is missing",
    "no value",
    "a list without an end",
    "a field twice",
}


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_undamaged_one_opens(tmp_path):
    (tmp_path / "net.prototxt").write_text(GOOD)
    assert caffe.network(tmp_path / "net.prototxt").output_shape == (None, 5)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_broken_prototxt_is_an_error_with_its_line_and_column(name, tmp_path):
    old, new = DAMAGES[name]
    assert GOOD.count(old) == 1
    path = tmp_path / "net.prototxt"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(errors.DataError) as error:
        caffe.network(path)
    found = re.match(rf"{re.escape(str(path))}:(\d+):(\d+)\b", one_line(error))
    assert found, str(error.value)
    line, column = map(int, found.groups())
    text, expected = path.read_text(), GOOD[: GOOD.index(old)].count("\n") + 1
    assert column >= 1 and line <= text.count("\n") + 1
    assert line >= expected if name in LATER else line == expected, str(error.value)


def test_what_is_wrong_is_said_of_a_long_line_too(tmp_path):
    (tmp_path / "net.prototxt").write_text(GOOD.replace("\n", " ").replace("stride: 2", "stride: 2.5"))
    with pytest.raises(errors.DataError, match=r"net\.prototxt:1:\d+: Couldn't parse integer: 2\.5"):
        caffe.network(tmp_path / "net.prototxt")


def test_every_cut_of_a_prototxt_is_an_error_or_a_network(tmp_path):
    """Where a layer ends the rest is a network; elsewhere the error says where."""
    path = tmp_path / "net.prototxt"
    ends = {found.end() for found in re.finditer(r"^}\n?", GOOD, re.MULTILINE)} | {
        found.end() - 1 for found in re.finditer(r"^}\n", GOOD, re.MULTILINE)
    }
    for cut in sorted(set(range(20, len(GOOD), 7)) - ends):
        path.write_text(GOOD[:cut])
        with pytest.raises(errors.DataError) as error:
            caffe.network(path)
        assert re.match(rf"{re.escape(str(path))}:\d+:\d+\b", one_line(error)) or GOOD[:cut].count("{") == 0, GOOD[:cut]


@pytest.mark.parametrize(
    "content", [b"", b"# nothing\n", b'name: "x"\n', b"\xff\xfe\x00n", 'name: "caf\u00e9"'.encode("latin-1")]
)
def test_a_file_without_a_network(content, tmp_path):
    (tmp_path / "net.prototxt").write_bytes(content)
    with pytest.raises(errors.DataError, match=r"net\.prototxt") as error:
        caffe.network(tmp_path / "net.prototxt")
    one_line(error)


@pytest.mark.parametrize("kind", ["network", "load"])
def test_a_missing_file(kind, tmp_path):
    (tmp_path / "net.prototxt").write_text(GOOD)
    for net, weights, missing in [
        ("no.prototxt", None, "no.prototxt"),
        ("net.prototxt", "no.caffemodel", "no.caffemodel"),
    ]:
        with pytest.raises(errors.InputNotFound, match=missing) as error:
            getattr(caffe, kind)(tmp_path / net, weights and tmp_path / weights)
        one_line(error)
    with pytest.raises(errors.InputNotFound):
        caffe.network(tmp_path)


def test_fields_of_one_name_and_type_have_one_number():
    """So a layer of V1 or V0 is read as one of today by its bytes."""
    today = {
        "kernelsize": "kernel_size", "biasterm": "bias_term", "batchsize": "batch_size", "cropsize": "crop_size", "meanfile": "mean_file",
    }  # fmt: skip
    numbers = {}
    for kind in (kind for name, kind in caffe_files._classes().items() if name.startswith(caffe_files.TEXT)):
        for field in kind.DESCRIPTOR.fields:
            types = {
                field.CPPTYPE_STRING: "text",
                field.CPPTYPE_DOUBLE: "number",
                field.CPPTYPE_MESSAGE: field.message_type,
            }
            key = today.get(field.name, field.name), types.get(field.cpp_type, "varint")
            numbers.setdefault(field.number, set()).add(key)
    assert len(numbers) > 200 and all(len(keys) == 1 for keys in numbers.values())
    assert len({key for keys in numbers.values() for key in keys}) == len(numbers)


UNSUPPORTED = [
    "Deconvolution",
    "Crop",
    "MVN",
    "ArgMax",
    "Embed",
    "LSTM",
    "Python",
    "SPP",
    "Permute",
    "Normalize",
    "PriorBox",
]


@pytest.mark.parametrize("kind", [*UNSUPPORTED, "Convolutoin", "convolution"])
def test_an_unsupported_layer_is_named_with_its_line(kind, tmp_path):
    line = GOOD[: GOOD.index(POOL)].count("\n") + 1
    text = GOOD.replace('"pool"\n  type: "Pooling"', f'"strange one"\n  type: "{kind}"')
    text = text.replace("  pooling_param {\n    pool: MAX\n    kernel_size: 2\n  }\n", "")
    path = tmp_path / "net.prototxt"
    path.write_text(text)
    with pytest.raises(errors.DataError) as error:
        caffe.network(path)
    message, found = one_line(error), re.search(rf"{re.escape(str(path))}:(\d+)", str(error.value))
    assert "strange one" in message and kind in message and found, message
    assert line - 7 <= int(found[1]) <= line, message  # a line of the layer


# Of each type that BVLC's Caffe has and Keras has not, a parameter; of some types of its forks, too.
PARAMETERS = {
    "Bias": "bias_param { axis: 1 }", "Crop": "crop_param { axis: 2 offset: 19 offset: 1 }",
    "Embed": "embed_param { input_dim: 5 }", "LSTM": "recurrent_param { num_output: 5 }", "Log": "log_param { base: 2 }",
    "MVN": "mvn_param { across_channels: true }", "ArgMax": "argmax_param { top_k: 5 }", "Parameter": "parameter_param { shape { dim: 3 } }",
    "Reduction": "reduction_param { operation: MEAN }", "SPP": "spp_param { pyramid_height: 3 }",
    "Threshold": "threshold_param { threshold: 0.5 }", "Tile": "tile_param { tiles: 3 }",
}  # fmt: skip
OF_FORKS = {
    "Permute": "permute_param { order: 0 }",
    "Normalize": "norm_param { }",
    "Dropout": "dropout_param { scale_train: false }",
}


@pytest.mark.parametrize("kind", [*PARAMETERS, *OF_FORKS])
def test_an_unsupported_layer_with_its_parameters(kind, tmp_path):
    path, parameters = tmp_path / "net.prototxt", (PARAMETERS | OF_FORKS)[kind]
    layer = f'layer {{ name: "odd" type: "{kind}" bottom: "data" top: "x" {parameters} }}\n'
    path.write_text(f'input: "data" input_dim: [1, 3, 8, 8]\n{layer}')
    words = f"layer odd of type {kind} is not supported; supported are"
    if kind in OF_FORKS:
        words = rf"no field named \S+ \(in layer odd of type {kind}\); .*fields of Caffe's forks are unknown"
    with pytest.raises(errors.DataError, match=rf"net\.prototxt:2:.*{words}") as error:
        caffe.network(path)
    one_line(error)


def test_a_comment_in_another_encoding_and_a_byte_order_mark(tmp_path):
    (tmp_path / "net.prototxt").write_bytes(b"\xef\xbb\xbf# \xbe\xed\xbb\xfd\n" + GOOD.encode())
    assert caffe.network(tmp_path / "net.prototxt").output_shape == (None, 5)


@pytest.mark.parametrize("kind", ["DECONVOLUTION", "MVN", "ARGMAX"])
def test_an_unsupported_layer_of_v1(kind, tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_text(
        'input: "data" input_dim: [1, 3, 8, 8]\n\n'
        f'layers {{\n  name: "strange one"\n  type: {kind}\n  bottom: "data"\n  top: "x"\n}}\n'
    )
    with pytest.raises(errors.DataError) as error:
        caffe.network(path)
    found = re.search(rf"{re.escape(str(path))}:(\d+)", one_line(error))
    assert "strange one" in str(error.value) and found and 3 <= int(found[1]) <= 5, str(error.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (NAME + '  type: "Convolution"\n  bottom: "data"', NAME + '  type: "Convolution"\n  bottom: "nothing"'),
        ("    kernel_size: 3\n", "    kernel_size: 30\n"),
        ("    kernel_size: 3\n", ""),
        ("    kernel_size: 3\n", "    kernel_size: 0\n"),
        (STRIDE, "    stride: 0\n"),
        (OUTPUT, ""),
        (OUTPUT, "    num_output: 0\n"),
        (STRIDE, "    group: 2\n"),  # of 3 channels
        (STRIDE, "    group: 3\n"),  # 4 outputs
        ('  top: "conv"\n', ""),
        ('  bottom: "pool"\n', '  bottom: "pool"\n  bottom: "conv"\n'),
        ("shape: { dim: 1 dim: 3 dim: 8 dim: 8 }", "shape: { dim: 1 dim: 3 dim: 0 dim: 8 }"),
        ("shape: { dim: 1 dim: 3 dim: 8 dim: 8 }", "shape: { dim: 1 dim: 3 dim: -8 dim: 8 }"),
        ("shape: { dim: 1 dim: 3 dim: 8 dim: 8 }", "shape: { dim: 3 dim: 8 dim: 8 }"),
        (POOL, "    pool: STOCHASTIC\n"),
        (POOL, "    pad: 2\n"),  # as much as the kernel
        (POOL, "    stride: 4294967295\n"),
        (POOL, "    kernel_h: 2 kernel_w: 2\n"),  # beside kernel_size
        (POOL, "    global_pooling: true\n"),  # beside kernel_size
        (STRIDE, "    stride: [1, 2, 1]\n"),
    ],
)
def test_a_network_that_is_none_is_an_error_that_names_its_layer(old, new, tmp_path):
    assert GOOD.count(old) == 1
    (tmp_path / "net.prototxt").write_text(GOOD.replace(old, new))
    with pytest.raises((errors.DataError, errors.SettingsError), match=r"net\.prototxt") as error:
        caffe.network(tmp_path / "net.prototxt")
    assert re.search(r"\b(conv|pool|ip|data|input)\b", one_line(error).replace(str(tmp_path), ""))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The path of the good network, and its weights as bytes."""
    folder, blobs = tmp_path_factory.mktemp("caffe"), {}
    (folder / "net.prototxt").write_text(GOOD)
    layers = caffe_write.read_layers(GOOD)
    caffe_rules.forward(layers, blobs, np.zeros((1, 3, 8, 8)), caffe_rules.drawer(0))
    return folder / "net.prototxt", blobs


def weights_of(files, content):
    path = files[0].with_name("w.caffemodel")
    path.write_bytes(content)
    return path


def top_level_ends(content):
    """Return where a field of the file ends: a file cut there is a whole file of fewer layers."""
    at = 0
    yield 0
    for _, part in caffe_write.fields_of(content):
        at = content.index(bytes(part), at) + len(part)
        yield at


def test_a_cut_caffemodel_is_refused(files):
    whole = caffe_write.caffemodel(files[1])
    cuts = sorted(set(range(1, len(whole))) - set(top_level_ends(whole)))
    for cut in np.random.default_rng(0).choice(cuts, 100, replace=False):
        path = weights_of(files, whole[:cut])
        with pytest.raises(errors.DataError, match=r"w\.caffemodel") as error:
            caffe.network(files[0], path)
        one_line(error)


def test_a_caffemodel_in_place_of_the_prototxt_is_said_to_be_binary(files):
    weights = weights_of(files, caffe_write.caffemodel(files[1]))
    with pytest.raises(errors.DataError, match="a binary file; give a prototxt") as error:
        caffe.network(weights, files[0])
    one_line(error)


def test_random_bytes_are_refused(files):
    rng = np.random.default_rng(1)
    for size in rng.integers(0, 3000, 100):
        with pytest.raises(errors.DataError, match=r"w\.caffemodel") as error:
            caffe.network(files[0], weights_of(files, rng.bytes(size)))
        one_line(error)


def test_a_flipped_bit_gives_a_network_or_an_error_of_ours(files):
    whole, rng = caffe_write.caffemodel(files[1]), np.random.default_rng(2)
    small = [i for i in range(len(whole)) if i < 60 or rng.random() < 0.1]
    for at in rng.choice(small, 60, replace=False):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.integers(0, 8)
        try:
            assert isinstance(caffe.network(files[0], weights_of(files, bytes(damaged))), keras.Model)
        except (errors.DataError, errors.SettingsError) as error:
            assert "w.caffemodel" in str(error) and "\n" not in str(error)


def test_values_fewer_than_the_shape_says(files):
    shape = caffe_write.part(7, caffe_write.part(1, bytes([4, 3, 3, 3])))
    for values in (0, 107, 109):
        one = shape + caffe_write.part(5, bytes(4 * values))
        layer = (
            caffe_write.part(1, "conv") + caffe_write.part(7, one) + caffe_write.part(7, caffe_write.blob(np.zeros(4)))
        )
        with pytest.raises(errors.DataError, match=r"w\.caffemodel.*conv"):
            caffe.network(files[0], weights_of(files, caffe_write.part(100, layer)))


def test_other_files_in_place_of_weights(files, tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.save_weights(tmp_path / "x.weights.h5")
    model.save(tmp_path / "x.keras")
    (tmp_path / "x.prototxt").write_text(GOOD)
    np.save(tmp_path / "x.npy", np.ones(30))
    (tmp_path / "x.html").write_text("<!DOCTYPE html>\n<html>404</html>\n")
    (tmp_path / "x.caffemodel").write_bytes(caffe_write.caffemodel({}))
    lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
    (tmp_path / "lfs.caffemodel").write_text(lfs)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(errors.DataError, match=re.escape(str(path))) as error:
            caffe.network(files[0], path)
        one_line(error)


def shapes_in(message, *shapes):
    """Tell whether a message has both shapes, however it writes them."""
    return all(re.search(r"\b" + r"\D{1,4}".join(map(str, shape)) + r"\b", message) for shape in shapes)


@pytest.mark.parametrize(
    ("layer", "index", "shape"),
    [
        ("conv", 0, (4, 2, 3, 3)),
        ("conv", 0, (4, 3, 5, 5)),
        ("conv", 0, (6, 3, 3, 3)),
        ("conv", 1, (5,)),
        ("ip", 0, (5, 99)),
        ("ip", 0, (16, 5)),
        ("ip", 0, (7, 16)),
        ("ip", 1, (4,)),
    ],
)
def test_weights_that_contradict_the_network_say_both_shapes(files, layer, index, shape):
    blobs = {name: list(arrays) for name, arrays in files[1].items()}
    own = blobs[layer][index].shape
    blobs[layer][index] = np.zeros(shape, np.float32)
    with pytest.raises(errors.SettingsError) as error:
        caffe.network(files[0], weights_of(files, caffe_write.caffemodel(blobs)))
    message = one_line(error).replace(str(files[0].parent), "")
    assert layer in message and shapes_in(message, own, shape), message


@pytest.mark.parametrize("change", ["fewer", "more"])
def test_another_number_of_blobs(files, change):
    blobs = {name: list(arrays) for name, arrays in files[1].items()}
    blobs["conv"] = blobs["conv"][:1] if change == "fewer" else [*blobs["conv"], np.zeros(4, np.float32)]
    with pytest.raises((errors.SettingsError, errors.DataError), match="conv"):
        caffe.network(files[0], weights_of(files, caffe_write.caffemodel(blobs)))


def test_ones_before_a_shape_may_be_missing_or_there(files):
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 3), np.float32)
    plain = np.asarray(caffe.network(files[0], weights_of(files, caffe_write.caffemodel(files[1])))(x))
    blobs = {
        name: [array.reshape((1,) * (4 - array.ndim) + array.shape) for array in arrays]
        for name, arrays in files[1].items()
    }
    assert np.array_equal(caffe.network(files[0], weights_of(files, caffe_write.caffemodel(blobs)))(x), plain)


def test_what_does_not_match_is_reported(files, capsys):
    blobs = {"conv": files[1]["conv"], "other": [np.zeros(3)], "fc8": [np.zeros(2)]}
    caffe.network(files[0], weights_of(files, caffe_write.caffemodel(blobs)))
    said = capsys.readouterr().out.splitlines()
    only_there = [line for line in said if re.search(r"\bother\b", line) and re.search(r"\bfc8\b", line)]
    only_here = [line for line in said if re.search(r"\bip\b", line)]
    assert len(only_there) == len(only_here) == 1 and only_there != only_here, said
    assert not any(re.search(r"\b(prob|pool)\b", line) for line in said), said  # they have no weights


def test_what_matches_is_not_reported(files, capsys):
    caffe.network(files[0], weights_of(files, caffe_write.caffemodel(files[1])))
    assert not re.search(r"\b(not|ip|conv)\b", capsys.readouterr().out.replace(str(files[0].parent), ""))


def test_weights_of_which_nothing_matches(files):
    blobs = {"other": [np.zeros(3)]}
    with pytest.raises((errors.SettingsError, errors.DataError), match=r"w\.caffemodel"):
        caffe.network(files[0], weights_of(files, caffe_write.caffemodel(blobs)))


def test_a_copied_layer_keeps_its_file_value_and_the_others_their_filler(files):
    """A deploy file has no fillers. In Caffe such weights are 0 and never learn, so here they are drawn by xavier."""
    model = caffe.network(files[0], weights_of(files, caffe_write.caffemodel({"conv": files[1]["conv"]})))
    values = {tuple(weight.shape): np.asarray(weight) for weight in model.weights}
    assert np.array_equal(values[3, 3, 3, 4], np.transpose(files[1]["conv"][0], (2, 3, 1, 0)))
    assert values[16, 5].any() and abs(values[16, 5]).max() <= np.sqrt(3 / 16) and not values[5,].any()


REAL = {
    "bvlc_mnist__lenet": 10,
    "bvlc_mnist__lenet_train_test": (28, 28, 1, 10),
    "bvlc_cifar10__cifar10_quick": 10,
    "bvlc_cifar10__cifar10_quick_train_test": (32, 32, 3, 10),
    "bvlc_cifar10__cifar10_full": 10,
    "everpeace_mnist__lenet": 10,
    "everpeace_cifar10__cifar10_quick": 10,
    "squeezenet_SqueezeNet_v1.1__deploy": 1000,
    "mobilenet_mobilenet_deploy": 1000,
    "bvlc_bvlc_alexnet__deploy": 1000,
    "bvlc_bvlc_alexnet__train_val": (227, 227, 3, 1000),
    "bvlc_bvlc_googlenet__deploy": 1000,
    "kaiming_ResNet-50-deploy": 1000,
}
LARGE = {name: pytest.mark.by_hand for name in REAL if "alexnet" in name or "googlenet" in name or "ResNet" in name}


@pytest.mark.parametrize("name", [pytest.param(name, marks=LARGE.get(name, ())) for name in REAL])
def test_a_network_of_the_literature_opens(name, shared):
    if not (shared / "caffe").is_dir():
        pytest.skip("needs the collected Caffe networks beside the checkout, which are not there")
    *shape, classes = np.atleast_1d(REAL[name]).tolist()
    model = caffe.load(shared / "caffe" / f"{name}.prototxt", image_shape=tuple(shape) or None)
    assert model.output_shape == (None, classes) and model.inputs[0].dtype == "uint8"
