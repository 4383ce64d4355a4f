"""What pictures call a query."""

import numpy as np

from data_pipelines.records import Records
from reid_jax.evaluation import drawing

ROWS = [(7, 0), (12, 1), (7, 4)]


def records(**names):
    keys = ("filename", "person", "camera")
    source = [dict(zip(keys, ("x.jpg", *row), strict=True)) for row in ROWS]
    return Records(source, has_parts=False, **names)


def test_cameras_count_as_in_file_names():
    """0007_c1, 0012_c2 and 0007_c5."""
    assert drawing.captions_of(records(), np.array([0, 1, 2])) == [
        "x.jpg\nperson 7, camera 1",
        "x.jpg\nperson 12, camera 2",
        "x.jpg\nperson 7, camera 5",
    ]


def test_names_are_those_of_the_source():
    named = records(person_names={7: "anna"}, camera_names={0: "door", 4: "10"})
    assert drawing.captions_of(named, np.array([2, 0])) == [
        "x.jpg\nperson anna, camera 10",
        "x.jpg\nperson anna, camera door",
    ]
