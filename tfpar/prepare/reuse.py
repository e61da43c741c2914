"""A prepared directory that is there already: does it stand for its source as the source is now?"""

import os
import shlex
from pathlib import Path

from tfpar import errors, files
from tfpar.prepare import arrays, folders, inputs, sources

COMPARED = 100  # pictures of two sources with the same names and sizes


def check(directory: Path, source, settings: dict, size: tuple[int, int] | None) -> None:
    """Refuse a directory that was prepared with other settings, or from what its source no longer is.

    Args:
        directory, source: as for `dataset`.
        settings: what dataset.json would say of them.
        size: height and width that were asked for; None takes what is there.
    """
    there = arrays.manifest_of(directory)
    identity = sources.identity(source)
    if _is_of(there, directory, source, identity):
        identity = there["source"]
    wanted = {"source": identity} | settings | ({"image_size": list(size)} if size else {})
    has = there | {"image_size": there["image_shape"][:2]}
    differing = [f"{key} is {has.get(key)}, asked for {wanted[key]}" for key in wanted if wanted[key] != has.get(key)]
    if differing:
        todo = f"Name another directory, prepare it again with --fresh, or use it as it is: tfpar train {files.word(directory)}"
        raise errors.SettingsError(f"{directory}: prepared with other settings: {'; '.join(differing)}. {todo}")


def _is_of(there: dict, directory: Path, source, identity: str) -> bool:
    """Tell whether a directory was made of the files of this source, wherever they lie, as they are now."""
    kind = there["source"].split(":")[0]
    if kind not in ("folder", "table") or not isinstance(source, (str, os.PathLike)):
        return False
    place = there["source"].removeprefix(f"{kind}:")
    elsewhere = place != files.printable(os.path.abspath(source))
    if not os.path.exists(source):  # a source that is gone is no obstacle
        return not elsewhere
    if "source_files" not in there or not identity.startswith(f"{kind}:"):
        return False
    classes = folders.read_like_splits(there["class_names"])  # as an earlier version took them
    splits = there.get("folders_are_splits", False if classes else None)
    try:
        found = sources.find(source, splits=splits, group_by=there.get("group_by"))
    except errors.DataError:
        if elsewhere:  # another source, which these splits do not suit
            return False
        raise
    said = inputs.changes(found, there["source_files"], arrays.names_of(directory, there), moved_away=elsewhere)
    if said and not elsewhere:
        place = files.printable(source)
        again = f"Prepare it again: {_command(there, place, directory)} (the old one is kept beside, for earlier runs)"
        todo = f"{again}, or use what is there by its name: tfpar train {files.word(directory)}"
        raise errors.SettingsError(f"{directory} is older than its source {place}: {said}. {todo}")
    return not said and not (elsewhere and _differ(found, Path(source), Path(place)))


def _differ(found: inputs.Source, now: Path, earlier: Path) -> bool:
    """Tell whether a picture has other bytes than the one of that name in the earlier source, where that is still there; some are read."""
    items = [item for split in found.splits.values() for item in split()]
    for item in items[:: len(items) // COMPARED + 1]:
        before = (earlier if now.is_dir() else earlier.parent) / item.source
        if before.is_file() and item.picture.is_file() and before.read_bytes() != item.picture.read_bytes():
            return True
    return False


def _command(there: dict, place: str, directory: Path) -> str:
    """Return the command that prepares a directory again in the same way."""
    words = ["--image-size", "x".join(map(str, there["image_shape"][:2]))]
    for key, default in (("validation_fraction", 0.1), ("seed", 0), ("group_by", None)):
        if there.get(key, default) != default:
            words.append(f"--{key.replace('_', '-')}={there[key]}")
    if "folders_are_splits" in there:
        words.append("--splits" if there["folders_are_splits"] else "--no-splits")
    return f"tfpar prepare {files.word(place)} {files.word(directory)} {shlex.join(words)} --fresh"
