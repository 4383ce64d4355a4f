"""Reading Market-1501's layout from folders and zip files, right and wrong ones."""

import collections
import pathlib
import re
import shutil
import zipfile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipelines import entries
from data_pipelines.readers import market1501, sources
from reid_jax.errors import UserError
from tests.data_pipelines.market_folder import jpeg, small_files, write


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "Market-1501-v15.09.15", small_files())


def summary(splits):
    return {
        name: [(e.path.name, e.person, e.camera) for e in split.entries]
        for name, split in splits.items()
    }


EXPECTED = {
    "train": [
        ("0002_c1s1_000451_03.jpg", 2, 0),
        ("0002_c3s1_000551_01.JPG", 2, 2),
        ("0007_c6s1_000776_01.jpg", 7, 5),
    ],
    "query": [
        ("0001_c1s1_001051_00.jpg", 1, 0),
        ("0003_c2s1_001051_00.jpg", 3, 1),
    ],
    "gallery": [
        ("0000_c3s1_000401_03.jpg", 0, 2),
        ("0001_c4s6_000810_00.jpg", 1, 3),
        ("0003_c5s6_000810_00.jpg", 3, 4),
    ],
}


def test_scan_reads_names_and_drops_junk(folder):
    splits = market1501.scan(folder)
    assert summary(splits) == EXPECTED
    assert {k: s.counts for k, s in splits.items()} == {
        "train": entries.Counts(3, 2),
        "query": entries.Counts(2, 2),
        "gallery": entries.Counts(3, 2, junk=2),
    }


def test_the_folder_above_is_as_good(folder):
    (folder.parent / "readme.txt").write_text("x")
    assert summary(market1501.scan(folder.parent)) == EXPECTED


@pytest.mark.parametrize("base", ["inside", "above"])
@pytest.mark.parametrize("listed", [True, False])
def test_a_zip_is_as_good(folder, tmp_path, base, listed):
    root = folder if base == "inside" else folder.parent
    archive = tmp_path / "market.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(folder.rglob("*")):
            if listed or path.is_file():
                packed.write(path, path.relative_to(root))
        packed.writestr("__MACOSX/query/._0001_c1.jpg", b"resource fork")
        packed.writestr(".DS_Store", b"")
    splits = market1501.scan(archive)
    assert summary(splits) == EXPECTED
    entry = splits["train"].entries[0]
    assert (
        entry.path.read_bytes()
        == small_files()["bounding_box_train/" + EXPECTED["train"][0][0]]
    )


def test_files_of_file_managers_are_ignored(folder):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0001_c1s1.jpg"):
        (folder / "query" / name).write_bytes(b"x")
    assert summary(market1501.scan(folder)) == EXPECTED


def test_cameras_from_ten_are_read_whole(folder):
    (folder / "query" / "0003_c12.jpg").write_bytes(jpeg())
    assert ("0003_c12.jpg", 3, 11) in summary(market1501.scan(folder))["query"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("query/portrait.jpg", "person.*_c.*Rename or remove"),
        ("query/0001_c1s1.png", "jpg"),
        ("query/0001.jpg", "jpg"),
        ("query/--1_c1.jpg", "jpg"),
        ("query/٣_c1.jpg", "jpg"),
        ("query/-2_c1.jpg", "person -2 is out of range"),
        ("query/99999999999_c1.jpg", "person 99999999999 is out of range"),
        ("query/0000_c1.jpg", "person 0 is out of range.*in the gallery only"),
        ("bounding_box_train/0_c1.jpg", "person 0 is out of range"),
        ("query/0001_c0.jpg", "camera 0 is out of range"),
        ("query/0001_c1_\x07.jpg", "unprintable"),
    ],
)
def test_a_wrong_file_name_is_named(folder, name, words):
    (folder / name).write_bytes(jpeg())
    with pytest.raises(UserError, match=words) as error:
        market1501.scan(folder)
    assert name.split("/")[1].split("_")[0].encode("unicode_escape").decode() in str(
        error.value
    )


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20) | st.from_regex(r"\A-?\d{1,3}_c\d{1,2}.*(jpg)?\Z"))
@example("0001_c1.jpg\n")
@example("-1_c1")
@example("0001_c1\udcff.jpg")
def test_any_name_is_read_or_refused(text):
    class Named:
        name = text

        def __str__(self):
            return "query/" + text

    try:
        entry = market1501.parse(Named(), "query")
    except UserError as error:
        message = str(error)
    else:
        message = ""
        published = re.match(r"([-\d]+)_c(\d)", text)
        assert int(published[1]) == (entry.person if entry else -1)
        assert entry is None or entry.camera >= 0
        assert text.lower().endswith((".jpg", ".jpeg"))
    message.encode()
    assert message.isprintable()


def test_a_missing_source_says_what_is_expected(tmp_path):
    with pytest.raises(UserError, match=r"does not exist.*bounding_box_train, query"):
        market1501.scan(tmp_path / "nothing")


def test_a_source_that_cannot_be_read_is_a_user_error(folder, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "iterdir", refuse)
    with pytest.raises(UserError, match=r"cannot be read .*Permission denied"):
        market1501.MARKET1501.read(folder)


def test_a_wrong_folder_says_what_was_found(folder):
    with pytest.raises(UserError, match=r"Expected.*Found in .*0001_c1s1_001051_00"):
        market1501.scan(folder / "query")
    shutil.rmtree(folder / "query")
    with pytest.raises(
        UserError, match=r"Found in .*: bounding_box_test, bounding_box_train\."
    ):
        market1501.scan(folder)


def test_an_empty_folder_says_so(tmp_path):
    with pytest.raises(UserError, match="nothing"):
        market1501.scan(tmp_path)


def test_two_data_sets_in_one_folder_are_not_guessed_between(folder):
    shutil.copytree(folder, folder.parent / "other")
    with pytest.raises(UserError, match=r"Market-1501-v15\.09\.15, other"):
        market1501.scan(folder.parent)


@pytest.mark.parametrize("name", ["bounding_box_train", "query", "bounding_box_test"])
def test_a_split_without_identities_is_refused(folder, name):
    for path in (folder / name).iterdir():
        if not path.name.startswith(("-1", "0000")):
            path.unlink()
    with pytest.raises(UserError, match=f"{name} has no image of an identity"):
        market1501.scan(folder)


def test_a_file_that_is_no_zip_is_refused(tmp_path):
    (tmp_path / "market.zip").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UserError, match="neither a folder nor a whole zip"):
        market1501.scan(tmp_path / "market.zip")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_with_a_name_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "market.zip", "w") as packed:
        for name, data in small_files().items():
            packed.writestr(name, data)
        packed.writestr("query/0001_c1s1_001051_00.jpg", b"other")
    with pytest.raises(UserError, match=r"query/0001_c1s1_001051_00\.jpg 2 times"):
        market1501.scan(tmp_path / "market.zip")


def test_other_counts_are_refused_with_the_differences(folder):
    with pytest.raises(UserError) as error:
        sources.check_published(market1501.MARKET1501, market1501.scan(folder))
    for words in (
        "train: 3 images instead of 12936",
        "query: 2 identities instead of 750",
        "gallery: 2 junk images instead of 3819",
        "--allow_other_counts --name=",
    ):
        assert words in str(error.value)


class _Name(str):
    """A file name that stands for its path."""

    name = property(str)


@pytest.fixture
def published(shared_data):
    """Split -> names of the published files; 19,732 of them in the gallery."""
    lists = shared_data / "splits" / "market1501"
    names = {"train": [], "query": [], "gallery": []}
    for line in (lists / "list_market_train.txt").read_text().splitlines():
        names["train"].append(line.split()[0])
    for line in (lists / "list_market_test.txt").read_text().splitlines():
        folder, name = line.split()[0].split("/")
        names["query" if folder == "query" else "gallery"].append(name)
    # The list leaves junk out.
    names["gallery"] += [f"-1_c1s1_{i:06}_00.jpg" for i in range(3819)]
    return {
        split: [market1501.parse(_Name(f), split) for f in files]
        for split, files in names.items()
    }


def test_the_published_names_have_the_published_counts(published):
    assert [len(published[s]) for s in market1501.FOLDERS] == [12936, 3368, 19732]
    splits = {}
    for split, parsed in published.items():
        kept = tuple(entry for entry in parsed if entry)
        splits[split] = entries.Split(kept, len(parsed) - len(kept))
        assert {e.camera for e in kept} == set(range(6))
    sources.check_published(market1501.MARKET1501, splits)


def test_names_are_read_as_the_published_labels(shared_data, published):
    scipy_io = pytest.importorskip("scipy.io")
    for split, prefix in (("query", "query"), ("gallery", "test")):
        columns = []
        for suffix, key in (("ID", "ID"), ("Cam", "CAM")):
            path = shared_data / "splits/market1501" / f"{prefix}{suffix}.mat"
            columns.append(scipy_io.loadmat(path)[prefix + key].ravel().astype(int))
        labels = zip(*(c.tolist() for c in columns), strict=True)
        expected = collections.Counter(row for row in labels if row[0] != -1)
        got = collections.Counter(
            (entry.person, entry.camera + 1) for entry in published[split] if entry
        )
        assert got == expected
