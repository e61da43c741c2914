"""Tables of runs, for the screen and for a page: the classes of one, worst first; the differences between several.

A table is a list of rows of text and numbers; the first row holds the titles.

Example:
    >>> run = results.Run("runs/digits")
    >>> print(tables.text(tables.of_classes(run.predictions(), run.class_names)))
    class  images  answers  correct  precision  recall  taken for
    ...
"""

import contextlib
import html
import json
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from tfpar import errors
from tfpar.results import reading


def of_classes(predictions: pa.Table, class_names: list[str]) -> list[tuple]:
    """Return one row for each class, the lowest recall first; classes without images come last."""
    labels, predicted = predictions["label"].to_numpy(), predictions["predicted"].to_numpy()
    counted = (labels, predicted, labels[labels == predicted])
    numbers = np.stack([np.bincount(each, minlength=len(class_names)) for each in counted], axis=1).tolist()
    taken_for: dict[int, str] = {}
    for (label, answer), count in Counter(zip(labels.tolist(), predicted.tolist(), strict=True)).most_common():
        if label != answer:
            taken_for.setdefault(label, f"{class_names[answer]} ({count})")
    rows = []
    for label, (images, answers, correct) in enumerate(numbers):
        precision, recall = (f"{correct / of:.3f}" if of else "-" for of in (answers, images))
        rows.append((class_names[label], images, answers, correct, precision, recall, taken_for.get(label, "")))
    titles = ("class", "images", "answers", "correct", "precision", "recall", "taken for")
    return [titles, *sorted(rows, key=lambda row: (row[5] == "-", row[5], row[4]))]


def of_runs(runs: Mapping[str, reading.Run]) -> list[tuple]:
    """Return one column for each run: the settings and the environment in which they differ, and their results.

    The images that a run gained or lost, and whether all probabilities have the same bits, are compared with the first run.
    """
    first, told, found = next(iter(runs.values())), [], []
    for run in runs.values():
        told.append(flat(run.facts["settings"] | run.facts["environment"] | {"devices": run.facts["devices"]}))
        compared = dict.fromkeys(("accuracy", "agreed", "gained", "lost", "same_bits"), "-")
        with contextlib.suppress(errors.SettingsError):  # other images
            compared |= reading.compare(first, run)
        found.append(compared | {"accuracy": result(run), "loss": run.metrics()["loss"], **speed(run)})
    names = dict.fromkeys(name for each in told for name in each if not name.startswith("computed "))  # hashes
    rows = [(name, *(each.get(name, "-") for each in told)) for name in names]
    results = [(name.replace("_", " "), *(each[name] for each in found)) for name in found[0]]
    return [("", *runs), *(row for row in rows if len(set(row[1:])) > 1), *results]


def flat(settings: dict) -> dict[str, str]:
    """Return settings as text; a setting inside another has the names of both.

    Example:
        >>> tables.flat({"seed": 0, "optimizer": {"class": "SGD", "momentum": 0.9}})
        {'seed': '0', 'optimizer class': 'SGD', 'optimizer momentum': '0.9'}
    """
    found = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= {f"{name} {inner}": text for inner, text in flat(value).items()}
        else:
            found[name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return found


def result(run: reading.Run) -> str:
    """Return the accuracy, and the counts that it is made of, such as `0.5856: 65 of 111`."""
    metrics = run.metrics()
    return f"{metrics['accuracy']:.4f}: {round(metrics['accuracy'] * metrics['examples']):,} of {metrics['examples']:,}"


def speed(run: reading.Run) -> dict[str, str]:
    """Return the epochs of a run, the time of their training, without validation, and the median of their speeds."""
    steps, speeds = (run.history[name].to_numpy() for name in ("step", "images_per_second"))
    seconds = (np.diff(steps, prepend=0) * run.settings["global_batch_size"] / speeds).sum()
    return {"epochs": str(len(steps)), "training": f"{seconds:,.1f} s", "images/s": f"{np.median(speeds):,.0f}"}


def text(table: list[tuple]) -> str:
    """Return a table for the screen; of a cell its first 40 characters.

    Example:
        >>> print(tables.text([("class", "images"), ("cat", 12), ("dog", 7)]))
        class  images
        cat        12
        dog         7
    """
    rows = [[f"{cell!s:.40}" for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    form = "  ".join(f"{{:{'>' if number else '<'}{width}}}" for number, width in enumerate(widths))
    return "\n".join(form.format(*row).rstrip() for row in rows)


def markup(table: list[tuple]) -> str:
    """Return a table for a page, in a box of its own that scrolls where it is too wide or too long."""
    rows = ["".join(f"<td>{html.escape(str(cell))}" for cell in row) for row in table]
    return f"<div class=wide><table><thead><tr>{'<tr>'.join(rows)}</table></div>"
