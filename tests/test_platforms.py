"""Latency and throughput are measured as they say, and a way that answers otherwise than Keras is not shown as if it did."""

import functools
import json
import sys
import time
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import tiny

from tfpar import cli, errors, platforms, prepare, train

KERAS = ["predict", "model(x)", "tf.function", "XLA"]
IMAGES, LABELS = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), np.uint8), np.arange(300) % 10


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("platforms")
    data = prepare.dataset((IMAGES, LABELS), place / "data")
    return train.run(tiny(), data, place / "run", stages=[train.Stage(1, 0.1)], global_batch_size=32, verbose=0)


@pytest.fixture
def without_litert(monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)


@pytest.fixture
def short(monkeypatch):
    """Let the command measure with the fewest calls."""
    monkeypatch.setattr(platforms, "measure", functools.partial(platforms.measure, seconds=0))


def test_latency_is_that_of_single_images_and_throughput_that_of_the_batch():
    given = []

    def f(images):
        given.append(images)
        time.sleep(0.02 if len(given) % 10 == 0 else 0.002)

    p50, p99 = platforms.latency(f, IMAGES[:7], seconds=0)
    assert 0.002 <= p50 < 0.01 < p99
    assert len(given) == 33 and all(np.array_equal(image, IMAGES[[i % 7]]) for i, image in enumerate(given))
    given.clear()
    platforms.latency(f, IMAGES, seconds=0.3)
    assert 50 < len(given) <= 153  # of which three warm up
    given.clear()
    assert 10 / 0.02 < platforms.throughput(f, IMAGES[:10], seconds=0) < 10 / 0.002
    assert [len(images) for images in given] == [10] * 6


@pytest.mark.parametrize("measured", [platforms.latency, platforms.throughput])
@pytest.mark.parametrize(
    ("images", "seconds", "said"),
    [
        (IMAGES[:0], 0, "give .* N at least 1"),
        (IMAGES / 255, 0, "float64.*give .* uint8"),
        (IMAGES[0], 0, "give .* uint8"),
        (None, 0, "give .* uint8"),
        (IMAGES, -1, "seconds=-1: give a number from 0 to 600"),
        (IMAGES, float("nan"), "seconds=nan: give"),
    ],
)
def test_what_cannot_be_measured_is_refused(measured, images, seconds, said):
    with pytest.raises(errors.SettingsError, match=said):
        measured(len, images, seconds=seconds)


def test_the_ways_of_keras_give_its_logits_and_a_line_says_that_litert_is_left_out(model, without_litert, capsys):
    found, expected = platforms.ways(model, IMAGES), np.asarray(model(IMAGES[:5], training=False))
    assert list(found) == KERAS
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 1 and "LiteRT is left out: " in told[0] and "pip install 'tfpar[litert]'" in told[0]
    for f in found.values():
        logits = f(IMAGES[:5])
        assert type(logits) is np.ndarray and np.abs(logits - expected).max() < 1e-5


def test_a_gpu_gets_rows_and_a_copy_of_its_own(model, without_litert, monkeypatch):
    """There is none here: another logical CPU stands for the device, which the names of the rows call GPU."""
    of_keras = platforms._of_keras
    placed = {"CPU": "CPU:0", "GPU": "CPU:1"}
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: ["one"])
    monkeypatch.setattr(platforms, "_of_keras", lambda model, device: of_keras(model, placed[device]))
    found = platforms.ways(model, IMAGES)
    assert list(found) == [f"{name} on the {device}" for device in placed for name in KERAS]
    expected = np.asarray(model(IMAGES[:5], training=False))
    assert all(np.abs(f(IMAGES[:5]) - expected).max() < 1e-5 for f in found.values())


def test_it_computes_on_the_device_that_it_names(model, monkeypatch):
    found, seen = platforms._of_keras(model, "CPU:1"), []
    monkeypatch.setattr(platforms, "np", SimpleNamespace(asarray=lambda x: seen.append(x) or np.asarray(x)))
    for name in KERAS[1:]:  # predict itself returns NumPy's arrays
        found[name](IMAGES[:2])
    assert [logits.device[-5:] for logits in seen] == ["CPU:1"] * 3


@pytest.mark.parametrize(("error", "refused"), [(1e-6, False), (1e-3, True), (np.nan, True)])
def test_litert_must_agree_with_keras(model, monkeypatch, error, refused):
    def answer(images):
        return np.asarray(model(images, training=False)) + np.eye(10, dtype="float32")[0] * error

    monkeypatch.setattr(platforms, "_of_keras", lambda *_: {})
    monkeypatch.setattr(platforms, "_of_litert", lambda *_: {platforms.LITERT: answer})
    if refused:
        with pytest.raises(RuntimeError, match="LiteRT float32: its logits differ from Keras' by"):
            platforms.measure(model, IMAGES, LABELS, seconds=0)
    else:
        assert 0 < platforms.measure(model, IMAGES, LABELS, seconds=0)[0].difference < 1e-4


def test_a_row_counts_right_answers_and_reports_the_difference_of_int8(monkeypatch):
    perfect = np.eye(10, dtype="float32")[LABELS]

    def model(images, training):
        return tf.constant([perfect[np.flatnonzero((image == IMAGES).all((1, 2, 3)))[0]] for image in images])

    def coarse(images):
        logits = model(images, training=False).numpy()
        logits[:, 3] += 1.5
        return logits

    monkeypatch.setattr(platforms, "_of_keras", lambda *_: {"predict": lambda images: model(images, False).numpy()})
    monkeypatch.setattr(platforms, "_of_litert", lambda *_: {"LiteRT int8": coarse})
    for batch, compared in ((20, 20), (40, 30)):  # the images repeat in a batch, and count once
        exact, int8 = platforms.measure(model, IMAGES[:30], LABELS[:30], batch=batch, seconds=0)
        assert (exact.difference, exact.correct, exact.images) == (0, compared, compared)
        assert (int8.difference, int8.correct, int8.images) == (1.5, compared // 10, compared)
    with pytest.raises(errors.SettingsError, match="batch=0: give a whole number"):
        platforms.measure(model, IMAGES, LABELS, batch=0)
    assert "1,500.0 us" in platforms.table([exact._replace(p50=0.0015)])


def test_the_picture_has_logarithmic_axes_and_a_name_for_each_point():
    axes = platforms.draw({"predict": (0.07, 4e3), "LiteRT": (2e-6, 3e6)}).axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in axes.texts] == ["LiteRT", "predict"]  # the fastest first


def test_the_command_prints_a_table_and_draws(run, without_litert, short, capsys):
    assert cli.main(["platforms", str(run.directory), "--batch", "20"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("LiteRT is left out") and told[-1].endswith("platforms.png")
    assert [line.split("  ")[0] for line in told[2:-1]] == KERAS and all("of 20" in line for line in told[2:-1])
    assert (run.directory / "platforms.png").read_bytes().startswith(b"\x89PNG")


def test_bad_input_is_one_line(run, tmp_path, monkeypatch, capsys):
    changed = tmp_path / "changed"
    changed.mkdir()
    facts = json.loads((run.directory / "run.json").read_text())
    for change, code, said in (
        ({"finished": False}, 66, "the run is not finished"),
        ({"data": facts["data"] | {"fingerprint": "0"}}, 78, "prepared again since the run"),
        ({"data": facts["data"] | {"directory": str(tmp_path / "gone")}}, 66, "no such directory"),
    ):
        (changed / "run.json").write_text(json.dumps(facts | change))
        assert cli.main(["platforms", str(changed)]) == code
        told = capsys.readouterr().err
        assert said in told and told.count("\n") == 1
    assert cli.main(["platforms", str(tmp_path)]) == 66
    with pytest.raises(SystemExit) as ended:
        cli.main(["platforms", str(run.directory), "--batch", "0"])
    assert ended.value.code == 2


@pytest.mark.extra
def test_litert_agrees_in_float32_and_nearly_in_int8(run, short, capsys):
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed; it comes with the extra [litert]")
    assert cli.main(["platforms", str(run.directory), "--batch", "20"]) == 0
    told = capsys.readouterr().out.splitlines()
    rows = {line.split("  ")[0]: line.split() for line in told[1:-1]}
    assert list(rows) == [*KERAS, "LiteRT float32", "LiteRT int8"]
    assert float(rows["LiteRT float32"][-4]) < 1e-4 < float(rows["LiteRT int8"][-4]) < 0.2


@pytest.mark.extra
def test_litert_is_left_out_of_a_network_in_16_bits(capsys):
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed; it comes with the extra [litert]")
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = tiny()
    finally:
        keras.config.set_dtype_policy("float32")
    assert list(platforms.ways(model, IMAGES)) == KERAS
    assert "LiteRT is left out: Select TensorFlow op" in capsys.readouterr().out
