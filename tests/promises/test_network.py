"""Workers on a real network that fails: hosts are network namespaces, joined by a bridge in a namespace of its own.

Nothing leaves these namespaces, and the fixture removes them. A cut drops packets silently: a permanent neighbour entry sends them
to an address that nobody has.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import RUN
from same import same_files

from tfpar import results, scaling
from tfpar.scaling import formulas

PORT = 45900
NOTICED = 30  # seconds in which every worker must end
SECONDS = 240  # no test takes longer on one start
OFTEN = ["--checkpoint-seconds", "1", "--run", "run"]


def ip(*words, check=True):
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 or not check, (words, done.stderr)
    return done


def why_not():
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or not shutil.which("ip"):
        return "needs root and the command ip, to make network namespaces"
    done = ip("netns", "add", f"tfpar-{os.getpid()}-try", check=False)
    if done.returncode:
        return f"network namespaces cannot be made here: {done.stderr.strip()}"
    ip("netns", "del", f"tfpar-{os.getpid()}-try")
    return ""


class Hosts:
    """So many hosts on one network, 10.99.0.1 and so on, which know each other as worker-0, worker-1, ..."""

    def __init__(self, count):
        self.count, self.prefix = count, f"tfpar-{os.getpid()}-{count}"
        self.hub, self.names = f"{self.prefix}-hub", [f"{self.prefix}-{i}" for i in range(count)]

    def __enter__(self):
        for name in (self.hub, *self.names):
            ip("netns", "add", name)
        ip("-n", self.hub, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.hub, "link", "set", "bridge", "up")
        known = "127.0.0.1 localhost\n" + "".join(f"{self.address(i)} worker-{i}\n" for i in range(self.count))
        for i, name in enumerate(self.names):
            ip("-n", self.hub, "link", "add", f"port{i}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("-n", self.hub, "link", "set", f"port{i}", "master", "bridge", "up")
            ip("-n", name, "addr", "add", f"{self.address(i)}/16", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
            hosts = Path("/etc/netns") / name / "hosts"
            hosts.parent.mkdir(parents=True, exist_ok=True)
            hosts.write_text(known)
        return self

    def __exit__(self, *_exception):
        for name in (*self.names, self.hub):
            ip("netns", "del", name, check=False)
            shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)

    def address(self, host):
        return f"10.99.0.{host + 1}"

    def drop(self, sender, receiver, active=True):
        """Drop, or no longer drop, every packet from one host to another."""
        to = (self.address(receiver), "dev", "eth0")
        if active:
            ip("-n", self.names[sender], "neigh", "replace", *to, "lladdr", "02:00:00:00:00:99", "nud", "permanent")
        else:
            ip("-n", self.names[sender], "neigh", "del", *to)

    def cut(self, host, active=True):
        """Cut the cable of a host, or connect it again."""
        for other in set(range(self.count)) - {host}:
            self.drop(host, other, active)
            self.drop(other, host, active)


class Workers:
    """A worker on each host, all with one working directory."""

    def __init__(self, hosts, place, data, *, phase="none", who=0, wait=60):
        self.place, self.phase = place, place / phase
        for left in ("go", phase):
            (place / left).unlink(missing_ok=True)
        program = str(Path(__file__).with_name("netted.py"))
        several = {"TFPAR_NUM_WORKERS": str(hosts.count), "TFPAR_HOST_TEMPLATE": "worker-{i}", "TFPAR_PORT": str(PORT)}
        several |= {"TFPAR_WAIT_SECONDS": str(wait), "PYTHONUNBUFFERED": "1", "GRPC_POLL_STRATEGY": "poll"}
        self.processes = []
        for index, name in enumerate(hosts.names):
            command = [sys.executable, program, phase if index == who else "none", "train", str(data), *RUN, *OFTEN]
            with open(place / f"{index}.txt", "ab") as log:
                self.processes.append(
                    subprocess.Popen(
                        ["ip", "netns", "exec", name, *command],
                        cwd=place,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=os.environ | several | {"JOB_COMPLETION_INDEX": str(index)},
                        start_new_session=True,
                    )
                )

    def reach(self, seconds=SECONDS):
        """Return when the worker has reached its phase."""
        deadline = time.monotonic() + seconds
        while not self.phase.exists():
            assert time.monotonic() < deadline and not any(p.poll() for p in self.processes), self.said()
            time.sleep(0.02)

    def go(self):
        (self.place / "go").touch()

    def codes(self, seconds=SECONDS):
        """Return the exit codes, and how long each worker took to end."""
        started, found = time.monotonic(), {}
        while len(found) < len(self.processes) and time.monotonic() < started + seconds:
            for index, process in enumerate(self.processes):
                if process.poll() is not None and index not in found:
                    found[index] = (process.returncode, round(time.monotonic() - started, 1))
            time.sleep(0.05)
        print("exit codes and seconds:", found)
        return [found.get(index, (None,))[0] for index in range(len(self.processes))]

    def said(self):
        return {i: (self.place / f"{i}.txt").read_text()[-3000:] for i in range(len(self.processes))}

    def end(self):
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)


@pytest.fixture(scope="module", params=[2])
def hosts(request):
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with Hosts(request.param) as made:
        yield made


@pytest.fixture
def begun(digits, tmp_path):
    """Start workers, and end them all after the test."""
    started = []

    def begin(hosts, **options):
        started.append(Workers(hosts, tmp_path, digits.directory, **options))
        return started[-1]

    yield begin
    for each in started:
        each.end()


def continues(begun, hosts, tmp_path, alone):
    """The same commands end with the bits of the undisturbed run."""
    again = begun(hosts)
    assert again.codes() == [0] * hosts.count, again.said()
    assert same_files(alone, results.Run(tmp_path / "run"))


LOST = [(host, phase) for host in (0, 1) for phase in ("train", "inference", "save", "end")]
by_hand = pytest.mark.by_hand


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("host", "phase"), [LOST[4], *(pytest.param(*case, marks=by_hand) for case in LOST if case != LOST[4])]
)
def test_a_cut_ends_every_worker_with_75(hosts, begun, alone, tmp_path, host, phase):
    workers = begun(hosts, phase=phase)
    workers.reach()
    hosts.cut(host)
    workers.go()
    try:
        codes = workers.codes(NOTICED)
    finally:
        hosts.cut(host, False)
    assert codes == [75] * hosts.count, workers.said()
    lines = [text.strip().splitlines() for text in workers.said().values()]
    assert all("was lost" in text[-1] and "start all workers again" in text[-1] for text in lines), workers.said()
    assert all(len(text) < 30 for text in lines), workers.said()  # TensorFlow's own lines stay off the screen
    if phase != "end":
        continues(begun, hosts, tmp_path, alone)


@by_hand
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("sender", "receiver"), [(0, 1), (1, 0)])
def test_a_cut_in_one_direction(hosts, begun, alone, tmp_path, sender, receiver):
    workers = begun(hosts, phase="train")
    workers.reach()
    hosts.drop(sender, receiver)
    workers.go()
    try:
        codes = workers.codes(NOTICED)
    finally:
        hosts.drop(sender, receiver, False)
    assert codes == [75] * hosts.count, workers.said()
    continues(begun, hosts, tmp_path, alone)


@by_hand
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seconds", [1, 4, 8])
def test_a_short_cut(hosts, begun, alone, tmp_path, seconds):
    workers = begun(hosts, phase="train")
    workers.reach()
    hosts.cut(1)
    workers.go()
    time.sleep(seconds)
    hosts.cut(1, False)
    codes = workers.codes(90)
    assert codes == [0] * hosts.count or (seconds == 8 and codes == [75] * hosts.count), workers.said()
    continues(begun, hosts, tmp_path, alone)


@by_hand
@pytest.mark.timeout(600)
@pytest.mark.parametrize("comes_up", [True, False])
def test_a_link_that_is_down_at_the_start(hosts, begun, alone, tmp_path, comes_up):
    hosts.cut(1)
    try:
        workers = begun(hosts, wait=40)
        time.sleep(15)
        if comes_up:
            hosts.cut(1, False)
        codes = workers.codes(120)
    finally:
        if not comes_up:
            hosts.cut(1, False)
    assert codes == ([0] if comes_up else [69]) * hosts.count, workers.said()
    if comes_up:
        assert same_files(alone, results.Run(tmp_path / "run"))


@by_hand
@pytest.mark.timeout(600)
def test_small_packets(hosts, begun, alone, tmp_path):
    for name in hosts.names:
        ip("-n", name, "link", "set", "eth0", "mtu", "1280")
    workers = begun(hosts)
    assert workers.codes() == [0] * hosts.count, workers.said()
    assert same_files(alone, results.Run(tmp_path / "run"))


@by_hand
@pytest.mark.timeout(600)
def test_a_firewall_that_passes_the_meeting_alone(hosts, begun):
    """Closed after the workers have met, before TensorFlow connects."""
    workers = begun(hosts, phase="met")
    workers.reach()
    rule = ("rule", "add", "to", hosts.address(1), "ipproto", "tcp", "dport", str(PORT), "blackhole")
    ip("-n", hosts.names[0], *rule)
    try:
        workers.go()
        codes = workers.codes(180)
    finally:
        ip("-n", hosts.names[0], "rule", "del", *rule[2:])
    assert codes == [69] * hosts.count, workers.said()
    assert f"worker-1:{PORT}" in workers.said()[0].splitlines()[-1]


@pytest.fixture
def three():
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with Hosts(3) as made:
        yield made


@by_hand
@pytest.mark.timeout(900)
def test_three_workers(three, begun, alone, tmp_path):
    """A port that two of three cannot use between them is named; then one host is lost, and all continue."""
    rule = ("rule", "add", "to", three.address(2), "ipproto", "tcp", "dport", str(PORT), "blackhole")
    ip("-n", three.names[1], *rule)
    workers = begun(three)
    assert workers.codes(120) == [69] * 3, workers.said()
    assert f"worker 1 cannot reach it at worker-2:{PORT}" in workers.said()[0]
    ip("-n", three.names[1], "rule", "del", *rule[2:])
    workers = begun(three, phase="train", who=1)
    workers.reach()
    three.cut(2)
    workers.go()
    codes = workers.codes(NOTICED)
    three.cut(2, False)
    assert codes == [75] * 3, workers.said()
    continues(begun, three, tmp_path, alone)


EXCHANGE = """
import json, statistics, sys, time
import tensorflow as tf
from tfpar import devices
from tfpar.steps.exchange import Exchange
from tfpar.workers.group import WorkerGroup
strategy = devices.strategy()
group, exchange = WorkerGroup(strategy), Exchange(2, 2, several_workers=True)

@tf.function(autograph=False)
def exchanged():
    def on_replica():
        gradient = tf.random.stateless_uniform([int(sys.argv[1]) // 4], [group.index, 1])
        return exchange(tf.distribute.get_replica_context(), [gradient], tf.zeros([1, 2]))[0][0]
    return strategy.run(on_replica)

seconds = []
for _ in range(8):
    group.wait()
    started = time.perf_counter()
    exchanged()
    seconds.append(time.perf_counter() - started)
print(json.dumps(statistics.median(seconds[1:])))
"""


@by_hand
@pytest.mark.timeout(300)
def test_the_exchange_over_a_link_of_known_rate_takes_what_is_predicted(hosts, tmp_path):
    """A token bucket limits what each host sends; every worker sends its whole gradient."""
    size, rate = 10e6, 0.0125  # bytes, GB/s: so slow that the processor has time for TCP and gRPC
    for name in hosts.names:
        words = [
            "qdisc",
            "add",
            "dev",
            "eth0",
            "root",
            "tbf",
            "rate",
            f"{rate * 8:g}gbit",
            "burst",
            "64kb",
            "latency",
            "100ms",
        ]
        done = subprocess.run(["tc", "-n", name, *words], capture_output=True, text=True, timeout=30)
        if done.returncode:
            pytest.skip(f"the kernel cannot limit a rate: {done.stderr.strip()}")
    several = {"TFPAR_NUM_WORKERS": "2", "TFPAR_HOST_TEMPLATE": "worker-{i}", "TFPAR_PORT": str(PORT)}
    processes = []
    try:
        for index, name in enumerate(hosts.names):
            command = ["ip", "netns", "exec", name, sys.executable, "-c", EXCHANGE, str(int(size))]
            environment = os.environ | several | {"JOB_COMPLETION_INDEX": str(index)}
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        measured = [float(process.communicate(timeout=200)[0].splitlines()[-1]) for process in processes]
    finally:
        for process in processes:
            process.kill()
        for name in hosts.names:
            subprocess.run(["tc", "-n", name, "qdisc", "del", "dev", "eth0", "root"], timeout=30)
    predicted = formulas.exchange([2], scaling.Machine(1, None, rate), size, all_reduce="ordered")[0]
    print(f"{size / 1e6:g} MB over {rate:g} GB/s: measured {measured} s, predicted {predicted:.3f} s")
    assert max(measured) == pytest.approx(predicted, rel=0.2)
