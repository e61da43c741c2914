"""The order of the images: exact, without state, and in blocks where a split may be larger than the memory."""

import mmap
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tfpar import check, devices, engine
from tfpar.engine import distribute, permutation
from tfpar.prepare import arrays


def places(first, last, **options):
    return permutation.order(tf.range(first, last, dtype=tf.int64), **options).numpy()


@pytest.mark.parametrize(
    ("examples", "block"),
    [(1, None), (5, None), (1000, None), (1000, 7), (1000, 1), (7, 7), (1793, 7), (897, 3), (896, 7)],
)
def test_every_round_shows_every_image_once(examples, block):
    seen = places(0, 3 * examples, examples=examples, seed=1, block=block).reshape(3, examples)
    assert (np.sort(seen, axis=1) == np.arange(examples)).all()
    if examples > 7:
        assert not np.array_equal(seen[0], seen[1])
        assert not np.array_equal(seen[0], places(0, examples, examples=examples, seed=2, block=block))


def test_any_part_of_the_stream_can_be_computed_alone():
    whole = places(0, 4000, examples=1000, seed=3, block=7)
    assert np.array_equal(
        np.concatenate([places(n, n + 50, examples=1000, seed=3, block=7) for n in range(0, 4000, 50)]), whole
    )


def test_a_window_reads_whole_blocks():
    block, examples = 8, 128 * 8 * 5 + 3
    window = np.sort(places(0, 128 * block, examples=examples, seed=0, block=block))
    runs = np.split(window, np.flatnonzero(np.diff(window) != 1) + 1)
    assert len(runs) <= 129  # and one more where the round's start cuts a block in two
    assert not np.array_equal(window, np.arange(len(window)))


def test_blocks_begin_elsewhere_in_every_round():
    block, examples = 8, 128 * 8 * 5
    starts = set()
    for number in range(6):
        window = places(number * examples, number * examples + 128 * block, examples=examples, seed=0, block=block)
        window.sort()
        firsts = window[np.flatnonzero(np.diff(window, prepend=-2) != 1)] % block
        starts.add(int(np.bincount(firsts).argmax()))
    assert len(starts) > 1


def test_only_a_large_split_is_read_in_blocks(monkeypatch):
    images = np.zeros((100, 8, 8, 1), np.uint8)
    assert permutation.block_of(images) is None
    monkeypatch.setattr(permutation, "WHOLE_BYTES", 6399)
    monkeypatch.setattr(permutation, "BLOCK_BYTES", 640)
    assert permutation.block_of(images) == 10


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_engine_reads_a_large_split_in_blocks_and_ahead(replicas, tmp_path, monkeypatch, capsys):
    random = np.random.default_rng(0)
    path = tmp_path / "images.npy"
    np.save(path, random.integers(0, 256, (3000, 16, 16, 1), np.uint8))
    images = arrays._mapped(path, (3000, 16, 16, 1))
    monkeypatch.setattr(permutation, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(permutation, "BLOCK_BYTES", 1024)
    monkeypatch.setattr(distribute, "TOGETHER_BYTES", 1)  # a call makes less than a window, as with windows of 512 MiB
    advised = []
    monkeypatch.setattr(permutation.ReadAhead, "_advise", lambda self, window, advice: advised.append((window, advice)))
    split = (images, np.arange(3000, dtype=np.int32))
    strategy = devices.strategy(simulate=replicas)
    assert check.same_order(split, strategy, global_batch_size=120, steps=40)
    batches = iter(engine.train_batches(split, strategy, global_batch_size=120))
    seen = [np.concatenate(strategy.experimental_local_results(next(batches)[1])) for _ in range(25)]
    assert sorted(np.concatenate(seen).tolist()) == list(range(3000))
    assert {window for window, advice in advised if advice == mmap.MADV_WILLNEED} >= set(range(7))
    assert {window for window, advice in advised if advice == mmap.MADV_DONTNEED} >= set(range(4))


def test_advice_reaches_the_system(tmp_path, monkeypatch):
    """Pages that were read count as this process's until they are let go."""
    monkeypatch.setattr(permutation, "WHOLE_BYTES", 1000)
    path = tmp_path / "images.npy"
    np.save(path, np.ones((600, 128, 128, 4), np.uint8))  # 39 MB, less than a window
    images = arrays._mapped(path, (600, 128, 128, 4))
    before = _resident()
    assert images.reshape(-1)[:: mmap.PAGESIZE].sum() > 0
    read = _resident()
    permutation.ReadAhead(images, seed=0)._advise(0, mmap.MADV_DONTNEED)
    assert read - before > 30e6
    assert read - _resident() > 30e6


def _resident() -> int:
    with open("/proc/self/smaps_rollup") as file:
        return sum(1024 * int(line.split()[1]) for line in file if line.startswith("Rss:"))


LARGER_THAN_MEMORY = """
import sys
import numpy as np
from tfpar import devices, engine
from tfpar.prepare import arrays
examples = 270_000  # of 224 px: 40 GB
open(sys.argv[1], "wb").truncate(128 + examples * 224 * 224 * 3)  # holes, which take no place on the disk
images = arrays._mapped(sys.argv[1], (examples, 224, 224, 3))
batches = engine.train_batches((images, np.zeros(examples, np.int32)), devices.strategy(), global_batch_size=64)
peak = 0
for _, (x, y) in zip(range(280), batches):  # through five windows
    with open("/proc/self/smaps_rollup") as file:
        peak = max(peak, sum(1024 * int(line.split()[1]) for line in file if line.startswith("Rss:")))
print(images.nbytes, peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="this system takes no advice about memory")
def test_a_split_larger_than_memory_stays_on_the_disk(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LARGER_THAN_MEMORY, tmp_path / "images.npy"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    whole, peak = map(int, done.stdout.split())
    assert whole > 40e9 and peak < 2e9


@pytest.mark.parametrize("kind", ["array", "view", "copy on write"])
def test_memory_that_is_no_file_keeps_its_pictures(kind, tmp_path, monkeypatch):
    """To let go of a page of a file loses nothing; to let go of other memory clears it."""
    monkeypatch.setattr(permutation, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(permutation, "BLOCK_BYTES", 1024)
    monkeypatch.setattr(permutation, "WINDOW_BLOCKS", 256)
    monkeypatch.setattr(distribute, "TOGETHER_BYTES", 1)
    images = np.full((3000, 32, 32, 1), 7, np.uint8)
    if kind == "copy on write":
        np.save(tmp_path / "images.npy", np.zeros_like(images))
        mapped = np.load(tmp_path / "images.npy", mmap_mode="c")
        mapped[:] = images
        images = mapped
    split = (images[:2999] if kind == "view" else images, np.zeros(len(images), np.int32)[: 2999 + (kind != "view")])
    started = []
    monkeypatch.setattr(
        permutation.threading, "Thread", lambda target, args, daemon: started.append(target) or _Now(target, args)
    )
    batches = iter(engine.train_batches(split, devices.strategy(), global_batch_size=100))
    assert all((next(batches)[0].numpy() == 7).all() for _ in range(90))
    assert (images == 7).all() and not started


def test_mapped_files_are_known(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((10, 4, 4, 1), np.uint8))
    assert permutation.of_a_file(np.load(tmp_path / "images.npy", mmap_mode="r"))
    assert permutation.of_a_file(arrays._mapped(tmp_path / "images.npy", (10, 4, 4, 1))[2:])
    assert not permutation.of_a_file(np.load(tmp_path / "images.npy"))


class _Now:
    """A thread that has run when it is started."""

    def __init__(self, target, args):
        self.start = lambda: target(*args)
