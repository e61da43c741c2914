"""Real signals to real processes: whatever is killed, the same command ends with the same files."""

import collections
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from same import same_files

from tfpar import results

PHASES = ("start", "facts", "train", "inference", "checkpoint", "stage", "report")


class Killer:
    """Starts runs one after the other, and sends each a signal in the phase it aims at."""

    def __init__(self, data):
        program = Path(__file__).with_name("killable.py")
        self.parent = subprocess.Popen(
            [sys.executable, str(program), str(data)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            stderr=subprocess.DEVNULL,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join([str(program.parents[1]), os.environ.get("PYTHONPATH", "")])},
        )
        self.hits = collections.Counter()

    def start(self, directory, *, replicas, per_call):
        self.directory = directory
        Path(f"{directory}.phase").unlink(missing_ok=True)
        self.parent.stdin.write(f"{replicas} {per_call} {directory}\n")
        self.parent.stdin.flush()
        self.child = int(self.parent.stdout.readline())

    def phase(self):
        try:
            return Path(f"{self.directory}.phase").read_text().strip()
        except FileNotFoundError:
            return ""

    def aim(self, target, number, *, delay=0.0, seconds=90):
        """Send the signal once the child is in the phase; False where it ended before it came there."""
        deadline = time.monotonic() + seconds
        while self.phase() != target:
            assert time.monotonic() < deadline, f"{target} did not come"
            if not Path(f"/proc/{self.child}").exists():
                return False
            time.sleep(0.0005)
        time.sleep(delay)
        hit = self.phase()
        try:
            os.kill(self.child, number)
        except ProcessLookupError:
            return False
        self.hits[hit] += 1
        return True

    def end(self):
        """Return the exit code of the child."""
        return int(self.parent.stdout.readline())

    def close(self):
        self.parent.stdin.close()
        self.parent.wait(60)


@pytest.fixture(scope="module")
def killer(digits):
    killer = Killer(digits.directory)
    yield killer
    killer.close()


@pytest.fixture(scope="module")
def unbroken(killer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("faults") / "unbroken"
    killer.start(directory, replicas=4, per_call=4)
    assert killer.end() == 0
    return results.Run(directory)


def kill(killer, unbroken, place, *, kills, seed):
    """Kill runs until `kills` of them were hit alive; every run that comes to its end must equal the unbroken one."""
    chance = random.Random(seed)
    number = 0
    while sum(killer.hits.values()) < kills:
        number += 1
        directory = place / str(number)
        code = None
        while code != 0:
            killer.start(directory, replicas=chance.choice((1, 2, 4)), per_call=chance.choice((1, 4)))
            enough = sum(killer.hits.values()) >= kills
            hit = not enough and killer.aim(chance.choice(PHASES), signal.SIGKILL, delay=chance.random() ** 3 / 4)
            code = killer.end()
            assert code == 0 or (hit and code == -signal.SIGKILL), code
        assert same_files(unbroken, results.Run(directory))
    return number


@pytest.mark.slow
def test_killed_five_times_it_ends_the_same(killer, unbroken, tmp_path):
    """With this seed each kill aims at another phase, on 1, 2 and 4 replicas: the inference, a stage's files, training, the start, a checkpoint."""
    killer.hits.clear()
    kill(killer, unbroken, tmp_path, kills=5, seed=56)
    assert sum(killer.hits.values()) >= 5


@pytest.mark.by_hand
@pytest.mark.timeout(7200)
def test_killed_a_hundred_times_it_ends_the_same(killer, unbroken, tmp_path):
    killer.hits.clear()
    finished = kill(killer, unbroken, tmp_path, kills=100, seed=1)
    print(f"{finished} runs came to their end; hits: {dict(killer.hits)}")
    assert len(killer.hits) >= 5


BY_HAND = [pytest.param(phase, marks=pytest.mark.by_hand) for phase in ("facts", "train", "stage")]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["inference", "checkpoint", *BY_HAND])
def test_sigterm_in_any_phase_saves_and_the_same_command_continues(killer, unbroken, tmp_path, target):
    killer.start(tmp_path / "r", replicas=2, per_call=1)
    assert killer.aim(target, signal.SIGTERM)
    os.kill(killer.child, signal.SIGTERM)
    assert killer.end() == 42
    killer.start(tmp_path / "r", replicas=1, per_call=4)
    assert killer.end() == 0
    assert same_files(unbroken, results.Run(tmp_path / "r"))
