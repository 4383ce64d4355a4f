"""One's own data from a CSV or Parquet table."""

import csv
import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines import prepare, prepared
from data_pipelines.readers import table, table_rows
from reid_jax.errors import UserError
from reid_jax.retrieval.labels import Labels, MatchIndex
from tests import commands
from tests.data_pipelines.market_folder import jpeg

ROWS = [
    ("a/1.jpg", "anna", "door", "train"),
    ("a/2.jpg", "anna", "hall", "train"),
    ("a/3.jpg", "Bert", "door", "train"),
    ("b/1.jpg", "carl", "door", "query"),
    ("b/2.jpg", "carl", "hall", "gallery"),
    ("b/3.jpg", "0", "hall", "gallery"),
    ("b/4.jpg", "-1", "hall", "gallery"),
]
HEAD = ("path", "person", "camera", "split")
NUMBERS = {"anna": "12", "Bert": "0007", "carl": "40"}


def numbered(rows=ROWS):
    return [(p, NUMBERS.get(person, person), c, s) for p, person, c, s in rows]


@pytest.fixture
def folder(tmp_path):
    for n, (path, *_) in enumerate(ROWS):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(jpeg(seed=n))
    return tmp_path


def save(folder, rows, head=HEAD, name="my.csv", **options):
    path = folder / name
    if name.endswith(".parquet"):
        columns = {h: [row[i] for row in rows] for i, h in enumerate(head)}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, **options).writerows([head, *rows])
    return path


def found(path):
    return {
        name: [(e.path.name, e.person, e.camera) for e in split.entries]
        for name, split in table.scan(path).items()
    }


NAMED = {
    "train": [("a/1.jpg", 2, 0), ("a/2.jpg", 2, 1), ("a/3.jpg", 1, 0)],
    "query": [("b/1.jpg", 3, 0)],
    "gallery": [("b/2.jpg", 3, 1), ("b/3.jpg", 0, 1)],
}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("my.csv", {}),
        ("my.CSV", {"delimiter": ";"}),
        ("my.tsv", {"delimiter": "\t", "lineterminator": "\n"}),
        ("my.txt", {"quoting": csv.QUOTE_ALL}),
        ("my.parquet", {}),
    ],
)
def test_names_of_persons_are_numbered_in_sorted_order(folder, name, options):
    path = save(folder, ROWS, name=name, **options)
    assert found(path) == NAMED
    splits = table.scan(path)
    assert splits["train"].person_names == {1: "Bert", 2: "anna", 3: "carl"}
    assert splits["gallery"].junk == 1
    remarks = " ".join(splits["train"].remarks)
    assert "Bert = 1, anna = 2, carl = 3" in remarks
    assert "2 cameras: door, hall" in remarks
    assert splits["train"].camera_names == {0: "door", 1: "hall"}


def test_whole_numbers_stay(folder):
    splits = table.scan(save(folder, numbered()))
    assert [e.person for e in splits["train"].entries] == [12, 12, 7]
    assert not splits["train"].person_names


@pytest.mark.parametrize("kind", [int, float, "category"])
def test_parquet_types_mean_the_same(folder, kind):
    path = folder / "my.parquet"
    persons = [int(p) for _, p, _, _ in numbered()]
    columns = {
        "path": [row[0] for row in ROWS],
        "person": list(map(float, persons)) if kind is float else persons,
        "camera": [row[2] for row in ROWS],
        "split": [row[3] for row in ROWS],
        "note": [None] * len(ROWS),
    }
    stored = pyarrow.table(columns)
    if kind == "category":
        stored = stored.set_column(3, "split", stored["split"].dictionary_encode())
    pyarrow.parquet.write_table(stored, path)
    assert found(path) == found(save(folder, numbered()))


def test_cameras_are_numbered_by_value_not_by_text(folder):
    cameras = ("10", "9", "10", "010", "9", "9", "9")
    rows = [(p, i, c, s) for (p, i, _, s), c in zip(ROWS, cameras, strict=True)]
    got = found(save(folder, rows))
    assert [camera for _, _, camera in got["train"]] == [1, 0, 1]
    assert [camera for _, _, camera in got["query"]] == [1]


def test_without_cameras_no_gallery_image_has_the_querys_camera(folder):
    rows = [(p, i, s) for p, i, _, s in ROWS]
    splits = table.scan(save(folder, rows, head=("path", "person", "split")))
    query = {e.camera for e in splits["query"].entries}
    gallery = {e.camera for e in splits["gallery"].entries}
    assert query.isdisjoint(gallery)
    assert any("no camera column" in r for r in splits["train"].remarks)


def test_forgiving_what_spreadsheets_do(folder):
    text = "\ufeff Path ,PERSON,camera,Split,note\r\n"
    text += "".join(f" {p} ,{i},{c}, {s.upper()},\r\n\r\n" for p, i, c, s in ROWS)
    path = folder / "my.csv"
    path.write_text(text, newline="")
    assert found(path) == NAMED
    assert any("not used: note" in r for r in table.scan(path)["train"].remarks)


def test_train_alone_and_test_alone(folder):
    assert set(found(save(folder, ROWS[:3]))) == {"train"}
    assert set(found(save(folder, ROWS[3:]))) == {"query", "gallery"}


def changed(row, column, value):
    rows = [list(r) for r in ROWS]
    rows[row][HEAD.index(column)] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (changed(1, "path", ""), "row 3, column path: it is empty"),
        (changed(1, "person", " "), "row 3, column person: it is empty"),
        (changed(2, "camera", ""), "row 4, column camera: it is empty"),
        (changed(0, "split", "test"), "row 2, column split: 'test' is none of train"),
        (changed(0, "path", "a/9.jpg"), "row 2, column path: there is no file"),
        (changed(0, "path", "a"), "row 2, column path: there is no file"),
        (changed(0, "path", "a/\x001.jpg"), r"'a/\x001.jpg' has unprintable"),
        (changed(0, "path", "x" * 5000), "row 2, column path: there is no file"),
        (changed(2, "path", "a/1.jpg"), "row 4, column path: a/1.jpg is in row 2"),
        (changed(2, "path", "./a//1.jpg"), "column path: ./a//1.jpg is in row 2"),
        (changed(0, "person", "0"), "row 2, column person: 0, a distractor"),
        (changed(3, "person", "0"), "row 5, column person: 0, a distractor"),
        (ROWS[:4], "identities in query but none in gallery"),
        (ROWS[:3] + ROWS[4:5], "identities in gallery but none in query"),
        (ROWS[6:], "no image of an identity"),
        ([], "no image of an identity"),
        ([r if n else r[:3] for n, r in enumerate(ROWS)], "row 2 has 3 cells"),
    ],
)
def test_errors_name_row_and_column(folder, rows, words):
    path = save(folder, rows)
    with pytest.raises(UserError) as error:
        table.scan(path)
    assert words in str(error.value)
    assert "my.csv" in str(error.value)


def test_a_negative_number_is_named(folder):
    rows = [
        (p, "-7" if n == 4 else i, c, s) for n, (p, i, c, s) in enumerate(numbered())
    ]
    with pytest.raises(UserError, match=r"row 6, column person: -7 is negative"):
        table.scan(save(folder, rows))


@pytest.mark.parametrize("large", ["2147483648", "9" * 30, "-" + "9" * 9999])
def test_numbers_too_large_to_store_count_as_names(folder, large):
    rows = [(p, large if i == "12" else i, c, s) for p, i, c, s in numbered()]
    names = table.scan(save(folder, rows))["train"].person_names
    assert names == dict(enumerate(sorted(["0007", "40", large]), start=1))


def test_many_errors_are_counted(folder):
    rows = [(f"no{n}.jpg", "1", "1", "train") for n in range(50)]
    with pytest.raises(UserError, match=r"row 7, column path.*and 44 more") as error:
        table.scan(save(folder, rows))
    assert "row 8," not in str(error.value)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (("path", "id", "camera", "split"), "no column person. Its columns: path, id"),
        (("path", "persn", "camera", "split"), "Is it 'persn'?"),
        (("path", "person", "camra", "split"), "no column camera. Is it 'camra'?"),
        (("path", "person", "person", "split"), "has the column person twice"),
    ],
)
def test_wrong_columns(folder, head, words):
    with pytest.raises(UserError) as error:
        table.scan(save(folder, ROWS, head=head))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("my.csv", b"", "no column path"),
        ("my.csv", b"path\xff,person", "UTF-8"),
        ("my.csv", b'path,person,split\n"a,1,train\n', "row 2"),
        ("my.csv", b"path,person,split\n" + b"a" * 200_000 + b",1,train", "row 2"),
        ("my.parquet", b"", "Parquet"),
        ("my.parquet", b"PAR1 and no more PAR1", "Parquet"),
    ],
)
def test_unreadable_tables(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as error:
        table.scan(tmp_path / name)
    assert words in str(error.value)
    assert name in str(error.value)


def test_a_missing_table(tmp_path):
    with pytest.raises(UserError, match=r"is not a file.*path, person, split"):
        table.scan(tmp_path)


CELL = st.one_of(
    st.sampled_from(["", "a/1.jpg", "a/2.jpg", "train", "query", "gallery", "-1", "0"]),
    st.text(max_size=6),
    st.integers(-(10**20), 10**20).map(str),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    columns=st.permutations([*HEAD, "parts"]).flatmap(
        lambda names: st.integers(3, 5).map(lambda n: names[:n])
    ),
    cells=st.lists(st.lists(CELL, min_size=3, max_size=5), max_size=5),
    noise=st.binary(max_size=3),
)
def test_any_table_gives_splits_or_a_user_error(folder, columns, cells, noise):
    text = io.StringIO()
    csv.writer(text).writerows([columns, *cells])
    path = folder / "my.csv"
    path.write_bytes(text.getvalue().encode("utf-8", "surrogatepass") + noise)
    message = ""
    try:
        splits = table.scan(path)
    except UserError as error:
        message = str(error)
    if message:
        assert str(path) in message
    else:
        assert all(split.entries for split in splits.values())
        assert all(e.camera >= 0 for s in splits.values() for e in s.entries)


def test_prepared_from_the_command_line(folder, capsys):
    path = save(folder, ROWS)
    data_dir = folder / "data"
    arguments = ["--dataset=table", f"--source={path}", f"--data_dir={data_dir}"]
    assert commands.ended(prepare.main, [*arguments, "--name=mine"]) == 0
    out = capsys.readouterr().out
    assert "Bert = 1, anna = 2, carl = 3" in out
    assert "camera_filter" not in out
    for split, expected in NAMED.items():
        stored = prepared.open_records("mine", split, data_dir)
        got = [
            (stored.filename(i), stored.person[i], stored.camera[i])
            for i in range(len(stored))
        ]
        assert got == expected
        assert stored[0]["image"] == (folder / expected[0][0]).read_bytes()
    info = tfds.builder_from_directory(data_dir / "mine" / "1.0.0").info
    assert json.loads(json.dumps(info.metadata["person_names"]))["2"] == "anna"


def test_one_camera_is_evaluated_without_its_filter(folder, capsys):
    """With it no query has a match, as the ranking says of the same labels."""
    path = save(folder, [(p, person, "door", split) for p, person, _, split in ROWS])
    data_dir = folder / "data"
    arguments = ["--dataset=table", f"--source={path}", f"--data_dir={data_dir}"]
    assert commands.ended(prepare.main, [*arguments, "--name=mine"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith(" --config.evaluation.camera_filter=False")
    assert "Column camera: 1 camera: door." in lines
    assert any(line.startswith("Note: no query has a match") for line in lines)
    stored = [prepared.open_records("mine", s, data_dir) for s in ("query", "gallery")]
    labels = [Labels(x.person, x.camera) for x in stored]
    for camera_filter, matches in ((True, []), (False, [0])):
        index = MatchIndex(*labels, camera_filter=camera_filter)
        assert index.matches(0).tolist() == matches


def test_a_column_of_part_labels(folder, capsys):
    np.save(folder / "x.npy", np.full((36, 2, 1), 0.9, np.float32))
    rows = [(*row, "x.npy" if n == 1 else "") for n, row in enumerate(ROWS)]
    path = save(folder, rows, head=(*HEAD, "parts"))
    data_dir = folder / "data"
    arguments = [
        "--dataset=table",
        f"--source={path}",
        f"--data_dir={data_dir}",
        "--name=mine",
    ]
    assert commands.ended(prepare.main, arguments) == 2
    assert "--parts_kind" in capsys.readouterr().err
    assert commands.ended(prepare.main, [*arguments, "--parts_kind=pifpaf"]) == 0
    assert "train: 1 of 3 images have part labels" in capsys.readouterr().out
    assert prepared.open_records("mine", "train", data_dir).parts_kind == "pifpaf"
    rows[1] = (*ROWS[1], "gone.npy")
    with pytest.raises(UserError, match="row 3, column parts: there is no file"):
        table.scan(save(folder, rows, head=(*HEAD, "parts")))


def test_whole_floats_are_numbers(folder):
    rows = [(p, f"{int(person)}.0", c, s) for p, person, c, s in numbered()]
    assert found(save(folder, rows)) == found(save(folder, numbered(), name="b.csv"))


def test_a_padded_zero_is_a_distractor_among_names_too(folder):
    padded = [(p, {"0": "0000"}.get(n, n), c, s) for p, n, c, s in ROWS]
    assert found(save(folder, padded)) == found(save(folder, ROWS, name="b.csv"))


# As pandas' documentation of `read_csv` lists them.
MISSING = [
    *("#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND"),
    *("1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
]


@pytest.mark.parametrize("name", ["my.csv", "my.parquet"])
@pytest.mark.parametrize("column", ["path", "person", "camera"])
def test_missing_values_as_pandas_writes_them(folder, name, column):
    rows = [[f"{n}.jpg", "1", "1", "train"] for n in range(len(MISSING))]
    for row, text in zip(rows, MISSING, strict=True):
        row[HEAD.index(column)] = text
    with pytest.raises(UserError) as error:
        table.scan(save(folder, rows, name=name))
    first = 2 if name == "my.csv" else 1
    for n, text in enumerate(MISSING[:6]):
        said = f"row {n + first}, column {column}: {text!r} stands for a missing value"
        assert said in str(error.value)
    assert f"and {len(MISSING) - 6} more" in str(error.value)


def test_a_missing_label_file_is_none(folder):
    rows = [(*row, MISSING[n]) for n, row in enumerate(ROWS)]
    splits = table.scan(save(folder, rows, head=(*HEAD, "parts")))
    assert all(e.parts is None for s in splits.values() for e in s.entries)


@pytest.mark.parametrize("name", ["my.csv", "my.parquet"])
def test_numbers_are_equal_as_numbers(folder, name):
    cameras = ("1", "1.0", "+1", "01", "2", "2.00", "2")
    rows = [(p, i, c, s) for (p, i, _, s), c in zip(numbered(), cameras, strict=True)]
    splits = table.scan(save(folder, rows, name=name))
    assert [e.camera for e in splits["train"].entries] == [0, 0, 0]
    assert splits["train"].camera_names == {0: "1", 1: "2"}
    # Beside a name they are names, and still one camera.
    mixed = [(p, i, "door" if c == "2" else c, s) for p, i, c, s in rows]
    splits = table.scan(save(folder, mixed, name=name))
    assert [e.camera for e in splits["train"].entries] == [0, 0, 0]
    assert list(splits["train"].camera_names.values()) == ["+1", "2.00", "door"]


def test_persons_are_equal_as_numbers(folder):
    spelled = {"anna": ("7", "7.0"), "carl": ("008", "8")}
    rows = []
    for n, (path, person, camera, split) in enumerate(ROWS):
        rows.append((path, spelled.get(person, (person,) * 2)[n % 2], camera, split))
    splits = table.scan(save(folder, rows))
    one, other, _ = splits["train"].entries
    assert one.person == other.person
    assert splits["query"].entries[0].person == splits["gallery"].entries[0].person


def test_a_column_of_parquet_that_is_there_twice(folder):
    stored = pyarrow.table([["1"]] * 4, names=["path", "person", "split", "path"])
    pyarrow.parquet.write_table(stored, folder / "my.parquet")
    with pytest.raises(UserError, match="has a column twice: path, person, split, p"):
        table.scan(folder / "my.parquet")


def test_a_float_column_of_parquet_is_one_camera_each(folder):
    columns = {h: [row[i] for row in ROWS] for i, h in enumerate(HEAD)}
    columns["camera"] = [1.0, 1.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "my.parquet")
    splits = table.scan(folder / "my.parquet")
    assert splits["train"].camera_names == {0: "1", 1: "1.5", 2: "2"}


def test_what_was_understood_of_each_column_is_said(folder):
    rows = [(*row, "", "x") for row in numbered()]
    save_as = {"head": (*HEAD, "parts", "note")}
    remarks = table.scan(save(folder, rows, **save_as))["train"].remarks
    assert remarks == (
        "Column person: whole numbers, kept as they are.",
        "Column split: 3 train, 1 query, 3 gallery rows.",
        "Column camera: 2 cameras: door, hall.",
        "Column parts: label files in 0 of 7 rows.",
        "Columns that were not used: note.",
    )


def test_one_name_among_numbers_is_asked_about(folder):
    rows = [
        (p, {"40": "4O"}.get(person, person), c, s) for p, person, c, s in numbered()
    ]
    remarks = table.scan(save(folder, rows))["train"].remarks
    assert "Most persons are numbers, but not 4O: is that right?" in remarks
    remarks = table.scan(save(folder, ROWS))["train"].remarks
    assert not any("is that right" in line for line in remarks)


def bomb(path, rows, cell):
    """A few kB that stand for `rows` equal rows: runs of a dictionary."""
    each = 200_000

    def column(text):
        indices = pyarrow.array(np.zeros(each, np.int32))
        return pyarrow.DictionaryArray.from_arrays(indices, [text])

    head = ("path", "person", "split")
    block = pyarrow.table(list(map(column, (cell, "1", "train"))), names=head)
    with pyarrow.parquet.ParquetWriter(path, block.schema) as writer:
        for _ in range(rows // each):
            writer.write_table(block)
    return path


def test_a_small_parquet_file_cannot_unpack_to_a_huge_table(tmp_path):
    path = bomb(tmp_path / "my.parquet", 2_000_000, "a.jpg")
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match=r"my\.parquet declares 2000000 rows in \d+ b"):
        table.scan(path)


def test_lists_in_cells_are_not_unpacked(tmp_path):
    cells = pyarrow.array([["a.jpg"] * 100_000])
    stored = pyarrow.table({"path": cells, "person": ["1"], "split": ["train"]})
    pyarrow.parquet.write_table(stored, tmp_path / "my.parquet")
    with pytest.raises(UserError, match="column path holds lists"):
        table.scan(tmp_path / "my.parquet")


def test_equal_large_cells_are_one_text(folder):
    """A megabyte that a thousand rows share stays a megabyte."""
    path = folder / "my.parquet"
    columns = {
        "path": pyarrow.DictionaryArray.from_arrays([0] * 1000, ["x" * 10**6]),
        "person": ["1"] * 1000,
        "split": ["train"] * 1000,
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    _, rows = table_rows.read(path)
    assert len({id(row["path"]) for row in rows}) == 1
