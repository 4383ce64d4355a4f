"""Storing what a reader listed: TIFF files, and part labels of some images."""

import io

import numpy as np
import PIL.Image
import pytest

from data_pipelines import images, prepared, store
from data_pipelines.entries import Entry, Split
from reid_jax.errors import UserError
from tests.data_pipelines.market_folder import jpeg

PIXELS = np.random.default_rng(0).integers(0, 256, (48, 24, 3)).astype(np.uint8)


def tiff(path, pixels=PIXELS, **settings):
    PIL.Image.fromarray(pixels).save(path, format="TIFF", **settings)
    return path


def decoded(data):
    with PIL.Image.open(io.BytesIO(data)) as image:
        return image.format, np.asarray(image)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "packbits"])
def test_a_tiff_is_stored_as_png_of_the_same_pixels(tmp_path, compression):
    path = tiff(tmp_path / "001_01.tif", compression=compression)
    image = images.read_image(path)
    kind, pixels = decoded(image.data)
    assert (kind, image.height, image.width) == ("PNG", 48, 24)
    np.testing.assert_array_equal(pixels, PIXELS)


def test_a_tiff_of_other_pixels_is_refused(tmp_path):
    path = tiff(tmp_path / "grey.tif", PIXELS[..., 0])
    with pytest.raises(UserError, match=r"grey\.tif: it is not an RGB image"):
        images.read_image(path)
    tiff(path)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match=r"grey\.tif: it cannot be read"):
        images.read_image(path)


def build(splits, data_dir):
    builder = store.builder(
        splits, name="own", title="Own", data_dir=data_dir, track=lambda e, _: e
    )
    builder.download_and_prepare()
    return builder


def test_images_without_labels_are_unlabelled_throughout(tmp_path):
    for name in ("0001_c1.jpg", "0002_c1.jpg"):
        (tmp_path / name).write_bytes(jpeg(40, 20))

    def parts(height, width):
        return images.png(np.full((height, width), 3, np.uint8))

    parts.kind = "parts"
    entries = (
        Entry(tmp_path / "0001_c1.jpg", 1, 0, parts),
        Entry(tmp_path / "0002_c1.jpg", 2, 0),
    )
    splits = {"query": Split(entries, remarks=("Two of them.",))}
    info = build(splits, tmp_path / "data").info
    stored = prepared.open_records("own", "query", tmp_path / "data")
    assert stored.has_parts
    for record, value in zip(stored, (3, 255), strict=True):
        _, pixels = decoded(record["parts"])
        np.testing.assert_array_equal(pixels, np.full((40, 20), value))
    assert info.metadata["remarks"] == [
        "Two of them.",
        "query: 1 of 2 images have part labels.",
    ]
    assert info.metadata["labelled"] == {"query": 1}


def test_names_of_persons_are_kept(tmp_path):
    (tmp_path / "0001_c1.jpg").write_bytes(jpeg())
    entries = (Entry(tmp_path / "0001_c1.jpg", 1, 0),)
    splits = {
        "train": Split(entries, person_names={1: "anna"}),
        "gallery": Split(entries, person_names={2: "Ðoan"}),
    }
    metadata = build(splits, tmp_path / "data").info.metadata
    assert metadata["person_names"] == {"1": "anna", "2": "Ðoan"}
    assert not prepared.open_records("own", "train", tmp_path / "data").has_parts
