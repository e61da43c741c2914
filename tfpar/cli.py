"""The command line: run one command, and turn every way it can end into an exit code and at most one line."""

import re
import resource
import shlex
import sys
import tempfile
import traceback

from tfpar import errors, files
from tfpar.arguments import check_not_empty, parser
from tfpar.commands import COMMANDS, require_tensorflow
from tfpar.screen import open_streams, say, to_nowhere

LEAST_ADDRESS_SPACE = 8 << 30  # bytes: of a smaller one TensorFlow may have used up all
_WITHOUT_TENSORFLOW = (COMMANDS["doctor"], COMMANDS["kubernetes"], COMMANDS["scaling"])
_OTHER_WORDS = dict.fromkeys(("--epoch", "--epochs", "--lr", "--learning-rate"), "--stage")  # of other programs
_WRITING = (COMMANDS["prepare"], COMMANDS["train"], COMMANDS["launch"])  # files, so their output needs no reader


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; what a user can cause becomes one line."""
    open_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):  # names of files may be no valid UTF-8
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    given, unknown = (line := parser(COMMANDS)).parse_known_args(arguments)
    if unknown:
        word = unknown[0].split("=")[0]
        near = errors.nearest(_OTHER_WORDS.get(word, word), re.findall(r"--[\w-]+", given.usage()))
        line.error(f"unrecognized arguments: {' '.join(unknown)}{'; ' * bool(near)}{near.strip()}")
    given.arguments = arguments
    code = _code_of(given)
    try:
        sys.stdout.flush()
    except OSError:  # the exit code says how the command ended, whether or not somebody reads it
        to_nowhere(sys.stdout)
    return code


def _code_of(given) -> int:
    """Run the command and return its exit code."""
    try:
        check_not_empty(given)
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
        say("tfpar: standard output was closed (broken pipe); redirect it to a file, and run the same command again")
        return errors.InputOutputFailed.exit_code
    except OSError as error:
        place = error.filename or "reading or writing"
        say(f"tfpar: {place}: {error.strerror or error}; earlier state is intact. {files.remedy(error)}")
        return errors.InputOutputFailed.exit_code
    except Exception as error:  # noqa: BLE001 - the one last handler
        if _is_out_of_memory(error):
            todo = "take smaller pictures, a smaller batch, or more shards, or raise the limit (ulimit -v)"
            say(f"tfpar: out of memory; {todo}")
            return errors.Unavailable.exit_code
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        say(f"tfpar: internal error ({said}); please report it with {_trace_file()}")
        return 70


def _trace_file() -> str:
    """Write the stack trace of the exception that is being handled into a file, and return its name."""
    with tempfile.NamedTemporaryFile("w", prefix="tfpar-", suffix=".txt", delete=False) as file:
        file.write(traceback.format_exc())
    return file.name


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, ImportError):  # of the system's loader of libraries
        return "map segment" in str(error) or "allocate memory" in str(error)
    if isinstance(error, SystemError):  # C code that got no memory, and did not say so
        return 0 < resource.getrlimit(resource.RLIMIT_AS)[0] < LEAST_ADDRESS_SPACE
    return isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError"  # of TensorFlow
