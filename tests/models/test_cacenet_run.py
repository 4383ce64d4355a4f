"""CACE-Net through the verbs: trained with part labels, evaluated on pairs."""

import pytest

from reid_jax import train


def test_a_run_reranks_and_says_what_it_was_before(cacenet_config, tmp_path):
    (entry,) = train.train_and_evaluate(cacenet_config, str(tmp_path))
    before, after = entry["metrics_before_pairs"], entry["metrics"]
    assert before.keys() == after.keys()
    names = {path.stem for path in (tmp_path / "pictures").rglob("*.png")}
    assert names >= {"ranking", "conditional", "correspondences"}
    # Rank 5 looks beyond the three candidates, whose order alone has changed.
    assert after["rank5"] == pytest.approx(before["rank5"])
