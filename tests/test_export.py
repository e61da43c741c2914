"""An exported model answers like the run, or it is not kept."""

import sys

import keras
import numpy as np
import pytest
from networks import LOSS, tiny

from tfpar import cli, errors, export, prepare, train

PACKAGES = {"saved_model": [], "tflite": ["ai_edge_litert"], "onnx": ["tf2onnx", "onnxruntime"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    draw = np.random.default_rng(0)
    place = tmp_path_factory.mktemp("export")
    data = prepare.dataset((draw.integers(0, 256, (300, 8, 8, 1), np.uint8), np.arange(300) % 10), place / "data")
    return train.run(tiny(), data, place / "run", stages=[train.Stage(1, 0.1)], global_batch_size=32, verbose=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "to", ["saved_model", *[pytest.param(to, marks=pytest.mark.extra) for to in ("tflite", "onnx")]]
)
def test_an_exported_model_answers_like_the_run(run, to, tmp_path, capsys):
    for package in PACKAGES[to]:
        pytest.importorskip(package, reason=f"{package} is not installed; it comes with the extra [export]")
    assert cli.main(["export", str(run.directory), "--to", to, "--out", str(tmp_path / "out" / "model.tflite")]) == 0
    assert "get the probabilities of the run" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.tflite"]
    assert cli.main(["export", str(run.directory), "--to", to, "--out", str(tmp_path / "out" / "model.tflite")]) == 73
    assert "exists already" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["bfloat16", "float16"])
def test_the_last_digits_of_16_bits_may_differ(run, policy, tmp_path):
    data = prepare.load(run.facts["data"]["directory"])
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    for _ in range(3):
        x = keras.layers.Dense(64, "gelu", kernel_initializer="he_normal", dtype=f"mixed_{policy}")(x)
    model = keras.Model(inputs, keras.layers.Dense(10, dtype=f"mixed_{policy}")(x))
    model.compile(keras.optimizers.SGD(), LOSS)
    trained = train.run(model, data, tmp_path / "run", stages=[train.Stage(1, 0.1)], global_batch_size=32, verbose=0)
    assert export.write(trained.directory, "saved_model").exists()


@pytest.mark.slow
def test_a_model_that_answers_otherwise_is_not_kept(run, tmp_path, monkeypatch, capsys):
    read = export._saved_model
    monkeypatch.setitem(
        export._READERS, "saved_model", lambda path: lambda images: read(path)(images) + np.eye(10)[0] * 1e-3
    )
    assert cli.main(["export", str(run.directory), "--to", "saved_model", "--out", str(tmp_path / "out")]) == 70
    assert "differ from the model's by" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_missing_package_and_an_unfinished_run_are_told(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "tf2onnx", sys)
    with pytest.raises(errors.Unavailable, match=r"onnx needs onnxruntime, .* pip install 'tfpar\[export\]'"):
        export.write(run.directory, "onnx")
    with pytest.raises(errors.SettingsError, match="to='caffe': give saved_model or tflite or onnx"):
        export.write(run.directory, "caffe")
    monkeypatch.setattr(type(run), "finished", property(lambda _run: False))
    with pytest.raises(errors.InputNotFound, match="the run is not finished"):
        export.write(run.directory, "saved_model")
