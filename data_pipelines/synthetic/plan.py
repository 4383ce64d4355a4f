"""Which person each picture shows, and from which camera; nothing is drawn here."""

import dataclasses
import functools

import numpy as np

from data_pipelines.synthetic import seeds

VARIANTS = ("holistic", "occluded", "partial")
SPLITS = ("train", "query", "gallery")


@dataclasses.dataclass(frozen=True)
class Size:
    """Counts of one size.

    Attributes:
      gallery: includes the `distractors` (person 0).
      seen: share of the cameras that see a training identity, on average.
    """

    cameras: int
    train_people: int
    train: int
    test_people: int
    query: int
    gallery: int
    distractors: int
    seen: float = 0.85


SIZES = {
    "demo": Size(4, 100, 1_200, 50, 150, 320, 20),
    "small": Size(6, 300, 4_000, 150, 600, 2_000, 200),
    # Market-1501: Zheng et al., ICCV 2015; the junk images are not counted.
    "market": Size(6, 751, 12_936, 750, 3_368, 15_913, 2_798),
}
PRETRAINING = {
    "pretrain": Size(24, 3_200, 40_000, 200, 600, 1_200, 100, seen=0.25),
    "pretrain_demo": Size(24, 100, 1_200, 50, 150, 320, 20, seen=0.25),
}
"""Sets to start networks from: of people and cameras that no other set has."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """What a picture of a test bed is put through; see `beds`. Shares are of 1.

    Attributes:
      covered: share of the body that something in front of it hides.
      crowd: whether that is another person of the bed, not an object.
      cut: share of the body that a crop leaves out, at the top or the bottom; None for
        pictures that are not cropped.
      shift: distance by which the box is off, in frames.
      loose: by how much the box is larger than it should be, of its height and width.
      alike: the only part in which people of a group differ; "" for people as they are.
    """

    covered: float = 0.0
    crowd: bool = False
    cut: float | None = None
    shift: float = 0.0
    loose: float = 0.0
    alike: str = ""


@dataclasses.dataclass(frozen=True)
class Shot:
    """All that a picture is a function of."""

    variant: str
    size: str
    split: str
    index: int
    person: int
    camera: int
    seed: int = seeds.SEED
    trial: Trial = Trial()

    @property
    def filename(self) -> str:
        """A name in the manner of Market-1501; its cameras count from 1."""
        return f"{self.person:04d}_c{self.camera + 1}_{self.index:06d}.jpg"


def shots(variant: str, size: str, split: str, seed: int = seeds.SEED) -> list[Shot]:
    """The pictures of a split in the order of the records.

    People are numbered through: training identities first, then test identities. The
    variants of a size share their people and this plan.
    """
    person, camera = _tables(size, seed)[split]
    pairs = zip(person.tolist(), camera.tolist(), strict=True)
    return [
        Shot(variant, size, split, index, who, where, seed)
        for index, (who, where) in enumerate(pairs)
    ]


def people(size: str, split: str) -> range:
    """Numbers of the people in a split, distractors left out."""
    counts = (SIZES | PRETRAINING)[size]
    if split == "train":
        return range(1, counts.train_people + 1)
    return range(counts.train_people + 1, counts.train_people + counts.test_people + 1)


@functools.cache
def _tables(size: str, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(person, camera) of every split, int64 [N] each."""
    counts = (SIZES | PRETRAINING)[size]
    rng = seeds.generator("plan", size, seed=seed)
    seen = _seen(rng, counts.test_people, counts.cameras, counts.query)
    known = counts.gallery - counts.distractors
    strangers = rng.integers(counts.cameras, size=counts.distractors)
    return {
        "train": _train(rng, counts),
        # As in Market-1501, one query per identity and camera.
        "query": _listed(seen.astype(int), counts.train_people + 1),
        "gallery": _with_strangers(
            strangers, _listed(_spread(rng, seen, known), counts.train_people + 1)
        ),
    }


def _train(rng: np.random.Generator, counts: Size) -> tuple[np.ndarray, np.ndarray]:
    most = counts.train_people * counts.cameras
    seen = _seen(rng, counts.train_people, counts.cameras, int(counts.seen * most))
    return _listed(_spread(rng, seen, counts.train), 1)


def _seen(
    rng: np.random.Generator, people: int, cameras: int, total: int
) -> np.ndarray:
    """Which camera sees whom, bool [people, cameras]; two cameras or more for each."""
    order = rng.random((people, cameras)).argsort(axis=1).argsort(axis=1)
    free = np.flatnonzero(order.ravel() >= 2)
    seen = order < 2
    seen.ravel()[rng.permutation(free)[: total - 2 * people]] = True
    return seen


def _spread(rng: np.random.Generator, seen: np.ndarray, total: int) -> np.ndarray:
    """Images of each person from each camera that saw them: one each, the rest drawn.

    People differ in how often they were seen, as in Market-1501.
    """
    weight = seen * rng.gamma(4.0, size=(len(seen), 1))
    extra = rng.multinomial(total - int(seen.sum()), weight.ravel() / weight.sum())
    return seen + extra.reshape(seen.shape)


def _listed(counts: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Persons (numbered from `first`) and cameras, repeated by `counts`."""
    person, camera = np.indices(counts.shape)
    repeats = counts.ravel()
    return person.ravel().repeat(repeats) + first, camera.ravel().repeat(repeats)


def _with_strangers(
    strangers: np.ndarray, listed: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    person = np.concatenate([np.zeros_like(strangers), listed[0]])
    return person, np.concatenate([strangers, listed[1]])
