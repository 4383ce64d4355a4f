"""One trained network for all tests of this folder."""

import cv2
import numpy as np
import pytest

import reid_jax
from tests.extractor import places as making


@pytest.fixture(scope="package")
def places(tiny_data, tmp_path_factory):
    return making.make(tmp_path_factory.mktemp("places"), tiny_data)


@pytest.fixture(scope="package")
def extractor(places):
    return reid_jax.load(places.run)


@pytest.fixture(scope="package")
def photos(tmp_path_factory):
    """A folder of 21 pictures of several sizes, in subfolders, and other files."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(21):
        path = folder / f"camera{i % 3}" / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (4 + i % 3, 2, 3), np.uint8)
        cv2.imwrite(str(path), cv2.resize(pixels, (20 + i, 40 + i)))
    (folder / "notes.txt").write_text("of the day")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "no.png").write_bytes(b"")
    return folder
