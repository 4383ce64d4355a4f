"""Training pictures with the difficulties of the test beds."""

import collections
import dataclasses

import numpy as np
import pytest

from data_pipelines.synthetic import beds, plan, render, sets, varied
from data_pipelines.synthetic.plan import Shot, Trial

TRAIN = sets.shots("varied_demo", "train")


def _kind(shot: Shot) -> str:
    given = dataclasses.asdict(shot.trial)
    return " ".join(name for name, value in given.items() if value) or "plain"


def _body(shot: Shot) -> np.ndarray:
    return render.render(shot)[1] > 0


@pytest.mark.parametrize("split", plan.SPLITS)
def test_people_and_cameras_are_those_of_the_other_variants(split):
    own, whole = (sets.shots(f"{v}_demo", split) for v in ("varied", "holistic"))
    plain = [dataclasses.replace(s, variant="holistic", trial=Trial()) for s in own]
    assert plain == whole
    assert all(not vars(s.trial)["covered"] for s in own) == (split == "gallery")


def test_each_difficulty_has_its_share():
    counts = collections.Counter(map(_kind, TRAIN))
    plain = counts.pop("plain") / len(TRAIN)
    assert plain == pytest.approx(varied.PLAIN, abs=0.05)
    kinds = {"covered", "covered crowd", "cut", "shift", "loose"}
    assert counts.keys() == kinds
    for number in counts.values():
        assert number / len(TRAIN) == pytest.approx((1 - plain) / 5, abs=0.03)
    amounts = [max(s.trial.covered, s.trial.cut or 0, s.trial.loose) for s in TRAIN]
    given = [amount for amount in amounts if amount]
    assert varied.LEAST <= min(given) < 0.12
    assert 0.58 < max(given) <= varied.MOST
    shifts = [s.trial.shift for s in TRAIN if s.trial.shift]
    assert (min(shifts), max(shifts)) == pytest.approx((0.05, 0.3), abs=0.02)


@pytest.mark.parametrize("kind", ["covered", "covered crowd"])
def test_what_stands_in_front_hides_so_much_of_the_body(kind):
    shots = [shot for shot in TRAIN if _kind(shot) == kind][:6]
    errors = []
    for shot in shots:
        left, whole = _body(shot), _body(dataclasses.replace(shot, trial=Trial()))
        assert not (left & ~whole).any()
        errors.append(1 - left.sum() / whole.sum() - shot.trial.covered)
    np.testing.assert_allclose(errors, 0, atol=0.08)


@pytest.mark.parametrize("split", ["train", "query"])
def test_who_stands_in_front_is_somebody_else_of_the_split(split):
    shots = sets.shots("varied_demo", split)
    rng = np.random.default_rng(0)
    others = [beds.other(rng, shot).person for shot in shots]
    assert all(a != b.person for a, b in zip(others, shots, strict=True))
    assert set(others) <= {shot.person for shot in shots}
    assert len(set(others)) > 0.8 * len({shot.person for shot in shots})


def _some(kind: str) -> list[Shot]:
    shots = [s for s in TRAIN if _kind(s) == kind]
    return [s for s in shots if (s.trial.cut or s.trial.loose) > 0.3][:5]


def test_crops_go_through_the_body():
    for shot in _some("cut"):
        rows = _body(shot).any(axis=1)
        assert rows[0] or rows[-1]


def test_people_are_small_in_loose_boxes():
    for shot in _some("loose"):
        loose, tight = (
            _body(s).any(axis=1).sum()
            for s in (shot, dataclasses.replace(shot, trial=Trial()))
        )
        assert loose < tight
