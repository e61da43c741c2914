"""What every source of images becomes: named splits of inputs, in a fixed order."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

BESIDE = "hidden, or of a file type that is not a picture"  # why a file is skipped without counting as a bad picture


class Input(NamedTuple):
    """One input: its name in the source, its class, and a path, encoded bytes or pixels."""

    source: str
    label: str | int | None  # the class; its number once all are known (see `build`)
    picture: Path | bytes | np.ndarray
    reason: str = ""  # why it cannot become an example, where that is known without decoding it
    weight: float | None = None  # of its loss
    group: str | None = None  # all images of a group stay on one side of the split


class Source(NamedTuple):
    """A source that was found to exist; `splits` gives the inputs of each split, in a fixed order.

    They can be read any number of times, but for a stream, which is read once.
    """

    name: str
    class_names: list[str | int]  # in their order; empty where only reading tells, and then they are sorted
    splits: dict[str, Callable[[], Iterator[Input]]]
    counts: dict[str, int | None]  # inputs of each split; None where only reading them tells
    channels: int = 3
    size: tuple[int, int] | None = None  # height and width, where all pictures are known to share them
    stamp: dict | None = None  # number, bytes and newest time of its files, where it is a folder or a table
    hint: str = ""  # where the classes may be, if there is only one
    identity: Callable[[], str] | None = None  # of a stream, after the one reading


def stamp_of(paths: list[Path]) -> dict:
    """Return the number of these files, their bytes, and the time of the newest."""
    found = [os.stat(path) for path in paths if os.path.exists(path)]  # a dangling link is reported later
    newest = max((status.st_mtime_ns for status in found), default=0)
    return {"files": len(found), "bytes": sum(status.st_size for status in found), "newest": newest}


def changes(source: Source, earlier: dict, names: set[str], *, moved_away: bool) -> str:
    """Return what has changed in a folder or a table since it was prepared; nothing where nothing has.

    Args:
        source: what it is now.
        earlier: its `stamp` then.
        names: its pictures then.
        moved_away: the files lie elsewhere now, so their times may be those of copies.
    """
    inputs = (item for split in source.splits.values() for item in split())
    now = {item.source for item in inputs if item.reason != BESIDE}
    new, gone = sorted(now - names), sorted(names - now)
    ends = {name.rsplit("/", 1)[-1]: name for name in gone}
    moved = [name for name in new if name.rsplit("/", 1)[-1] in ends]
    left = {ends[name.rsplit("/", 1)[-1]] for name in moved}
    kinds = {
        "new": [name for name in new if name not in moved],
        "removed": [name for name in gone if name not in left],
        "moved to another folder": moved,
    }
    said = [f"{len(found)} {kind} ({', '.join(found[:3])})" for kind, found in kinds.items() if found]
    compared = {"files", "bytes", "newest", "table"} - ({"newest"} if moved_away else set())
    if not said and any(source.stamp.get(key) != earlier.get(key) for key in compared):
        table = source.stamp.get("table") != earlier.get("table")
        said = ["the table's rows changed" if table else "pictures changed"]
    return ", ".join(said)
