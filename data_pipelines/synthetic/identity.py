"""What a person looks like: build, skin, hair, clothing and what they carry.

Clothing colours come from a palette weighted like the street (much black, white,
grey and blue), so that many people share a colour and differ in trousers, texture,
hair, bag or build.
"""

import dataclasses

import numpy as np

from data_pipelines.synthetic import cloth

_PALETTE = {
    # name: (RGB, weight on the upper body, weight on the lower body)
    "black": ((0.07, 0.07, 0.08), 5, 6),
    "white": ((0.90, 0.90, 0.88), 4, 1),
    "grey": ((0.45, 0.46, 0.48), 3, 3),
    "navy": ((0.10, 0.13, 0.30), 3, 4),
    "denim": ((0.25, 0.35, 0.52), 1, 5),
    "blue": ((0.15, 0.33, 0.72), 2, 1),
    "sky": ((0.55, 0.72, 0.88), 2, 1),
    "red": ((0.75, 0.12, 0.13), 2, 1),
    "wine": ((0.38, 0.08, 0.14), 1, 1),
    "pink": ((0.88, 0.55, 0.65), 2, 1),
    "orange": ((0.88, 0.45, 0.12), 1, 0),
    "yellow": ((0.90, 0.80, 0.25), 2, 0),
    "green": ((0.16, 0.45, 0.22), 2, 0),
    "olive": ((0.34, 0.35, 0.20), 1, 2),
    "khaki": ((0.54, 0.52, 0.36), 2, 3),
    "brown": ((0.30, 0.18, 0.09), 1, 2),
    "purple": ((0.38, 0.22, 0.50), 1, 0),
}
_SKIN = np.array(
    [(0.93, 0.76, 0.66), (0.86, 0.67, 0.54), (0.72, 0.52, 0.38), (0.48, 0.32, 0.22)]
)
_HAIR = np.array(
    [
        (0.06, 0.05, 0.05),
        (0.10, 0.07, 0.05),
        (0.25, 0.15, 0.09),
        (0.62, 0.47, 0.27),
        (0.60, 0.58, 0.57),
    ]
)
_PATTERNS = {
    "plain": 0.44,
    "rings": 0.14,
    "pinstripes": 0.08,
    "checks": 0.10,
    "dots": 0.06,
    "noise": 0.08,
    "two-tone": 0.10,
}
_UPPER = {"shirt": 0.32, "long": 0.30, "jacket": 0.22, "coat": 0.10, "vest": 0.06}
_LOWER = {"trousers": 0.62, "shorts": 0.20, "skirt": 0.18}
_HEAD = {
    "short": 0.38,
    "long": 0.24,
    "ponytail": 0.12,
    "bun": 0.05,
    "bald": 0.05,
    "cap": 0.10,
    "hood": 0.06,
}
_BAG = {
    "none": 0.40,
    "backpack": 0.26,
    "handbag": 0.14,
    "sling": 0.13,
    "suitcase": 0.07,
}

_HUNG_BY = {"backpack": "straps", "sling": "sling"}
_APART = 0.3
"""Least distance of the colours, in RGB of 0..1, by which look-alikes differ."""


@dataclasses.dataclass(frozen=True)
class Person:
    """Appearance of one identity. Lengths are in body heights, colours RGB in 0..1.

    Attributes:
      width: build, a factor on all radii.
      shoulders: factor on the width of the shoulders.
      hips: factor on the width of the hips.
      loose: factor on the radii of clothed legs.
      upper, lower, head, bag: kinds of garment, head and bag.
      bag_left: whether the bag is carried on the left.
    """

    width: float
    shoulders: float
    hips: float
    loose: float
    upper: str
    lower: str
    head: str
    bag: str
    bag_left: bool
    skirt_hem: float
    torso_cloth: cloth.Cloth
    sleeve_cloth: cloth.Cloth
    lower_cloth: cloth.Cloth
    head_cloth: cloth.Head
    skin: cloth.Cloth
    legs_skin: cloth.Cloth
    hair: cloth.Cloth
    shoe: cloth.Cloth
    bag_cloth: cloth.Cloth


def person(rng: np.random.Generator) -> Person:
    """Draws a person."""
    upper, lower = _pick(rng, _UPPER), _pick(rng, _LOWER)
    head, bag = _pick(rng, _HEAD), _pick(rng, _BAG)
    skin = _SKIN[rng.integers(len(_SKIN))] * rng.uniform(0.92, 1.05)
    hair = _HAIR[rng.choice(len(_HAIR), p=[0.34, 0.28, 0.2, 0.1, 0.08])]
    upper_cloth = _garment(rng, lower=False)
    bag_cloth = dataclasses.replace(_garment(rng, lower=True), pattern="plain")
    torso = _torso_cloth(rng, upper, upper_cloth, bag, bag_cloth)
    return Person(
        width=rng.uniform(0.86, 1.24),
        shoulders=rng.uniform(0.92, 1.08),
        hips=rng.uniform(0.92, 1.10),
        loose=rng.uniform(0.95, 1.35),
        upper=upper,
        lower=lower,
        head=head,
        bag=bag,
        bag_left=bool(rng.integers(2)),
        skirt_hem=rng.uniform(0.22, 0.38),
        torso_cloth=torso,
        sleeve_cloth=_sleeve(rng, torso),
        lower_cloth=_lower_cloth(rng, lower),
        head_cloth=_head_cloth(rng, head, skin, hair),
        skin=cloth.plain(skin),
        legs_skin=cloth.plain(_legs(rng, skin)),
        hair=cloth.plain(hair),
        shoe=_shoe(rng),
        bag_cloth=bag_cloth,
    )


def look_alikes(rng: np.random.Generator, part: str, count: int) -> tuple[Person, ...]:
    """Draws people who differ in one part only, and clearly there.

    Args:
      rng: draws them.
      part: one of `PARTS`: "bag" is its kind and colour, the others are colour, pattern
        and details of what is worn; cuts stay.
      count: at most as many as there are kinds of bags.
    """
    first = person(rng)
    while first.upper == "coat":  # It would hide trousers.
        first = person(rng)
    kinds = rng.permutation(list(_BAG))
    group: list[Person] = []
    while len(group) < count:
        other = _CHANGED[part](rng, first, str(kinds[len(group)]))
        if all(_differ(part, other, known) for known in group):
            group.append(other)
    return tuple(group)


def _differ(part: str, one: Person, other: Person) -> bool:
    if part == "bag":
        return one.bag != other.bag
    a, b = (getattr(who, _COLOURED[part]).base for who in (one, other))
    return float(np.linalg.norm(a - b)) >= _APART


def _other_shirt(rng: np.random.Generator, who: Person, _: str) -> Person:
    garment = _garment(rng, lower=False)
    torso = _torso_cloth(rng, who.upper, garment, who.bag, who.bag_cloth)
    return dataclasses.replace(who, torso_cloth=torso, sleeve_cloth=_sleeve(rng, torso))


def _other_trousers(rng: np.random.Generator, who: Person, _: str) -> Person:
    return dataclasses.replace(who, lower_cloth=_lower_cloth(rng, who.lower))


def _other_shoes(rng: np.random.Generator, who: Person, _: str) -> Person:
    return dataclasses.replace(who, shoe=_shoe(rng))


def _other_bag(rng: np.random.Generator, who: Person, kind: str) -> Person:
    bag_cloth = dataclasses.replace(_garment(rng, lower=True), pattern="plain")
    torso = _under_bag(who.torso_cloth, kind, bag_cloth)
    return dataclasses.replace(who, bag=kind, bag_cloth=bag_cloth, torso_cloth=torso)


_CHANGED = {
    "shirt": _other_shirt,
    "trousers": _other_trousers,
    "shoes": _other_shoes,
    "bag": _other_bag,
}
_COLOURED = {"shirt": "torso_cloth", "trousers": "lower_cloth", "shoes": "shoe"}
PARTS = tuple(_CHANGED)
"""Parts in which look-alikes may differ."""


def _pick(rng: np.random.Generator, table: dict[str, float]) -> str:
    weights = np.array(list(table.values()))
    return list(table)[rng.choice(len(weights), p=weights / weights.sum())]


def _colour(rng: np.random.Generator, *, lower: bool) -> np.ndarray:
    column = 2 if lower else 1
    rgb = _PALETTE[_pick(rng, {name: row[column] for name, row in _PALETTE.items()})][0]
    return np.clip(
        np.array(rgb) * rng.uniform(0.85, 1.15) + rng.normal(0, 0.015, 3), 0, 1
    )


def _garment(rng: np.random.Generator, *, lower: bool) -> cloth.Cloth:
    return cloth.Cloth(
        base=_colour(rng, lower=lower),
        accent=_colour(rng, lower=False),
        pattern=_pick(rng, _PATTERNS),
        scale=rng.uniform(0.8, 1.5),
        phase=rng.uniform(0, 1),
    )


def _lower_cloth(rng: np.random.Generator, lower: str) -> cloth.Cloth:
    garment = _garment(rng, lower=True)
    plain = rng.random() < (0.5 if lower == "skirt" else 0.85)
    return dataclasses.replace(garment, pattern="plain") if plain else garment


def _torso_cloth(
    rng: np.random.Generator,
    upper: str,
    garment: cloth.Cloth,
    bag: str,
    bag_cloth: cloth.Cloth,
) -> cloth.Cloth:
    overlays = []
    if upper in ("jacket", "coat") and rng.random() < 0.6:
        overlays.append(cloth.Overlay("open", _colour(rng, lower=False)))
    elif upper in ("jacket", "coat"):
        overlays.append(cloth.Overlay("zip", garment.base * 0.45))
    elif garment.pattern in ("plain", "noise") and rng.random() < 0.5:
        overlays.append(cloth.Overlay("logo", garment.accent))
    if garment.pattern == "plain" and rng.random() < 0.3:
        overlays.append(cloth.Overlay("back print", garment.accent))
    return _under_bag(
        dataclasses.replace(garment, overlays=tuple(overlays)), bag, bag_cloth
    )


def _under_bag(garment: cloth.Cloth, bag: str, bag_cloth: cloth.Cloth) -> cloth.Cloth:
    """The garment with what a bag hangs by, and without that of any other."""
    overlays = [o for o in garment.overlays if o.kind not in _HUNG_BY.values()]
    if bag in _HUNG_BY:
        overlays.append(cloth.Overlay(_HUNG_BY[bag], bag_cloth.base * 0.8))
    return dataclasses.replace(garment, overlays=tuple(overlays))


def _sleeve(rng: np.random.Generator, torso: cloth.Cloth) -> cloth.Cloth:
    if torso.pattern == "two-tone":
        return cloth.plain(torso.accent if rng.random() < 0.5 else torso.base)
    if rng.random() < 0.12:
        return cloth.plain(torso.accent)
    return dataclasses.replace(torso, overlays=())


def _head_cloth(
    rng: np.random.Generator, head: str, skin: np.ndarray, hair: np.ndarray
) -> cloth.Head:
    beard = head in ("short", "bald", "cap") and rng.random() < 0.2
    return cloth.Head(
        skin=skin,
        hair=hair,
        hat=_colour(rng, lower=False),
        style=head,
        beard=beard,
        glasses=rng.random() < 0.15,
    )


def _legs(rng: np.random.Generator, skin: np.ndarray) -> np.ndarray:
    tights = rng.random() < 0.25
    return np.array((0.10, 0.09, 0.10)) if tights else skin


def _shoe(rng: np.random.Generator) -> cloth.Cloth:
    if rng.random() < 0.6:
        return cloth.plain(np.full(3, rng.choice([0.06, 0.12, 0.85])))
    return cloth.plain(_colour(rng, lower=bool(rng.integers(2))))
