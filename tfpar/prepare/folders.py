"""Folders of pictures: one folder per class, perhaps inside folders for train and validation."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from tfpar import errors, files
from tfpar.prepare import inputs
from tfpar.prepare.inputs import BESIDE, Input, Source

TRAIN = ("train", "training")
HELD_OUT = ("validation", "valid", "val", "dev", "eval", "test")  # the first that is there becomes validation
FOREIGN = (
    ".json", ".xml", ".txt", ".csv", ".tsv", ".md", ".html", ".yaml", ".yml", ".ini", ".db", ".pkl", ".npy", ".zip", ".parquet",
)  # fmt: skip


def source(root: Path, splits: bool | None, group: re.Pattern | None) -> Source:
    """Return a folder as a source.

    Args:
        root: the folder.
        splits: whether its folders are splits; None decides by their names.
        group: its first group in a picture's path inside the folder names the picture's group.

    Raises:
        errors.InputNotFound: it is no folder, or cannot be read.
        errors.DataError: there are no classes, two readings are possible, or a path has no group.
    """
    classes, listed = _find(root, splits)
    index = {name: i for i, name in enumerate(classes)}

    def named(split):
        for name, path in listed[split]:
            inside = files.printable(path.relative_to(root).as_posix())
            reason = "" if name is not None else "not inside a class folder"
            reason = BESIDE if foreign(path.name) else reason
            found = group.search(inside) if group and not reason else None
            if group and not reason and not (found and found[1]):
                raise errors.DataError(
                    f"{inside}: the pattern {group.pattern} of --group-by finds no group in this path"
                )
            yield Input(inside, index.get(name), path, reason, group=found[1] if found else None)

    return Source(
        name=files.name_of(root),
        class_names=classes,
        splits={split: lambda split=split: named(split) for split in listed},
        counts={split: len(found) for split, found in listed.items()},
        stamp=inputs.stamp([path for found in listed.values() for _, path in found if not foreign(path.name)]),
        hint=_superfluous(root) if len(classes) < 2 else "",
    )


def _find(root: Path, splits: bool | None) -> tuple[list[str], dict[str, list[tuple[str | None, Path]]]]:
    """Return the names of the classes, and for each split (class or None, file) of every file, in a fixed order."""
    if not root.is_dir():
        raise errors.InputNotFound(
            f"{files.printable(str(root))}: not a folder; give a folder with one folder per class inside"
        )
    roots = _roots(root, _folders(root), splits)
    listed = {split: list(_walk(path)) for split, path in roots.items()}
    named = {name for found in listed.values() for name, path in found if name is not None and not foreign(path.name)}
    spellings = Counter(map(_composed, named))
    for name, count in spellings.items():
        if count > 1:
            print(f"class {name}: its folders are spelled in composed and in decomposed Unicode, and are one class")
    if not any(name is not None and not foreign(path.name) for name, path in listed["train"]):
        raise errors.DataError(_no_classes(root, roots["train"], listed["train"]))
    for split, path in roots.items():
        filled = {name for name, _ in listed[split]}
        for name in _folders(path):
            if name not in filled:
                print(f"{files.printable(str(path / name))}: an empty folder, left out")
    for found in listed.values():
        found[:] = [(None if name is None else _composed(name), path) for name, path in found]
    return sorted(spellings), listed


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", files.printable(name))


def _folders(root: Path) -> list[str]:
    try:
        names = sorted(os.listdir(root))
    except OSError as error:
        raise errors.InputNotFound(
            f"{files.printable(str(root))}: cannot be read ({error.strerror}). {files.remedy(error)}"
        ) from error
    return [name for name in names if (root / name).is_dir() and not _hidden(name)]


def foreign(name: str) -> bool:
    """Tell whether a file is hidden, or lies beside pictures without being one."""
    return _hidden(name) or name.lower().endswith(FOREIGN)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def roles(names: Collection[str]) -> dict[str, str]:
    """Return which of these names of splits becomes train, which validation, and which test."""
    held_out = [name for name in HELD_OUT if name in names]
    found = {"train": "train"} if "train" in names else {}
    if held_out:
        found["validation"] = held_out[0]
    return found | ({"test": "test"} if "test" in held_out[1:] else {})


def _roots(root: Path, folders: list[str], splits: bool | None) -> dict[str, Path]:
    """Return the folder of each split; the root alone where its folders are classes."""
    by_name: dict[str, list[str]] = {}
    for name in folders:
        if name.lower() in TRAIN + HELD_OUT:
            by_name.setdefault("train" if name.lower() in TRAIN else name.lower(), []).append(name)
    if splits is False or (splits is None and not by_name):
        return {"train": root}
    twice = next((names for names in by_name.values() if len(names) > 1), None)
    others = [name for name in folders if name.lower() not in TRAIN + HELD_OUT]
    answers = "say --splits if they are splits, --no-splits if they are classes (splits=True or False in Python)"
    shown = ", ".join(files.printable(name) for name in folders[:6])
    if twice or (splits is None and others):
        why = f"{' and '.join(twice)} are two folders for one split" if twice else "splits beside other folders"
        raise errors.DataError(f"{files.printable(str(root))}: {why} ({shown}). Rename or move one, or {answers}")
    by_role = roles(by_name)
    if not {"train", "validation"} <= by_role.keys():
        if splits is None:  # such as test alone: a class
            return {"train": root}
        raise errors.DataError(
            f"{files.printable(str(root))}: --splits, and no folder train with one of {', '.join(HELD_OUT)} ({shown}); say --no-splits"
        )
    found = {role: root / by_name[name][0] for role, name in by_role.items()}
    left = [name for name in folders if root / name not in found.values()]
    if left:
        print(
            f"{files.printable(str(root))}: {', '.join(map(files.printable, left))} left out; validation is {found['validation'].name}"
        )
    return found


def pictures(root: str) -> list[str]:
    """Return the paths of all files below a folder that may be pictures, in a fixed order.

    Raises:
        errors.InputNotFound: there is none, or a folder cannot be read.
    """
    found = [str(path) for _, path in _walk(Path(root)) if not foreign(path.name)]
    if not found:
        raise errors.InputNotFound(f"{files.printable(root)}: no pictures in it or below. Name a folder with pictures")
    return found


def _no_classes(root: Path, train: Path, listed: list) -> str:
    """Return where the classes seem to be, for the message that there are none."""
    place, flat = (
        files.printable(str(train)),
        [path.name for name, path in listed if name is None and not foreign(path.name)],
    )
    if flat:
        return (
            f"{place}: {len(flat)} files lie directly in it; put each into a folder named after its class, such as "
            f"{place}/cat/{files.printable(flat[0])}"
        )
    return f"{files.printable(str(root))}: no pictures in it; give a folder with one folder per class and pictures in those"


def _superfluous(root: Path) -> str:
    """Return a hint where the one class of a folder holds folders that look like the classes; otherwise nothing."""
    for name in _folders(root):
        inside = _folders(root / name)
        if len(inside) > 1:
            shown = ", ".join(files.printable(each) for each in inside[:3])
            return f" Its folder {files.printable(name)} holds {shown}: give {files.printable(str(root / name))} if those are the classes."
    return ""


def _walk(root: Path) -> Iterator[tuple[str | None, Path]]:
    """Yield (class folder or None, path) of every file below a folder, in a fixed order; visit each folder once."""
    seen = set()

    def unreadable(error: OSError):
        raise errors.InputNotFound(
            f"{files.printable(str(error.filename))}: cannot be read ({error.strerror}). {files.remedy(error)}"
        ) from error

    for folder, below, names in os.walk(root, followlinks=True, onerror=unreadable):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        below[:] = sorted((name for name in below if not _hidden(name)), key=os.fsencode)
        parts = Path(folder).relative_to(root).parts
        for name in sorted(names, key=os.fsencode):
            yield (parts[0] if parts else None), Path(folder) / name
