"""The rendered data set: its plan, its pictures, its part maps, its builder."""

import dataclasses
import itertools
import multiprocessing
import subprocess
import sys
from collections.abc import Iterable

import cv2
import numpy as np
import pytest

from data_pipelines.part_labels.kinds import PART_NAMES
from data_pipelines.prepared import open_records
from data_pipelines.synthetic import (
    body,
    builder,
    camera,
    contact_sheet,
    identity,
    people,
    plan,
    pose,
    render,
    scene,
    seeds,
    sets,
)
from data_pipelines.synthetic.raster import View, draw
from reid_jax.errors import UserError

LEFT = [i for i, name in enumerate(PART_NAMES) if name.startswith("left")]
RIGHT = [i for i, name in enumerate(PART_NAMES) if name.startswith("right")]
STANDING = pose.Pose(phase=0, stride=0, arms=("swing", "swing"), swing=0, lean=0)


def _tables(variant: str, size: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    shots = plan.shots(variant, size, split)
    return np.array([s.person for s in shots]), np.array([s.camera for s in shots])


def _person(**changes) -> identity.Person:
    plain = {"upper": "shirt", "lower": "trousers", "head": "short", "bag": "none"}
    return dataclasses.replace(
        identity.person(seeds.generator("test")), **(plain | changes)
    )


def _drawn_parts(yaw: float, *, pitch: float = 0.0, **changes) -> np.ndarray:
    view = View(
        yaw=yaw,
        pitch=pitch,
        height=110,
        foot=(32, 122),
        stretch=1.2,
        light=np.array([0.0, -0.6, 0.8]),
        ambient=0.5,
    )
    return draw(body.solids(_person(**changes), STANDING), view, (128, 64)).parts


# The plan.


def test_market_size_has_the_counts_of_market_1501():
    train, _ = _tables("holistic", "market", "train")
    query, query_camera = _tables("holistic", "market", "query")
    gallery, _ = _tables("holistic", "market", "gallery")
    assert (len(train), len(query), len(gallery)) == (12_936, 3_368, 15_913)
    assert len(np.unique(train)) == 751
    assert len(np.unique(query)) == 750
    assert (gallery == 0).sum() == 2_798
    assert set(gallery) - {0} == set(query)
    assert set(query_camera) == set(range(6))


@pytest.mark.parametrize("size", plan.SIZES)
def test_plan_keeps_its_own_table_and_splits_people(size):
    counts = plan.SIZES[size]
    tables = {s: _tables("holistic", size, s) for s in plan.SPLITS}
    for split in plan.SPLITS:
        person, camera = tables[split]
        assert len(person) == getattr(counts, split)
        assert set(camera) == set(range(counts.cameras))
        assert (person > 0).all() or split == "gallery"
    train, query = set(tables["train"][0]), set(tables["query"][0])
    assert not train & query
    assert len(train) == counts.train_people
    assert len(query) == counts.test_people


@pytest.mark.parametrize("size", plan.SIZES)
def test_everyone_is_seen_by_two_cameras_and_every_query_has_a_match(size):
    query, query_camera = _tables("holistic", size, "query")
    gallery, gallery_camera = _tables("holistic", size, "gallery")
    seen = set(zip(gallery.tolist(), gallery_camera.tolist(), strict=True))
    cameras = range(plan.SIZES[size].cameras)
    for who, where in zip(query.tolist(), query_camera.tolist(), strict=True):
        assert any((who, other) in seen for other in cameras if other != where)
    person, camera = _tables("holistic", size, "train")
    for who in np.unique(person):
        assert len(set(camera[person == who])) >= 2


def test_variants_share_people_and_indices_are_positions():
    for split in plan.SPLITS:
        shots = plan.shots("holistic", "demo", split)
        assert [s.index for s in shots] == list(range(len(shots)))
        for variant in ("occluded", "partial"):
            other = _tables(variant, "demo", split)
            np.testing.assert_array_equal(other, _tables("holistic", "demo", split))


# The sets to start networks from.


def _all(names: Iterable[str]) -> list[plan.Shot]:
    return [s for n in names for split in sets.splits(n) for s in sets.shots(n, split)]


def _apart(shots: list[plan.Shot]) -> dict[str, set]:
    """What must not be shared: of the generators, their first numbers."""
    persons = {(s.size, s.person or -s.index - 1, s.seed): s for s in shots}
    cameras = [camera.camera(*key) for key in {(s.camera, s.seed) for s in shots}]
    appearances = [
        identity.person(people.looks(persons[k])) for k in sorted(persons)[::20]
    ]
    return {
        "seeds of people": {people.looks(s).random() for s in persons.values()},
        "builds": {person.width for person in appearances},
        "patterns": {person.torso_cloth.scale for person in appearances},
        "directions": {own.yaw for own in cameras},
        "casts": {tuple(own.gains) for own in cameras},
        "lights": {tuple(own.light) for own in cameras},
        "noise": {own.noise for own in cameras},
    }


def test_no_other_set_has_what_networks_start_from():
    own = _apart(_all(plan.PRETRAINING))
    # Variants share people and cameras, which is tested above.
    variants = {f"{v}_{s}" for v in ("occluded", "partial") for s in plan.SIZES}
    others = _apart(_all(set(sets.NAMES) - {*plan.PRETRAINING, *variants}))
    assert len(own["seeds of people"]) > 3_500
    assert len(own["casts"]) == 24
    assert len(others["seeds of people"]) > 4_500
    for what, values in own.items():
        assert not values & others[what], what


def test_there_is_enough_to_start_from():
    shots = sets.shots("pretrain", "train")
    assert len(shots) >= 40_000
    seen: dict[int, set[int]] = {}
    for shot in shots:
        seen.setdefault(shot.person, set()).add(shot.camera)
    assert len(seen) >= 3_000
    assert min(map(len, seen.values())) >= 2
    assert 5 < np.mean([len(cameras) for cameras in seen.values()]) < 7
    tested = {shot.person for shot in sets.shots("pretrain", "query")}
    assert not tested & set(seen)


# Determinism.


def test_the_same_shot_gives_the_same_bytes_in_any_order():
    shots = plan.shots("holistic", "demo", "train")[:4]
    forward = [render.encoded(shot) for shot in shots]
    backward = [render.encoded(shot) for shot in reversed(shots)][::-1]
    assert forward == backward
    assert len(set(forward)) == len(forward)


def test_all_of_a_shot_changes_the_picture():
    shot = plan.shots("holistic", "demo", "query")[0]
    changes = {"variant": "partial", "size": "small", "split": "gallery", "index": 9}
    changes |= {
        "person": shot.person + 1,
        "camera": shot.camera + 1,
        "seed": shot.seed + 1,
    }
    pictures = [render.encoded(shot)[0]]
    for field, value in changes.items():
        pictures.append(render.encoded(dataclasses.replace(shot, **{field: value}))[0])
    assert len(set(pictures)) == len(changes) + 1


def test_processes_do_not_change_the_bytes_and_one_that_dies_is_missed(monkeypatch):
    monkeypatch.setattr(builder, "_ALONE", 0)
    monkeypatch.setattr(builder, "_SHARE", 4)
    shots = plan.shots("occluded", "demo", "query")
    others = {*multiprocessing.active_children()}
    alone = list(builder.rendered(shots[:6], processes=1))
    assert list(builder.rendered(shots[:6], processes=2)) == alone
    made = builder.rendered(shots, processes=2)
    assert list(itertools.islice(made, 6)) == alone
    ({*multiprocessing.active_children()} - others).pop().kill()
    with pytest.raises(UserError, match="process that renders has died"):
        list(made)
    assert {*multiprocessing.active_children()} <= others


def test_two_seeds_give_two_plans_and_other_people_and_cameras():
    first = plan.shots("holistic", "demo", "train", seed=1)
    second = plan.shots("holistic", "demo", "train", seed=2)
    assert [s.camera for s in first] != [s.camera for s in second]
    assert people.looks(first[0]).random() != people.looks(second[0]).random()
    assert camera.camera(0, 1).pitch != camera.camera(0, 2).pitch
    assert (scene.strip(0, 1) != scene.strip(0, 2)).any()


# Pictures and part maps.


@pytest.mark.parametrize("variant", plan.VARIANTS)
def test_pictures_are_stored_as_market_has_them(variant):
    for shot in plan.shots(variant, "demo", "query")[:6]:
        jpeg, png = render.encoded(shot)
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_UNCHANGED)
        parts = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
        assert image.shape == (128, 64, 3)
        assert parts.shape == (128, 64)
        assert parts.max() < len(PART_NAMES)
        np.testing.assert_array_equal(parts, render.render(shot)[1])
        assert image.std() > 15


def test_colours_survive_the_encoding_in_rgb_order():
    shot = plan.shots("holistic", "demo", "train")[3]
    image, _ = render.render(shot)
    data = np.frombuffer(render.encoded(shot)[0], np.uint8)
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    error = np.abs(decoded.astype(float) - image).mean()
    swapped = np.abs(decoded[..., ::-1].astype(float) - image).mean()
    assert error < 5
    assert error < swapped


def _mean_column(parts: np.ndarray, classes: list[int]) -> float:
    return float(np.nonzero(np.isin(parts, classes))[1].mean())


def test_left_is_on_the_right_of_the_picture_from_the_front_only():
    front, back = _drawn_parts(0.0), _drawn_parts(np.pi)
    for left, right in zip(LEFT, RIGHT, strict=True):
        assert _mean_column(front, [left]) > _mean_column(front, [right]) + 4
        assert _mean_column(back, [left]) < _mean_column(back, [right]) - 4


def test_the_near_side_hides_the_far_one():
    facing_right, facing_left = _drawn_parts(np.pi / 2), _drawn_parts(-np.pi / 2)
    assert np.isin(facing_right, RIGHT).sum() > 4 * np.isin(facing_right, LEFT).sum()
    assert np.isin(facing_left, LEFT).sum() > 4 * np.isin(facing_left, RIGHT).sum()


def test_views_from_front_and_back_have_one_outline():
    front, back = _drawn_parts(0.0) > 0, _drawn_parts(np.pi) > 0
    # Feet and arms reach forward a little, so a few pixels may differ.
    assert (front != back[:, ::-1]).mean() < 0.02


@pytest.mark.parametrize("pitch", [0.0, 0.3])
def test_parts_stand_in_anatomical_order(pitch):
    parts = _drawn_parts(0.4, pitch=pitch)
    rows = [np.nonzero(np.isin(parts, c))[0].mean() for c in ([1], [2], [5, 6], [7, 8])]
    assert rows == sorted(rows)
    assert set(np.unique(parts)) == set(range(9))


def test_part_pixels_show_their_own_surface():
    person = _person(
        torso_cloth=body.cloth.plain(np.array((1.0, 0, 0))),
        sleeve_cloth=body.cloth.plain(np.array((0, 1.0, 0))),
        lower_cloth=body.cloth.plain(np.array((0, 0, 1.0))),
        upper="long",
    )
    view = View(0.3, 0.1, 110, (32, 122), 1.2, np.array([0, 0, 1.0]), 0.5)
    drawn = draw(body.solids(person, STANDING), view, (128, 64))
    full = drawn.alpha == 1
    channel = drawn.colour.argmax(axis=-1)
    # A pixel between two parts mixes them; its label is the one at its centre.
    legs = np.isin(drawn.parts, [5, 6]) & full
    assert (channel[legs] == 2).mean() > 0.95
    rows = np.arange(128)[:, None] < 60
    assert (channel[(drawn.parts == 2) & full & rows] == 0).mean() > 0.95
    arms = np.isin(drawn.parts, [3, 4]) & full & rows
    assert (channel[arms] == 1).mean() > 0.9
    assert (drawn.parts[drawn.alpha == 0] == 0).all()


def test_carried_objects_are_background_and_hide_the_back():
    bare, laden = _drawn_parts(np.pi), _drawn_parts(np.pi, bag="backpack")
    hidden = (bare == 2) & (laden == 0)
    assert hidden.sum() > 0.3 * (bare == 2).sum()
    front = _drawn_parts(0.0, bag="backpack")
    assert (front == 2).sum() > 0.9 * (_drawn_parts(0.0) == 2).sum()


def test_skirt_goes_to_the_leg_of_its_side():
    parts = _drawn_parts(0.0, lower="skirt")
    assert _mean_column(parts, [5]) > 32 > _mean_column(parts, [6])


@pytest.mark.parametrize("kind", sorted(set(identity._HEAD) - {"bald"}))
def test_face_is_seen_from_the_front_only(kind):
    """The skin of the head shows less from behind, for every way to wear the hair."""
    head = dataclasses.replace(
        _person(head=kind).head_cloth,
        skin=np.array((1.0, 0, 0)),
        hair=np.array((0, 0, 1.0)),
        hat=np.array((0, 0, 1.0)),
        style=kind,
    )
    turns = np.linspace(-np.pi, np.pi, 73)
    y = np.zeros_like(turns)
    skin = head.colour(y, y, turns)[:, 0] > 0
    assert skin[np.abs(turns) < 0.8].all()
    assert not skin[np.abs(turns) > 2.5].any()


# Variants.


def _body(variant: str, split: str, count: int = 24) -> np.ndarray:
    shots = plan.shots(variant, "demo", split)
    return np.stack([render.render(s)[1] for s in shots[:: len(shots) // count]])


@pytest.fixture(scope="module")
def whole() -> np.ndarray:
    return _body("holistic", "query")


def test_occluded_queries_show_less_of_the_body(whole):
    occluded = (_body("occluded", "query") > 0).sum(axis=(1, 2))
    gallery = (_body("occluded", "gallery") > 0).sum(axis=(1, 2))
    assert occluded.mean() < 0.75 * gallery.mean()
    assert occluded.min() > 100
    # The gallery is as whole as that of the holistic variant.
    assert gallery.mean() > 0.85 * (whole > 0).sum(axis=(1, 2)).mean()


def test_the_covered_share_is_near_the_wanted_one():
    view = View(0.3, 0.1, 110, (32, 122), 1.2, np.array([0, 0, 1.0]), 0.5)
    visible = _drawn_parts(0.3) > 0
    for index in range(12):
        rng = seeds.generator("cover", index)
        layer = render.occluders.occluder(rng, visible, view, 0.4)
        share = (visible & (layer.alpha > 0.5)).sum() / visible.sum()
        assert 0.3 < share < 0.5


def test_partial_queries_miss_head_feet_or_a_side(whole):
    partial = _body("partial", "query")
    groups = {"head": [1], "feet": [7, 8]}
    for classes in groups.values():
        missing = [not np.isin(parts, classes).any() for parts in partial]
        complete = [not np.isin(parts, classes).any() for parts in whole]
        assert np.mean(missing) > np.mean(complete) + 0.2
    # What is left is enlarged to the frame.
    largest_head = (partial == 1).sum(axis=(1, 2)).max()
    assert largest_head > 1.4 * (whole == 1).sum(axis=(1, 2)).max()


def test_whole_people_show_every_kind_of_part(whole):
    seen = [set(np.unique(parts)) for parts in whole]
    for classes in ({1}, {2}, {3, 4}, {5, 6}, {7, 8}):
        assert np.mean([bool(s & classes) for s in seen]) > 0.85


def test_one_person_looks_alike_and_others_differ():
    """The mean colour of a person's torso varies more between than within people."""
    shots = plan.shots("holistic", "demo", "gallery")
    colours: dict[int, list[np.ndarray]] = {}
    for shot in shots[20:80]:
        image, parts = render.render(shot)
        if (parts == 2).sum() > 50:
            colours.setdefault(shot.person, []).append(image[parts == 2].mean(axis=0))
    means = np.array([np.mean(c, axis=0) for c in colours.values()])
    within = np.mean([np.std(c, axis=0).mean() for c in colours.values()])
    assert means.std(axis=0).mean() > 2 * within


# Builder and contact sheet.


def test_round_trip_through_the_builder_without_tensorflow(tmp_path):
    code = (
        "from tests.data_pipelines import no_tensorflow\n"
        "from data_pipelines.synthetic import Synthetic, sets\n"
        "whole = sets.shots\n"
        "sets.shots = lambda *key: whole(*key)[::40]\n"
        f"b = Synthetic(config='occluded_demo', data_dir={str(tmp_path)!r})\n"
        "b.download_and_prepare()\n"
        "import sys; print('tensorflow' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"
    for split in plan.SPLITS:
        shots = plan.shots("occluded", "demo", split)[::40]
        records = open_records("synthetic/occluded_demo", split, tmp_path)
        assert records.has_parts
        np.testing.assert_array_equal(records.person, [s.person for s in shots])
        np.testing.assert_array_equal(records.camera, [s.camera for s in shots])
        image, parts = render.encoded(shots[-1])
        assert records[len(shots) - 1] == {
            "image": image,
            "parts": parts,
            "filename": shots[-1].filename,
        }


def test_configs_are_all_variants_and_sizes():
    names = {config.name for config in builder.Synthetic.BUILDER_CONFIGS}
    assert {f"{v}_{s}" for v in plan.VARIANTS for s in plan.SIZES} < names
    assert "pretrain" in names


def test_contact_sheet_command(tmp_path, monkeypatch):
    here, path = tmp_path / "here", tmp_path / "sheet.png"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path))
    contact_sheet.main(["--out=~/sheet.png", "--identities=1"])
    assert not list(here.iterdir())
    with pytest.raises(UserError, match="--identities=0"):
        contact_sheet.main(["--out=~/sheet.png", "--identities=0"])
    sheet = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    margin = sheet.shape[1] - 14 * 64
    assert margin > 40
    assert sheet.shape[0] == 5 * 128 + 4 * 6
    for row in range(4):  # each has its name on the left
        name = sheet[row * 134 : row * 134 + 128, :margin]
        assert (name < 100).any()
        assert (name[[0, -1]] == 255).all()


def test_rendering_shows_a_bar_with_a_count(tmp_path, capsys):
    shots = plan.shots("holistic", "demo", "query")[:3]
    for progress in (True, False):
        made = builder.Synthetic(
            config="holistic_demo", data_dir=tmp_path, progress=progress
        )
        assert len(list(made._generate_examples(shots))) == 3
        shown = capsys.readouterr().err
        assert ("rendering query: 100%" in shown and "3/3" in shown) == progress
