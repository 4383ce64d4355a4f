"""What can be known of the pictures of a test bed: a ceiling, by their exact labels.

    python -m benchmarks.beds --beds=occlusion,crowd

The oracle knows what everybody looks like, and of each picture which parts of the body
it shows. It compares two pictures by the parts that both show: their distance is the
share of them in which the two people can be told apart, by kind, pattern or colour.
Where nothing that both show tells people apart, they are equally near. So much is lost
with what is hidden; the rest of what a network loses is its own.

Prints rank-1 and mAP of each set by the library's ranking and the set's protocol.
Pictures are drawn for it, about 65 per second and core: three minutes for all beds.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data_pipelines import protocols
from data_pipelines.synthetic import beds, body, cloth, people, render, sets
from data_pipelines.synthetic.identity import Person
from data_pipelines.synthetic.plan import Shot
from reid_jax.retrieval.labels import Labels
from reid_jax.retrieval.ranking import Ranker, RankingResult

CLASSES = {
    "head": (body.HEAD,),
    "torso": (body.TORSO,),
    "arms": body.ARM,
    "legs": body.LEG,
    "feet": body.FOOT,
    "bag": (body.CARRIED,),
}
"""What pictures are compared by, and the labels of its pixels."""

LEAST = 16
"""Pixels of a part, of the 8,192 of a picture, from which on it counts as shown."""

APART = 0.2
"""Distance of two colours, in RGB of 0..1, from which on they can be told apart in
spite of light and camera. Look-alikes differ by 0.3, the shades of a colour by less."""


class Look(NamedTuple):
    """A part of a person: names that are the same or not, and colours [N, 3]."""

    kinds: tuple[str | bool, ...]
    colours: np.ndarray


def looks(who: Person) -> dict[str, Look]:
    """What is to be known of a person, by part."""
    head = who.head_cloth
    hat = [head.hat] if who.head in ("cap", "hood") else []
    bag = [who.bag_cloth.base] if who.bag != "none" else []
    return {
        "head": Look((who.head,), np.array([head.skin, head.hair, *hat])),
        "torso": _worn(who.torso_cloth, who.upper),
        "arms": _worn(who.sleeve_cloth, who.upper in ("shirt", "vest")),
        "legs": _worn(who.lower_cloth, who.lower),
        "feet": _worn(who.shoe),
        "bag": Look((who.bag,), np.array(bag)),
    }


def _worn(garment: cloth.Cloth, *kinds: str | bool) -> Look:
    accent = [] if garment.pattern == "plain" else [garment.accent]
    return Look((*kinds, garment.pattern), np.array([garment.base, *accent]))


def apart(one: Look, other: Look) -> bool:
    """Whether two people can be told apart by a part."""
    if one.kinds != other.kinds:
        return True
    gaps = np.linalg.norm(one.colours - other.colours, axis=-1)
    return bool((gaps > APART).any())


@functools.cache
def shown(shot: Shot) -> tuple[bool, ...]:
    """Which of `CLASSES` a picture shows.

    What hangs on the chest or the back is seen wherever the torso is, and so is that
    somebody carries nothing.
    """
    labels = render.labelled(shot)[1]
    found = [np.isin(labels, c).sum() >= LEAST for c in CLASSES.values()]
    seen = dict(zip(CLASSES, map(bool, found), strict=True))
    if people.person(shot).bag in ("none", "backpack", "sling"):
        seen["bag"] |= seen["torso"]
    return tuple(seen.values())


def distances(query: Sequence[Shot], gallery: Sequence[Shot]) -> np.ndarray:
    """The oracle's, float64 [Q, G]; 1 where two pictures show nothing in common."""
    every = {shot.person: looks(people.person(shot)) for shot in (*query, *gallery)}
    persons = sorted(every)
    differ = np.zeros((len(CLASSES), len(persons), len(persons)), bool)
    for a, b in itertools.combinations(range(len(persons)), 2):
        one, other = every[persons[a]], every[persons[b]]
        differ[:, a, b] = differ[:, b, a] = [apart(one[p], other[p]) for p in CLASSES]
    rows, columns = (
        np.searchsorted(persons, [shot.person for shot in shots])
        for shots in (query, gallery)
    )
    both = np.array([*map(shown, query)])[:, None] & np.array([*map(shown, gallery)])
    told = both & differ[:, rows][:, :, columns].transpose(1, 2, 0)
    common = both.sum(-1)
    return np.where(common, told.sum(-1) / np.maximum(common, 1), 1.0)


def oracle(name: str, number: int = beds.PEOPLE) -> RankingResult:
    """How it ranks the first people of a set."""
    query, gallery = (
        [shot for shot in sets.shots(name, split) if shot.person <= number]
        for split in beds.SPLITS
    )
    protocol = protocols.protocol(f"synthetic/{name}")
    ranker = Ranker(
        *map(_labels, (query, gallery)),
        camera_filter=protocol.camera_filter,
        ap=protocol.ap,
    )
    ranker.update(np.arange(len(query)), distances(query, gallery))
    return ranker.result()


def _labels(shots: Sequence[Shot]) -> Labels:
    person, camera = np.array([(s.person, s.camera) for s in shots], np.int32).T
    return Labels(person, camera)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line for each set."""
    known = sorted({name.split("_")[1] for name in beds.TRIALS})
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--beds", default=",".join(known), help="some of the default")
    chosen = parser.parse_args(argv).beds.split(",")
    if unknown := set(chosen) - set(known):
        parser.error(f"no bed {', '.join(unknown)}; there are {', '.join(known)}")
    names = [name for name in beds.TRIALS if name.split("_")[1] in chosen]
    for name in tqdm(names, unit="set"):
        found = oracle(name)
        tqdm.write(f"{name:<20} rank-1 {found.cmc[0]:6.1%}  mAP {found.mAP:6.1%}")


if __name__ == "__main__":
    main()
