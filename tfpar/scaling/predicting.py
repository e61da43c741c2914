"""Predict the time of a step on many devices from its time on few; `formulas` has the formulas and their sources.

Example:
    >>> measured = scaling.Measured(0.3485, 128, 102.2e6, steps={8: 0.3546, 16: 0.3582})
    >>> table = scaling.predict(measured, "8xV100-EDR", [32, 64])
    >>> table["basis"][0].as_py(), round(table["efficiency"][0].as_py(), 2)
    ('two sizes, several machines', 0.96)
"""

import csv
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from tfpar import errors, validate
from tfpar.scaling import formulas

_LOSS = (3.7, 0.34)  # times the predicted loss 1 / efficiency - 1: 80% of the published points lie between
_POINTS = 0.04  # of efficiency, to both sides: the same for two sizes
_QUARTER_SAVED = 0.75


@dataclasses.dataclass(frozen=True)
class Machine:
    """A kind of machine, and the bandwidths inside it and between several of them.

    Args:
        devices: the number of devices in a machine.
        inside: GB/s from one device to the others of its machine, in one direction; None where there is one device.
        outside: GB/s from the whole machine to other machines, in one direction; None where there is one machine.
        source: where the figures come from, in words.

    Raises:
        errors.SettingsError: a figure is missing or out of its range.
    """

    devices: int
    inside: float | None
    outside: float | None
    source: str = "given"

    def __post_init__(self):
        validate.integer("devices of a machine", self.devices, 1, 4096)
        if self.inside is not None or self.devices > 1:
            validate.number("GB/s inside the machine", self.inside, 1e-6, 1e6)
        if self.outside is not None:
            validate.number("GB/s outside the machine", self.outside, 1e-6, 1e6)


with open(Path(__file__).with_name("machines.csv"), newline="", encoding="utf-8") as _file:
    MACHINES: dict[str, Machine] = {
        name: Machine(int(devices), float(inside), float(outside), source)
        for name, devices, inside, outside, source in list(csv.reader(_file))[1:]
    }


@dataclasses.dataclass(frozen=True)
class Measured:
    """A measured training, from which others are predicted.

    Args:
        step_seconds: of a step on one device.
        batch: images of one device in a step.
        gradient_bytes: size of the gradient: 4 bytes for each trainable weight in float32.
        steps: seconds of a step, by the number of devices, each with that batch. To predict several machines well, give one whole
            machine and a larger number of machines.
        samples: seconds of single steps of one device, none or at least 30; they give the jitter.
        input_images_per_second: images that the input pipeline of one machine delivers; None where it never limits.
        all_reduce: "fast" (a ring) or "ordered" (by pairs, the default of `measure` and of training).
        one_machine: whether all sizes were measured in one machine, as those of a `Report` are.

    Raises:
        errors.SettingsError: a value is out of its range.
    """

    step_seconds: float
    batch: int
    gradient_bytes: float
    steps: Mapping[int, float] = dataclasses.field(default_factory=dict)
    samples: Sequence[float] = ()
    input_images_per_second: float | None = None
    all_reduce: str = "fast"
    one_machine: bool = False

    def __post_init__(self):
        validate.integer("batch", self.batch, 1, validate.MOST_BATCH)
        if not isinstance(self.steps, Mapping):
            validate.reject("steps", self.steps, "a dictionary from the number of devices to seconds: {8: 0.35}")
        for size, seconds in {1: self.step_seconds, **self.steps}.items():
            validate.integer("devices", size, 1, validate.MOST_DEVICES)
            validate.number(f"seconds of a step on {size}", seconds, 1e-9, 1e6)
        validate.number("gradient_bytes", self.gradient_bytes, 0, 1e15)
        validate.choice("all_reduce", self.all_reduce, ("ordered", "fast"))
        validate.boolean("one_machine", self.one_machine)
        if self.input_images_per_second is not None:
            validate.number("input_images_per_second", self.input_images_per_second, 1e-3, 1e12)
        rule = f"give {formulas.LEAST_SAMPLES} or more step times in seconds, or none"
        with errors.translated((TypeError, ValueError), errors.SettingsError, f"samples: {errors.REASON}; {rule}"):
            samples = np.asarray(self.samples, float)
        right = samples.ndim == 1 and ((samples > 0) & (samples < math.inf)).all()
        if not right or 0 < len(samples) < formulas.LEAST_SAMPLES:
            raise errors.SettingsError(f"samples {list(samples.shape)}: {rule}")


def predict(
    measured: Measured, machine: Machine | str, devices: Iterable[int] | int, *, price: float | None = None,
    images: int | None = None, epochs: float | None = None, critical_batch: float = formulas.CRITICAL_BATCH,
) -> pa.Table:  # fmt: skip
    """Return one row for each number of devices; the metadata of the schema holds the knee.

    The knee is the last doubling of the devices that still saves a quarter of the time.

    Args:
        measured: a `Measured`, or a `Report` of `measure`. Its step on one device is not converted to another kind of device.
        machine: a `Machine`, or a name in `MACHINES`. If it has one device and `measured` has several sizes of one machine, each
            machine gets the largest of them.
        devices: numbers of devices, each with the measured batch.
        price: of one device for one hour; needs `images` and `epochs`.
        images: of an epoch.
        epochs: which a small global batch needs; a batch of B needs `epochs (1 + B / critical_batch)`.
        critical_batch: global batch that needs twice the epochs of a small one; 46,000 is ResNet-50 on ImageNet.

    Returns:
        A table with the columns devices, step_ms, images_per_second, efficiency, low, high, basis, compute_ms, jitter_ms,
        exchange_ms and software_ms; with `images` and `epochs` hours, with `price` cost. `efficiency` is images per second of a
        device over those of one device alone; low and high are its band, which holds for 80% of the published measurements with
        the same basis. The four parts add up to the step, which is longer where the input limits it.

    Raises:
        errors.SettingsError: a value is out of its range, or a figure or a measured size is missing.
    """
    measured = measured.measured() if hasattr(measured, "measured") else measured
    machine = MACHINES.get(machine, machine) if isinstance(machine, str) else machine
    if not isinstance(measured, Measured):
        validate.reject("measured", measured, "a Report of scaling.measure, or a scaling.Measured")
    if not isinstance(machine, Machine):
        validate.reject("machine", machine, f"{', '.join(MACHINES)} or a scaling.Machine with the figures of yours")
    if measured.one_machine and (most := max(measured.steps, default=1)) > machine.devices:
        if machine.devices > 1:
            raise errors.SettingsError(f"{most} devices of one machine were measured: give a machine of {most} or more")
        machine = dataclasses.replace(machine, devices=most)
    if (images is None) != (epochs is None) or (price is not None and images is None):
        told = f"price={price}, images={images}, epochs={epochs}"
        raise errors.SettingsError(f"{told}: give images and epochs together; a price needs both")
    if critical_batch != math.inf:
        validate.number("critical_batch", critical_batch, 1e-9, 1e300)
    given = devices if np.iterable(devices) else [devices]
    n = np.array([validate.integer("devices", each, 1, validate.MOST_DEVICES) for each in given], int)
    step, basis, jitter, exchange, software = _steps(measured, machine, n)
    rate, efficiency = n * measured.batch / step, measured.step_seconds / step
    low, high = _band(efficiency, basis, _unseen(measured, n))
    columns = {
        "devices": n, "step_ms": 1e3 * step, "images_per_second": rate, "efficiency": efficiency, "low": low, "high": high,
        "basis": basis, "compute_ms": np.full(len(n), 1e3 * measured.step_seconds), "jitter_ms": 1e3 * jitter,
        "exchange_ms": 1e3 * exchange, "software_ms": 1e3 * software,
    }  # fmt: skip
    if images is not None:
        seen = validate.number("epochs", epochs, 1e-6, 1e9) * validate.integer("images", images, 1, 10**12)
        columns["hours"] = seen * (1 + n * measured.batch / critical_batch) / rate / 3600
    if price is not None:
        columns["cost"] = columns["hours"] * n * validate.number("price", price, 0, 1e9)
    return pa.table(columns).replace_schema_metadata({"knee": str(_knee(measured, machine, critical_batch))})


def _steps(measured: Measured, machine: Machine, n: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the seconds of a step, on what each is based, and the seconds of jitter, exchange and software."""
    g, known = machine.devices, {1: measured.step_seconds, **measured.steps}
    inside, most = max((size for size in known if 1 < size <= g), default=1), max(known)
    sizes = np.append(n, [inside, most])
    if machine.outside is None and sizes.max() > g:
        raise errors.SettingsError(f"{sizes.max()} devices, {g} in a machine: give the GB/s outside the machine")
    jitter = measured.step_seconds * formulas.jitter(sizes, measured.samples)
    exchange = formulas.exchange(sizes, machine, measured.gradient_bytes, all_reduce=measured.all_reduce)
    formula = measured.step_seconds + jitter + exchange
    step = np.maximum(formula[:-2] + (known[inside] - formula[-2]), min(known.values()))
    names = (formulas.BETWEEN, formulas.INSIDE) if inside > 1 else (formulas.ONE_DEVICE, formulas.ONE_DEVICE)
    basis = np.where(n > g, *names).astype(object)
    if most > g:
        if g not in known:
            raise errors.SettingsError(f"{most} devices were measured, not one machine of {g}: measure {g} devices too")
        share = (1 - 1 / np.ceil(n / g)) / (1 - 1 / np.ceil(most / g))
        several = known[g] + max(0, known[most] - known[g]) * share + jitter[:-2] - jitter[-1]
        step, basis = np.where(n > g, several, step), np.where(n > g, formulas.SEVERAL, basis)
    for size, seconds in known.items():
        step[n == size], basis[n == size] = seconds, formulas.MEASURED
    images = measured.batch * np.minimum(n, g)  # of a machine, whose devices share one input pipeline
    limited = np.maximum(step, images / (measured.input_images_per_second or math.inf))
    return limited, basis, jitter[:-2], exchange[:-2], step - formula[:-2]


def _unseen(measured: Measured, n: np.ndarray) -> np.ndarray:
    """Return the part of the jitter that lies beyond the samples, as a share of a step; 0 without samples."""
    if not len(measured.samples):
        return np.zeros(len(n))
    found = formulas.jitter([*n, len(measured.samples) / 3], measured.samples)
    return np.maximum(found[:-1] - found[-1], 0)


def _band(efficiency: np.ndarray, basis: np.ndarray, unseen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest efficiency of each row; the unseen jitter may be twice as much, or none."""
    loss, wide = np.maximum(1 / efficiency - 1, 0), np.isin(basis, (formulas.ONE_DEVICE, formulas.BETWEEN))
    low = np.where(wide, 1 / (1 + _LOSS[0] * loss), np.maximum(efficiency - _POINTS, 1e-6))
    high = np.where(wide, 1 / (1 + _LOSS[1] * loss), efficiency + _POINTS)
    low, high = 1 / (1 / low + unseen), np.maximum(1 / np.maximum(1 / high - unseen, 1), efficiency)
    bounds = np.minimum(low, efficiency), high
    return tuple(np.where(basis == formulas.MEASURED, efficiency, bound) for bound in bounds)


def _knee(measured: Measured, machine: Machine, critical_batch: float) -> int:
    """Return the last number of devices up to which each doubling leaves three quarters of the time or less; at least 1."""
    n = 2 ** np.arange(17 if machine.outside else machine.devices.bit_length())
    time = (1 + n * measured.batch / critical_batch) * _steps(measured, machine, n)[0] / n
    return int(n[np.cumprod(time[1:] <= _QUARTER_SAVED * time[:-1]).sum()])
