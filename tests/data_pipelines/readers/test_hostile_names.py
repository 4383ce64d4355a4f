"""File names and lists that nobody would write: read right, or refused in words."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipelines.readers import cuhk03, market1501, msmt17, occluded_duke
from data_pipelines.readers.datasets import DATASETS
from reid_jax.errors import UserError
from tests.data_pipelines.readers import trees


class Named:
    """A file of any name, and with any content."""

    def __init__(self, name, data=b""):
        self.name, self.data = name, data

    def __str__(self):
        return "folder/" + self.name

    def read_bytes(self):
        return self.data


def check_message(error):
    str(error).encode()
    assert str(error).replace("\n", "").isprintable()


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=20)
    | st.from_regex(r"\A-?\d{1,3}_c\d{1,2}.{0,4}\.(png|PNG|jpg|Jpeg|bmp)\Z")
)
@example("0001_c1_00.png\n")
@example("0001_c1_00.png\udcff.png")
@example("٣_c1.png")
@example("-1_c0_00.png")
def test_any_name_of_cuhk03_is_read_or_refused(name):
    try:
        entry = market1501.parse(Named(name), "gallery", suffixes=cuhk03._SUFFIXES)
    except UserError as error:
        check_message(error)
        return
    said = re.match(r"(-?[0-9]+)_c([0-9]+)", name)
    assert name.lower().endswith((".png", ".jpg", ".jpeg"))
    if entry is None:
        assert int(said[1]) == -1
    else:
        assert (entry.person, entry.camera + 1) == (int(said[1]), int(said[2]))


LINE = r"\A[0-9]{1,4}/[0-9]{4}_[0-9]{1,3}_[0-9]{1,2}_[^/\n]{0,5}\.jpg [0-9]{1,4}\Z"


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=40) | st.from_regex(LINE) | st.from_regex(LINE.replace("/", "."))
)
@example("../../etc/passwd 1")
@example("0000/../0000_000_01_x.jpg 1")
@example("/0000/0000_000_01_x.jpg 1")
@example("0000/0000_000_01_/../x.jpg 1")
@example("0000/0000_000_01_x.jpg -1")
@example("0000/0000_000_01_x.jpg 99999999999999999999")
@example("0000/0000_٣_01_x.jpg 1")
@example("0000/0000_000_01_0303 morning.JPG\t1")
def test_any_line_of_a_list_of_msmt17_is_read_or_refused(line):
    data = line.encode("utf-8", "surrogatepass")
    try:
        listed = msmt17._read_list(Named("list_query.txt", data))
    except UserError as error:
        check_message(error)
        return
    for path, camera, person in listed:
        folder, name = path.split("/")
        assert folder.isdigit()
        assert name.lower().endswith((".jpg", ".jpeg"))
        assert camera == int(name.split("_")[2])
        assert 0 <= person < 2**31


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["0001_c1.jpg", "-1_c1.jpg", "0_c1.jpg"]) | st.text())
    | st.binary()
)
@example(["../query/0001_c1.jpg", "0001_c1.jpg"])
def test_any_list_of_occluded_duke_is_read_or_refused(content):
    data = content
    if isinstance(content, list):
        data = "\n".join(content).encode("utf-8", "surrogatepass")
    images = {n: Named(n) for n in ("0001_c1.jpg", "-1_c1.jpg", "0_c1.jpg")}
    try:
        split = occluded_duke._split(Named("query.list", data), "query", images)
    except UserError as error:
        check_message(error)
        return
    assert [e.path.name for e in split.entries] == ["0001_c1.jpg"]
    assert not set(split.missing) & set(images)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0000/0000_000_00_x.jpg 0", "camera 0 is out of range"),
        ("0000/0000_000_01_\x07.jpg 0", "unprintable"),
        ("0000/0000_000_x.jpg 0", r"list_query\.txt: line 1, .* is not <folder>/<per"),
        ("", r"list_query\.txt is empty"),
    ],
)
def test_a_wrong_line_of_msmt17_is_named(tmp_path, line, words):
    files = trees.msmt17() | {"list_query.txt": line.encode()}
    if line:
        files["test/" + line.split()[0]] = b""
    with pytest.raises(UserError, match=words):
        msmt17.MSMT17.read(trees.write(tmp_path, files))


@pytest.mark.parametrize(
    ("suffix", "data_set"), [("JPG", "dukemtmc"), ("PNG", "cuhk03np_labeled")]
)
def test_suffixes_in_capitals(tmp_path, suffix, data_set):
    names = trees.DUKE if suffix == "JPG" else trees.CUHK03
    files = {name.rsplit(".", 1)[0] + f".{suffix}": b"" for name in names}
    splits = DATASETS[data_set].read(trees.write(tmp_path, files))
    assert sum(split.counts.images for split in splits.values()) == len(names)


def test_pictures_of_the_other_kind_are_refused(tmp_path):
    files = {name.replace(".jpg", ".png"): b"" for name in trees.DUKE}
    with pytest.raises(UserError, match=r"\.png: the name is not .*\.jpg\. Rename"):
        market1501.MARKET1501.read(trees.write(tmp_path, files))


def test_a_broken_link_is_missing_or_cannot_be_read(tmp_path):
    files = trees.msmt17()
    trees.write(tmp_path, files)
    gone = tmp_path / "test/0000/0000_007_06_0303morning_0015_0.jpg"
    gone.unlink()
    gone.symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(UserError, match="test has no image of an identity"):
        msmt17.MSMT17.read(tmp_path)
