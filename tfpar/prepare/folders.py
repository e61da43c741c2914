"""Folders of pictures: one folder per class, perhaps inside folders for train and validation."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from tfpar import errors, files
from tfpar.prepare.inputs import BESIDE, Input, Source, stamp_of

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

    def named(split):
        for name, path in listed[split]:
            inside = files.printable(path.relative_to(root).as_posix())
            reason = BESIDE if foreign(path.name) else "" if name else "not inside a class folder"
            found = group and group.search(inside)
            if group and not reason and not (found and found[1]):
                raise errors.DataError(f"{inside}: --group-by {group.pattern} finds no group in this path")
            yield Input(inside, name, path, reason, group=found and found[1])

    return Source(
        name=files.name_of(root),
        class_names=classes,
        splits={split: lambda split=split: named(split) for split in listed},
        counts={split: len(found) for split, found in listed.items()},
        stamp=stamp_of([path for found in listed.values() for _, path in found if not foreign(path.name)]),
        hint=_superfluous(root) if len(classes) < 2 else "",
    )


def _find(root: Path, splits: bool | None) -> tuple[list[str], dict[str, list[tuple[str | None, Path]]]]:
    """Return the names of the classes, and for each split (class or None, file) of every file, in a fixed order."""
    if not root.is_dir():
        raise errors.InputNotFound(f"{files.printable(root)}: not a folder; give class folders, or a .csv or .parquet")
    roots = _roots(root, _folders(root), splits)
    listed = {split: [each for path in paths for each in _walk(path)] for split, paths in roots.items()}
    pictures = {split: [each for each in found if not foreign(each[1].name)] for split, found in listed.items()}
    if not any(name for name, _ in pictures["train"]):
        raise errors.DataError(_no_classes(root, roots["train"][0], pictures["train"]))
    folders = [(split, path / name) for split, paths in roots.items() for path in paths for name in _folders(path)]
    tell_spellings(path.name for _, path in folders)
    filled = {(split, name) for split, found in listed.items() for name, _ in found}
    for split, path in folders:
        if (split, composed(path.name)) not in filled:
            print(f"{files.printable(path)}: an empty folder, left out")
    return sorted({name for found in pictures.values() for name, _ in found if name}), listed


def composed(name: str) -> str:
    """Return the name of a class in composed Unicode."""
    return unicodedata.normalize("NFC", files.printable(name))


def tell_spellings(names: Iterable[str]) -> None:
    """Print a line for each class whose name is spelled in two ways."""
    for name, count in Counter(composed(name) for name in set(names)).items():
        if count > 1:
            print(f"class {name}: its name is spelled in composed and in decomposed Unicode, and is one class")


def _folders(root: Path) -> list[str]:
    _, found, _ = next(_walk_of_system(root))
    return sorted(name for name in found if not _hidden(name))


def foreign(name: str) -> bool:
    """Tell whether a file is hidden, or lies beside pictures without being one."""
    return _hidden(name) or name.lower().endswith(FOREIGN)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def roles(names: Collection[str]) -> dict[str, str]:
    """Return which of these names of splits becomes train, which validation, and which test.

    Example:
        >>> folders.roles({"train", "dev", "test"})
        {'train': 'train', 'validation': 'dev', 'test': 'test'}
        >>> folders.roles({"train", "test"})
        {'train': 'train', 'validation': 'test'}
    """
    held_out = [name for name in HELD_OUT if name in names]
    found = {"train": "train"} if "train" in names else {}
    if held_out:
        found["validation"] = held_out[0]
    return found | ({"test": "test"} if "test" in held_out[1:] else {})


def _roots(root: Path, folders: list[str], splits: bool | None) -> dict[str, list[Path]]:
    """Return the folders of each split, several where they differ in case; the root alone where its folders are classes."""
    by_name: dict[str, list[str]] = {}
    for name in folders:
        if name.lower() in TRAIN + HELD_OUT:
            by_name.setdefault("train" if name.lower() in TRAIN else name.lower(), []).append(name)
    if splits is None and not by_name and read_like_splits(folders):
        why = f"{files.printable(root)}: {', '.join(map(files.printable, folders))} read like splits"
        raise errors.DataError(f"{why}. Rename them train, val and test, or prepare it with --no-splits (splits=False)")
    if splits is False or (splits is None and not by_name):
        return {"train": [root]}
    twice = next((names for names in by_name.values() if len(names) > 1), None)
    others = sum(map(len, by_name.values())) < len(folders)
    answers = (
        "prepare it with --splits if they are splits, --no-splits if they are classes (splits=True or False in Python)"
    )
    shown = ", ".join(map(files.printable, folders[:6]))
    if splits is None and (twice or others):
        why = f"{' and '.join(twice)} are two folders for one split" if twice else "splits beside other folders"
        raise errors.DataError(f"{files.printable(root)}: {why} ({shown}). Rename or move one, or {answers}")
    by_role = roles(by_name)
    if not {"train", "validation"} <= by_role.keys():
        if splits is None:  # such as test alone: a class
            return {"train": [root]}
        why = f"--splits, and no folder train with one of {', '.join(HELD_OUT)} ({shown})"
        raise errors.DataError(f"{files.printable(root)}: {why}; say --no-splits")
    found = {role: [root / each for each in by_name[name]] for role, name in by_role.items()}
    if left := sorted(set(folders).difference(*(by_name[name] for name in by_role.values()))):
        shown = ", ".join(map(files.printable, left))
        print(f"{files.printable(root)}: {shown} left out; validation is {by_role['validation']}")
    return found


def read_like_splits(folders: list[str]) -> bool:
    """Tell whether each name has a word of a split in it, such as training_set and test_set, or train2017 and val2017."""
    found = [{*re.findall("[a-z]+", name.lower())} & {*TRAIN, *HELD_OUT} for name in folders]
    every = set().union(*found)
    return all(found) and bool(every & {*TRAIN} and every & {*HELD_OUT})


def pictures(root: str) -> list[str]:
    """Return the sorted paths of all files below a folder that may be pictures.

    Raises:
        errors.InputNotFound: there is none, or a folder cannot be read.
    """
    found = sorted(str(path) for _, path in _walk(Path(root)) if not foreign(path.name))
    if not found:
        raise errors.InputNotFound(f"{files.printable(root)}: no pictures in it or below. Name a folder with pictures")
    return found


def _no_classes(root: Path, train: Path, pictures: list[tuple[None, Path]]) -> str:
    """Return where the classes seem to be, for the message that there are none."""
    if pictures:
        moved = files.printable(train / "cat" / pictures[0][1].name)
        splits = "; prepare it with --no-splits if the folders beside it are classes as well" * (train != root)
        return f"{files.printable(train)}: {len(pictures)} files lie directly in it; put each into a folder named after its class, such as {moved}{splits}"
    return f"{files.printable(root)}: no pictures in it; give a folder with one folder per class and pictures in those"


def _superfluous(root: Path) -> str:
    """Return a hint where the one class of a folder holds folders that look like the classes; otherwise nothing."""
    for name in _folders(root):
        inside = _folders(root / name)
        if len(inside) > 1:
            shown = ", ".join(map(files.printable, inside[:3]))
            return f" Its folder {files.printable(name)} holds {shown}: give {files.printable(root / name)} if those are the classes."
        if deeper := _superfluous(root / name):
            return deeper
    return ""


def _walk(root: Path) -> Iterator[tuple[str | None, Path]]:
    """Yield (class folder or None, path) of every file below a folder, in a fixed order; visit each folder once."""
    seen = set()
    for folder, below, names in _walk_of_system(root):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        below[:] = sorted((name for name in below if not _hidden(name)), key=os.fsencode)
        parts = Path(folder).relative_to(root).parts
        for name in sorted(names, key=os.fsencode):
            yield (composed(parts[0]) if parts else None), Path(folder) / name


def _walk_of_system(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    def unreadable(error: OSError):
        raise files.unreadable(error) from error

    return os.walk(root, followlinks=True, onerror=unreadable)
