"""A prepared directory: its files, how they grow, and how they are verified and mapped into memory.

```
DIR/dataset.json              written last; a directory without it is not a dataset
DIR/train/images.npy          uint8 [N, height, width, channels]
DIR/train/labels.npy          int32 [N]
DIR/train/examples.csv        index,source,label: one row per image
DIR/train/weights.npy         float32 [N], only where the source gives a weight for each image
DIR/validation/...            the same files (and DIR/test/... where the source has a third split)
DIR/skipped.csv               source,reason: every input that did not become an example
```
"""

import contextlib
import csv
import hashlib
import io
import itertools
import json
import mmap
import os
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from tfpar import errors, files, validate
from tfpar.prepare.inputs import BESIDE, Input

FORMAT = 1
OTHER_CHECKSUM = "damaged: its checksum differs from the one in dataset.json"
_HEADER = 128  # bytes before the pixels in an .npy file; NumPy pads it, so that the number of images may grow


class Split(NamedTuple):
    """One split: `uint8` images [N, height, width, channels], `int32` labels [N], and what each image was called.

    `weights`, `float32` [N] or None, multiply the loss in training; validation counts every image alike.
    """

    images: np.ndarray
    labels: np.ndarray
    sources: list[str]
    weights: np.ndarray | None = None


class Dataset(NamedTuple):
    """A prepared directory; `fingerprint` is the same for the same pixels, labels and class names."""

    directory: Path
    name: str
    class_names: list[str]
    image_shape: tuple[int, int, int]
    splits: dict[str, Split]
    fingerprint: str
    verified: dict[str, list[int]]  # file -> size, time and inode when its checksum was right

    @property
    def train(self) -> Split:
        return self.splits["train"]

    @property
    def validation(self) -> Split:
        return self.splits["validation"]

    @property
    def test(self) -> Split | None:
        return self.splits.get("test")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


# ---- writing


class SplitWriter:
    """The files of one split while they are written; `opened` closes the one that an error leaves open."""

    def __init__(self, directory: Path, shape: tuple[int, int, int], opened: contextlib.ExitStack):
        directory.mkdir()
        self.directory, self.shape, self.opened = directory, shape, opened
        self.items: list[Input] = []  # without their pictures
        self.digests = bytearray()  # of the pixels, 16 bytes an image
        self.file = open(directory / "images.npy", "w+b")  # noqa: SIM115 - closed in close()
        opened.callback(self._abandon)
        self.file.write(self._header())

    @property
    def labels(self) -> np.ndarray:
        return np.asarray([item.label for item in self.items], np.int32)

    def counts(self) -> Counter[int]:
        """Return the number of images of each label."""
        return Counter(item.label for item in self.items)

    def _header(self) -> bytes:
        text = io.BytesIO()
        shape = (len(self.items), *self.shape)
        np.lib.format.write_array_header_1_0(text, {"descr": "|u1", "fortran_order": False, "shape": shape})
        if text.tell() != _HEADER:
            raise RuntimeError(f"this NumPy writes a header of {text.tell()} bytes, not {_HEADER}")
        return text.getvalue()

    def add(self, image: np.ndarray, item: Input) -> None:
        content = image.tobytes()
        self.file.write(content)
        self.digests += hashlib.blake2b(content, digest_size=16).digest()
        self.items.append(item._replace(picture=None))

    def move(self, chosen: np.ndarray, directory: Path) -> "SplitWriter":
        """Move the images at the positions `chosen` to another split, and close the gaps in this one."""
        self.file.flush()
        other = SplitWriter(directory, self.shape, self.opened)
        pixels = np.memmap(self.file, np.uint8, "r+", _HEADER, (len(self.items), *self.shape))
        moves = np.isin(np.arange(len(pixels)), chosen)
        kept = 0
        for position in range(len(pixels)):  # one image at a time: the memory stays bounded
            if moves[position]:
                other.add(pixels[position], self.items[position])
            else:
                pixels[kept] = pixels[position]
                kept += 1
        pixels.flush()
        self.items = list(itertools.compress(self.items, ~moves))
        self.digests = bytearray(np.frombuffer(self.digests, "V16")[~moves].tobytes())
        self.file.truncate(_HEADER + kept * int(np.prod(self.shape)))
        return other

    def _abandon(self) -> None:
        with contextlib.suppress(OSError):  # such as a full disk; the error that came first is raised
            self.file.close()

    def close(self) -> None:
        self.file.seek(0)
        self.file.write(self._header())
        self.file.close()
        np.save(self.directory / "labels.npy", self.labels)
        weights = [item.weight for item in self.items]
        if any(weight is not None for weight in weights):
            np.save(self.directory / "weights.npy", np.asarray([1 if w is None else w for w in weights], np.float32))
        rows = ((index, item.source, item.label) for index, item in enumerate(self.items))
        write_csv(self.directory / "examples.csv", ("index", "source", "label"), rows)


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable]) -> None:
    """Write a table as UTF-8 text with quotes where a name needs them."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def rendered(manifest: dict) -> str:
    """Return the text of dataset.json: the manifest and the checksum of its canonical form."""
    signed = manifest | {"sha256": files.fingerprint(manifest)}
    return json.dumps(signed, indent=1, ensure_ascii=False) + "\n"


# ---- reading


def load(directory: str | os.PathLike, *, verify: bool = True, known: dict[str, list[int]] | None = None) -> Dataset:
    """Map a prepared directory into memory, after checking that it is what was written.

    Args:
        directory: as given to `dataset`.
        verify: True compares sizes and checksums, False sizes alone.
        known: the `verified` of an earlier load: files whose size, time and inode are still the same are not read.

    Raises:
        errors.InputNotFound: there is no such directory.
        errors.DataError: a file is missing, too many, or not what it was; the message names it.
    """
    directory = validate.path("directory", directory)
    if not isinstance(known, (dict, type(None))):
        validate.reject("known", known, "the verified of an earlier load, or None")
    verify, manifest = validate.boolean("verify", verify), manifest_of(directory)
    try:
        return _loaded(directory, manifest, verify, known or {})
    except OSError as error:
        raise files.unreadable(error, directory) from error


def _loaded(directory: Path, manifest: dict, verify: bool, known: dict[str, list[int]]) -> Dataset:
    verified = {}
    total = sum(entry["bytes"] for entry in manifest["files"].values())
    with tqdm(total=total, desc="verify", unit="B", unit_scale=True, disable=None, delay=1) as progress:
        for name, expected in manifest["files"].items():
            path = directory / name
            if not path.is_file():
                raise _damaged(path, "missing")
            status = path.stat()
            stamp = [status.st_size, status.st_mtime_ns, status.st_ino]
            if status.st_size != expected["bytes"]:
                raise _damaged(path, f"{status.st_size} bytes, {expected['bytes']} were written")
            if verify and known.get(name) != stamp and files.sha256(path, progress.update) != expected["sha256"]:
                raise _damaged(path, OTHER_CHECKSUM)
            if verify:
                verified[name] = stamp
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name != "dataset.json" and not name.startswith(".") and name not in manifest["files"]:
            raise errors.DataError(f"{path}: does not belong to this data set; remove it, or prepare the data again")
    shape = tuple(manifest["image_shape"])
    splits = {name: _split(directory / name, entry["examples"], shape) for name, entry in manifest["splits"].items()}
    contents = {name: entry["sha256"] for name, entry in manifest["files"].items() if name.endswith(".npy")}
    fingerprint = files.fingerprint([contents, manifest["class_names"], list(shape)])
    return Dataset(directory, manifest["name"], manifest["class_names"], shape, splits, fingerprint, verified)


def _damaged(path: Path, what: str) -> errors.DataError:
    return errors.DataError(f"{path}: {what}; prepare the data again")


def manifest_of(directory: Path) -> dict:
    """Return what dataset.json says, without its own checksum.

    Raises:
        errors.InputNotFound, errors.DataError: there is none, or it is damaged.
    """
    path = directory / "dataset.json"
    if not directory.exists():
        make = f"tfpar prepare SOURCE {files.word(directory)}"
        raise errors.InputNotFound(f"{directory}: no such directory. Make it with: {make}")
    if not path.is_file():
        raise errors.DataError(f"{path}: missing, so not a prepared directory. Make one: tfpar prepare SOURCE DIR")
    try:
        text = path.read_text(encoding="utf-8")
        manifest = json.loads(text)
        del manifest["sha256"]
        if text != rendered(manifest):
            raise ValueError(OTHER_CHECKSUM)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damaged(path, OTHER_CHECKSUM) from error
    except OSError as error:
        raise files.unreadable(error, path) from error
    if manifest["format"] != FORMAT:
        raise _damaged(path, f"format {manifest['format']}, this tfpar reads {FORMAT}; update tfpar, or")
    return manifest


def names_of(directory: Path, manifest: dict) -> set[str]:
    """Return the names of all pictures of a prepared directory, those that were skipped included."""
    found = set()
    for path in [directory / "skipped.csv", *(directory / split / "examples.csv" for split in manifest["splits"])]:
        with open(path, newline="", encoding="utf-8") as file:
            found |= {row["source"] for row in csv.DictReader(file) if row.get("reason") != BESIDE}
    return found


def _split(directory: Path, examples: int, shape: tuple[int, int, int]) -> Split:
    with open(directory / "examples.csv", newline="", encoding="utf-8") as file:
        names = [row["source"] for row in csv.DictReader(file)]
    images, weights = _mapped(directory / "images.npy", (examples, *shape)), directory / "weights.npy"
    labels = np.load(directory / "labels.npy", allow_pickle=False)
    return Split(images, labels, names, np.load(weights, allow_pickle=False) if weights.is_file() else None)


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Map the pixels of an .npy file without reading them.

    The pages are private and writable because TensorFlow takes no read-only array without copying it; nothing
    writes to them, and if something did, the file would not change. NORESERVE: they need no swap behind them.
    """
    no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)  # Python names it from 3.11
    with open(path, "rb") as file:
        flags, prot = mmap.MAP_PRIVATE | no_reserve, mmap.PROT_READ | mmap.PROT_WRITE
        pages = mmap.mmap(file.fileno(), 0, flags=flags, prot=prot)
    return np.frombuffer(pages, np.uint8, offset=_HEADER).reshape(shape)
