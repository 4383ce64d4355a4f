"""Small trees in the layouts of the published data sets, for the tests of readers."""

import zipfile

import cv2
import numpy as np

from tests.data_pipelines.market_folder import jpeg


def png(height=32, width=16, *, seed=0):
    """Encoded PNG of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return cv2.imencode(".png", noise.astype(np.uint8))[1].tobytes()


def write(root, files):
    """Writes {name: bytes} below `root` and returns it."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def pack(archive, files, *, top=""):
    """Writes {name: bytes} into a zip file and returns its path."""
    with zipfile.ZipFile(archive, "w") as packed:
        for name, data in files.items():
            packed.writestr(top + name, data)
    return archive


def images(names):
    """{name: bytes}: an image of its own for every name."""
    return {
        name: (png if name.lower().endswith(".png") else jpeg)(seed=i)
        for i, name in enumerate(names)
    }


def triples(split):
    """(name, person, camera) of the entries of a scanned split."""
    return [(e.path.name, e.person, e.camera) for e in split.entries]


DUKE = [
    "bounding_box_train/0001_c2_f0046182.jpg",
    "bounding_box_train/0001_c8_f0046302.jpg",
    "query/0005_c2_f0046985.jpg",
    "bounding_box_test/0002_c1_f0044158.jpg",
    "bounding_box_test/0005_c5_f0051341.jpg",
]

MSMT17_LISTS = {
    "list_train.txt": (
        "0000/0000_000_01_0303morning_0015_0.jpg 0\n"
        "0001/0001_003_12_0303noon_0015_1.jpg 1\n"
    ),
    "list_val.txt": "0001/0001_004_15_0303noon_0015_1_ex.jpg 1\n",
    "list_query.txt": "0000/0000_000_01_0303morning_0015_0.jpg 0\n",
    "list_gallery.txt": "0000/0000_007_06_0303morning_0015_0.jpg 0\n",
}


def msmt17(train="train", test="test", lists=MSMT17_LISTS):
    """{name: bytes} of a small MSMT17."""
    names = [
        f"{train if part in ('train', 'val') else test}/{line.split()[0]}"
        for part in ("train", "val", "query", "gallery")
        for line in lists[f"list_{part}.txt"].splitlines()
    ]
    return images(names) | {name: text.encode() for name, text in lists.items()}


CUHK03 = [
    "bounding_box_train/0001_c1_00.png",
    "bounding_box_train/0001_c2_05.png",
    "query/0768_c1_00.png",
    "bounding_box_test/0768_c2_07.png",
]


def cuhk03():
    """{name: bytes} of a small cuhk03-np."""
    return images([f"{boxes}/{n}" for boxes in ("labeled", "detected") for n in CUHK03])


OCCLUDED_DUKE_LISTS = {
    "train.list": "0002_c1_f0044158.jpg\n",
    "query.list": "0005_c2_f0046985.jpg\n",
    "gallery.list": "0005_c5_f0051341.jpg\n0001_c2_f0046182.jpg\n",
}
"""An Occluded-Duke made of `DUKE`: two of its images change their split."""


def occluded_duke():
    """{name: bytes} of a small Occluded-Duke made of a DukeMTMC-reID."""
    lists = {name: text.encode() for name, text in OCCLUDED_DUKE_LISTS.items()}
    return images(DUKE) | lists
