"""What an image is, and which way up: the same for preparing and for training."""

import io

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from data_pipelines import images, prepared, store
from data_pipelines.entries import Entry, Split
from data_pipelines.part_labels.label_files import Label
from reid_jax.errors import UserError

RNG = np.random.default_rng(0)
PIXELS = cv2.resize(
    RNG.integers(0, 256, (6, 3, 3)).astype(np.uint8), (24, 48), interpolation=1
)
LABELS = RNG.integers(0, 9, (48, 24)).astype(np.uint8)


def encoded(pixels, kind, orientation=None, **options):
    buffer = io.BytesIO()
    exif = PIL.Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    PIL.Image.fromarray(pixels).save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


def turned_by_pillow(pixels, orientation):
    data = encoded(pixels, "PNG", orientation)
    with PIL.Image.open(io.BytesIO(data)) as image:
        return np.asarray(PIL.ImageOps.exif_transpose(image))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_image_and_labels_are_turned_alike(tmp_path, kind):
    cv2.imwrite(str(tmp_path / "labels.png"), LABELS)
    label = Label(tmp_path / "labels.png", "parts")
    entries = []
    for orientation in range(1, 9):
        path = tmp_path / f"{orientation}.{kind.lower()}"
        path.write_bytes(encoded(PIXELS, kind, orientation))
        entries.append(Entry(path, orientation, 0, label))
    store.builder(
        {"train": Split(tuple(entries))},
        name="own",
        title="Own",
        data_dir=tmp_path / "data",
        track=lambda e, _: e,
    ).download_and_prepare()
    flat = images.decode(encoded(PIXELS, "JPEG" if kind == "JPEG" else "PNG"))
    stored = prepared.open_records("own", "train", tmp_path / "data")
    for orientation, record in enumerate(stored, start=1):
        image = images.decode(record["image"])
        np.testing.assert_array_equal(image, turned_by_pillow(flat, orientation))
        parts = images.decode_parts(record["parts"])
        np.testing.assert_array_equal(parts, turned_by_pillow(LABELS, orientation))


def damaged(kind):
    """A file cut and changed in many places."""
    whole = encoded(PIXELS, kind)
    rng = np.random.default_rng(1)
    yield from (whole[:-n] for n in (1, 2, 4, 8, 12, 13, 50, len(whole) - 30))
    yield from (whole + b"more", whole + bytes(100))
    for place in rng.integers(20, len(whole), 60):
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.integers(8)
        yield bytes(changed)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_what_can_be_prepared_can_be_decoded_and_the_other_way_round(tmp_path, kind):
    verdicts = []
    for data in damaged(kind):
        path = tmp_path / "0001_c1.jpg"
        path.write_bytes(data)
        try:
            images.decode(data)
            decodes = True
        except ValueError:
            decodes = False
        try:
            assert images.read_image(path).data == data
            prepares = True
        except UserError:
            prepares = False
        verdicts.append((decodes, prepares))
    assert (False, False) in verdicts
    assert (True, True) in verdicts
    # A header that Pillow does not know is refused although its pixels decode.
    assert (False, True) not in verdicts
    assert verdicts.count((True, False)) <= 3


def test_a_damaged_exif_segment_is_no_reason_to_refuse(tmp_path):
    data = encoded(PIXELS, "JPEG", 6)
    place = data.index(b"Exif\0\0") + 6
    path = tmp_path / "0001_c1.jpg"
    path.write_bytes(data[:place] + b"\xff" * 8 + data[place + 8 :])
    image = images.read_image(path)
    assert (image.height, image.width, image.orientation) == (48, 24, 1)
