"""`caffe.load` finds the logits of a prototxt, refuses what Keras cannot express, and reports what it does not use."""

import sys

import caffe_write
import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import LOSS

from tfpar import cli, errors
from tfpar.diagnose import caffe_check
from tfpar.models import caffe
from tfpar.schedule import Stage
from tfpar.train import freezing

INPUT = 'input: "data" input_dim: 1 input_dim: 1 input_dim: 8 input_dim: 8\n'
FIRST = 'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 6 } }\n'
LAST = 'layer { name: "last" type: "InnerProduct" bottom: "ip" top: "last" inner_product_param { num_output: 4 } }\n'


@pytest.fixture
def load(tmp_path):
    def load(text, **options):
        (tmp_path / "n.prototxt").write_text(text)
        return caffe.load(tmp_path / "n.prototxt", **options)

    return load


def layer(kind, bottom, top, more="", name=None):
    bottoms = " ".join(f'bottom: "{word}"' for word in bottom.split())
    tops = " ".join(f'top: "{word}"' for word in top.split())
    return f'layer {{ name: "{name or top}" type: "{kind}" {bottoms} {tops} {more} }}\n'


def last_layer(model):
    return model.layers[-1].name


@pytest.mark.parametrize(
    ("rest", "phase", "expected"),
    [
        (layer("Softmax", "last", "prob"), "TEST", "last"),
        (layer("Softmax", "last", "prob") + layer("Accuracy", "prob label", "acc"), "TEST", "last"),
        (layer("SoftmaxWithLoss", "ip label", "a", "loss_weight: 0.3") + layer("SoftmaxWithLoss", "last label", "b"), "TEST", "last"),
        (layer("SoftmaxWithLoss", "ip label", "a") + layer("SoftmaxWithLoss", "last label", "b", "loss_weight: 0.3"), "TEST", "ip"),
        (layer("SoftmaxWithLoss", "last label", "loss", "include { phase: TRAIN }") + layer("Softmax", "last", "prob"), "TRAIN", "last"),
        (layer("ReLU", "last", "last", name="relu") + layer("Softmax", "last", "prob"), "TEST", "relu"),
        (layer("Softmax", "last", "prob") + layer("Flatten", "prob", "flat"), "TEST", "flat"),
        (layer("Softmax", "last", "last", name="prob") + layer("Dropout", "last", "last", name="drop"), "TEST", "drop"),
        (layer("Softmax", "last", "prob") + layer("Reshape", "prob", "flat", "reshape_param { shape { dim: [0, 4] } }"), "TEST", "flat"),
    ],
)  # fmt: skip
def test_the_logits_are_found(rest, phase, expected, load):
    model = load(INPUT + FIRST + LAST + rest, phase=phase)
    assert last_layer(model) == expected
    assert not any(isinstance(layer, keras.layers.Softmax) for layer in model.layers)


@pytest.mark.parametrize("kind", ["SoftmaxWithLoss", "Accuracy"])
def test_the_head_of_the_largest_loss_is_found_in_each_phase(kind, load):
    """As in GoogLeNet, whose first accuracy is of an auxiliary classifier, where the losses are of the training alone."""
    others = "".join(
        layer("SoftmaxWithLoss", f"{blob} label", f"loss {blob}", f"loss_weight: {weight} include {{ phase: TRAIN }}")
        for blob, weight in (("ip", 0.3), ("last", 1))
    )
    judges = layer(kind, "ip label", "a", "loss_weight: 0.3") + layer(kind, "last label", "b")
    for phase in ("TRAIN", "TEST"):
        assert last_layer(load(INPUT + FIRST + LAST + judges + others, phase=phase)) == "last"


def test_a_misspelt_blob_of_the_loss_is_an_error(load):
    with pytest.raises(errors.DataError, match="reads lost, which no layer"):
        load(INPUT + FIRST + LAST + layer("SoftmaxWithLoss", "lost label", "loss"))


@pytest.mark.parametrize(
    "inputs",
    [
        "".join(f'input: "{name}" input_dim: [1, 1, 8, 8] ' for name in ("data", "other")),
        "".join(f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ dim: [1, 1, 8, 8] }} }} }}\n'
                for name in ("data", "other")),
    ],
)  # fmt: skip
def test_a_second_input_is_an_error(inputs, load):
    with pytest.raises(
        errors.DataError,
        match="x of type Eltwise reads other, which no layer before it gives; correct it, or give one input alone",
    ):
        load(inputs + layer("Eltwise", "data other", "x"))


def test_a_name_of_weights_that_no_other_layer_has_shares_nothing(load):
    named = FIRST.replace("inner_product_param", 'param { name: "w" } inner_product_param')
    assert last_layer(load(INPUT + named + LAST)) == "last"
    again = named.replace('name: "ip"', 'name: "again"').replace('top: "ip"', 'top: "other"')
    with pytest.raises(errors.DataError, match=r"again .* some weights are shared \(w\); share all of them or none"):
        load(INPUT + named + again + layer("Eltwise", "ip other", "x"))


def test_the_old_form_of_dummy_data_states_the_shape(load):
    sides = "dummy_data_param { num: 9 num: 9 channels: 2 channels: 1 height: 8 height: 1 width: 6 width: 1 }"
    assert load(layer("DummyData", "", "data label", sides, "d") + FIRST).input_shape == (None, 8, 6, 2)


def test_a_head_of_several_layers_is_not_given_other_outputs(load):
    both = FIRST + LAST + layer("Concat", "ip last", "both")
    assert load(INPUT + both, num_classes=10).output_shape == (None, 10)
    with pytest.raises(errors.SettingsError, match="10 logits for 3 classes"):
        load(INPUT + both, num_classes=3)
    assert load(INPUT + FIRST + LAST + layer("ReLU", "last", "last", name="r"), num_classes=3).output_shape == (None, 3)


def test_the_logits_are_float32_in_mixed_precision(load):
    keras.config.set_dtype_policy("mixed_bfloat16")
    for rest in ("", layer("Concat", "ip last", "both")):
        model = load(INPUT + FIRST + LAST + rest)
        assert model.output.dtype == "float32" and model.get_layer("ip").compute_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        (FIRST + layer("AbsVal", "data", "ip", name="again"), r"again of type AbsVal has the tops \['ip'\]; give it one that no other"),
        (layer("Scale", "data data data", "x"), "x of type Scale is not supported here: 3 inputs"),
        (layer("Eltwise", "data data", "x", "eltwise_param { operation: PROD coeff: 1 coeff: 2 }"), "with 2 coefficients"),
        (layer("Eltwise", "data data", "data", name="x"), "x of type Eltwise is not supported here: Caffe sets its first bottom to 0"),
        (layer("Axpy", "data data", "x"), "x of type Axpy is not supported here: 2 inputs"),
        (FIRST + layer("Axpy", "ip data data", "x"), r"x of type Axpy is not supported here: inputs of \(6,\) and \(8, 8, 1\)"),
        (layer("Slice", "data", "p q", "slice_param { slice_point: 1 }"), "1 values cut at"),
        (layer("Pooling", "data", "p mask", "pooling_param { kernel_size: 2 }"), "2 outputs"),
        (layer("Convolution", "data", "c", 'param { name: "w" } convolution_param { num_output: 1 kernel_size: 3 bias_term: false }')
         + layer("Convolution", "c", "d", 'param { name: "w" } convolution_param { num_output: 1 kernel_size: 3 stride: 2 bias_term: false }'),
         "shared weights with other parameters"),
        (layer("Convolution", "data", "c", 'param { name: "w" lr_mult: 1 } convolution_param { num_output: 1 kernel_size: 3 bias_term: false }')
         + layer("Convolution", "c", "d", 'param { name: "w" lr_mult: 0 } convolution_param { num_output: 1 kernel_size: 3 bias_term: false }'),
         "shared weights with another lr_mult; give the same to all"),
        (FIRST + FIRST.replace('bottom: "data"', 'bottom: "ip"'), "a second layer with weights of this name"),
        # TensorFlow waits ten seconds for so much memory; the test after this one waits for none.
        pytest.param(
            layer("InnerProduct", "data", "x", "inner_product_param { num_output: 4000000000 }"), "x of type InnerProduct",
            marks=pytest.mark.by_hand,
        ),
    ],
)  # fmt: skip
def test_what_keras_cannot_express_is_an_error_with_its_layer(rest, words, load):
    with pytest.raises(errors.DataError, match=words):
        load(INPUT + rest)


@pytest.mark.parametrize(("first", "second", "trains"), [
    ("lr_mult: 0", "", False), ("lr_mult: 0", "lr_mult: 0", False), ("lr_mult: 0", "decay_mult: 1", False),
    ("", "lr_mult: 0", False), ("", "lr_mult: 2", True), ("lr_mult: nan", "", True),
])  # fmt: skip
def test_shared_weights_have_the_multipliers_of_the_layer_that_states_some(first, second, trains, load):
    text = 'param {{ name: "w" {} }} convolution_param {{ num_output: 1 kernel_size: 3 pad: 1 bias_term: false }}'
    two = layer("Convolution", "data", "c", text.format(first)) + layer("Convolution", "c", "d", text.format(second))
    model = load(INPUT + two + LAST.replace('"ip"', '"d"'))
    assert model.get_layer("c").trainable == trains


def test_a_layer_for_which_there_is_no_memory_is_an_error_with_its_name(load, monkeypatch):
    def exhausted(self, shape):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    monkeypatch.setattr(keras.layers.Dense, "build", exhausted)
    with pytest.raises(errors.DataError, match="layer ip of type InnerProduct is not supported here: OOM when"):
        load(INPUT + FIRST + LAST)


def test_names_of_kerass_operations_and_of_helpers_are_free_or_refused(load):
    text = layer("LRN", "data", "norm") + FIRST.replace('name: "ip"', 'name: "power"').replace('"data"', '"norm"')
    assert last_layer(load(INPUT + text)) == "power.2"
    convolution = "convolution_param { num_output: 1 kernel_size: 3 pad: 1 }"
    with pytest.raises(errors.DataError, match="give that layer another name"):
        load(
            INPUT
            + layer("Convolution", "data", "a", convolution, "a/pad")
            + layer("Convolution", "a", "b", convolution, "a")
            + FIRST.replace('"data"', '"b"')
        )


def test_more_layers_in_a_row_than_keras_can_follow_are_refused(load):
    row = "".join(layer("AbsVal", "data", "data", name=f"a{number}") for number in range(sys.getrecursionlimit()))
    with pytest.raises(errors.DataError, match=r"more layers in a row than Keras can follow; .*sys\.setrecursionlimit"):
        load(INPUT + row + FIRST)


def test_what_is_not_used_is_said(load, capsys):
    data = layer(
        "Data", "", "data label", "transform_param { scale: 0.1 mirror: true } data_param { batch_size: 5 }", "d"
    )
    load(data + FIRST + layer("SoftmaxWithLoss", "ip label", "loss", "loss_weight: 0.5"), image_shape=(8, 8, 1))
    said = capsys.readouterr().out
    assert "loss_weight 0.5 is not used" in said and "mirror and crop_size of the data layer are not used" in said
    assert "is not used; tfpar trains" not in said
    load(
        INPUT
        + layer("BatchNorm", "data", "b", "batch_norm_param { use_global_stats: false }")
        + FIRST.replace('"data"', '"b"')
    )
    assert "use_global_stats false is not used at prediction, which takes the averages: b" in capsys.readouterr().out
    load(INPUT + FIRST + layer("ReLU", "ip", "r", "propagate_down: false"))
    assert "propagate_down false is not used, so what they read is trained: r" in capsys.readouterr().out
    load(INPUT + FIRST + layer("HingeLoss", "ip label", "loss"))
    assert "HingeLoss is not used; tfpar trains with the cross-entropy" in capsys.readouterr().out
    assert "assumed" not in said  # the data layer states the preprocessing of gray images


def test_an_input_for_labels_may_come_first(load):
    label = 'layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 1 } } }\n'
    image = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 8 dim: 9 } } }\n'
    assert load(label + image + FIRST).input_shape == (None, 8, 9, 2)
    data = layer("HDF5Data", "", "label", "", "first") + layer(
        "Data", "", "data", "transform_param { scale: 0.5 }", "second"
    )
    model = load(data + FIRST + layer("SoftmaxWithLoss", "ip label", "loss"), image_shape=(8, 9, 2))
    assert model.input_shape == (None, 8, 9, 2) and model.get_layer("scaled").scale == 0.5
    both = 'input: "label" input_shape { dim: 1 } input: "data" input_shape { dim: 1 dim: 2 dim: 8 dim: 9 }\n'
    assert load(both + FIRST).input_shape == (None, 8, 9, 2)
    both = 'layer { name: "d" type: "Input" top: "label" top: "data" input_param { shape { dim: 1 } shape { dim: [1, 2, 8, 9] } } }\n'
    assert load(both + FIRST).input_shape == (None, 8, 9, 2)
    assert load(both.replace("Input", "DummyData").replace("input_p", "dummy_data_p") + FIRST).input_shape == (
        None,
        8,
        9,
        2,
    )


def test_constants_stay_when_a_stage_trains_everything(load):
    text = layer("LRN", "data", "norm") + layer(
        "BatchNorm", "norm", "bn", "batch_norm_param { use_global_stats: true }"
    )
    model = load(INPUT + text + FIRST.replace('"data"', '"bn"'))
    model.compile("sgd", LOSS)
    with freezing.at(model, [Stage(1, 0.1, trainable="all")], 0):
        assert [weight.path for weight in model.trainable_weights] == ["ip/kernel", "ip/bias"]
        assert not model.get_layer("bn").trainable


def test_a_weight_of_nan_is_a_difference(tmp_path, capsys, monkeypatch):
    (tmp_path / "n").write_text(INPUT + FIRST)
    blobs = {"ip": [np.full((6, 64), np.nan, np.float32), np.zeros(6, np.float32)]}
    (tmp_path / "w").write_bytes(caffe_write.caffemodel(blobs))
    ours = {"ip": np.full((1, 6), np.nan)}
    monkeypatch.setattr(caffe_check, "_by_opencv", lambda *_: ours)
    assert cli.main(["caffe", "check", str(tmp_path / "n"), str(tmp_path / "w")]) == 65
    monkeypatch.setattr(caffe_check, "_by_opencv", lambda *_: {})
    assert cli.main(["caffe", "check", str(tmp_path / "n"), str(tmp_path / "w")]) == 69
    assert "nothing was compared" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("solver", "words"),
    [
        ('lr_policy: "fixed" weight_decay: -0.1', "must be a number from 0"),
        ('lr_policy: "fixed" momentum: nan', "must be a number from 0"),
        ('lr_policy: "fixed" regularization_type: "L3"', "regularization_type 'L3'"),
        ('lr_policy: "fixed" momentum2: -1', "s: momentum2 must be a number from 0"),
        ('lr_policy: "step" stepsize: -2', "s: lr_policy step, type SGD: steps=-2: give a whole number"),
        ('lr_policy: "exp" gamma: 7', "s: lr_policy exp, type SGD: gamma=7.0: give a number from 0 to 1"),
        ('lr_policy: "step" gamma: 0.1', "needs stepsize"),
        ('lr_policy: "multistep" gamma: 0.1', "needs stepvalue"),
    ],
)
def test_a_solver_that_says_too_little_or_nonsense_is_refused(solver, words, load, tmp_path):
    model = load(layer("Data", "", "data label", "data_param { batch_size: 5 }", "d") + FIRST, image_shape=(8, 8, 1))
    (tmp_path / "s").write_text(f"base_lr: 0.1 max_iter: 5 {solver}")
    with pytest.raises(errors.DataError, match=words):
        caffe.solver(tmp_path / "s", model, examples=10)
    assert model.get_layer("ip").kernel_regularizer is None


@pytest.mark.parametrize("param", ["decay_mult: -1", "decay_mult: nan", "lr_mult: -1", "lr_mult: inf"])
def test_multipliers_that_no_optimizer_can_use_are_refused(param, load, tmp_path):
    text = FIRST.replace("inner_product_param", f"param {{ {param} }} inner_product_param")
    model = load(layer("Data", "", "data label", "data_param { batch_size: 5 }", "d") + text, image_shape=(8, 8, 1))
    (tmp_path / "s").write_text('base_lr: 0.1 max_iter: 5 lr_policy: "fixed" weight_decay: 0.1')
    with pytest.raises(errors.DataError, match="lr_mult and decay_mult must be from 0; correct its prototxt"):
        caffe.solver(tmp_path / "s", model, examples=10)
    assert model.get_layer("ip").kernel_regularizer is None


def test_what_a_solver_says_and_its_optimizer_has_not_is_noted(load, tmp_path):
    model = load(layer("Data", "", "data label", "data_param { batch_size: 5 }", "d") + FIRST, image_shape=(8, 8, 1))
    (tmp_path / "s").write_text(
        'base_lr: 0.1 max_iter: 5 lr_policy: "fixed" momentum: 0.9 rms_decay: 0.98 type: "RMSProp"'
    )
    assert caffe.solver(tmp_path / "s", model, examples=10).notes[0] == "not used: momentum"
    (tmp_path / "s").write_text(
        'base_lr: 0.1 max_iter: 5 lr_policy: "exp" gamma: 0.9 power: 2 stepsize: 3 momentum: 0.9'
    )
    assert caffe.solver(tmp_path / "s", model, examples=10).notes == ["not used: stepsize, power"]


@pytest.mark.parametrize(("param", "noted"), [("param { decay_mult: 0 }", True), ("param { lr_mult: 1 }", False)])
def test_multipliers_without_a_solver_are_noted(param, noted, digits, tmp_path, capsys):
    (tmp_path / "n").write_text(
        INPUT + FIRST.replace("inner_product_param", f"{param} inner_product_param").replace("6", "10")
    )
    command = [
        "train",
        str(digits.directory),
        "--model",
        f"caffe:{tmp_path / 'n'}",
        "--dry-run",
        "--run",
        str(tmp_path / "run"),
    ]
    assert cli.main(command) == 0
    assert ("its lr_mult and decay_mult take effect with --solver only" in capsys.readouterr().out) == noted
