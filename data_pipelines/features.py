"""The features of a stored record, the same for every data set."""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds


def features(with_parts: bool) -> tfds.features.FeaturesDict:
    """Features of a stored record.

    `image` holds the encoded bytes of an RGB picture as the source has them.
    `person` is positive for an identity and 0 for a distractor (gallery only);
    junk (-1) is never stored. `camera` counts from 0. `filename` is the name in the
    source. With `with_parts`, `parts` holds a single-channel PNG of the size of the
    picture with the classes of `part_labels.kinds`, 255 throughout for a picture
    without labels; the metadata's `parts_kind` says which numbering it is.
    """
    entries: dict[str, Any] = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "person": np.int32,
        "camera": np.int32,
        "filename": tfds.features.Text(),
    }
    if with_parts:
        entries["parts"] = tfds.features.Image(
            shape=(None, None, 1), encoding_format="png"
        )
    return tfds.features.FeaturesDict(entries)
