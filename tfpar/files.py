"""Files that appear whole or not at all, their checksums, and a lock that dies with its process."""

import contextlib
import errno
import fcntl
import functools
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

from tfpar import errors

# Errors of file systems, mostly on a network, that lack the function; git and borg ignore them too.
UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
_print_once = functools.cache(print)


def remedy(error: OSError) -> str:
    """Return the sentence that says what to do about an error of the system."""
    first = {
        errno.EMFILE: "Raise the limit with ulimit -n",
        errno.ENOSPC: "Free some space",
        errno.EDQUOT: "Free some space",
        errno.EFBIG: "Free some space, or raise the limit with ulimit -f",
        errno.EAGAIN: "Raise the limit with ulimit -u",
    }
    return f"{first.get(error.errno, 'Check the disk and its permissions')}, then run the same command again"


def unreadable(error: OSError, path: str | os.PathLike = "") -> errors.InputNotFound:
    """Return the error that names what cannot be read: the file that the system names, or else `path`."""
    place = printable(error.filename or path)
    return errors.InputNotFound(f"{place}: cannot be read ({error.strerror}). {remedy(error)}")


def write(path: str | os.PathLike, content: bytes | str | Callable[[Path], None]) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part.

    Writes beside, flushes to the disk, renames. `content` is the bytes, the text (UTF-8), or a function that
    writes a file at the path it is given (its name ends like `path`'s).

    Raises:
        errors.InputOutputFailed: the disk is full or gone; what was at `path` is intact.
    """
    path = Path(path)
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        if callable(content):
            content(beside)
        else:
            # A path may hold bytes that are no text: in JSON it is read again as it was.
            beside.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
        sync(beside)
        beside.replace(path)
        sync(path.parent)
    except OSError as error:
        why = f"{path}: writing failed ({error.strerror or error}); what was there before is intact"
        raise errors.InputOutputFailed(f"{why}. {remedy(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file or a directory with all in it, if it is there."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def remove_leftovers(directory: str | os.PathLike) -> None:
    """Remove what killed processes left half written below a directory; its owner must hold the lock."""
    for path in Path(directory).rglob(".*"):
        if is_leftover(path):
            path.unlink()


def is_leftover(path: Path) -> bool:
    """Tell whether this is a file that `write` had not finished."""
    return path.name.startswith(".") and path.name.split(".")[1].isdecimal() and path.is_file()


def sync(path: str | os.PathLike) -> None:
    """Wait until a file's bytes, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _print_once("this file system cannot sync files: after a loss of power the newest ones may be missing")
    finally:
        os.close(descriptor)


def sha256(path: str | os.PathLike, progress: Callable[[int], None] = lambda _bytes: None) -> str:
    """Return the SHA-256 of a file in hexadecimal; `progress` is told the bytes of each piece read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            progress(len(piece))
    return digest.hexdigest()


def fingerprint(value) -> str:
    """Return the SHA-256 of a value's canonical JSON text: sorted keys, no spaces, plain ASCII."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def make_directory(path: str | os.PathLike) -> Path:
    """Make a directory and its parents, or say in one line why it cannot be made.

    Raises:
        errors.OutputError: the path exists and is no directory, or its parent is not writable.
        errors.InputOutputFailed: the disk is full or gone.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        failed = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)
        kind, todo = (errors.InputOutputFailed, remedy(error)) if failed else (errors.OutputError, "Name another place")
        raise kind(f"{path}: cannot make this directory ({error.strerror}). {todo}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise errors.OutputError(f"{path}: this directory is not writable; name another place")
    return path


def set_aside(path: str | os.PathLike) -> str:
    """Rename a directory to PATH.1, PATH.2, ..., whichever is free, and return that name.

    Raises:
        errors.OutputError: it cannot be renamed.
    """
    whole = Path(os.path.abspath(path))  # also where it was given as .
    if Path.cwd().is_relative_to(whole.resolve()):
        raise errors.OutputError(f"{path}: cannot be renamed from inside of it; run the command from another folder")
    number = next(n for n in itertools.count(1) if not whole.with_name(f"{whole.name}.{n}").exists())
    failed = f"{path}: cannot be renamed ({errors.REASON}); name another place"
    with errors.translated(OSError, errors.OutputError, failed):
        whole.rename(whole.with_name(f"{whole.name}.{number}"))
    return f"{path}.{number}"


@contextlib.contextmanager
def locked(path: str | os.PathLike, owner: str) -> Iterator[None]:
    """Hold a lock on a file while the block runs; the system drops it when the process ends, however it ends.

    Raises:
        errors.OutputError: another process holds it. `owner` says in the message what it is.
    """
    failed = f"{path}: cannot be written ({errors.REASON}); name another place"
    with errors.translated(OSError, errors.OutputError, failed):
        file = open(path, "ab")  # noqa: SIM115 - closed below
    place = Path(path).parent
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise errors.OutputError(f"{place}: {owner} is using this directory; wait for it or stop it") from error
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            _print_once(f"this file system cannot lock files: see to it that nothing else writes into {place}")
        yield


def name_of(source) -> str:
    """Return the word a source's data and runs are named after: `photos` for `../x/photos/`."""
    text = "arrays" if isinstance(source, (tuple, list)) else os.fspath(source).removeprefix("tfds:")
    words = [word for word in re.split(r"[/\\]", os.path.normpath(text)) if word not in ("", ".", "..")]
    return printable(words[-1]) if words else "data"


def word(path: str | os.PathLike) -> str:
    """Return a path as a word of a command that can be pasted: quoted where the shell wants it, and never an option."""
    text = printable(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def printable(name: str | os.PathLike) -> str:
    """Return a file name as valid UTF-8 text: percent-encoded where its bytes are not."""
    raw = os.fsencode(name)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return urllib.parse.quote_from_bytes(raw, safe="/ ")
