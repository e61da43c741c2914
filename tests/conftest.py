"""What the tests share. Eight simulated devices are set up before anything starts TensorFlow."""

import collections
import fcntl
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # the oracle of these tests is the CPU

import signal
import subprocess
import sys
from pathlib import Path

import keras
import processes
import pytest

from tfpar import devices, machine, prepare, results

# tfpar leaves ignored signals ignored, and these are in a job in the background or under nohup.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

devices.strategy(simulate=8)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure(config):
    if hasattr(config.option, "loadscopereorder"):  # pytest-xdist would begin with the files of most tests
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Put the long files first, so that two processes end together: the notebooks, then by the number of slow tests."""
    slow = collections.Counter()
    for item in items:
        if item.get_closest_marker("by_hand"):
            item.add_marker("slow")
        elif item.get_closest_marker("slow"):
            slow[item.path] += 1
    items.sort(key=lambda item: (item.path.name != "test_notebooks.py", -slow[item.path]))


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The prepared digits."""
    return prepare.dataset("digits", tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture(scope="session")
def alone(digits, tmp_path_factory):
    """The undisturbed run of one process that several workers are compared with; all processes of pytest-xdist share it."""
    place = tmp_path_factory.getbasetemp()
    place = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / "alone"
    place.mkdir(exist_ok=True)
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "done").exists():
            command = [sys.executable, "-m", "tfpar", "train", str(digits.directory), "--run", "run", *processes.RUN]
            done = subprocess.run(command, cwd=place, timeout=240, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            (place / "done").touch()
    return results.Run(place / "run")


@pytest.fixture
def shared():
    """The folder of real data beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("needs the data folder beside the checkout, which is not there")
    return SHARED


@pytest.fixture(autouse=True)
def _default_policy(request):
    of_this_test = getattr(request.node, "callspec", None)
    for value in of_this_test.params.values() if of_this_test else ():
        if limit := machine.too_low_for(str(value).removeprefix("mixed_")):
            pytest.skip(f"with {limit} TensorFlow cannot compute in {value} on this processor")
    yield
    keras.config.set_dtype_policy("float32")
