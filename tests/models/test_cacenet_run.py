"""CACE-Net through the verbs: trained with part labels, evaluated on pairs."""

import jax
import pytest

from reid_jax.runtime import sharding
from reid_jax.training import train


def test_a_run_reranks_and_says_what_it_was_before(
    cacenet_config, tmp_path, monkeypatch
):
    # One device compiles faster than eight; those are in test_cacenet.py.
    one = sharding.make_mesh(jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", lambda: one)
    (entry,) = train.train_and_evaluate(cacenet_config, str(tmp_path))
    before, after = entry["metrics_before_pairs"], entry["metrics"]
    assert before.keys() == after.keys()
    names = {path.stem for path in (tmp_path / "pictures").rglob("*.png")}
    assert names >= {"ranking", "conditional", "correspondences"}
    # Rank 5 looks beyond the three candidates, whose order alone has changed.
    assert after["rank5"] == pytest.approx(before["rank5"])
