"""How a training scales: measured on the devices of this machine, and predicted for many, from what few of them do.

From one device nobody can predict the efficiency of many well: eight frameworks spread from 78 to 98 % on one machine with the
same network. From two measured sizes the rest follows within a few points. Every prediction says what it is based on, and the
band in which 80 % of the published points with that basis lie. `formulas` has the formulas and their sources.

`measure` lets 1, 2, 4 .. devices train in turns, and its report says what they lose, and where.

Example:
    >>> report = scaling.measure("resnet20", prepare.load("data/photos"), "runs/scaling", devices=[1, 2])    # two minutes
    >>> scaling.predict(report, "cpu-1GbE", [4, 8])
    >>> measured = scaling.Measured(0.3478, 128, 102.2e6, steps={8: 0.3546})  # seconds, images, bytes
    >>> scaling.predict(measured, "8xV100-EDR", [8, 16, 64]).to_pylist()[2]["basis"]
    'two sizes, formula between machines'
    >>> mine = scaling.Machine(devices=4, inside=31.5, outside=3.125)  # GB/s
    >>> scaling.predict(measured, mine, [4, 8], price=1.5, images=1_281_167, epochs=35)["cost"]
"""

from tfpar.scaling.measuring import measure
from tfpar.scaling.predicting import MACHINES, Machine, Measured, predict
from tfpar.scaling.report import Report, load

__all__ = ["MACHINES", "Machine", "Measured", "Report", "load", "measure", "predict"]
