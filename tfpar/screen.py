"""The output of a command: print a line to standard error, and silence the output of Python or of C code."""

import contextlib
import os
import sys


def say(line: str) -> None:
    """Print a line to stderr if that can be written to; the exit code holds the same information."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        to_nowhere(sys.stderr)


def open_streams() -> None:
    """Open the standard streams that this process was started without: the next file would get their number, and what C code prints."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdout, sys.stderr = sys.stdout or open(1, "w"), sys.stderr or open(2, "w")  # noqa: SIM115 - they stay open


def to_nowhere(stream) -> None:
    """Discard what is left to be written; otherwise Python would end with its own exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def quiet(active: bool):
    """Print nothing where `active`: of several workers only the chief prints."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere if active else sys.stdout):
        yield


@contextlib.contextmanager
def stderr_silenced(active: bool, *, but_python: bool = False):
    """Send to nowhere what C code writes to file descriptor 2; Python's errors still raise.

    So does TensorFlow while it starts, and libtiff at a damaged picture. `but_python` keeps what Python writes there.
    """
    if not active:
        yield
        return
    sys.stderr.flush()
    kept, stream = os.dup(2), sys.stderr
    try:
        if but_python:
            sys.stderr = open(kept, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115 - closed below
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        if but_python:
            sys.stderr.flush()
        sys.stderr = stream
        os.dup2(kept, 2)
        os.close(kept)
