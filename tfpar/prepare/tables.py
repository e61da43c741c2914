"""Tables of pictures: a `.csv` or `.parquet` file with one row per picture.

| column | meaning |
|---|---|
| `path` | the picture's file, relative to the table |
| `label` | its class, any text |
| `split` | if there: `train`, or a held-out split by the names that folders may have |
| `weight` | if there: a number of at least 0 that multiplies the loss of this image |
| `group` | if there: all images of a group, such as a patient, stay on one side of the split |

The order of the rows does not matter: examples come in the order of a folder with the same pictures.
"""

import contextlib
import csv
import os
import reprlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from tfpar import errors, files, validate
from tfpar.prepare import folders
from tfpar.prepare.inputs import Input, Source, stamp_of

KINDS = (".csv", ".parquet")


def source(table: Path, splits: bool | None, group_by: str | None) -> Source:
    """Return a table as a source.

    Args:
        table: its file.
        splits: False leaves the column `split` alone, True insists on it.
        group_by: the column of the groups; None takes `group` where it is there.

    Raises:
        errors.DataError: it is no such table, or a row cannot be used; the message has the row's number.
        errors.SettingsError: a column that was asked for is not there.
    """
    place = files.printable(table)
    found, columns = _read(table, place)
    if missing := [column for column in ("path", "label") if column not in columns]:
        raise errors.DataError(f"{place}: has no column {missing[0]} ({', '.join(columns)}). Give it path and label")
    if twice := [name for name in ("path", "label", "split", "weight", "group") if columns.count(name) > 1]:
        raise errors.DataError(f"{place}: has two columns {twice[0]}. Keep one")
    if group_by is not None and group_by not in columns:
        validate.reject("group_by", group_by, f"one of the columns {', '.join(columns)}")
    if splits and "split" not in columns:
        raise errors.SettingsError(f"{place}: --splits, and no column split ({', '.join(columns)}). Leave --splits out")
    with_splits = splits is not False and any(_text(row.get("split")) for row in found)
    # The header is row 1.
    rows = [_row(table, number, row, with_splits, group_by or "group") for number, row in enumerate(found, 2)]
    content = [repr((item.source, item.label, split, item.weight, item.group)) for split, item in rows]
    folders.tell_spellings(item.label for _, item in rows)
    rows = [(split, item._replace(label=folders.composed(item.label))) for split, item in rows]
    seen: dict[str, int] = {}
    for number, (_, item) in enumerate(rows, 2):
        if (first := seen.setdefault(os.path.abspath(item.picture), number)) != number:
            both = f"{place}: rows {first} and {number} are both {item.source}"
            raise errors.DataError(f"{both}. Keep one (a column weight can make it count more)")
    rows.sort(key=_place_in_a_folder)
    by_split = _by_split(place, rows) if with_splits else {"train": [item for _, item in rows]}
    stamp = stamp_of([item.picture for _, item in rows])
    stamp["table"] = files.fingerprint(sorted(content))
    return Source(
        name=files.name_of(table),
        class_names=sorted({item.label for _, item in rows}),
        splits={split: lambda some=some: iter(some) for split, some in by_split.items()},
        counts={split: len(some) for split, some in by_split.items()},
        stamp=stamp,
    )


def _read(table: Path, place: str) -> tuple[list[dict], list[str]]:
    """Return the rows of a table and the names of its columns."""
    import pyarrow.parquet

    try:
        if table.suffix.lower() == ".parquet":
            names = pyarrow.parquet.read_schema(table).names
            content = pyarrow.parquet.read_table(table, columns=[name for name in names if names.count(name) == 1])
            return content.to_pylist(), names
        with open(table, newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            file.seek(0)
            delimiter = next((mark for mark in ",;\t" if mark in header), ",")  # some spreadsheets write others
            reader = csv.DictReader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            return list(reader), reader.fieldnames
    except UnicodeDecodeError as error:
        raise errors.DataError(f"{place}: is not UTF-8 text ({error.reason}). Save it as CSV in UTF-8") from error
    except (csv.Error, pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None):  # Arrow raises an OSError without one for a damaged file
            raise files.unreadable(error, place) from error
        raise errors.DataError(f"{place}: is no readable table ({errors.first_line(error)}). Save it again") from error


def _row(table: Path, number: int, row: dict, with_splits: bool, group_by: str) -> tuple[str, Input]:
    """Return the split and the input of a row."""

    def reject(what: str):
        raise errors.DataError(f"{files.printable(table)}: row {number} {what}")

    if None in row:
        reject("has more values than the table has columns. Quote values that contain the delimiter")
    needed = ["path", "label"] + ["split"] * with_splits + [group_by] * (group_by in row)
    for column in needed:
        if not _text(row[column]):
            reject(f"has no {column}. Give one, or remove the row")
        if isinstance(row[column], (bytes, dict, list)):
            reject(f"has the {column} {reprlib.repr(row[column])}. Give text, and pictures as files beside the table")
    if "\0" in _text(row["path"]):
        reject("has a path with a zero byte. Correct it")
    split = _text(row["split"]).lower() if with_splits else "train"
    if split not in folders.TRAIN + folders.HELD_OUT:
        reject(f"has the split {split}. Give one of {', '.join(folders.TRAIN + folders.HELD_OUT)}")
    weight = None
    if "weight" in row:
        with contextlib.suppress(TypeError, ValueError):
            weight = float(row["weight"])
        if weight is None or not 0 <= weight < 1e9:
            reject(f"has the weight {row['weight']}. Give a number from 0 to 1e9")
    split = "train" if split in folders.TRAIN else split
    group = _text(row[group_by]) if group_by in row else None
    path = PurePosixPath(_text(row["path"]))
    if "\\" in str(path) and not os.path.lexists(table.parent / path):
        path = PurePosixPath(*PureWindowsPath(path).parts)
    return split, Input(files.printable(path), _text(row["label"]), table.parent / path, weight=weight, group=group)


def _text(value) -> str:
    """Return a value as text; nothing for a missing one."""
    return "" if value is None or value != value else str(value).strip()


def _by_split(place: str, rows: list[tuple[str, Input]]) -> dict[str, list[Input]]:
    names = {split for split, _ in rows}
    roles = folders.roles(names)
    if "train" not in roles:
        raise errors.DataError(f"{place}: no row has the split train. Give one, or prepare it with --no-splits")
    left = names - set(roles.values())
    if left:
        print(f"{place}: {', '.join(sorted(left))} left out; validation is {roles['validation']}")
    return {role: [item for split, item in rows if split == name] for role, name in roles.items()}


def _place_in_a_folder(row: tuple[str, Input]) -> list[tuple[bool, bytes]]:
    """Return a key that sorts rows as a walk does: the files of a folder before the folders in it."""
    *above, name = row[1].picture.parts
    return [(True, os.fsencode(part)) for part in above] + [(False, os.fsencode(name))]
