"""The command line: what it prints, its exit codes, and that nothing a user can cause ends in a trace."""

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfpar import cli, commands, prepare, results, screen
from tfpar.prepare import arrays

QUICK = ["--stage", "1@0.2:0.02", "--stage", "1@0.02", "--shards", "4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory in which one replica has trained digits; `small` holds some of them, for what a few steps show."""
    place = tmp_path_factory.mktemp("cli")
    here = os.getcwd()
    os.chdir(place)
    try:
        assert cli.main(["train", "digits", *QUICK]) == 0
        found = prepare.load("data/digits")
        few = [
            (split.images[:count], split.labels[:count])
            for split, count in ((found.train, 200), (found.validation, 60))
        ]
        prepare.dataset(few, "small")
    finally:
        os.chdir(here)
    return place


@pytest.fixture
def tfpar(place, monkeypatch, capfd):
    """Run one command in this process; return its exit code and what it printed."""
    monkeypatch.chdir(place)

    def run(*arguments):
        capfd.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            code = stopped.code
        said = capfd.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return run


def start(*arguments, cwd):
    """Start the command as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tfpar", *map(str, arguments)],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_help_and_version_do_not_import_tensorflow():
    program = "import sys; from tfpar.cli import main\ntry: main(['{}'])\nfinally: print(sorted(m for m in sys.modules if m in ('tensorflow', 'keras', 'numpy')))"
    for argument in ("--help", "--version"):
        done = subprocess.run(
            [sys.executable, "-c", program.format(argument)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0 and done.stdout.strip().endswith("[]"), done


def test_train_wrote_what_was_promised(place):
    run = results.Run(place / "runs" / "digits")
    assert run.finished and run.stages == 2 and run.settings["global_batch_size"] == 128
    assert (place / "data" / "digits" / "dataset.json").exists()


def test_train_again_prints_the_result(tfpar, place):
    code, out, err = tfpar("train", "digits", *QUICK)
    accuracy = results.Run(place / "runs" / "digits").metrics()["accuracy"]
    assert code == 0 and f"finished: accuracy {accuracy:.4f}" in out and err == ""
    assert out.endswith("next: tfpar predict runs/digits IMAGE, or tfpar export runs/digits --to saved_model\n")


@pytest.mark.slow
def test_the_screen_shows_only_our_own_lines(tmp_path):
    done = start("train", "digits", "--stage", "1@0.1", cwd=tmp_path)
    out, err = done.communicate(timeout=180)
    assert done.returncode == 0 and err == "", err
    assert out.splitlines()[0] == "data/digits: 1,618 train and 179 validation images 8x8x1, 10 classes"
    assert "1 replica (CPU:0): global batch 128 -> 128 per replica, in 1 shard" in out


def test_predict(tfpar, place, digits):
    for i in range(3):
        Image.fromarray(digits.validation.images[i, :, :, 0]).resize((80, 80)).save(place / f"{i}.png")
    code, out, _ = tfpar("predict", "runs/digits", "0.png", "1.png", "2.png", "--json")
    answers = json.loads(out)
    pixels = np.stack(
        [np.asarray(Image.open(place / f"{i}.png").resize((8, 8), Image.Resampling.BILINEAR)) for i in range(3)]
    )
    logits = keras.saving.load_model(place / "runs/digits/model.keras").predict(pixels[..., None], verbose=0)
    assert code == 0 and [answer["label"] for answer in answers] == [str(i) for i in logits.argmax(axis=1)]
    code, out, _ = tfpar("predict", "runs/digits", "0.png")
    assert code == 0 and out.startswith(f"0.png: {answers[0]['label']} (") and out.count("%") == 1
    assert list(answers[0]["probabilities"].values()) == sorted(answers[0]["probabilities"].values(), reverse=True)
    assert len(answers[0]["probabilities"]) == 10 and abs(sum(answers[0]["probabilities"].values()) - 1) < 1e-5
    code, out, _ = tfpar("predict", "runs/digits", "0.png", "--top", 3)
    best = list(answers[0]["probabilities"].items())[:3]
    assert code == 0 and out == f"0.png: {', '.join(f'{name} ({share:.1%})' for name, share in best)}\n"
    code, out, _ = tfpar("predict", "runs/digits", "0.png", "--top", 3, "--json")
    assert json.loads(out)[0]["probabilities"] == pytest.approx(dict(best), rel=1e-4)  # in a batch of another size


def test_predict_a_folder(tfpar, place, digits, monkeypatch):
    below = place / "new" / "below"
    below.mkdir(parents=True)
    for i in range(5):
        Image.fromarray(digits.validation.images[i, :, :, 0]).save((below if i % 2 else place / "new") / f"{i}.png")
    (place / "new" / "notes.txt").write_text("not a picture, and not taken for one")
    (place / "new" / ".hidden.png").write_text("neither")
    monkeypatch.setattr(commands, "PREDICTED_TOGETHER", 2)
    code, out, err = tfpar("predict", "runs/digits", "new")
    names = [line.split(":")[0] for line in out.splitlines()]
    assert (
        code == 0 and not err and names == [f"new/{i}.png" for i in (0, 2, 4)] + [f"new/below/{i}.png" for i in (1, 3)]
    )
    (below / "2.png").write_bytes(b"no picture")
    code, again, err = tfpar("predict", "runs/digits", "new")
    assert code == 65 and again == out and "new/below/2.png: text, not a picture" in err and "1 of 6 pictures" in err
    code, out, _ = tfpar("predict", "runs/digits", "new", "--json")
    assert code == 65 and [answer["image"] for answer in json.loads(out)] == names
    (place / "empty").mkdir()
    code, _, err = tfpar("predict", "runs/digits", "empty")
    assert code == 66 and "no pictures in it" in err


@pytest.mark.slow
@pytest.mark.parametrize("limit", [600_000, 2_400_000, 2_900_000])  # TensorFlow crashed with all but the first
def test_too_little_address_space_to_import_is_no_defect(limit, tmp_path):
    command = f"ulimit -v {limit}; exec {sys.executable} -m tfpar train digits"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 69 and done.stderr.startswith("tfpar: out of memory"), done.stderr


@pytest.mark.parametrize(("limit", "code"), [(10**9, 69), (10**12, 70), (resource.RLIM_INFINITY, 70)])
def test_c_code_that_fails_without_an_exception_has_no_memory_where_that_is_limited(limit, code, monkeypatch, capsys):
    def fail(_given):
        raise SystemError("error return without exception set")

    monkeypatch.setitem(cli.COMMANDS, "doctor", fail)
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: (limit, limit))
    assert cli.main(["doctor"]) == code
    assert ("out of memory" if code == 69 else "internal error") in capsys.readouterr().err


def test_evaluate_gives_the_metrics_of_the_last_stage(tfpar, place):
    code, out, _ = tfpar("evaluate", "runs/digits")
    assert code == 0 and json.loads(out) == results.Run(place / "runs" / "digits").metrics()
    code, _, err = tfpar("evaluate", "runs/digits", "--split", "test")
    assert code == 78 and "has no split test; it has train, validation" in err


def test_evaluate_on_a_terminal_prints_the_classes(tfpar, monkeypatch):
    monkeypatch.setattr(sys.stdout.__class__, "isatty", lambda self: True, raising=False)
    code, out, _ = tfpar("evaluate", "runs/digits")
    table, metrics = out.split("{", 1)
    assert code == 0 and len(table.splitlines()) == 11 and table.startswith("class  images")
    assert "per_class" not in json.loads("{" + metrics)


def test_compare(tfpar, place):
    code, out, _ = tfpar("compare", "runs/digits", "runs/digits")
    assert code == 0 and out.splitlines()[1].startswith("accuracy") and out.endswith("their curves: compare.html\n")
    (place / "compare.html").rename(place / "other.html")
    for out in (".", "other.html", "runs"):
        assert tfpar("compare", "runs/digits", "--out", out)[0] == 0
    for page in ("compare.html", "other.html", "runs/compare.html"):
        (place / page).unlink()
    assert tfpar("compare", "runs/digits", "nowhere")[0] == 66 and not (place / "compare.html").exists()


def test_dry_run_tells_the_time_and_leaves_nothing(tfpar, place):
    code, out, _ = tfpar("train", "digits", "--run", "dry", "--dry-run")
    assert code == 0 and re.search(r"an epoch trains for about \d+\.\d s\nnothing was trained\n$", out)
    assert not (place / "dry").exists()


def test_evaluate_refuses_a_split_without_images(tfpar, place, monkeypatch):
    loaded = prepare.load(place / "data" / "digits")
    empty = loaded._replace(
        splits=loaded.splits | {"test": arrays.Split(loaded.train.images[:0], loaded.train.labels[:0], [])}
    )
    monkeypatch.setattr(prepare, "load", lambda *_: empty)
    code, _, err = tfpar("evaluate", "runs/digits", "--split", "test")
    assert code == 65 and "its split test has no image" in err


@pytest.mark.slow
def test_xla_is_a_setting_of_the_run(tfpar):
    once = ["--stage", "1@0.2"]
    assert tfpar("train", "small", "--run", "xla", "--xla", *once)[0] == 0
    code, _, err = tfpar("train", "small", "--run", "xla", *once)
    assert code == 78 and "XLA is true in the run, false now" in err


def test_prepare(tfpar, place):
    assert tfpar("prepare", "digits", "other", "--image-size", "16x12")[:2] == (
        0, "other: 1,618 train and 179 validation images 16x12x1, 10 classes\n",
    )  # fmt: skip


def test_damaged_pictures_are_told_of_in_our_words_alone(tmp_path):
    noise = io.BytesIO()
    Image.effect_noise((64, 48), 60).convert("RGB").save(noise, "tiff", compression="tiff_deflate")
    damaged, deep = bytearray(noise.getvalue()), bytearray(noise.getvalue())
    damaged[100:190] = bytes(90)  # libtiff itself has words for that
    deep[deep.index(b"\x15\x01\x03\0") + 8] = 99  # bands: Pillow logs it
    for kind in ("cat", "dog"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (8, 8), (i, len(kind), ord(kind[0]))).save(tmp_path / "photos" / kind / f"{i}.png")
        (tmp_path / "photos" / kind / "damaged.tif").write_bytes(damaged)
        (tmp_path / "photos" / kind / "deep.tif").write_bytes(deep)
    out, err = start("prepare", "photos", "d", cwd=tmp_path).communicate(timeout=60)
    assert len(out.splitlines()) == 1 and err == ""
    assert len((tmp_path / "d" / "skipped.csv").read_text().splitlines()) == 5
    _, err = start("prepare", "photos", "verbose", "--verbose", cwd=tmp_path).communicate(timeout=60)
    assert "Decode" in err  # fails when libtiff says nothing any more: then nothing need be silenced


def test_what_python_writes_reaches_the_screen_while_c_is_silent(capfd, monkeypatch):
    with open(2, "w", buffering=1, closefd=False) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with screen.stderr_silenced(True, but_python=True):
            os.write(2, b"C\n")
            print("Python", file=sys.stderr)
        print("after", file=sys.stderr)
        assert capfd.readouterr().err == "Python\nafter\n"


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [2, pytest.param(4, marks=pytest.mark.by_hand)])
def test_simulated_replicas_give_the_same_files(tfpar, place, replicas):
    code, out, _ = tfpar("train", "digits", *QUICK, "--run", f"r{replicas}", "--simulate", replicas)
    assert code == 0 and f"{replicas} replicas (CPU:0, CPU:1" in out
    one, several = results.Run(place / "runs" / "digits"), results.Run(place / f"r{replicas}")
    assert results.compare(one, several)["same_bits"]
    assert one.history.drop(["images_per_second"]) == several.history.drop(["images_per_second"])


@pytest.mark.slow
def test_adamw_and_mixed_precision(tfpar):
    how = ["--optimizer", "adamw", "--precision", "mixed_float16", "--run", "mixed"]
    code, _, err = tfpar("train", "small", "--stage", "1@0.001", *how)
    assert code == 0, err
    settings = results.Run("mixed").settings
    assert settings["precision"] == "mixed_float16" and settings["optimizer"]["class"] == "LossScaleOptimizer"


REFUSED = [
    (["train", "no-such-thing"], 66, "no such folder or table, and no TensorFlow data set"),
    (["train", "./nowhere"], 66, "no such folder"),
    (["prepare", "empty", "d"], 65, "no pictures in it"),
    (
        ["train", "digits", "--run", "x", "--simulate", "4", "--global-batch-size", "10"],
        78,
        "take a multiple of 4, such as 12",
    ),
    (["train", "digits", "--run", "x", "--simulate", "4", "--shards", "6"], 78, "take a multiple of 4, such as 8"),
    (["train", "damaged"], 65, "damaged/train/images.npy: damaged"),
    (["train", "digits", "--run", "x", "--model", "nothing"], 78, "model 'nothing' is unknown; give small_cnn"),
    (["train", "digits", "--run", "x", "--model", "MobileNetV2"], 78, "at least 32x32"),
    (["train", "digits", "--run", "x", "--model", "resnet50"], 78, "did you mean ResNet50? give small_cnn"),
    (["compare", "nowhere"], 66, "no run there"),
    (["train", "digits", "--run", "x", "--weights", "no.h5"], 66, "no such file of weights"),
    (["train", "digits", "--run", "x", "--freeze", "--stage", "1@0.1/all"], 78, "--freeze is /head on every stage"),
    (["train", "digits", "--run", "file/x"], 73, "cannot make this directory"),
    (["train", "digits", "--run", "empty/.."], 73, "exists and is not a"),
    (["train", "digits", *QUICK, "--seed", "3"], 78, "seed is 0 in the run, 3 now"),
    (["train", "digits", "--run", "x", "--stage", "x"], 2, "EPOCHS@RATE"),
    (["train", "digits", "--seed", "-1"], 2, "whole number from 0"),
    (["train", "digits", "--precision", "float64"], 2, "invalid choice"),
    (["train"], 2, "required"),
    ([], 2, "required"),
    (["predict", "nowhere", "a.png"], 66, "no run there"),
    (["predict", "runs/digits", "no.png"], 66, "no.png: no such file"),
    (["predict", "runs/digits", "file"], 66, "file: text, not a picture"),
    (["evaluate", "nowhere"], 66, "no run there"),
    (["launch", "--workers", "2", "--", "train", "digits", "--dry-run"], 78, "without --profile and --dry-run"),
    (["prepare", "mnist:9.9.9", "d"], 66, "tfds:mnist:9.9.9"),
    (["predict", "torn", "0.png"], 65, "model.keras: damaged"),
    (["evaluate", "runs/digits", "--data", "empty"], 65, "not a prepared directory"),
    (["evaluate", "runs/digits", "--data", "nowhere"], 66, "no such directory"),
    (["prepare", "digits", "data/digits", "--seed", "4"], 78, "seed is 0, asked for 4"),
    (["prepare", "digits", "file"], 73, "exists and is not a"),
    (["prepare", "digits", "d", "--validation-fraction", "1.5"], 2, "number from"),
    (["prepare", "digits", "d", "--image-size", "0"], 2, "whole number from 1"),
]


@pytest.mark.parametrize(
    ("arguments", "expected", "text"),
    REFUSED,
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_one_line_and_the_exit_code(tfpar, place, arguments, expected, text):
    import shutil

    (place / "empty").mkdir(exist_ok=True)
    (place / "file").write_text("hello, I am text")
    if "damaged" in arguments and not (place / "damaged").exists():
        shutil.copytree(place / "data" / "digits", place / "damaged")
        path = place / "damaged" / "train" / "images.npy"
        path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    if "torn" in arguments:
        shutil.copytree(place / "runs" / "digits", place / "torn")
        (place / "torn" / "model.keras").write_bytes(b"PK torn")
        Image.new("L", (8, 8)).save(place / "0.png")
    before = sorted(place.rglob("*"))
    code, _, err = tfpar(*arguments)
    assert code == expected and text in err, (code, err)
    assert code == 2 or len(err.splitlines()) == 1
    assert sorted(place.rglob("*")) == before or arguments[-1] == "d"
    assert not (place / "d").exists()


def test_another_keras_backend_is_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tfpar", "train", "digits"], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**os.environ, "KERAS_BACKEND": "numpy"},
    )  # fmt: skip
    assert done.returncode == 78 and "set KERAS_BACKEND=tensorflow" in done.stderr, done


def test_out_of_memory_is_said(tfpar, monkeypatch):
    def exhausted(self):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    monkeypatch.setattr(results.Run, "metrics", exhausted)
    code, _, err = tfpar("train", "digits", *QUICK)
    assert code == 69 and "more shards" in err and len(err.splitlines()) == 1


def test_a_defect_is_one_line_and_a_file(tfpar, monkeypatch):
    monkeypatch.setattr(results.Run, "metrics", lambda self: 1 // 0)
    code, _, err = tfpar("train", "digits", *QUICK)
    path = err.split("report it with ")[1].strip()
    assert code == 70 and len(err.splitlines()) == 1
    with open(path) as file:
        assert "ZeroDivisionError" in file.read()
    os.unlink(path)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize(
    ("what", "code"), [("signals.Interrupted(3)", 42), ("errors.DataError('x')", 65), ("OSError(5, 'x')", 74)]
)
def test_the_exit_code_survives_a_stream_that_cannot_be_written(stream, what, code):
    program = f"""
import sys
from tfpar import cli, errors, signals
def ends(given):
    print("said before")
    raise {what}
cli.COMMANDS["evaluate"] = ends
sys.exit(cli.main(["evaluate", "r"]))
"""
    with open("/dev/full", "w") as full:
        other = {"stdout": "stderr", "stderr": "stdout"}[stream]
        options = {stream: full, other: subprocess.PIPE, "env": os.environ | {"PYTHONUNBUFFERED": ""}}
        done = subprocess.run([sys.executable, "-c", program], text=True, timeout=120, **options)
    assert done.returncode == code and "Traceback" not in getattr(done, other)


@pytest.mark.slow
def test_a_run_whose_reader_goes_away_is_not_done(tmp_path, tfpar, place):
    process = start("train", place / "small", "--run", "cut", *QUICK, cwd=tmp_path)
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(timeout=120) == 74 and "standard output was closed" in said and "Traceback" not in said
    code, _, _ = tfpar("train", "small", "--run", tmp_path / "cut", *QUICK)
    assert code == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.by_hand)])
def test_a_signal_saves_and_the_same_command_continues(tmp_path, tfpar, place, number):
    arguments = ["train", place / "data" / "digits", "--stage", "5@0.05", "--run", tmp_path / "r"]
    process = start(*arguments, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "r" / "history.csv").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 42 and "state saved; the same command continues" in err, (out, err)
    code, out, _ = tfpar(*arguments)
    assert code == 0 and "continuing after step" in out


@pytest.mark.slow
def test_label_smoothing_is_a_setting_of_the_run(tfpar):
    smoothed = ("train", "small", "--run", "runs/smoothed", "--stage", "1@0.2", "--label-smoothing", "0.1")
    code, _, said = tfpar(*smoothed)
    assert code == 0, said
    assert results.Run("runs/smoothed").settings["loss"]["label_smoothing"] == 0.1
    code, _, said = tfpar(*smoothed[:-1], "0.2")
    assert code == 78 and "0.1" in said and "0.2" in said
    assert tfpar(*smoothed[:-1], "1.5")[0] == 2
    code, out, _ = tfpar("evaluate", "runs/smoothed")
    assert code == 0 and json.loads(out)["loss"] == results.Run("runs/smoothed").metrics()["loss"]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--batch-size", "--global-batch-size"),
        ("--simulated=2", "--simulate"),
        ("--lr", "--stage"),
        ("--nothing-like-it", None),
    ],
)
def test_an_option_that_is_nearly_right_is_answered_with_the_nearest(tfpar, word, meant):
    code, _, err = tfpar("train", "digits", word, "2")
    told = err.strip().splitlines()[-1]
    assert code == 2 and f"unrecognized arguments: {word}" in told
    assert told.endswith(f"did you mean {meant}?") if meant else "did you mean" not in told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "nowhere", "--run", ""], "run=''"),
        (["launch", "--workers", "2", "--", "train", "nowhere", "--run", ""], "run=''"),
        (["launch", "--workers", "2", "--logs", "", "--", "train", "nowhere"], "logs=''"),
        (["evaluate", "nowhere", "--data", ""], "data=''"),
        (["compare", "nowhere", "--out", ""], "out=''"),
        (["export", "nowhere", "--to", "onnx", "--out", ""], "out=''"),
        (["scaling", "nowhere", "--out", ""], "out=''"),
        (
            [
                "scaling",
                "--predict",
                "",
                "--step-ms",
                "1",
                "--batch",
                "1",
                "--gradient-mb",
                "1",
                "--devices",
                "2",
                "--machine",
                "x",
            ],
            "predict=''",
        ),
        (["predict", "nowhere", "a.png", ""], "images=''"),
        (["train", "nowhere", "--model", "caffe:x", "--solver", ""], "solver=''"),
        (["train", ""], "data=''"),
        (["train", "nowhere", "--stage=--"], "stage"),
        (["fpga", "a", "b", "c", "--device=--"], "device"),
        (["train", "nowhere", "--freeze", "--stage", "1@0.1/all"], "--freeze is /head on every stage"),
    ],
)
def test_an_empty_path_and_a_contradiction_are_refused_before_the_data_is_read(words, said, capsys):
    assert cli.main(words) == 78
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_standard_stream_that_is_closed_is_no_fault_and_no_file_takes_its_number(tmp_path, closed):
    manifests = "-m tfpar kubernetes --workers 2 --gpus 1 --image i -- train data/x"
    probe = "from tfpar import screen; screen.open_streams(); raise SystemExit(open('file', 'w').fileno())"
    for program, codes in ((manifests, {0}), (f'-c "{probe}"', range(3, 99))):
        done = subprocess.run(["bash", "-c", f"{sys.executable} {program} {closed}"], cwd=tmp_path, check=False)
        assert done.returncode in codes
