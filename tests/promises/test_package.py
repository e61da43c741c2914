"""The installed package is complete: a wheel works without the checkout, and type checkers accept a user's program."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def done(command, place, **options):
    finished = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=240, **options)
    assert finished.returncode == 0, (finished.stdout[-3000:], finished.stderr[-3000:])
    return finished.stdout


@pytest.mark.slow
def test_the_wheel_works_without_the_checkout(tmp_path):
    copied = tmp_path / "source"  # a build writes into the folder that it builds from
    names = done(["git", "ls-files", "tfpar", "pyproject.toml", "README.md", "LICENSE"], ROOT).split()
    for name in names:
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done([*pip, "-w", "wheels", "./source"], tmp_path)
    (wheel,) = (tmp_path / "wheels").iterdir()
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "installed")
    inside = {
        path.relative_to(tmp_path / "installed").as_posix() for path in (tmp_path / "installed/tfpar").rglob("*.*")
    }
    assert {name for name in names if name.startswith("tfpar/")} <= inside
    program = "import sys, tfpar; from tfpar.cli import main; print(tfpar.__file__); sys.exit(main(sys.argv[1:]))"
    environment = {"PYTHONPATH": str(tmp_path / "installed"), "PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": "-1"}
    said = done([sys.executable, "-c", program, "train", "digits", "--stage", "1@0.1"], tmp_path, env=environment)
    assert str(tmp_path / "installed") in said and "finished: accuracy" in said


@pytest.mark.slow
def test_a_users_program_is_clean_of_type_errors():
    program = Path(__file__).with_name("user_program.py")
    options = ["--ignore-missing-imports", "--follow-imports=silent", "--strict-equality", "--no-incremental"]
    done([sys.executable, "-m", "mypy", *options, str(program)], ROOT)


@pytest.mark.slow
def test_the_users_program_runs(tmp_path):
    from user_program import main

    assert main(str(tmp_path)) > 0.1
