import jax
import numpy as np

from reid_jax.layers.heads import BNNeck, DropoutClassifier


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


def test_bnneck_may_return_cosines():
    features = np.random.default_rng(0).normal(3, 2, (16, 6)).astype(np.float32)
    head = BNNeck(4, cosine=True)
    variables = head.init(jax.random.key(0), features, train=False)
    outputs, _ = head.apply(variables, features, train=True, mutable=["batch_stats"])
    kernel = np.asarray(variables["params"]["classifier"]["kernel"], np.float64)
    after = np.asarray(outputs["after"], np.float64)
    norms = np.linalg.norm(after, axis=1)[:, None] * np.linalg.norm(kernel, axis=0)
    np.testing.assert_allclose(outputs["logits"], after @ kernel / norms, atol=1e-6)
    test = jax.jit(lambda x: head.apply(variables, x, train=False)["logits"])
    assert "HIGHEST" in test.lower(features).as_text()  # no digits are dropped


def test_bnneck_has_no_bias_and_a_small_classifier():
    features = np.zeros((2, 64), np.float32)
    params = BNNeck(500).init(jax.random.key(0), features, train=False)["params"]
    assert jax.tree.map(np.shape, params) == {
        "bn": {"scale": (64,)},
        "classifier": {"kernel": (64, 500)},
    }
    assert abs(float(params["classifier"]["kernel"].std()) - 0.001) < 2e-5


def test_dropout_stands_behind_a_relu_and_only_in_training():
    features = np.random.default_rng(0).normal(size=(8, 200)).astype(np.float32)
    plain, dropping = DropoutClassifier(3, 0.0), DropoutClassifier(3, 0.5)
    variables = plain.init(jax.random.key(0), features, train=False)
    kernel = np.asarray(variables["params"]["linear"]["kernel"])
    found = plain.apply(variables, features, train=True)
    np.testing.assert_allclose(found, features @ kernel, atol=1e-6)
    positive = np.maximum(features, 0)
    found = dropping.apply(variables, features, train=False)
    np.testing.assert_allclose(found, positive @ kernel, atol=1e-6)
    identity = {"params": {"linear": {"kernel": np.eye(200, dtype=np.float32)}}}
    kept = DropoutClassifier(200, 0.5).apply(
        identity, features, train=True, rngs={"dropout": jax.random.key(1)}
    )
    ratios = np.asarray(kept)[positive > 0] / positive[positive > 0]
    assert {*np.unique(ratios.round(3)).tolist()} == {0.0, 2.0}
    assert abs((ratios > 0).mean() - 0.5) < 0.1


def test_bnneck_with_a_bias():
    head = BNNeck(4, use_bias=True)
    features = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    variables = jax.tree.map(
        lambda leaf: leaf + 2, head.init(jax.random.key(0), features, train=False)
    )
    outputs = head.apply(variables, features, train=False)
    classifier = variables["params"]["classifier"]
    expected = outputs["after"] @ classifier["kernel"] + classifier["bias"]
    np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-5)
    assert (classifier["bias"] == 2).all()
