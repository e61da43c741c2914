"""Every example of the docstrings runs, in a directory that has what they name, and gives what it says."""

import doctest
import importlib.util
import pkgutil
import shutil
from pathlib import Path

import caffe_write
import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import tiny
from PIL import Image

import tfpar
from tfpar import devices, engine, prepare, results, steps, train

NAMES = [
    module.name for module in pkgutil.walk_packages(tfpar.__path__, "tfpar.") if not module.name.endswith("__main__")
]
MODULES = [importlib.import_module(name) for name in NAMES]
TESTS = {
    test.name: test for module in MODULES for test in doctest.DocTestFinder(recurse=True).find(module) if test.examples
}
TESTS_OF_FPGA = Path(__file__).parent / "fpga"
MARKS = {"tfpar.workers.launcher": "by_hand", "tfpar.scaling.measuring.measure": "by_hand", "tfpar.fpga": "extra"}


class SaysOrIsSilent(doctest.OutputChecker):
    """An example without an expected output must not fail; what it prints, such as a progress bar, is not compared."""

    def check_output(self, want, got, flags):
        return not want or super().check_output(want, got, flags)


def build(strategy):
    with strategy.scope():
        return tiny()


def _write_caffe():
    """Write a small LeNet for deployment and for training, its weights, and a solver."""
    body = """layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param { num_output: 4 kernel_size: 5
      weight_filler { type: "xavier" } } }
    layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { kernel_size: 2 stride: 2 } }
    layer { name: "ip1" type: "InnerProduct" bottom: "pool1" top: "ip1" inner_product_param { num_output: 10
      weight_filler { type: "xavier" } } }"""
    inputs = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 8 dim: 8 } } }'
    data = """layer { name: "data" type: "Data" top: "data" top: "label" transform_param { scale: 0.00390625 }
      data_param { batch_size: 64 } }"""
    loss = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip1" bottom: "label" top: "loss" }'
    solver = 'base_lr: 0.01 momentum: 0.9 weight_decay: 0.0005 lr_policy: "inv" gamma: 0.0001 power: 0.75 max_iter: 40'
    Path("lenet.prototxt").write_text(f"{inputs}\n{body}")
    Path("lenet_train_test.prototxt").write_text(f"{data}\n{body}\n{loss}")
    Path("lenet_solver.prototxt").write_text(solver)
    shapes = {"conv1": [(4, 1, 5, 5), (4,)], "ip1": [(10, 16), (10,)]}
    blobs = {name: [np.ones(shape, np.float32) for shape in group] for name, group in shapes.items()}
    Path("lenet.caffemodel").write_bytes(caffe_write.caffemodel(blobs))


@pytest.fixture(scope="module")
def place(digits, tmp_path_factory):
    """A directory with data, runs and pictures under the names of the examples."""
    place = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        prepare.dataset("digits", "data/digits")
        stages = [train.Stage(10, 0.5), train.Stage(1, 0.02)]
        train.run(build(devices.strategy()), digits, "runs/digits", stages=stages, global_batch_size=64, verbose=0)
        for name in ("a", "b"):
            shutil.copytree("runs/digits", f"runs/{name}")
        for i in range(6):
            (place / "photos" / ("cat", "dog")[i % 2]).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 48), (40 * i, 90, 200)).save(place / "photos" / ("cat", "dog")[i % 2] / f"{i}.png")
        Image.new("RGB", (640, 480), "gray").save(place / "cat.jpg")
        shutil.copy(TESTS_OF_FPGA / "T.keras", "twin.keras")
        _write_caffe()
    return place


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[getattr(pytest.mark, MARKS[n])] if n in MARKS else []) for n in TESTS]
)
def test_example(name, place, digits, monkeypatch):
    if name == "tfpar.fpga" and not (importlib.util.find_spec("hgq") and shutil.which("verilator")):
        pytest.skip("needs the extra [fpga], and verilator from apt")
    monkeypatch.chdir(place)
    keras.utils.set_random_seed(0)
    strategy = devices.strategy()
    model = build(strategy)
    model.set_weights(results.Run("runs/digits").model().get_weights())
    names = {module.__name__.split(".")[-1]: module for module in MODULES}
    names |= {
        "tf": tf, "keras": keras, "np": np, "data": digits, "strategy": strategy, "model": model, "runs": place / "runs",
        "batches": engine.train_batches(digits.train, strategy, global_batch_size=64),
        "images": digits.validation.images, "labels": digits.validation.labels, "stages": [train.Stage(1, 0.1)],
        "run": results.Run("runs/digits"), "run_on_one": results.Run("runs/a"), "run_on_four": results.Run("runs/b"),
        "variables": model.variables, "Run": results.Run, "Stage": train.Stage, "build": lambda: tiny(),
        "gradients": [variable.value for variable in model.trainable_variables], "step": steps.Step(model, shards=2),
    }  # fmt: skip
    test = TESTS[name]
    test.globs = names | test.globs
    said = []
    runner = doctest.DocTestRunner(SaysOrIsSilent(), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert not runner.run(test, out=said.append, clear_globs=False).failed, "".join(said)
