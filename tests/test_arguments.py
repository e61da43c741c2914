"""Command lines, valid and not: each ends with an exit code of the table, without a trace, and writes where it was told."""

import contextlib
import os

import numpy as np
import pytest
from PIL import Image

from tfpar import __main__, prepare

CODES = {0, 2, 65, 66, 69, 73, 74, 78}
NUMBERS = ["0", "1", "2", "3", "-1", "1.5", "nan", "inf", "1e9", "99999999999999999999", "", "x", "٣", "0x10", " 4"]
PATHS = [
    "data",
    "missing",
    "empty",
    "file.txt",
    "photos",
    "../outside",
    "a b",
    "it's",
    "line\nbreak",
    "图",
    "\udcff",
    "/",
    "",
    "photos/cat",
]
OPTIONS = {
    "prepare": {
        "--image-size": [*NUMBERS, "8x6", "8x", "x8", "8x8x8", "5000"], "--validation-fraction": [*NUMBERS, "0.2", "0.999"],
        "--seed": NUMBERS, "--on-bad-image": ["skip", "fail", "x"], "--tfds-manual-dir": PATHS,
    },
    "train": {
        "--model": ["small_cnn", "resnet20", "resnet21", "", "Dense", "MobileNetV9", "keras", "../x"], "--weights": ["none", *PATHS],
        "--stage": ["1@0.1", "1@0.1:0", "0@0.1", "1@", "@", "1@-1", "1@nan", "x", "1@1:1:1", "9999999@1"], "--seed": NUMBERS,
        "--global-batch-size": [*NUMBERS, "8", "12"], "--simulate": ["1", "2", "0", "x", "257"], "--shards": [*NUMBERS, "4"],
        "--optimizer": ["sgd", "adamw", "x"], "--weight-decay": NUMBERS, "--augment": ["none", "flip", "crop-flip", "x"],
        "--precision": ["float32", "mixed_bfloat16", "x"], "--all-reduce": ["ordered", "fast", "x"], "--steps-per-call": [*NUMBERS, "auto"],
        "--checkpoint-seconds": NUMBERS, "--run": ["run", "new", *PATHS[1:]], "--fresh": [None], "--nonsense": [None],
    },
    "predict": {"--json": [None], "--nonsense": [None]},
    "evaluate": {"--data": PATHS, "--split": ["validation", "test", "x"]},
}  # fmt: skip


def command_line(random) -> list[str]:
    """Return a command with a few options, half of them wrong on average."""

    def one(values):
        return values[random.integers(len(values))]

    command = one([*OPTIONS, *OPTIONS, "nonsense"])
    known = OPTIONS.get(command, {})
    right = {
        "prepare": ["photos", f"new{random.integers(99)}"], "train": ["data"], "predict": ["run", "photos/cat/0.png"], "evaluate": ["run"],
    }.get(command, ["data"])  # fmt: skip
    words = [command, *(one(PATHS) if random.random() < 0.3 else target for target in right)]
    if command == "train":
        words += ["--stage", "1@0.1", "--global-batch-size", "8"]  # so that a valid one is short
    for option in (
        random.choice(list(known), size=min(len(known), random.integers(0, 4)), replace=False) if known else []
    ):
        value = one(known[option])
        words += [str(option)] if value is None else [str(option), value]
    return words


@pytest.fixture
def place(tmp_path, monkeypatch):
    inside = tmp_path / "inside"
    for name in ("cat", "dog"):
        (inside / "photos" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (8, 8), (20 * i, 50, 90)).save(inside / "photos" / name / f"{i}.png")
    monkeypatch.chdir(inside)
    (inside / "empty").mkdir()
    (inside / "file.txt").write_text("text\n")
    random = np.random.default_rng(0)
    prepare.dataset((random.integers(0, 256, (40, 8, 8, 1), np.uint8), np.arange(40) % 3), "data")
    assert __main__.main(["train", "data", "--run", "run", "--stage", "1@0.1", "--global-batch-size", "8"]) == 0
    return inside


@pytest.mark.parametrize("count", [25, pytest.param(500, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_every_command_line_ends_with_a_code_of_the_table(place, count, capsys):
    random = np.random.default_rng(count)
    codes = []
    for _ in range(count):
        words = command_line(random)
        try:
            code = __main__.main(words)
        except SystemExit as ended:  # argparse
            code = ended.code
        said = capsys.readouterr()
        assert code in CODES, (words, code, said.err)
        assert "Traceback" not in said.err and (code in (0, 2) or len(said.err.splitlines()) == 1), (words, said.err)
        codes.append(code)
    assert len(set(codes)) >= 4, codes
    allowed = {"inside", "outside"}  # ../outside is named by some
    assert set(os.listdir(place.parent)) <= allowed
    with contextlib.suppress(FileNotFoundError):
        assert not os.listdir("empty") or set(os.listdir("empty")) & {"dataset.json", "run.json"}
