"""A twin becomes a circuit whose logits are Keras', as Verilog and as cells, or one line says why it does not."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from tfpar import cli, errors, fpga
from tfpar.fpga import hardware, tools

HERE = Path(__file__).parent
T = HERE / "T.keras"


@pytest.fixture
def extra():
    """Skip where the packages of the extra [fpga] are not installed."""
    for package in tools.PACKAGES:
        pytest.importorskip(package, reason=f"{package} is not installed; it comes with the extra [fpga]")


@pytest.fixture
def verilator(extra):
    for program in tools.PROGRAMS:
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed: apt-get install {' '.join(tools.PROGRAMS)}")


def model(*inner, scale=1 / 256, shape=(8, 8, 1)):
    """Return a chain of Rescaling and the layers given, untrained."""
    x = inputs = keras.Input(shape, dtype="uint8")
    for layer in (layers.Rescaling(scale), *inner):
        x = layer(x)
    return keras.Model(inputs, x)


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# ---- what is not there


def test_a_missing_extra_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "da4ml" else name)
    assert cli.main(["fpga", str(T), "digits", str(tmp_path / "circuit")]) == 69
    said = capsys.readouterr()
    assert said.err == "tfpar: a circuit needs da4ml, which is not installed. Type: pip install 'tfpar[fpga]'\n"
    assert not said.out and not list(tmp_path.iterdir())


def test_a_missing_simulator_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("PATH", "")
    assert cli.main(["fpga", str(T), "digits", str(tmp_path / "circuit")]) == 69
    assert capsys.readouterr().err == (
        "tfpar: a circuit needs verilator, which is not installed. Type: apt-get install verilator g++ make\n"
    )
    assert not list(tmp_path.iterdir())


# ---- the whole way


@pytest.mark.extra
@pytest.mark.timeout(1200)  # two minutes of one core
def test_all_logits_of_the_tiny_network_are_keras_down_to_the_cells(verilator, digits, tmp_path, capsys):
    place = tmp_path / "circuit"
    assert cli.main(["fpga", str(T), str(digits.directory), str(place)]) == 0
    said = capsys.readouterr().out
    figures = dict(re.split("  +", line)[:2] for line in said.splitlines() if "  " in line)
    number = {name: float(value.split()[0].replace(",", "")) for name, value in figures.items() if value[0].isdigit()}
    assert figures["logits equal to Keras'"] == "1,790 of 1,790"
    assert 1_000 < number["LUT4, with two for each carry"] < 10_000
    assert number["clock"] > 40
    assert number["from the first pixel to the logits"] > number["from the last pixel to the logits"] > 0
    assert (place / "top.bit").stat().st_size > 100_000
    assert {path.name for path in place.iterdir()} == {
        "network.v", "top.v", "netlist.json", "netlist.v", "cells.json", "report.json", "top.bit"
    }  # fmt: skip
    assert cli.main(["fpga", str(T), str(digits.directory), str(place)]) == 73
    assert "exists already; remove it" in capsys.readouterr().err


@pytest.mark.extra
def test_a_weight_changed_after_the_trace_is_found(verilator, digits, tmp_path):
    twin, images = fpga.load(T), digits.validation.images[:]
    circuit = fpga.circuit(twin, tmp_path / "circuit", images=images)
    last, kernel = twin.layers[-1].kernel, twin.layers[-1].qkernel.numpy()
    before, i = last.numpy(), np.argwhere(kernel)[0][0]
    last.assign(np.where(np.indices(kernel.shape)[0] == i, 0, kernel))
    with pytest.raises(RuntimeError, match=r"top\.v gives [\d,]+ of 1,790 logits that differ"):
        fpga.simulate(circuit, images)
    last.assign(before)
    # The images in the circuit follow one another; those that nobody trained with are right as well.
    images = np.concatenate([images[:50], pictures(50, 8, 8, 1)])
    logits, cycles = fpga.simulate(circuit, images)
    assert logits.shape == (100, 10) and logits.dtype == np.float32 and cycles == circuit.stages + 1


# ---- the circuit


@pytest.mark.extra
@pytest.mark.parametrize(
    ("shape", "inner"),
    [
        ((6, 5, 3), lambda: [layers.Conv2D(3, (2, 3), padding="same", use_bias=False), layers.MaxPooling2D(2)]),
        ((7, 7, 1), lambda: [layers.Conv2D(2, 2, dilation_rate=2, activation="relu"), layers.MaxPooling2D(3, 1)]),
        ((4, 4, 1), lambda: [layers.Conv2D(2, 2, strides=2), layers.MaxPooling2D(2, padding="same")]),
        ((3, 4, 2), lambda: []),
        ((3, 3, 1), lambda: [layers.Flatten(), again := layers.Dense(9), again]),
    ],
)
def test_every_setting_of_the_layers_reaches_the_circuit(extra, shape, inner, tmp_path):
    keras.utils.set_random_seed(0)
    built = model(*inner(), layers.Flatten(), layers.Dense(4), shape=shape)
    images = pictures(64, *shape)
    twin = fpga.quantized(built, weight_bits=8, fraction_bits=8)
    fpga.fit(twin, images, np.arange(64) % 4, epochs=0, beta=0)
    assert np.abs(np.asarray(twin(images)) - np.asarray(built(images))).max() < 0.1
    fpga.circuit(twin, tmp_path / "circuit", images=images)  # compares
    assert {path.name for path in (tmp_path / "circuit").iterdir()} == {"network.v", "top.v"}


@pytest.mark.extra
def test_a_twin_that_is_sequential_and_one_of_a_model_in_16_bits(extra, tmp_path):
    images = pictures(16, 4, 4, 1)
    keras.config.set_dtype_policy("mixed_bfloat16")
    built = keras.Sequential(
        [keras.Input((4, 4, 1)), layers.Rescaling(1 / 256), layers.MaxPooling2D(2), layers.Flatten()]
    )
    keras.config.set_dtype_policy("float32")
    built.add(layers.Dense(3))
    twin = fpga.quantized(built)
    assert twin.input.dtype == "uint8" and {layer.compute_dtype for layer in twin.layers} <= {"float32", "uint8"}
    fpga.fit(twin, images, np.arange(16) % 3, epochs=0, beta=0)
    copies = [type(layer).from_config(layer.get_config()) for layer in twin.layers[1:]]
    sequential = keras.Sequential([keras.Input((4, 4, 1), dtype="uint8"), *copies])
    sequential.set_weights(twin.get_weights())
    fpga.circuit(sequential, tmp_path / "circuit", images=images)  # compares


@pytest.mark.extra
def test_fit_with_a_price_narrows_the_numbers(extra, digits):
    keras.utils.set_random_seed(0)
    built = model(layers.Flatten(), layers.Dense(10))
    images, labels = digits.train.images[:256], digits.train.labels[:256]
    free, dear = (fpga.quantized(built) for _ in range(2))
    wide = fpga.fit(free, images, labels, epochs=0, beta=0)
    narrow = fpga.fit(dear, images, labels, epochs=10, beta=1e-3, learning_rate=0.1)
    assert 0 < narrow < 0.8 * wide


@pytest.mark.extra
def test_a_program_that_differs_from_keras_becomes_no_circuit(extra, digits, tmp_path, monkeypatch, capsys):
    from da4ml.types import CombLogic

    right = CombLogic.predict
    monkeypatch.setattr(CombLogic, "predict", lambda *given: right(*given) + np.eye(10)[0] / 64)
    monkeypatch.setattr(tools, "PROGRAMS", ())
    assert cli.main(["fpga", str(T), str(digits.directory), str(tmp_path / "circuit")]) == 70
    assert "the integer program gives 179 of 1,790 logits that differ from Keras'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# ---- what is refused


@pytest.mark.extra
@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: model(layers.Conv2D(2, 3), layers.BatchNormalization(), layers.Flatten(), layers.Dense(2)), "BatchN"),
        (lambda: model(layers.Flatten(), layers.Dense(2, activation="sigmoid", name="last")), r"last \(Dense\)"),
        (
            lambda: model(layers.Flatten(), layers.Dense(2), scale=1 / 255),
            r"\(Rescaling\) cannot .* Rescaling\(1/256\)",
        ),
        (lambda: keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(2)]), r"\(Flatten\)"),
        (lambda: model(layers.Conv2D(2, 3, groups=1), layers.Conv2D(2, 3, groups=2), layers.Flatten()), "groups"),
        (lambda: model(layers.Conv2D(2, 3)), "from images of one size to logits"),
        (lambda: model(layers.Flatten(), lambda x: x + 1, layers.Dense(2)), r"\(Add\) cannot become a circuit"),
        (lambda: model(layers.Conv2D(2, 3), shape=(None, None, 1)), "from images of one size"),
        (lambda: keras.Sequential([layers.Flatten(), layers.Dense(2)]), "from images of one size"),
        (lambda: "twin.keras", "a functional or Sequential model"),
    ],
)
def test_a_model_that_cannot_become_a_circuit_is_refused_by_name(extra, build, named):
    with pytest.raises(errors.SettingsError, match=named):
        fpga.quantized(build())


@pytest.mark.extra
def test_values_out_of_range_other_images_and_other_places_are_refused(extra, digits, tmp_path):
    twin, images = fpga.load(T), digits.validation.images[:8]
    fresh = fpga.quantized(model(layers.Flatten(), layers.Dense(2)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    refused = [
        (lambda: fpga.circuit(fresh, tmp_path / "new", images=images), "for an image: 0 .* Train it with fpga.fit"),
        (
            lambda: fpga.circuit(twin, tmp_path / "new", images=pictures(4, 9, 9, 1)),
            r"images=uint8\[4, 9, 9, 1\]: give uint8 images \(None, 8, 8, 1\)",
        ),
        (lambda: fpga.circuit(twin, tmp_path / "new", images=images / 256.0), "uint8"),
        (lambda: fpga.circuit(twin, tmp_path / "new", images=None), "uint8"),
        (lambda: fpga.simulate(tmp_path, images), "circuit=.*what fpga.circuit returned"),
        (lambda: fpga.circuit(twin, tmp_path / "new", images=images, levels_per_stage=0), "levels_per_stage=0"),
        (
            lambda: fpga.circuit(model(layers.Flatten(), layers.Dense(2)), tmp_path, images=images),
            "made by fpga.quantized",
        ),
        (lambda: fpga.quantized(model(layers.Flatten(), layers.Dense(2)), weight_bits=0), "weight_bits=0"),
        (lambda: fpga.fit(twin, images, np.arange(8), epochs=-1, beta=0), "epochs=-1"),
        (lambda: fpga.fit(twin, images, np.arange(8), epochs=0, beta=float("nan")), "beta=nan"),
        (lambda: fpga.route(hardware.Circuit(tmp_path, None, 1, 1, 0, True), device="12k"), "25k or 45k or 85k"),
    ]
    for call, rule in refused:
        with pytest.raises(errors.SettingsError, match=rule):
            call()
    for call in (
        lambda: fpga.circuit(twin, tmp_path / "full", images=images),
        lambda: fpga.measure(twin, digits.validation, tmp_path / "full" / "file"),
    ):
        with pytest.raises(errors.OutputError, match="exists already"):
            call()
    with pytest.raises(errors.InputNotFound, match=r"fpga\.circuit first"):
        fpga.synthesize(hardware.Circuit(tmp_path, None, 1, 1, 0, True))
    with pytest.raises(errors.InputNotFound, match=r"fpga\.synthesize first"):
        fpga.route(hardware.Circuit(tmp_path, None, 1, 1, 0, True))
    assert not (tmp_path / "new").exists()


@pytest.mark.extra
def test_files_that_are_no_twin(extra, tmp_path, capsys, digits, monkeypatch):
    monkeypatch.setattr(tools, "PROGRAMS", ())
    (tmp_path / "text.keras").write_text("text\n")
    model(layers.Flatten(), layers.Dense(10)).save(tmp_path / "float.keras")
    for name, code, said in [
        ("none.keras", 66, "no such file"),
        ("text.keras", 65, "cannot be loaded as a model"),
        ("float.keras", 78, "made by fpga.quantized"),
    ]:
        assert cli.main(["fpga", str(tmp_path / name), str(digits.directory), str(tmp_path / "circuit")]) == code
        assert said in capsys.readouterr().err and not (tmp_path / "circuit").exists()


@pytest.mark.extra
def test_a_circuit_that_does_not_fit_the_device(extra, tmp_path):
    """300 outputs are more than the package has pins."""
    (tmp_path / "network.v").touch()
    (tmp_path / "top.v").write_text(
        "module top(input clk, input pixel, output reg [299:0] done); always @(posedge clk) done <= {done, pixel}; endmodule"
    )
    circuit = hardware.Circuit(tmp_path, None, 1, 1, 0, True)
    assert fpga.synthesize(circuit)["ff"] == 300
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(
        errors.SettingsError, match=r"with --25k .*: nextpnr_ecp5 ended .* take a larger device"
    ) as told:
        fpga.route(circuit)
    assert told.value.exit_code == 78
    assert {path.name for path in tmp_path.iterdir()} == before
    for values in ({"package": "CABGA756"}, {"speed": 9}, {"seed": "one"}):
        with pytest.raises(errors.SettingsError, match=r"(Unsupported|is invalid).* or give values that nextpnr knows"):
            fpga.route(circuit, **values)
    with pytest.raises(errors.SettingsError, match="megahertz=-5"):
        fpga.route(circuit, megahertz=-5)
    (tmp_path / "netlist.json").write_text("{")
    with pytest.raises(errors.SettingsError, match="Failed to parse JSON"):
        fpga.route(circuit)


# ---- by hand


@pytest.mark.extra
@pytest.mark.by_hand
@pytest.mark.timeout(3600)
def test_network_h_has_the_stored_figures(verilator, digits, tmp_path):
    """Six minutes on a quiet core: the figures of the contract, give or take a fifth."""
    found = fpga.measure(fpga.load(HERE / "H.keras"), digits.validation, tmp_path / "circuit")
    route = found["routing"]
    assert found["logits"] == 1_790 and found["cycles"] == 12
    for value, expected in [
        (found["bit_operations"], 18_500), (found["synthesis"]["lut4"], 15_824), (route["sites"], 20_174),
        (route["megahertz"], 96.0), (found["cycles"] / route["megahertz"] * 1e3, 125), (route["megahertz"] / 64, 1.50),
    ]:  # fmt: skip
        assert 0.8 * expected < value < 1.2 * expected, (value, expected, json.dumps(found))
    assert hardware.DEVICES[0] == route["device"]
