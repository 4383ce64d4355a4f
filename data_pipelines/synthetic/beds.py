"""Test beds: queries against a gallery, at a difficulty that is controlled in steps.

A bed's sets are `bed_<bed>_<step>`; the steps of a bed, and beds among each other, have
the same people, cameras, poses and viewpoints, so that only the difficulty differs.
Steps count in percent, and 00 is no difficulty at all:

- `occlusion`: of the query's body, hidden behind an object; `crowd`: behind another
  person of the bed
- `partial`: of the query's body, cut off with the top or the bottom of the picture;
  what is left is stretched to the frame
- `shifted`: how far the query's box is off, of the frame's height and width; `loose`:
  by how much it is larger than it should be, with the person somewhere in it
- `alike`: the people, here in queries and gallery, are groups of five who differ in one
  part, which is the step: `shirt`, `trousers`, `shoes` or `bag`

One query and one gallery picture of each of 100 people by each of four cameras, those
of the other sets; the people are in none of them.
"""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from data_pipelines.synthetic import identity, plan
from data_pipelines.synthetic.plan import Shot, Trial

PEOPLE, CAMERAS, GROUP = 100, 4, 5
SPLITS = ("query", "gallery")
_NAME = "bed"


def _steps(
    bed: str, percents: Iterable[int], trial: Callable[[float], Trial]
) -> dict[str, Trial]:
    return {f"{_NAME}_{bed}_{step:02}": trial(step / 100) for step in percents}


TRIALS: dict[str, Trial] = {
    **_steps("occlusion", (0, 20, 40, 60), lambda x: Trial(covered=x)),
    **_steps("crowd", (0, 20, 40, 60), lambda x: Trial(covered=x, crowd=True)),
    **_steps("partial", (0, 20, 40, 60), lambda x: Trial(cut=x)),
    **_steps("shifted", (0, 10, 20, 30), lambda x: Trial(shift=x)),
    **_steps("loose", (0, 20, 40, 60), lambda x: Trial(loose=x)),
    **{f"{_NAME}_alike_{part}": Trial(alike=part) for part in identity.PARTS},
}
"""Set -> what its queries are put through; people who are alike are so everywhere."""


def shots(name: str, split: str) -> list[Shot]:
    """The pictures of a split, `query` or `gallery`, of a set of `TRIALS`."""
    trial = TRIALS[name]
    if split == "gallery":
        trial = Trial(alike=trial.alike)
    person, camera = np.indices((PEOPLE, CAMERAS)).reshape(2, -1).tolist()
    return [
        Shot(_NAME, _NAME, split, index, who + 1, where, trial=trial)
        for index, (who, where) in enumerate(zip(person, camera, strict=True))
    ]


def other(rng: np.random.Generator, shot: Shot) -> Shot:
    """A shot of somebody else of the same split, not to be taken for its person."""
    bed = shot.variant == _NAME
    who = range(1, PEOPLE + 1) if bed else plan.people(shot.size, shot.split)
    place = who.index(shot.person) + int(rng.integers(1, len(who)))
    return dataclasses.replace(shot, person=who[place % len(who)])
