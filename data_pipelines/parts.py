"""The part classes that every part-label map of the library uses.

One numbering, the finest that a source provides; methods group it into fewer parts
themselves. Left and right are the person's own, not those of the picture.
"""

import numpy as np

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
"""Name of each class; the index is the label. 255 marks a pixel without a label."""

UNLABELLED = 255

_FLIPPED = np.arange(256, dtype=np.uint8)
_FLIPPED[[3, 4, 5, 6, 7, 8]] = [4, 3, 6, 5, 8, 7]


def flip_classes(parts: np.ndarray) -> np.ndarray:
    """Swaps the left and right labels, as the mirror image of a person needs.

    The order of the pixels stays: mirroring them is the business of the transform.

    Args:
      parts: uint8 part labels of any shape.

    Returns:
      A new array, uint8 of the same shape, where 3 and 4, 5 and 6, 7 and 8 have
      changed places; background, head, torso and unlabelled stay.

    Raises:
      TypeError: `parts` is not uint8.
    """
    if parts.dtype != np.uint8:
        raise TypeError(f"Part labels are uint8, got {parts.dtype}.")
    return _FLIPPED[parts]
