"""The part classes of part-label maps, for each kind of source.

A map holds the finest classes that its source provides: 0 is background, 255 a pixel
without a label, and what lies between depends on the kind. Methods group the classes
into fewer parts themselves (`part_labels.groupings`). Left and right are the
person's own, not those of the picture.

Kinds:
  parts: the library's own eight classes, as the synthetic data set has them.
  pifpaf: OpenPifPaf's confidence fields as BPBreID stores them (Somers et al., "Body
    Part-Based Representation Learning for Occluded Person Re-Identification", 2023);
    class 1 + c is channel c: 17 joints, then 19 limbs.
  hpnet: the parser labels of HPNet (Huang et al., "Human Parsing Based Alignment with
    Multi-Task Learning for Occluded Person Re-Identification", 2020).
  lip: the classes of LIP (Gong et al., "Look into Person", 2017) in their published
    order, which most human parsers write.
"""

import numpy as np

from reid_jax.errors import UserError

PART_NAMES: tuple[str, ...] = (
    "background",
    "head",
    "torso",
    "left arm",
    "right arm",
    "left leg",
    "right leg",
    "left foot",
    "right foot",
)
"""Names of the kind `parts`; the index is the label."""

PIFPAF_NAMES: tuple[str, ...] = (
    "background",
    "nose",
    "left eye",
    "right eye",
    "left ear",
    "right ear",
    "left shoulder",
    "right shoulder",
    "left elbow",
    "right elbow",
    "left wrist",
    "right wrist",
    "left hip",
    "right hip",
    "left knee",
    "right knee",
    "left ankle",
    "right ankle",
    "left ankle - left knee",
    "left knee - left hip",
    "right ankle - right knee",
    "right knee - right hip",
    "left hip - right hip",
    "left shoulder - left hip",
    "right shoulder - right hip",
    "left shoulder - right shoulder",
    "left shoulder - left elbow",
    "right shoulder - right elbow",
    "left elbow - left wrist",
    "right elbow - right wrist",
    "left eye - right eye",
    "nose - left eye",
    "nose - right eye",
    "left eye - left ear",
    "right eye - right ear",
    "left ear - left shoulder",
    "right ear - right shoulder",
)
"""Names of the kind `pifpaf`: background, then joints and limbs in channel order."""

HPNET_NAMES: tuple[str, ...] = (
    "background",
    "head",
    "torso",
    "upper arm",
    "lower arm",
    "upper leg",
    "lower leg",
    "foot",
)
"""Names of the kind `hpnet`, which does not tell left from right."""

LIP_NAMES: tuple[str, ...] = (
    "background",
    "hat",
    "hair",
    "glove",
    "sunglasses",
    "upper clothes",
    "dress",
    "coat",
    "socks",
    "pants",
    "jumpsuits",
    "scarf",
    "skirt",
    "face",
    "left arm",
    "right arm",
    "left leg",
    "right leg",
    "left shoe",
    "right shoe",
)
"""Names of the kind `lip`; the index is the label."""

CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "parts": PART_NAMES,
    "pifpaf": PIFPAF_NAMES,
    "hpnet": HPNET_NAMES,
    "lip": LIP_NAMES,
}
"""Kind of source -> name of each of its classes; the index is the label."""

KINDS = tuple(CLASS_NAMES)

UNLABELLED = 255
"""Marks a pixel without a label, in every kind."""


def check_kind(kind: str) -> str:
    """Returns `kind`.

    Raises:
      UserError: no such kind of part labels.
    """
    if kind not in CLASS_NAMES:
        raise UserError(
            f"Unknown kind of part labels: {kind!r}. Known: {', '.join(KINDS)}."
        )
    return kind


def flip_classes(parts: np.ndarray, kind: str = "parts") -> np.ndarray:
    """Swaps the left and right labels, as the mirror image of a person needs.

    The order of the pixels stays: mirroring them is the business of the transform.

    Args:
      parts: uint8 part labels of any shape.
      kind: numbering of the labels.

    Returns:
      A new array, uint8 of the same shape, where a class and the one of the other
      side have changed places; what lies in the middle of the body, background and
      unlabelled stay.

    Raises:
      TypeError: `parts` is not uint8.
      UserError: no such kind of part labels.
    """
    if parts.dtype != np.uint8:
        raise TypeError(f"Part labels are uint8, got {parts.dtype}.")
    return _FLIPPED[check_kind(kind)][parts]


def _flipped(names: tuple[str, ...]) -> np.ndarray:
    """Label -> label of the other side, uint8 [256]."""
    # A limb between the sides has the same two ends after the swap.
    ends = [frozenset(name.split(" - ")) for name in names]
    table = np.arange(256, dtype=np.uint8)
    for label, own in enumerate(ends):
        table[label] = ends.index(frozenset(map(_other_side, own)))
    return table


def _other_side(name: str) -> str:
    swapped = {"left": "right", "right": "left"}
    return " ".join(swapped.get(word, word) for word in name.split())


_FLIPPED = {kind: _flipped(names) for kind, names in CLASS_NAMES.items()}
