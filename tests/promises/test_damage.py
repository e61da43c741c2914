"""Damaged files: whatever happens to a prepared directory or to a checkpoint, it is named, and never used in silence."""

import json
import shutil

import keras
import numpy as np
import pytest

from tfpar import errors, files, prepare
from tfpar.prepare import arrays
from tfpar.train import checkpoint


def truncated(path, random, _files):
    content = path.read_bytes()
    path.write_bytes(content[: random.integers(len(content))])


def flipped(path, random, _files):
    content = bytearray(path.read_bytes())
    place = random.integers(len(content))
    content[place] ^= 1 << random.integers(8)
    path.write_bytes(content)


def grown(path, random, _files):
    path.write_bytes(path.read_bytes() + random.bytes(random.integers(1, 9)))


def swapped(path, random, others):
    other = others[random.integers(len(others))]
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def removed(path, _random, _files):
    path.unlink()


def emptied(path, _random, _files):
    path.write_bytes(b"")


def doubled(path, _random, _files):
    shutil.copy(path, path.with_name(f"{path.stem}-2{path.suffix}"))


DAMAGES = [truncated, flipped, grown, swapped, removed, emptied]


def damage(directory, random, kinds):
    """Damage one file of a directory; return what was done, None where that changed nothing."""
    there = sorted(path for path in directory.rglob("*") if path.is_file())
    before = {path: path.read_bytes() for path in there}
    path, kind = there[random.integers(len(there))], kinds[random.integers(len(kinds))]
    if path.stat().st_size == 0:
        return None
    kind(path, random, there)
    after = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    return None if before == after else f"{kind.__name__} {path.relative_to(directory)}"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, (40, 6, 6, 1), np.uint8), np.arange(40) % 4
    return prepare.dataset((pixels, labels), tmp_path_factory.mktemp("prepared") / "data").directory


@pytest.mark.parametrize("count", [10, pytest.param(200, marks=pytest.mark.by_hand)])
def test_no_damage_to_prepared_data_is_used_in_silence(prepared, tmp_path, count):
    random, done = np.random.default_rng(count), 0
    while done < count:
        place = tmp_path / "data"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(prepared, place)
        what = damage(place, random, [*DAMAGES, doubled])
        if what is None:
            continue
        done += 1
        with pytest.raises(errors.DataError) as said:
            prepare.load(place)
        assert str(place) in str(said.value), what


@pytest.mark.parametrize("count", [10, pytest.param(200, marks=pytest.mark.by_hand)])
def test_no_damage_to_a_checkpoint_is_used_in_silence(tmp_path, count, capsys):
    variables = [keras.Variable(np.arange(60, dtype=np.float32).reshape(6, 10)), keras.Variable(np.float32(3))]
    origin = tmp_path / "origin"
    for step in (1, 2):
        variables[1].assign(np.float32(step))
        checkpoint.save(origin, variables, {"step": step})
    random, done = np.random.default_rng(count), 0
    while done < count:
        place = tmp_path / "checkpoints"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(origin, place)
        what = damage(place / "000002", random, DAMAGES)
        if what is None:
            continue
        done += 1
        progress, values = checkpoint.newest(place)
        assert progress == {"step": 1} and np.frombuffer(values[1][1], np.float32)[0] == 1, what
        assert "000002" in capsys.readouterr().out, what


def test_a_newer_format_is_refused_by_name(prepared, tmp_path):
    place = tmp_path / "data"
    shutil.copytree(prepared, place)
    manifest = json.loads((place / "dataset.json").read_text())
    del manifest["sha256"]
    (place / "dataset.json").write_text(arrays.rendered(manifest | {"format": arrays.FORMAT + 1}))
    with pytest.raises(errors.DataError, match="this tfpar reads 1"):
        prepare.load(place)


def test_a_checkpoint_of_a_newer_format_is_not_used(tmp_path, capsys):
    variables = [keras.Variable(np.float32(1))]
    for step in (1, 2):
        place = checkpoint.save(tmp_path, variables, {"step": step})
    manifest = json.loads((place / "manifest.json").read_text()) | {"format": checkpoint.FORMAT + 1}
    del manifest["sha256"]
    (place / "manifest.json").write_text(json.dumps(manifest | {"sha256": files.fingerprint(manifest)}))
    assert checkpoint.newest(tmp_path)[0] == {"step": 1}
    assert "another checksum or format" in capsys.readouterr().out


def test_two_swapped_splits_are_refused(prepared, tmp_path):
    place = tmp_path / "data"
    shutil.copytree(prepared, place)
    for name in ("images.npy", "labels.npy", "examples.csv"):
        swapped(place / "train" / name, np.random.default_rng(0), [place / "validation" / name])
    with pytest.raises(errors.DataError):
        prepare.load(place, verify=False)  # sizes alone tell
