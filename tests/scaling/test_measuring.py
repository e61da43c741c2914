"""`scaling.measure` and `tfpar scaling`: real processes that train for a while, each with a deadline of its own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import planted
import pytest

from tfpar import cli, errors, machine, prepare, scaling
from tfpar.scaling.report import PARTS

FILES = [f"scaling.{end}" for end in ("csv", "json", "png", "txt")]
SLEPT = 1000 * planted.SECONDS
two_cores = pytest.mark.skipif(
    len(machine.cores()) < 2 or "PYTEST_XDIST_WORKER" in os.environ,
    reason="needs two cores for itself, one for each of two workers: pytest -m extra, without -n",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """So large pictures that few batches wait ready, and each turn is short."""
    pixels = np.random.default_rng(0).integers(0, 256, (512, 96, 96, 3), np.uint8)
    return prepare.dataset((pixels, np.arange(512) % 2), tmp_path_factory.mktemp("data") / "pixels")


def measured(model, data, place, **options):
    return scaling.measure(model, data, place, global_batch_size=128, **{"seconds": 1, "devices": [1, 2], **options})


def parts_add_up(report):
    for row in report.rows:
        parts = [row[f"{name}_ms"] for name in PARTS]
        assert min(parts) >= 0 and sum(parts) == pytest.approx(row["step_ms"], rel=0.03)
    return True


@two_cores
@pytest.mark.extra
@pytest.mark.timeout(600)
def test_the_command_measures_writes_four_files_and_prints_the_verdict(data, tmp_path, capsys):
    """A worker that sleeps in each step: the others wait for it, and the measured numbers say so."""
    out = tmp_path / "out"
    words = ["--devices", "2,1", "--global-batch-size", "128", "--seconds", "1", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:  # the command takes names; the function stands for one
        measure = scaling.measure
        patch.setattr(
            scaling, "measure", lambda _model, *given, **more: measure(planted.slow_second_worker, *given, **more)
        )
        assert cli.main(["scaling", str(data.directory), *words]) == 0
    report = scaling.load(out)
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert str(report) in capsys.readouterr().out and (out / "scaling.txt").read_text() == f"{report}\n"
    assert parts_add_up(report)
    one, two = report.rows
    assert (one["devices"], two["devices"]) == (1, 2) and report.content["batch"] == 64
    assert two["steps"] >= 50 and len(report._samples) >= 50
    assert "waiting for worker 1, last in " in report.verdict and two["last"] > 0.9
    assert two["waiting_ms"] > 0.7 * SLEPT and two["efficiency"] < 0.8
    assert report.content["gradient_bytes"] == 4 * (6 * 6 * 3 * 2 + 2)
    kinds = {
        (turn["devices"], turn["kind"], len(turn["seconds"]), len(turn["waits"])) for turn in report.content["turns"]
    }
    assert {(1, "real", 1, 1), (2, "real", 2, 2), (2, "constant", 2, 2), (2, "alone", 2, 2), (2, "apart", 2, 2)} < kinds
    predicted = scaling.predict(report, "cpu-1GbE", [2, 4])
    assert predicted["basis"][0].as_py() == "measured" and predicted["step_ms"][0].as_py() == pytest.approx(
        two["step_ms"]
    )


@two_cores
@pytest.mark.by_hand
def test_a_slow_input_and_a_slow_exchange_are_named(data, tmp_path):
    report = measured(planted.slow_input, data, tmp_path)
    assert "input-bound" in report.verdict and parts_add_up(report)
    assert report.rows[1]["input_ms"] > 1000 * planted.OF_INPUT / 4 / 2
    assert report.measured().input_images_per_second < 1.2 * 128 * 4 / planted.OF_INPUT
    report = measured(planted.slow_exchange, data, tmp_path)
    assert "communication-bound" in report.verdict and parts_add_up(report)
    assert report.rows[1]["exchange_ms"] > 0.9 * SLEPT
    assert report.rows[1]["without_exchange_ms"] < report.rows[1]["constant_ms"] - 0.5 * SLEPT


@pytest.mark.by_hand
def test_the_devices_of_one_process(data, tmp_path, monkeypatch):
    """A machine with two GPUs, played by two simulated devices of a process that sees two names."""
    monkeypatch.setattr(machine, "gpus", lambda: ["0", "1"])
    report = measured(planted.plain, data, tmp_path, devices=None)
    assert parts_add_up(report) and report.verdict.startswith("2 GPUs, ")
    turns = [turn for turn in report.content["turns"] if (turn["devices"], turn["kind"]) == (2, "real")]
    assert {(len(turn["seconds"]), len(turn["waits"])) for turn in turns} == {(1, 2)}


@pytest.mark.slow
def test_a_mistake_in_the_function_is_one_line(data, tmp_path):
    with pytest.raises(
        errors.Unavailable, match=r"^a measuring process ended \(ZeroDivisionError: a mistake of the user\); "
    ):
        measured(planted.broken, data, tmp_path, devices=[1])
    assert not list(tmp_path.iterdir())


@pytest.mark.by_hand
def test_a_refusal_of_a_measuring_process_is_raised_here(data, tmp_path):
    with pytest.raises(errors.SettingsError, match=r"model='resnet20': give a compiled keras\.Model"):
        measured(planted.no_model, data, tmp_path, devices=[1])
    with pytest.raises(errors.SettingsError, match="did you mean resnet20"):
        measured("resnet200", data, tmp_path, devices=[1])


@pytest.mark.parametrize(
    "options, words",
    [
        (
            {"devices": [1, 4096]},
            r"devices=\[1, 4096\]: give whole numbers up to \d+, the cores of this machine, with 1",
        ),
        ({"devices": [2]}, "with 1, which the others are compared with"),
        ({"devices": 2}, "devices=2: give whole numbers"),
        ({"devices": []}, r"devices=\[\]: give whole numbers"),
        ({"devices": "1"}, "devices='1': give whole numbers"),
        ({"global_batch_size": 0}, "global_batch_size=0: give a whole number from 1"),
        ({"all_reduce": "slow"}, "all_reduce='slow': give ordered or fast"),
        ({"seconds": 0}, "seconds=0: give a number from 1"),
        ({"model": lambda: None}, "a function of a module that can be imported"),
        ({"model": 3}, "model=3: give the name of a model"),
        ({"model": "small_cnn", "data": "digits"}, "data='digits': give what prepare.load returns"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_starts(options, words, data, tmp_path):
    given = {"model": "small_cnn", "data": data, "directory": tmp_path / "out"} | options
    with pytest.raises(errors.SettingsError, match=words):
        scaling.measure(**given)
    assert not (tmp_path / "out").exists()


def test_a_function_of_a_notebook_is_refused(data, tmp_path, monkeypatch):
    def build():
        pass

    build.__module__, build.__qualname__ = "__main__", "build"
    monkeypatch.setattr(sys.modules["__main__"], "build", build, raising=False)
    with pytest.raises(errors.SettingsError, match=r"in a notebook: %%writefile mine\.py"):
        scaling.measure(build, data, tmp_path)


def test_one_of_several_workers_measures_nothing(data, tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}')
    with pytest.raises(errors.SettingsError, match="run it without TF_CONFIG"):
        scaling.measure("small_cnn", data, tmp_path)


def test_more_devices_than_there_are_end_the_command_with_one_line(data, capsys):
    assert cli.main(["scaling", str(data.directory), "--devices", "1,4096"]) == 78
    assert len(capsys.readouterr().err.splitlines()) == 1


@two_cores
@pytest.mark.extra
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_a_killed_measurement_leaves_neither_files_nor_processes(data, tmp_path):
    out = tmp_path / "out"
    program = f"from tfpar import prepare, scaling\nscaling.measure('small_cnn', prepare.load({str(data.directory)!r}), {str(out)!r}, devices=[1])"
    parent = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    deadline, children = time.monotonic() + 120, []
    try:
        while not children and time.monotonic() < deadline and parent.poll() is None:
            children = children_of(parent.pid)
            time.sleep(0.1)
        time.sleep(1)
    finally:
        parent.kill()
        parent.wait()
    assert children and out.is_dir() and not list(out.iterdir())
    while any(alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.2)
    left = [child for child in children if alive(child)]
    for child in left:
        os.kill(child, signal.SIGKILL)
    assert not left


def children_of(parent):
    """Return the processes that a process has started, by id."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            after_name = path.read_text().rpartition(")")[2].split()
            found += [int(path.parent.name)] * (int(after_name[1]) == parent and after_name[0] != "Z")
    return found


def alive(child):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
