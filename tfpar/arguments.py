"""What the command line takes: the words of every command, and what each value must be.

It imports nothing that takes time, so that `tfpar --help` is immediate.

Example:
    >>> arguments.parser({}).parse_args(["train", "digits", "--shards", "4"]).shards
    4
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from tfpar import __version__, errors, schedule, validate
from tfpar.settings import FIELDS, MOST_STEPS_PER_CALL

# Settings that are options of `train` under their own names.
SETTINGS = (
    "global_batch_size", "shards", "seed", "augment", "class_weights", "warmup_epochs", "scale_learning_rate", "all_reduce", "batch_norm", "steps_per_call", "checkpoint_seconds", "fresh",
)  # fmt: skip

EXIT_CODES = """exit codes: 0 done, 2 wrong use, 42 stopped with its state saved, 65 data damaged, 66 input not there,
69 something needed not there, 70 a defect of tfpar, 73 output cannot be made, 74 reading or writing failed,
75 another worker was lost, 78 settings contradict what is there"""


def _whole(lowest: int, highest: int):
    def whole(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and lowest <= int(text[:20]) <= highest):
            raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from {lowest} to {highest}")
        return int(text)

    return whole


def _number(lowest: float, highest: float):
    def number(text: str) -> float:
        try:
            if lowest <= float(text) <= highest:
                return float(text)
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{text!r}: give a number from {lowest:g} to {highest:g}")

    return number


def _image_size(text: str) -> int | tuple[int, int]:
    sides = [_whole(1, 4096)(side) for side in text.lower().split("x")]
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"{text!r}: give pixels as 96 or 96x128")
    return sides[0] if len(sides) == 1 else tuple(sides)


def _stage(text: str):
    try:
        return schedule.parse(text)
    except errors.SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _class_weights(text: str) -> str | list[float]:
    return text if text == "balanced" else [_number(0, 1e9)(weight) for weight in text.split(",")]


def _not_decayed(text: str) -> list[str]:
    words = text.split(",")
    if not set(words) <= {"bias", "norm"}:
        raise argparse.ArgumentTypeError(f"{text!r}: give bias, norm or bias,norm")
    return words


def _steps_per_call(text: str) -> int | str:
    return text if text == "auto" else _whole(1, MOST_STEPS_PER_CALL)(text)


def parser(functions: Mapping[str, Callable], *, kind=argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Return the parser of the command line; what it reads carries the function of its command as `command`.

    Args:
        functions: by the names of the commands; where one is missing, `command` is the name.
        kind: the class of the parser.
    """
    line = kind(
        prog="tfpar",
        description="Data-parallel training of Keras 3 image classifiers on TensorFlow.",
        epilog=EXIT_CODES,
    )
    line.add_argument("--version", action="version", version=f"tfpar {__version__}")
    commands = line.add_subparsers(required=True, metavar="COMMAND")

    def command(name, text):
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(command=functions.get(name, name))
        added.add_argument("--verbose", action="store_true", help="show TensorFlow's own messages")
        return added

    _add_prepare(command)
    _add_train(command)
    _add_results(command)
    caffe = command("caffe", "compare a converted Caffe network with OpenCV's, layer by layer")
    caffe.add_argument("what", choices=("check",))
    caffe.add_argument("net", help="a prototxt")
    caffe.add_argument("weights", help="its caffemodel")
    caffe.add_argument("--image", metavar="FILE", help="a picture; default: random numbers")
    fpga = command("fpga", "turn a quantized twin into a circuit, and print its figures")
    fpga.add_argument("twin", metavar="TWIN.keras", help="made by tfpar.fpga.quantized and fit")
    fpga.add_argument(
        "data", help="a prepared directory, or a source as for prepare; its validation images are compared"
    )
    fpga.add_argument("directory", help="where the circuit goes")
    fpga.add_argument("--device", choices=("25k", "45k", "85k"), default="25k", help="of Lattice's ECP5; default 25k")
    fpga.add_argument("--no-route", action="store_true", help="end after synthesis: no clock, no bitstream")
    _add_launch(command)
    _add_kubernetes(command, functions.get("--dockerfile"))
    doctor = command("doctor", "what this machine and these versions can do, and what to fix")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    return line


def _add_setting(command, name: str, metavar: str | None = None, **more) -> None:
    """Add the option of a setting, with the default, range, choices and help of its definition."""
    setting = FIELDS[name]
    within, choices = setting.metadata["within"], setting.metadata["choices"]
    if choices:
        more["choices"] = choices
    elif within:
        more["type"] = (_whole if isinstance(within[1], int) else _number)(*within)
    command.add_argument(
        f"--{name.replace('_', '-')}", default=setting.default, metavar=metavar, help=setting.metadata["help"], **more
    )


def _add_prepare(command) -> None:
    prepare = command("prepare", "turn any source of images into a verified directory of arrays")
    prepare.add_argument(
        "source", help="digits, a TensorFlow data set, a folder of class folders, or a table (.csv, .parquet)"
    )
    prepare.add_argument("directory", help="where it goes")
    prepare.add_argument(
        "--image-size", type=_image_size, metavar="S|HxW", help="pixels; default: as they are, mixed sizes 224"
    )
    prepare.add_argument(
        "--validation-fraction", type=_number(1e-6, 0.999999), default=0.1, metavar="F", help="default 0.1"
    )
    prepare.add_argument("--seed", type=_whole(0, validate.MOST_SEED), default=0, help="of the split; default 0")
    prepare.add_argument(
        "--on-bad-image", choices=("skip", "fail"), default="skip", help="default skip: into skipped.csv"
    )
    prepare.add_argument(
        "--splits",
        action=argparse.BooleanOptionalAction,
        help="whether folders named train, val, ... are splits; default: by their names",
    )
    prepare.add_argument(
        "--group-by",
        metavar="COLUMN|REGEX",
        help="keep groups on one side: a table's column, or the first group in a path",
    )
    prepare.add_argument("--fresh", action="store_true", help="prepare again; the old directory is kept beside")
    prepare.add_argument("--tfds-manual-dir", metavar="D", help="files TensorFlow Datasets would otherwise download")


def _add_train(command) -> None:
    train = command("train", "train in stages; the same command continues an interrupted run")
    train.add_argument("data", help="a prepared directory, or a source as for prepare")
    train.add_argument("--run", metavar="DIR", help="where results and checkpoints go; default: runs/NAME")
    train.add_argument(
        "--model", default="small_cnn",
        help="small_cnn (default), for photographs resnet18 or resnet18_half, resnet20|32|44|56, a keras.applications network, or "
        "caffe:FILE, a prototxt",
    )  # fmt: skip
    train.add_argument(
        "--weights", type=lambda text: None if text == "none" else text, metavar="none|imagenet|FILE|RUN",
        help="none: random, default; imagenet: downloaded; a file of weights; a run or a .keras file: all layers but the head",
    )  # fmt: skip
    _add_stages(train)
    _add_setting(train, "global_batch_size", "B")
    _add_setting(train, "seed")
    train.add_argument(
        "--simulate", type=_whole(1, validate.MOST_REPLICAS), metavar="N", help="replicas on this machine's CPU"
    )
    train.add_argument("--optimizer", choices=("sgd", "adamw"), help="default sgd, with momentum 0.9")
    _add_weight_decay(train)
    train.add_argument(
        "--label-smoothing", type=_number(0, 1), default=0.0, metavar="S",
        help="crossentropy with labels softened by S; default 0",
    )  # fmt: skip
    _add_setting(train, "augment")
    train.add_argument(
        "--class-weights",
        type=_class_weights,
        metavar="balanced|W,W,...",
        help="of each class in the loss; default: all 1",
    )
    precisions = ("float32", "mixed_bfloat16", "mixed_float16")
    train.add_argument("--precision", choices=precisions, default="float32", help="of the computing")
    _add_caffe(train)
    _add_how(train)


def _add_caffe(train) -> None:
    train.add_argument(
        "--caffe-scale", type=_number(-1e30, 1e30), metavar="S", help="factor on the pixels of caffe:FILE"
    )
    train.add_argument("--caffe-mean", metavar="M|M,M,M|FILE", help="subtracted before; in the order of the network")
    train.add_argument("--caffe-order", choices=("bgr", "rgb"), help="of the channels; default bgr")
    train.add_argument("--solver", metavar="FILE", help="optimizer, rates, batch, decay and end from a Caffe solver")


def _add_stages(train) -> None:
    train.add_argument(
        "--stage", type=_stage, action="append", metavar="E@R[:F][~SCHEDULE][/TRAINABLE]",
        help="epochs at a rate, falling to another by linear or cosine; training all layers, the head, or those named; repeat; "
        "default of sgd: 10@0.2:0.02 and 5@0.02:0; a rate is for a batch of 256: sgd multiplies it by B/256, adamw does not; "
        "the first tenth of the first stage warms up from 0",
    )  # fmt: skip
    train.add_argument("--freeze", action="store_true", help="train the last layer alone: /head on every stage")
    _add_setting(train, "warmup_epochs", "E")
    train.add_argument(
        "--scale-learning-rate", action=argparse.BooleanOptionalAction, default=True,
        help=FIELDS["scale_learning_rate"].metadata["help"],
    )  # fmt: skip


def _add_weight_decay(train) -> None:
    train.add_argument("--weight-decay", type=_number(0, 1), metavar="W", help="default 0.0005")
    train.add_argument(
        "--weight-decay-kind", choices=("decoupled", "l2"),
        help="decoupled (default): each step takes rate x W x weight off, as in AdamW; l2: adds W x weight to the gradient, a "
        "regularizer of each layer, as in Caffe and PyTorch's SGD: with momentum 0.9 ten times as strong",
    )  # fmt: skip
    train.add_argument(
        "--weight-decay-exclude", type=_not_decayed, metavar="bias,norm",
        help="biases, weights of normalization layers, or both: they do not decay; default: all weights decay",
    )  # fmt: skip


def _add_how(train) -> None:
    """Add what decides how a training is computed, saved and looked at, but not what is trained."""
    _add_setting(train, "shards", "V")
    _add_setting(train, "all_reduce")
    _add_setting(train, "batch_norm")
    train.add_argument("--xla", action="store_true", help="compile each shard by XLA; it pays on GPUs")
    train.add_argument("--deterministic", action="store_true", help="deterministic operations on GPUs; slower")
    _add_setting(train, "steps_per_call", "auto|K", type=_steps_per_call)
    _add_setting(train, "checkpoint_seconds", "S")
    train.add_argument("--dry-run", action="store_true", help="say what it would take, memory too, and train nothing")
    train.add_argument("--profile", action="store_true", help="say where a step's time goes, and train nothing")
    train.add_argument("--fresh", action="store_true", help=FIELDS["fresh"].metadata["help"])


def _add_results(command) -> None:
    predict = command("predict", "label new pictures")
    predict.add_argument("run", help="the directory of a run")
    predict.add_argument(
        "images",
        nargs="+",
        metavar="image",
        help="a picture of any size and kind that prepare reads, or a folder of them",
    )
    predict.add_argument("--top", type=_whole(1, 2**20), metavar="K", help="answers; default the best, with --json all")
    predict.add_argument("--json", action="store_true", help="print JSON")

    evaluate = command("evaluate", "exact metrics of the final model: JSON; on a terminal a table of the classes too")
    evaluate.add_argument("run", help="the directory of a run")
    evaluate.add_argument("--data", metavar="DIR", help="default: the data it was trained on")
    evaluate.add_argument("--split", choices=("validation", "test"), default="validation")

    compare = command("compare", "in which settings and results runs differ, and a page with their curves")
    compare.add_argument("runs", nargs="+", metavar="run", help="each is compared with the first")
    compare.add_argument("--out", default=".", metavar="PAGE", help="a file or a folder; default: compare.html here")

    platforms = command("platforms", "how fast this machine answers with the final model, from predict to LiteRT")
    platforms.add_argument("run", help="the directory of a finished run; gets platforms.json and platforms.png")
    platforms.add_argument(
        "--batch", type=_whole(1, validate.MOST_BATCH), default=256, metavar="B", help="of the throughput; default 256"
    )

    export = command("export", "write the final model for serving: SavedModel, LiteRT or ONNX")
    export.add_argument("run", help="the directory of a finished run")
    export.add_argument("--to", required=True, choices=("saved_model", "tflite", "onnx"))
    export.add_argument("--out", metavar="PATH", help="default: RUN/export/NAME")


def _add_launch(command) -> None:
    launch = command("launch", "run tfpar train as several workers on this machine; all start again when one dies")
    launch.add_argument("--workers", type=_whole(1, validate.MOST_REPLICAS), required=True, metavar="N")
    launch.add_argument("--logs", metavar="DIR", help="launch.json and a log of each worker; default: RUN/workers")
    launch.add_argument("--restarts", type=_whole(0, 10**6), default=10, metavar="K", help="default 10")
    launch.add_argument("--cores-per-worker", type=_whole(1, 1024), metavar="C", help="default: threads are left alone")
    launch.add_argument("words", nargs="+", metavar="-- train ...", help="the command of every worker")


def _add_kubernetes(command, dockerfile) -> None:
    kubernetes = command("kubernetes", "print tfpar train as Kubernetes manifests: one pod for each worker")
    kubernetes.add_argument("--workers", type=int, required=True, metavar="N", help="pods")
    kubernetes.add_argument("--gpus", type=int, required=True, metavar="G", help="of each worker; 0 trains on CPUs")
    kubernetes.add_argument("--image", required=True, metavar="I", help="an image with tfpar; see --dockerfile")
    kubernetes.add_argument("--target", default="job", metavar="job|jobset", help="job needs no installation")
    kubernetes.add_argument("--name", default="train", help="default: train")
    kubernetes.add_argument("--namespace", help="default: the one kubectl is set to")
    kubernetes.add_argument("--queue", metavar="Q", help="of Kueue")
    kubernetes.add_argument(
        "--data-claim", default="data", metavar="C", help="volume claim, mounted as data; default: data"
    )
    kubernetes.add_argument(
        "--run-claim", default="runs", metavar="C", help="volume claim, mounted as runs; default: runs"
    )
    kubernetes.add_argument("--cpus", type=int, default=4, metavar="C", help="cores of each worker; default 4")
    kubernetes.add_argument("--memory", default="8Gi", metavar="M", help="of each worker; default 8Gi")
    kubernetes.add_argument("--shm", default="1Gi", metavar="M", help="the part of it that is shared; default 1Gi")
    kubernetes.add_argument("--port", type=int, default=12345, help="default 12345")
    kubernetes.add_argument("--deadline", type=int, default=86400, metavar="SECONDS", help="default 86400, a day")
    kubernetes.add_argument(
        "--dockerfile", action=_Print, nargs=0, const=dockerfile, help="print a Dockerfile for the image, and end"
    )
    kubernetes.add_argument("words", nargs="+", metavar="-- train ...", help="the command of every worker")


class _Print(argparse.Action):
    """Print what the function `const` returns, and end."""

    def __call__(self, parser, namespace, values, option_string=None):
        print(self.const(), end="")
        parser.exit()
