"""What is stored of an Embedding, and what candidates are found by."""

import hashlib
import pathlib

import numpy as np
import pytest

from reid_jax.errors import UserError
from reid_jax.search import layout, rows
from reid_jax.search.layout import About


def _about(embedding):
    return About("f", "m", "", (32, 16), layout.described(embedding))


def test_parts_come_back_and_candidates_share_visible_ones():
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(6, 3, 5)).astype(np.float32)
    parts /= np.linalg.norm(parts, axis=-1, keepdims=True)
    visible = rng.random((6, 3)) > 0.4
    embedding = {"parts": parts, "visibility": visible, "length": parts[:, 0, 0]}
    about = About.read(_about(embedding).text())
    assert about == _about(embedding)
    stored = layout.decoded(about, layout.encoded(about, embedding))
    assert {k: (v.dtype, v.shape) for k, v in stored.items()} == {
        k: (v.dtype, v.shape) for k, v in embedding.items()
    }
    np.testing.assert_array_equal(stored["visibility"], visible)
    np.testing.assert_array_equal(stored["parts"][visible], parts[visible])
    np.testing.assert_array_equal(stored["length"], embedding["length"])
    found = layout.anchors(about, embedding)
    for i in range(6):
        for j in range(6):
            both = visible[i] & visible[j]
            alike = sum(parts[i, k] @ parts[j, k] for k in range(3) if both[k])
            assert found[i] @ found[j] == pytest.approx(alike, abs=1e-6)


def test_arrays_of_another_network():
    vectors = {"vector": np.zeros((2, 8), np.float32)}
    with pytest.raises(UserError, match=r"vector \[8\], the gallery vector \[4\]"):
        _about({"vector": np.zeros((1, 4), np.float32)}).check(vectors, "this")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("2026-11-29T14:00:00+01:00", "2026-11-29T13:00:00Z"),
        ("2026-11-29 13:00", "2026-11-29T13:00:00Z"),
        ("2026-11-29", "2026-11-29T00:00:00Z"),
        ("20261129", "2026-11-29T00:00:00Z"),
        (0, "1970-01-01T00:00:00Z"),
        (np.datetime64("2026-11-29T13:00:00").item(), "2026-11-29T13:00:00Z"),
        ("", None),
        (None, None),
    ],
)
def test_times_compare_as_texts(given, kept):
    assert rows.moment(given) == kept


@pytest.mark.parametrize("given", ["20261129104", "202611291415", "2026112910215"])
def test_figures_that_are_no_date(given):
    with pytest.raises(ValueError, match=f"{given} is neither a date nor a time"):
        rows.moment(given)


@pytest.mark.parametrize(
    ("path", "camera"), [("/a/7_c2.png", "2"), ("/a/7.png", "hall")]
)
def test_a_camera_that_a_path_does_not_tell(path, camera):
    facts = rows._facts(r"(?P<person>\d)(_c(?P<camera>\d))?\.", "hall")
    assert facts(path) == {"person": "7", "camera": camera, "time": None}


def test_an_image_is_read_once(photos, monkeypatch):
    """What is hashed is what could be decoded, whoever writes meanwhile."""
    read, real = [], pathlib.Path.read_bytes
    monkeypatch.setattr(
        pathlib.Path, "read_bytes", lambda path: read.append(path) or real(path)
    )
    (entry,) = rows.from_files([str(photos / "2_c1.png")])
    assert read == [photos / "2_c1.png"]
    assert entry.content == hashlib.sha256(real(read[0])).hexdigest()


@pytest.mark.parametrize("place", ["shipped/vit", "gs://bucket/run", "", "/runs/x"])
def test_places_that_are_the_same_from_any_folder(place):
    assert rows.lasting(place) == place


def test_a_place_on_the_disk_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert rows.lasting("runs/x") == str(tmp_path / "runs" / "x")
