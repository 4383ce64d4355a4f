"""Occluded and partial data sets: trees of the published names and counts."""

import functools
import io
import shutil

import numpy as np
import PIL.Image
import pytest

from data_pipelines import entries, prepare, prepared, protocols
from data_pipelines.readers import (
    occluded_reid,
    p_dukemtmc,
    partial_ilids,
    partial_reid,
    sources,
)
from reid_jax.errors import UserError
from tests.data_pipelines.readers import body_trees as trees

PUBLISHED = {
    "occluded_reid": (occluded_reid.OCCLUDED_REID, trees.occluded_reid),
    "occluded_reid_half": (occluded_reid.OCCLUDED_REID_HALF, trees.occluded_reid),
    "p_dukemtmc": (p_dukemtmc.P_DUKEMTMC, trees.p_dukemtmc),
    "partial_reid": (partial_reid.PARTIAL_REID, trees.partial_reid),
    "partial_reid_occluded": (
        partial_reid.PARTIAL_REID_OCCLUDED,
        functools.partial(trees.partial_reid, trees.OCCLUDED, "{p:03}{n:02}.jpg"),
    ),
    "partial_ilids_119": (partial_ilids.PARTIAL_ILIDS_119, trees.partial_ilids),
    "partial_ilids_o": (
        partial_ilids.PARTIAL_ILIDS_O,
        functools.partial(trees.partial_ilids, (trees.PARTIAL, trees.WHOLE)),
    ),
    "partial_ilids_p": (
        partial_ilids.PARTIAL_ILIDS_P,
        functools.partial(trees.partial_ilids, ("query", "gallery"), "{p:03}_1.jpg"),
    ),
    "partial_ilids_218": (partial_ilids.PARTIAL_ILIDS_218, trees.partial_ilids_218),
}

# Images and identities of train, query and gallery (fact sheet of the papers).
COUNTS = {
    "occluded_reid": (None, (1000, 200), (1000, 200)),
    "occluded_reid_half": ((1000, 100), (500, 100), (500, 100)),
    "p_dukemtmc": ((12927, 665), (2163, 634), (9053, 634)),
    "partial_reid": (None, (300, 60), (300, 60)),
    "partial_reid_occluded": (None, (300, 60), (300, 60)),
    "partial_ilids_119": (None, (119, 119), (119, 119)),
    "partial_ilids_o": (None, (119, 119), (119, 119)),
    "partial_ilids_p": (None, (119, 119), (119, 119)),
    "partial_ilids_218": (None, (218, 119), (119, 119)),
}


def images_and_persons(split):
    return len(split.entries), len({e.person for e in split.entries})


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts_identities_cameras_and_protocol(tmp_path, name, zipped):
    data_set, names = PUBLISHED[name]
    inside = [f"download/{n}" for n in names()]
    if zipped:
        source = trees.pack(tmp_path / "set.zip", inside)
    else:
        source = trees.write(tmp_path / "set", inside)
    splits = data_set.scan(source)
    sources.check_published(data_set, splits)

    wanted = dict(zip(entries.SPLITS, COUNTS[name], strict=True))
    assert list(splits) == [split for split in entries.SPLITS if wanted[split]]
    for split, found in splits.items():
        assert images_and_persons(found) == wanted[split]
    assert {e.camera for e in splits["query"].entries} == {0}
    assert {e.camera for e in splits["gallery"].entries} == {1}
    tested = {e.person for e in splits["query"].entries}
    assert tested <= {e.person for e in splits["gallery"].entries}

    made = protocols.protocol(name)
    assert data_set.name == made.dataset == name
    assert made.valid_queries == len(splits["query"].entries)
    if "train" in splits:
        assert made.train_dataset == name
        assert {e.camera for e in splits["train"].entries} == {0, 1}
        assert not tested & {e.person for e in splits["train"].entries}
    else:
        assert made.train_dataset == "market1501"
        assert "market1501" in data_set.note


def test_folder_and_zip_list_the_same_in_the_same_order(tmp_path):
    names = trees.p_dukemtmc(train=(40, 7), query=9, gallery=20, test=4)
    hidden = ["test/whole_body_images/.cache/x", "train/whole_body_images/Thumbs.db"]
    names += hidden
    folder = trees.write(tmp_path / "set", names)
    archive = trees.pack(tmp_path / "set.zip", sorted(names, reverse=True))
    listed = [
        {
            split: [
                (str(e.path).split("set")[1].removeprefix(".zip"), e.person, e.camera)
                for e in found.entries
            ]
            for split, found in p_dukemtmc.scan(source).items()
        }
        for source in (folder, archive)
    ]
    assert listed[0] == listed[1]
    wanted = ("/test/occluded_body_images/0002/0002_c1_f0000000.jpg", 2, 0)
    assert listed[0]["query"][0] == wanted
    assert len(listed[0]["train"]) == 40


@pytest.mark.parametrize(
    ("pattern", "person"),
    [
        ("007_03.jpg", 7),
        ("00703.JPG", 7),
        ("007.png", 7),
        ("0012_3.jpg", 12),
        ("007a.jpg", 7),
    ],
)
def test_persons_of_partial_reid(tmp_path, pattern, person):
    names = [f"{folder}/{pattern}" for folder in (trees.PARTIAL, trees.WHOLE)]
    splits = partial_reid.PARTIAL_REID.scan(trees.write(tmp_path / "set", names))
    assert [e.person for e in splits["query"].entries] == [person]


def test_the_other_queries_of_partial_reid_are_named(tmp_path):
    source = trees.write(tmp_path / "set", trees.partial_reid(trees.OCCLUDED))
    with pytest.raises(UserError, match="--dataset=partial_reid_occluded") as error:
        partial_reid.PARTIAL_REID.scan(source)
    assert "Found in" in str(error.value)
    # With both kinds of queries in the folder, the name decides.
    trees.write(source, [f"{trees.PARTIAL}/001_001.jpg"])
    assert len(partial_reid.PARTIAL_REID.scan(source)["query"].entries) == 1
    both = partial_reid.PARTIAL_REID_OCCLUDED.scan(source)
    assert len(both["query"].entries) == 300


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "occluded_reid",
            "occluded_body_images/7/007_01.jpeg",
            "1001 images instead of",
        ),
        ("occluded_reid", "occluded_body_images/008/007_99.tif", "lies in folder 008"),
        ("occluded_reid", "whole_body_images/x/007_99.tif", "lies in folder x"),
        ("occluded_reid", "whole_body_images/007/deep/007_9.tif", "deep"),
        ("occluded_reid", "whole_body_images/readme.txt", "readme.txt"),
        ("occluded_reid", "whole_body_images/000_01.tif", "person 0 is out of range"),
        ("partial_ilids_119", "Probe/120.jpg", "120 images instead of 119"),
        ("partial_ilids_218", "Probe/012.jpg", "012.jpg"),
        ("p_dukemtmc", "test/whole_body_images/9999_c1.jpg", "635 identities instead"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_wrong_files_are_named(tmp_path, name, change, message, zipped):
    data_set, names = PUBLISHED[name]
    if zipped:
        source = trees.pack(tmp_path / "set.zip", [*names(), change])
    else:
        source = trees.write(tmp_path / "set", [*names(), change])
    with pytest.raises(UserError, match=message):
        sources.check_published(data_set, data_set.scan(source))


@pytest.mark.parametrize(
    ("name", "lost", "message"),
    [
        ("occluded_reid", "*/007_0[34].tif", "2 of the 5 images of person 7"),
        ("occluded_reid_half", "*/003_0[34].tif", "2 of the 5 images of person 3"),
        ("occluded_reid_half", "*/002_03.tif", "2 of the 10 images of person 2"),
        ("partial_reid", "060_000.jpg", "1 of the 5 images of person 60"),
        ("partial_ilids_119", "088.jpg", "1 of the 1 images of person 88"),
    ],
)
def test_lost_images_are_named(tmp_path, name, lost, message):
    data_set, names = PUBLISHED[name]
    source = trees.write(tmp_path / "set", names())
    query = data_set.scan(source)["query"].entries[0].path
    folders = [query.parents[len(query.relative_to(source).parts) - 2]]
    if "10 images" in message:
        folders.append(source / trees.WHOLE)
    for path in (p for folder in folders for p in folder.glob(lost)):
        path.unlink()
    with pytest.raises(UserError, match=message):
        sources.check_published(data_set, data_set.scan(source))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_wrong_tree_says_what_was_expected_and_found(tmp_path, name):
    data_set, _ = PUBLISHED[name]
    source = trees.write(tmp_path / "set", ["bounding_box_train/0001_c1.jpg"])
    with pytest.raises(UserError) as error:
        data_set.scan(source)
    assert data_set.expected in str(error.value)
    assert "Found in" in str(error.value)
    assert "bounding_box_train" in str(error.value)


QUERY_FOLDERS = (trees.OCCLUDED, trees.PARTIAL, "Probe", "query")


@pytest.mark.parametrize("name", PUBLISHED)
def test_empty_folders_are_errors(tmp_path, name):
    data_set, names = PUBLISHED[name]
    source = trees.write(tmp_path / "set", names())
    folder = data_set.scan(source)["query"].entries[0].path
    while folder.parent.name not in QUERY_FOLDERS:
        folder = folder.parent
    shutil.rmtree(folder.parent)
    folder.parent.mkdir()
    with pytest.raises(UserError, match="has no image of an identity"):
        data_set.scan(source)


def test_the_218_queries_are_not_the_119(tmp_path):
    larger = trees.write(tmp_path / "larger", trees.partial_ilids_218())
    data_set = partial_ilids.PARTIAL_ILIDS_119
    with pytest.raises(UserError, match="218 images instead of 119"):
        sources.check_published(data_set, data_set.scan(larger))
    query = partial_ilids.PARTIAL_ILIDS_218.scan(larger)["query"].entries
    assert {e.person for e in query} == set(range(1, 120))
    smaller = trees.write(tmp_path / "smaller", trees.partial_ilids())
    with pytest.raises(UserError, match="the name is not that of an image of a person"):
        partial_ilids.PARTIAL_ILIDS_218.scan(smaller)


def test_half_of_occluded_reid():
    persons = set(range(1, 201))
    half = occluded_reid.training_half(persons)
    assert half < persons
    assert len(half) == 100
    # The draw itself: it must never change, or runs are no longer comparable.
    assert sorted(half)[:10] == HALF_BEGINS
    assert half == occluded_reid.training_half(set(range(200, 0, -1)))
    other = occluded_reid.training_half(persons, seed=1)
    assert len(other) == 100
    assert 30 < len(half & other) < 70
    assert len(occluded_reid.training_half({3, 1, 2})) == 1


HALF_BEGINS = [2, 4, 6, 8, 15, 17, 18, 20, 21, 24]


def test_half_split_is_disjoint_and_whole(tmp_path):
    source = trees.write(tmp_path / "set", trees.occluded_reid())
    splits = occluded_reid.scan_half(source)
    train, query, gallery = (splits[s].entries for s in entries.SPLITS)
    files = [e.path for e in (*train, *query, *gallery)]
    assert len(set(files)) == len(files) == 2000
    assert not {e.person for e in train} & {e.person for e in (*query, *gallery)}
    assert {e.person for e in query} == {e.person for e in gallery}
    assert {e.path.parts[-3] for e in query} == {trees.OCCLUDED}
    assert {e.path.parts[-3] for e in gallery} == {trees.WHOLE}


@pytest.mark.parametrize("name", ["occluded_reid", "occluded_reid_half"])
def test_tiff_images_are_stored_without_loss(tmp_path, name):
    names = trees.occluded_reid(persons=range(1, 7), each=2)
    source = trees.write(tmp_path / "set", names, trees.noise("TIFF"))
    prepare.prepare(
        name,
        source=source,
        data_dir=tmp_path / "data",
        name="mine",
        allow_other_counts=True,
        progress=False,
    )
    query = prepared.open_records("mine", "query", tmp_path / "data")
    assert len(query) == (12 if name == "occluded_reid" else 6)
    assert set(query.camera.tolist()) == {0}
    for i in range(len(query)):
        file = query.filename(i)
        folder = f"{query.person[i]:03}"
        with PIL.Image.open(source / trees.OCCLUDED / folder / file) as original:
            stored = PIL.Image.open(io.BytesIO(query[i]["image"]))
            np.testing.assert_array_equal(np.asarray(stored), np.asarray(original))
    if name == "occluded_reid_half":
        train = prepared.open_records("mine", "train", tmp_path / "data")
        assert (len(train), set(train.camera.tolist())) == (12, {0, 1})
    else:
        with pytest.raises(UserError, match="no split 'train'"):
            prepared.open_records("mine", "train", tmp_path / "data")
