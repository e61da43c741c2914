"""Which image stands at which position of the endless training stream: a pure function of the position.

Up to 4 GiB of pixels every round is one permutation of all images. A larger split may not fit into the page cache, and
a disk reads a gigabyte in one piece a hundred times faster than image by image. So there the order has two levels,
still exact and without state:

1. The images lie in **blocks** of about 4 MiB. The blocks are permuted.
2. 128 blocks at a time make a **window**, and the images of a window are permuted.

Where blocks begin is another place in every round, so no two images stay neighbours forever. While one window is
trained on, the next is read ahead in whole blocks (`ReadAhead`). Window and block are constants: what a step sees must
not depend on the memory of the machine.

Example:
    >>> order(tf.range(5, dtype=tf.int64), examples=5, seed=0).numpy().tolist()
    [3, 4, 0, 2, 1]
"""

import ctypes
import mmap
import threading

import numpy as np
import tensorflow as tf

WHOLE_BYTES = 4 << 30  # splits up to this size are shuffled as a whole
BLOCK_BYTES = 4 << 20
WINDOW_BLOCKS = 128
_IMAGES, _BLOCKS, _START = 0, 1, 2  # what a key is for: windows have numbers from 3 on


def order(positions: tf.Tensor, *, examples: int, seed: int, block: int | None = None) -> tf.Tensor:
    """Return which images stand at these positions of the endless stream.

    Needs no state and no table: a keyed bijection of `[0, examples)` for every round (`RandomIndexShuffle`).

    Args:
        positions: `int64[n]`, from 0 on.
        examples: images in the split.
        seed: whole number from 0 to 2**32 - 1.
        block: images of a block, from `block_of(images)`; None is one permutation of all.

    Returns:
        `int64[n]`, image indexes below `examples`.

    Example:
        >>> sorted(order(tf.range(5, dtype=tf.int64), examples=5, seed=0).numpy().tolist())
        [0, 1, 2, 3, 4]
    """
    rounds, places = positions // examples, positions % examples
    if block is None:
        return _permuted(places, examples, seed, rounds, _IMAGES)
    blocks = examples // block
    blocked = blocks * block  # the images of whole blocks; the rest is a small window at the end
    windows = places // (WINDOW_BLOCKS * block)
    first = tf.where(places < blocked, windows * WINDOW_BLOCKS * block, blocked)
    size = tf.where(places < blocked, tf.minimum(blocked - first, WINDOW_BLOCKS * block), examples - blocked)
    inside = _permuted(places - first, size, seed, rounds, 3 + windows)
    slots = tf.minimum((first + inside) // block, blocks - 1)
    moved = _permuted(slots, blocks, seed, rounds, _BLOCKS) * block + inside % block
    images = tf.where(places < blocked, moved, first + inside)
    return (images + _permuted(tf.zeros_like(places), examples, seed, rounds, _START)) % examples


def block_of(images: np.ndarray) -> int | None:
    """Return how many images of a split make a block; None where the split is shuffled as a whole."""
    return max(1, BLOCK_BYTES // images[0].nbytes) if images.nbytes > WHOLE_BYTES else None


def _permuted(places: tf.Tensor, sizes, seed: int, rounds: tf.Tensor, purpose) -> tf.Tensor:
    """Permute each place within `[0, size)`, by a key of seed, round and purpose."""
    shape = tf.shape(places)
    purpose, last = (tf.broadcast_to(tf.cast(v, tf.int64), shape) for v in (purpose, sizes - 1))
    seeds = tf.fill(shape, tf.constant(seed, tf.int64))
    key = tf.stack([seeds, purpose * 2**16 + rounds // 2**32, rounds % 2**32], axis=1)
    # Four rounds of the cipher, TensorFlow's default, leave neighbouring permutations correlated (0.01); eight do not.
    return tf.raw_ops.RandomIndexShuffle(index=places, seed=tf.cast(key, tf.uint32), max_index=last, rounds=8)


def of_a_file(images: np.ndarray) -> bool:
    """Tell whether an array is a mapped file: other memory would be cleared by letting go of it.

    So would what somebody has written into a private map. A memory map of NumPy's that may be written so is no file here; a
    prepared split is one, and what is written into it does not last.
    """
    memory = images
    while isinstance(memory, (np.ndarray, memoryview)):
        if isinstance(memory, np.memmap) and memory.mode == "c":
            return False
        memory = memory.base if isinstance(memory, np.ndarray) else memory.obj
    return isinstance(memory, mmap.mmap)


class ReadAhead:
    """Ask the system for the next window of a mapped split in whole blocks, and let go of the one before.

    The pages that were let go stay in the page cache while there is room; they only stop counting as this process's.
    """

    def __init__(self, images: np.ndarray, *, seed: int):
        self.images, self.seed, self.block = images, seed, block_of(images)
        self.span = WINDOW_BLOCKS * self.block
        self.windows = -(-len(images) // self.span)  # of a round
        self.asked: set[int] = set()  # windows, counted through all rounds
        self.lock = threading.Lock()
        self.madvise = ctypes.CDLL(None, use_errno=True).madvise
        self.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def __call__(self, position: int) -> None:
        """Say that the batch at this position is about to be read."""
        round_, place = divmod(int(position), len(self.images))
        now = round_ * self.windows + place // self.span
        with self.lock:
            wanted = {now, now + 1} - self.asked
            passed = {window for window in self.asked if window < now}
            self.asked = (self.asked | wanted) - passed
        if wanted or passed:
            threading.Thread(target=self._move, args=(sorted(wanted), passed), daemon=True).start()

    def _move(self, wanted, passed) -> None:
        for window in passed:
            self._advise(window, mmap.MADV_DONTNEED)
        for window in wanted:
            self._advise(window, mmap.MADV_WILLNEED)

    def _advise(self, window: int, advice: int) -> None:
        round_, window = divmod(window, self.windows)
        first = window * self.span
        positions = round_ * len(self.images) + np.arange(first, min(first + self.span, len(self.images)))
        chosen = order(tf.constant(positions), examples=len(self.images), seed=self.seed, block=self.block).numpy()
        chosen.sort()
        size, page = self.images[0].nbytes, mmap.PAGESIZE
        for piece in np.split(chosen, np.flatnonzero(np.diff(chosen) != 1) + 1):
            start = self.images.ctypes.data + int(piece[0]) * size
            end = self.images.ctypes.data + (int(piece[-1]) + 1) * size
            first_page = start // page * page
            self.madvise(first_page, end - first_page, advice)  # advice may fail, and changes nothing
