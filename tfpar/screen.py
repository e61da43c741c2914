"""The output of a command: print a line to standard error, and silence the output of Python or of C code."""

from __future__ import annotations

import contextlib
import os
import sys


def say(line: str) -> None:
    """Print a line to stderr, where it can be written: the exit code says it too."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        to_nowhere(sys.stderr)


def to_nowhere(stream) -> None:
    """Let what is left to be written vanish, or Python would end with a code of its own."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def quiet(active: bool):
    """Print nothing: one of several workers speaks for all."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere if active else sys.stdout):
        yield


class stderr_silenced:  # noqa: N801 - used like a function
    """Send to nowhere what C code writes to file descriptor 2; Python's errors still raise.

    So does TensorFlow while it starts, and libtiff at a damaged picture. `but_python` keeps what Python writes there.
    """

    def __init__(self, active: bool, *, but_python: bool = False):
        self.active, self.but_python = active, but_python

    def __enter__(self):
        if self.active:
            sys.stderr.flush()
            self.kept, self.stream = os.dup(2), sys.stderr
            if self.but_python:
                sys.stderr = open(self.kept, "w", buffering=1, errors="backslashreplace", closefd=False)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)

    def __exit__(self, *_exception):
        if self.active:
            if self.but_python:
                sys.stderr.flush()
            sys.stderr = self.stream
            os.dup2(self.kept, 2)
            os.close(self.kept)
