"""The benchmark of stage two's step runs, and says what it promises."""

import numpy as np

from benchmarks import verification
from reid_jax.layers.correl import CorreL


def test_a_few_steps(capsys, monkeypatch):
    small = CorreL((4, 2), levels=1, channels=4, blocks=((3, 2, 4),))
    monkeypatch.setattr(verification, "CORREL", small)
    (line,) = verification.main(["--steps=5", "--rates=0.01", "--reductions", "mean"])
    assert len(line["fifths"]) == 5
    # Before the first step nothing is learned.
    assert abs(line["fifths"][0] - np.log(2)) < 0.1
    assert 0 <= line["new_right"] <= 1
    assert "new_loss" in capsys.readouterr().out


def test_images_of_an_identity_share_its_map():
    levels, labels = verification.images([3, 4], np.random.default_rng(0))
    assert labels.tolist() == [0] * 4 + [1] * 4
    flat = np.concatenate([level.reshape(8, -1) for level in levels], axis=1)
    cosines = np.corrcoef(flat)
    # The map's share of the variance, and none between identities.
    share = 1 / (1 + verification.NOISE**2)
    assert abs(np.mean(cosines[:4, :4][~np.eye(4, dtype=bool)]) - share) < 0.1
    assert np.abs(cosines[:4, 4:]).max() < 0.2
