"""What decides whether a run may continue: its settings, model and data must agree; a changed environment is reported."""

import contextlib
import hashlib
import inspect
import json
import os
import platform
import re
import types
from collections.abc import Iterable, Iterator
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from keras.src.utils import python_utils
from tensorflow.python.framework.config import is_op_determinism_enabled
from tensorflow.python.util import _pywrap_util_port

from tfpar import __version__, errors, machine, validate
from tfpar.prepare import Dataset
from tfpar.settings import Settings
from tfpar.steps import objective
from tfpar.steps.shard import is_compiled_by_xla

# Of the step and of inference; a change of their bits counts it up. 2: sums of three and more in a fixed order. 3: layers are called as Keras
# calls them, which matters to their dtype where it is not the model's, and to state that a layer reads after it has assigned it.
ARITHMETIC = 3
WORDS = {"data": "the data's fingerprint", "jit_compile": "XLA", "inside_own_layers": "the inside of your layers"}

PLACES_OF_NAMES = ("name", "keras_history", "input_layers", "output_layers")  # of layers, in Keras' configurations
# These call the class with its configuration.
FROM_CONFIG = (keras.Layer.from_config.__func__, keras.Model.from_config.__func__)

lambdas_without_lines = mock.patch.object(python_utils, "func_dump", lambda function: _without_lines(function))


@lambdas_without_lines
def fingerprint(model: keras.Model, data: Dataset, settings: Settings) -> dict:
    """Return what a continued run must have again, as plain JSON values: model, data and settings."""
    values = {
        "model": _without_count(model),
        "model_config": _model_fingerprint(model),
        "optimizer": _plain(keras.optimizers.serialize(model.optimizer)),
        "excluded_from_weight_decay": _not_decayed(model),
        "loss": _plain(objective.name_of(model)),
        "precision": keras.config.dtype_policy().name,
        "jit_compile": is_compiled_by_xla(model),
        "data": data.fingerprint,
        **settings.that_decide_the_bits(),
    }
    loss = keras.tree.flatten(model.loss)[0]
    if not isinstance(loss, str) and not getattr(loss, "__module__", "").startswith("keras."):
        values["loss_gives"] = _value_of(loss, data.num_classes)
    inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if rates := getattr(inner, "lr_mult", None):  # of caffe.solver; no configuration holds them
        values["lr_mult"] = dict(rates)
    if inside := _inside_own_layers(model):
        values["inside_own_layers"] = inside
    return json.loads(json.dumps(values, default=_number))


@lambdas_without_lines
def agree(earlier: dict, now: dict, model: keras.Model, *, of_keras: str = keras.__version__) -> None:
    """Refuse to continue a run with other settings; stages may be added at the end. `of_keras` is the version that began the run.

    A run of an earlier version computed batch normalization as Keras does, and its hash holds the names that Keras had counted inside of
    other layers.

    Raises:
        errors.SettingsError: names each setting that differs, with both values.
    """
    comparable = now | {"stages": now["stages"][: len(earlier["stages"])]}
    of_model = {"model_config": _model_fingerprint, "inside_own_layers": _inside_own_layers}
    outer = comparable | {key: hashed(model, outer=True) for key, hashed in of_model.items()}
    differing = "; ".join(
        f"{WORDS.get(key, key)} is {_short(value)} in the run, {_short(now.get(key))} now"
        for key, value in ({"batch_norm": "keras", "lr_mult": None} | earlier).items()
        if value not in (comparable.get(key), outer.get(key))
    )
    if differing:
        todo = "Give those again, another --run, or --fresh"
        if "model_config is" in differing and of_keras != keras.__version__:
            why = f"Keras {keras.__version__} may write the same model otherwise than {of_keras}, which began the run"
            todo = f"{why}: continue with keras=={of_keras}, another --run, or --fresh"
        raise errors.SettingsError(f"the run was begun with other settings: {differing}. {todo}")


def check_fit(model: keras.Model, data: Dataset, class_weights=None) -> list[float] | None:
    """Refuse a model that does not take the data's pictures, or give logits for its classes; return the class weights as numbers.

    Raises:
        errors.SettingsError: with what both have.
    """
    if not isinstance(data, Dataset):
        validate.reject("data", data, "what prepare.dataset or prepare.load returned")
    if model.inputs[0].dtype != "uint8":
        dtype = model.inputs[0].dtype
        raise errors.SettingsError(f"the model takes {dtype} images; begin it with keras.Input(..., dtype='uint8')")
    if model.output_shape[-1] != data.num_classes or tuple(model.input_shape[1:]) != tuple(data.image_shape):
        takes = f"the model takes {model.input_shape[1:]} and gives {model.output_shape[-1]} logits"
        has = f"the data has {tuple(data.image_shape)} and {data.num_classes} classes"
        raise errors.SettingsError(f"{takes}; {has}. Give both the same")
    if isinstance(class_weights, str) and class_weights == "balanced":
        counts = np.bincount(data.train.labels, minlength=data.num_classes)
        class_weights = len(data.train.labels) / (data.num_classes * counts)
    return validate.class_weights(class_weights, data.num_classes)


def check_opens_again(model: keras.Model) -> None:
    """Refuse a layer of the user's own that Keras could not build from its `get_config`, or would build with another argument: the run's
    models would not open, or give something else.

    Raises:
        errors.SettingsError: names the argument that is missing or lost.
    """
    todo = "let get_config return every argument of __init__, and let __init__ take **kwargs"
    for layer in _own_layers_in_config(model):
        kind, config, given = type(layer), layer.get_config(), getattr(layer._auto_config, "config", {})
        if getattr(kind.from_config, "__func__", None) is keras.Sequential.from_config.__func__:
            why = f"layer {layer.name}: Keras opens it as {kind.__name__}(name=...) and adds its layers; create them in a function, not in __init__"
            with errors.translated((TypeError, ValueError), errors.SettingsError, why):
                if kind(name=layer.name).layers:
                    raise TypeError
        if getattr(kind.from_config, "__func__", None) not in FROM_CONFIG or "layers" in config:
            continue
        why = f"layer {layer.name}: Keras cannot build {kind.__name__} from its get_config ({errors.REASON}); {todo}"
        with errors.translated(TypeError, errors.SettingsError, why):
            taken = inspect.signature(kind.__init__).bind(layer, **config)
        taken.apply_defaults()
        for name in given.keys() - config:
            if taken.arguments.get(name, given[name]) != given[name]:
                why = f"layer {layer.name}: get_config of {kind.__name__} leaves out {name}"
                raise errors.SettingsError(f"{why}, so the saved model would open with its default; {todo}")


def environment() -> dict:
    """Return what bits depend on beside the settings: versions, processor, threads, and what a test computation gives.

    `computed` holds a hash of each result of `_test_computation`: it also notices what no other entry names.
    """
    cores = len(machine.cores())
    threading, details = tf.config.threading, tf.config.experimental.get_device_details
    return {
        "tfpar": __version__,
        "arithmetic": ARITHMETIC,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "processor": machine.cpuinfo("model name") or platform.processor() or platform.machine(),
        "instructions": machine.instructions(),
        "gpus": [details(gpu).get("device_name", "GPU") for gpu in tf.config.list_physical_devices("GPU")],
        "cores": cores,
        "intra_op_threads": _threads(threading.get_intra_op_parallelism_threads(), "TF_NUM_INTRAOP_THREADS", cores),
        "inter_op_threads": _threads(threading.get_inter_op_parallelism_threads(), "TF_NUM_INTEROP_THREADS", cores),
        "deterministic": is_op_determinism_enabled(),
        "oneDNN": _pywrap_util_port.IsMklEnabled(),
        "XLA flags": os.environ.get("TF_XLA_FLAGS", ""),
        "computed": _test_computation(),
    }


def tell_changes(earlier: dict, now: dict) -> None:
    """Print one line where the environment of a continued run is another one; an entry that it does not have says nothing."""
    earlier = {"arithmetic": 1, "computed": {}} | earlier
    both = [key for key in now if key in earlier and key != "computed"]
    changed = [f"{key} {earlier[key]} -> {now[key]}" for key in both if earlier[key] != now[key]]
    computed = [name for name, value in now["computed"].items() if earlier["computed"].get(name, value) != value]
    if computed:
        changed.append(f"a test computation gives other bits: {', '.join(computed)}")
    if changed:
        print(f"environment changed since this run began ({'; '.join(changed)}): the last bits may differ from now on")


def _threads(configured: int, variable: str, cores: int) -> int:
    """Return the threads of one of TensorFlow's pools: as configured, otherwise as the environment says, otherwise one a core."""
    given = os.environ.get(variable, "")
    return configured or (int(given) if given.isdecimal() and int(given) else cores)


def _test_computation() -> dict[str, str]:
    """Return a hash of each result of a small computation whose bits depend on processor, threads, oneDNN and XLA."""

    def compute(images, kernel, matrix):
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            features = tf.nn.conv2d(images, kernel, 1, "SAME")
            loss = tf.reduce_mean(tf.square(tf.tanh(features - tf.reduce_mean(features, [0, 1, 2]))))
        return {
            "convolution": features,
            "its gradient": tape.gradient(loss, kernel),
            "matrix product": tf.linalg.matmul(matrix, matrix, transpose_a=True),
            "sum": tf.reduce_sum(images),
            "element by element": tf.exp(tf.tanh(matrix) * 0.3 + matrix * 0.7) - matrix,
        }

    draw = np.random.default_rng(0)
    shapes = ((16, 48, 48, 16), (3, 3, 16, 16), (1000, 300))
    with tf.device("CPU:0"):
        given = [tf.constant(draw.standard_normal(shape, np.float32)) for shape in shapes]
        # Not called through tf.function, which after five runs in a process warns of retracing.
        found = tf.function(compute).get_concrete_function(*given)(*given)
    return {name: hashlib.sha256(value.numpy().tobytes()).hexdigest()[:8] for name, value in found.items()}


def _model_fingerprint(model: keras.Model, *, outer: bool = False) -> str:
    """Return a hash of what a model is made of; the names Keras counts up within a process do not matter (`outer`: only those of
    layers that are in no other layer)."""
    # NotImplementedError: a class without get_config; OSError: a lambda without its source; TypeError: a value that Keras cannot write.
    why = f"model {model.name} cannot be saved: {errors.REASON}; write functions with def, and get_config for classes"
    with errors.translated((NotImplementedError, OSError, TypeError), errors.SettingsError, why):
        config = model.get_config()
        model.get_compile_config()  # a loss or a metric that Keras could not write at the end of the stage
    inside = () if outer else model._flatten_layers(include_self=False)
    names = [*_operation_names(model), *_names_in(inside)]
    text = _numbered(config | {"name": _without_count(model)}, names, outer=outer)
    text = re.sub(r'"input_layer_\d+"', '"input_layer"', text)  # of a Sequential, whose list of layers lacks it
    weights = [[list(v.shape), v.dtype, v.trainable] for v in model.variables]
    return hashlib.sha256((text + json.dumps(weights)).encode()).hexdigest()[:16]


def _inside_own_layers(model: keras.Model, *, outer: bool = False) -> str:
    """Return a hash of the layers inside layers or models of the user's own, empty where there are none: the configuration of the
    outer one need not hold what they are made of, such as their regularizers."""
    own = [layer for layer in model._flatten_layers() if _is_own(layer)]
    inside, configs = [layer for outer in own for layer in outer._flatten_layers(include_self=False)], []
    for layer in inside:
        with contextlib.suppress(NotImplementedError):  # a layer without get_config; the layers inside it follow
            config = layer.get_config()
            with contextlib.suppress(OSError, TypeError):  # Keras cannot write it, and saves the outer layer alone
                configs.append(keras.saving.serialize_keras_object(config))
    text = _numbered(configs, _names_in(inside), outer=outer)
    return hashlib.sha256(text.encode()).hexdigest()[:16] if configs else ""


def _own_layers_in_config(layer: keras.Layer) -> Iterator[keras.Layer]:
    """Yield the layers of the user's own that Keras writes, not those that such a layer creates inside."""
    if _is_own(layer):
        yield layer
    if not _is_own(layer) or "layers" in layer.get_config():
        for inside in layer._flatten_layers(include_self=False, recursive=False):
            yield from _own_layers_in_config(inside)


def _is_own(layer: keras.Layer) -> bool:
    return not type(layer).__module__.startswith("keras.")


def _without_lines(function) -> tuple:
    """Stand in for how Keras writes a lambda, whose file and line count there: a comment above it, or another start of a notebook,
    would make another model."""

    def plain(code):
        sets = [sorted(map(repr, each)) for each in code.co_consts if isinstance(each, frozenset)]  # in no fixed order
        others = [each for each in code.co_consts if not isinstance(each, frozenset)]
        inside = [plain(each) if isinstance(each, types.CodeType) else repr(each) for each in others]
        return [code.co_code.hex(), code.co_names, sets, inside]

    return plain(function.__code__), function.__defaults__, [cell.cell_contents for cell in function.__closure__ or ()]


def _numbered(config, names: Iterable[str], *, outer: bool) -> str:
    """Return a configuration as text, with numbers in place of these names where a name stands; an earlier version replaced them anywhere."""
    text = json.dumps(config, sort_keys=True, default=_number)
    numbers = {name: f"#{number}" for number, name in enumerate(dict.fromkeys(names))}
    if outer:
        for name, number in numbers.items():
            text = text.replace(json.dumps(name), f'"{number}"')
        return text

    def numbered(value, key=""):
        if isinstance(value, dict):
            return {key: numbered(each, key) for key, each in value.items()}
        if isinstance(value, list):
            return [numbered(each, key) for each in value]
        return numbers.get(value, value) if key in PLACES_OF_NAMES else value

    return json.dumps(numbered(json.loads(text)))


def _without_count(model: keras.Model) -> str:
    """Return the name of a model, without the number by which Keras tells models without a name of their own apart."""
    own = re.sub(r"(?<!^)(?=[A-Z])", "_", type(model).__name__).lower()
    return own if re.fullmatch(rf"{own}_\d+", model.name) else model.name


def _not_decayed(model: keras.Model) -> list[int]:
    """Return the numbers of the variables that `exclude_from_weight_decay` names, which no configuration holds."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return [i for i, v in enumerate(model.trainable_variables) if not optimizer._use_weight_decay(v)]


def _value_of(loss, classes: int) -> str:
    """Return what a loss of the user's own gives for some logits, in four digits: its configuration may leave something out."""
    logits = tf.constant(np.random.default_rng(0).standard_normal((8, classes)), tf.float32)
    labels = tf.constant(np.arange(8) % classes)
    found = []
    for given in (labels, tf.one_hot(labels, classes)):
        try:
            found.append(f"{float(tf.reduce_mean(loss(given, logits))):.3e}")
        except objective.MISTAKES:  # it takes the labels in the other form
            found.append("")
    return " ".join(found)


def _names_in(layers: Iterable[keras.Layer]):
    for layer in layers:
        yield from (layer.name, *_operation_names(layer))


def _operation_names(model: keras.Model):
    for operation in getattr(model, "operations", getattr(model, "layers", ())):
        yield operation.name
        if isinstance(operation, keras.Model):
            yield from _operation_names(operation)


def _plain(serialized) -> dict | str:
    """Leave out what the run sets itself, or Keras counts up."""
    if not isinstance(serialized, dict):
        return str(serialized)
    if "weights" in serialized:
        return serialized | {"loss": _plain(serialized["loss"])}
    if not isinstance(serialized["config"], dict):  # a function
        return str(serialized["config"])
    config = {key: value for key, value in serialized["config"].items() if key not in ("learning_rate", "name")}
    if isinstance(config.get("inner_optimizer"), dict):
        config["inner_optimizer"] = _plain(config["inner_optimizer"])
    return {"class": serialized["class_name"], **config}


def _number(value):
    return value.item() if hasattr(value, "item") else str(value)


def _short(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 300 else f"{text[:297]}..."
