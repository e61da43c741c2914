"""How a training scales: measure a few devices of this machine, and predict many devices of the same kind.

From one device nobody can predict the efficiency of many well: eight programs reached 69 to 98% with the same network on the same 32
GPUs. From two measured sizes (numbers of devices) the efficiency of more follows, with a median error of 1 to 4 percentage points.
Every prediction has a basis, which says what was measured, and a band. 80% of the published measurements with that basis lie inside
their bands. `formulas` has the formulas and their sources.

`measure` trains on 1, 2, 4 .. devices in turns, and returns a report: how much time a step loses on each number of devices, and
to what. `predict` takes that report, or figures.

Example:
    >>> measured = scaling.Measured(0.3485, 128, 102.2e6, steps={8: 0.3546})  # seconds, images, bytes
    >>> scaling.predict(measured, "8xV100-EDR", [8, 16, 64]).to_pylist()[2]["basis"]
    'two sizes, formula between machines'
    >>> mine = scaling.Machine(devices=8, inside=31.5, outside=3.125)  # GB/s
    >>> scaling.predict(measured, mine, [8, 16], price=1.5, images=1_281_167, epochs=35)["cost"]
"""

from tfpar.scaling.measuring import measure
from tfpar.scaling.predicting import MACHINES, Machine, Measured, predict
from tfpar.scaling.report import Report, load

__all__ = ["MACHINES", "Machine", "Measured", "Report", "load", "measure", "predict"]
