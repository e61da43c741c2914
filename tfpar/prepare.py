"""Stage 1: any source of images -> a verified directory of arrays, split into train and validation.

Decoding costs a hundred times more than reading pixels, so it is done once. What training reads afterwards is one
flat array of `uint8` per split, which the system maps into memory (see `engine`).

Example:
    >>> data = prepare.dataset("digits", "data/digits")
    >>> data.train.images.shape, data.class_names[:3]
    ((1617, 8, 8, 1), ['0', '1', '2'])
    >>> data = prepare.load("data/digits")           # later: sizes and checksums are verified
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import mmap
import os
import shutil
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from tfpar import errors, files, pictures, sources

FORMAT = 1
MIXED_SIZE = (224, 224)  # what photographs of mixed sizes become, as most published backbones expect
SPLITS = ("train", "validation", "test")
_AT_WORK = ".preparing"  # inside the directory while it is being made
_HEADER = 128  # bytes before the pixels in an .npy file; NumPy pads it, so that the number of images may grow
_CHUNK = 16  # pictures one thread decodes at a time


class Split(NamedTuple):
    """One split: `uint8` images [N, height, width, channels], `int32` labels [N], and what each image was called."""

    images: np.ndarray
    labels: np.ndarray
    sources: list[str]


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


# ---- making one


def dataset(
    source,
    directory: str | os.PathLike,
    *,
    image_size: int | tuple[int, int] | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    on_bad_image: str = "skip",
    tfds_manual_dir: str | None = None,
) -> Dataset:
    """Turn a source of labelled images into a prepared directory, or find it there already.

    The same source, settings and seed give the same bytes. Until all of it is written, the directory is no data set.

    Args:
        source: `"digits"`, a TensorFlow data set's name, a folder of class folders, or arrays (see `sources`).
        directory: where it goes; made if it does not exist.
        image_size: pixels, one number or (height, width). None keeps a size that all pictures share, else 224.
        validation_fraction: of each class, where the source has no validation split of its own.
        seed: chooses the validation images.
        on_bad_image: `"skip"` writes a line into `skipped.csv`, `"fail"` stops.
        tfds_manual_dir: a folder with the files that TensorFlow Datasets would download.

    Raises:
        errors.SettingsError: the directory was prepared with other settings; the message lists both.
        errors.OutputError: something else lies there, or another process prepares it now.
        errors.InputNotFound, errors.DataError, errors.Unavailable: the source is not there, or unusable.

    Example:
        >>> prepare.dataset("../photos", "data/photos", image_size=96).num_classes
        24
    """
    size = _checked_size(image_size)
    if not 0 < validation_fraction < 1:
        raise errors.SettingsError(f"validation_fraction={validation_fraction}: give a number between 0 and 1, such as 0.1")
    if on_bad_image not in ("skip", "fail"):
        raise errors.SettingsError(f"on_bad_image={on_bad_image!r}: give skip or fail")
    if not 0 <= seed < 2**32:
        raise errors.SettingsError(f"seed={seed}: give a whole number from 0 to {2**32 - 1}")
    directory = Path(directory)
    settings = {"source": sources.identity(source), "validation_fraction": validation_fraction, "seed": seed}
    if (directory / "dataset.json").exists():
        return _found(directory, settings, size)
    found = sources.find(source, tfds_manual_dir=tfds_manual_dir)
    new = not directory.exists()
    if not new and (not directory.is_dir() or set(os.listdir(directory)) - {_AT_WORK}) and not (directory / _AT_WORK).is_dir():
        raise errors.OutputError(f"{directory}: something else lies there; name a new or empty directory")
    work = files.make_directory(directory / _AT_WORK)
    with files.locked(work / "lock", "another tfpar prepare"):
        try:
            manifest = _make(found, work, size, on_bad_image, settings)
            _publish(work, directory, manifest)
        except OSError as error:
            if isinstance(error, errors.KINDS):
                raise
            raise errors.InputOutputFailed(f"{directory}: {error.strerror or error}; nothing was left there") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
            if new and not (directory / "dataset.json").exists():
                shutil.rmtree(directory, ignore_errors=True)
    return load(directory, verify=False)


def _checked_size(image_size) -> tuple[int, int] | None:
    if image_size is None:
        return None
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or not all(isinstance(side, int) and 1 <= side <= 4096 for side in size):
        raise errors.SettingsError(f"image_size={image_size!r}: give pixels from 1 to 4096, as 96 or (height, width)")
    return size


def _found(directory: Path, settings: dict, size) -> Dataset:
    """Return what is there already, if it was prepared the same way."""
    there = _manifest(directory)
    wanted = settings | ({"image_size": list(size)} if size else {})
    has = {"image_size": there["image_shape"][:2]} | {key: there[key] for key in settings}
    differing = [f"{key} is {has[key]}, asked for {wanted[key]}" for key in wanted if wanted[key] != has[key]]
    if differing:
        raise errors.SettingsError(f"{directory}: prepared otherwise: {'; '.join(differing)}. Name another directory, or remove this one")
    print(f"{directory}: prepared already")
    return load(directory)


def _make(source: sources.Source, work: Path, size, on_bad_image: str, settings: dict) -> dict:
    """Decode all splits into `work`, and return what dataset.json will say."""
    for name in (*SPLITS, "skipped.csv"):  # what a killed process left
        path = work / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    size = size or source.size or _common_size(source)
    shape = (*size, source.channels)
    skipped: list[tuple[str, str]] = []
    splits = {}
    for split, inputs in source.splits.items():
        splits[split] = _Arrays(work / split, shape)
        progress = tqdm(inputs(), total=source.counts[split], desc=f"prepare {split}", unit=" images", disable=None)
        for item, picture in _decoded(progress, shape):
            if isinstance(picture, np.ndarray):
                splits[split].add(picture, item.label, item.source)
            elif on_bad_image == "fail":
                raise errors.DataError(f"{item.source}: {picture}. Remove it, or skip such pictures with --on-bad-image skip")
            else:
                skipped.append((item.source, picture))
    total = sum(len(arrays.labels) for arrays in splits.values())
    if len(skipped) > total:
        named = "; ".join(f"{source}: {reason}" for source, reason in skipped[:3])
        raise errors.DataError(f"{source.name}: {len(skipped)} of {total + len(skipped)} inputs cannot be used ({named}, ...)")
    class_names = _filled_classes(source.class_names, splits)
    if "validation" not in splits:
        chosen = _stratified(splits["train"], settings, class_names)
        splits["validation"] = splits["train"].move(chosen, work / "validation")
    if not splits["validation"].labels:
        raise errors.DataError(f"{source.name}: no image is left for validation; give more images or a larger validation fraction")
    for arrays in splits.values():
        arrays.close()
    _write_csv(work / "skipped.csv", ("source", "reason"), skipped)
    return _described(source.name, work, shape, class_names, splits, len(skipped), settings)


def _common_size(source: sources.Source) -> tuple[int, int]:
    sizes = set()
    for item in itertools.chain.from_iterable(inputs() for inputs in source.splits.values()):
        try:
            sizes.add(pictures.size(item.picture))
        except pictures.BadPicture:
            continue  # it gets its line in skipped.csv when it is decoded
        if len(sizes) > 1:
            return MIXED_SIZE
    if not sizes:
        raise errors.DataError(f"{source.name}: none of its files is a picture that can be read")
    return sizes.pop()


def _decoded(inputs: Iterable[sources.Input], shape) -> Iterator[tuple[sources.Input, np.ndarray | str]]:
    """Yield each input with its pixels or its reason, in order, decoded on all cores, a bounded number in flight."""

    def decode(chunk):
        return [(item, item.reason or _pixels_or_reason(item.picture, shape)) for item in chunk]

    inputs = iter(inputs)
    chunks = iter(lambda: list(itertools.islice(inputs, _CHUNK)), [])
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:  # threads suffice: Pillow lets go of the interpreter while it decodes
        running = deque(pool.submit(decode, chunk) for chunk in itertools.islice(chunks, 2 * workers))
        while running:
            yield from running.popleft().result()
            running.extend(pool.submit(decode, chunk) for chunk in itertools.islice(chunks, 1))


def _pixels_or_reason(picture, shape) -> np.ndarray | str:
    try:
        return pictures.load(picture, shape[:2], channels=shape[2])
    except pictures.BadPicture as reason:
        return str(reason)


class _Arrays:
    """The three files of one split while they grow."""

    def __init__(self, directory: Path, shape: tuple[int, int, int]):
        directory.mkdir()
        self.directory, self.shape = directory, shape
        self.labels: list[int] = []
        self.sources: list[str] = []
        self.file = open(directory / "images.npy", "w+b")  # noqa: SIM115 - closed in close()
        self.file.write(self._header())

    def _header(self) -> bytes:
        text = io.BytesIO()
        shape = (len(self.labels), *self.shape)
        np.lib.format.write_array_header_1_0(text, {"descr": "|u1", "fortran_order": False, "shape": shape})
        if text.tell() != _HEADER:
            raise RuntimeError(f"this NumPy writes a header of {text.tell()} bytes, not {_HEADER}")
        return text.getvalue()

    def add(self, image: np.ndarray, label: int, source: str) -> None:
        self.file.write(image.tobytes())
        self.labels.append(label)
        self.sources.append(source)

    def move(self, chosen: np.ndarray, directory: Path) -> _Arrays:
        """Move the images at the positions `chosen` to another split, and close the gaps in this one."""
        self.file.flush()
        other = _Arrays(directory, self.shape)
        pixels = np.memmap(self.file, np.uint8, "r+", _HEADER, (len(self.labels), *self.shape))
        moves = np.isin(np.arange(len(pixels)), chosen)
        kept = 0
        for position in range(len(pixels)):  # one image at a time: the memory stays bounded
            if moves[position]:
                other.add(pixels[position], self.labels[position], self.sources[position])
            else:
                pixels[kept] = pixels[position]
                kept += 1
        pixels.flush()
        self.labels = [label for label, moved in zip(self.labels, moves, strict=True) if not moved]
        self.sources = [source for source, moved in zip(self.sources, moves, strict=True) if not moved]
        self.file.truncate(_HEADER + kept * int(np.prod(self.shape)))
        return other

    def close(self) -> None:
        self.file.seek(0)
        self.file.write(self._header())
        self.file.close()
        np.save(self.directory / "labels.npy", np.asarray(self.labels, np.int32))
        rows = zip(itertools.count(), self.sources, self.labels)  # noqa: B905 - count() never ends
        _write_csv(self.directory / "examples.csv", ("index", "source", "label"), rows)


def _filled_classes(class_names: list[str], splits: dict[str, _Arrays]) -> list[str]:
    """Leave out the classes without an image, renumber the others, and return their names."""
    counts = {split: Counter(arrays.labels) for split, arrays in splits.items()}
    for split, count in counts.items():
        missing = [class_names[label] for label in sorted(set(count) - set(counts["train"]))]
        if missing:
            raise errors.DataError(
                f"class {missing[0]} is in {split} and not in train; add training pictures of it, or remove it from {split}"
            )
    filled = sorted(counts["train"])
    for label in sorted(set(range(len(class_names))) - set(filled)):
        print(f"class {class_names[label]}: no usable picture, left out")
    if len(filled) < 2:
        named = f"only class {class_names[filled[0]]}" if filled else "no class"
        raise errors.DataError(f"{named} has pictures; a classifier needs at least two classes")
    number = {old: new for new, old in enumerate(filled)}
    for arrays in splits.values():
        arrays.labels = [number[label] for label in arrays.labels]
    return [class_names[label] for label in filled]


def _stratified(arrays: _Arrays, settings: dict, class_names: list[str]) -> np.ndarray:
    """Choose the validation images of each class: those whose names hash lowest.

    A hash of (seed, name) needs no random stream: adding pictures later leaves the choice of the others alone.
    """
    labels = np.asarray(arrays.labels)
    chosen = []
    for label, name in enumerate(class_names):
        members = np.flatnonzero(labels == label)
        if len(members) == 1:
            print(f"class {name}: its one image goes to train, none to validation")
            continue
        wanted = min(max(1, round(settings["validation_fraction"] * len(members))), len(members) - 1)
        ranked = sorted(members, key=lambda i: hashlib.sha256(f"{settings['seed']}:{arrays.sources[i]}".encode()).digest())
        chosen.extend(ranked[:wanted])
    return np.asarray(sorted(chosen), np.int64)


def _write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _described(name, work: Path, shape, class_names, splits: dict[str, _Arrays], skipped: int, settings: dict) -> dict:
    import PIL

    paths = [path for path in sorted(work.rglob("*")) if path.is_file() and path.name != "lock"]
    counts = {split: Counter(arrays.labels) for split, arrays in splits.items()}
    return {
        "format": FORMAT,
        "name": name,
        **settings,
        "class_names": class_names,
        "image_shape": list(shape),
        "splits": {
            split: {
                "examples": sum(counts[split].values()),
                "per_class": {class_name: counts[split][label] for label, class_name in enumerate(class_names)},
            }
            for split in splits
        },
        "files": {
            path.relative_to(work).as_posix(): {"bytes": path.stat().st_size, "sha256": files.sha256(path)} for path in paths
        },
        "skipped": skipped,
        "versions": {"numpy": np.__version__, "pillow": PIL.__version__},
    }


def _publish(work: Path, directory: Path, manifest: dict) -> None:
    """Move the finished files into place, dataset.json last: with it the directory becomes a data set."""
    for path in manifest["files"]:
        files.sync(work / path)
    for name in sorted({path.split("/")[0] for path in manifest["files"]}):
        target = directory / name
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        (work / name).rename(target)
        files.sync(target)
    manifest["sha256"] = files.fingerprint(manifest)
    files.write(directory / "dataset.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


# ---- reading one


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
    directory = Path(directory)
    manifest = _manifest(directory)
    verified = {}
    with tqdm(total=_bytes_to_read(manifest), desc="verify", unit="B", unit_scale=True, disable=None, delay=1) as progress:
        for name, expected in manifest["files"].items():
            path = directory / name
            if not path.is_file():
                raise errors.DataError(f"{path}: missing; prepare the data again")
            status = path.stat()
            stamp = [status.st_size, status.st_mtime_ns, status.st_ino]
            if status.st_size != expected["bytes"]:
                raise errors.DataError(f"{path}: {status.st_size} bytes, {expected['bytes']} were written; prepare the data again")
            if verify and (known or {}).get(name) != stamp and files.sha256(path, progress.update) != expected["sha256"]:
                raise errors.DataError(f"{path}: damaged, its checksum is not the one that was written; prepare the data again")
            verified[name] = stamp
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name != "dataset.json" and not name.startswith(".") and name not in manifest["files"]:
            raise errors.DataError(f"{path}: does not belong to this data set; remove it, or prepare the data again")
    shape = tuple(manifest["image_shape"])
    splits = {split: _split(directory / split, described["examples"], shape) for split, described in manifest["splits"].items()}
    contents = {name: entry["sha256"] for name, entry in manifest["files"].items() if name.endswith(".npy")}
    fingerprint = files.fingerprint([contents, manifest["class_names"], list(shape)])
    return Dataset(directory, manifest["name"], manifest["class_names"], shape, splits, fingerprint, verified)


def _bytes_to_read(manifest: dict) -> int:
    return sum(entry["bytes"] for entry in manifest["files"].values())


def _manifest(directory: Path) -> dict:
    path = directory / "dataset.json"
    if not directory.is_dir():
        raise errors.InputNotFound(f"{directory}: no such directory. Make it with: tfpar prepare SOURCE {directory}")
    if not path.is_file():
        raise errors.DataError(f"{path}: missing, so this is not a prepared directory. Make one with: tfpar prepare SOURCE DIR")
    try:
        manifest = json.loads(path.read_bytes())
        stated = manifest.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise errors.DataError(f"{path}: damaged, it is not what was written; prepare the data again") from error
    except OSError as error:
        raise errors.InputNotFound(f"{path}: cannot be read ({error.strerror})") from error
    if stated != files.fingerprint(manifest):
        raise errors.DataError(f"{path}: damaged, its checksum is not the one that was written; prepare the data again")
    if manifest["format"] != FORMAT:
        raise errors.DataError(f"{path}: format {manifest['format']}, this tfpar reads {FORMAT}; prepare the data again, or update tfpar")
    return manifest


def _split(directory: Path, examples: int, shape: tuple[int, int, int]) -> Split:
    with open(directory / "examples.csv", newline="", encoding="utf-8") as file:
        names = [row["source"] for row in csv.DictReader(file)]
    images = _mapped(directory / "images.npy", (examples, *shape))
    return Split(images, np.load(directory / "labels.npy", allow_pickle=False), names)


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Map the pixels of an .npy file without reading them.

    The pages are private and writable because TensorFlow takes no read-only array without copying it; nothing
    writes to them, and if something did, the file would not change. NORESERVE: they need no swap behind them.
    """
    if 0 in shape:
        return np.zeros(shape, np.uint8)
    with open(path, "rb") as file:
        if hasattr(mmap, "MAP_PRIVATE") and os.uname().sysname == "Linux":
            no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python names it from 3.11
            pages = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE | no_reserve, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        else:
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return np.frombuffer(pages, np.uint8, offset=_HEADER).reshape(shape)
