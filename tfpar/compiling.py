"""From the words of `tfpar train` to a compiled model and its stages."""

import contextlib

from tfpar import errors, files, schedule

CAFFE = "caffe:"  # before the path of a prototxt
DEFAULT_STAGES = {"sgd": ["10@0.2:0.02", "5@0.02:0"], "adamw": ["10@0.001:0.0001", "5@0.0001:0"]}


def stages(given, *, begins: bool = True) -> list:
    """Return the stages that the command names; `--freeze` is the head on each, where the network was not built frozen.

    If a training `begins`, refuse to train the head alone on random weights.
    """
    stages = given.stage or [schedule.parse(text) for text in DEFAULT_STAGES[given.optimizer or "sgd"]]
    named = [stage.trainable for stage in stages if stage.trainable]
    if given.freeze and named:
        both = f"--freeze together with /{named[0]} of a stage"
        raise errors.SettingsError(f"{both}: --freeze is /head on every stage; give one of them")
    if given.freeze and not _built_frozen(given):
        stages = [stage._replace(trainable="head") for stage in stages]
    if begins and not given.weights and all(stage.trainable == "head" for stage in stages):
        raise errors.SettingsError("only the head would train, on random weights; give --weights, or train more layers")
    return stages


def _built_frozen(given) -> bool:
    from tfpar.models import networks

    own = given.model in networks.OWN or given.model.startswith(CAFFE)
    return given.freeze and bool(given.weights) and not networks.is_model(given.weights) and not own


def compiled(given, data) -> tuple:
    """Return the network that the command names, compiled, and the settings of its solver, empty without one."""
    import keras

    from tfpar import models
    from tfpar.models import decay

    _check_caffe_options(given)
    if given.model.startswith(CAFFE):
        model = _caffe(given, data)
    else:
        start = {"weights": given.weights, "freeze": _built_frozen(given)}
        model = models.build(given.model, data.image_shape, data.num_classes, **start)
    if given.weight_decay_kind == "l2":
        decay.add_l2(model, _weight_decay(given), exclude=given.weight_decay_exclude or ())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if given.label_smoothing:
        loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=given.label_smoothing)
    solver = models.caffe.solver(given.solver, model, examples=len(data.train.labels)) if given.solver else None
    for note in solver.notes if solver else ():
        print(f"{given.solver}: {note}")
    optimizer = solver.optimizer if solver else _optimizer(given, model)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=given.xla)
    return model, solver.settings() if solver else {}


def _check_caffe_options(given) -> None:
    """Refuse options of Caffe beside another network, and beside a solver what the solver says."""
    if not given.model.startswith(CAFFE):
        _refuse_beside(given, f"--model {given.model}", ("caffe_scale", "caffe_mean", "caffe_order", "solver"))
    elif given.solver:
        others = ("stage", "optimizer", "global_batch_size", "warmup_epochs", "freeze")
        others += ("weight_decay", "weight_decay_kind", "weight_decay_exclude")
        _refuse_beside(given, f"--solver {given.solver}", others)


def _refuse_beside(given, there: str, names: tuple[str, ...]) -> None:
    for name in names:
        if (value := getattr(given, name)) is not None and value is not False:
            both = f"--{name.replace('_', '-')} beside {there}"
            raise errors.SettingsError(f"{both}: they contradict each other; leave one out")


def _caffe(given, data):
    """Return the network of a prototxt."""
    from tfpar.models import caffe, networks
    from tfpar.models.caffe import conversion

    mean = given.caffe_mean
    with contextlib.suppress(AttributeError, ValueError):  # otherwise a file
        mean = [float(number) for number in mean.split(",")]
    trained = networks.is_model(given.weights)
    model = caffe.load(
        given.model.removeprefix(CAFFE), None if trained else given.weights, image_shape=data.image_shape,
        num_classes=data.num_classes, scale=given.caffe_scale, mean=mean, order=given.caffe_order or "bgr",
        phase="TRAIN",
    )  # fmt: skip
    if trained:
        networks.transfer(model, given.weights)
    params = [param for of_layer in conversion.network_of(model).multipliers.values() for param in of_layer]
    if not given.solver and any((param.lr_mult, param.decay_mult) != (1, 1) for param in params):
        print(f"{given.model.removeprefix(CAFFE)}: its lr_mult and decay_mult take effect with --solver only")
    return model


def weights_name(weights: str | None) -> str:
    """Return what the run remembers of its first weights: a file's name may stay while its bytes change."""
    from tfpar.models import networks

    if weights in (None, "imagenet"):
        return weights or "none"
    return f"sha256:{files.sha256(networks.file_of(weights))}"


def _optimizer(given, model):
    import keras

    from tfpar.models import decay

    decoupled = 0.0 if given.weight_decay_kind == "l2" else _weight_decay(given)
    if given.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(weight_decay=decoupled)
    else:
        optimizer = keras.optimizers.SGD(momentum=0.9, nesterov=True, weight_decay=decoupled)
    optimizer.exclude_from_weight_decay(var_list=decay.excluded(model, given.weight_decay_exclude or ()))
    return optimizer


def _weight_decay(given) -> float:
    return 5e-4 if given.weight_decay is None else given.weight_decay
