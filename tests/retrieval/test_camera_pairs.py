"""Rank-1 between cameras against a loop over queries and cameras."""

import numpy as np
import pytest

from reid_jax.retrieval.camera_pairs import CameraPairs
from reid_jax.retrieval.labels import Labels


@pytest.mark.parametrize("camera_filter", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_a_loop(seed, camera_filter):
    rng = np.random.default_rng(seed)
    query = Labels(rng.integers(-1, 4, 20), rng.choice([2, 3, 7], 20))
    gallery = Labels(rng.integers(-1, 4, 30), rng.choice([1, 3, 7], 30))
    keys = rng.integers(0, 6, (20, 30)).astype(np.float32)  # many are equal

    counted = CameraPairs(query, gallery, camera_filter=camera_filter)
    for start in range(0, 20, 8):
        rows = np.arange(start, min(start + 8, 20))
        counted.update(rows, keys[np.resize(rows, 8)])

    right, asked = {}, {}
    for q in range(20):
        if query.person[q] <= 0:
            continue
        for camera in (1, 3, 7):
            images = [
                g
                for g in range(30)
                if gallery.camera[g] == camera
                and gallery.person[g] >= 0
                and not (
                    camera_filter
                    and camera == query.camera[q]
                    and gallery.person[g] == query.person[q]
                )
            ]
            if not any(gallery.person[g] == query.person[q] for g in images):
                continue
            first = min(images, key=lambda g, q=q: (keys[q, g], g))
            pair = int(query.camera[q]), camera
            asked[pair] = asked.get(pair, 0) + 1
            hit = gallery.person[first] == query.person[q]
            right[pair] = right.get(pair, 0) + int(hit)
    for i, a in enumerate(counted.query_cameras):
        for j, b in enumerate(counted.gallery_cameras):
            assert counted.asked[i, j] == asked.get((a, b), 0)
            assert counted.right[i, j] == right.get((a, b), 0)
