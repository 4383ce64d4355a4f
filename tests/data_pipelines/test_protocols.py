"""Protocols by name, and their numbers of queries against the published lists."""

import re

import numpy as np
import pytest
import scipy.io

from data_pipelines import protocols
from reid_jax.errors import UserError


@pytest.mark.parametrize("name", ["grocery", "synthetic/holistic_demo"])
def test_a_data_set_is_evaluated_like_market_on_itself(name):
    made = protocols.protocol(name)
    assert made == protocols.Protocol(
        name=name,
        dataset=name,
        train_dataset=name,
        camera_filter=True,
        ranks=(1, 5, 10, 20),
        ap="rectangle",
        query_split="query",
        gallery_split="gallery",
        valid_queries=None,
        single_shot=False,
    )


def test_partial_sets_report_rank_3():
    assert protocols.protocol("synthetic/partial_small").ranks == (1, 3, 5, 10)


MARKET, PARTIAL = (1, 5, 10, 20), (1, 3, 5, 10)

# Name: trained on, cameras known, ranks, queries (fact sheet of the papers).
PUBLISHED = {
    "market1501": ("market1501", True, MARKET, 3368),
    "dukemtmc": ("dukemtmc", True, MARKET, 2228),
    "occluded_duke": ("occluded_duke", True, MARKET, 2210),
    "msmt17": ("msmt17", True, MARKET, 11659),
    "msmt17_noval": ("msmt17_noval", True, MARKET, 11659),
    "cuhk03np_labeled": ("cuhk03np_labeled", True, MARKET, 1400),
    "cuhk03np_detected": ("cuhk03np_detected", True, MARKET, 1400),
    "occluded_reid": ("market1501", False, MARKET, 1000),
    "occluded_reid_half": ("occluded_reid_half", False, MARKET, 500),
    "p_dukemtmc": ("p_dukemtmc", False, MARKET, 2163),
    "partial_reid": ("market1501", False, PARTIAL, 300),
    "partial_reid_occluded": ("market1501", False, PARTIAL, 300),
    "partial_ilids_119": ("market1501", False, PARTIAL, 119),
    "partial_ilids_o": ("market1501", False, PARTIAL, 119),
    "partial_ilids_p": ("market1501", False, PARTIAL, 119),
    "partial_ilids_218": ("market1501", False, PARTIAL, 218),
}


def test_published_protocols():
    assert set(protocols._PUBLISHED) == set(PUBLISHED)
    for name, (train, camera_filter, ranks, queries) in PUBLISHED.items():
        assert protocols.protocol(name) == protocols.Protocol(
            name=name,
            dataset=name,
            train_dataset=train,
            camera_filter=camera_filter,
            ranks=ranks,
            valid_queries=queries,
        )


def _valid(query, gallery):
    """How many (person, camera) queries have a match through another camera."""
    cameras = {}
    for person, camera in gallery:
        cameras.setdefault(person, set()).add(camera)
    return sum(bool(cameras.get(p, set()) - {c}) for p, c in query)


def test_valid_queries_of_market1501(shared_data):
    lists = shared_data / "splits" / "market1501"

    def read(name):
        *_, values = scipy.io.loadmat(lists / f"{name}.mat").values()
        return values.ravel().tolist()

    query = zip(read("queryID"), read("queryCam"), strict=True)
    gallery = zip(read("testID"), read("testCam"), strict=True)
    assert _valid(query, gallery) == protocols.protocol("market1501").valid_queries


@pytest.mark.parametrize(
    ("name", "files", "pattern"),
    [
        ("occluded_duke", "{}.list", r"(?P<person>\d+)_c(?P<camera>\d+)"),
        ("msmt17", "list_{}.txt", r".*/\d+_\d+_(?P<camera>\d+)_.* (?P<person>\d+)$"),
    ],
)
def test_valid_queries_of_published_lists(shared_data, name, files, pattern):
    def read(split):
        path = shared_data / "splits" / name / files.format(split)
        matches = (re.match(pattern, line) for line in path.read_text().splitlines())
        return [(int(m["person"]), int(m["camera"])) for m in matches]

    valid = _valid(read("query"), read("gallery"))
    assert valid == protocols.protocol(name).valid_queries


@pytest.mark.parametrize("kind", ["labeled", "detected"])
def test_valid_queries_of_cuhk03(shared_data, kind):
    path = shared_data / "splits" / "cuhk03_np"
    lists = scipy.io.loadmat(path / f"cuhk03_new_protocol_config_{kind}.mat")
    labels, cameras = lists["labels"].ravel(), lists["camId"].ravel()

    def read(split):
        chosen = lists[f"{split}_idx"].ravel() - 1
        return list(zip(labels[chosen], cameras[chosen], strict=True))

    valid = _valid(read("query"), read("gallery"))
    assert valid == protocols.protocol(f"cuhk03np_{kind}").valid_queries
    assert len(np.unique(labels[lists["query_idx"].ravel() - 1])) == 700


@pytest.mark.parametrize(
    ("option", "repeats", "seed"),
    [
        ("single_shot", 100, 0),
        ("single_shot,repeats=10", 10, 0),
        ("single_shot,seed=7", 100, 7),
        ("single_shot,repeats=3,seed=2", 3, 2),
    ],
)
def test_single_shot_by_name(option, repeats, seed):
    name = f"partial_reid:{option}"
    made = protocols.protocol(name)
    assert (made.name, made.dataset) == (name, "partial_reid")
    assert (made.single_shot, made.repeats, made.seed) == (True, repeats, seed)
    assert made.train_dataset == "market1501"
    assert made.ranks == PARTIAL
    assert made.valid_queries == 300


@pytest.mark.parametrize(
    "option", ["", "single", "single_shot,repeats=0", "single_shot,repeats=-1", "x=1"]
)
def test_unknown_options_are_user_errors(option):
    with pytest.raises(UserError, match="there may be single_shot"):
        protocols.protocol(f"partial_reid:{option}")


def test_several_names_in_one_are_a_user_error():
    with pytest.raises(UserError, match=r"\('market1501', 'occluded_reid'\)"):
        protocols.protocol("market1501,partial_reid:single_shot")


@pytest.mark.parametrize("name", ["", ":single_shot"])
def test_an_empty_name_is_a_user_error(name):
    with pytest.raises(UserError, match="empty"):
        protocols.protocol(name)


@pytest.mark.parametrize("name", [5, None, ("market1501",), 1.5])
def test_what_is_no_name_is_a_user_error(name):
    with pytest.raises(UserError, match="is no data set to evaluate"):
        protocols.protocol(name)
