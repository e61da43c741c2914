"""Who the workers are, and that they meet before TensorFlow starts: names resolve, ports are free, all were started alike.

Each worker listens on its own port for as long as they meet, and tells the chief who it is. When all are there, every worker
tries to connect to every other one, as TensorFlow will on the same ports. The chief collects what they found and tells everybody
the outcome, so all go on together or end with the same message.

Example:
    >>> meeting.meet(("127.0.0.1:41001", "127.0.0.1:41002"), 0, same={"tensorflow": tf.__version__}, seconds=60)
"""

from __future__ import annotations

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
MARGIN = 5.0  # seconds for the chief's verdict, who may wait until the deadline before it names who is missing
TRIAL = 40.0  # seconds for a worker to try all others; half of them to come to an end
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
        raise errors.SettingsError(
            f"TF_CONFIG says worker {written.index} of {', '.join(written.addresses)}, the TFPAR_ variables say worker "
            f"{patterned.index} of {', '.join(patterned.addresses)}; unset one of them"
        )
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
    word = {"index": index, "same": {"workers": list(addresses), **same}}
    with contextlib.closing(_listening(addresses[index], index, deadline)) as listener:
        if index:
            _say_and_hear(addresses, word, deadline, seconds)
        else:
            _gather(listener, addresses, word, deadline, seconds)


def _listening(address: str, index: int, deadline: float) -> socket.socket:
    family, place = _resolved(address, index, deadline)
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what met here before may still be closing
    try:
        listener.bind(place)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise errors.Unavailable(
            f"worker {index} cannot listen on {address} ({error.strerror}); give it a free port of its own machine"
        ) from error
    return listener


def _resolved(address: str, index: int, deadline: float):
    """Return family and address of a worker; the name of a pod may come later than the pod."""
    host, _, port = address.rpartition(":")
    while True:
        try:
            family, _, _, _, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
            return family, place
        except socket.gaierror as error:
            if time.monotonic() > deadline:
                raise errors.Unavailable(
                    f"worker {index}: the name {host} does not resolve ({error.strerror}); fix the list of workers or the "
                    "name service"
                ) from error
            time.sleep(PAUSE)


def _say_and_hear(addresses: Sequence[str], word: dict, deadline: float, seconds: float) -> None:
    """Tell the chief who this is, try to connect to the others when it asks for it, and hear the outcome."""
    why = "it does not answer"
    while time.monotonic() < deadline:
        family, place = _resolved(addresses[0], 0, deadline)
        with socket.socket(family, socket.SOCK_STREAM) as line:
            line.settimeout(max(PAUSE, deadline - time.monotonic()))
            try:
                line.connect(place)
                _send(line, word)
                line.settimeout(max(PAUSE, deadline - time.monotonic()) + MARGIN)
                answer = _heard(line)
                if answer == _TRY:
                    _send(line, {"closed": _closed(addresses, word["index"])})
                    line.settimeout(TRIAL + MARGIN)
                    answer = _heard(line)
            except OSError as error:
                why = error.strerror or str(error)
                answer = None
        if answer is not None:
            _take(answer)
            return
        time.sleep(PAUSE)
    raise errors.Unavailable(
        f"worker 0 ({addresses[0]}) did not come within {seconds:g} seconds ({why}); start all workers"
    )


def _gather(listener: socket.socket, addresses: Sequence[str], word: dict, deadline: float, seconds: float) -> None:
    """Wait for all, compare, let each try to reach the others, and tell everybody the outcome."""
    lines: dict[int, socket.socket] = {}
    answer: dict = {}
    with contextlib.ExitStack() as stack:
        with _arriving(listener) as arrivals:
            while not answer and len(lines) < len(addresses) - 1:
                try:
                    line, said = arrivals.get(timeout=max(PAUSE, deadline - time.monotonic()))
                except queue.Empty:
                    missing = [i for i in range(1, len(addresses)) if i not in lines]
                    named = ", ".join(f"worker {i} ({addresses[i]})" for i in missing)
                    why = f"{named} did not come within {seconds:g} seconds; start all workers"
                    answer = _no(errors.Unavailable, why)
                    break
                stack.enter_context(line)
                if said.get("index") in range(1, len(addresses)):
                    lines[said["index"]] = line
                    answer = _difference(word, said)
        answer = answer or _trials(addresses, lines)
        for line in lines.values():
            with contextlib.suppress(OSError):  # it has gone: TensorFlow will notice
                _send(line, answer)
    _take(answer)


@contextlib.contextmanager
def _arriving(listener: socket.socket):
    """Yield a queue of (connection, message) of those who say what a worker says; each is heard by a thread of its own, so
    that a stranger who says nothing holds up nobody."""
    arrivals: queue.Queue = queue.Queue()
    over, strangers = threading.Event(), []

    def hear(line: socket.socket, place) -> None:
        line.settimeout(MARGIN)  # a worker speaks at once
        said = _heard(line)
        if said is not None and isinstance(said.get("same"), dict):
            arrivals.put((line, said))
            return
        line.close()
        if not strangers:
            message = f"worker 0: ignored a connection from {place[0]} that sent no worker's message; is the port open to others?"
            print(message, file=sys.stderr, flush=True)
        strangers.append(place)

    def accept() -> None:
        listener.settimeout(PAUSE)
        while not over.is_set():
            with contextlib.suppress(OSError):  # nobody came, or has gone again
                line, place = listener.accept()
                threading.Thread(target=hear, args=(line, place), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield arrivals
    finally:
        over.set()
        thread.join()


def _trials(addresses: Sequence[str], lines: dict[int, socket.socket]) -> dict:
    """Let all workers try to connect to all others, and return a refusal that names the first pair that cannot."""
    for line in lines.values():
        with contextlib.suppress(OSError):
            _send(line, _TRY)
    found = {0: _closed(addresses, 0)}
    for index, line in lines.items():
        line.settimeout(TRIAL)
        found[index] = (_heard(line) or {}).get("closed", [])  # it has gone: TensorFlow will notice
    for index, closed in sorted(found.items()):
        for other, why in closed:
            return _no(
                errors.Unavailable,
                f"worker {other} is there, but worker {index} cannot reach it at {addresses[other]} ({why}); open this port "
                "between the workers, and check that the name resolves there",
            )
    return {}


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
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=MARGIN).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _difference(own: dict, said: dict) -> dict:
    """Return a refusal where another worker was started otherwise than the chief."""
    for key in own["same"]:
        mine, theirs = own["same"][key], said["same"].get(key)
        if mine != theirs:
            return _no(
                errors.SettingsError,
                f"{key} is {json.dumps(mine)} for worker 0 and {json.dumps(theirs)} for worker {said['index']}; start all "
                "workers alike",
            )
    return {}


def _no(kind: type[Exception], message: str) -> dict:
    return {"kind": kind.__name__, "message": message}


def _take(answer: dict) -> None:
    if answer:
        raise {kind.__name__: kind for kind in errors.KINDS}[answer["kind"]](answer["message"])


def _send(line: socket.socket, message: dict) -> None:
    line.sendall(json.dumps(message).encode() + b"\n")


def _heard(line: socket.socket) -> dict | None:
    """Return what the other side says in one line of JSON; None where it says nothing that can be understood."""
    with contextlib.suppress(OSError, ValueError), line.makefile("rb") as file:
        said = json.loads(file.readline(LINE))
        return said if isinstance(said, dict) else None
    return None


def _of_tf_config() -> Cluster | None:
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return None
    try:
        config = json.loads(text)
        jobs, task = config.get("cluster", {}), config.get("task", {})
        if not jobs:
            return None
        chief = tuple(jobs.get("chief", ()))  # TensorFlow counts it before the workers
        addresses, index = (
            (*chief, *jobs.get("worker", ())),
            int(task["index"]) + len(chief) * (task["type"] == "worker"),
        )
        known = set(jobs) <= {"chief", "worker"} and task["type"] in jobs and len(chief) <= 1
        named = known and all(isinstance(address, str) for address in addresses)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise errors.SettingsError(f"TF_CONFIG={text}: cannot be understood ({error}); {_REMEDY}") from error
    if not named:
        raise errors.SettingsError(
            f"TF_CONFIG={text}: name all processes under worker, or one under chief and the others under worker; {_REMEDY}"
        )
    return _checked(addresses, index, "TF_CONFIG")


_REMEDY = 'write {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}, or unset it'


def _of_pattern() -> Cluster | None:
    count = os.environ.get("TFPAR_NUM_WORKERS")
    if not count:
        return None
    index, template = os.environ.get("JOB_COMPLETION_INDEX", ""), os.environ.get("TFPAR_HOST_TEMPLATE", "")
    ports = os.environ.get("TFPAR_PORT", "").split(",")
    numbers = [count, index, *ports]
    if not all(number.isdecimal() for number in numbers) or not template or len(ports) not in (1, int(count)):
        raise errors.SettingsError(
            f"TFPAR_NUM_WORKERS={count}, JOB_COMPLETION_INDEX={index}, TFPAR_HOST_TEMPLATE={template}, "
            f"TFPAR_PORT={','.join(ports)}; give numbers, a host name with {{i}}, and one port or one for each worker"
        )
    each = ports * int(count) if len(ports) == 1 else ports
    addresses = tuple(f"{template.replace('{i}', str(i))}:{port}" for i, port in enumerate(each))
    return _checked(addresses, int(index), "TFPAR_NUM_WORKERS")


def _checked(addresses: tuple[str, ...], index: int, name: str) -> Cluster:
    if not 0 <= index < len(addresses):
        raise errors.SettingsError(
            f"{name}: worker {index} of {len(addresses)}; indices go from 0 to {len(addresses) - 1}"
        )
    ports = [address.rpartition(":")[2] for address in addresses]
    if not all(port.isdecimal() and 0 < int(port) < 65536 for port in ports) or len(set(addresses)) < len(addresses):
        raise errors.SettingsError(
            f"{name}: {', '.join(addresses)}; give each worker an address of its own, as host:port"
        )
    return Cluster(addresses, index)
