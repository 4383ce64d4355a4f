"""Writes small data sets in Market-1501's layout for the tests."""

import cv2
import numpy as np

FOLDERS = ("bounding_box_train", "query", "bounding_box_test")


def jpeg(height=32, width=16, *, seed=0, channels=3):
    """Encoded JPEG of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, channels))
    return cv2.imencode(".jpg", noise.astype(np.uint8))[1].tobytes()


def write(root, files):
    """Writes {"folder/name": bytes} below `root` and returns it."""
    for name in FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (root / name).write_bytes(data)
    return root


def small_files():
    """Two training identities, two test identities, a distractor, two junk images."""
    names = [
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "bounding_box_train/0002_c3s1_000551_01.JPG",
        "bounding_box_train/0007_c6s1_000776_01.jpg",
        "query/0001_c1s1_001051_00.jpg",
        "query/0003_c2s1_001051_00.jpg",
        "bounding_box_test/-1_c1s1_000401_03.jpg",
        "bounding_box_test/-1_c2s1_000401_03.jpg",
        "bounding_box_test/0000_c3s1_000401_03.jpg",
        "bounding_box_test/0001_c4s6_000810_00.jpg",
        "bounding_box_test/0003_c5s6_000810_00.jpg",
    ]
    return {name: jpeg(seed=i) for i, name in enumerate(names)}
