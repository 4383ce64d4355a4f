"""Several training sets in one."""

import pickle

import cv2
import numpy as np
import pytest

from configs import common
from data_pipelines import loader, prepared, sampling, store, transforms
from data_pipelines.entries import Entry, Split
from data_pipelines.part_labels import label_files
from reid_jax import experiment
from reid_jax.errors import UserError
from reid_jax.training import sources
from tests.data_pipelines.market_folder import jpeg

PERSONS = {"a": [5, 5, 2, 2, 900], "b": [1, 1, 5, 5], "c": [5, 0, 5]}
CAMERAS = {"a": [0, 3, 0, 1, 1], "b": [0, 1, 0, 1], "c": [2, 0, 0]}
KINDS = {"a": None, "b": "hpnet", "c": "pifpaf"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Data sets a (no part labels), b (HPNet's) and c (PifPaf's)."""
    folder = tmp_path_factory.mktemp("joined")
    cv2.imwrite(str(folder / "b.png"), np.full((4, 2), 3, np.uint8))
    np.save(folder / "c.npy", np.eye(36, dtype=np.float32)[16].reshape(36, 1, 1))
    files = {"b": "b.png", "c": "c.npy"}
    for name, persons in PERSONS.items():
        entries = []
        for n, (person, camera) in enumerate(zip(persons, CAMERAS[name], strict=True)):
            path = folder / f"{n}.jpg"
            path.write_bytes(jpeg(seed=n))
            label = KINDS[name] and label_files.Label(folder / files[name], KINDS[name])
            entries.append(Entry(path, person, camera, label))
        store.builder(
            {"train": Split(tuple(entries))},
            name=name,
            title=name,
            data_dir=folder,
            track=lambda entries, _: entries,
        ).download_and_prepare()
    return folder


def pairs(name):
    return list(zip(PERSONS[name], CAMERAS[name], strict=True))


def test_persons_and_cameras_of_the_members_are_disjoint(data_dir):
    joined = prepared.open_records("a+b+c", "train", data_dir)
    assert len(joined) == 12
    assert joined.person.dtype == joined.camera.dtype == np.int32
    before = [(name, *pair) for name in "abc" for pair in pairs(name)]
    after = list(zip(joined.person.tolist(), joined.camera.tolist(), strict=True))
    # Equal before is equal after, and the other way round.
    for old, new in (
        ([(name, person) for name, person, _ in before], [p for p, _ in after]),
        ([(name, camera) for name, _, camera in before], [c for _, c in after]),
    ):
        assert len(set(old)) == len(set(new)) == len(set(zip(old, new, strict=True)))
    persons = {(name, person) for name, person, _ in before if person > 0}
    stored = set(joined.person[joined.person > 0].tolist())
    assert stored == set(range(1, len(persons) + 1))
    # A distractor stays one; the first data set's cameras keep their numbers.
    assert joined.person[-2] == 0
    assert joined.camera[:5].tolist() == CAMERAS["a"]


def test_records_are_those_of_the_members(data_dir):
    joined = prepared.open_records("b+a", "train", data_dir)
    joined = pickle.loads(pickle.dumps(joined))
    for index, (name, row) in enumerate(
        [("b", n) for n in range(4)] + [("a", n) for n in range(5)]
    ):
        single = prepared.open_records(name, "train", data_dir)[row]
        assert joined[np.int64(index)] == single | {"filename": f"{name}/{row}.jpg"}
    assert [r["filename"] for r in joined][3:5] == ["b/3.jpg", "a/0.jpg"]
    with pytest.raises(IndexError):
        joined[9]


def test_labels_of_one_member_are_served_and_the_others_have_none(data_dir):
    joined = prepared.open_records("a+c", "train", data_dir)
    assert joined.has_parts
    assert joined.parts_kind == "pifpaf"
    plan = sampling.PKPlan(joined.person, identities=4, images_per_identity=2, seed=0)
    batch = next(
        loader.train_loader(
            joined,
            plan,
            augment=transforms.build(["flip"], {"flip": {"p": 1.0}}),
            image_size=(8, 4),
            seed=0,
            with_parts=True,
        )
    )
    # Channel 16, the right ankle, is stored as 17; mirrored it is the left one.
    for index, parts in zip(batch["index"], batch["parts"], strict=True):
        assert (parts == (255 if index < 5 else 16)).all()
    assert len(set(batch["label"].tolist())) == 4


def test_labels_of_several_kinds_are_refused_where_they_are_wanted(data_dir):
    joined = prepared.open_records("b+c", "train", data_dir)
    plan = sampling.PKPlan(joined.person, identities=2, images_per_identity=2, seed=0)
    settings = {
        "augment": transforms.build(["flip"]),
        "image_size": (8, 4),
        "seed": 0,
    }
    assert next(loader.train_loader(joined, plan, **settings))["image"].shape[0] == 4
    with pytest.raises(UserError, match=r"b: hpnet, c: pifpaf"):
        loader.train_loader(joined, plan, **settings, with_parts=True)


@pytest.mark.parametrize(
    ("dataset", "split", "words"),
    [
        ("a+b", "query", "no split 'query'. Evaluate on one of a, b"),
        ("a+", "train", "lacks a name"),
        ("a+b+a", "train", "names a data set twice"),
        ("a+z", "train", "z is not prepared"),
    ],
)
def test_what_cannot_be_joined(data_dir, dataset, split, words):
    with pytest.raises(UserError) as error:
        prepared.open_records(dataset, split, data_dir)
    assert words in str(error.value)


def test_a_config_trains_on_all_and_evaluates_on_the_first(data_dir):
    config = common.base("baseline", common.parse("dataset=a+b"))
    config.data.data_dir = str(data_dir)
    assert len(sources.open_data(config)) == 9
    assert [p.dataset for p in experiment.build_protocols(config)] == ["a"]
    config.evaluate_on = ("b", "c")
    assert [p.dataset for p in experiment.build_protocols(config)] == ["b", "c"]
    config.evaluate_on = ("a+b",)
    with pytest.raises(UserError, match=r"evaluate_on: a\+b joins training sets"):
        sources.open_data(config)


def test_what_a_run_is_evaluated_on_is_looked_for_before_it_begins(tmp_path):
    config = common.base("baseline", common.parse("dataset=synthetic/holistic_demo"))
    config.data.data_dir = str(tmp_path / "data")
    config.evaluate_on = ("synthetic/holistic_demo", "market1501")
    with pytest.raises(UserError, match="market1501 is not prepared"):
        sources.open_data(config)
    assert not (tmp_path / "data").exists()  # Nothing was rendered for it.
