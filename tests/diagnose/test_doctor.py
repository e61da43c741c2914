"""The doctor: a line for each thing training depends on, what to do where it is wrong, and the exit code."""

import json
import socket
import subprocess
import sys

import pytest

from tfpar.diagnose import doctor


def one(findings, name):
    return next(finding for finding in findings if finding.name == name)


@pytest.mark.slow
def test_it_finds_this_machine_fit_and_says_so_in_80_columns():
    done = subprocess.run(
        [sys.executable, "-m", "tfpar", "doctor", "--json"], capture_output=True, text=True, timeout=300
    )
    found = [doctor.Finding(**entry) for entry in json.loads(done.stdout)]
    assert done.returncode == 0 and done.stderr == "" and doctor.works(found)
    assert "two steps on 1 replica" in one(found, "training").found
    lines = doctor.table(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line.startswith(("good  ", "note  ", "fix   ", "      ")) for line in lines)
    assert all(finding.remedy or finding.state == "good" for finding in found)


def test_a_training_that_fails_is_named_and_the_exit_code_is_69(monkeypatch, capsys):
    from tfpar import cli

    monkeypatch.setattr(doctor, "_TRIAL", "import sys; print('{}'); sys.exit('ImportError: no such library')")
    assert cli.main(["doctor"]) == 69
    out = capsys.readouterr().out
    assert "fix   training      ImportError: no such library\n" + " " * 20 + "-> fix what stands above" in out


def test_what_to_do_stands_on_lines_of_its_own():
    lines = doctor.table([doctor.Finding("fix", "thing", "found " * 20, "remedy " * 20)]).splitlines()
    assert lines[0].startswith("fix   thing         found") and max(map(len, lines)) <= 80
    assert lines[2].startswith(" " * 20 + "-> remedy") and lines[3].startswith(" " * 23 + "remedy")


@pytest.mark.parametrize(
    ("version", "state", "text"),
    [
        ("2.21.0", "good", ""),
        ("2.19.1", "fix", "tensorflow 2.20 or later"),
        ("2.30.0", "note", "newer than 2.21"),
        (None, "fix", "pip install"),
    ],
)
def test_versions(monkeypatch, version, state, text):
    known = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: version if name == "tensorflow" else known(name))
    found = one(doctor._versions(), "tensorflow")
    assert found.state == state and text in found.remedy


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ["numpy", "no-such-package"])
    assert one(doctor._versions(), "packages").remedy == "pip install no-such-package"


def test_the_backend_of_keras(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    assert doctor.backend().state == "good"
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    assert doctor.backend().state == "fix" and str(tmp_path) in doctor.backend().remedy


def config(index=0, workers=("localhost:9",), kind="worker"):
    return json.dumps({"cluster": {"worker": list(workers)}, "task": {"type": kind, "index": index}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be understood"),
        ("[]", "cannot be understood"),
        (config(workers=["localhost"]), "its own address, as host:port"),
        (config(index=1), "worker 1 of 1"),
        (config(kind="evaluator"), "name all processes under worker"),
        (config(workers=["no-such-host.invalid:9", "localhost:9"]), "the name no-such-host.invalid does not resolve"),
        (config(1, ["no-such-host.invalid:9", "localhost:0"]), "localhost:0"),
        (config(workers=["localhost:99999"]), "localhost:99999"),
    ],
)
def test_wrong_tf_config(monkeypatch, text, said):
    monkeypatch.setenv("TF_CONFIG", text)
    (found,) = doctor._workers()
    assert found.state == "fix" and said in f"{found.found}; {found.remedy}" and found.remedy


def test_tf_config_with_a_port_in_use_and_a_free_one(monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        monkeypatch.setenv("TF_CONFIG", config(workers=[f"localhost:{port}", "localhost:1"]))
        (found,) = doctor._workers()
        assert found.state == "fix" and f"cannot listen on localhost:{port}" in found.found
    found, firewall = doctor._workers()
    assert firewall.state == "note" and "without a password" in firewall.found
    assert found.state == "good" and found.found == "worker 0 of 2"


def test_little_room_is_a_note(monkeypatch):
    monkeypatch.setattr(doctor, "LEAST_DISK", 1e18)
    found = one(doctor._resources(), "disk")
    assert found.state == "note" and "free some" in found.remedy


@pytest.mark.parametrize(
    ("told", "driver", "said"),
    [
        ({"gpus": ["H200", "H200"], "cuda": "12.5", "built_with_cuda": True}, True, "H200, H200"),
        ({"gpus": [], "cuda": "12.5", "built_with_cuda": True}, True, "Cannot dlopen some GPU libraries"),
        ({"gpus": [], "cuda": "", "built_with_cuda": False}, True, "built without CUDA"),
        ({"gpus": [], "cuda": "", "built_with_cuda": True}, False, "runs on the CPU"),
    ],
)
def test_gpus_seen_and_why_not(monkeypatch, told, driver, said):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(doctor.Path, "exists", lambda path: driver)
    found = next(doctor._gpus(told, "W0000 gpu_device.cc:2342] Cannot dlopen some GPU libraries.\n"))
    assert said in found.found and (found.state == "good") == (bool(told["gpus"]) or not driver)


def test_a_trial_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(doctor, "_TRIAL", "import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "SECONDS", 0.5)
    found = list(doctor._tensorflow(doctor._tried_in_another_process()))
    assert found[-1].state == "fix" and "no step within" in found[-1].found
