import jax
import numpy as np

from reid_jax.layers.heads import BNNeck


def test_bnneck_normalises_between_feature_and_logits():
    features = np.random.default_rng(0).normal(3, 2, (16, 6)).astype(np.float32)
    head = BNNeck(4)
    variables = head.init(jax.random.key(0), features, train=False)
    outputs, _ = head.apply(variables, features, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(outputs["before"], features)
    after = (features - features.mean(0)) / np.sqrt(features.var(0) + 1e-5)
    np.testing.assert_allclose(outputs["after"], after, atol=1e-5)
    kernel = variables["params"]["classifier"]["kernel"]
    np.testing.assert_allclose(outputs["logits"], after @ kernel, atol=1e-5)


def test_bnneck_has_no_bias_and_a_small_classifier():
    features = np.zeros((2, 64), np.float32)
    params = BNNeck(500).init(jax.random.key(0), features, train=False)["params"]
    assert jax.tree.map(np.shape, params) == {
        "bn": {"scale": (64,)},
        "classifier": {"kernel": (64, 500)},
    }
    assert abs(float(params["classifier"]["kernel"].std()) - 0.001) < 2e-5
