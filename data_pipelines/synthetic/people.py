"""Who a picture shows."""

import functools

import numpy as np

from data_pipelines.synthetic import beds, identity, seeds
from data_pipelines.synthetic.plan import Shot


def person(shot: Shot) -> identity.Person:
    """The appearance of a shot's person."""
    if shot.trial.alike:
        group, member = divmod(shot.person - 1, beds.GROUP)
        return _group(group, shot.trial.alike, shot.seed)[member]
    return identity.person(looks(shot))


def looks(shot: Shot) -> np.random.Generator:
    """All that the appearance of somebody who is like nobody else is a function of."""
    if shot.person:
        return seeds.generator("person", shot.size, shot.person, seed=shot.seed)
    return seeds.generator("distractor", shot.size, shot.index, seed=shot.seed)


@functools.cache
def _group(group: int, part: str, seed: int) -> tuple[identity.Person, ...]:
    """People of a bed who are alike but for a part; what they share does not vary."""
    rng = seeds.generator("alike", group, seed=seed)
    return identity.look_alikes(rng, part, beds.GROUP)
