"""`prepare.dataset`: decode every picture of a source once, split the images, and publish the directory as a whole."""

import contextlib
import itertools
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
from tqdm import tqdm

from tfpar import errors, files, validate
from tfpar.prepare import arrays, holdout, pictures, reuse, sources
from tfpar.prepare.arrays import SplitWriter
from tfpar.prepare.inputs import BESIDE, Input, Source

MIXED_SIZE = (224, 224)  # what photographs of mixed sizes become, as most published backbones expect
UNBALANCED = 10  # times the images of the smallest class
_AT_WORK = ".preparing"  # inside the directory while it is being made
_PARTS = ("train", "validation", "test", "skipped.csv")  # what lies beside dataset.json
_SPARE = 3  # descriptors kept until the work is removed, which opens every directory
_CHUNK = 16  # pictures one thread decodes at a time


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
    splits: bool | None = None,
    group_by: str | None = None,
    fresh: bool = False,
    known: dict[str, list[int]] | None = None,
) -> arrays.Dataset:
    """Turn a source of labelled images into a prepared directory, or find it there already.

    The same source, settings, seed and versions give the same bytes. Until all of it is written, the directory is no data set.

    Args:
        source: `"digits"`, a TensorFlow data set's name, a folder of class folders, a table, arrays, a `tf.data.Dataset` or
            a generator (see `sources`).
        directory: where it goes; made if it does not exist.
        image_size: pixels, one number or (height, width). None keeps a size that all pictures share, else 224.
        validation_fraction: of each class, where the source has no validation split of its own.
        seed: chooses the validation images.
        on_bad_image: `"skip"` writes a line into `skipped.csv`, `"fail"` stops.
        tfds_manual_dir: a folder with the files that TensorFlow Datasets would download.
        splits: whether the folders of a folder are splits, such as `train` and `val`; None decides by their names. For a
            table, whether its column `split` counts.
        group_by: a column of a table, or a regular expression whose first group in the path names a picture's group:
            all images of a group, such as one patient's, stay on one side of the split.
        fresh: prepare again; an earlier directory is kept beside as `DIRECTORY.1`, `DIRECTORY.2`, ...
        known: as for `load`, where the directory is found there already.

    Raises:
        errors.SettingsError: the directory was prepared with other settings; the message lists both.
        errors.OutputError: the directory holds other files, or another process prepares it now.
        errors.InputNotFound, errors.DataError, errors.Unavailable: the source is not there, or unusable.

    Example:
        >>> prepare.dataset("photos", "data/photos", image_size=96).class_names
        ['cat', 'dog']
    """
    size = _checked_size(image_size)
    validation_fraction = validate.number("validation_fraction", validation_fraction, 1e-6, 0.999999)
    validate.choice("on_bad_image", on_bad_image, ("skip", "fail"))
    seed = validate.integer("seed", seed, 0, validate.MOST_SEED)
    directory, fresh = validate.path("directory", directory), validate.boolean("fresh", fresh)
    splits = None if splits is None else validate.boolean("splits", splits)
    settings = {"validation_fraction": validation_fraction, "seed": seed}
    optional = {"folders_are_splits": splits, "group_by": group_by}
    settings |= {name: value for name, value in optional.items() if value is not None}
    there = (directory / "dataset.json").exists()
    if there and not fresh:
        sources.kind_of(source, tfds_manual_dir=tfds_manual_dir)
        reuse.check(directory, source, settings, size)
        return arrays.load(directory, known=known)
    found = sources.find(source, tfds_manual_dir=tfds_manual_dir, splits=splits, group_by=group_by, size=size)
    settings = {"source": "" if found.identity else sources.identity(source)} | settings
    beside = files.set_aside(directory) if there else None
    try:
        _write(found, directory, size, on_bad_image, settings)
    except BaseException:
        if beside:
            Path(beside).rename(directory)
        raise
    if beside:
        print(f"the earlier directory is kept as {beside}")
    return arrays.load(directory, verify=False)


def _write(source: Source, directory: Path, size, on_bad_image: str, settings: dict) -> None:
    """Write the directory; after an error nothing of it is left."""
    new, work = not directory.exists(), directory / _AT_WORK
    if not new and not work.is_dir() and (not directory.is_dir() or set(os.listdir(directory)) - {_AT_WORK}):
        raise errors.OutputError(f"{directory}: exists and is not a prepared directory; name a new or empty one")
    with contextlib.ExitStack() as spare:
        for _ in range(_SPARE):
            spare.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        files.make_directory(work)
        for made in [directory] * new + [work]:
            spare.callback(_remove_if_empty, made)  # as where not even the lock's file could be made
        with files.locked(work / "lock", "another tfpar prepare"):
            try:
                with pictures.quiet(), contextlib.ExitStack() as opened:
                    manifest = _make(source, work, size, on_bad_image, settings, opened)
                _publish(work, directory, manifest)
            except OSError as error:
                if isinstance(error, errors.KINDS):
                    raise
                why = f"{directory}: {error.strerror or error}; nothing was left there"
                raise errors.InputOutputFailed(f"{why}. {files.remedy(error)}") from error
            finally:
                spare.close()
                shutil.rmtree(work, ignore_errors=True)
                if not (directory / "dataset.json").exists():
                    for name in _PARTS:  # what was published before it failed
                        files.remove(directory / name)
                    if new:
                        shutil.rmtree(directory, ignore_errors=True)


def _remove_if_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()


def _checked_size(image_size) -> tuple[int, int] | None:
    if image_size is None:
        return None
    sides = image_size if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(sides) != 2:
        validate.reject("image_size", image_size, "pixels from 1 to 4096, as 96 or (height, width)")
    return tuple(validate.integer("image_size", side, 1, 4096) for side in sides)


def _make(source: Source, work: Path, size, on_bad_image: str, settings: dict, opened) -> dict:
    """Decode all splits into `work`, and return what dataset.json will say."""
    for path in set(work.iterdir()) - {work / "lock"}:  # what a killed process left
        files.remove(path)
    size = size or source.size or _common_size(source)
    shape = (*size, source.channels)
    skipped: list[tuple[str, str]] = []
    splits = {}
    for split in source.splits:
        splits[split] = SplitWriter(work / split, shape, opened)
        skipped += _fill(splits[split], source, split, on_bad_image)
    total = sum(len(writer.items) for writer in splits.values())
    bad = [entry for entry in skipped if entry[1] != BESIDE]
    if len(bad) > total:
        named = "; ".join(f"{source}: {reason}" for source, reason in bad[:3])
        raise errors.DataError(f"{source.name}: {len(bad)} of {total + len(bad)} inputs cannot be used ({named}, ...)")
    class_names = _filled_classes(source, splits)
    _hold_out(source, splits, class_names, settings)
    holdout.tell_same_pictures(splits, class_names)
    for writer in splits.values():
        writer.close()
    arrays.write_csv(work / "skipped.csv", ("source", "reason"), skipped)
    if source.identity:
        settings = settings | {"source": source.identity()}
    return _described(source, work, shape, class_names, splits, len(skipped), settings)


def _hold_out(source: Source, splits: dict[str, SplitWriter], class_names: list[str], settings: dict) -> None:
    """Give the source a validation split where it has none of its own; tell of classes that are much larger than others."""
    train = splits["train"]
    (most, largest), *_, (least, smallest) = train.counts().most_common()
    if largest >= UNBALANCED * smallest:
        both = f"class {class_names[most]} has {largest} images and {class_names[least]} has {smallest}"
        print(f"{both}: consider train --class-weights balanced")
    if all(item.weight == 0 for item in train.items):
        raise errors.DataError(f"{source.name}: every image of train has the weight 0; give some a larger weight")
    todo = "give more images, more groups, or a larger validation fraction"
    if "validation" in splits:
        holdout.check_groups(splits)
        todo = "add images to that split, or remove it, so that a part of train is held out"
    else:
        chosen = holdout.chosen(train, class_names, fraction=settings["validation_fraction"], seed=settings["seed"])
        splits["validation"] = train.move(chosen, train.directory.with_name("validation"))
    if not splits["validation"].items:
        raise errors.DataError(f"{source.name}: no image is left for validation; {todo}")


def _fill(writer: SplitWriter, source: Source, split: str, on_bad_image: str) -> list[tuple[str, str]]:
    """Decode the pictures of a split, and return (source, reason) of those that cannot be used."""
    inputs, total, skipped = source.splits[split](), source.counts[split], []
    progress = tqdm(inputs, total=total, desc=f"prepare {split}", unit=" images", disable=None)
    for item, picture in _decoded(progress, writer.shape):
        if isinstance(picture, np.ndarray):
            writer.add(picture, item)
        elif on_bad_image == "fail" and picture != BESIDE:
            raise errors.DataError(f"{item.source}: {picture}. Remove it, or give --on-bad-image skip")
        else:
            skipped.append((item.source, picture))
    read = len(writer.items) + len(skipped)
    if total not in (None, read):  # a record file that was cut between two records reads short without an error
        raise errors.DataError(f"{source.name}: {split} gave {read} of {total} inputs, cut short: fetch its files")
    return skipped


def _common_size(source: Source) -> tuple[int, int]:
    sizes, first = set(), ""
    for item in itertools.chain.from_iterable(inputs() for inputs in source.splits.values()):
        if not item.reason:
            try:
                sizes.add(pictures.size(item.picture))
            except pictures.BadPicture as reason:  # it gets its line in skipped.csv when it is decoded
                first = first or f" ({item.source}: {reason})"
        if len(sizes) > 1:
            return MIXED_SIZE
    if not sizes:
        of_table = source.name.endswith((".csv", ".parquet"))
        todo = "give pictures" + "; the paths of a table are relative to the table" * of_table
        raise errors.DataError(f"{source.name}: none of its files is a picture that can be read{first}; {todo}")
    return sizes.pop()


def _decoded(inputs: Iterable[Input], shape) -> Iterator[tuple[Input, np.ndarray | str]]:
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


def _filled_classes(source: Source, splits: dict[str, SplitWriter]) -> list[str]:
    """Leave out the classes without an image, number the others, and return their names."""
    counts = {split: writer.counts() for split, writer in splits.items()}
    for split, count in counts.items():
        if missing := sorted(set(count) - set(counts["train"])):
            raise errors.DataError(f"class {missing[0]} is in {split} alone; add it to train, or remove it there")
    with errors.translated(TypeError, errors.DataError, "labels are of two kinds; give whole numbers or text"):
        known = source.class_names or sorted(counts["train"])
    filled = [name for name in known if name in counts["train"]]
    for name in known:
        if name not in counts["train"]:
            print(f"class {name}: no usable picture, left out")
    if len(filled) < 2:
        named = f"only class {filled[0]}" if filled else "no class"
        raise errors.DataError(f"{named} has pictures; a classifier needs at least two classes.{source.hint}")
    number = {name: i for i, name in enumerate(filled)}
    for writer in splits.values():
        writer.items = [item._replace(label=number[item.label]) for item in writer.items]
    return [str(name) for name in filled]


def _described(source: Source, work: Path, shape, class_names, splits, skipped: int, settings: dict) -> dict:
    paths = [path for path in sorted(work.rglob("*")) if path.is_file() and path.name != "lock"]
    counts = {split: writer.counts() for split, writer in splits.items()}
    return {
        "format": arrays.FORMAT,
        "name": source.name,
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
            path.relative_to(work).as_posix(): {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
            for path in paths
        },
        "skipped": skipped,
        "versions": {"numpy": np.__version__, "pillow": PIL.__version__},
        **({"source_files": source.stamp} if source.stamp else {}),
    }


def _publish(work: Path, directory: Path, manifest: dict) -> None:
    """Move the finished files into place, dataset.json last: with it the directory becomes a data set."""
    for path in manifest["files"]:
        files.sync(work / path)
    for name in sorted({path.split("/")[0] for path in manifest["files"]}):
        target = directory / name
        files.remove(target)
        (work / name).rename(target)
        files.sync(target)
    files.write(work / "dataset.json", arrays.rendered(manifest))
    (work / "dataset.json").rename(directory / "dataset.json")
    files.sync(directory)
