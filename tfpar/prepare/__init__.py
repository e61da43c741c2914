"""Any source of images -> a verified directory of arrays, split into train and validation.

Decoding costs far more than reading pixels, so it is done once. What training reads afterwards is one
flat array of `uint8` per split, which the system maps into memory (see `engine`).

Example:
    >>> data = prepare.dataset("digits", "data/digits")
    >>> data.train.images.shape, data.class_names[:3]
    ((1618, 8, 8, 1), ['0', '1', '2'])
    >>> data = prepare.load("data/digits")           # later: sizes and checksums are verified
"""

from tfpar.prepare.arrays import Dataset, load
from tfpar.prepare.build import dataset

__all__ = ["Dataset", "dataset", "load"]
