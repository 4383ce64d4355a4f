"""The test beds: what their labels show is what their names say, and nothing else."""

import dataclasses
import functools
import itertools
import sys

import cv2
import numpy as np
import pytest

from benchmarks import beds as oracles
from data_pipelines import protocols
from data_pipelines.synthetic import (
    beds,
    builder,
    contact_sheet,
    identity,
    people,
    plan,
    render,
    seeds,
    sets,
    trials,
)
from data_pipelines.synthetic.plan import Shot

QUERIES = (0, 5, 77, 166, 250, 398)
SIZE = np.array(render.SIZE)


@functools.cache
def _rendered(name: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    return render.render(sets.shots(name, "query")[index])


def _body(name: str, index: int) -> np.ndarray:
    return _rendered(name, index)[1] > 0


# What there is.


def test_names_are_systematic():
    assert set(beds.TRIALS) < set(sets.NAMES)
    steps: dict[str, list[str]] = {}
    for name in beds.TRIALS:
        word, bed, step = name.split("_")
        assert word == "bed"
        steps.setdefault(bed, []).append(step)
    assert steps["alike"] == ["shirt", "trousers", "shoes", "bag"]
    assert all(
        s == sorted(s) and s[0] == "00" for b, s in steps.items() if b != "alike"
    )
    assert steps["occlusion"] == steps["crowd"] == ["00", "20", "40", "60"]


@pytest.mark.parametrize("name", beds.TRIALS)
def test_steps_differ_in_difficulty_only(name):
    first = sets.shots("bed_occlusion_00", "query")
    own = sets.shots(name, "query")
    assert [dataclasses.replace(s, trial=plan.Trial()) for s in own] == first
    assert {(s.person, s.camera) for s in own} == {
        (person, camera) for person in range(1, 101) for camera in range(4)
    }
    if "alike" not in name:
        gallery = sets.shots(name, "gallery")
        assert gallery == sets.shots("bed_occlusion_00", "gallery")
    made = protocols.protocol(f"synthetic/{name}")
    assert (made.dataset, made.camera_filter) == (f"synthetic/{name}", True)
    assert made.ranks == (1, 5, 10, 20)


def test_nobody_is_in_a_training_set():
    trained = {
        (shot.size, shot.person, shot.seed): shot
        for name in sets.NAMES
        if "train" in sets.splits(name)
        for shot in sets.shots(name, "train")
    }
    queries = sets.shots("bed_occlusion_00", "query")
    own = {people.looks(shot).random() for shot in queries}
    groups = {seeds.generator("alike", group).random() for group in range(20)}
    assert (len(own), len(groups)) == (100, 20)
    assert not (own | groups) & {people.looks(s).random() for s in trained.values()}


def test_beds_have_no_training_images(tmp_path):
    made = builder.Synthetic(config="bed_alike_bag", data_dir=tmp_path)
    assert set(made._split_generators(None)) == {"query", "gallery"}


# Covers.


@pytest.mark.parametrize("bed", ["occlusion", "crowd"])
def test_the_covered_share_is_what_the_name_says(bed):
    for step in (20, 40, 60):
        found = []
        for index in QUERIES:
            whole, left = (_body(f"bed_{bed}_{s:02}", index) for s in (0, step))
            assert not (left & ~whole).any()
            found.append(100 * (1 - left.sum() / whole.sum()))
        np.testing.assert_allclose(found, step, atol=6)
        assert abs(np.mean(found) - step) < 2.5


@pytest.mark.parametrize(("bed", "kept"), [("occlusion", 0.85), ("crowd", 0.6)])
def test_steps_have_one_thing_in_front(bed, kept):
    """What it hides it hides in the next step, too, but for gaps between limbs."""
    for index in QUERIES:
        seen = [_body(f"bed_{bed}_{step:02}", index) for step in (0, 20, 40, 60)]
        hidden = [seen[0] & ~left for left in seen[1:]]
        for less, more in itertools.pairwise(hidden):
            assert (less & more).sum() > kept * less.sum()


def test_a_cover_changes_nothing_beside_it():
    for index in QUERIES[:3]:
        whole, _ = _rendered("bed_occlusion_00", index)
        covered, _ = _rendered("bed_occlusion_20", index)
        same = (whole == covered).all(axis=-1).mean()
        assert 0.3 < same < 0.95


def test_who_stands_in_front_is_somebody_else_of_the_bed():
    shots = sets.shots("bed_crowd_40", "query")
    rng = np.random.default_rng(0)
    others = np.array([beds.other(rng, shot).person for shot in shots])
    assert (others != [shot.person for shot in shots]).all()
    assert set(others) <= set(range(1, 101))
    assert len(set(others)) > 90


# Crops and boxes.


@pytest.mark.parametrize("step", [20, 40, 60])
def test_the_cut_share_is_what_the_name_says(step):
    ends = set()
    for index in QUERIES[:5]:
        shot = sets.shots(f"bed_partial_{step}", "query")[index]
        whole = _body("bed_partial_00", index)
        rows = trials.kept_rows(shot, whole)
        assert whole[rows].sum() / whole.sum() == pytest.approx(
            1 - step / 100, abs=0.03
        )
        cut = cv2.resize(np.uint8(whole[rows]), SIZE[::-1].tolist())
        assert (cut == _body(f"bed_partial_{step}", index)).mean() > 0.97
        ends.add(rows.start in (0, None))
    assert ends == {True, False}  # upper parts and lower parts


def _displacement(whole: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Rows and columns by which a map has moved, as shares, by trying all."""
    reach = (0.25 * SIZE).astype(int)
    height, width = SIZE
    padded = np.pad(whole, [(r, r) for r in reach])
    best = max(
        np.ndindex(*(2 * reach + 1)),
        key=lambda at: (
            (padded[at[0] : at[0] + height, at[1] : at[1] + width] & moved).sum()
            - (padded[at[0] : at[0] + height, at[1] : at[1] + width] & ~moved).sum()
        ),
    )
    return (reach - best) / SIZE


def test_a_shifted_box_is_off_by_what_the_name_says():
    for index in QUERIES[:2]:
        names = ("bed_shifted_00", "bed_shifted_20")
        off = _displacement(*(_body(name, index) for name in names))
        assert np.linalg.norm(off) == pytest.approx(0.2, abs=0.02)


def test_a_loose_box_is_larger_by_what_the_name_says():
    for index in QUERIES[:4]:
        whole, small = (_body(f"bed_loose_{step}", index) for step in ("00", "60"))
        assert small.sum() / whole.sum() == pytest.approx(1 / 1.6**2, rel=0.08)


# Look-alikes.

CHANGED = {
    "shirt": {"torso_cloth", "sleeve_cloth"},
    "trousers": {"lower_cloth"},
    "shoes": {"shoe"},
    "bag": {"bag", "bag_cloth", "torso_cloth"},  # its straps
}


def _fields(person: identity.Person) -> dict[str, str]:
    return {name: repr(value) for name, value in vars(person).items()}


@pytest.mark.parametrize("part", CHANGED)
def test_look_alikes_differ_in_the_named_part(part):
    shots = sets.shots(f"bed_alike_{part}", "gallery")[:: beds.CAMERAS]
    group = [people.person(shot) for shot in shots[5:10]]
    changed = set()
    for other in group[1:]:
        a, b = _fields(group[0]), _fields(other)
        changed |= {name for name in a if a[name] != b[name]}
    assert changed == CHANGED[part] if part != "trousers" else changed <= CHANGED[part]
    looks = [oracles.looks(person) for person in group]
    told = {"shirt": "torso", "trousers": "legs", "shoes": "feet", "bag": "bag"}[part]
    for i, one in enumerate(looks):
        for other in looks[:i]:
            assert oracles.apart(one[told], other[told])
            assert not oracles.apart(one["head"], other["head"])
    if part == "bag":
        assert {person.bag for person in group} == set(identity._BAG)
        assert len({repr(person.torso_cloth.base) for person in group}) == 1
    outside = people.person(shots[0])
    assert (
        len({n for n, v in _fields(outside).items() if v != _fields(group[0])[n]}) > 9
    )


@pytest.mark.parametrize(
    ("part", "labels"),
    [("shirt", (2, 3, 4)), ("trousers", (2, 5, 6)), ("shoes", (7, 8))],
)
def test_pictures_of_look_alikes_differ_where_the_part_is(part, labels):
    shot = sets.shots(f"bed_alike_{part}", "query")[0]
    one, other = (
        render.render(dataclasses.replace(shot, person=number)) for number in (1, 2)
    )
    np.testing.assert_array_equal(one[1], other[1])
    where = np.isin(one[1], labels).astype(np.uint8)
    near = cv2.dilate(where, np.ones((9, 9))) > 0  # the lens blurs
    gap = np.abs(one[0].astype(int) - other[0]).max(axis=-1)
    assert gap[~near].max() <= 8
    assert np.median(gap[where > 0]) > 15 if part != "trousers" else gap.max() > 15


# The oracle.


def test_a_part_is_shown_where_its_pixels_are():
    shot = sets.shots("bed_partial_60", "query")[0]
    assert (
        oracles.shown(dataclasses.replace(shot, trial=plan.Trial()))[:5] == (True,) * 5
    )
    labels = set(np.unique(_rendered("bed_partial_60", 0)[1]))
    seen = oracles.shown(shot)
    assert 0 < sum(seen[:5]) < 5
    assert seen[4] == bool(labels & {7, 8})


def test_distances_are_those_of_a_loop(monkeypatch):
    """Parts shown at random, in pictures of ten people."""
    rng = np.random.default_rng(0)
    names = list(oracles.CLASSES)
    table: dict[Shot, tuple[bool, ...]] = {}
    monkeypatch.setattr(
        oracles,
        "shown",
        lambda shot: table.setdefault(shot, tuple(rng.random(len(names)) < 0.4)),
    )
    query, gallery = (sets.shots("bed_alike_shoes", s)[:40] for s in beds.SPLITS)
    found = oracles.distances(query, gallery)
    for i, a in enumerate(query):
        for j, b in enumerate(gallery):
            both = [
                n for n, *s in zip(names, table[a], table[b], strict=True) if all(s)
            ]
            looks = [oracles.looks(people.person(shot)) for shot in (a, b)]
            told = [oracles.apart(looks[0][n], looks[1][n]) for n in both]
            assert found[i, j] == pytest.approx(np.mean(told) if told else 1.0)


def test_the_oracle_knows_all_and_less_with_every_part_that_is_hidden(monkeypatch):
    scores = []
    for hidden in range(7):
        seen = (False,) * hidden + (True,) * (6 - hidden)
        monkeypatch.setattr(oracles, "shown", lambda shot, seen=seen: seen)
        scores.append(oracles.oracle("bed_occlusion_00", 20))
    assert scores[0].cmc[0] == scores[0].mAP == 1
    for figures in ([s.mAP for s in scores], [s.cmc[0] for s in scores]):
        assert figures == sorted(figures, reverse=True)
    assert scores[-2].mAP < 0.8
    assert scores[-1].mAP < 0.2
    for part in identity.PARTS:
        monkeypatch.setattr(oracles, "shown", lambda _: (True,) * 6)
        assert oracles.oracle(f"bed_alike_{part}", 20).mAP == 1
        hidden = {"shirt": {1, 2}, "trousers": {3}, "shoes": {4}, "bag": {5}}[part]
        rest = tuple(n not in hidden for n in range(6))
        monkeypatch.setattr(oracles, "shown", lambda _, rest=rest: rest)
        assert oracles.oracle(f"bed_alike_{part}", 20).cmc[0] < 0.5


def test_the_command(monkeypatch, capsys):
    monkeypatch.setattr(oracles, "shown", lambda _: (True,) * 6)
    whole = oracles.oracle
    monkeypatch.setattr(oracles, "oracle", lambda name: whole(name, 20))
    oracles.main(["--beds=alike"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [f"bed_alike_{p}" for p in CHANGED]
    assert all("rank-1 100.0%  mAP 100.0%" in line for line in lines)
    with pytest.raises(SystemExit):
        oracles.main(["--beds=alik"])


def test_a_sheet_shows_every_step(tmp_path, monkeypatch):
    some = {name: beds.TRIALS[name] for name in ("bed_loose_60", "bed_alike_bag")}
    monkeypatch.setattr(beds, "TRIALS", some)
    path = tmp_path / "beds.png"
    monkeypatch.setattr(sys, "argv", ["contact_sheet", f"--out={path}", "--beds"])
    contact_sheet.main()
    sheet = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    assert sheet.shape[0] == 2 * 128 + 6
    alike = sheet[134:, -14 * 64 :]
    query = sets.shots("bed_alike_bag", "query")[4 * 13]
    np.testing.assert_array_equal(alike[:, -64:], render.render(query)[0])
