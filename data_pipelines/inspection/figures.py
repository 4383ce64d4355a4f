"""Figures of a prepared data set, as text: counts, sizes, cameras."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from data_pipelines.inspection.reading import Image, Inspected
from data_pipelines.inspection.suspicions import suspicions

_CAMERAS = 20


def report(found: Mapping[str, Inspected]) -> str:
    """The table of counts, the distributions and the suspicious entries, as text."""
    suspicious = list(suspicions(found))
    lines = [
        *_counts(found),
        "",
        *_per_camera(found),
        "",
        "Suspicious entries:" if suspicious else "Suspicious entries: none.",
        *(f"- {line}" for line in suspicious),
    ]
    return "\n".join(lines)


def _counts(found: Mapping[str, Inspected]) -> Iterator[str]:
    head = ("", "images", "identities", "cameras", "images each", "size", "labelled")
    yield _cells(head)
    for name, split in found.items():
        stored = split.stored
        _, each = np.unique(stored.person[stored.person > 0], return_counts=True)
        labelled = np.mean([i.labelled for i in split.images]) if len(stored) else 0
        yield _cells(
            (
                name,
                len(stored),
                len(each),
                np.unique(stored.camera).size,
                _spread(each),
                _sizes(split.images),
                f"{labelled:.1%}",
            )
        )
        if distractors := int((stored.person == 0).sum()):
            yield f"{'':10}{distractors:>9} of them distractors"
    yield "images each: least / median / most of an identity; size: height x width"


def _cells(cells: Sequence[object]) -> str:
    widths = (10, 9, 12, 9, 18, 26, 10)
    text = (f"{c!s:>{w}}" for c, w in zip(cells[1:], widths[1:], strict=True))
    return f"{cells[0]!s:{widths[0]}}" + "".join(text)


def _spread(values: np.ndarray) -> str:
    if not len(values):
        return "-"
    return f"{values.min()} / {np.median(values):g} / {values.max()}"


def _sizes(images: Sequence[Image]) -> str:
    sizes = np.array([i.size for i in images if i.size])
    if not len(sizes):
        return "-"
    (low_h, low_w), (high_h, high_w) = sizes.min(axis=0), sizes.max(axis=0)
    least, most = f"{low_h} x {low_w}", f"{high_h} x {high_w}"
    return least if least == most else f"{least} to {most}"


def _per_camera(found: Mapping[str, Inspected]) -> Iterator[str]:
    names = {
        int(camera): split.stored.camera_name(camera)
        for split in found.values()
        for camera in np.unique(split.stored.camera)
    }
    cameras = sorted(names)[:_CAMERAS]
    width = max(7, *(len(names[c]) + 2 for c in cameras))
    yield "identities of each camera:"
    yield f"{'':10}" + "".join(f"{names[c]:>{width}}" for c in cameras)
    for name, split in found.items():
        person, camera = split.stored.person, split.stored.camera
        seen = (np.unique(person[(camera == c) & (person > 0)]).size for c in cameras)
        yield f"{name:10}" + "".join(f"{n:>{width}}" for n in seen)
    if len(names) > len(cameras):
        yield f"and {len(names) - len(cameras)} more cameras"
