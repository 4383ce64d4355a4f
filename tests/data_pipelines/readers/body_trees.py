"""Writes trees with the names and counts of the occluded and partial data sets."""

import io
import zipfile

import numpy as np
import PIL.Image

OCCLUDED, WHOLE, PARTIAL = (
    "occluded_body_images",
    "whole_body_images",
    "partial_body_images",
)


def write(root, names, image=lambda name: b""):
    """Writes `names` below `root`, with the bytes `image(name)`, and returns `root`."""
    for folder in {name.rpartition("/")[0] for name in names}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / name).write_bytes(image(name))
    return root


def pack(path, names):
    """The same as a zip with empty files, without entries for folders."""
    with zipfile.ZipFile(path, "w") as packed:
        for name in names:
            packed.writestr(name, b"")
    return path


def noise(kind):
    """Image bytes by name: an image of noise in Pillow's format `kind`."""

    def image(name):
        rng = np.random.default_rng(sum(name.encode()))
        pixels = rng.integers(0, 256, (32, 16, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        PIL.Image.fromarray(pixels).save(buffer, format=kind)
        return buffer.getvalue()

    return image


def per_person(folder, persons, images, pattern):
    """`images` names of `folder`, dealt out to `persons` in turn."""
    return [
        f"{folder}/" + pattern.format(p=persons[i % len(persons)], n=i // len(persons))
        for i in range(images)
    ]


def occluded_reid(persons=range(1, 201), each=5):
    return [
        f"{folder}/{person:03}/{person:03}_{number:02}.tif"
        for folder in (OCCLUDED, WHOLE)
        for person in persons
        for number in range(1, each + 1)
    ]


def p_dukemtmc(train=(12927, 665), query=2163, gallery=9053, test=634):
    images, count = train
    trained = range(1, 2 * count, 2)
    tested = range(2, 2 * test + 1, 2)
    name = "{p:04}/{p:04}_c1_f{n:07}.jpg"
    return [
        *per_person(f"train/{OCCLUDED}", trained, images // 4, name),
        *per_person(f"train/{WHOLE}", trained, images - images // 4, name),
        *per_person(f"test/{OCCLUDED}", tested, query, name),
        *per_person(f"test/{WHOLE}", tested, gallery, name),
    ]


def partial_reid(queries=PARTIAL, pattern="{p:03}_{n:03}.jpg", persons=60, images=300):
    return [
        name
        for folder in (queries, WHOLE)
        for name in per_person(folder, range(1, persons + 1), images, pattern)
    ]


def partial_ilids(folders=("Probe", "Gallery"), pattern="{p:03}.jpg"):
    return [
        name
        for folder in folders
        for name in per_person(folder, range(1, 120), 119, pattern)
    ]


def partial_ilids_218():
    persons = range(1, 120)
    return [
        *per_person("Probe", persons, 218, "{p:04}{n:03}.jpg"),
        *per_person("Gallery", persons, 119, "{p:04}001.jpg"),
    ]
