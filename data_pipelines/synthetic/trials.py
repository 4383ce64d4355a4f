"""What a test bed does to a picture: a box that is off, a cover, a crop."""

import dataclasses

import numpy as np

from data_pipelines.synthetic import beds, occluders, people, seeds
from data_pipelines.synthetic.plan import Shot
from data_pipelines.synthetic.raster import View

_MOST = max(trial.covered for trial in beds.TRIALS.values())


def misplaced(shot: Shot, view: View, size: tuple[int, int]) -> View:
    """The view through a box that is shifted, or larger than it should be.

    Args:
      shot: says by how much.
      view: through the box as it was.
      size: (height, width) of the frame in pixels.
    """
    rng, frame = _generator("box", shot), np.array(size[::-1])
    angle, place = rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 0.5, 2)
    away = shot.trial.shift * np.array([np.cos(angle), np.sin(angle)])
    scale = 1 / (1 + shot.trial.loose)
    # The old box lies in the new one, off the middle by half of what there is at most.
    middle = frame * (0.5 + 0.5 * (1 - scale) * place + away)
    foot = middle + scale * (np.array(view.foot) - frame / 2)
    return dataclasses.replace(
        view, foot=(float(foot[0]), float(foot[1])), height=scale * view.height
    )


def cover(shot: Shot, body: np.ndarray, view: View) -> occluders.Layer:
    """What stands before the body, bool [H, W], the same thing in all steps."""
    rng = _generator("cover", shot)
    someone = people.person(beds.other(rng, shot)) if shot.trial.crowd else None
    return occluders.before(
        rng, body, view, shot.trial.covered, someone=someone, most=_MOST
    )


def kept_rows(shot: Shot, body: np.ndarray) -> slice:
    """The rows of a picture that a crop keeps, by the body in it, bool [H, W]."""
    if not shot.trial.cut:
        return slice(None)
    from_top = np.cumsum(body.sum(axis=1)) / max(body.sum(), 1)
    if _generator("crop", shot).random() < 0.5:
        return slice(0, int(np.argmin(np.abs(from_top - 1 + shot.trial.cut))) + 1)
    return slice(int(np.argmin(np.abs(from_top - shot.trial.cut))) + 1, None)


def _generator(what: str, shot: Shot) -> np.random.Generator:
    """The same in all steps of a bed, and apart from what else draws the picture."""
    return seeds.generator(what, shot.split, shot.index, seed=shot.seed)
