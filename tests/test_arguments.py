"""Command lines, valid and not: each ends with an exit code of the table, without a trace, and writes where it was told."""

import contextlib
import os

import numpy as np
import pytest
from PIL import Image

from tfpar import cli, prepare
from tfpar.diagnose import doctor, profiling

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
NAMES = ["a", "a-b", "a.b", "-a", "A", "a_b", "a b", "", "图", "x" * 300, "../x", "line\nbreak", "{{x}}", "null"]
AMOUNTS = ["8Gi", "1.5G", "0", "-1Gi", "x", "", "1e9Gi", "8 Gi", "nan"]
OPTIONS = {
    "prepare": {
        "--image-size": [*NUMBERS, "8x6", "8x", "x8", "8x8x8", "5000"], "--validation-fraction": [*NUMBERS, "0.2", "0.999"],
        "--seed": NUMBERS, "--on-bad-image": ["skip", "fail", "x"], "--tfds-manual-dir": PATHS, "--splits": [None], "--no-splits": [None], "--fresh": [None],
    },
    "train": {
        "--model": ["small_cnn", "resnet20", "resnet21", "", "Dense", "MobileNetV9", "keras", "../x"], "--weights": ["none", *PATHS],
        "--stage": ["1@0.1", "1@0.1:0", "0@0.1", "1@", "@", "1@-1", "1@nan", "x", "1@1:1:1", "9999999@1", "1@0.1/head", "1@0.1:0~cosine/all", "1@0.1/x*", "1@0.1~step"], "--seed": NUMBERS,
        "--global-batch-size": [*NUMBERS, "8", "12"], "--simulate": ["1", "2", "0", "x", "257"], "--shards": [*NUMBERS, "4"],
        "--optimizer": ["sgd", "adamw", "x"], "--weight-decay": NUMBERS, "--weight-decay-kind": ["decoupled", "l2", "x"], "--weight-decay-exclude": ["bias", "bias,norm", "kernel", ""], "--augment": ["none", "flip", "crop-flip", "x"],
        "--precision": ["float32", "mixed_bfloat16", "x"], "--all-reduce": ["ordered", "fast", "x"], "--steps-per-call": [*NUMBERS, "auto"],
        "--checkpoint-seconds": NUMBERS, "--run": ["run", "new", *PATHS[1:]], "--fresh": [None], "--nonsense": [None],
        "--dry-run": [None], "--profile": [None], "--freeze": [None], "--batch-norm": ["fused", "keras", "x"], "--warmup-epochs": NUMBERS, "--no-scale-learning-rate": [None],
    },
    "predict": {"--json": [None], "--top": NUMBERS, "--nonsense": [None]},
    "compare": {"--out": PATHS, "--nonsense": [None]},
    "evaluate": {"--data": PATHS, "--split": ["validation", "test", "x"]},
    "export": {"--to": ["saved_model", "tflite", "onnx", "x"], "--out": PATHS},
    "fpga": {"--device": ["25k", "85k", "12k", ""], "--no-route": [None], "--nonsense": [None]},
    "doctor": {"--json": [None], "--verbose": [None], "--nonsense": [None]},
    "kubernetes": {
        "--workers": NUMBERS, "--gpus": NUMBERS, "--target": ["job", "jobset", "x", ""], "--name": NAMES, "--namespace": NAMES,
        "--queue": NAMES, "--data-claim": NAMES, "--run-claim": NAMES, "--image": ["tfpar:1", "a b", "", "图", "x" * 300],
        "--cpus": NUMBERS, "--memory": AMOUNTS, "--shm": AMOUNTS, "--port": [*NUMBERS, "65536"], "--deadline": NUMBERS,
        "--dockerfile": [None], "--nonsense": [None],
    },
    "scaling": {  # what would measure has tests of its own
        "--step-ms": NUMBERS, "--batch": NUMBERS, "--gradient-mb": NUMBERS, "--devices": [*NUMBERS, "8,16", "8,", "8,x"],
        "--also": ["8=3", "16=4", "8", "8=", "=3", "8=nan", "0=3", "8=3=3", "x=3"], "--machine": ["8xH100-NDR", "cpu-1GbE", "8xH101", "", "x" * 300],
        "--per-machine": NUMBERS, "--inside": NUMBERS, "--outside": NUMBERS, "--price": NUMBERS, "--images": NUMBERS, "--epochs": NUMBERS,
        "--all-reduce": ["ordered", "fast", "x"], "--seconds": NUMBERS, "--out": PATHS, "--json": [None], "--nonsense": [None],
    },
    "launch": {"--workers": ["2", *NUMBERS], "--restarts": NUMBERS, "--logs": ["logs", "file.txt", "file.txt/x", ""], "--nonsense": [None]},
}  # fmt: skip


DIRECT = (
    "prepare",
    "train",
    "predict",
    "evaluate",
    "export",
    "compare",
    "fpga",
    "nonsense",
)  # a path may stand in each of their places
NOT_LAUNCHED = [
    [], ["train"], ["predict", "run", "photos/cat/0.png"], ["train", "data", "--profile"], ["train", "data", "--dry-run"],
    ["train", "data", "--seed", "x"], ["doctor"], ["launch", "--workers", "2", "--", "train", "data"], ["nonsense"], ["--", "train"],
]  # fmt: skip


def command_line(random) -> list[str]:
    """Return a command with a few options, half of them wrong on average."""

    def one(values):
        return values[random.integers(len(values))]

    command = one([*OPTIONS, *OPTIONS, "prepare", "train", "train", "train", "nonsense"])
    known = OPTIONS.get(command, {})
    right = {
        "prepare": ["photos", f"new{random.integers(99)}"], "train": ["data"], "predict": ["run", "photos/cat/0.png"], "evaluate": ["run"], "export": ["run"], "compare": ["run", "run"],
        "fpga": ["run/model.keras", "data", "circuit"],
        "doctor": [], "kubernetes": ["--workers", "2", "--gpus", "0", "--image", "tfpar:1"], "launch": ["--workers", "2"],
        "scaling": ["--step-ms", "3", "--batch", "8", "--gradient-mb", "1", "--machine", "8xV100-EDR", "--devices", "64"],
    }.get(command, ["data"])  # fmt: skip
    words = [command, *(one(PATHS) if random.random() < 0.3 and command in DIRECT else target for target in right)]
    if command == "train":
        words += ["--stage", "1@0.1", "--global-batch-size", "8"]  # so that a valid one is short
    for option in (
        random.choice(list(known), size=min(len(known), random.integers(0, 4)), replace=False) if known else []
    ):
        value = one(known[option])
        words += [str(option)] if value is None else [str(option), value]
    if command == "kubernetes":
        words += ["--", *one([["train", "data"], ["train", "photos", "--run", one(PATHS)], *NOT_LAUNCHED])]
    if command == "launch":  # what would start processes has tests of its own
        words += one(
            [["--cores-per-worker", "999", "--", "train", "data"], *(["--", *inner] for inner in NOT_LAUNCHED)]
        )
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
    assert cli.main(["train", "data", "--run", "run", "--stage", "1@0.1", "--global-batch-size", "8"]) == 0
    return inside


@pytest.fixture
def brief(monkeypatch):
    """Let a profile take its measures once, and the doctor train nothing: both have tests of their own."""
    monkeypatch.setattr(profiling, "TURNS", 1)
    monkeypatch.setattr(profiling, "TURN_SECONDS", 0.01)
    monkeypatch.setattr(
        doctor, "_tried_in_another_process", lambda: {"trained": "1 replica", "repeated": True, "failure": ""}
    )


FIVE_HUNDRED = [pytest.param(seed, 50, marks=[pytest.mark.by_hand, pytest.mark.timeout(1200)]) for seed in range(1, 11)]


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "count"), [(0, 25), *FIVE_HUNDRED])
def test_every_command_line_ends_with_a_code_of_the_table(place, brief, seed, count, capsys):
    random = np.random.default_rng(seed)
    codes = []
    for _ in range(count):
        words = command_line(random)
        try:
            code = cli.main(words)
        except SystemExit as ended:  # argparse
            code = ended.code
        said = capsys.readouterr()
        assert code in CODES, (words, code, said.err)
        assert "Traceback" not in said.err and (code in (0, 2) or len(said.err.splitlines()) == 1), (words, said.err)
        codes.append(code)
    assert len(set(codes)) >= 3, codes
    allowed = {"inside", "outside", "outside.profile"}  # ../outside is named by some
    assert set(os.listdir(place.parent)) <= allowed
    with contextlib.suppress(FileNotFoundError):
        assert not os.listdir("empty") or set(os.listdir("empty")) & {"dataset.json", "run.json"}
