"""DROP's benchmarks: what changes with M, and retrieval by some of the embeddings."""

import json
import types

import numpy as np
import pytest

from benchmarks import memory_bank, parsing
from reid_jax.retrieval.visible_parts import visible_euclidean


def test_bank_and_loss_alone(capsys):
    arguments = ["--alone", "--batch=8", "--sizes=2,0,1", "--steps=1"]
    memory_bank.main(arguments)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["bank"] for row in rows] == ["part average", "M = 1", "M = 2"]
    numbers = 8 * 8 * 512 + 8  # embeddings and labels of a batch
    assert [row["bank_bytes"] for row in rows] == [
        4 * count for count in (0, numbers + 1, 2 * numbers + 1)
    ]
    assert all(row["seconds"] > 0 for row in rows)
    # A batch alone in its bank is compared with itself.
    assert rows[0]["loss_triplet"] == pytest.approx(rows[1]["loss_triplet"], rel=1e-6)


def test_retrieval_by_some_embeddings(monkeypatch):
    monkeypatch.setattr(parsing, "BLOCK", 2)
    rng = np.random.default_rng(0)
    query, gallery = (
        {
            "parts": rng.normal(size=(count, 5, 3)).astype(np.float32),
            "visibility": rng.random((count, 5)) > 0.3,
        }
        for count in (3, 4)
    )
    found = {}
    ranking = types.SimpleNamespace(
        update=lambda rows, keys: found.update(zip(rows.tolist(), keys, strict=True)),
        figures=lambda: {"metrics": {"rank1": 1.0}},
    )
    method = types.SimpleNamespace(
        options=types.SimpleNamespace(parts=("head", "body", "legs")),
        distance=lambda q, g: visible_euclidean(
            q["parts"], q["visibility"], g["parts"], g["visibility"]
        ),
    )
    for names, kept in (
        (("foreground", "parts"), [1, 2, 3, 4]),
        (("global",), [0]),
        (("body",), [3]),
    ):
        metrics = parsing.retrieval(method, (query, gallery), names, ranking)
        assert metrics == {"rank1": 1.0}
        wanted = visible_euclidean(
            query["parts"][:, kept],
            query["visibility"][:, kept],
            gallery["parts"][:, kept],
            gallery["visibility"][:, kept],
        )
        np.testing.assert_allclose([found[i] for i in range(3)], wanted, atol=1e-6)
