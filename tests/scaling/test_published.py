"""Published measurements are predicted as well as the contract of `scaling` says, and better than by simpler methods."""

import csv
import json
import subprocess
import sys

import pytest

from tests.benchmarks import published

LIMITS = {  # rows, median and worst error in points, least share of the points inside the band
    "two sizes inside a machine": (13, 1.0, 9, 0.8),
    "two sizes, several machines": (10, 2.5, 8, 0.8),
    "two sizes, another batch": (5, 3, 5, 0.8),
    "two sizes, formula between machines": (20, 4, 22, 0.8),
    "one device": (119, 3.3, 31, 0.78),
}


@pytest.fixture(scope="module")
def result():
    found, left_out = published.table()
    assert left_out == 0
    return found


def test_another_batch_lies_on_the_line():
    assert published.another_batch(35, (400, 0.110), (50, 0.040)) == pytest.approx(0.037)


@pytest.mark.parametrize("basis", LIMITS)
def test_the_errors_stay_within_their_limits(result, basis):
    rows, median, worst, covered = LIMITS[basis]
    found = result[basis]
    assert found["rows"] == rows and found["covered"] >= covered
    assert 0.1 < found["median"] <= median and found["worst"] <= worst


@pytest.mark.parametrize("basis", published.BASES)
def test_other_methods_stand_on_the_same_rows_and_are_worse_in_the_median(result, basis):
    others = result[basis]["others"]
    assert {each["rows"] for each in others.values()} == {result[basis]["rows"]}
    names = set(others) - ({"Amdahl", "Karp-Flatt"} if basis == "two sizes, formula between machines" else set())
    assert "linear" in names and all(others[name]["median"] > result[basis]["median"] for name in names)


def test_the_constant_of_the_jitter_is_the_best_of_its_neighbours(result, monkeypatch):
    """0.03 was fitted on these rows: no jitter, or twice as much, predicts them worse."""
    for other in (0.0, 0.06):
        monkeypatch.setattr(published.formulas, "JITTER", other)
        assert published.table()[0]["one device"]["median"] > result["one device"]["median"]


def test_other_rows_and_rows_with_gaps(tmp_path):
    with published.CSV.open(newline="") as file:
        rows = list(csv.DictReader(file))
    series = [row for row in rows if row["group"].startswith("27 ")]
    gaps = [
        dict(series[1], images_s="", step_ms=""),  # no time at all
        dict(series[2], step_ms="", efficiency=""),  # the time follows from the images
        dict(series[2], step_ms="fast", images_s="n/a"),
        dict(series[0], group="without a base", kind="compute"),
        dict(series[0], group="without figures", inside_GB_s=""),
        dict(series[3], gpus="nan"),
        dict(series[4], remark="again"),
        dict(series[0], group="without a network", node_out_GB_s=""),
        dict(series[5], group="without a network", node_out_GB_s=""),
    ]
    path = tmp_path / "other.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "remark"])
        writer.writeheader()
        writer.writerows([*(dict(row, remark="x") for row in [*series[:1], *series[3:]]), *gaps])
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.published", str(path), "--json"],
        cwd=published.CSV.parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "7 rows lack a figure or repeat another" in done.stderr, done.stderr
    found = json.loads(done.stdout)
    assert found["one device"]["rows"] == 4 and found["two sizes inside a machine"]["rows"] == 1
    assert found["two sizes, another batch"] == {
        "rows": 0,
        "median": None,
        "worst": None,
        "covered": None,
        "others": {},
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        (b"gpus,group\n1,\xe9\n", "cannot be read .* in UTF-8"),
        (b"", "no column gpus, gpus_per_node"),
        (published.CSV.read_bytes().replace(b",", b";"), "no column gpus, gpus_per_node"),
        (published.CSV.read_bytes().replace(b"images_s", b"images", 1).replace(b",base,", b",other,"), "row of kind base"),
    ],
)  # fmt: skip
def test_another_file_ends_in_one_line(content, words, tmp_path, monkeypatch):
    path = tmp_path / "other.csv"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["published", str(path)])
    with pytest.raises(SystemExit, match=words) as ended:
        published.main()
    assert str(ended.value).startswith(f"{path}: ") and "\n" not in str(ended.value)
