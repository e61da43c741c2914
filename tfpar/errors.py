"""What a user can cause: one small class per exit code.

Each class is also the built-in kind that Python users expect, so `except ValueError` works for those
who do not know this module. `cli` turns the class into a line and `exit_code` into the exit status.

Example:
    >>> try:
    ...     prepare.load("nowhere")
    ... except OSError as error:
    ...     print(error)
    nowhere: no such directory. Make it with: tfpar prepare SOURCE nowhere
"""

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator


class DataError(ValueError):
    """The data is damaged or unusable; the message names the file."""

    exit_code = 65


class InputNotFound(OSError):
    """An input that was named does not exist or cannot be read."""

    exit_code = 66


class Unavailable(RuntimeError):
    """Something needed is not there: a download, a device, a worker."""

    exit_code = 69


class OutputError(OSError):
    """An output cannot be made: the place is not writable, holds something else, or another run uses it."""

    exit_code = 73


class InputOutputFailed(OSError):
    """Reading or writing failed on the way; earlier state is intact."""

    exit_code = 74


class WorkerLost(ConnectionError):
    """Another worker was lost; all workers must be started again, and continue."""

    exit_code = 75


class SettingsError(ValueError):
    """The settings contradict what is there, or each other; the message lists both values."""

    exit_code = 78


def first_line(error: BaseException | str) -> str:
    """Return what an error says in its first line, without the places in TensorFlow's graph; its kind where it says nothing. Where Keras
    puts a line about a layer before it, return both."""
    said = error.args[0] if isinstance(error, KeyError) and error.args else error  # whose text is quoted
    text = re.sub(r" for '\{\{.*|\{\{.*?\}\} ?|\x1b\[\d*m", "", str(said)).strip()
    text = re.sub(r"\AException encountered when calling (.*)\.\n+", r"\1: ", text)
    text = re.sub(r"\n(?=[a-z])", " ", text)  # Keras breaks a sentence into lines
    return next(iter(text.splitlines()), type(error).__name__)[:200]


REASON = "<reason>"  # in a message of `translated`: what the original error says


@contextlib.contextmanager
def translated(kinds: type | tuple[type, ...], into: type, message: str) -> Iterator[None]:
    """Translate errors of some kinds, raised inside the block, into another kind with this message.

    Example:
        >>> with translated(ValueError, SettingsError, f"seconds=x: {REASON}; give a number"):
        ...     float("x")
        Traceback (most recent call last):
        tfpar.errors.SettingsError: seconds=x: could not convert string to float: 'x'; give a number
    """
    try:
        yield
    except kinds as error:
        own = str(error) if isinstance(error, KINDS) else getattr(error, "strerror", None)
        raise into(message.replace(REASON, own or first_line(error))) from error


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a question that names the nearest of some names, whatever their case; empty where none is near.

    Example:
        >>> errors.nearest("resnet50", ["ResNet50", "VGG16"])
        'did you mean ResNet50? '
    """
    found = difflib.get_close_matches(name.lower(), known := {each.lower(): each for each in names}, 1)
    return f"did you mean {known[found[0]]}? " if found else ""


# The exit codes that another start cannot fix: wrong use, damaged data, missing input, a defect, an output in the way, settings.
FINAL = (2, 65, 66, 70, 73, 78)

KINDS = (DataError, InputNotFound, Unavailable, OutputError, InputOutputFailed, WorkerLost, SettingsError)
