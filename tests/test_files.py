"""What the system refuses: unreadable files, too few descriptors, full disks, vanished folders, record files that were cut."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tfpar import errors, files, prepare
from tfpar.prepare import arrays

FASHION = Path("~/tensorflow_datasets/fashion_mnist").expanduser()


@pytest.fixture
def data(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 1), np.uint8)
    return prepare.dataset((images, np.arange(40) % 4), tmp_path / "data")


@pytest.mark.parametrize("name", ["dataset.json", "train/images.npy", "train/labels.npy", "validation/examples.csv"])
@pytest.mark.parametrize("verify", [True, False])
def test_a_file_that_cannot_be_read_is_named(data, name, verify, monkeypatch):
    """The tests may run as root, who can read everything."""
    real = open

    def refusing(path, *arguments, **options):
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr("builtins.open", refusing)
    monkeypatch.setattr("pathlib.Path.open", refusing)
    with pytest.raises(errors.InputNotFound, match=rf"{name}: cannot be read \(Permission denied\)"):
        arrays.load(data.directory, verify=verify)


def test_a_directory_that_vanishes_while_it_is_read_is_named(data, monkeypatch):
    real = arrays.files.sha256

    def vanishing(path, *rest):
        shutil.rmtree(data.directory, ignore_errors=True)
        return real(path, *rest)

    monkeypatch.setattr(arrays.files, "sha256", vanishing)
    with pytest.raises(errors.InputNotFound, match="cannot be read"):
        arrays.load(data.directory)


def command(*words, cwd, **limits):
    """Run one command under limits of the system; return its exit code and its lines."""

    def limited():
        for name, value in limits.items():
            resource.setrlimit(getattr(resource, name), (value, value))

    done = subprocess.run(
        [sys.executable, "-m", "tfpar", *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=300, preexec_fn=limited
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.fixture
def photos(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            Image.effect_noise((64, 64), 80).convert("RGB").save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_a_full_disk_leaves_nothing(photos, tmp_path):
    """A limit on the size of a file gives the error in the same place as a disk without room."""
    code, said = command("prepare", "photos", "d", cwd=tmp_path, RLIMIT_FSIZE=100_000)
    assert code == 74 and len(said.splitlines()) == 1 and "nothing was left there. Free some space" in said
    assert not (tmp_path / "d").exists()


@pytest.mark.slow
def test_too_few_descriptors_is_one_line_and_leaves_nothing(photos, tmp_path):
    said = {n: command("prepare", "photos", f"d{n}", cwd=tmp_path, RLIMIT_NOFILE=n) for n in (5, 6, 7, 8, 10, 12, 30)}
    for n, (code, line) in said.items():
        assert code in (0, 65, 66, 73, 74) and len(line.splitlines()) <= 1, (n, code, line)
        assert (tmp_path / f"d{n}").exists() == (code == 0), (n, code, line)
    assert any(code == 74 and "ulimit -n" in line for code, line in said.values())
    assert said[30][0] == 0


def end_of_records(path, count):
    """Return where so many records end: each has eight bytes of length, twice four of checksum, and its content."""
    end = 0
    with open(path, "rb") as file:
        for _ in range(count):
            file.seek(end)
            end += 16 + int.from_bytes(file.read(8), "little")
    return end


@pytest.mark.slow
@pytest.mark.parametrize("surplus", [0, 9])
def test_real_record_files_that_were_cut_are_refused(surplus, tmp_path, monkeypatch):
    """Cut between two records, and inside one; TensorFlow Datasets looks at its variable only when it is imported."""
    if not FASHION.is_dir():
        pytest.skip("needs Fashion-MNIST as TensorFlow Datasets prepared it, which is not there")
    shutil.copytree(FASHION, tmp_path / "tfds" / "fashion_mnist")
    record = next((tmp_path / "tfds").rglob("*train.tfrecord*"))
    os.truncate(record, end_of_records(record, 2000) + surplus)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    code, said = command("prepare", "fashion_mnist", "d", cwd=tmp_path)
    assert code == 65 and "fashion_mnist" in said and ("cut short" in said or "damaged" in said), (code, said)
    assert not (tmp_path / "d").exists()


def test_a_skipped_table_that_was_changed_is_refused_by_name(data):
    path = data.directory / "skipped.csv"
    path.write_text(path.read_text().replace("reason", "raeson"))
    with pytest.raises(errors.DataError, match=r"skipped\.csv: damaged"):
        prepare.load(data.directory)


NAMES = [
    "a b",
    "it's",
    'say "x"',
    "line\nbreak",
    "图",
    os.fsdecode(b"\xff\xfe"),
    "-r",
    "..",
    "$(touch x)",
    "a;b",
    "%2e%2e",
]


def test_strange_names_write_nothing_elsewhere(tmp_path, monkeypatch):
    """Class folders and files of strange names; the names of the places to write to are as strange."""
    photos = tmp_path / "in" / "side" / "photos"
    for name in NAMES:
        if name != "..":
            (photos / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (8, 8)).save(photos / name / f"{i} {name}.png".replace("/", "_"))
    monkeypatch.chdir(tmp_path / "in" / "side")
    before = {path for path in tmp_path.rglob("*")}
    for name in NAMES:
        target = Path("out") / name / "data"
        made = prepare.dataset("photos", target)
        assert (
            json.loads((target / "dataset.json").read_bytes())["skipped"] == 0
            and len(made.class_names) == len(NAMES) - 1
        )
    new = {path.relative_to(tmp_path / "in" / "side").parts[0] for path in set(tmp_path.rglob("*")) - before}
    assert new == {"out", "data"}  # out/../data is data


def test_no_room_for_a_directory_is_a_fault_that_may_pass(tmp_path, monkeypatch):
    def full(self, **_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(errors.InputOutputFailed, match=r"No space left on device.*Free some space"):
        files.make_directory(tmp_path / "new")


def test_a_path_that_is_no_text_is_the_same_when_it_is_read_again(tmp_path):
    files.write(tmp_path / "run.json", json.dumps({"directory": "/x\udcff"}, ensure_ascii=False))
    assert json.loads((tmp_path / "run.json").read_text()) == {"directory": "/x\udcff"}
