"""Data-parallel training of Keras 3 image classifiers on TensorFlow: the same bits on any number of devices.

The modules carry the words of the work: `prepare` the data, build `models`, the data `engine`, `train` in stages,
read `results`. Each can be used alone; importing this package imports none of them.
"""

__version__ = "0.1.0"
