"""A solver of Caffe as an optimizer, regularizers and one stage."""

import functools
import itertools
import math
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from tfpar import errors, schedule, validate
from tfpar.models import decay
from tfpar.models.caffe import conversion, files
from tfpar.models.caffe.building import Network
from tfpar.models.caffe.files import File, refuse
from tfpar.models.caffe.selection import Selection
from tfpar.schedule import Schedule, Stage

# Caffe's policies: the name of each in `schedule`, whose `gamma` and `power` are fields of the solver, and the field with its steps.
POLICIES = {
    "fixed": ("constant", None), "step": ("step", "stepsize"), "exp": ("exp", None), "inv": ("inv", None),
    "multistep": ("multistep", "stepvalue"), "poly": ("poly", "max_iter"), "sigmoid": ("sigmoid", "stepsize"),
}  # fmt: skip
# The optimizer of each type, in the order of the older `solver_type`, and the fields of its arguments.
OPTIMIZERS = {
    "SGD": (keras.optimizers.SGD, {"momentum": "momentum"}),
    "Nesterov": (functools.partial(keras.optimizers.SGD, nesterov=True), {"momentum": "momentum"}),
    "AdaGrad": (functools.partial(keras.optimizers.Adagrad, initial_accumulator_value=0.0), {"epsilon": "delta"}),
    "RMSProp": (keras.optimizers.RMSprop, {"rho": "rms_decay", "epsilon": "delta"}),
    "AdaDelta": (keras.optimizers.Adadelta, {"rho": "momentum", "epsilon": "delta"}),
    "Adam": (keras.optimizers.Adam, {"beta_1": "momentum", "beta_2": "momentum2", "epsilon": "delta"}),
}
READ = {
    "net", "train_net", "base_lr", "max_iter", "iter_size", "lr_policy", "weight_decay", "type", "regularization_type", "clip_gradients",
    "solver_type",
}  # besides the fields of its policy and of its optimizer  # fmt: skip
OUTSIDE = ("AdaGrad", "RMSProp")  # whose delta is outside of the root; Keras' epsilon is inside, so it is the square


class Solver(NamedTuple):
    """What a solver file says, for `compile` and `train.run`.

    Attributes:
        optimizer: with the `lr_mult` of the network.
        stages: one, which ends at `max_iter`.
        global_batch_size: `batch_size * iter_size`.
        weight_decay: of the file; the layers have it as regularizers.
        lr_mult: by the path of a weight its factor on the learning rate, where it is not 1.
        notes: lines about what Keras computes differently, or does not use.
    """

    optimizer: keras.optimizers.Optimizer
    stages: list[Stage]
    global_batch_size: int
    weight_decay: float
    lr_mult: dict[str, float]
    notes: list[str]

    def settings(self) -> dict:
        """Return the arguments of `train.run` that follow from the file: rates are neither scaled nor warmed up."""
        told = {"stages": self.stages, "global_batch_size": self.global_batch_size}
        return told | {"warmup_epochs": 0, "scale_learning_rate": False}


def solver(file: File, model: keras.Model, *, examples: int) -> Solver:
    """Read a solver for a network that `load` has made, and give the network's layers its weight decay.

    Caffe adds the decay to the gradient, so it passes through the momentum: an L2 regularizer, not the decoupled decay of Keras'
    `weight_decay`. `lr_mult` multiplies the learning rate of a weight. With both, SGD and Nesterov agree with Caffe's formulas to
    rounding, Adam and AdaDelta almost; of AdaGrad and RMSProp a note says what differs.

    Args:
        file: a solver prototxt.
        model: made by `load` in this process; its layers get the regularizers.
        examples: of the training split; an epoch is as many.

    Raises:
        errors.InputNotFound, errors.DataError: the file is not there, or it cannot be parsed.
        errors.SettingsError: it asks for what Keras cannot compute, or no batch size is known.

    Example:
        >>> model = caffe.load("lenet_train_test.prototxt", image_shape=(28, 28, 1))
        >>> solver = caffe.solver("lenet_solver.prototxt", model, examples=1600)
        >>> solver.stages
        [Stage(epochs=2, learning_rate=0.01, ..., schedule=Schedule(policy='inv', ..., end=40))]
    """
    network, given = conversion.network_of(model), files.read_solver(file)
    params = [param for of_layer in network.multipliers.values() for param in of_layer]
    fit = all(0 <= number < math.inf for param in params for number in (param.lr_mult, param.decay_mult))
    refuse(not fit, f"model {model.name}: lr_mult and decay_mult must be from 0; correct its prototxt")
    examples = validate.integer("examples", examples, 1, validate.MOST_POSITION)
    _check(file, given)
    batch = (network.batch_size or _batch_size_beside(Path(file), given)) * given.iter_size
    policy, of_steps = POLICIES[given.lr_policy]
    stated = np.atleast_1d(getattr(given, of_steps) if of_steps else []).tolist()
    # As Caffe, which takes one step in an iteration, so that of two equal ones the second comes an iteration later.
    steps = tuple(itertools.accumulate(stated, lambda before, step: max(step, before + 1)))
    refuse(of_steps and not any(steps), f"{file}: lr_policy {given.lr_policy} needs {of_steps}; add it")
    numbers = {name: getattr(given, name) for name in schedule.POLICIES[policy][0] if name != "steps"}
    why = f"{file}: lr_policy {given.lr_policy}, type {given.type}: {errors.REASON}; correct the file"
    with errors.translated(ValueError, errors.DataError, why):
        rates = Schedule(policy, **numbers, steps=steps, end=given.max_iter)
        stage = schedule.checked(Stage(-(-given.max_iter * batch // examples), given.base_lr, schedule=rates))
        optimizer = _optimizer(given)
    if factors := _regularize(network, given):
        _multiply_rates(optimizer, factors)
    used = READ | {*OPTIMIZERS[given.type][1].values(), *numbers, of_steps}
    unused = [field.name for field, _ in given.ListFields() if field.name not in used]
    notes = [f"not used: {', '.join(unused)}"] if unused else []
    if list(steps) != stated:
        notes.append(f"{of_steps} {stated} count as {[*steps]}, because Caffe takes one step in an iteration")
    if given.type in OUTSIDE:
        why = "delta is squared, for Keras adds it inside of the root"
        notes.append(f"{given.type}: {why}; gradients as small as delta move the weights more")
    return Solver(optimizer, [stage], batch, given.weight_decay, factors, notes)


def _check(file: File, given) -> None:
    """Raise an error where a solver says nonsense, or what Keras computes otherwise; set `type` where the older field states it."""
    if given.HasField("solver_type"):  # the older field
        refuse(given.HasField("type"), f"{file}: type and solver_type are one setting; leave solver_type out")
        given.type = [*OPTIMIZERS][given.solver_type]
    words = {"type": OPTIMIZERS, "lr_policy": POLICIES, "regularization_type": ("L1", "L2")}
    for what, known in words.items():
        word = getattr(given, what)
        refuse(word not in known, f"{file}: {what} {word!r}; give one of {', '.join(known)}")
    for name in ("max_iter", "base_lr", "iter_size"):
        refuse(not 0 < getattr(given, name) < math.inf, f"{file}: {name} must be above 0; correct the file")
    for name in ("weight_decay", "momentum", "momentum2", "delta", "rms_decay"):
        refuse(not 0 <= getattr(given, name) < math.inf, f"{file}: {name} must be a number from 0; correct the file")
    refuse(
        given.clip_gradients == 0, f"{file}: clip_gradients 0 stops learning; give a number above 0, or leave it out"
    )
    clips = given.clip_gradients > 0 and (given.weight_decay or given.iter_size > 1)
    why = "Caffe clips before it adds the decay and divides, Keras after; leave one of them out"
    refuse(clips, f"{file}: clip_gradients with weight_decay or iter_size: {why}", errors.SettingsError)


def _batch_size_beside(file: Path, given) -> int:
    """Return the batch size of the network that a solver names, if it lies beside the solver."""
    path = files.beside(file, given.net or given.train_net)
    size = Selection(path, "TRAIN").batch_size if path else None
    why = "no batch size is known: the network has no data layer, and none is beside the solver"
    refuse(not size, f"{file}: {why}; load the prototxt for training", errors.SettingsError)
    return size


def _regularize(network: Network, given) -> dict[str, float]:
    """Give the weights the decay as regularizers, and return the factors on their rates."""
    rates = {}
    for layer, params in network.multipliers.items():
        for weight, param in zip(layer.weights, params, strict=True):
            by = given.weight_decay * param.decay_mult
            kind = keras.regularizers.L1(by) if given.regularization_type == "L1" else keras.regularizers.L2(by / 2)
            decay.regularize(layer, weight, kind if by else None)
            if param.lr_mult != 1:
                rates[weight.path] = param.lr_mult
    return rates


def _optimizer(given) -> keras.optimizers.Optimizer:
    build, fields = OPTIMIZERS[given.type]
    options = {name: getattr(given, field) for name, field in fields.items()}
    if given.type in OUTSIDE:
        options["epsilon"] **= 2
    options["global_clipnorm"] = given.clip_gradients if 0 <= given.clip_gradients < math.inf else None
    return build(given.base_lr, **options)


def _multiply_rates(optimizer: keras.optimizers.Optimizer, rates: dict[str, float]) -> None:
    """Let an optimizer multiply the learning rate of some weights.

    It stays an object of Keras' own class, so that a saved model opens without tfpar; `lr_mult` says what it does.
    """
    update_step = optimizer.update_step

    def multiplied(gradient, variable, learning_rate):
        path = optimizer._trainable_variables[optimizer._get_variable_index(variable)].path
        update_step(gradient, variable, learning_rate * rates.get(path, 1.0))

    optimizer.update_step, optimizer.lr_mult = multiplied, rates
