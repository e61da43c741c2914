"""What the command line takes: the words of every command, and what each value must be.

It imports nothing that takes time, so that `tfpar --help` is immediate.

Example:
    >>> arguments.parser({}).parse_args(["train", "digits", "--shards", "4"]).shards
    4
"""

import argparse
from collections.abc import Callable, Mapping

from tfpar import __version__, errors, schedule, validate
from tfpar.settings import FIELDS, MOST_STEPS_PER_CALL

SETTINGS = FIELDS.keys() - {"stages", "weights", "verbose"}  # that are options of `train` under their own names
EXIT_CODES = """exit codes: 0 done, 2 wrong use, 42 stopped with its state saved, 65 data damaged, 66 input not found,
69 a service or package is missing, 70 an internal error, 73 output cannot be created, 74 reading or writing failed,
75 another worker was lost, 78 settings contradict each other, the data or the run"""


def _whole(lowest: int, highest: int):
    def whole(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and lowest <= int(text[:20]) <= highest):
            raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from {lowest} to {highest}")
        return int(text)

    return whole


def _number(lowest: float, highest: float):
    def number(text: str) -> float:
        wrong = f"{text!r}: give a number from {lowest:g} to {highest:g}"
        with errors.translated(ValueError, argparse.ArgumentTypeError, wrong):
            return validate.number("number", float(text), lowest, highest)

    return number


def _image_size(text: str) -> int | tuple[int, int]:
    sides = [_whole(1, 4096)(side) for side in text.lower().split("x")]
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"{text!r}: give pixels as 96 or 96x128")
    return sides[0] if len(sides) == 1 else tuple(sides)


def _stage(text: str):
    with errors.translated(errors.SettingsError, argparse.ArgumentTypeError, errors.REASON):
        return schedule.parse(text)


def _class_weights(text: str) -> str | list[float]:
    return text if text == "balanced" else [_number(0, 1e9)(weight) for weight in text.split(",")]


def _not_decayed(text: str) -> list[str]:
    words = text.split(",")
    if not set(words) <= {"bias", "norm"}:
        raise argparse.ArgumentTypeError(f"{text!r}: give bias, norm or bias,norm")
    return words


def _steps_per_call(text: str) -> int | str:
    return text if text == "auto" else _whole(1, MOST_STEPS_PER_CALL)(text)


def _devices(text: str) -> list[int]:
    return [_whole(1, validate.MOST_DEVICES)(number) for number in text.split(",")]


def _also(text: str) -> tuple[int, float]:
    devices, _, milliseconds = text.partition("=")
    return _whole(1, validate.MOST_DEVICES)(devices), _number(1e-6, 1e9)(milliseconds) / 1000


def parser(functions: Mapping[str, Callable], *, kind=argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Return the parser of the command line; what it reads carries the function of its command as `command`, and `usage()`.

    Args:
        functions: by the names of the commands; where one is missing, `command` is the name.
        kind: the class of the parser.
    """
    about = "Data-parallel training of Keras 3 image classifiers on TensorFlow."
    line = kind(prog="tfpar", description=about, epilog=EXIT_CODES)
    line.add_argument("--version", action="version", version=f"tfpar {__version__}")
    commands = line.add_subparsers(required=True, metavar="COMMAND")

    def command(name, text):
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(command=functions.get(name, name), usage=added.format_usage)
        added.add_argument("--verbose", action="store_true", help="show TensorFlow's own messages")
        return added

    _add_prepare(command)
    _add_train(command)
    _add_results(command)
    add = command("caffe", "compare a converted Caffe network with OpenCV's, layer by layer").add_argument
    add("what", choices=("check",))
    add("net", help="a prototxt")
    add("weights", help="its caffemodel")
    add("--image", metavar="FILE", help="a picture; default: random numbers")
    add = command("fpga", "turn a quantized twin into a circuit, and print its figures").add_argument
    add("twin", metavar="TWIN.keras", help="made by tfpar.fpga.quantized and fit")
    add("data", help="a prepared directory, or a source as for prepare; its validation images are compared")
    add("directory", help="where the circuit goes")
    add("--device", choices=("25k", "45k", "85k"), default="25k", help="of Lattice's ECP5; default 25k")
    add("--no-route", action="store_true", help="end after synthesis: no clock, no bitstream")
    _add_launch(command)
    _add_kubernetes(command, functions.get("--dockerfile"))
    _add_scaling(command)
    doctor = command("doctor", "what this machine and these versions can do, and what to fix")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    return line


def check_not_empty(given: argparse.Namespace) -> None:
    """Refuse an empty value, which no option takes: "" from an unset variable of the shell, or [], as Python 3.11 reads `--name=--`.

    Raises:
        errors.SettingsError: names the option.
    """
    for name, value in vars(given).items():
        listed = isinstance(value, list) and name not in ("words", "arguments")  # these are whole commands
        if value in ("", []) or (listed and ("" in value or [] in value)):
            validate.reject(name.replace("_", "-"), "", "a value; an option may be left out")


def _add_setting(add, name: str, **more) -> None:
    """Add the option of a setting, with the default, range, choices and help of its definition."""
    setting = FIELDS[name]
    within, choices = setting.metadata["within"], setting.metadata["choices"]
    if choices:
        more["choices"] = choices
    elif within:
        more["type"] = (_whole if isinstance(within[1], int) else _number)(*within)
    add(f"--{name.replace('_', '-')}", default=setting.default, help=setting.metadata["help"], **more)


def _add_prepare(command) -> None:
    add = command("prepare", "turn any source of images into a verified directory of arrays").add_argument
    add("source", help="digits, a TensorFlow data set, a folder of class folders, or a table (.csv, .parquet)")
    add("directory", help="where it goes")
    add("--image-size", type=_image_size, metavar="S|HxW", help="pixels; default: as they are, mixed sizes 224")
    add("--validation-fraction", type=_number(1e-6, 0.999999), default=0.1, metavar="F", help="default 0.1")
    add("--seed", type=_whole(0, validate.MOST_SEED), default=0, help="of the split; default 0")
    add("--on-bad-image", choices=("skip", "fail"), default="skip", help="default skip: into skipped.csv")
    splits = "whether folders named train, val, ... are splits; default: by their names"
    add("--splits", action=argparse.BooleanOptionalAction, help=splits)
    groups = "keep groups on one side: a table's column, or the first group in a path"
    add("--group-by", metavar="COLUMN|REGEX", help=groups)
    add("--fresh", action="store_true", help="prepare again; the old directory is kept beside")
    add("--tfds-manual-dir", metavar="D", help="files TensorFlow Datasets would otherwise download")


def _add_train(command) -> None:
    add = command("train", "train in stages; the same command continues an interrupted run").add_argument
    add("data", help="a prepared directory, or a source as for prepare")
    add("--run", metavar="DIR", help="where results and checkpoints go; default: runs/NAME")
    add(
        "--model", default="small_cnn",
        help="small_cnn (default), for photographs resnet18 or resnet18_half, resnet20|32|44|56, a keras.applications network, or "
        "caffe:FILE, a prototxt",
    )  # fmt: skip
    add(
        "--weights", type=lambda text: None if text == "none" else text, metavar="none|imagenet|FILE|RUN",
        help="none: random, default; imagenet: downloaded; a file of weights; a run or a .keras file: all layers but the head",
    )  # fmt: skip
    add(
        "--stage", type=_stage, action="append", metavar="E@R[:F][~SCHEDULE][/TRAINABLE]",
        help="epochs at a rate, falling to another by linear or cosine; training all layers, the head, or those named; repeat; "
        "default of sgd: 10@0.2:0.02 and 5@0.02:0; a rate is for a batch of 256: sgd multiplies it by B/256, adamw does not; "
        "the first tenth of the first stage warms up from 0",
    )  # fmt: skip
    add("--freeze", action="store_true", help="train the last layer alone: /head on every stage")
    _add_setting(add, "warmup_epochs", metavar="E")
    _add_setting(add, "scale_learning_rate", action=argparse.BooleanOptionalAction)
    _add_setting(add, "global_batch_size", metavar="B")
    _add_setting(add, "seed")
    add("--simulate", type=_whole(1, validate.MOST_REPLICAS), metavar="N", help="replicas on this machine's CPU")
    add("--optimizer", choices=("sgd", "adamw"), help="default sgd, with momentum 0.9")
    _add_weight_decay(add)
    softened = "crossentropy with labels softened by S; default 0"
    add("--label-smoothing", type=_number(0, 1), default=0.0, metavar="S", help=softened)
    _add_setting(add, "augment")
    _add_setting(add, "class_weights", type=_class_weights, metavar="balanced|W,W,...")
    precisions = ("float32", "mixed_bfloat16", "mixed_float16")
    add("--precision", choices=precisions, default="float32", help="dtype of the computation; default float32")
    add("--caffe-scale", type=_number(-1e30, 1e30), metavar="S", help="factor on the pixels of caffe:FILE")
    add("--caffe-mean", metavar="M|M,M,M|FILE", help="subtracted from the pixels first; in the order of the network")
    add("--caffe-order", choices=("bgr", "rgb"), help="order of the color channels; default bgr")
    add("--solver", metavar="FILE", help="optimizer, rates, batch, decay and end from a Caffe solver")
    _add_how(add)


def _add_weight_decay(add) -> None:
    add("--weight-decay", type=_number(0, 1), metavar="W", help="default 0.0005")
    add(
        "--weight-decay-kind", choices=("decoupled", "l2"),
        help="decoupled (default): each step takes rate x W x weight off, as in AdamW; l2: adds W x weight to the gradient, a "
        "regularizer of each layer, as in Caffe and PyTorch's SGD: with momentum 0.9 ten times as strong",
    )  # fmt: skip
    add(
        "--weight-decay-exclude", type=_not_decayed, metavar="bias,norm",
        help="biases, weights of normalization layers, or both: they do not decay; default: all weights decay",
    )  # fmt: skip


def _add_how(add) -> None:
    """Add what decides how a training is computed, saved and looked at, but not what is trained."""
    _add_setting(add, "shards", metavar="V")
    _add_setting(add, "all_reduce")
    _add_setting(add, "batch_norm")
    add("--xla", action="store_true", help="compile each shard with XLA: half as fast on a CPU, not measured on GPUs")
    add("--deterministic", action="store_true", help="deterministic operations on GPUs; slower")
    _add_setting(add, "steps_per_call", metavar="auto|K", type=_steps_per_call)
    _add_setting(add, "checkpoint_seconds", metavar="S")
    add("--dry-run", action="store_true", help="print steps, memory and time, and train nothing")
    add("--profile", action="store_true", help="print where a step's time goes, and train nothing")
    _add_setting(add, "fresh", action="store_true")


def _add_results(command) -> None:
    add = command("predict", "label new pictures").add_argument
    add("run", help="the directory of a run")
    pictures = "a picture of any size and kind that prepare reads, or a folder of them"
    add("images", nargs="+", metavar="image", help=pictures)
    add("--top", type=_whole(1, 2**20), metavar="K", help="answers; default the best, with --json all")
    add("--json", action="store_true", help="print JSON")

    text = "exact metrics of the final model: JSON; on a terminal a table of the classes too"
    add = command("evaluate", text).add_argument
    add("run", help="the directory of a run")
    add("--data", metavar="DIR", help="default: the data it was trained on")
    add("--split", choices=("validation", "test"), default="validation")

    add = command("compare", "compare settings and results of runs, and draw their curves").add_argument
    add("runs", nargs="+", metavar="run", help="each is compared with the first")
    add("--out", default=".", metavar="PAGE", help="a file or a folder; default: compare.html here")

    text = "how fast this machine answers with the final model, from predict to LiteRT"
    add = command("platforms", text).add_argument
    add("run", help="the directory of a finished run; gets platforms.png")
    most = validate.MOST_BATCH
    add("--batch", type=_whole(1, most), default=256, metavar="B", help="of the throughput; default 256")

    add = command("export", "write the final model for serving: SavedModel, LiteRT or ONNX").add_argument
    add("run", help="the directory of a finished run")
    add("--to", required=True, choices=("saved_model", "tflite", "onnx"))
    add("--out", metavar="PATH", help="default: RUN/export/NAME")


def _add_launch(command) -> None:
    text = "run tfpar train as several workers on this machine; if one dies, all workers restart"
    add = command("launch", text).add_argument
    add("--workers", type=_whole(1, validate.MOST_REPLICAS), required=True, metavar="N")
    add("--logs", metavar="DIR", help="launch.json and a log of each worker; default: RUN/workers")
    add("--restarts", type=_whole(0, 10**6), default=10, metavar="K", help="default 10")
    add("--cores-per-worker", type=_whole(1, 1024), metavar="C", help="default: threads are left alone")
    add("words", nargs="+", metavar="-- train ...", help="the command of every worker")


def _add_kubernetes(command, dockerfile) -> None:
    add = command("kubernetes", "print tfpar train as Kubernetes manifests: one pod for each worker").add_argument
    add("--workers", type=int, required=True, metavar="N", help="pods")
    add("--gpus", type=int, required=True, metavar="G", help="of each worker; 0 trains on CPUs")
    add("--image", required=True, metavar="I", help="an image with tfpar; see --dockerfile")
    add("--target", default="job", metavar="job|jobset", help="job needs no installation")
    add("--name", default="train", help="default: train")
    add("--namespace", help="default: the one kubectl is set to")
    add("--queue", metavar="Q", help="of Kueue")
    add("--data-claim", default="data", metavar="C", help="volume claim, mounted as data; default: data")
    add("--run-claim", default="runs", metavar="C", help="volume claim, mounted as runs; default: runs")
    add("--cpus", type=int, default=4, metavar="C", help="cores of each worker; default 4")
    add("--memory", default="8Gi", metavar="M", help="of each worker; default 8Gi")
    add("--shm", default="1Gi", metavar="M", help="the part of it that is shared; default 1Gi")
    add("--port", type=int, default=12345, help="default 12345")
    add("--deadline", type=int, default=86400, metavar="SECONDS", help="default 86400, a day")
    add("--dockerfile", action=_Print, nargs=0, const=dockerfile, help="print a Dockerfile for the image, and end")
    add("words", nargs="+", metavar="-- train ...", help="the command of every worker")


def _add_scaling(command) -> None:
    text = "measure with DATA how a training scales here, or predict it for many devices"
    add = command("scaling", text).add_argument
    add("data", nargs="?", help="a prepared directory, or a source as for prepare")
    add("--devices", type=_devices, metavar="N,N,...", help="measured: default 1, 2, 4 ..; or predicted")
    add("--all-reduce", choices=("ordered", "fast"), help="default ordered; with --step-ms fast, a ring")
    add("--model", help="to measure: as for train; default small_cnn")
    add("--global-batch-size", type=int, metavar="B", help="to measure: of the most devices")
    add("--seconds", type=float, metavar="S", help="to measure: of all groups together; default 120")
    add("--out", metavar="DIR", help="to measure: where the files go; default runs/NAME.scaling")
    add("--predict", metavar="DIR", help="from what a measurement wrote, or from --step-ms, --batch and --gradient-mb")
    add("--step-ms", type=_number(1e-6, 1e9), metavar="C", help="of a step on one device")
    add("--batch", type=int, metavar="B", help="images of one device in a step")
    add("--gradient-mb", type=float, metavar="S", help="millions of bytes; float32 has 4 bytes for each weight")
    add("--also", type=_also, action="append", metavar="N=MS", help="a step on N devices; repeat")
    add("--machine", metavar="NAME", help="8xH100-NDR ..; a wrong name lists them all; or --per-machine and its links")
    add("--per-machine", type=int, metavar="G", help="devices of each machine")
    add("--inside", type=float, metavar="GB/s", help="of one device inside its machine, in one direction")
    add("--outside", type=float, metavar="GB/s", help="of the whole machine to others, in one direction")
    add("--price", type=float, metavar="P", help="of one device for one hour; needs --images and --epochs")
    add("--images", type=int, metavar="N", help="of an epoch")
    add("--epochs", type=float, metavar="E", help="which a small batch needs; a batch of B needs E (1 + B / 46,000)")
    add("--json", action="store_true", help="print the prediction as JSON")


class _Print(argparse.Action):
    """Print what the function `const` returns, and end."""

    def __call__(self, parser, namespace, values, option_string=None):
        print(self.const(), end="")
        parser.exit()
