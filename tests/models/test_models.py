"""Models: uint8 in, logits out, built-in layers only."""

import functools
import subprocess
import sys

import keras
import numpy as np
import pytest

from tfpar import errors, models
from tfpar.models import networks

BATCH = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), np.uint8)


LARGE = [pytest.param(name, marks=pytest.mark.by_hand) for name in ("ResNet50", "VGG16", "EfficientNetB0")]


@functools.cache
def built(name):
    """Tests that do not change it share it: a large network takes seconds."""
    keras.utils.set_random_seed(1)
    return models.build(name, (32, 32, 3), 7)


@pytest.mark.parametrize("name", [*list(networks.OWN)[:2], "resnet18_half", "resnet20", "MobileNetV2", *LARGE])
def test_uint8_in_logits_out_and_loads_without_tfpar(name, tmp_path):
    model = built(name)
    logits = model.predict(BATCH, verbose=0)
    assert model.inputs[0].dtype == "uint8"
    assert logits.shape == (2, 7) and logits.dtype == np.float32 and not np.allclose(logits.sum(axis=1), 1)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras", safe_mode=True)
    assert np.array_equal(loaded.predict(BATCH, verbose=0), logits)


@pytest.mark.slow
def test_a_saved_model_opens_where_tfpar_is_not_imported(tmp_path):
    models.build("MobileNetV2", (32, 32, 1), 3).save(tmp_path / "m.keras")
    program = (
        f"import sys, keras; keras.saving.load_model({str(tmp_path / 'm.keras')!r}); print('tfpar' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr[-500:]


def test_sizes_are_those_of_the_papers():
    assert models.small_cnn((28, 28, 1), 10).count_params() == 73114
    counts = {depth: models.resnet((32, 32, 3), 10, depth=depth).count_params() for depth in (20, 56)}
    assert 0.27e6 < counts[20] < 0.28e6 and 0.85e6 < counts[56] < 0.87e6  # table 6 of He et al.
    assert (
        models.resnet18((224, 224, 3), 1000).count_params() == 11_699_112
    )  # 11,689,512 of torchvision and 9,600 averages


def test_logits_are_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    model = models.resnet((8, 8, 1), 4)
    assert model.outputs[0].dtype == "float32" and model.layers[2].compute_dtype == "float16"


def test_our_batch_normalization_follows_quickly():
    layers = models.resnet((8, 8, 1), 4).layers
    assert {layer.momentum for layer in layers if isinstance(layer, keras.layers.BatchNormalization)} == {0.9}
    body = built("MobileNetV2").layers[-2]  # where Keras has 0.999
    assert {layer.momentum for layer in body.layers if isinstance(layer, keras.layers.BatchNormalization)} == {0.9}


@pytest.mark.parametrize("name", ["MobileNetV2", *LARGE])
def test_preprocessing_is_the_backbones_own(name):
    model = built(name)
    body = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    module = sys.modules[getattr(keras.applications, name).__module__]
    features = body.predict(module.preprocess_input(BATCH.astype("float32")), verbose=0)
    expected = model.get_layer("logits")(features)
    assert np.allclose(model.predict(BATCH, verbose=0), expected, atol=1e-5)


def test_frozen_backbone_with_a_weights_file_trains_its_head(tmp_path):
    keras.utils.set_random_seed(2)
    source = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(32, 32, 3))
    source.save_weights(tmp_path / "b.weights.h5")
    model = models.backbone("MobileNetV2", (32, 32, 3), 3, weights=str(tmp_path / "b.weights.h5"), freeze=True)
    assert [v.path.split("/")[-2] for v in model.trainable_variables] == ["logits", "logits"]
    body = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    assert all(np.array_equal(a, b) for a, b in zip(body.get_weights(), source.get_weights(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        (("nothing", (32, 32, 3), 3), errors.SettingsError, "model 'nothing' is unknown; give small_cnn"),
        (("MobileNetV2", (8, 8, 3), 3), errors.SettingsError, "at least 32x32"),
        (("small_cnn", (2, 2, 1), 3), errors.SettingsError, "at least 4x4"),
        (("resnet20", (4, 4, 1), 3), errors.SettingsError, "at least 8x8"),
    ],
)
def test_what_cannot_be_built(arguments, kind, text):
    with pytest.raises(kind, match=text):
        models.build(*arguments)


def test_weights_that_do_not_fit(tmp_path):
    models.small_cnn((8, 8, 1), 3).save_weights(tmp_path / "w.weights.h5")
    with pytest.raises(errors.InputNotFound, match="no such file of weights"):
        models.build("small_cnn", (8, 8, 1), 3, weights=str(tmp_path / "no.h5"))
    with pytest.raises(errors.SettingsError, match="do not fit"):
        models.build("small_cnn", (8, 8, 1), 4, weights=str(tmp_path / "w.weights.h5"))
    with pytest.raises(errors.SettingsError, match="weights"):
        models.build("MobileNetV2", (32, 32, 3), 3, weights=str(tmp_path / "w.weights.h5"))
    with pytest.raises(errors.SettingsError, match="no pretrained backbone"):
        models.build("small_cnn", (8, 8, 1), 3, freeze=True)


def saved(path, *arguments):
    keras.utils.set_random_seed(1)
    model = models.build(*arguments)
    model.save(path)
    return model


@pytest.mark.parametrize("name", ["small_cnn", pytest.param("MobileNetV2", marks=pytest.mark.by_hand)])
def test_a_model_begins_with_the_layers_of_another_one(tmp_path, capsys, name):
    source = saved(tmp_path / "model.keras", name, (32, 32, 3), 3)
    for weights in (tmp_path, str(tmp_path / "model.keras")):  # a run, and a model
        model = models.build(name, (32, 32, 3), 5, weights=weights, freeze=True)
        pairs = list(zip(source.weights, model.weights, strict=True))
        assert all(np.array_equal(a, b) for a, b in pairs[:-2]) and pairs[-1][1].shape == (5,)
        assert [v.path.split("/")[-2:] for v in model.trainable_variables] == [["logits", "kernel"], ["logits", "bias"]]
        layers = {"small_cnn": 13, "MobileNetV2": 105}[name]
        said = capsys.readouterr().out
        assert said == f"{layers - 1} of {layers} layers loaded from {tmp_path / 'model.keras'}, head new\n"


def test_layers_that_do_not_fit_are_named(tmp_path, capsys):
    saved(tmp_path / "a.keras", "small_cnn", (32, 32, 1), 3)
    models.build("small_cnn", (32, 32, 3), 3, weights=tmp_path / "a.keras")
    said = capsys.readouterr().out
    assert said.startswith("11 of 13 layers loaded") and "not loaded: conv2d" in said
    assert "[(3, 3, 3, 16)], there [(3, 3, 1, 16)]" in said
    with pytest.raises(errors.SettingsError, match="no layer of it fits into resnet20"):
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="other")]).save(tmp_path / "b.keras")
        models.build("resnet20", (32, 32, 3), 3, weights=tmp_path / "b.keras")
    with pytest.raises(errors.InputNotFound, match="give none, imagenet, a file or a run"):
        models.build("resnet20", (32, 32, 3), 3, weights=tmp_path / "c.keras")
    (tmp_path / "d.keras").write_text("damaged")
    (tmp_path / "e.keras").write_bytes((tmp_path / "a.keras").read_bytes()[:3000])
    for name in ("d", "e"):
        with pytest.raises(errors.SettingsError, match=rf"{name}\.keras: cannot be loaded as a model"):
            models.build("resnet20", (32, 32, 3), 3, weights=tmp_path / f"{name}.keras")


def test_weights_that_are_no_path_and_a_folder_called_imagenet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenet").mkdir()
    with pytest.raises(errors.SettingsError, match="it has no pretrained backbone"):
        models.build("small_cnn", (8, 8, 1), 3, weights="imagenet")
    for weights in (["x"], 1.5):
        with pytest.raises(errors.SettingsError, match="weights="):
            models.build("small_cnn", (8, 8, 1), 3, weights=weights)


def test_a_normalization_is_copied_and_other_preprocessing_is_named(tmp_path, capsys):
    def network(*before, classes):
        inputs = keras.Input((8, 8, 3), dtype="uint8")
        x = inputs
        for layer in before:
            x = layer(x)
        return keras.Model(inputs, keras.layers.Dense(classes, name="logits")(keras.layers.Flatten()(x)))

    means = keras.layers.Normalization(mean=None)
    means.adapt(np.full((4, 8, 8, 3), 7, np.uint8))
    network(means, keras.layers.Rescaling(2.0), keras.layers.Conv2D(2, 3), classes=2).save(tmp_path / "a.keras")
    model = network(keras.layers.Normalization(), keras.layers.Conv2D(2, 3), classes=3)
    networks.transfer(model, tmp_path / "a.keras")
    assert "the networks differ in 1 Rescaling: check what they do to the pixels" in capsys.readouterr().out
    assert np.allclose(model.layers[1](np.full((1, 8, 8, 3), 7.0)), 0)
