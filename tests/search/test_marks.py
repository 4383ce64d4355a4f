"""Marks of pairs, and the persons that they make."""

import csv
import itertools

import numpy as np
import pytest

from data_pipelines.readers import table
from reid_jax.errors import UserError
from reid_jax.search.marks import MARKS, Marked, Marks, persons


def test_persons_are_what_same_connects():
    rng = np.random.default_rng(0)
    for _ in range(200):
        paths = [str(i) for i in range(7)]
        pairs = list(itertools.combinations(paths, 2))
        chosen = rng.choice(len(pairs), rng.integers(1, 9), replace=False)
        marks = {pairs[i]: MARKS[rng.integers(3)] for i in chosen}
        # Reachability by powers of the matrix, instead of joined sets.
        joined = np.eye(7, dtype=int)
        for (one, other), said in marks.items():
            if said == "same":
                joined[int(one), int(other)] = joined[int(other), int(one)] = 1
        reach = np.linalg.matrix_power(joined, 7) > 0
        torn = [
            bool(reach[int(one), int(other)]) and said == "different"
            for (one, other), said in marks.items()
        ]
        bad = {
            int(pair[0]) for pair, is_torn in zip(marks, torn, strict=True) if is_torn
        }
        found = persons(paths, marks)
        for i, j in itertools.product(range(7), repeat=2):
            left_out = reach[i].sum() == 1 or any(reach[i, b] for b in bad)
            assert (found[str(i)] == "-1") == left_out
            if not left_out:
                assert (found[str(i)] == found[str(j)]) == reach[i, j]


@pytest.fixture
def marks(tmp_path):
    kept = Marks(tmp_path / "marks")
    yield kept
    kept.close()


def test_the_table_can_be_prepared(marks, photos, tmp_path):
    images = {file.stem: Marked(str(file), file.stem[-1]) for file in photos.iterdir()}
    outside = marks.place("0" * 64, ".png")
    marks.keep(outside, (photos / "0_c0.png").read_bytes())
    for one, other, said in [
        ("1_c0", "1_c1", "same"),
        ("1_c1", "1_c2", "same"),
        ("2_c0", "2_c1", "same"),
        ("1_c0", "3_c1", "different"),
        ("1_c0", "2_c2", "unsure"),
    ]:
        marks.mark(images[one], images[other], said, at="now")
    marks.mark(Marked(outside), images["0_c1"], "same", at="now")
    splits = table.scan(marks.folder / "table.csv")
    assert list(splits) == ["train"]
    by_person = {}
    for entry in splits["train"].entries:
        by_person.setdefault(entry.person, set()).add(str(entry.path).rsplit("/")[-1])
    assert sorted(map(sorted, by_person.values())) == [
        ["0" * 32 + ".png", "0_c1.png"],
        ["1_c0.png", "1_c1.png", "1_c2.png"],
        ["2_c0.png", "2_c1.png"],
    ]
    assert splits["train"].junk == 2


def test_the_last_mark_counts_and_is_kept(marks, photos):
    one, other = Marked("/a.png", "1"), Marked("/b.png")
    marks.mark(one, other, "same", at="now")
    marks.mark(other, one, "different", at="later")
    assert marks.of("/a.png", "/b.png") == marks.of("/b.png", "/a.png") == "different"
    with pytest.raises(UserError, match="Another process is reviewing"):
        Marks(marks.folder)
    marks.close()
    again = Marks(marks.folder)
    assert again.of("/a.png", "/b.png") == "different"
    assert again.counts() == {"same": 0, "different": 1, "unsure": 0}
    again.close()
    with (marks.folder / "marks.jsonl").open("a") as file:
        file.write("cut o")
    with pytest.raises(UserError, match="line 3 is damaged"):
        Marks(marks.folder)


def test_cameras_that_are_not_known(marks):
    marks.mark(Marked("/a.png"), Marked("/b.png"), "same", at="now")
    rows = list(csv.DictReader((marks.folder / "table.csv").open()))
    assert list(rows[0]) == ["path", "person", "split"]
    marks.mark(Marked("/a.png"), Marked("/c.png", "1"), "same", at="now")
    rows = list(csv.DictReader((marks.folder / "table.csv").open()))
    assert [row["camera"] for row in rows] == ["unknown", "unknown", "1"]
