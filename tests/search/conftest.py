"""A gallery of coloured pictures, and networks that see nothing but colour."""

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.images import BILINEAR
from reid_jax.extractor import load as loading
from reid_jax.extractor.extractor import Extractor
from reid_jax.extractor.network import Network
from reid_jax.retrieval.distances import euclidean, normalise
from reid_jax.retrieval.visible_parts import visible_euclidean
from reid_jax.runtime import sharding
from reid_jax.search import command

PERSONS, CAMERAS = 6, 3


def _vectors(variables, images):
    small = jax.image.resize(images / 255.0, (images.shape[0], 4, 2, 3), "linear")
    return {"vector": normalise(small.reshape(images.shape[0], -1) - variables)}


def _parts(variables, images):
    """Four stripes; a dark one is not visible."""
    stripes = (images / 255.0).reshape(images.shape[0], 4, -1, images.shape[2], 3)
    mean = stripes.mean((2, 3))
    return {
        "parts": normalise(mean - variables),
        "visibility": (mean.max(-1) > 0.2).astype(jnp.float32),
    }


def _distance(query, gallery):
    return euclidean(query["vector"], gallery["vector"])


def _part_distance(query, gallery):
    return visible_euclidean(
        query["parts"],
        query["visibility"] > 0,
        gallery["parts"],
        gallery["visibility"] > 0,
    )


_COMMON = {
    "image_size": (32, 16),
    "resize": BILINEAR,
    "inputs": (),
    "variables": jnp.float32(0.5),
}
NETWORKS = {
    "toy": Network(
        method="tests.toy",
        fingerprint="f" * 16,
        parts=(),
        embed=_vectors,
        distance=_distance,
        **_COMMON,
    ),
    "parts": Network(
        method="tests.parts",
        fingerprint="a" * 16,
        parts=("head", "body", "legs", "feet"),
        embed=_parts,
        distance=_part_distance,
        **_COMMON,
    ),
}
NETWORKS["other"] = dataclasses.replace(NETWORKS["toy"], fingerprint="0" * 16)


@pytest.fixture(scope="package")
def extractors():
    mesh = sharding.make_mesh(jax.devices()[:1])
    return {name: Extractor(network, mesh) for name, network in NETWORKS.items()}


@pytest.fixture(autouse=True)
def _networks(monkeypatch, extractors):
    """`--model=NAME` is one of the networks above."""
    command._loaded.cache_clear()
    monkeypatch.setattr(
        loading, "load", lambda place: extractors[place.rsplit("/", 1)[-1]]
    )


@pytest.fixture(scope="package")
def photos(tmp_path_factory):
    """18 images, PERSON_cCAMERA.png: the colours are the person's, with some noise."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for person in range(PERSONS):
        look = rng.integers(0, 256, (4, 1, 3))
        look[person % 4] = look[person % 4] if person % 2 else 0
        for camera in range(CAMERAS):
            noise = rng.integers(-25, 26, (4, 1, 3)) * (look.max(-1, keepdims=True) > 0)
            pixels = np.clip(look + noise, 0, 255).astype(np.uint8)
            pixels = cv2.resize(pixels, (20, 40), interpolation=cv2.INTER_NEAREST)
            cv2.imwrite(str(folder / f"{person}_c{camera}.png"), pixels)
    return folder
