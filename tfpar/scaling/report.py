"""What was measured: the table, the parts of a step, the picture and the verdict.

The report splits a step with real data and the exchange into parts, for the worker that waits longest. Its wait for the sum
has two parts: `exchange` is the smallest wait among the workers, because the last one to be ready waits for nobody; `waiting`,
the rest, is the wait for the slowest worker. Differences between turns give the other parts: `input` (real - constant data),
`machine` (independent processes at the same time - one alone), `python` (on one device, one step a call - several, times 8/7).
`compute` is the rest. Each difference is the median over the turns; below 0 it counts as 0.
"""

import contextlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from tfpar import errors, files, validate
from tfpar.results import tables
from tfpar.scaling.predicting import Measured

FORMAT = 1
SEVERAL = 8  # steps of a call that is compared with calls of one
LOST = 0.1  # of a step: a smaller part is not named in the verdict
MANY = 1000  # steps, from which on the verdict does not mention rare pauses
# The parts of a step: what a step is called that loses most to one, and what would help.
PARTS = {
    "compute": ("compute-bound", "Only a smaller network or faster devices"),
    "python": ("bound by Python", "Several steps in one call (--steps-per-call) or a larger batch"),
    "machine": ("bound by what they share, such as memory bandwidth", "Devices on more machines"),
    "input": ("input-bound", "Smaller images, less augmentation or a faster disk"),
    "exchange": ("communication-bound", "A larger batch per device, a faster link or --all-reduce fast"),
    "waiting": ("waiting for", "Equal devices with no other work"),
}


@dataclass(frozen=True)
class Report:
    """A measurement; it prints as a table with a verdict in two sentences.

    Attributes:
        content: what `scaling.json` holds. `turns` has every turn in its order: `devices`, `kind` (see `measuring`), `seconds`
            `[processes][steps]`, and `waits` `[replicas][steps]`, how long each replica waited for the sum, in seconds.
    """

    content: dict

    @cached_property
    def rows(self) -> list[dict]:
        """One row for each number of devices, as in `scaling.csv`; times are means in milliseconds.

        `low` and `high` are the least and the largest efficiency of a turn; `waited_for` is the worker that the others wait for, and
        `last` the part of the steps in which it is the last to be ready.
        """
        return [self._row(count) for count in self.content["devices"]]

    @cached_property
    def verdict(self) -> str:
        """One sentence on what the largest number of devices loses, and one on what would help."""
        row, noun, count = self.rows[-1], self.content["device"], self.content["devices"][-1]
        step, parts = row["step_ms"], {name: row[f"{name}_ms"] for name in PARTS}
        lost = max(list(PARTS)[1:], key=parts.get)
        what, helps = PARTS[lost if parts[lost] >= LOST * step else "compute"]
        if what == "waiting for":
            slowest = row["last"] > (1 + 1 / count) / 2  # otherwise now one is last, now another
            what += f" {noun} {row['waited_for']}, last in {row['last']:.0%} of the steps" if slowest else " each other"
        first = f"{count} {noun}{'s'[: count > 1]}, {what}: a step takes {step:.1f} ms and {self.rows[0]['step_ms']:.1f} ms on one"
        first += f", an efficiency of {row['efficiency']:.2f}; its parts are "
        first += ", ".join(f"{name} {value:.1f} ms" for name, value in parts.items())
        best = row["images_per_second"] * step / max(step - parts[lost], 1e-9)
        even = "even " * (helps == PARTS["compute"][1])
        second = f"{helps} would help: {even}without its largest loss, {lost}, a step would take {step - parts[lost]:.1f} ms, "
        second += f"{best:,.0f} images a second instead of {row['images_per_second']:,.0f}"
        rare = f"; pauses rarer than 1 in {len(self._samples)} steps could not have been seen"
        return f"{first}. {second}{rare * (len(self._samples) < MANY)}."

    def __str__(self) -> str:
        names = list(self.rows[0])[: 6 + len(PARTS)]
        rows = [[f"{row[name]:.2f}".removesuffix(".00") for name in names] for row in self.rows]
        return f"{tables.text([names, *rows])}\n{self.verdict}"

    def measured(self) -> Measured:
        """Return what a prediction needs: the seconds of a step on each number of devices, and one device's single steps."""
        counts, batch = self.content["devices"], self.content["batch"]
        steps = {count: self._mean(count, "real") for count in counts}
        rate = counts[-1] * batch / self._mean(counts[-1], "input")
        one, gradient, samples = steps.pop(1), self.content["gradient_bytes"], tuple(self._samples)
        return Measured(one, batch, gradient, steps, samples, rate, self.content["all_reduce"], one_machine=True)

    def write(self, directory: str | os.PathLike) -> None:
        """Write the four files; `scaling.json` comes last, so that a directory without it holds no measurement."""
        place, rows = Path(directory), pa.Table.from_pylist(self.rows)
        files.write(place / "scaling.csv", lambda path: pyarrow.csv.write_csv(rows, path))
        files.write(place / "scaling.png", lambda path: self.draw().savefig(path, dpi=120))
        files.write(place / "scaling.txt", f"{self}\n")
        files.write(place / "scaling.json", json.dumps(self.content) + "\n")

    def draw(self):
        """Return a figure of Matplotlib: the speed-up beside the ideal and the independent processes, and the parts of a step."""
        from matplotlib.figure import Figure  # not above: it takes half a second, and a prediction draws nothing

        figure = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        column = {name: np.array([row[name] for row in self.rows]) for name in self.rows[0]}
        counts = column["devices"]
        left.plot(counts, counts, "--", color="tab:gray", label="ideal")
        apart = counts * column["constant_ms"][0] / column["independent_ms"]
        left.plot(counts, apart, "s:", color="tab:green", label="independent processes")
        left.plot(counts, counts * column["efficiency"], "o-", label="measured")
        left.fill_between(counts, counts * column["low"], counts * column["high"], alpha=0.2, label="single turns")
        left.set(xlabel=f"{self.content['device']}s", ylabel="speed-up", xticks=counts, ylim=(0, None))
        left.legend(frameon=False)
        below = np.zeros(len(counts))
        for name in PARTS:
            right.bar([str(count) for count in counts], column[f"{name}_ms"], bottom=below, label=name)
            below += column[f"{name}_ms"]
        right.set(xlabel=f"{self.content['device']}s", ylabel="milliseconds of a step")
        right.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        return figure

    # ---- from the turns

    def _turns(self, count: int, kind: str, name: str = "seconds") -> list[np.ndarray]:
        """Return an array `[processes or replicas, steps]` of each turn. The first step of a turn is left out: its caches are cold.
        With real data it counts, because it alone may wait for the input (see `worker`)."""
        first, turns = 0 if kind in ("real", "input") else 1, self.content["turns"]
        return [np.array(turn[name])[:, first:] for turn in turns if (turn["devices"], turn["kind"]) == (count, kind)]

    def _mean(self, count: int, kind: str) -> float:
        return float(np.concatenate(self._turns(count, kind), axis=1).mean())

    @cached_property
    def _samples(self) -> list[float]:
        return np.concatenate(self._turns(1, "constant"), axis=1)[0].tolist()

    def _row(self, count: int) -> dict:
        several, real = count > 1, self._turns(count, "real")
        waits = np.concatenate(self._turns(count, "real", "waits"), axis=1) * several
        alone = waits.min(axis=0)  # the exchange alone: the last to be ready waits for nobody
        others = (waits - alone).mean(axis=1)  # how long each worker waits for the slowest
        step, longest, slowest = self._mean(count, "real"), int(others.argmax()), int(others.argmin())
        parts = {"waiting": float(others[longest]), "exchange": float(alone.mean())}
        left = step - sum(parts.values())
        for name, seconds in self._differences(count, longest).items():
            parts[name] = min(max(0.0, seconds), left)
            left -= parts[name]
        parts["compute"] = left
        turns = [float(one.mean() / many.mean()) for one, many in zip(self._turns(1, "real"), real, strict=True)]
        return {
            "devices": count, "images_per_second": count * self.content["batch"] / step, "step_ms": 1000 * step,
            "efficiency": self._mean(1, "real") / step, "low": min(turns), "high": max(turns),
            **{f"{name}_ms": 1000 * parts[name] for name in PARTS},
            "constant_ms": 1000 * self._mean(count, "constant"),
            "without_exchange_ms": 1000 * self._mean(count, "alone" if several else "constant"),
            "independent_ms": 1000 * self._mean(count, "apart" if several else "constant"),
            "waited_for": slowest, "last": float((waits.argmin(axis=0) == slowest).mean()), "steps": waits.shape[1],
        }  # fmt: skip

    def _differences(self, count: int, worker: int) -> dict[str, float]:
        """Return the seconds of a worker's own parts of a step: the median over the turns of each difference."""

        def means(of: int, kind: str, processes=slice(None)) -> np.ndarray:
            return np.array([turn[processes].mean() for turn in self._turns(of, kind)])

        def own(kind: str) -> np.ndarray:
            waits = [turn[worker].mean() for turn in self._turns(count, kind, "waits")]
            return means(count, kind) - np.array(waits)

        call = means(1, "constant") - means(1, "several")
        found = {"input": own("real") - own("constant"), "python": call * SEVERAL / (SEVERAL - 1)}
        if count > 1:
            found["machine"] = means(count, "apart", worker) - means(1, "constant")
        return {"machine": 0.0} | {name: float(np.median(values)) for name, values in found.items()}


def load(directory: str | os.PathLike) -> Report:
    """Read a measurement.

    Args:
        directory: as given to `measure`.

    Raises:
        errors.InputNotFound: there is no measurement, or it cannot be read.
        errors.DataError: the file is damaged, or of another version.
    """
    path, content = validate.path("directory", directory) / "scaling.json", None
    why = f"{path}: cannot be read ({errors.REASON}); make it with: tfpar scaling DATA --out DIRECTORY"
    with errors.translated(OSError, errors.InputNotFound, why), contextlib.suppress(ValueError):
        content = json.loads(path.read_bytes())
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise errors.DataError(f"{path}: this is no measurement of this version; measure again")
    return Report(content)
