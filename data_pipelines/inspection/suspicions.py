"""What may be a mistake in a prepared data set, for a person to judge."""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from data_pipelines.entries import shown
from data_pipelines.inspection.reading import Image, Inspected
from data_pipelines.records import Records, cameras_by_person


def suspicions(found: Mapping[str, Inspected]) -> Iterator[str]:
    """What may be a mistake in the data, a line each."""
    for name, split in found.items():
        broken = [n for n, i in _named(split) if i.size is None]
        if broken:
            yield f"{name}: {_images(broken)} cannot be read: {shown(broken)}"
    yield from _duplicates(found)
    if "query" in found and "gallery" in found:
        yield from _unmatched(found["query"].stored, found["gallery"].stored)
    tested = [s.identities for n, s in found.items() if n != "train"]
    if "train" in found and tested:
        both = np.intersect1d(found["train"].identities, np.concatenate(tested))
        if len(both):
            count = _identities(both, "is", "are")
            yield f"{count} in train and in test: {_ids(both, found['train'].stored)}"


def _named(split: Inspected) -> Iterator[tuple[str, Image]]:
    return ((split.stored.filename(i), image) for i, image in enumerate(split.images))


def _duplicates(found: Mapping[str, Inspected]) -> Iterator[str]:
    """Groups of images with the same bytes, by their splits and identities."""
    places = collections.defaultdict(list)
    for name, split in found.items():
        for index, image in enumerate(split.images):
            person = int(split.stored.person[index])
            places[image.digest].append(
                (name, f"{name}/{split.stored.filename(index)}", person)
            )
    groups = [group for group in places.values() if len(group) > 1]
    within = [g for g in groups if len({split for split, _, _ in g}) == 1]
    across = [g for g in groups if len({split for split, _, _ in g}) > 1]
    mixed = [g for g in groups if len({person for _, _, person in g}) > 1]
    for what, chosen in (
        ("within a split", within),
        ("in several splits", across),
        ("under several identities", mixed),
    ):
        if chosen:
            examples = [" = ".join(n for _, n, _ in g[:3]) for g in chosen]
            verb = "is" if len(chosen) == 1 else "are"
            yield (
                f"{_images(chosen)} {verb} there several times {what}: "
                f"{shown(examples, most=3)}"
            )


def _unmatched(query: Records, gallery: Records) -> Iterator[str]:
    """Identities with queries that have no match, or none by another camera."""
    asked, seen = map(cameras_by_person, (query, gallery))
    absent = [p for p in asked if p not in seen]
    if absent:
        count = _identities(absent, "is", "are", kind="query ")
        yield f"{count} not in the gallery: {_ids(absent, query)}"
    alone = [p for p in asked if any(seen.get(p) == {c} for c in asked[p])]
    if alone:
        yield (
            f"{_identities(alone, 'was', 'were')} seen by one camera only in the "
            "gallery, so that queries of that camera have no match: "
            f"{_ids(alone, query)}"
        )


def _images(items: Sequence[object]) -> str:
    return "1 image" if len(items) == 1 else f"{len(items)} images"


def _identities(items: Sequence[int], one: str, many: str, *, kind: str = "") -> str:
    """How many identities, and the verb that goes with the number."""
    if len(items) == 1:
        return f"1 {kind}identity {one}"
    return f"{len(items)} {kind}identities {many}"


def _ids(persons: Iterable[int], stored: Records) -> str:
    return shown([stored.person_name(p) for p in sorted(persons)])
