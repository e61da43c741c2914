"""How training scales.

Example:
    >>> print(scaling.load("runs/scaling"))
"""

from tfpar.scaling.measuring import measure
from tfpar.scaling.report import Report, load

__all__ = ["Report", "load", "measure"]
