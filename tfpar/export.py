"""A run's model for serving: as TensorFlow's SavedModel, for LiteRT (TensorFlow Lite) on phones, or as ONNX.

Keras writes the file (`keras.Model.export`). It is kept only if it answers like the run's model for 64
validation images. Input: `uint8[batch, height, width, channels]`, as the pictures are; output: logits `float32[batch, classes]`.

Example:
    >>> export.write("runs/digits", "saved_model")
    PosixPath('runs/digits/export/saved_model')
"""

import importlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tfpar import errors, files, prepare, results, screen, validate
from tfpar.results import predictions

# The name of the file, Keras' name of the format, the packages beside TensorFlow, and the largest difference of a probability.
FORMATS = {
    "saved_model": ("saved_model", "tf_saved_model", (), 1e-5),
    "tflite": ("model.tflite", "litert", ("ai_edge_litert",), 1e-4),
    "onnx": ("model.onnx", "onnx", ("tf2onnx", "onnxruntime"), 1e-5),
}
ROUNDING = {"bfloat16": 2e-2, "float16": 2e-3}  # the same where layers compute in 16 bits: a few of their last digits
IMAGES = 64  # that are compared


def write(run: str | os.PathLike, to: str, out: str | os.PathLike | None = None) -> Path:
    """Write the final model of a run in another format, and return where.

    Args:
        run: directory of a finished run.
        to: `"saved_model"`, `"tflite"` or `"onnx"`.
        out: where it goes; None is `RUN/export/` and the name of the format.

    Raises:
        errors.InputNotFound: the run is not finished.
        errors.SettingsError: the data is no longer that of the run.
        errors.Unavailable: a package that the format needs is not installed.
        errors.OutputError: there is something at `out` already.
        RuntimeError: the written file does not answer like the run; it is removed.
    """
    run = results.Run(run)
    data = data_of(run)
    name, _, _, most = FORMATS[validate.choice("to", to, tuple(FORMATS))]
    require(to)
    target = run.directory / "export" / name if out is None else validate.path("out", out)
    if target.exists():
        raise errors.OutputError(f"{target}: exists already; remove it, or give another --out")
    from tfpar.steps import accepted

    model = accepted.check_dtypes(run.model(compile=False))
    most = max([most, *(ROUNDING.get(layer.compute_dtype, 0) for layer in model._flatten_layers())])
    images, stored = data.validation.images[:IMAGES], predictions.probabilities_of(run.predictions())[:IMAGES]
    here = predictions.softmax(np.asarray(model(images)))
    if (apart := np.abs(here - stored).max()) > most:
        both = f"the run's own probabilities are {apart:.0e} from those of its model on this machine"
        print(f"{both}; the file is compared with these")
    files.make_directory(target.parent)
    unfinished = target.with_name(f".{target.name}{Path(name).suffix}")  # Keras looks at the suffix
    files.remove(unfinished)
    try:
        difference = np.abs(predictions.softmax(convert(model, unfinished, to)(images)) - here).max()
        if not difference <= most:
            both = f"its probabilities differ from the model's by {difference:.1e}"
            raise RuntimeError(f"{target}: {both}; it is not kept")
        unfinished.rename(target)
    finally:
        files.remove(unfinished)
    return target


def data_of(run: results.Run) -> prepare.Dataset:
    """Return the data of a finished run, with which its model's answers are compared.

    Raises:
        errors.InputNotFound: the run is not finished.
        errors.SettingsError: the data is no longer that of the run.
    """
    if not run.finished:
        raise errors.InputNotFound(f"{run.directory}: the run is not finished; run the command that trains it again")
    data = prepare.load(run.data_directory)
    if data.fingerprint != run.facts["data"]["fingerprint"]:
        why = "prepared again since the run, so its answers cannot be compared"
        raise errors.SettingsError(f"{data.directory}: {why}; train again")
    return data


def convert(model, path: Path, to: str, **options) -> Callable:
    """Write a model in a format, and return the function that answers from the file: images in, logits out.

    Args:
        model: a `keras.Model`.
        path: a `.tflite` file for `"tflite"`.
        to: as for `write`.
        options: for Keras' exporter, such as `optimizations` and `representative_dataset`, with which LiteRT computes in int8.

    Raises:
        errors.Unavailable: a package that the format needs is not installed.
    """
    require(to)
    with screen.quiet(True):
        model.export(path, format=FORMATS[to][1], verbose=False, **options)
    return _READERS[to](path)


def require(to: str) -> None:
    """Check that the packages of a format are installed.

    Raises:
        errors.Unavailable: one is not; the message says how to install it.
    """
    extra = "litert" if to == "tflite" else "export"
    for package in FORMATS[to][2]:
        missing = f"{to} needs {package}, which is not installed: pip install 'tfpar[{extra}]'"
        with errors.translated(ImportError, errors.Unavailable, missing):
            importlib.import_module(package)


def _saved_model(path: Path) -> Callable:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    return lambda images: loaded.serve(images).numpy()


def tflite(path: Path, *, threads: int | None = None) -> Callable:
    """Return the function that answers from a `.tflite` file; it plans its memory anew when the shape of the images changes."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter, planned = Interpreter(str(path), num_threads=threads), None
    given, made = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def answer(images):
        nonlocal planned
        if images.shape != planned:
            interpreter.resize_tensor_input(given, images.shape)
            interpreter.allocate_tensors()
            planned = images.shape
        interpreter.set_tensor(given, images)
        interpreter.invoke()
        return interpreter.get_tensor(made)

    return answer


def _onnx(path: Path) -> Callable:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    return lambda images: session.run(None, {session.get_inputs()[0].name: images})[0]


_READERS = {"saved_model": _saved_model, "tflite": tflite, "onnx": _onnx}
