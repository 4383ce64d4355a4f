"""What AAformer's parts tell of the body, on tables that are known."""

import math

import numpy as np
import pytest

from benchmarks import part_regions


def test_information_by_its_definition():
    table = np.random.default_rng(0).integers(0, 20, (5, 3)).astype(float)
    total, wanted = table.sum(), 0.0
    for part in range(5):
        for region in range(3):
            both = table[part, region] / total
            if both:
                alone = table[part].sum() * table[:, region].sum() / total**2
                wanted += both * math.log2(both / alone)
    assert part_regions.information(table) == pytest.approx(wanted)
    # Nothing, and everything.
    assert part_regions.information(np.outer([1, 2], [3, 4])) == pytest.approx(0)
    assert part_regions.information(np.eye(3)) == pytest.approx(math.log2(3))


def test_labels_at_the_centres_of_patches():
    labels = np.arange(8 * 12).reshape(1, 8, 12)
    found = part_regions._at_centres(labels, np.zeros((1, 2, 2, 3)))
    wanted = [[labels[0, y, x] for x in (2, 6, 10)] for y in (2, 6)]
    np.testing.assert_array_equal(found[0], wanted)
