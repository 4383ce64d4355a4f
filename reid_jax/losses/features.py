"""The losses of a network with several features, each with a BNNeck, as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax

from reid_jax.errors import check_choices
from reid_jax.losses.angular import KINDS, margin_logits
from reid_jax.losses.center import center_loss, moved_centers
from reid_jax.losses.circle import circle_loss
from reid_jax.losses.identity import accuracy, cross_entropy
from reid_jax.losses.triplet import batch_hard_triplet


@dataclasses.dataclass(frozen=True)
class FeatureLosses:
    """The identity loss after the BNNeck, and losses of pairs before it.

    Of several features the losses are averaged; where the first is a global one and
    the others are its parts, `part_weights` weigh its losses and the parts' mean.
    """

    # Share of the identity loss's target that is spread over all identities.
    label_smoothing: float = 0.1
    # Of the identity loss: "linear"; or "arcface", "cosface" or "circle", of cosines,
    # with a margin and a scale, see `losses.angular.margin_logits`. The defaults are
    # TransReID's of the first two; its circle has 0.25 and 256.
    classifier: str = "linear"
    classifier_margin: float = 0.3
    classifier_scale: float = 30.0
    # The batch-hard triplet loss, whose margin None is the soft margin. A weight of 0
    # leaves a loss away.
    triplet_weight: float = 1.0
    margin: float | None = 0.3
    # The circle loss on pairs; the paper's values for re-ID.
    circle_weight: float = 0.0
    circle_margin: float = 0.25
    circle_scale: float = 128.0
    # The centre loss (BoT: 0.0005), and the rate at which the centres learn by SGD of
    # their own. With micro-batches they take a step after each.
    center_weight: float = 0.0
    center_rate: float = 0.5
    # TransReID's code has 0.5 and 0.5, Eq. 4 of its paper 1 and 1.
    part_weights: tuple[float, float] = (1.0, 1.0)
    # Triplets and pairs within this many groups of rows, as on that many GPUs.
    mining_groups: int = 1

    def __post_init__(self) -> None:
        check_choices(classifier=(self.classifier, ("linear", *KINDS)))

    @property
    def cosine(self) -> bool:
        """Whether the head's logits are to be cosines, see `BNNeck`."""
        return self.classifier != "linear"

    def __call__(
        self,
        outputs: Mapping[str, jax.Array],
        labels: jax.Array,
        centers: jax.Array | None,
        *,
        with_parts: bool,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The weighted sum of the losses, and each of them with the accuracy by name.

        Args:
          outputs: before [B, T, D] and logits [B, T, C], see `token_heads`.
          labels: int [B] in 0..C-1.
          centers: [C, T, D], read where `center_weight` is not 0.
          with_parts: whether all features but the first are parts.
        """
        features, groups = outputs["before"], self.mining_groups
        triplet = partial(batch_hard_triplet, margin=self.margin, groups=groups)
        circle = partial(
            circle_loss,
            margin=self.circle_margin,
            scale=self.circle_scale,
            groups=groups,
        )
        terms = {
            "id": (1.0, self._identity, outputs["logits"]),
            "triplet": (self.triplet_weight, triplet, features),
            "circle": (self.circle_weight, circle, features),
            "center": (self.center_weight, _center, (features, centers)),
        }
        total, metrics = 0.0, {}
        for name, (weight, loss, values) in terms.items():
            if weight:
                losses = jax.vmap(loss, in_axes=(1, None))(values, labels)
                metrics[f"loss_{name}"] = value = self._joined(losses, with_parts)
                total += weight * value
        metrics["accuracy"] = accuracy(outputs["logits"][:, 0], labels)
        return total, metrics

    def moved(
        self, outputs: Mapping[str, jax.Array], labels: jax.Array, centers: jax.Array
    ) -> jax.Array:
        """The centres after a batch; arguments as those of the loss."""
        move = jax.vmap(
            partial(moved_centers, rate=self.center_rate), (1, 1, None), out_axes=1
        )
        return move(outputs["before"], centers, labels)

    def _identity(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        if self.cosine:
            logits = margin_logits(
                logits,
                labels,
                kind=self.classifier,
                margin=self.classifier_margin,
                scale=self.classifier_scale,
            )
        return cross_entropy(logits, labels, smoothing=self.label_smoothing)

    def _joined(self, losses: jax.Array, with_parts: bool) -> jax.Array:
        if not with_parts:
            return losses.mean()
        whole, parts = self.part_weights
        return whole * losses[0] + parts * losses[1:].mean()


def _center(both: Any, labels: jax.Array) -> jax.Array:
    return center_loss(*both, labels)
