"""All figures of a twin as a circuit, and the table that says how each of them was obtained."""

import tempfile
from pathlib import Path

import keras
import numpy as np

from tfpar import files, validate
from tfpar.fpga import chip, tools, twin, verilog


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
    tools.require(simulation=True)
    images, labels = validate.split(split)
    device, target = validate.choice("device", device, chip.DEVICES), verilog.free(directory)
    files.make_directory(target.parent)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as place:
        circuit = verilog.circuit(model, Path(place, "circuit"), images=images)
        logits, cycles = verilog.simulate(circuit, images, twin=model)
        cells = chip.synthesize(circuit)
        verilog.simulate(circuit, images, twin=model, netlist=True)
        found = {"images": len(images), "correct": int(np.sum(logits.argmax(1) == labels)), "logits": logits.size}
        found |= {"bit_operations": twin.bit_operations(model), "pixels": circuit.pixels, "cycles": cycles}
        found["synthesis"] = cells
        if routed:
            found["routing"] = chip.route(circuit, device=device)
        circuit.directory.replace(target)
    return found


def rows(found: dict) -> list[tuple[str, str, str]]:
    """Return the table of what `measure` found: each figure, its value, and how it was obtained."""
    cells, cycles, whole = found["synthesis"], found["cycles"], found["cycles"] + found["pixels"]
    table = [("figure", "value", "obtained")]
    table.append(("accuracy", f"{found['correct']} of {found['images']} images", "measured"))
    table.append(("logits equal to Keras'", f"{found['logits']:,} of {found['logits']:,}", "simulated"))
    table.append(("bit operations for an image", f"{found['bit_operations']:,}", "computed"))
    table.append(("LUT4, with two for each carry", f"{cells['lut4']:,}", "measured, after synthesis"))
    table.append(("flip-flops, DSP, block RAM", f"{cells['ff']:,}, {cells['dsp']}, {cells['bram']}", table[-1][-1]))
    table.append(("from the last pixel to the logits", f"{cycles} cycles", "simulated"))
    table.append(("from the first pixel to the logits", f"{whole} cycles", "simulated"))
    if on_chip := found.get("routing"):
        clock, used = on_chip["megahertz"], f"{on_chip['sites']:,} of {on_chip['of']:,}"
        table.append((f"sites for a LUT4, {on_chip['device']}", used, "measured, after routing"))
        table.append(("clock", f"{clock:.1f} MHz", "from the router's timing"))
        table.append(("from the last pixel to the logits", f"{1e3 * cycles / clock:.0f} ns", "computed"))
        table.append(("from the first pixel to the logits", f"{1e3 * whole / clock:.0f} ns", "computed"))
        table.append(("throughput, one pixel a cycle", f"{1e6 * clock / found['pixels']:,.0f} images/s", "computed"))
        table.append(("bitstream, loaded into no chip", f"{on_chip['bitstream']:,} bytes", "measured"))
    return table
