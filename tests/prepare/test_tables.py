"""Tables of pictures, and groups that stay together."""

import csv
import shutil
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from tfpar import cli, errors, prepare
from tfpar.prepare import holdout, tables
from tfpar.prepare.inputs import Input


@pytest.fixture
def pictures(tmp_path):
    """Twelve pictures of two classes: four patients of three pictures each."""
    for i in range(12):
        path = tmp_path / "pictures" / f"p{i // 3}_{i % 3}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((6, 6, 3), 20 * i, np.uint8)).save(path)
    return tmp_path / "pictures"


def rows_of(pictures, **columns):
    """Return a row for each picture; a column is a function of its number."""
    return [
        {"path": path.name, "label": "odd" if int(path.name[1]) % 2 else "even"}
        | {name: column(i) for name, column in columns.items()}
        for i, path in enumerate(sorted(pictures.glob("*.png")))
    ]


def written(path, rows, delimiter=",", encoding="utf-8"):
    with open(path, "w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def same_arrays(one, other):
    return all(
        np.array_equal(one.splits[split].images, other.splits[split].images)
        and np.array_equal(one.splits[split].labels, other.splits[split].labels)
        and one.splits[split].sources == other.splits[split].sources
        for split in one.splits | other.splits
    )


def test_a_table_of_a_folder_prepares_to_the_same_arrays_in_whatever_order_its_rows_are(shared, tmp_path):
    folder = tmp_path / "grocery"
    shutil.copytree(shared / "grocery_photos" / "images", folder)
    found = [path for path in sorted(folder.rglob("*")) if path.suffix in (".jpg", ".jpeg", ".png")]
    rows = [{"path": p.relative_to(folder).as_posix(), "label": p.relative_to(folder).parts[0]} for p in found]
    of_folder = prepare.dataset(folder, tmp_path / "f", image_size=32)
    of_table = prepare.dataset(written(folder / "all.csv", rows[::-1]), tmp_path / "t", image_size=32)
    assert same_arrays(of_folder, of_table) and of_folder.class_names == of_table.class_names
    assert of_folder.fingerprint == of_table.fingerprint


def test_csv_of_spreadsheets_and_parquet_are_one(pictures, tmp_path):
    rows = rows_of(pictures)
    tables_ = [
        written(pictures / "a.csv", rows),
        written(pictures / "b.csv", rows, ";", "utf-8-sig"),
        written(pictures / "c.CSV", rows, "\t"),
        pictures / "d.parquet",
    ]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tables_[3])
    prepared = [prepare.dataset(table, tmp_path / table.name) for table in tables_]
    assert len({data.fingerprint for data in prepared}) == 1 and prepared[0].class_names == ["even", "odd"]


def test_folders_with_the_other_slash_spaces_in_the_header_and_two_spellings(pictures, tmp_path, capsys):
    """As Windows, people, and two kinds of computers write them."""
    rows = [row | {"path": "pictures/" + row["path"]} for row in rows_of(pictures)]
    of_linux = prepare.dataset(written(tmp_path / "a.csv", rows), tmp_path / "a")
    other = [{"path ": row["path"].replace("/", "\\"), " label": row["label"]} for row in rows]
    assert same_arrays(prepare.dataset(written(tmp_path / "b.csv", other), tmp_path / "b"), of_linux)
    spelled = [row | {"label": unicodedata.normalize(("NFC", "NFD")[i % 2], "é")} for i, row in enumerate(rows)]
    spelled[0]["label"] = spelled[1]["label"] = "x"
    data = prepare.dataset(written(tmp_path / "c.csv", spelled), tmp_path / "c")
    assert data.class_names == ["x", unicodedata.normalize("NFC", "é")]
    assert "is spelled in composed and in decomposed Unicode" in capsys.readouterr().out
    (tmp_path / "one\\name.png").write_bytes((pictures / "p0_0.png").read_bytes())
    named = written(tmp_path / "d.csv", [*rows[1:], {"path": "one\\name.png", "label": "even"}])
    splits = prepare.dataset(named, tmp_path / "d").splits.values()
    assert any("one\\name.png" in split.sources for split in splits)


def test_split_and_weight(pictures, tmp_path):
    table = written(
        pictures / "a.csv",
        rows_of(pictures, split=lambda i: ("Training", "VAL", "test")[i % 3], weight=lambda i: i / 4),
    )
    data = prepare.dataset(table, tmp_path / "d")
    assert {name: len(split.labels) for name, split in data.splits.items()} == dict.fromkeys(data.splits, 4)
    assert data.train.weights.dtype == np.float32 and data.train.weights.tolist() == [0, 0.75, 1.5, 2.25]
    assert data.test.sources == [f"p{i}_2.png" for i in range(4)]
    assert prepare.load(tmp_path / "d").train.weights.tolist() == data.train.weights.tolist()
    together = prepare.dataset(table, tmp_path / "e", splits=False)
    assert together.test is None and sum(len(split.labels) for split in together.splits.values()) == 12
    assert sorted([*together.train.weights, *together.validation.weights]) == [i / 4 for i in range(12)]


def test_no_weights_no_file(pictures, tmp_path):
    data = prepare.dataset(written(pictures / "a.csv", rows_of(pictures)), tmp_path / "d")
    assert data.train.weights is None and not (tmp_path / "d/train/weights.npy").exists()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda rows: [row.pop("label") for row in rows], "has no column label"),
        (lambda rows: rows[3].update(label=""), "row 5 has no label"),
        (lambda rows: rows[3].update(path="  "), "row 5 has no path"),
        (lambda rows: rows[4].update(path=rows[0]["path"]), "rows 2 and 6 are both p0_0.png"),
        (lambda rows: rows[4].update(path="./" + rows[0]["path"]), "rows 2 and 6 are both"),
        (lambda rows: rows[4].update(path="../pictures/" + rows[0]["path"]), "rows 2 and 6 are both"),
        (lambda rows: [row.update(split="train" if i else "") for i, row in enumerate(rows)], "row 2 has no split"),
        (lambda rows: [row.update(split="learn") for row in rows], "row 2 has the split learn"),
        (lambda rows: [row.update(split="val") for row in rows], "no row has the split train"),
        (lambda rows: [row.update(weight=-1) for row in rows], "row 2 has the weight -1"),
        (lambda rows: [row.update(weight="much") for row in rows], "row 2 has the weight much"),
        (lambda rows: [row.update(weight="nan") for row in rows], "row 2 has the weight nan"),
        (lambda rows: [row.update(group="" if i == 2 else "g") for i, row in enumerate(rows)], "row 4 has no group"),
        (lambda rows: [row.update(path="not-" + row["path"]) for row in rows], r"that can be read \(not-p0_0\.png: no such file\); .*relative to the table"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used(change, text, pictures, tmp_path):
    rows = rows_of(pictures)
    change(rows)
    with pytest.raises(errors.DataError, match=text):
        prepare.dataset(written(pictures / "a.csv", rows), tmp_path / "d")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.csv", b"", errors.DataError),
        ("a.csv", b"path,label\n", errors.DataError),
        ("a.csv", b"path,label\nx.png,a,b\n", errors.DataError),
        ("a.csv", b"path,label\nx\0.png,a\n", errors.DataError),
        ("a.csv", "path,label\nä.png,a\n".encode("utf-16"), errors.DataError),
        ("a.csv", b'path,label\n"x.png,a\n', errors.DataError),
        ("a.parquet", b"PAR1 and no more", errors.DataError),
        ("none.csv", None, errors.InputNotFound),
    ],
)
def test_files_that_are_no_table(name, content, kind, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(kind, match=name):
        prepare.dataset(tmp_path / name, tmp_path / "d")


@pytest.mark.parametrize("twice", ["label", "note"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_given_twice_is_refused_if_it_is_read(pictures, tmp_path, twice, kind):
    rows, table = rows_of(pictures), pictures / f"a.{kind}"
    names = ["path", "label", twice] if twice == "label" else ["path", "label", twice, twice]
    columns = [[row["path"] for row in rows], [row["label"] for row in rows], *[["x"] * len(rows)] * (len(names) - 2)]
    if kind == "csv":
        table.write_text("\n".join(",".join(row) for row in [names, *zip(*columns, strict=True)]))
    else:
        pyarrow.parquet.write_table(pa.Table.from_arrays([pa.array(column) for column in columns], names), table)
    if twice == "label":
        with pytest.raises(errors.DataError, match="two columns label"):
            prepare.dataset(table, tmp_path / "d")
    else:
        assert prepare.dataset(table, tmp_path / "d").class_names == sorted({row["label"] for row in rows})


@pytest.mark.parametrize("column", ["path", "label"])
@pytest.mark.parametrize(
    "change", [lambda value: {"bytes": b"x" * 999, "path": value}, lambda value: [value], str.encode]
)
def test_a_value_that_is_no_text_is_refused_in_a_short_line(pictures, tmp_path, column, change):
    rows = rows_of(pictures)
    values = {name: [row[name] for row in rows] for name in ("path", "label")}
    values[column] = [change(value) for value in values[column]]
    pyarrow.parquet.write_table(pyarrow.table(values), pictures / "a.parquet")
    with pytest.raises(errors.DataError, match=f"row 2 has the {column} .*Give text") as refused:
        prepare.dataset(pictures / "a.parquet", tmp_path / "d")
    assert len(str(refused.value)) < 300


def test_a_table_that_changed_is_refused_and_one_that_moved_is_not(pictures, tmp_path, capsys):
    rows = rows_of(pictures)
    table = written(pictures / "a.csv", rows)
    first = prepare.dataset(table, tmp_path / "d")
    assert prepare.dataset(written(table, rows[::-1]), tmp_path / "d").fingerprint == first.fingerprint
    with pytest.raises(errors.SettingsError, match="1 removed"):
        prepare.dataset(written(table, rows[1:]), tmp_path / "d")
    with pytest.raises(errors.SettingsError, match="rows changed"):
        prepare.dataset(written(table, [rows[0] | {"label": "odd"}, *rows[1:]]), tmp_path / "d")
    written(table, rows)
    shutil.copytree(pictures, tmp_path / "elsewhere" / "pictures")
    moved = prepare.dataset(tmp_path / "elsewhere" / "pictures" / "a.csv", tmp_path / "d")
    assert moved.fingerprint == first.fingerprint


def test_a_copy_of_a_table_of_pictures_that_lie_outside_of_its_folder_is_the_same_source(pictures, tmp_path):
    rows = [row | {"path": str(pictures / row["path"])} for row in rows_of(pictures)]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        written(tmp_path / name / "a.csv", rows)
    first = prepare.dataset(tmp_path / "one" / "a.csv", tmp_path / "d")
    assert prepare.dataset(tmp_path / "two" / "a.csv", tmp_path / "d").fingerprint == first.fingerprint


def sides(data):
    return [{source.split("/")[-1][:2] for source in split.sources} for split in (data.train, data.validation)]


@pytest.mark.parametrize("seed", range(5))
def test_groups_of_a_column_of_a_table_stay_together(seed, pictures, tmp_path):
    rows = rows_of(pictures, patient=lambda i: f"p{i // 3}")
    data = prepare.dataset(
        written(pictures / "a.csv", rows), tmp_path / "d", group_by="patient", validation_fraction=0.3, seed=seed
    )
    train, validation = sides(data)
    assert not train & validation and len(data.validation.labels) == 6 and set(data.validation.labels) == {0, 1}
    with pytest.raises(errors.SettingsError, match="group_by is patient, asked for label"):
        prepare.dataset(pictures / "a.csv", tmp_path / "d", group_by="label", validation_fraction=0.3, seed=seed)


def test_groups_of_a_folder_are_what_a_pattern_finds(pictures, tmp_path):
    for name, wanted in (("a", "02"), ("b", "13")):
        (tmp_path / "f" / name).mkdir(parents=True)
        for path in pictures.glob(f"p[{wanted}]*.png"):
            shutil.copy(path, tmp_path / "f" / name)
    data = prepare.dataset(tmp_path / "f", tmp_path / "d", group_by=r"/(p\d)_", validation_fraction=0.4)
    train, validation = sides(data)
    assert not train & validation and len(data.validation.labels) == 6
    for pattern, text in (("/p._", "with a group"), ("(", "Give a regular expression")):
        with pytest.raises(errors.SettingsError, match=text):
            prepare.dataset(tmp_path / "f", tmp_path / "e", group_by=pattern)
    with pytest.raises(errors.DataError, match="finds no group in this path"):
        prepare.dataset(tmp_path / "f", tmp_path / "e", group_by=r"/(p[0-2])_")
    assert not (tmp_path / "e").exists()


def test_many_groups_come_close_to_the_fraction_in_each_class(tmp_path):
    draw = np.random.default_rng(0)
    labels = draw.choice(3, 3000, p=[0.7, 0.2, 0.1])
    rows = [{"path": f"{i}.png", "label": f"c{label}", "group": draw.integers(150)} for i, label in enumerate(labels)]
    source = tables.source(written(tmp_path / "a.csv", rows), None, None)
    inputs = list(source.splits["train"]())
    writer = SimpleNamespace(items=inputs, labels=np.unique([item.label for item in inputs], return_inverse=True)[1])
    held_out = np.zeros(3000, bool)
    held_out[holdout.chosen(writer, source.class_names, fraction=0.1, seed=0)] = True
    groups, numbers = np.asarray([item.group for item in inputs]), writer.labels
    assert not set(groups[held_out]) & set(groups[~held_out])
    for label in range(3):
        assert held_out[numbers == label].mean() == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ([75, 25], 0.25), ([60] + [4] * 10, 0.08), ([60] + [4] * 10, 0.12), ([34, 33, 33], 0.33), ([90, 10], 0.1), ([7, 3] * 10, 0.1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(4))
def test_groups_come_as_close_to_the_fraction_as_their_sizes_allow(sizes, wanted, seed):
    group = np.repeat([f"g{i}" for i in range(len(sizes))], sizes)
    items = [Input(name, 0, None, group=name) for name in group.tolist()]
    writer = SimpleNamespace(items=items, labels=np.zeros(len(items), int))
    share = len(holdout.chosen(writer, ["a"], fraction=0.1, seed=seed)) / len(group)
    assert abs(share - 0.1) <= abs(wanted - 0.1) + 0.005


def test_groups_that_cannot_be_kept_apart_are_refused(pictures, tmp_path):
    rows = rows_of(pictures, group=lambda i: "one" if i < 6 else "two", split=lambda i: "train" if i < 8 else "val")
    with pytest.raises(errors.DataError, match="group two is in train and in validation"):
        prepare.dataset(written(pictures / "a.csv", rows), tmp_path / "d")
    rows = rows_of(pictures, group=lambda i: "odd" if (i // 3) % 2 else "even")
    with pytest.raises(errors.DataError, match="no image is left for validation"):
        prepare.dataset(written(pictures / "a.csv", rows), tmp_path / "d")


def test_a_label_in_decomposed_unicode_is_the_same_table_as_for_an_earlier_version(pictures):
    found = []
    for form in ("NFC", "NFD"):
        rows = [row | {"label": unicodedata.normalize(form, "\xe9")} for row in rows_of(pictures)]
        found.append(tables.source(written(pictures / f"{form}.csv", rows), None, None))
    assert found[0].class_names == found[1].class_names == ["\xe9"]
    assert found[0].stamp["table"] != found[1].stamp["table"]


def test_weights_that_are_all_zero_are_refused(pictures, tmp_path):
    rows = rows_of(pictures, weight=lambda i: i // 6, split=lambda i: "train" if i < 6 else "val")
    with pytest.raises(errors.DataError, match="every image of train has the weight 0"):
        prepare.dataset(written(pictures / "a.csv", rows), tmp_path / "d")


@pytest.mark.parametrize("option", [{"group_by": "(x)"}, {"splits": True}, {"tfds_manual_dir": "."}])
def test_an_option_that_a_source_does_not_take_is_refused(option, tmp_path):
    with pytest.raises(errors.SettingsError, match=f"{next(iter(option))} was given"):
        prepare.dataset("digits", tmp_path / "d", **option)


def test_the_same_picture_twice_is_told(pictures, tmp_path, capsys):
    rows = rows_of(pictures, split=lambda i: "train" if i % 2 else "val")
    shutil.copy(pictures / "p0_0.png", pictures / "p3_1.png")  # even and odd, validation both
    shutil.copy(pictures / "p1_0.png", pictures / "p1_1.png")  # validation and train
    prepare.dataset(written(pictures / "a.csv", rows), tmp_path / "d")
    said = capsys.readouterr().out
    assert "same pictures in two classes: 1 (p0_0.png in even, p3_1.png in odd)" in said
    assert "same pictures in two splits: 1 (p1_0.png in train, p1_1.png in validation)" in said


def test_the_command_line_takes_a_table(pictures, tmp_path, capsys):
    table = written(pictures / "a.csv", rows_of(pictures, patient=lambda i: f"p{i // 3}"))
    command = ["prepare", str(table), str(tmp_path / "d"), "--group-by", "patient", "--validation-fraction", "0.5"]
    assert cli.main(command) == 0
    assert "6 train and 6 validation images" in capsys.readouterr().out
    assert cli.main(["prepare", str(table), str(tmp_path / "e"), "--group-by", "color"]) == 78
    assert "group_by='color': give one of the columns path, label, patient" in capsys.readouterr().err
    assert not Path(tmp_path / "e").exists()
