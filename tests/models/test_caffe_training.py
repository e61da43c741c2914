"""Networks and solvers of Caffe in training: the formulas, the same bits on every number of replicas, and the command line."""

import os
import subprocess
import sys
from pathlib import Path

import caffe_write
import keras
import numpy as np
import pytest
from networks import LOSS
from same import same_files
from tensorflow.python.util import _pywrap_util_port

from tfpar import cli, devices, engine, errors, prepare, train
from tfpar.diagnose import caffe_check
from tfpar.models import caffe
from tfpar.models.caffe import files, layers, training
from tfpar.schedule import Schedule, Stage

DATA = 'layer { name: "d" type: "Data" top: "data" top: "label" include { phase: TRAIN } data_param { batch_size: 100 } }\n'
LINEAR = (
    DATA
    + """
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
)
# Each type of layer that trains or draws, and LRN, whose band must not train.
EVERY = (
    DATA
    + """
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  convolution_param { num_output: 8 kernel_size: 3 pad: 1 weight_filler { type: "msra" } } }
layer { name: "norm" type: "LRN" bottom: "conv" top: "norm" lrn_param { local_size: 3 alpha: 2 } }
layer { name: "depth/wise" type: "Convolution" bottom: "norm" top: "dw" convolution_param { num_output: 8 group: 8 kernel_size: 3
  stride: 2 bias_term: false weight_filler { type: "gaussian" std: 0.3 } } }
layer { name: "bn" type: "BatchNorm" bottom: "dw" top: "dw" batch_norm_param { moving_average_fraction: 0.9 } }
layer { name: "scale" type: "Scale" bottom: "dw" top: "dw" scale_param { bias_term: true } }
layer { name: "prelu" type: "PReLU" bottom: "dw" top: "dw" }
layer { name: "pool" type: "Pooling" bottom: "dw" top: "pool" pooling_param { pool: AVE kernel_size: 2 stride: 2 } }
layer { name: "cut" type: "Slice" bottom: "pool" top: "a" top: "b" slice_param { axis: 1 } }
layer { name: "sum" type: "Eltwise" bottom: "a" bottom: "b" top: "sum" eltwise_param { coeff: 1 coeff: -0.5 } }
layer { name: "both" type: "Concat" bottom: "sum" bottom: "a" top: "both" }
layer { name: "drop" type: "Dropout" bottom: "both" top: "both" dropout_param { dropout_ratio: 0.2 } }
layer { name: "ip" type: "InnerProduct" bottom: "both" top: "ip" inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
)
SOLVER = (
    'base_lr: 0.05 momentum: 0.9 weight_decay: 0.01 lr_policy: "inv" gamma: 0.01 power: 0.75 max_iter: {} type: "{}"'
)


@pytest.fixture
def write(tmp_path):
    def write(text, name="net.prototxt"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def trained(net, solver, data, directory, *, replicas=1, scale=1 / 256):
    """Train a network by a solver; return the first weights, the model and the run."""
    keras.utils.set_random_seed(0)
    with devices.strategy(simulate=replicas).scope():
        model = caffe.load(net, image_shape=data.image_shape, scale=scale, phase="TRAIN")
        first = [weight.numpy().astype(np.float64) for weight in model.trainable_variables]
        by = caffe.solver(solver, model, examples=len(data.train.labels))
        model.compile(by.optimizer, LOSS, metrics=["accuracy"])
    return first, model, train.run(model, data, directory, **by.settings(), shards=4, verbose=0)


def by_numpy(weights, bias, data, *, nesterov, steps=200, batch=100):
    """Return what Caffe's formulas give for `LINEAR` and `SOLVER`, in float64."""
    at, before, history = [weights, bias], None, [np.zeros_like(weights), np.zeros_like(bias)]
    for i in range(steps):
        chosen = engine.order(np.arange(i * batch, (i + 1) * batch), examples=len(data.train.labels), seed=0)
        x, y = data.train.images[chosen].reshape(batch, -1) / 256, data.train.labels[chosen]
        logits = x @ at[0] + at[1]
        slope = np.exp(logits - logits.max(axis=1, keepdims=True))
        slope /= slope.sum(axis=1, keepdims=True)
        slope[np.arange(batch), y] -= 1
        gradients = [x.T @ slope / batch + 0.01 * at[0], slope.sum(axis=0) / batch]
        rate = 0.05 * (1 + 0.01 * i) ** -0.75
        before, history = history, [0.9 * h + rate * m * g for h, m, g in zip(history, (1, 2), gradients, strict=True)]
        moves = [1.9 * h - 0.9 * b if nesterov else h for h, b in zip(history, before, strict=True)]
        at = [w - move for w, move in zip(at, moves, strict=True)]
    return at


@pytest.mark.parametrize("kind", ["SGD", "Nesterov"])
def test_sgd_with_decay_and_lr_mult_is_caffes(kind, write, digits, tmp_path):
    first, model, run = trained(write(LINEAR), write(SOLVER.format(200, kind), "s"), digits, tmp_path / "run")
    for weight, expected, start in zip(
        model.trainable_variables, by_numpy(*first, digits, nesterov=kind == "Nesterov"), first, strict=True
    ):
        assert abs(weight.numpy() - expected).max() <= 1e-6 * abs(expected).max()
        assert abs(expected - start).max() > 0.1
    assert run.history["step"].to_pylist()[-1] == 200  # inside of the twelfth epoch of 17 steps
    assert run.history.num_rows == 12


def by_formula(kind, gradients):
    """Return the weights that Caffe's formulas give with a rate of 0.01 and the solver's defaults, in float64."""
    weight, squares, moves = (np.zeros(gradients.shape[1]) for _ in range(3))
    for g in gradients:
        kept, added = {"AdaGrad": (1, 1), "RMSProp": (0.99, 0.01), "AdaDelta": (0.9, 0.1)}[kind]
        squares = kept * squares + added * g**2
        if kind == "AdaDelta":
            move = g * np.sqrt((moves + 1e-8) / (squares + 1e-8))
            moves = kept * moves + added * move**2
        else:
            move = g / (np.sqrt(squares) + 1e-8)
        weight = weight - 0.01 * move
    return weight


@pytest.mark.parametrize("kind", ["AdaGrad", "RMSProp", "AdaDelta"])
def test_delta_is_outside_of_the_root_where_it_is_in_caffe(kind, write):
    solver = files.read_solver(write(f'type: "{kind}" base_lr: 0.01 momentum: 0.9', "s"))
    gradients = np.random.default_rng(0).normal(size=(40, 4)) * 10.0 ** -np.arange(4)
    weight, optimizer = keras.Variable(np.zeros(4)), training._optimizer(solver)
    for gradient in gradients:
        optimizer.apply([gradient.astype(np.float32)], [weight])
    np.testing.assert_allclose(weight, by_formula(kind, gradients), rtol=1e-3)


@pytest.mark.slow
@pytest.mark.arithmetic
def test_every_layer_gives_the_same_bits_on_one_and_four_replicas(write, digits, tmp_path):
    net, solver = write(EVERY), write(SOLVER.format(12, "SGD"), "s")
    runs = [trained(net, solver, digits, tmp_path / f"run{n}", replicas=n)[2] for n in (1, 4)]
    assert same_files(*runs)
    band = [layer for layer in runs[0].model().layers if layer.name == "norm.band"]
    assert set(band[0].get_weights()[0].ravel()) == {0.0, 1.0}
    # The saved model holds nothing of tfpar, compiled with lr_mult or not.
    program = (
        "import sys; sys.modules['tfpar'] = None\nimport keras, numpy as np\n"
        "images = np.load(sys.argv[2])\n"
        "np.save(sys.argv[3], keras.saving.load_model(sys.argv[1], safe_mode=True).predict(images, verbose=0))"
    )
    images = np.asarray(digits.validation.images[:32])
    np.save(tmp_path / "images.npy", images)
    paths = [str(runs[0].directory / "model.keras"), str(tmp_path / "images.npy"), str(tmp_path / "logits.npy")]
    now = {"TF_ENABLE_ONEDNN_OPTS": str(int(_pywrap_util_port.IsMklEnabled()))}  # the arithmetic of this process
    subprocess.run([sys.executable, "-c", program, *paths], env=os.environ | now, check=True, timeout=120)
    np.testing.assert_array_equal(np.load(paths[2]), runs[0].model().predict(images, verbose=0))


@pytest.mark.by_hand
@pytest.mark.parametrize("name", ["bvlc_mnist__lenet", "bvlc_cifar10__cifar10_full", "every"])
def test_real_networks_give_the_same_bits(name, shared, write, tmp_path):
    text = EVERY if name == "every" else DATA + (shared / "caffe" / f"{name}.prototxt").read_text()
    draw = np.random.default_rng(0)
    shape = (28, 28, 1) if "lenet" in name else (32, 32, 3)
    pictures = draw.integers(0, 256, (400, *shape), dtype=np.uint8), draw.integers(0, 10, 400)
    data = prepare.dataset(pictures, tmp_path / "data")
    net, solver = write(text), write(SOLVER.format(6, "SGD").replace("0.05", "0.001"), "s")
    runs = [trained(net, solver, data, tmp_path / f"run{n}", replicas=n)[2] for n in (1, 2, 4)]
    assert same_files(runs[0], runs[1]) and same_files(runs[0], runs[2])


@pytest.mark.parametrize(
    ("lines", "schedule"),
    [
        ('lr_policy: "fixed"', Schedule("constant", end=50)),
        ('lr_policy: "step" gamma: 0.5 stepsize: 20', Schedule("step", gamma=0.5, steps=(20,), end=50)),
        (
            'lr_policy: "multistep" gamma: 0.5 stepvalue: 20 stepvalue: 30',
            Schedule("multistep", 0.5, steps=(20, 30), end=50),
        ),
        (  # Caffe takes one step in an iteration
            'lr_policy: "multistep" gamma: 0.5 stepvalue: [20, 20, 20, 30]',
            Schedule("multistep", 0.5, steps=(20, 21, 22, 30), end=50),
        ),
        ('lr_policy: "poly" power: 0.5', Schedule("poly", power=0.5, steps=(50,), end=50)),
        ('lr_policy: "sigmoid" gamma: -0.1 stepsize: 20', Schedule("sigmoid", gamma=-0.1, steps=(20,), end=50)),
    ],
)
def test_each_policy_becomes_a_schedule_that_ends_at_max_iter(lines, schedule, write):
    model = caffe.load(write(LINEAR), image_shape=(8, 8, 1))
    solver = caffe.solver(write(f"base_lr: 0.1 max_iter: 50 iter_size: 2 {lines}", "s"), model, examples=1000)
    assert solver.stages == [Stage(10, 0.1, schedule=schedule)] and solver.global_batch_size == 200
    assert solver.lr_mult == {"ip/bias": 2.0} and solver.weight_decay == 0
    assert ("count as [20, 21, 22, 30]" in "".join(solver.notes)) == ("20, 20" in lines)


@pytest.mark.parametrize(
    ("solver", "exit_code", "words"),
    [
        ('base_lr: 0.1 max_iter: 5 lr_policy: "inv" gama: 1', 65, "gama"),
        ('base_lr: 0.1 max_iter: 5 lr_policy: "cosine"', 65, "lr_policy 'cosine'"),
        ('base_lr: 0.1 max_iter: 5 lr_policy: "fixed" type: "LARS"', 65, "LARS"),
        ('base_lr: 0.1 lr_policy: "fixed"', 65, "max_iter"),
        ('base_lr: 0.1 max_iter: 5 lr_policy: "fixed" clip_gradients: 0', 65, "give a number above 0, or leave it out"),
        ('base_lr: 0.1 max_iter: 5 lr_policy: "fixed" type: "SGD" solver_type: ADAM', 65, "type and solver_type"),
        ('base_lr: 0.1 max_iter: 5 lr_policy: "fixed" clip_gradients: 1 weight_decay: 0.1', 78, "clip_gradients"),
    ],
)
def test_a_solver_that_keras_cannot_follow_is_refused(solver, exit_code, words, write):
    model = caffe.load(write(LINEAR), image_shape=(8, 8, 1))
    with pytest.raises((errors.DataError, errors.SettingsError), match=words) as refused:
        caffe.solver(write(solver, "s"), model, examples=1000)
    assert refused.value.exit_code == exit_code


def test_a_solver_needs_a_network_of_caffe_and_a_batch_size(write):
    solver = write('base_lr: 0.1 max_iter: 5 lr_policy: "fixed"', "s")
    with pytest.raises(errors.SettingsError, match=r"caffe\.load"):
        caffe.solver(solver, keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]), examples=10)
    deploy = LINEAR.replace(DATA, 'input: "data" input_dim: 1 input_dim: 1 input_dim: 8 input_dim: 8\n')
    with pytest.raises(errors.SettingsError, match="no batch size"):
        caffe.solver(solver, caffe.load(write(deploy)), examples=10)


def test_lr_mult_0_freezes_and_adam_multiplies_the_rate(write, digits, tmp_path, capsys):
    net = write(
        EVERY.replace(
            "param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }", "param { lr_mult: 0 } param { lr_mult: 0 }"
        )
    )
    model = caffe.load(net, image_shape=(8, 8, 1))
    assert not model.get_layer("conv").trainable and "frozen by lr_mult 0: conv" in capsys.readouterr().out
    assert model.get_layer("depth.wise").trainable

    def moved(text):
        _, model, _ = trained(
            write(text),
            write('base_lr: 1e-3 max_iter: 1 lr_policy: "fixed" type: "Adam"', "s"),
            digits,
            tmp_path / "r" / str(len(text)),
        )
        return abs(model.get_layer("ip").bias.numpy()).max()

    assert moved(LINEAR) == pytest.approx(2 * moved(LINEAR.replace("lr_mult: 2 ", "")), rel=1e-3)


def test_the_command_line_trains_by_a_solver_and_refuses_what_contradicts_it(write, tmp_path, digits, capsys):
    command = ["train", str(digits.directory), "--model", f"caffe:{write(LINEAR)}", "--run", str(tmp_path / "run")]
    solver = ["--solver", str(write(SOLVER.format(20, "SGD"), "s"))]
    assert cli.main([*command, *solver, "--caffe-scale", "0.00390625", "--caffe-mean", "33"]) == 0
    assert "schedule" not in capsys.readouterr().err
    for given in (
        ["--stage", "1@0.1"],
        ["--optimizer", "sgd"],
        ["--global-batch-size", "64"],
        ["--weight-decay", "0"],
        ["--freeze"],
    ):
        assert cli.main([*command, *solver, *given]) == 78
        assert f"{given[0]} beside --solver" in capsys.readouterr().err
    assert cli.main(["train", str(digits.directory), *solver]) == 78
    assert cli.main([*command[:-1], str(tmp_path / "other"), *solver, "--caffe-mean", "no_such.binaryproto"]) == 66


@pytest.fixture
def convolution(write, tmp_path):
    """Return a prototxt and its caffemodel."""
    deploy = 'input: "data" input_dim: 1 input_dim: 3 input_dim: 9 input_dim: 9\n'
    text = """layer { name: "conv/a" type: "Convolution" bottom: "data" top: "a" convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "relu" type: "ReLU" bottom: "a" top: "a" }
layer { name: "norm" type: "LRN" bottom: "a" top: "norm" lrn_param { local_size: 3 alpha: 2 } }"""
    draw = np.random.default_rng(0)
    blobs = {"conv/a": [draw.normal(size=shape).astype(np.float32) for shape in ((4, 3, 3, 3), (4,))]}
    (tmp_path / "w.caffemodel").write_bytes(caffe_write.caffemodel(blobs))
    return str(write(deploy + text)), str(tmp_path / "w.caffemodel")


@pytest.mark.extra
def test_check_compares_with_opencv_and_names_the_first_layer_that_differs(convolution, shared, capsys, monkeypatch):
    cv2 = pytest.importorskip("cv2", reason="needs the extra caffe-check, which is not installed")
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        pytest.skip(f"OpenCV {cv2.__version__} no longer reads Caffe's files")
    picture = next((shared / "grocery_photos").rglob("*.jpg"))
    for image in ([], ["--image", str(picture)]):
        assert cli.main(["caffe", "check", *convolution, *image]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines[:3]] == ["conv/a", "relu", "norm"]
        assert all(float(line.split()[1]) < 5e-6 for line in lines[:3])
    text, odd = Path(convolution[0]).read_text(), Path(convolution[0]).with_name("odd.prototxt")
    swish = 'layer { name: "swish" type: "Swish" bottom: "a" top: "swish" swish_param { beta: 2 } }'
    of_training = swish.replace("swish_param", "include { phase: TRAIN } swish_param")
    joined = 'layer { name: "both" type: "Concat" bottom: "a" bottom: "a" top: "both" concat_param { concat_dim: 2 } }'
    cut = (
        'layer { name: "cut" type: "Slice" bottom: "a" top: "b" top: "c" slice_param { slice_dim: 2 slice_point: 3 } }'
    )
    for changed, said in (
        (text.replace("alpha: 2", "alpha: 2 k: 2"), "k of layer norm"),
        (text + joined, "concat_dim of layer both"),
        (text + joined.replace("2", "1"), ""),
        (text + cut, "slice_dim of layer cut"),
        (text + swish, "beta of layer swish"),
        (text + of_training, ""),
        (
            text
            + 'layer { name: "twice" type: "Power" bottom: "a" top: "a" include { phase: TRAIN } power_param { scale: 2 } }',
            "",
        ),
    ):
        odd.write_text(changed)
        assert cli.main(["caffe", "check", str(odd), convolution[1]]) == (69 if said else 0)
        assert f"OpenCV does not compute {said}" * bool(said) in capsys.readouterr().err
    x = np.zeros((1, 9, 9, 3), np.float32)
    assert caffe_check._by_opencv(*convolution, x, ["a layer that it knows by no name"]) == {}
    monkeypatch.setattr(layers, "ACROSS_CHANNELS", 7)  # so LRN is taken within a channel
    assert cli.main(["caffe", "check", *convolution]) == 65
    assert "layer norm is the first that differs" in capsys.readouterr().err


def test_check_without_opencv_says_that_nothing_was_compared(convolution, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert cli.main(["caffe", "check", *convolution]) == 69
    assert "nothing was compared" in capsys.readouterr().err


def test_a_mean_value_that_does_not_fit_names_the_file_and_a_given_mean_does_not(write):
    net = write(LINEAR.replace("layer {", "layer { transform_param { mean_value: 1 mean_value: 2 }", 1), "two_means")
    with pytest.raises(errors.SettingsError, match=r"two_means.*: mean_value=\[1\.0, 2\.0\]: give one number"):
        caffe.load(net, image_shape=(8, 8, 1))
    with pytest.raises(errors.SettingsError, match=r"^mean=\[1, 2, 3\]: give one number"):
        caffe.load(net, image_shape=(8, 8, 1), mean=[1, 2, 3])
