"""Predicted efficiency against published: the table of errors of `tfpar.scaling`, beside simpler methods on the same points.

    python -m tests.benchmarks.published [CSV] [--json]

`published_scaling.csv` has 186 throughputs of TensorFlow's benchmarks (2017), DLPerf, the training logs of MLPerf, NVIDIA's
DeepLearningExamples and Goyal et al. 2017. Rows of one `group` are one series; its row `base` is what the others are compared
with; rows `unknown` cannot be predicted, and `note` says why. An error is the difference of the efficiencies in points, against
the base. A row without a figure that its prediction needs is left out, and so is a repetition; both are counted on stderr. A file
that is no such table ends in one line.

The other methods: *linear* loses nothing; *alpha-beta* adds the exchange and nothing else; *Amdahl* keeps the serial fraction
between the two measured sizes; *Karp-Flatt* keeps the serial fraction of the larger one against the base; *keep* keeps the
efficiency of the larger one.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from tfpar import errors, scaling
from tfpar.scaling import formulas

CSV = Path(__file__).with_name("published_scaling.csv")
SINCE_2018 = ("DLPerf", "MLPerf Training logs", "NVIDIA DeepLearningExamples")
ANOTHER_BATCH = "two sizes, another batch"
BASES = (formulas.INSIDE, formulas.SEVERAL, ANOTHER_BATCH, formulas.BETWEEN, formulas.ONE_DEVICE)
COLUMNS = {"group", "kind", "gpus", "local_batch", "grad_MB", "gpus_per_node", "inside_GB_s"}  # no row can do without
OTHERS = ("linear", "alpha-beta", "Amdahl", "Karp-Flatt", "keep")


@dataclasses.dataclass(frozen=True)
class Point:
    """A published row: devices, images of one device, seconds of a step, its efficiency if it is stated, and its kind."""

    devices: int
    batch: int
    seconds: float
    stated: float | None
    kind: str


@dataclasses.dataclass(frozen=True)
class Series:
    """The rows of a group: its base, and the others by their devices."""

    source: str
    exchange: str
    gradient_bytes: float
    machine: scaling.Machine
    base: Point
    points: list[Point]

    @property
    def compute(self) -> float:
        """Return the seconds of a step on one device; from several, those without exchange and jitter."""
        n, seconds = self.base.devices, self.base.seconds
        if n == 1:
            return seconds
        exchange = formulas.exchange([n], self.machine, self.gradient_bytes)
        return float((seconds - exchange[0]) / (1 + formulas.jitter([n])[0]))

    def efficiency(self, point: Point) -> float:
        """Return the images a second of a device, over those of the base; as published where that is stated."""
        if point.stated:
            return point.stated
        return point.batch / point.seconds / (self.base.batch / self.base.seconds)


def read(path: Path) -> tuple[list[Series], int]:
    """Return the series of a table, and the number of rows that repeat another or lack what every row must have."""
    groups, left_out = defaultdict(list), 0
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            missing, rows = COLUMNS - {*(table.fieldnames or ())}, [*table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SystemExit(f"{path}: cannot be read ({error}); give a table in CSV, in UTF-8") from error
    if missing:
        raise SystemExit(f"{path}: no column {', '.join(sorted(missing))}; give the columns of {CSV.name}")
    for row in rows:
        groups[row["group"]].append(row)
    found = []
    for rows in groups.values():
        points = {point: row for row in rows if (point := _point(row))}
        points = [(row, point) for point, row in points.items()]
        base = next(((row, point) for row, point in points if row["kind"] == "base"), None)
        series = _series(*base, [point for _, point in points]) if base else None
        left_out += len(rows) - len(points) if series else len(rows)
        found += [series] if series else []
    return found, left_out


def _point(row: dict) -> Point | None:
    devices, batch, milliseconds, rate = (_number(row, name) for name in ("gpus", "local_batch", "step_ms", "images_s"))
    if not milliseconds and devices and batch and rate:
        milliseconds = 1000 * devices * batch / rate
    if not (devices and batch and milliseconds and devices % 1 == batch % 1 == 0):
        return None
    return Point(int(devices), int(batch), milliseconds / 1000, _number(row, "efficiency"), row.get("kind") or "")


def _series(row: dict, base: Point, points: list[Point]) -> Series | None:
    figures = (_number(row, name) for name in ("gpus_per_node", "inside_GB_s", "node_out_GB_s", "grad_MB"))
    devices, inside, outside, megabytes = figures
    try:
        machine = scaling.Machine(int(devices or 0), inside, outside, row.get("machine") or "")
        scaling.Measured(base.seconds, base.batch, 1e6 * (megabytes or -1))
    except errors.SettingsError:
        return None
    rest = sorted((point for point in points if point != base), key=lambda point: point.devices)
    return Series(row.get("source") or "", row.get("exchange") or "", 1e6 * megabytes, machine, base, rest)


def _number(row: dict, name: str) -> float | None:
    """Return the finite number above 0 in a cell, if there is one."""
    try:
        number = float(row[name])
    except (KeyError, TypeError, ValueError):
        return None
    return number if 0 < number < math.inf else None


# ---- which sizes predict which


def cases(series: Series):
    """Yield (basis, the sizes that the prediction knows, the point to predict) of a series."""
    g, base = series.machine.devices, series.base
    known = [
        point
        for point in series.points
        if point.kind not in ("base", "unknown") and point.batch == base.batch and point.devices > base.devices
    ]
    for point in known:
        yield formulas.ONE_DEVICE, [base], point
    inside = [point for point in known if 2 <= point.devices <= g]
    if series.source in SINCE_2018 and base.devices == 1 and inside:
        for point in inside:
            if point.devices > inside[0].devices:
                yield formulas.INSIDE, [base, inside[0]], point
        for point in known:
            if point.devices > g:
                yield formulas.BETWEEN, [base, inside[-1]], point
    machine = [point for point in [base, *known] if point.devices == g]
    several = [point for point in known if point.devices > max(g, base.devices)]
    if "parameter server" not in series.exchange and machine:
        for point in several:
            if point.devices > several[0].devices:
                yield formulas.SEVERAL, [machine[0], several[0]], point
    first = series.points[:1]
    if series.source == "MLPerf Training logs" and first and first[0].batch != base.batch:
        for point in series.points[1:]:
            yield ANOTHER_BATCH, [base, first[0]], point


def predicted(series: Series, basis: str, sizes: list[Point], point: Point) -> tuple[float, float, float]:
    """Return the efficiency against the base, and its band."""
    base, compute = series.base, series.compute
    if basis == ANOTHER_BATCH:
        pairs = [(size.batch, size.seconds) for size in sizes]
        guess = dataclasses.replace(point, seconds=another_batch(point.batch, *pairs), stated=None)
        efficiency = series.efficiency(guess)
        return efficiency, efficiency - 0.04, efficiency + 0.04
    steps = {size.devices: size.seconds for size in sizes if basis != formulas.ONE_DEVICE and size.devices > 1}
    measured = scaling.Measured(compute, base.batch, series.gradient_bytes, steps=steps)
    row = scaling.predict(measured, series.machine, [point.devices]).to_pylist()[0]
    assert row["basis"] == basis
    return tuple(row[name] * base.seconds / compute for name in ("efficiency", "low", "high"))


def another_batch(batch, first: tuple[float, float], second: tuple[float, float]):
    """Return the seconds of a step with another batch, on the line through two measured (batch, seconds): strong scaling."""
    slope = (second[1] - first[1]) / (second[0] - first[0])
    return first[1] + slope * (batch - first[0])


def others(series: Series, basis: str, sizes: list[Point], point: Point) -> dict[str, float]:
    """Return what the other methods say about the same point from the same sizes."""
    found, base = {"linear": 1.0}, series.base
    if basis != ANOTHER_BATCH:
        sent = formulas.exchange([base.devices, point.devices], series.machine, series.gradient_bytes)
        found["alpha-beta"] = float(base.seconds / (base.seconds - sent[0] + sent[1]))
    if basis == formulas.ONE_DEVICE:
        return found
    first, last = sizes
    found["keep"] = series.efficiency(last)
    if basis != ANOTHER_BATCH:
        found["Amdahl"] = series.efficiency(first) * _serial(first, last, point)
        found["Karp-Flatt"] = _serial(base, last, point)
    return found


def _serial(first: Point, last: Point, point: Point) -> float:
    """Return the efficiency of a point against the first size, if the serial fraction of the last one stays."""
    n = last.devices / first.devices
    fraction = (last.seconds / first.seconds - 1) / (n - 1)  # Karp and Flatt 1990: (1/S - 1/n) / (1 - 1/n)
    return 1 / (1 + fraction * (point.devices / first.devices - 1))


# ---- the table


def table(path: Path = CSV) -> tuple[dict[str, dict], int]:
    """Return {basis or method: {rows, median, worst, covered}}, and how many rows were left out.

    Errors are in points, `covered` is the share of the points inside the band. A basis also has `others`: the methods on its rows.
    A method by itself stands for all its rows, those of one device where it needs no second size.
    """
    series, left_out = read(path)
    own, beside = defaultdict(list), defaultdict(list)
    for each in series:
        for basis, sizes, point in cases(each):
            published = each.efficiency(point)
            try:
                efficiency, low, high = predicted(each, basis, sizes, point)
            except errors.SettingsError:
                left_out += 1
                continue
            own[basis].append((100 * abs(efficiency - published), low <= published <= high))
            for method, value in others(each, basis, sizes, point).items():
                beside[method, basis].append((100 * abs(value - published), None))
    result = {basis: _summary(own[basis]) for basis in BASES}
    for basis in BASES:
        result[basis]["others"] = {
            method: _summary(beside[method, basis]) for method in OTHERS if beside[method, basis]
        }
    for method in OTHERS:
        bases = (formulas.ONE_DEVICE,) if beside[method, formulas.ONE_DEVICE] else (formulas.INSIDE, formulas.SEVERAL)
        result[method] = _summary([pair for basis in bases for pair in beside[method, basis]])
    return result, left_out


def _summary(pairs: list[tuple]) -> dict:
    if not pairs:
        return {"rows": 0, "median": None, "worst": None, "covered": None}
    found, covered = zip(*pairs, strict=True)
    share = None if None in covered else sum(covered) / len(covered)
    return {"rows": len(found), "median": statistics.median(found), "worst": max(found), "covered": share}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("csv", nargs="?", type=Path, default=CSV)
    words.add_argument("--json", action="store_true")
    given = words.parse_args()
    result, left_out = table(given.csv)
    if not any(result[basis]["rows"] for basis in BASES):
        todo = "each group needs a row of kind base, and another size"
        raise SystemExit(f"{given.csv}: no row can be predicted ({left_out} lack a figure); {todo}")
    if left_out:
        print(f"{left_out} rows lack a figure or repeat another, and are left out", file=sys.stderr)
    if given.json:
        print(json.dumps(result, indent=1))
        return
    print(
        f"{'median / worst error in points':36} rows  tfpar       in band " + "".join(f"{name:>13}" for name in OTHERS)
    )
    for basis in BASES:
        line = result[basis]
        cells = [_cell(line), "-" if line["covered"] is None else f"{line['covered']:.0%}"]
        print(
            f"{basis:36} {line['rows']:4}  {cells[0]:11} {cells[1]:>6}  "
            + "".join(f"{_cell(line['others'].get(name)):>13}" for name in OTHERS)
        )


def _cell(summary: dict | None) -> str:
    return f"{summary['median']:.1f} / {summary['worst']:.1f}" if summary and summary["rows"] else "-"


if __name__ == "__main__":
    main()
