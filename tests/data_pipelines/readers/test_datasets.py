"""What holds for every data set read from a source: one small tree of each layout."""

import shutil

import numpy as np
import pytest

from data_pipelines import prepare, prepared
from data_pipelines.entries import Counts, Entry, Split
from data_pipelines.readers import sources
from data_pipelines.readers.datasets import DATASETS
from reid_jax.errors import UserError
from tests import commands
from tests.data_pipelines import market_folder
from tests.data_pipelines.readers import trees

DUKE = {
    "train": [("0001_c2_f0046182.jpg", 1, 1), ("0001_c8_f0046302.jpg", 1, 7)],
    "query": [("0005_c2_f0046985.jpg", 5, 1)],
    "gallery": [("0002_c1_f0044158.jpg", 2, 0), ("0005_c5_f0051341.jpg", 5, 4)],
}
MSMT17 = {
    "train": [
        ("0000_000_01_0303morning_0015_0.jpg", 1, 0),
        ("0001_003_12_0303noon_0015_1.jpg", 2, 11),
        ("0001_004_15_0303noon_0015_1_ex.jpg", 2, 14),
    ],
    "query": [("0000_000_01_0303morning_0015_0.jpg", 3, 0)],
    "gallery": [("0000_007_06_0303morning_0015_0.jpg", 3, 5)],
}
CUHK03 = {
    "train": [("0001_c1_00.png", 1, 0), ("0001_c2_05.png", 1, 1)],
    "query": [("0768_c1_00.png", 768, 0)],
    "gallery": [("0768_c2_07.png", 768, 1)],
}
OCCLUDED_DUKE = {
    "train": [("0002_c1_f0044158.jpg", 2, 0)],
    "query": [("0005_c2_f0046985.jpg", 5, 1)],
    "gallery": [("0001_c2_f0046182.jpg", 1, 1), ("0005_c5_f0051341.jpg", 5, 4)],
}
# Case: data set, its files, what is read of them.
CASES = {
    "dukemtmc": ("dukemtmc", trees.images(trees.DUKE), DUKE),
    "occluded_duke": ("occluded_duke", trees.images(trees.DUKE), DUKE),
    "occluded_duke listed": ("occluded_duke", trees.occluded_duke(), OCCLUDED_DUKE),
    "msmt17": ("msmt17", trees.msmt17(), MSMT17),
    "msmt17 v2": ("msmt17", trees.msmt17("mask_train_v2", "mask_test_v2"), MSMT17),
    "msmt17_noval": (
        "msmt17_noval",
        trees.msmt17(),
        MSMT17 | {"train": MSMT17["train"][:2]},
    ),
    "cuhk03np_labeled": ("cuhk03np_labeled", trees.cuhk03(), CUHK03),
    "cuhk03np_detected": ("cuhk03np_detected", trees.cuhk03(), CUHK03),
    "cuhk03np one": ("cuhk03np_labeled", trees.images(trees.CUHK03), CUHK03),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def read(name, source, **options):
    splits = DATASETS[name].read(source, **options)
    return {split: trees.triples(found) for split, found in splits.items()}


def test_what_is_stored_is_what_the_names_say(case, tmp_path):
    name, files, expected = case
    source, data_dir = trees.write(tmp_path / "source", files), tmp_path / "data"
    prepare.prepare(
        name,
        source=source,
        data_dir=data_dir,
        allow_other_counts=True,
        name="own",
        progress=False,
    )
    whole = set(files.values())
    for split, rows in expected.items():
        stored = prepared.open_records("own", split, data_dir)
        assert [stored.filename(i) for i in range(len(stored))] == [r[0] for r in rows]
        np.testing.assert_array_equal(stored.person, [r[1] for r in rows])
        np.testing.assert_array_equal(stored.camera, [r[2] for r in rows])
        assert {record["image"] for record in stored} <= whole


@pytest.mark.parametrize("top", ["", "Наборы данных/"])
def test_a_zip_of_it_or_of_its_parent_is_as_good(case, tmp_path, top):
    name, files, expected = case
    assert read(name, trees.pack(tmp_path / "a.zip", files, top=top)) == expected


def test_its_parent_is_as_good(case, tmp_path):
    name, files, expected = case
    trees.write(tmp_path / "données", files)
    trees.write(tmp_path, {"readme.txt": b"", "other/list.txt": b""})
    assert read(name, tmp_path) == expected


def test_hidden_files_are_left_out(case, tmp_path):
    name, files, expected = case
    hidden = {
        f"{folder}/{file}": b"x"
        for folder in {n.rsplit("/", 1)[0] for n in files if "/" in n}
        for file in ("._0009_c1_00.png", ".DS_Store", "Thumbs.db", "desktop.ini")
    }
    assert read(name, trees.write(tmp_path, files | hidden)) == expected


def test_symbolic_links_are_followed(case, tmp_path):
    name, files, expected = case
    trees.write(tmp_path / "store", files)
    for file in files:
        link = tmp_path / "links" / "set" / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(tmp_path / "store" / file)
    (tmp_path / "link").symlink_to(tmp_path / "links")
    assert read(name, tmp_path / "link") == expected


def test_a_loop_of_links_does_not_hang(case, tmp_path):
    name, files, _ = case
    folder = next(n for n in files if "/" in n).split("/")[0]
    (tmp_path / folder).symlink_to(tmp_path / folder)
    with pytest.raises(UserError, match=r"Expected|cannot be read"):
        read(name, tmp_path)


@pytest.mark.parametrize("data", [b"", market_folder.jpeg(64, 32)[:-300], b"<html>"])
def test_a_damaged_image_is_named_and_nothing_is_stored(case, tmp_path, data):
    name, files, expected = case
    bad = expected["gallery"][-1][0]
    # Of the same two names of cuhk03-np, one is read.
    damaged = {n: data if n.endswith(bad) else d for n, d in files.items()}
    source = trees.write(tmp_path / "source", damaged)
    with pytest.raises(UserError) as error:
        prepare.prepare(
            name,
            source=source,
            data_dir=tmp_path / "data",
            allow_other_counts=True,
            name="own",
            progress=False,
        )
    assert f"{bad}: it cannot be read" in str(error.value)
    assert str(error.value).endswith("Nothing was stored.")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_wrong_tree_says_what_was_expected_and_found(case, tmp_path):
    name, files, _ = case
    with pytest.raises(UserError, match=r"Expected .* Found in .*: nothing\."):
        read(name, tmp_path)
    trees.write(tmp_path / "set", files)
    folder = next(n for n in files if "/" in n).split("/")[0]
    for boxes in (folder, "detected"):
        shutil.rmtree(tmp_path / "set" / boxes, ignore_errors=True)
    with pytest.raises(UserError, match=r"Expected .* Found in .*set: ") as error:
        read(name, tmp_path / "set")
    found = str(error.value).split("Found in")[1].split(": ", 1)[1].rstrip(".")
    left = [path.name for path in (tmp_path / "set").iterdir()]
    assert found == (", ".join(sorted(left)) or "nothing")


def test_empty_folders_are_refused(case, tmp_path):
    name, files, _ = case
    for file in files:
        folder = (tmp_path / file).parent
        folder.mkdir(parents=True, exist_ok=True)
    lists = {n: d for n, d in files.items() if "/" not in n}
    trees.write(tmp_path, lists)
    with pytest.raises(UserError, match="has no image of an identity"):
        read(name, tmp_path)


def test_other_counts_are_refused_with_the_differences(case, tmp_path):
    name, files, expected = case
    with pytest.raises(UserError) as error:
        prepare.prepare(
            name, source=trees.write(tmp_path, files), data_dir=tmp_path / "data"
        )
    for split, published in DATASETS[name].published.items():
        found = len(expected[split])
        assert f"{split}: {found} images instead of {published.images}" in str(
            error.value
        )
    assert DATASETS[name].title in str(error.value)


def test_every_data_set_says_what_it_wants(tmp_path):
    for name, data_set in DATASETS.items():
        assert data_set.name == name
        assert data_set.expected.startswith("Expected ")
        with pytest.raises(UserError, match=f"{name} .*"):
            prepare.prepare(name, data_dir=tmp_path, name="mine")


def test_a_note_is_printed(tmp_path, capsys):
    source = trees.write(tmp_path / "source", trees.images(trees.DUKE))
    arguments = ["--dataset=dukemtmc", "--allow_other_counts", f"--source={source}"]
    arguments += ["--name=mine", f"--data_dir={tmp_path / 'data'}"]
    assert commands.ended(prepare.main, arguments) == 0
    assert "withdrawn by its authors" in capsys.readouterr().out


def test_lists_where_there_is_no_use_for_them(tmp_path):
    with pytest.raises(UserError, match="dukemtmc has no use for --lists"):
        prepare.prepare("dukemtmc", source="x", lists="y", data_dir=tmp_path)


def test_published_identities_that_nobody_counted_are_not_compared():
    entries = (Entry(None, 1, 0),)
    data_set = sources.DataSet(
        name="some",
        title="Some",
        scan=None,
        expected="Expected.",
        published={"query": Counts(images=1, identities=None)},
    )
    sources.check_published(data_set, {"query": Split(entries)})
    with pytest.raises(UserError, match="query: 0 images instead of 1"):
        sources.check_published(data_set, {})
