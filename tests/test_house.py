"""The house rules that a machine can watch: formatting, the README's promises, the lesson in the comments."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_ruff():
    for arguments in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, "tfpar", "tests", "notebooks"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout


def test_modules_stay_rooms():
    lines = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "tfpar").glob("*.py")}
    assert max(lines.values()) <= 400, lines


def test_the_lesson_can_be_printed():
    """`grep -rn "data-parallel:" tfpar` names every line that exists only because of data parallelism."""
    lesson = [
        line
        for path in (ROOT / "tfpar").glob("*.py")
        for line in path.read_text().splitlines()
        if "# data-parallel: " in line
    ]
    assert len(lesson) >= 8


def test_what_belongs_at_the_top_level():
    listed = subprocess.run(
        ["git", "ls-tree", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=60
    ).stdout.split()
    wanted = {"pyproject.toml", "tutorial", "notebooks", "tfpar", "tests", "README.md", "LICENSE", "CHANGELOG.md"}
    assert {name for name in listed if not name.startswith(".")} <= wanted


def readme():
    return (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_readmes_diff_is_short_and_both_sides_run(digits, tmp_path):
    diff = re.search(r"```diff\n(.*?)```", readme(), re.S)[1].splitlines()
    assert len([line for line in diff if line[:1] in "+-"]) <= 12
    before = "\n".join(line[1:] for line in diff if not line.startswith("+"))
    after = "\n".join(line[1:] for line in diff if not line.startswith("-"))
    for name, program in (("before", before), ("after", after)):
        program = program.replace("data/digits", str(digits.directory)).replace("epochs=10", "epochs=1")
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0, (name, done.stderr[-2000:])


def test_the_readmes_map_names_what_is_there():
    named = set(re.findall(r"^  (\w+\.py) ", readme(), re.M))
    assert named == {path.name for path in (ROOT / "tfpar").glob("*.py")} - {"__init__.py"}


def test_ci_runs_both_commands_of_the_readme():
    commands = re.findall(r"^python3 -m venv .*$", readme(), re.M)
    assert [command.split(" && ")[-1].split()[0] for command in commands] == ["tfpar", "pytest"]
    assert "/^python3 -m venv /p' README.md" in (ROOT / ".ci" / "run").read_text()
