"""Makes the golden losses with pytorch-metric-learning; the tests need it not.

In a virtual environment of its own:

    pip install torch==2.13.0 numpy pytorch-metric-learning==2.9.0
    python tests/goldens/make_margin_goldens.py
"""

import pathlib

import numpy as np
import torch
from pytorch_metric_learning import losses

HERE = pathlib.Path(__file__).parent
LABELS = np.repeat(np.arange(4), 3)
MARGIN, SCALE = 0.35, 16.0


def inputs():
    """Features [12, 5] and the classes' weights [5, 4], float64.

    The first feature is nearly opposite to its class, where ArcFace's angle would
    exceed pi.
    """
    rng = np.random.default_rng(7)
    features, weights = rng.normal(size=(12, 5)), rng.normal(size=(5, 4))
    features[0] = 0.05 * features[0] - weights[:, 0]
    return features, weights


def with_gradients(loss, *arrays):
    """The loss of the arrays, and its gradient with respect to each."""
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    value = loss(*tensors)
    return (
        value.detach().numpy(),
        *(x.numpy() for x in torch.autograd.grad(value, tensors)),
    )


def head(made):
    """A loss of features and weights from one that owns its weights."""

    def loss(features, weights):
        del made.W
        made.W = weights
        made.cast_types = lambda *_: None
        return made(features, torch.tensor(LABELS))

    return loss


def circle_of_classes(features, weights):
    """The pair loss, with the classes' weights as the second images."""
    made = losses.CircleLoss(m=MARGIN, gamma=SCALE)
    classes = torch.arange(weights.shape[1])
    return made(features, torch.tensor(LABELS), ref_emb=weights.T, ref_labels=classes)


def main():
    """Writes `margins.npz`."""
    sizes = {"num_classes": 4, "embedding_size": 5, "scale": SCALE}
    degrees = np.degrees(MARGIN)
    made = {
        "arcface": head(losses.ArcFaceLoss(margin=degrees, **sizes)),
        "cosface": head(losses.CosFaceLoss(margin=MARGIN, **sizes)),
        "circle": circle_of_classes,
    }
    features, weights = inputs()
    found = {"features": features, "weights": weights, "labels": LABELS}
    found |= {"margin": MARGIN, "scale": SCALE}
    for name, loss in made.items():
        parts = with_gradients(loss, features, weights)
        found |= zip((name, f"{name}/features", f"{name}/weights"), parts, strict=True)
    pairs = losses.CircleLoss(m=MARGIN, gamma=SCALE)
    value, gradient = with_gradients(lambda x: pairs(x, torch.tensor(LABELS)), features)
    found |= {"pairs": value, "pairs/features": gradient}
    np.savez_compressed(HERE / "margins.npz", **found)


if __name__ == "__main__":
    main()
