"""Every source becomes the same verified directory, or one clear error and nothing."""

import csv
import errno
import hashlib
import json
import multiprocessing
import os
import re
import sys
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from tfpar import errors, files, prepare
from tfpar.prepare import arrays, build, folders, sources


def contents(directory):
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def write_pictures(folder, count, size=(12, 10), start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        Image.new("RGB", size, (i * 7 % 256, 50, 90)).save(folder / f"{i:03d}.png")


@pytest.fixture
def photos(tmp_path):
    write_pictures(tmp_path / "photos" / "cat", 20)
    write_pictures(tmp_path / "photos" / "dog", 5, size=(10, 12))
    return tmp_path / "photos"


def test_digits(digits):
    manifest = json.loads((digits.directory / "dataset.json").read_text())
    assert digits.image_shape == (8, 8, 1) and digits.num_classes == 10 and digits.test is None
    assert len(digits.train.labels) + len(digits.validation.labels) == 1797
    for name in digits.class_names:
        here, there = (manifest["splits"][split]["per_class"][name] for split in ("validation", "train"))
        assert here == round(0.1 * (here + there))
    assert manifest["skipped"] == 0 and manifest["format"] == 1
    stated = manifest.pop("sha256")
    assert stated == hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def test_files_are_as_designed(digits):
    for split in ("train", "validation"):
        images = np.load(digits.directory / split / "images.npy", mmap_mode="r")
        labels = np.load(digits.directory / split / "labels.npy")
        rows = list(csv.DictReader((digits.directory / split / "examples.csv").read_text().splitlines()))
        assert images.dtype == np.uint8 and labels.dtype == np.int32 and len(images) == len(labels) == len(rows)
        assert [int(row["index"]) for row in rows] == list(range(len(rows)))
        assert [int(row["label"]) for row in rows] == labels.tolist()
        assert np.array_equal(images, digits.splits[split].images)
    assert (digits.directory / "skipped.csv").read_text() == "source,reason\n"


def test_the_pixels_and_labels_are_those_of_the_source(digits):
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    for split in (digits.train, digits.validation):
        chosen = [int(source) for source in split.sources]
        assert np.array_equal(split.labels, labels[chosen])
        assert np.array_equal(split.images, np.round(images[chosen] * 255 / 16).reshape(-1, 8, 8, 1).astype(np.uint8))


def test_same_input_same_bytes_and_another_seed_another_split(digits, tmp_path):
    again = prepare.dataset("digits", tmp_path / "again")
    assert contents(again.directory) == contents(digits.directory)
    other = prepare.dataset("digits", tmp_path / "other", seed=1)
    assert other.validation.sources != digits.validation.sources and other.fingerprint != digits.fingerprint


def test_folder_of_mixed_sizes_is_224_and_split_by_class(photos, tmp_path):
    data = prepare.dataset(photos, tmp_path / "d", validation_fraction=0.25)
    assert data.image_shape == (224, 224, 3) and data.class_names == ["cat", "dog"]
    assert np.bincount(data.validation.labels).tolist() == [5, 1]
    assert sorted(data.train.sources + data.validation.sources)[0] == "cat/000.png"


def test_one_size_is_kept_and_a_size_can_be_asked_for(tmp_path):
    for name in "ab":
        write_pictures(tmp_path / "p" / name, 3)
    assert prepare.dataset(tmp_path / "p", tmp_path / "native").image_shape == (10, 12, 3)
    assert prepare.dataset(tmp_path / "p", tmp_path / "asked", image_size=(6, 8)).image_shape == (6, 8, 3)


def test_folder_with_split_folders(tmp_path):
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        for name in "ab":
            write_pictures(tmp_path / "p" / split / name, count)
    data = prepare.dataset(tmp_path / "p", tmp_path / "d")
    assert [len(data.splits[split].labels) for split in ("train", "validation", "test")] == [8, 4, 6]
    assert data.validation.sources[0] == "val/a/000.png"


def test_arrays(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (30, 6, 6), np.uint8)
    labels = np.arange(30) % 3 + 5
    one = prepare.dataset((images, labels), tmp_path / "one")
    assert one.class_names == ["5", "6", "7"] and one.image_shape == (6, 6, 1) and len(one.validation.labels) == 3
    two = prepare.dataset(((images, labels[:, np.newaxis]), (images[:9], labels[:9])), tmp_path / "two")
    assert (
        np.array_equal(two.validation.images[..., 0], images[:9]) and two.train.labels.tolist() == (labels - 5).tolist()
    )


def test_other_arrays_are_not_taken_for_those_that_were_prepared(tmp_path):
    images, labels = np.zeros((30, 6, 6), np.uint8), np.arange(30) % 3
    prepare.dataset((images, labels), tmp_path / "d")
    prepare.dataset((images.copy(), labels), tmp_path / "d")
    with pytest.raises(errors.SettingsError, match="source is arrays:"):
        prepare.dataset((images + 1, labels), tmp_path / "d")


def test_an_unreadable_folder_is_named(photos, tmp_path, monkeypatch):
    def refused(folder, **_options):
        _options["onerror"](PermissionError(13, "Permission denied", str(folder / "cat")))
        return iter(())

    monkeypatch.setattr(folders.os, "walk", refused)
    with pytest.raises(errors.InputNotFound, match="cat: cannot be read"):
        prepare.dataset(photos, tmp_path / "d")


@pytest.mark.parametrize(
    "source",
    [
        (np.zeros((4, 6, 6)), np.zeros(4, int)),
        (np.zeros((4, 6, 6), np.uint8), np.zeros(3, int)),
        (np.zeros((4, 6, 6), np.uint8), np.zeros(4)),
        (np.zeros((4, 6, 6, 2), np.uint8), np.zeros(4, int)),
    ],
)
def test_arrays_that_are_none(source, tmp_path):
    with pytest.raises(errors.DataError, match="give"):
        prepare.dataset(source, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_what_cannot_be_used_gets_a_line(photos, tmp_path, capsys):
    (photos / "cat" / "text.jpg").write_text("hello")
    (photos / "cat" / "000.png").rename(photos / "cat" / "a b'\"#\n\u00e9.jpg")
    (photos / "dog" / "loop").symlink_to(photos)
    (photos / "picture.jpg").write_text("not in a class")
    (photos / "readme.txt").write_text("beside the pictures, which is fine")
    (photos / "empty").mkdir()
    strange = photos / os.fsdecode(b"\xffox")
    write_pictures(strange, 2)
    data = prepare.dataset(photos, tmp_path / "d", image_size=8)
    skipped = csv.DictReader((data.directory / "skipped.csv").read_text().splitlines())
    assert {row["source"]: row["reason"] for row in skipped} == {
        "cat/text.jpg": "text, not a picture", "picture.jpg": "not inside a class folder", "readme.txt": "hidden, or of a file type that is not a picture",
    }  # fmt: skip
    assert data.class_names == ["%FFox", "cat", "dog"] and "empty folder" in capsys.readouterr().out
    names = data.train.sources + data.validation.sources
    assert len(names) == 27 and "cat/a b'\"#\n\u00e9.jpg" in names and "%FFox/000.png" in names


def test_on_bad_image_fail_stops_and_leaves_nothing(photos, tmp_path):
    (photos / "cat" / "text.jpg").write_text("hello")
    with pytest.raises(errors.DataError, match=r"cat/text\.jpg") as caught:
        prepare.dataset(photos, tmp_path / "d", on_bad_image="fail")
    assert not (tmp_path / "d").exists()
    if os.path.isdir("/proc/self/fd"):  # on a network disk an open file keeps its directory
        opened = [
            os.readlink(f"/proc/self/fd/{name}")
            for name in os.listdir("/proc/self/fd")
            if os.path.lexists(f"/proc/self/fd/{name}")
        ]
        assert caught.tb and not [path for path in opened if str(tmp_path) in path]


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda p: None, errors.InputNotFound, "no such folder"),
        (lambda p: p.mkdir(), errors.DataError, "no pictures"),
        (lambda p: p.write_text("x"), errors.InputNotFound, r"not a folder; .* or a \.csv or \.parquet"),
        (lambda p: write_pictures(p / "cat", 3), errors.DataError, "at least two"),
        (lambda p: [write_pictures(p / name, 1) for name in "ab"], errors.DataError, "no image is left for validation"),
        (lambda p: [write_pictures(p / "train" / n, 2) for n in "ab"] + [write_pictures(p / "val" / "c", 2)], errors.DataError, "class c is in validation"),
        (lambda p: [write_pictures(p / "train" / n, 2) for n in "ab"] + [(p / "val").mkdir()], errors.DataError, "validation; add .* or remove it"),
        (lambda p: [write_pictures(p / name, 1) for name in "ab"] + [(p / "a" / f"{i}.x").write_text("x") for i in range(3)], errors.DataError, "3 of 5"),
    ],
)  # fmt: skip
def test_unusable_sources(make, kind, text, tmp_path):
    make(tmp_path / "no-such")
    with pytest.raises(kind, match=text):
        prepare.dataset(str(tmp_path / "no-such"), tmp_path / "out" / "d")
    assert not (tmp_path / "out" / "d").exists()


def test_a_class_with_one_image_goes_to_train(photos, tmp_path, capsys):
    write_pictures(photos / "emu", 1)
    data = prepare.dataset(photos, tmp_path / "d", image_size=8)
    assert np.bincount(data.validation.labels, minlength=3)[2] == 0 and "class emu" in capsys.readouterr().out


def test_prepared_again_is_found_and_other_settings_are_refused(digits):
    before = (digits.directory / "dataset.json").stat().st_mtime_ns
    assert prepare.dataset("digits", digits.directory).fingerprint == digits.fingerprint
    assert (digits.directory / "dataset.json").stat().st_mtime_ns == before
    with pytest.raises(errors.SettingsError, match="tfds_manual_dir was given"):
        prepare.dataset("digits", digits.directory, tfds_manual_dir=".")
    with pytest.raises(errors.SettingsError, match="seed is 0, asked for 5"):
        prepare.dataset("digits", digits.directory, seed=5)
    with pytest.raises(errors.SettingsError, match=r"image_size is \[8, 8\], asked for \[16, 16\]"):
        prepare.dataset("digits", digits.directory, image_size=16)


def test_something_else_there_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(errors.OutputError, match="not a prepared directory"):
        prepare.dataset("digits", tmp_path)
    assert contents(tmp_path) == {"mine": b"x"}


def test_two_at_once(tmp_path):
    work = files.make_directory(tmp_path / "d" / build._AT_WORK)
    with files.locked(work / "lock", "the test"), pytest.raises(errors.OutputError, match="is using this directory"):
        prepare.dataset("digits", tmp_path / "d")


def _prepare_and_die(directory, after):
    """Prepare digits, and die without a word at the `after`-th rename or sync."""
    count = 0

    def dying(function):
        def wrapped(*arguments):
            nonlocal count
            count += 1
            if count > after:
                os._exit(9)
            return function(*arguments)

        return wrapped

    build.files.sync = dying(files.sync)
    arrays.np.save = dying(np.save)
    prepare.dataset("digits", directory)


@pytest.mark.parametrize("after", range(0, 14, 2))
def test_killed_at_any_point_no_half_data_set_is_visible(after, tmp_path, digits):
    context = multiprocessing.get_context(
        "forkserver"
    )  # a fork of this process might hang in a lock of one of its threads
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_prepare_and_die, args=(tmp_path / "d", after))
    process.start()
    process.join(60)
    assert process.exitcode == 9 or (process.exitcode == 0 and after)
    if process.exitcode == 9 and not (tmp_path / "d" / "dataset.json").exists():
        with pytest.raises((errors.DataError, errors.InputNotFound)):
            prepare.load(tmp_path / "d")
    assert prepare.dataset("digits", tmp_path / "d").fingerprint == digits.fingerprint
    assert contents(tmp_path / "d") == contents(digits.directory)


@pytest.fixture
def copy(digits, tmp_path):
    import shutil

    shutil.copytree(digits.directory, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize(
    "name", ["train/images.npy", "train/labels.npy", "validation/examples.csv", "skipped.csv", "dataset.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_refused_by_name(copy, name, damage):
    path = copy / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    with pytest.raises(errors.DataError, match=re.escape(name)):
        prepare.load(copy)


def test_swapped_and_surplus_files_are_refused(copy):
    (copy / "train" / "more.npy").write_bytes(b"x")
    with pytest.raises(errors.DataError, match=r"more\.npy"):
        prepare.load(copy)
    (copy / "train" / "more.npy").unlink()
    (copy / "train").rename(copy / "t")
    (copy / "validation").rename(copy / "train")
    (copy / "t").rename(copy / "validation")
    with pytest.raises(errors.DataError, match=r"train/"):
        prepare.load(copy)


def test_verify_false_looks_at_sizes_and_known_files_are_not_read_again(copy, monkeypatch):
    known = prepare.load(copy).verified
    read = []
    monkeypatch.setattr(arrays.files, "sha256", lambda path, *_: read.append(path))
    prepare.load(copy, known=known)
    prepare.load(copy, verify=False)
    assert read == []
    os.utime(copy / "train" / "labels.npy", ns=(1, 1))
    with pytest.raises(errors.DataError, match=r"labels\.npy"):
        prepare.load(copy, known=known)
    assert [path.name for path in read] == ["labels.npy"]


def test_writing_to_the_mapped_pixels_does_not_reach_the_file(copy):
    data = prepare.load(copy)
    data.train.images[0] = 7
    assert prepare.load(copy).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    "arguments",
    [{"image_size": 0}, {"image_size": (1, 2, 3)}, {"validation_fraction": 1}, {"seed": -1}, {"on_bad_image": "x"}],
)
def test_wrong_arguments(arguments, tmp_path):
    with pytest.raises(errors.SettingsError, match="give"):
        prepare.dataset("digits", tmp_path / "d", **arguments)


def test_name_of():
    assert files.name_of("../a/photos/") == "photos"
    assert files.name_of("tfds:fashion_mnist") == "fashion_mnist"
    assert files.name_of("../..") == "data"


@pytest.mark.parametrize(("on_a_terminal", "in_a_notebook"), [(True, False), (False, True), (False, False)])
def test_no_bars_of_tensorflow_datasets_in_a_log(monkeypatch, on_a_terminal, in_a_notebook):
    import tensorflow_datasets as tfds

    asked = []
    monkeypatch.setattr(tfds, "disable_progress_bar", lambda: asked.append(1))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: on_a_terminal)
    monkeypatch.setitem(sys.modules, "ipykernel", mock.Mock())
    if not in_a_notebook:
        monkeypatch.delitem(sys.modules, "ipykernel")
    sources._download(mock.Mock(), "name", None)
    assert len(asked) == (not on_a_terminal and not in_a_notebook)


@pytest.mark.by_hand
def test_fashion_mnist_from_its_files(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    data = prepare.dataset("fashion_mnist", tmp_path / "d", tfds_manual_dir=str(shared / "fashion_mnist"))
    assert data.image_shape == (28, 28, 1) and data.class_names[9] == "Ankle boot"
    assert np.bincount(data.train.labels).tolist() == [6000] * 10
    assert np.bincount(data.validation.labels).tolist() == [1000] * 10


def test_the_grocery_photographs(shared, tmp_path):
    data = prepare.dataset(shared / "grocery_photos" / "images", tmp_path / "d", image_size=96)
    assert len(data.train.labels) + len(data.validation.labels) == 1114 and data.num_classes == 24
    assert data.image_shape == (96, 96, 3)


def test_a_source_that_reads_short_is_refused(tmp_path, monkeypatch):
    """As record files do that were cut between two records."""
    found = sources.find("digits")
    short = found._replace(counts={"train": 1798})
    monkeypatch.setattr(build.sources, "find", lambda *_given, **_options: short)
    with pytest.raises(errors.DataError, match="train gave 1797 of 1798 inputs"):
        prepare.dataset("digits", tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_a_disk_that_fails_while_the_files_take_their_places_leaves_nothing(tmp_path, monkeypatch):
    place, sync = tmp_path / "d", files.sync
    place.mkdir()

    def failing(path):
        if path == place / "validation":
            raise OSError(errno.EIO, "Input/output error")
        sync(path)

    monkeypatch.setattr(files, "sync", failing)
    with pytest.raises(errors.InputOutputFailed, match="Input/output error"):
        prepare.dataset("digits", place)
    assert list(place.iterdir()) == []
    monkeypatch.undo()
    assert prepare.dataset("digits", place).num_classes == 10
