"""Who the workers are, and that they meet before TensorFlow starts: names resolve, ports are free, all were started alike.

Each worker listens on its own port for as long as they meet, and tells the chief who it is. When all are there, every worker
tries to connect to every other one, as TensorFlow will on the same ports. The chief collects what they found and tells everybody
the outcome, so all go on together or end with the same message.

Example:
    >>> rendezvous.meet(("127.0.0.1:41001", "127.0.0.1:41002"), 0, same={"version": "2.21"})    # doctest: +SKIP
"""

import concurrent.futures
import contextlib
import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from tfpar import errors

PAUSE = 0.1  # seconds between two attempts to reach the chief
MARGIN = 5.0  # seconds beyond the deadline: the chief waits until then before it names the missing workers
TRIAL = 40.0  # seconds for a worker to try all others; it repeats failed attempts for half of them
LINE = 1 << 20  # bytes of the longest message taken from another process
BACKLOG = 4096  # connections that nobody accepts: every worker makes one to every other


_TRY = {"try": "connect to all others, and tell which of them cannot be reached"}


class Cluster(NamedTuple):
    """All workers, and which of them this process is.

    Attributes:
        addresses: `host:port` of each, in the order of their indices.
        index: of this process; 0 is the chief.
    """

    addresses: tuple[str, ...]
    index: int


def cluster() -> Cluster | None:
    """Return the workers named by the environment; None where there is this process alone.

    Raises:
        errors.SettingsError: TF_CONFIG or the TFPAR_* variables cannot be understood, or contradict each other.
    """
    written, patterned = _of_tf_config(), _of_pattern()
    if written and patterned and written != patterned:
        raise errors.SettingsError(f"TF_CONFIG says {written}, TFPAR_ variables say {patterned}; unset one of them")
    found = written or patterned
    return found if found and len(found.addresses) > 1 else None


def meet(addresses: Sequence[str], index: int, *, same: dict, seconds: float) -> None:
    """Return when all workers are there, and were started with equal lists and an equal `same`.

    Args:
        addresses: `host:port` of every worker; index: of this one, 0 is the chief.
        same: what JSON can hold and must be equal on all of them.
        seconds: how long to wait.

    Raises:
        errors.Unavailable: a worker never came, a name does not resolve, or this worker's port is taken.
        errors.SettingsError: the workers were started with different lists or settings.
    """
    deadline = time.monotonic() + seconds
    hello = {"index": index, "same": {"workers": list(addresses), **same}}
    with listening(addresses[index], index, deadline) as listener:
        if index:
            _join(addresses, hello, deadline, seconds)
        else:
            _gather(listener, addresses, hello, deadline, seconds)


def place_of(address: str) -> tuple[str, int]:
    """Return host and port of `host:port`.

    Example:
        >>> rendezvous.place_of("train-0.train:12345"), rendezvous.place_of("[::1]:12345")
        (('train-0.train', 12345), ('::1', 12345))
    """
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def listening(address: str, index: int, deadline: float = 0.0) -> socket.socket:
    """Return a socket that listens on a worker's address; the name of a pod may come later than the pod.

    Raises:
        errors.Unavailable: the name does not resolve at the deadline, or the port is taken or of another machine.
    """
    host, port = place_of(address)
    while True:
        try:
            family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            return socket.create_server(place, family=family, backlog=BACKLOG)
        except socket.gaierror as error:
            if time.monotonic() > deadline:
                why = f"worker {index}: the name {host} does not resolve ({error.strerror})"
                raise errors.Unavailable(f"{why}; fix the list of workers or the name service") from error
            time.sleep(PAUSE)
        except OSError as error:
            why = f"worker {index} cannot listen on {address} ({os.strerror(error.errno)})"
            raise errors.Unavailable(f"{why}; give it a free port of its own machine") from error


def _join(addresses: Sequence[str], hello: dict, deadline: float, seconds: float) -> None:
    """Tell the chief who this is, try to connect to the others when it asks for it, and hear the outcome."""
    why = "it does not answer"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(place_of(addresses[0]), max(PAUSE, deadline - time.monotonic())) as line:
                _send(line, hello)
                answer = _heard(line, max(PAUSE, deadline - time.monotonic()) + MARGIN)
                if answer == _TRY:
                    _send(line, {"closed": _closed(addresses, hello["index"])})
                    answer = _heard(line, TRIAL + MARGIN)
        except OSError as error:
            why, answer = error.strerror or str(error), None
        if answer:
            raise {kind.__name__: kind for kind in errors.KINDS}[answer["kind"]](answer["message"])
        if answer is not None:
            return
        time.sleep(PAUSE)
    missing = f"worker 0 ({addresses[0]}) did not connect within {seconds:g} s ({why})"
    raise errors.Unavailable(f"{missing}; start all workers")


def _gather(listener: socket.socket, addresses: Sequence[str], hello: dict, deadline: float, seconds: float) -> None:
    """Wait for all, compare, let each try to reach the others, and tell everybody the outcome."""
    lines: dict[int, socket.socket] = {}
    arrivals, strangers = queue.SimpleQueue(), 0
    listener.settimeout(PAUSE)
    with contextlib.ExitStack() as stack:
        try:
            while missing := [i for i in range(1, len(addresses)) if i not in lines]:
                if time.monotonic() > deadline:
                    named = ", ".join(f"worker {i} ({addresses[i]})" for i in missing)
                    raise errors.Unavailable(f"{named} did not connect within {seconds:g} s; start all workers")
                with contextlib.suppress(OSError):  # nobody came, or has gone again
                    # In a thread of its own, so that a stranger who says nothing holds up nobody.
                    threading.Thread(target=_hear, args=(*listener.accept(), arrivals), daemon=True).start()
                while not arrivals.empty():
                    line, place, said = arrivals.get()
                    stack.enter_context(line)
                    if said.get("index") in range(1, len(addresses)) and isinstance(said.get("same"), dict):
                        lines[said["index"]] = line
                        _compare(hello["same"], said)
                        continue
                    line.close()
                    strangers += 1
                    if strangers == 1:
                        ignored = f"ignored a connection from {place[0]} that sent no worker's message"
                        print(f"worker 0: {ignored}; is the port open to others?", file=sys.stderr, flush=True)
            _try_connections(addresses, lines)
        except errors.KINDS as error:
            _tell(lines, {"kind": type(error).__name__, "message": str(error)})
            raise
        _tell(lines, {})


def _hear(line: socket.socket, place, arrivals: queue.SimpleQueue) -> None:
    arrivals.put((line, place, _heard(line, MARGIN) or {}))  # a worker speaks at once


def _try_connections(addresses: Sequence[str], lines: dict[int, socket.socket]) -> None:
    """Let all workers try to connect to all others; raise an error that names the first pair that cannot."""
    _tell(lines, _TRY)
    found = {0: _closed(addresses, 0)}
    for index, line in lines.items():
        found[index] = (_heard(line, TRIAL) or {}).get("closed", [])  # it has gone: TensorFlow will notice
    for index, closed in sorted(found.items()):
        for other, why in closed:
            reached = f"worker {other} is there, but worker {index} cannot reach it at {addresses[other]} ({why})"
            raise errors.Unavailable(f"{reached}; open this port between the workers, and check that the name resolves")


def _closed(addresses: Sequence[str], index: int) -> list[tuple[int, str]]:
    """Return the workers that this one cannot connect to, and why; the name of a pod may come later than the pod."""
    others = [i for i in range(len(addresses)) if i != index]
    end = time.monotonic() + TRIAL / 2

    def why(other: int) -> str:
        while (found := unreachable(addresses[other])) and time.monotonic() < end:
            time.sleep(PAUSE)
        return found

    with concurrent.futures.ThreadPoolExecutor(len(addresses)) as pool:
        return [(i, found) for i, found in zip(others, pool.map(why, others), strict=True) if found]


def unreachable(address: str) -> str:
    """Return why `host:port` does not accept a connection; empty where it does."""
    try:
        socket.create_connection(place_of(address), timeout=MARGIN).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _compare(own: dict, said: dict) -> None:
    """Raise an error where another worker was started otherwise than the chief."""
    for key, mine in own.items():
        theirs = said["same"].get(key)
        if mine != theirs:
            both = f"{json.dumps(mine)} for worker 0 and {json.dumps(theirs)} for worker {said['index']}"
            raise errors.SettingsError(f"{key} is {both}; start all workers with the same command and versions")


def _tell(lines: dict[int, socket.socket], message: dict) -> None:
    for line in lines.values():
        with contextlib.suppress(OSError):  # it has gone: TensorFlow will notice
            _send(line, message)


def _send(line: socket.socket, message: dict) -> None:
    line.sendall(json.dumps(message).encode() + b"\n")


def _heard(line: socket.socket, seconds: float) -> dict | None:
    """Return what the other side says in one line of JSON; None where it says nothing that can be understood."""
    line.settimeout(seconds)
    with contextlib.suppress(OSError, ValueError), line.makefile("rb") as file:
        said = json.loads(file.readline(LINE))
        return said if isinstance(said, dict) else None
    return None


def _of_tf_config() -> Cluster | None:
    text = os.environ.get("TF_CONFIG", "").strip()
    wrong = f"TF_CONFIG={text}: cannot be understood ({errors.REASON}); {_REMEDY}"
    with errors.translated((ValueError, TypeError, KeyError, AttributeError), errors.SettingsError, wrong):
        config = json.loads(text or "{}")
        jobs, task = config.get("cluster"), config.get("task")
        if not jobs:
            return None
        chief = tuple(jobs.get("chief", ()))  # TensorFlow counts it before the workers
        addresses = (*chief, *jobs.get("worker", ()))
        index = int(task["index"]) + len(chief) * (task["type"] == "worker")
        known = set(jobs) <= {"chief", "worker"} and task["type"] in jobs and len(chief) <= 1
        if not known or not all(isinstance(address, str) for address in addresses):
            raise ValueError("name all processes under worker, or one under chief and the others under worker")
    return _checked(addresses, index, "TF_CONFIG")


_REMEDY = 'write {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}, or unset it'


def _of_pattern() -> Cluster | None:
    given = {name: os.environ.get(name, "") for name in _PATTERN}
    count, index, template, port = given.values()
    if not count:
        return None
    ports = port.split(",")
    numbers = all(number.isdecimal() for number in (count, index, *ports))
    if not numbers or not template or len(ports) not in (1, int(count)):
        told = ", ".join(f"{name}={value}" for name, value in given.items())
        raise errors.SettingsError(f"{told}; give numbers, a host name with {{i}}, and one port or one for each worker")
    each = ports * (int(count) // len(ports))
    addresses = tuple(f"{template.replace('{i}', str(i))}:{port}" for i, port in enumerate(each))
    return _checked(addresses, int(index), "TFPAR_NUM_WORKERS")


_PATTERN = ("TFPAR_NUM_WORKERS", "JOB_COMPLETION_INDEX", "TFPAR_HOST_TEMPLATE", "TFPAR_PORT")


def _checked(addresses: tuple[str, ...], index: int, name: str) -> Cluster:
    size = len(addresses)
    if not 0 <= index < size:
        raise errors.SettingsError(f"{name}: worker {index} of {size}; indices go from 0 to {size - 1}")
    ports = [address.rpartition(":")[2] for address in addresses]
    if not all(port.isdecimal() and 0 < int(port) < 65536 for port in ports) or len(set(addresses)) < size:
        raise errors.SettingsError(f"{name}: {', '.join(addresses)}; give each worker its own address, as host:port")
    return Cluster(addresses, index)
