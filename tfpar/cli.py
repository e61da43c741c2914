"""The command line: run one command, and turn every way it can end into an exit code and at most one line."""

from __future__ import annotations

import shlex
import sys
import tempfile
import traceback

from tfpar import errors, files
from tfpar.arguments import parser
from tfpar.commands import COMMANDS, require_tensorflow
from tfpar.screen import say, to_nowhere

_WITHOUT_TENSORFLOW = (COMMANDS["doctor"], COMMANDS["kubernetes"])
_WRITING = (COMMANDS["prepare"], COMMANDS["train"], COMMANDS["launch"])  # they need no reader of what they print


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; what a user can cause becomes one line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):  # names of files may be no valid UTF-8
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    given = parser(COMMANDS).parse_args(arguments)
    given.arguments = arguments
    code = _code_of(given)
    try:
        sys.stdout.flush()
    except OSError:  # what ended the command counts, not that nobody can be told
        to_nowhere(sys.stdout)
    return code


def _code_of(given) -> int:
    """Run the command and return its exit code."""
    try:
        if given.command not in _WITHOUT_TENSORFLOW:
            require_tensorflow()
        code = given.command(given) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as stopped:
        told = f": tfpar {shlex.join(given.arguments)}" if hasattr(stopped, "exit_code") else ""
        say(f"{stopped}{told}" if str(stopped) else "stopped")
        return getattr(stopped, "exit_code", 130)
    except errors.KINDS as error:
        details = f" (TensorFlow's own report: {_trace_file()})" if isinstance(error, errors.WorkerLost) else ""
        say(f"tfpar: {' '.join(str(error).split())}{details}")
        return error.exit_code
    except BrokenPipeError:
        to_nowhere(sys.stdout)  # who read our output has gone
        if given.command not in _WRITING:
            return 0
        say("tfpar: nobody reads the output any more; send it to a file, and run the same command again")
        return errors.InputOutputFailed.exit_code
    except _out_of_memory():
        return _tell_out_of_memory()
    except ImportError as error:
        if "map segment" in str(error) or "allocate memory" in str(error):  # of the system's loader of libraries
            return _tell_out_of_memory()
        return _tell_defect(error)
    except OSError as error:
        place = error.filename or "reading or writing"
        say(f"tfpar: {place}: {error.strerror or error}; earlier state is intact. {files.remedy(error)}")
        return errors.InputOutputFailed.exit_code
    except Exception as error:  # noqa: BLE001 - the one last handler
        return _tell_defect(error)


def _tell_out_of_memory() -> int:
    say("tfpar: out of memory; take smaller pictures, a smaller batch, or more shards, or raise the limit (ulimit -v)")
    return errors.Unavailable.exit_code


def _tell_defect(error: Exception) -> int:
    said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    say(f"tfpar: a defect of tfpar ({said}); please report it with {_trace_file()}")
    return 70


def _trace_file() -> str:
    """Write the stack trace of the exception that is being handled into a file, and return its name."""
    with tempfile.NamedTemporaryFile("w", prefix="tfpar-", suffix=".txt", delete=False) as file:
        file.write(traceback.format_exc())
    return file.name


def _out_of_memory() -> tuple[type[BaseException], ...]:
    tensorflow = sys.modules.get("tensorflow")  # not imported for this
    return (MemoryError, tensorflow.errors.ResourceExhaustedError) if tensorflow else (MemoryError,)
