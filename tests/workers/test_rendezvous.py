"""Workers meet before TensorFlow starts: who is missing, wrong or started otherwise is told by name, before a deadline."""

import contextlib
import json
import socket
import threading
import time

import pytest

from tfpar import errors, workers
from tfpar.workers import launcher, rendezvous

LOOPBACK = "127.0.0.1"


def addresses(count):
    return [f"{LOOPBACK}:{port}" for port in launcher._free_ports(count)]


def met(lists, sames, *, seconds=20.0):
    """Let workers meet in threads; return what each raised, or None."""
    found = [None] * len(lists)

    def run(index):
        try:
            rendezvous.meet(lists[index], index, same=sames[index], seconds=seconds)
        except errors.KINDS as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(lists))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    return found


@pytest.mark.parametrize("count", [2, 5])
def test_all_meet(count):
    everybody = addresses(count)
    assert met([everybody] * count, [{"tensorflow": "2.21.0"}] * count) == [None] * count


@pytest.mark.parametrize(
    "said",
    [b"", b'{"same": {}}\n', b'{"same": {}, "index": "1"}\n', b'{"same": [], "index": 1}\n', b"GET / HTTP/1.1\r\n\r\n"],
)
def test_strangers_do_not_hold_up_the_meeting(said, monkeypatch):
    monkeypatch.setattr(rendezvous, "MARGIN", 1.0)
    everybody = addresses(2)
    with socket.socket() as stranger:
        chief = threading.Thread(target=rendezvous.meet, args=(everybody, 0), kwargs={"same": {}, "seconds": 50.0})
        chief.start()
        while stranger.connect_ex((LOOPBACK, int(everybody[0].rpartition(":")[2]))):
            time.sleep(0.05)
        stranger.sendall(said)
        rendezvous.meet(everybody, 1, same={}, seconds=20.0)  # less than the chief would listen to the stranger
        chief.join(timeout=30)
        assert not chief.is_alive()


def test_a_worker_that_never_comes_is_named_by_the_others():
    everybody = addresses(3)
    started = time.monotonic()
    found = met([everybody] * 2, [{}] * 2, seconds=1.0)  # the third is not started
    assert time.monotonic() - started < 10
    assert all(isinstance(error, errors.Unavailable) for error in found)
    assert {str(error) for error in found} == {
        f"worker 2 ({everybody[2]}) did not connect within 1 s; start all workers"
    }


def test_a_chief_that_never_comes():
    everybody = addresses(2)
    with pytest.raises(errors.Unavailable, match=rf"worker 0 \({everybody[0]}\) did not connect within 0.5 s"):
        rendezvous.meet(everybody, 1, same={}, seconds=0.5)


def test_other_lists_and_other_commands_end_all_with_the_same_message():
    everybody = addresses(2)
    other = [everybody[0], f"localhost:{everybody[1].rpartition(':')[2]}"]
    for lists, sames, said in (
        ([everybody, other], [{}, {}], "workers is"),
        ([everybody] * 2, [{"command": ["train", "a"]}, {"command": ["train", "b"]}], "command is"),
    ):
        found = met(lists, sames)
        assert all(isinstance(error, errors.SettingsError) for error in found)
        assert (
            str(found[0]) == str(found[1])
            and said in str(found[0])
            and "with the same command and versions" in str(found[0])
        )


def test_a_taken_port():
    everybody = addresses(2)
    with (
        socket.create_server((LOOPBACK, int(everybody[0].rpartition(":")[2]))),
        pytest.raises(errors.Unavailable, match=f"worker 0 cannot listen on {everybody[0]}"),
    ):
        rendezvous.meet(everybody, 0, same={}, seconds=1)


def test_a_name_that_does_not_resolve():
    with pytest.raises(errors.Unavailable, match=r"the name worker-0\.invalid does not resolve"):
        rendezvous.meet(["worker-0.invalid:41001", f"{LOOPBACK}:41002"], 0, same={}, seconds=0.3)


def test_whoever_talks_nonsense_is_passed_over():
    everybody = addresses(2)
    port = int(everybody[0].rpartition(":")[2])

    def nonsense():
        for words in (b"GET / HTTP/1.0\r\n\r\n", b"[1, 2]\n", b'{"index": 1}\n', b""):
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                try:
                    with socket.create_connection((LOOPBACK, port)) as line:
                        line.sendall(words)
                    break
                except OSError:
                    time.sleep(0.02)

    stranger = threading.Thread(target=nonsense)
    stranger.start()
    chief = threading.Thread(target=rendezvous.meet, args=(everybody, 0), kwargs={"same": {}, "seconds": 20})
    chief.start()
    stranger.join(timeout=30)
    rendezvous.meet(everybody, 1, same={}, seconds=20)
    chief.join(timeout=30)
    assert not chief.is_alive()


def test_a_port_scanner_is_told_of_once_and_holds_up_nobody(capfd):
    """Silent, talkative and endless strangers at once."""
    everybody = addresses(3)
    threads = [
        threading.Thread(target=rendezvous.meet, args=(everybody, index), kwargs={"same": {}, "seconds": 30})
        for index in range(3)
    ]
    threads[0].start()
    port, strangers, started = int(everybody[0].rpartition(":")[2]), [], time.monotonic()
    for words in (b"", b"\x16\x03\x01 TLS", b"GET / HTTP/1.1\r\n\r\n", b"x" * (1 << 22), b"") * 4:
        while True:
            try:
                strangers.append(socket.create_connection((LOOPBACK, port), timeout=1))
                break
            except OSError:
                assert time.monotonic() - started < 20
        with contextlib.suppress(OSError):
            strangers[-1].sendall(words)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert time.monotonic() - started < 15
    for stranger in strangers:
        stranger.close()
    assert capfd.readouterr().err.count("ignored a connection from 127.0.0.1") == 1


@pytest.mark.parametrize("closed", [(1, 2), (2, 0)])
def test_a_pair_that_cannot_connect_is_named(monkeypatch, closed):
    everybody, plain = addresses(3), rendezvous._closed

    def between(addresses, index):
        return [(closed[1], "timed out")] if index == closed[0] else plain(addresses, index)

    monkeypatch.setattr(rendezvous, "_closed", between)
    for error in met([everybody] * 3, [{}] * 3):
        assert isinstance(error, errors.Unavailable)
        assert f"worker {closed[0]} cannot reach it at {everybody[closed[1]]} (timed out); open this port" in str(error)


TWO = ["a:1", "b:2"]


def config(workers=TWO, index=1, **more):
    return json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}} | more)


PATTERN = {
    "TFPAR_NUM_WORKERS": "3", "JOB_COMPLETION_INDEX": "2", "TFPAR_HOST_TEMPLATE": "train-{i}.train", "TFPAR_PORT": "12345",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"TF_CONFIG": ""}, None),
        ({"TF_CONFIG": config(["a:1"], 0)}, None),  # one worker is no group
        ({"TF_CONFIG": config()}, (("a:1", "b:2"), 1)),
        ({"TF_CONFIG": config(index=0, cluster={"chief": ["a:1"], "worker": ["b:2"]})}, (("a:1", "b:2"), 1)),
        (
            {"TF_CONFIG": config(cluster={"chief": ["a:1"], "worker": ["b:2"]}, task={"type": "chief", "index": 0})},
            (("a:1", "b:2"), 0),
        ),
        (PATTERN, (("train-0.train:12345", "train-1.train:12345", "train-2.train:12345"), 2)),
        (PATTERN | {"TFPAR_PORT": "1,2,3", "TFPAR_HOST_TEMPLATE": "h"}, (("h:1", "h:2", "h:3"), 2)),
        (PATTERN | {"TF_CONFIG": config([f"train-{i}.train:12345" for i in range(3)], 2)}, (..., 2)),
    ],
)
def test_the_environment_names_the_workers(monkeypatch, environment, expected):
    for name in ("TF_CONFIG", *PATTERN):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = workers.cluster()
    assert (found is None) == (expected is None)
    if expected:
        assert found.index == expected[1] and (expected[0] is ... or found.addresses == expected[0])


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"TF_CONFIG": "{"}, "cannot be understood"),
        ({"TF_CONFIG": "[]"}, "cannot be understood"),
        ({"TF_CONFIG": config(index=2)}, "worker 2 of 2; indices go from 0 to 1"),
        ({"TF_CONFIG": config(["a:1", "a:1"])}, "its own address"),
        ({"TF_CONFIG": config(["a", "b"])}, "as host:port"),
        (
            {"TF_CONFIG": config(cluster={"chief": ["a:1", "c:3"], "worker": ["b:2"]}, index=0)},
            "name all processes under worker",
        ),
        ({"TF_CONFIG": config(task={"type": "ps", "index": 0})}, "name all processes under worker"),
        (PATTERN | {"JOB_COMPLETION_INDEX": "3"}, "worker 3 of 3"),
        (PATTERN | {"TFPAR_PORT": "1,2"}, "one port or one for each worker"),
        (PATTERN | {"TFPAR_NUM_WORKERS": "many"}, "give numbers"),
        (PATTERN | {"TF_CONFIG": config()}, "unset one of them"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(monkeypatch, environment, said):
    for name in ("TF_CONFIG", *PATTERN):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(errors.SettingsError, match=said):
        workers.cluster()
