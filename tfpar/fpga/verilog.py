"""The circuit of a twin in Verilog, and its simulation clock by clock.

da4ml turns the twin into additions and shifts, and these into a pipeline. Around it stands a module of our own, `top.v`,
which takes the pixels of an image one after the other: an image of 8x8 has 512 bits, more than the chip has pins.
"""

import json
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from tfpar import errors, files, validate
from tfpar.fpga import tools
from tfpar.fpga.twin import bit_operations, core

HERE = Path(__file__).parent


class Circuit(NamedTuple):
    """A circuit in Verilog: `top.v` and `network.v` in a directory."""

    directory: Path
    pixels: int  # of an image, with its channels
    classes: int
    stages: int  # of the pipeline
    logit_bits: int  # of each, with its sign where one can be negative
    fraction_bits: int  # of these
    signed: bool


def circuit(model: keras.Model, directory, *, images: np.ndarray, levels_per_stage: int = 2) -> Circuit:
    """Write the circuit of a twin in Verilog, after a check that its integer program gives Keras' logits.

    Args:
        model: a twin, after `fit`.
        directory: where it goes; must be empty or not exist.
        images: `uint8[N, height, width, channels]` for the check.
        levels_per_stage: successive additions between two registers. Fewer give a faster clock and more stages, so more cycles.

    Raises:
        errors.SettingsError: it is no twin, was never fitted, or is too large; the images have another shape.
        errors.OutputError: there is something in the directory.
        RuntimeError: a logit of the integer program differs from Keras'. Nothing is written.

    Source: Sun et al., da4ml: Distributed Arithmetic for Real-time Neural Networks on FPGAs, arXiv:2507.04535.
    """
    images = np.asarray(images)
    layers = core(model, images)
    bit_operations(model)
    levels = validate.integer("levels_per_stage", levels_per_stage, 1, 1000)
    directory = free(directory)
    from da4ml.codegen.rtl.rtl_model import RTLModel, get_io_kifs
    from da4ml.converter import trace_model
    from da4ml.trace import HWConfig, comb_trace

    x = inputs = keras.Input(model.input_shape[1:])  # pixel / 256, 8 bits of a fraction: da4ml knows no Rescaling
    for layer in layers:
        x = layer(x)
    traced = trace_model(keras.Model(inputs, x), HWConfig(1, -1, -1), {"hard_dc": 2}, inputs_kif=(0, 0, 8))
    program = comb_trace(*traced)
    _require_equal(program.predict(images.reshape(len(images), -1) / 256), model, images, "the integer program")
    with tempfile.TemporaryDirectory() as place:
        RTLModel(program, "network", place, latency_cutoff=levels, print_latency=False).write()
        # lookup_table.v opens a file that does not exist; Verilator 5.006 refuses the comments.
        sources = [path.read_text() for path in sorted(Path(place).rglob("*.v")) if path.name != "lookup_table.v"]
        stages = json.loads(Path(place, "metadata.json").read_text())["latency"]
    sign, whole, fraction = get_io_kifs(program)[1].max(axis=1).tolist()
    made = Circuit(directory, *program.shape, stages, sign + whole + fraction, fraction, bool(sign))
    files.make_directory(directory)
    files.write(directory / "network.v", re.sub(r"//\s*verilator.*|/\*\s*verilator.*?\*/", "", "".join(sources)))
    sizes = {"PIXELS": made.pixels, "LOGITS": made.classes * made.logit_bits, "CYCLES": made.stages + 1}
    defined = "".join(f"`define {name} {size}\n" for name, size in sizes.items())
    files.write(directory / "top.v", defined + (HERE / "top.v").read_text())
    print(f"circuit: {stages} stages, cost {program.cost:,.0f}; equals Keras for {len(images)} images")
    return made


def simulate(circuit: Circuit, images: np.ndarray, *, twin=None, netlist: bool = False) -> tuple[np.ndarray, int]:
    """Simulate the circuit clock by clock, with images that follow one another without a gap; return logits and cycles.

    Args:
        circuit: made by `circuit`.
        images: `uint8[N, height, width, channels]`.
        twin: the model whose logits the circuit must give; None compares with nothing.
        netlist: simulate the cells of the chip that `synthesize` made of the Verilog.

    Returns:
        logits `float32[N, classes]`, and the cycles from the last pixel of an image to its logits.

    Raises:
        errors.Unavailable: Verilator or a compiler is not installed.
        errors.InputNotFound: with `netlist`, the circuit was not synthesized.
        RuntimeError: a logit differs from the twin's, or the circuit does not answer each image after the same number of cycles.
    """
    tools.require(simulation=True)
    names = ["netlist.v"] if netlist else ["network.v", "top.v"]
    need(circuit, names[-1])
    images = np.asarray(images)
    if images.dtype != np.uint8 or np.prod(images.shape[1:]) != circuit.pixels:
        found = f"images={images.dtype}{[*images.shape]}"
        raise errors.SettingsError(f"{found}: give uint8 images of {circuit.pixels} values each")
    sources = [HERE / "bench.cpp", HERE / "bench.v", *(circuit.directory.absolute() / name for name in names)]
    options = "--cc --exe --build -Wno-lint -Wno-style -Wno-fatal --top-module bench -MAKEFLAGS OPT_FAST=-O0"
    sizes = f"-DLOGITS={circuit.classes * circuit.logit_bits} -CFLAGS -DREST={circuit.stages + 2}"
    with tempfile.TemporaryDirectory() as place:
        tools.run(["verilator", *options.split(), *sizes.split(), *map(str, sources)], Path(place))
        said = tools.run([f"{place}/obj_dir/Vbench"], Path(place), images.tobytes())
    printed = [line.split() for line in said.splitlines()]
    cycles = {int(edge) - circuit.pixels * (i + 1) for i, (edge, _) in enumerate(printed)}
    if len(printed) != len(images) or len(cycles) != 1:
        raise RuntimeError(f"{len(printed)} answers to {len(images)} images, after {sorted(cycles)} cycles")
    print(f"simulation of {' and '.join(names)}: {len(images)} images, {min(cycles)} cycles to the logits")
    width, words = circuit.logit_bits, [int(bits, 16) for _, bits in printed]
    raw = np.array([[word >> width * j & 2**width - 1 for j in range(circuit.classes)] for word in words])
    raw -= circuit.signed * (raw >> width - 1 << width)
    logits = (raw / 2**circuit.fraction_bits).astype(np.float32)
    if twin is not None:
        _require_equal(logits, twin, images, f"the simulation of {names[-1]}")
    return logits, cycles.pop()


def free(directory) -> Path:
    """Return a path where a circuit can go: nothing is there, or an empty directory."""
    directory = validate.path("directory", directory)
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise errors.OutputError(f"{directory}: exists already; remove it, or name another directory")
    return directory


def need(circuit: Circuit, name: str) -> None:
    """Check that a step before has written a file."""
    if not isinstance(circuit, Circuit):
        validate.reject("circuit", circuit, "what fpga.circuit returned")
    if not (circuit.directory / name).exists():
        before = "circuit" if name == "top.v" else "synthesize"
        raise errors.InputNotFound(f"{circuit.directory / name}: not there; call fpga.{before} first")


def _require_equal(logits: np.ndarray, model: keras.Model, images: np.ndarray, who: str) -> None:
    if differing := int(np.sum(logits != np.asarray(model(images)))):
        raise RuntimeError(f"{who} gives {differing:,} of {logits.size:,} logits that differ from Keras'")
