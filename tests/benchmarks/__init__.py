"""Speed, measured by hand: `python -m tests.benchmarks.NAME` prints a table and writes
`results/NAME-PROCESSOR.json` beside this file, for example `training-avx2.json`, or `training-avx2-onednn.json` with oneDNN.

Machines are shared and noisy. So contenders take turns within one run, each in a process of its own that stays alive
between its turns, and what counts is the median of the ratios of one turn, with its spread.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tfpar.machine import cpuinfo, instructions

RESULTS = Path(__file__).parent / "results"
START_SECONDS = 600  # until a contender is ready; more is a hang


class Contender:
    """A process that does one thing whenever it is asked to, and answers with a number."""

    def __init__(self, module: str, name: str, *arguments):
        self.name = name
        command = [sys.executable, "-m", module, "--contender", name, *map(str, arguments)]
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment
        )

    def turn(self) -> float:
        """Let it do its thing once; return the number.

        Raises:
            RuntimeError: it ended instead; the message holds the end of what it said.
        """
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("number "):
                return float(line.split()[1])
        self.errors.seek(0)
        raise RuntimeError(self.errors.read().strip()[-300:] or f"exit code {self.process.wait()}")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.errors.close()


def answer(thing: Callable[[], float]) -> None:
    """In a contender's process: do the thing whenever the benchmark asks."""
    for _ in sys.stdin:
        print(f"number {thing()!r}", flush=True)


def take_turns(module: str, names: list[str], *arguments, turns: int) -> dict[str, list[float]]:
    """Start the contenders, warm each up by one turn, and let them take turns; one that cannot run is left out with a line."""
    contenders, numbers = {}, {name: [] for name in names}
    try:
        for name in names:
            contenders[name] = Contender(module, name, *arguments)
            try:
                contenders[name].turn()
            except RuntimeError as error:
                print(f"  {name} is left out: {' '.join(str(error).split())[-200:]}")
                contenders.pop(name).end()
                del numbers[name]
        for _ in range(turns):
            for name, contender in contenders.items():
                numbers[name].append(contender.turn())
    finally:
        for contender in contenders.values():
            contender.end()
    return numbers


def ratios(numbers: dict[str, list[float]], base: str) -> dict[str, list[float]]:
    """Return each contender's numbers by those of the base, turn for turn."""
    return {name: [a / b for a, b in zip(taken, numbers[base], strict=True)] for name, taken in numbers.items()}


def spread(values: list[float], form: str = ",.0f") -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} - {max(values):{form}})"


def table(numbers: dict[str, list[float]], base: str, unit: str, form: str = ",.0f") -> None:
    """Print a row for each contender: the median and the range of its numbers, and of the ratios to the base."""
    print(f"  {'':28} {unit:>34}   by {base}, turn for turn")
    relative = ratios(numbers, base) if base in numbers else None
    for name, taken in numbers.items():
        print(f"  {name:28} {spread(taken, form):>34}   {spread(relative[name], '.3f') if relative else ''}")


def machine() -> dict:
    """Return what a number depends on."""
    versions = {}
    for name in (
        "tensorflow",
        "keras",
        "numpy",
        "torch",
        "grain",
        "nvidia-dali-cuda120",
        "ffcv",
        "tensorflow-datasets",
        "ai-edge-litert",
    ):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "processor": cpuinfo("model name") or platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "oneDNN": {"1": "on", "0": "off"}.get(os.environ.get("TF_ENABLE_ONEDNN_OPTS", ""), "as TensorFlow chooses"),
        "versions": versions,
    }


def output(*command: str) -> str | None:
    """Return what a program prints; None where it is not installed."""
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def write(name: str, results, on: dict | None = None) -> None:
    """Write what was measured, with the machine and the command."""
    RESULTS.mkdir(exist_ok=True)
    content = {
        "command": f"python -m tests.benchmarks.{name} {' '.join(os.path.basename(word) if os.path.isabs(word) else word for word in sys.argv[1:])}".strip(),
        "machine": on or machine(),
        "results": results,
    }
    onednn = "-onednn" * (os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "1")
    path = RESULTS / f"{name}-{instructions().split(',')[0]}{onednn}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"in {path}")
