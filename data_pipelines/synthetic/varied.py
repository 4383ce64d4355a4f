"""Training pictures with the difficulties of the test beds, a few of each.

What a network has never seen covered, cropped or in a loose box, it cannot learn to
find: real training sets have some of each, as Occluded-Duke's has covered people and
Market-1501's, whose boxes a detector drew, parts of people and much background. The
people, cameras and splits are those of the other variants, the gallery is plain.
"""

import dataclasses

from data_pipelines.synthetic import plan, seeds
from data_pipelines.synthetic.plan import Shot, Trial

NAMES = tuple(f"varied_{size}" for size in plan.SIZES)

PLAIN = 0.4
"""Share of pictures without a difficulty; the others have one each."""
LEAST, MOST = 0.1, 0.6
"""How much of the body is covered or cut off, or how much larger the box is."""
FARTHEST = 0.3
"""How far a box is off, in frames."""


def shots(size: str, split: str) -> list[Shot]:
    """The pictures of a split in the order of the records."""
    found = plan.shots("varied", size, split)
    if split == "gallery":
        return found
    return [dataclasses.replace(shot, trial=_trial(shot)) for shot in found]


def _trial(shot: Shot) -> Trial:
    rng = seeds.generator("trial", shot.size, shot.split, shot.index, seed=shot.seed)
    if rng.random() < PLAIN:
        return Trial()
    amount = rng.uniform(LEAST, MOST)
    return (
        Trial(covered=amount),
        Trial(covered=amount, crowd=True),
        Trial(cut=amount),
        Trial(shift=amount * FARTHEST / MOST),
        Trial(loose=amount),
    )[rng.integers(5)]
