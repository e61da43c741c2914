"""Several workers on this machine: processes that are started together, and together again when one of them dies.

What the workers write goes to the screen, each line with the worker's number, and to a file for each. `launch.json` in
the same directory says who they are: `workers` [{`index`, `pid`, `port`, `log`}] and `restarts`, rewritten at every start.
TensorFlow cannot go on without a worker, so all start anew, and the run continues from its checkpoint.

Example:
    >>> command = ["train", "digits", "--run", "runs/two", "--stage", "2@0.2"]
    >>> exit_code = launcher.launch(command, workers=2, logs="runs/two/workers")
    >>> exit_code
    0
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tfpar import errors, files, validate
from tfpar.signals import Interrupted, StopSignal

LOOPBACK = "127.0.0.1"
POLL = 0.1  # seconds
GRACE = 20.0  # seconds for the others to notice that one has gone
STOP_GRACE = 60.0  # seconds to save after a signal
LONGEST_PAUSE = 30.0  # seconds between two starts; they double from 1
# Exit codes of workers that were told to stop.
STOPPED = (Interrupted.exit_code, errors.WorkerLost.exit_code, 128 + signal.SIGTERM)
FINAL = (0, Interrupted.exit_code, *errors.FINAL)  # after these codes no restart follows


def launch(
    command: Sequence[str],
    *,
    workers: int,
    logs: str | os.PathLike,
    restarts: int = 10,
    cores_per_worker: int | None = None,
) -> int:
    """Run `tfpar COMMAND` as several workers on this machine, and start all again when one dies.

    Args:
        command: the words after `tfpar`, such as `["train", "digits"]`.
        workers: how many.
        logs: a directory for `launch.json` and the workers' logs.
        restarts: how often all may be started again.
        cores_per_worker: processor cores that each keeps to; None leaves the threads alone, and the bits are those of one
            process.

    Returns:
        The exit code: 0, or that of the worker that failed first.

    Raises:
        Interrupted: a signal came, and all workers have ended; the same call continues.
        errors.SettingsError: a number is out of its range.
        errors.OutputError: the directory cannot be made, or another launch uses it.
    """
    cores = cores_of_workers(workers, cores_per_worker)
    validate.integer("restarts", restarts, 0, 10**6)
    logs = files.make_directory(logs)
    with files.locked(logs / ".lock", "another launch"), StopSignal(deferred=True) as stop:
        for restart in range(restarts + 1):
            processes = _WorkerProcesses(command, cores, logs, restart)
            if restart == 0 and (line := open_to_others()):
                print(line, flush=True)
            code = processes.wait(stop)
            if stop.requested and code in STOPPED:
                raise Interrupted(None)
            if code in FINAL:
                return code
            if stop.requested:
                print(f"{processes.cause} while all were told to stop; the same command continues", flush=True)
                return code
            if restart < restarts:
                again = f"{processes.cause}; all workers restart ({restart + 1} of {restarts})"
                _pause(min(2.0**restart, LONGEST_PAUSE), again, stop)
        print(f"{processes.cause}; it was started {restarts + 1} times, the same command continues", flush=True)
    return code


class _WorkerProcesses:
    """The processes of one start of all workers."""

    def __init__(self, command: Sequence[str], cores: list[set[int] | None], logs: Path, restart: int):
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        environment.pop("TF_CONFIG", None)
        self.processes, self.readers, self.cause, known = [], [], "", []
        try:
            for index, (own, variables) in enumerate(zip(cores, variables_of_workers(len(cores)), strict=True)):
                process = _started(command, environment | variables, own)
                self.processes.append(process)
                log = logs / f"{index}.log"
                self.readers.append(threading.Thread(target=_copy, args=(process.stdout, log, index), daemon=True))
                self.readers[-1].start()
                port = int(variables["TFPAR_PORT"].split(",")[index])
                known.append({"index": index, "pid": process.pid, "port": port, "log": str(log)})
            files.write(logs / "launch.json", json.dumps({"workers": known, "restarts": restart}, indent=1) + "\n")
        except BaseException:
            self._send(signal.SIGKILL)  # those that had started
            raise

    def wait(self, stop: StopSignal) -> int:
        """Wait until all workers have ended, and return the exit code of the first cause."""
        deadline, told, failed = float("inf"), False, {}
        try:
            while None in (codes := [process.poll() for process in self.processes]):
                if stop.requested and not told:
                    told, deadline = True, time.monotonic() + STOP_GRACE
                    self._send(signal.SIGTERM)
                ended = {index: code for index, code in enumerate(codes) if code}
                if ended and not failed and not told:
                    # After a signal to one of them the chief may still be writing.
                    saving = set(ended.values()) == {Interrupted.exit_code}
                    deadline = time.monotonic() + (STOP_GRACE if saving else GRACE)
                failed |= ended  # the first to be seen stays first
                if time.monotonic() > deadline:
                    self._send(signal.SIGKILL)
                time.sleep(POLL)
        finally:
            self._send(signal.SIGKILL)  # no worker outlives an error in the launcher
            for process, reader in zip(self.processes, self.readers, strict=True):
                process.wait()
                reader.join()
        failed |= {i: p.returncode for i, p in enumerate(self.processes) if p.returncode and i not in failed}
        return self._first_cause(failed, STOPPED if told else (errors.WorkerLost.exit_code,))

    def _first_cause(self, failed: dict[int, int], merely: Sequence[int]) -> int:
        """Return 0, or the exit code of the first worker that neither missed another nor did what it was told."""
        if not failed:
            return 0
        codes = {index: 128 - code if code < 0 else code for index, code in failed.items()}
        index = next((index for index, code in codes.items() if code not in merely), next(iter(codes)))
        killed = failed[index] < 0
        how = f"was killed by {signal.Signals(-failed[index]).name}" if killed else f"ended with {codes[index]}"
        self.cause = f"worker {index} {how}"
        return codes[index]

    def _send(self, number: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)


def open_to_others() -> str:
    """Return a line that says that other hosts can connect to the workers, and how to prevent it; empty if this machine has no
    network. TensorFlow's server cannot be bound to loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address of no host; a datagram socket sends nothing when it connects
        except OSError:
            return ""
    rule = "close them in this machine's firewall"
    with contextlib.suppress(OSError), open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        low, high = file.read().split()
        rule = f"to close them: iptables -I INPUT ! -i lo -p tcp --syn --dport {low}:{high} -j DROP"
    return f"the workers' ports accept connections from other hosts without a password; {rule}"


def _started(command: Sequence[str], environment: dict, cores: set[int] | None) -> subprocess.Popen:
    """Start a worker in a new session, pinned to `cores`. Ctrl-C does not reach it directly; the launcher forwards it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tfpar", *command], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    if cores:  # of its only thread, which is still starting Python; the others inherit them
        os.sched_setaffinity(process.pid, cores)
    return process


def _copy(stream, log: Path, index: int) -> None:
    """Copy a worker's lines to its log, and to the screen with its number before them."""
    with open(log, "ab", buffering=0) as file:
        for line in stream:
            with contextlib.suppress(OSError):  # the disk is full; the worker must not wait for it
                file.write(line)
            with contextlib.suppress(OSError):  # nobody reads the screen
                print(f"[{index}] {line.decode(errors='backslashreplace').rstrip()}", flush=True)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((LOOPBACK, 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def variables_of_workers(count: int) -> list[dict[str, str]]:
    """Return the environment variables of each of so many workers on this machine, with free ports."""
    ports = ",".join(map(str, _free_ports(count)))
    several = {"TFPAR_NUM_WORKERS": str(count), "TFPAR_HOST_TEMPLATE": LOOPBACK, "TFPAR_PORT": ports}
    return [several | {"JOB_COMPLETION_INDEX": str(index)} for index in range(count)]


def cores_of_workers(workers: int, cores_per_worker: int | None) -> list[set[int] | None]:
    """Return the cores of each worker, or None for each where they share all.

    Raises:
        errors.SettingsError: there are not so many cores.
    """
    validate.integer("workers", workers, 1, validate.MOST_REPLICAS)
    if cores_per_worker is None:
        return [None] * workers
    there = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    validate.integer("cores_per_worker", cores_per_worker, 1, 10**6)
    if workers * cores_per_worker > len(there):
        wanted = f"{workers} workers of {cores_per_worker} cores each"
        raise errors.SettingsError(f"{wanted}: there are {len(there)} cores; take fewer, or leave cores_per_worker out")
    return [set(there[i * cores_per_worker : (i + 1) * cores_per_worker]) for i in range(workers)]


def _pause(seconds: float, line: str, stop: StopSignal) -> None:
    print(f"{line} in {seconds:g} s", flush=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if stop.requested:
            raise Interrupted(None)
        time.sleep(POLL)
