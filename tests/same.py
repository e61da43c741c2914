"""Two runs compared file by file."""

import csv

from tfpar import check
from tfpar.results import reading


def same_files(first, second):
    """Tell whether two runs ended with the same weights, history and predictions, bit for bit."""
    histories = [
        [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows(r)] for r in (first, second)
    ]
    predictions = [
        [(r.directory / reading.stage_path(s) / "predictions.parquet").read_bytes() for s in range(1, r.stages + 1)]
        for r in (first, second)
    ]
    return (
        check.same_weights(first.model(), second.model())
        and histories[0] == histories[1]
        and predictions[0] == predictions[1]
    )


def rows(of):
    with open(of.directory / "history.csv", newline="") as file:
        return list(csv.DictReader(file))
