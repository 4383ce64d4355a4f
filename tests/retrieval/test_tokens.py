import jax
import numpy as np
import pytest

from reid_jax.retrieval import tokens

join = jax.jit(tokens.join, static_argnames="form")
distance = jax.jit(tokens.distance)


def some(rows, seed):
    """Tokens [rows, 3, 4] of very different lengths."""
    rng = np.random.default_rng(seed)
    lengths = rng.uniform(0.1, 30, (rows, 3, 1))
    return (rng.normal(size=(rows, 3, 4)) * lengths).astype(np.float32)


def represented(image, form):
    """The vector that distances are taken of, for one image [3, 4], in float64."""
    image = image.astype(np.float64)
    if form == "cls":
        return image[0] / np.linalg.norm(image[0])
    if form == "unit_tokens":
        image = np.stack([token / np.linalg.norm(token) for token in image])
    whole = np.concatenate(list(image))
    return whole if form == "raw" else whole / np.linalg.norm(whole)


@pytest.mark.parametrize("form", tokens.FORMS)
def test_vectors_and_distances_equal_numpy(form):
    images = some(3, 0), some(5, 1)
    query, gallery = (join(image, form) for image in images)
    for embedding, rows in zip((query, gallery), images, strict=True):
        norms = np.linalg.norm(embedding["vector"], axis=1)
        np.testing.assert_allclose(norms, 1, rtol=1e-6)
        wanted = np.stack([represented(row, form) for row in rows])
        found = np.asarray(embedding["vector"])
        if form == "raw":
            found = found * np.asarray(embedding["length"])[:, None]
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    wanted = [
        [np.linalg.norm(represented(q, form) - represented(g, form)) for g in images[1]]
        for q in images[0]
    ]
    np.testing.assert_allclose(distance(query, gallery), wanted, rtol=1e-4)
