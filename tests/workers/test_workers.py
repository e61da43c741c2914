"""Several worker processes on this machine: the bits of one process, whoever is lost, and one cause for every end."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import keras
import pyarrow.csv
import pytest
import tensorflow as tf
from processes import RUN
from same import same_files

from tfpar import devices, errors, results, signals
from tfpar.workers import group as group_file
from tfpar.workers import launcher

SECONDS = 240  # no gang of these tests takes longer


class Gang:
    """`tfpar launch` at work, and what it prints."""

    def __init__(self, place, data, run, *, workers=2, arguments=(), options=()):
        command = [sys.executable, "-m", "tfpar", "launch", "--workers", str(workers), *options, "--"]
        self.run = place / run
        self.process = subprocess.Popen(
            [*command, "train", str(data), "--run", str(self.run), *RUN, *arguments],
            cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"TFPAR_WAIT_SECONDS": "60"},
        )  # fmt: skip
        self.lines = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout))
        self.reader.start()

    def known(self):
        return json.loads((self.run / "workers" / "launch.json").read_text())

    def wait_for(self, text, *, times=1):
        deadline = time.monotonic() + SECONDS
        while sum(text in line for line in self.lines) < times:
            assert time.monotonic() < deadline and self.process.poll() is None, "".join(self.lines)
            time.sleep(0.02)

    def send(self, number, index):
        os.kill(self.known()["workers"][index]["pid"], number)

    def end(self):
        """Return the exit code, and nobody is left."""
        try:
            code = self.process.wait(timeout=SECONDS)
        finally:
            if self.process.poll() is None:
                self.process.terminate()
                self.process.wait(timeout=90)
            self.reader.join(timeout=30)
        for worker in self.known()["workers"]:
            assert not alive(worker["pid"])
        return code


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_two_workers_of_which_the_chief_is_killed_give_the_bits_of_one_process(digits, alone, tmp_path):
    """Page 6 of the tutorial kills the other one."""
    gang = Gang(tmp_path, digits.directory, "run", arguments=["--checkpoint-seconds", "0.2"])
    gang.wait_for("Epoch 2/")
    gang.send(signal.SIGKILL, 0)
    assert gang.end() == 0, "".join(gang.lines)
    assert gang.known()["restarts"] == 1
    assert any("worker 0 was killed by SIGKILL; all workers restart (1 of 10)" in line for line in gang.lines)
    assert any("continuing after step" in line for line in gang.lines)
    assert not any(line.startswith("[1]") and "Epoch" in line for line in gang.lines)  # the chief speaks for all
    assert "Epoch 2/" in (tmp_path / "run" / "workers" / "0.log").read_text()
    assert same_files(alone, results.Run(tmp_path / "run"))


@pytest.mark.by_hand
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("workers", [3, 4, 12])
def test_more_workers(digits, alone, tmp_path, workers):
    gang = Gang(tmp_path, digits.directory, "run", workers=workers)
    assert gang.end() == 0, "".join(gang.lines)
    assert same_files(alone, results.Run(tmp_path / "run"))


@pytest.mark.by_hand
@pytest.mark.timeout(1200)
def test_four_workers_lose_their_machine_and_one_process_goes_on(digits, alone, tmp_path):
    gang = Gang(tmp_path, digits.directory, "run", workers=4, arguments=["--checkpoint-seconds", "0.2"])
    gang.wait_for("Epoch 2/")
    pids = [worker["pid"] for worker in gang.known()["workers"]]
    gang.process.kill()  # the launcher first, or it would start them again
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    gang.process.wait(timeout=30)
    gang.reader.join(timeout=30)
    command = [sys.executable, "-m", "tfpar", "train", str(digits.directory), "--run", str(gang.run), *RUN]
    done = subprocess.run(command, cwd=tmp_path, timeout=SECONDS, capture_output=True, text=True)
    assert done.returncode == 0 and "continuing after step" in done.stdout, done.stderr
    assert same_files(alone, results.Run(gang.run))


@pytest.mark.by_hand
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("who", ["one", "launcher"])
def test_sigterm_saves_once_and_ends_all_with_42(digits, alone, tmp_path, who):
    gang = Gang(tmp_path, digits.directory, "run")
    gang.wait_for("Epoch 2/")
    if who == "one":
        gang.send(signal.SIGTERM, 1)
    else:
        gang.process.send_signal(signal.SIGINT)
    assert gang.end() == 42, "".join(gang.lines)
    assert sum("state saved" in line for line in gang.lines if line.startswith("[0]")) == 1
    gang = Gang(tmp_path, digits.directory, "run")
    assert gang.end() == 0 and same_files(alone, results.Run(tmp_path / "run")), "".join(gang.lines)


@pytest.mark.by_hand
@pytest.mark.timeout(1200)
def test_a_stopped_worker_is_lost(digits, alone, tmp_path):
    gang = Gang(tmp_path, digits.directory, "run", arguments=["--checkpoint-seconds", "0.2"])
    gang.wait_for("Epoch 2/")
    gang.send(signal.SIGSTOP, 1)
    started = time.monotonic()
    gang.wait_for("another of the 2 workers was lost")
    assert time.monotonic() - started < 60
    assert gang.end() == 0, "".join(gang.lines)
    assert same_files(alone, results.Run(tmp_path / "run"))


@pytest.mark.by_hand
@pytest.mark.timeout(3600)
def test_ten_kills_at_random(digits, tmp_path):
    """Ten kills, each of a worker that is alive; the run ends with the bits of an undisturbed one of two workers."""
    random.seed(6)
    longer = ["--stage", "40@0.02"]  # so that ten kills come before its end
    undisturbed = Gang(tmp_path, digits.directory, "undisturbed", arguments=longer)
    assert undisturbed.end() == 0, "".join(undisturbed.lines)
    gang = Gang(
        tmp_path,
        digits.directory,
        "run",
        arguments=["--checkpoint-seconds", "0", *longer],
        options=["--restarts", "20"],
    )
    for hit in range(10):
        gang.wait_for("on each of 2 workers", times=hit + 1)  # all there, about to trace
        time.sleep(random.uniform(0, 12))
        victim = random.randrange(2)
        pid = gang.known()["workers"][victim]["pid"]
        assert alive(pid), "the run was over before ten kills"
        os.kill(pid, signal.SIGKILL)
        gang.wait_for(f"worker {victim} was killed by SIGKILL; all workers restart ({hit + 1} of 20)")
    assert gang.end() == 0, "".join(gang.lines)
    assert gang.known()["restarts"] == 10
    assert any("continuing after step" in line for line in gang.lines)
    assert same_files(results.Run(undisturbed.run), results.Run(gang.run))


def started(place, command, ports, index):
    """Start one worker of two by hand."""
    environment = {
        "TFPAR_NUM_WORKERS": "2", "TFPAR_HOST_TEMPLATE": "127.0.0.1", "TFPAR_PORT": ",".join(map(str, ports)),
        "JOB_COMPLETION_INDEX": str(index), "TFPAR_WAIT_SECONDS": "30", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    with open(place / f"{index}.txt", "ab") as log:
        return subprocess.Popen(
            [sys.executable, *command], cwd=place, stdout=log, stderr=subprocess.STDOUT, env=os.environ | environment
        )


@pytest.mark.by_hand
@pytest.mark.timeout(1200)
def test_one_worker_restarted_alone_mixes_with_nobody(digits, alone, tmp_path):
    command = ["-m", "tfpar", "train", str(digits.directory), "--run", "run", *RUN]
    ports = launcher._free_ports(2)
    chief, other = (started(tmp_path, command, ports, index) for index in (0, 1))
    again = None
    try:
        deadline = time.monotonic() + SECONDS
        while "Epoch 2/" not in (tmp_path / "0.txt").read_text():
            assert time.monotonic() < deadline and chief.poll() is None
            time.sleep(0.05)
        other.kill()
        again = started(tmp_path, command, ports, 1)
        assert chief.wait(timeout=60) == 75
        assert again.wait(timeout=120) == 69
        assert "worker 0" in (tmp_path / "1.txt").read_text().splitlines()[-1]
    finally:
        for process in (chief, other, again):
            if process:
                process.kill()
    gang = Gang(tmp_path, digits.directory, "run")
    assert gang.end() == 0 and same_files(alone, results.Run(tmp_path / "run")), "".join(gang.lines)


FAILING = """
import sys, keras
from tfpar import devices, prepare, train
from tfpar.workers.group import WorkerGroup
from networks import tiny

strategy = devices.strategy()
class Fails(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if WorkerGroup(strategy).index == 1:
            raise RuntimeError("the input of worker 1 broke")
train.run(tiny(strategy), prepare.load(sys.argv[1]), "run", stages=[train.Stage(3, 0.1)], shards=4, callbacks=[Fails()])
"""


@pytest.mark.by_hand
@pytest.mark.timeout(600)
def test_an_exception_in_one_worker_ends_all(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(os.path.dirname(__file__)), prepend=os.pathsep)
    ports = launcher._free_ports(2)
    both = [started(tmp_path, ["-c", FAILING, str(digits.directory)], ports, index) for index in (0, 1)]
    try:
        assert [process.wait(timeout=SECONDS) for process in both] == [1, 1]
    finally:
        for process in both:
            process.kill()
    assert "WorkerLost: another of the 2 workers was lost" in (tmp_path / "0.txt").read_text()
    assert "the input of worker 1 broke" in (tmp_path / "1.txt").read_text()


WRITING = """
import sys, keras
from tfpar import devices, prepare, train
from networks import tiny

callbacks = [
    keras.callbacks.CSVLogger("log.csv"), keras.callbacks.ModelCheckpoint("{epoch}.keras", verbose=1),
    keras.callbacks.EarlyStopping("val_loss", patience=5, restore_best_weights=True),
]
stages = [train.Stage(2, 0.1), train.Stage(1, 0.01)]
train.run(tiny(devices.strategy()), prepare.load(sys.argv[1]), "run", stages=stages, shards=4, callbacks=callbacks)
"""


@pytest.mark.slow
def test_callbacks_that_write_files_do_so_once(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(os.path.dirname(__file__)), prepend=os.pathsep)
    ports = launcher._free_ports(2)
    both = [started(tmp_path, ["-c", WRITING, str(digits.directory)], ports, index) for index in (0, 1)]
    try:
        assert [process.wait(timeout=SECONDS) for process in both] == [0, 0], (tmp_path / "0.txt").read_text()
    finally:
        for process in both:
            process.kill()
    logged = pyarrow.csv.read_csv(tmp_path / "log.csv")
    assert logged["loss"].to_pylist() == results.Run(tmp_path / "run").history["loss"].to_pylist()
    assert ["saving model" in (tmp_path / f"{index}.txt").read_text() for index in (0, 1)] == [True, False]
    assert len(logged) == 3 and keras.models.load_model(tmp_path / "1.keras").count_params() > 0


class Ended:
    """A process that is seen to have ended at some look, with a code."""

    def __init__(self, looks, code):
        self.looks, self.code, self.returncode, self.signals = looks, code, None, []

    def poll(self):
        self.looks -= 1
        self.returncode = self.code if self.looks < 0 else None
        return self.returncode

    def wait(self):
        self.returncode = self.code

    def send_signal(self, number):
        self.signals.append(number)


def gang_of(looks, codes):
    gang = object.__new__(launcher._WorkerProcesses)
    gang.processes, gang.cause = [Ended(*one) for one in zip(looks, codes, strict=True)], ""
    gang.readers = [threading.Thread() for _ in codes]
    for reader in gang.readers:
        reader.start()
    return gang


@pytest.mark.parametrize(
    ("looks", "codes", "told", "expected", "cause"),
    [
        ((1, 1), (0, 0), False, 0, ""),
        ((9, 1), (65, 75), False, 65, "worker 0 ended with 65"),  # lost, and the reason seen later
        ((9, 1), (70, -9), False, 137, "worker 1 was killed by SIGKILL"),  # the first, whatever its number
        ((1, 9), (75, 75), False, 75, "worker 0 ended with 75"),
        ((1, 9), (42, 74), True, 74, "worker 1 ended with 74"),  # the others did as they were told
        ((1, 9), (42, 75), True, 42, "worker 0 ended with 42"),
        ((1, 9), (-15, 73), True, 73, "worker 1 ended with 73"),
    ],
)
def test_the_first_cause_is_the_exit_code(looks, codes, told, expected, cause, monkeypatch):
    monkeypatch.setattr(launcher, "POLL", 0.001)
    gang, stop = gang_of(looks, codes), signals.StopSignal()
    stop.requested = told
    assert gang.wait(stop) == expected and gang.cause == cause


@pytest.mark.parametrize(("code", "killed"), [(42, False), (75, True), (-9, True)])
def test_who_saves_is_given_time_and_who_hangs_is_not(code, killed, monkeypatch):
    monkeypatch.setattr(launcher, "POLL", 0.001)
    monkeypatch.setattr(launcher, "GRACE", 0.0)
    gang = gang_of((20, 1), (42, code))
    gang.wait(signals.StopSignal())
    assert (signal.SIGKILL in gang.processes[0].signals) == killed


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (tf.errors.DeadlineExceededError(None, None, "Deadline Exceeded"), True),
        (tf.errors.UnavailableError(None, None, "failed to connect to all addresses"), True),
        (tf.errors.AbortedError(None, None, "aborted"), True),
        (tf.errors.CancelledError(None, None, "RPC cancelled: Socket closed"), True),
        (tf.errors.InternalError(None, None, "Collective ops is aborted by: ..."), True),
        (tf.errors.FailedPreconditionError(None, None, "Barrier failed: the peer is gone"), True),
        (tf.errors.UnknownError(None, None, "/job:worker/task:1: heartbeat timeout"), True),
        (
            tf.errors.InternalError(
                None, None, "{{function_node __wrapped__MatMul_device_/job:worker/task:1}} Blas GEMM launch failed"
            ),
            False,
        ),
        (tf.errors.InternalError(None, None, "no peer access between the GPUs"), False),
        (tf.errors.CancelledError(None, None, "Operation was cancelled"), False),
        (tf.errors.InvalidArgumentError(None, None, "collective with a wrong shape"), False),
    ],
)
def test_a_lost_worker_is_told_from_a_defect(error, lost, monkeypatch):
    group = group_file.WorkerGroup(devices.strategy(simulate=2))
    group.size = 2
    with pytest.raises(errors.WorkerLost if lost else type(error)), group.worker_loss_as_error():
        raise error


def test_what_keeps_workers_from_each_other_is_no_lost_worker(monkeypatch):
    """On a cluster 75 is not counted: workers that never could exchange anything would be started for ever."""
    strategy, exchanges = devices.strategy(simulate=2), []

    def summed(numbers):
        exchanges.append(numbers)
        said = "Graph execution error:\n\nDetected at node x\n\nNCCL: unhandled system error\n\t [[{{node x}}]]"
        raise tf.errors.InternalError(None, None, said)

    def group(strategy):
        made = original(strategy)
        made.size, made._summed = 2, summed
        return made

    original = group_file.WorkerGroup
    monkeypatch.setattr(group_file, "WorkerGroup", group)
    with pytest.raises(
        errors.Unavailable, match=r"could not exchange a number between them \(NCCL: unhandled system error\)"
    ):
        group_file.check_connection(strategy)
    with (
        pytest.raises(errors.WorkerLost, match=r"was lost \(NCCL: unhandled system error\); start all workers again"),
        group(strategy).worker_loss_as_error(),
    ):
        group(strategy).wait()
    assert len(exchanges) == 2


def test_a_full_disk_or_a_closed_screen_does_not_stop_a_worker(monkeypatch, tmp_path):
    lines = [b"a line\n"] * 3
    rest = iter(lines)
    launcher._copy(rest, "/dev/full", 0)
    assert next(rest, None) is None

    def gone(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", gone)
    launcher._copy(iter(lines), tmp_path / "0.log", 0)
    assert (tmp_path / "0.log").read_bytes() == b"".join(lines)


def test_ports_that_are_open_to_other_hosts_are_told_with_the_rule_that_closes_them(monkeypatch):
    class Datagram(launcher.socket.socket):
        def connect(self, place):
            if not there:
                raise OSError("Network is unreachable")

    monkeypatch.setattr(launcher.socket, "socket", Datagram)
    for there in (True, False):
        line = launcher.open_to_others()
        assert bool(line) == there
        assert not there or ("without a password" in line and "\n" not in line)
    if os.path.exists("/proc/sys/net/ipv4/ip_local_port_range"):
        there = True
        assert "iptables -I INPUT ! -i lo -p tcp --syn --dport " in launcher.open_to_others()


def test_a_start_that_fails_leaves_nobody(monkeypatch, tmp_path):
    started = []

    def first_only(command, environment, cores):
        if started:
            raise OSError("no more processes")
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdout=subprocess.PIPE))
        return started[0]

    monkeypatch.setattr(launcher, "_started", first_only)
    with pytest.raises(OSError, match="no more processes"):
        launcher.launch(["train", "digits"], workers=2, logs=tmp_path)
    assert started[0].wait(timeout=30) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("codes", "expected"), [((42, 42), None), ((42, 143), None), ((0, 0), 0), ((74, 42), 74), ((42, 75), None)]
)
def test_a_launch_that_is_stopped_tells_how_its_workers_ended(codes, expected, monkeypatch, tmp_path):
    """Stopped is 42 where the workers were stopped; what they finished or failed at stays what it is."""

    def ends_with(command, environment, cores):
        code = codes[int(environment["JOB_COMPLETION_INDEX"])]
        text = f"import signal, sys, time; signal.signal(15, lambda *_: sys.exit({code})); print(flush=True); time.sleep(60)"
        process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE)
        process.stdout.readline()  # it is ready for the signal
        return process

    def asked(self):
        self.requested = True
        return self

    monkeypatch.setattr(launcher, "_started", ends_with)
    monkeypatch.setattr(launcher.StopSignal, "__enter__", asked)
    monkeypatch.setattr(launcher.StopSignal, "__exit__", lambda *_: None)
    if expected is None:
        with pytest.raises(launcher.Interrupted, match="stopped with all workers; the same command continues"):
            launcher.launch(["train", "digits"], workers=2, logs=tmp_path)
    else:
        assert launcher.launch(["train", "digits"], workers=2, logs=tmp_path) == expected


@pytest.mark.slow
def test_a_failure_that_a_restart_cannot_fix_ends_the_launch(tmp_path, capsys):
    code = launcher.launch(["train", "nowhere/at/all"], workers=2, logs=tmp_path / "logs")
    said = capsys.readouterr().out
    assert code in (66, 69) and "start again" not in said and "nowhere/at/all" in said
    assert json.loads((tmp_path / "logs" / "launch.json").read_text())["restarts"] == 0


def test_wrong_launches_are_refused(tmp_path):
    for wrong, said in (
        ({"workers": 0}, "workers=0"),
        ({"workers": 2, "restarts": -1}, "restarts=-1"),
        ({"workers": 2, "cores_per_worker": 10**6}, "2 workers of 1000000 cores each"),
    ):
        with pytest.raises(errors.SettingsError, match=said):
            launcher.launch(["train", "digits"], logs=tmp_path / "logs", **wrong)
    assert not (tmp_path / "logs").exists()
