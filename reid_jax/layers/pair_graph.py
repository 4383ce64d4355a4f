"""The graph of corresponding places of two images, and conditional features from it.

Source: Yu et al., "Devil's in the Details: Aligning Visual Clues for Conditional
Embedding in Person Re-Identification", 2020 (CACE-Net), sections 3.3 and 3.4.1, with
the rivals of its Table 2. What the text leaves open is said in
`reid_jax/models/cacenet.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.layers import gradients
from reid_jax.layers import graph as graphs
from reid_jax.layers.parameters import FAN_OUT

Arrays = Mapping[str, jax.Array]
"""Weights by name, or what a pair needs of one of its images, see `PairGraph.nodes`."""


@dataclasses.dataclass(frozen=True)
class PairGraph:
    """The graph of a pair of images, and what is read from it: pure functions.

    Attributes:
      graph, align, start, centred, threshold, adjacency, update, pool: as of the
        method's `Options`.
    """

    graph: str
    align: str
    start: str
    centred: bool
    threshold: float
    adjacency: str
    update: str
    pool: str

    @classmethod
    def of(cls, options: Any) -> PairGraph:
        """The graph that the fields of these names describe."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(options, name) for name in names})

    def shapes(
        self, channels: int, width: int
    ) -> dict[str, tuple[Callable[..., jax.Array], tuple[int, ...]]]:
        """Weights by name: initialiser and shape."""
        start = nn.initializers.ones
        if self.start == "normal":
            start = nn.initializers.normal(1.0)
        embed, square = (channels, width), (channels, channels)
        weights: dict[str, Any] = {}
        if self.align == "correspondence" and self.adjacency == "embedded":
            weights["similar"] = (FAN_OUT, embed)
        elif self.align == "correspondence":
            if self.graph != "none":
                weights["intra"] = (start, (channels,))  # W of Eq. 2
            if self.graph != "individual":
                weights["inter"] = (start, (channels,))  # W' of Eq. 3
        if self.graph != "none" and self.update == "linear":
            weights["theta"] = (nn.initializers.lecun_normal(), square)
        elif self.graph != "none":
            weights["project"] = (FAN_OUT, embed)
            weights["expand"] = (nn.initializers.zeros, embed[::-1])
        return weights

    def nodes(
        self, weights: Arrays, features: jax.Array, parts: jax.Array | None
    ) -> dict[str, jax.Array]:
        """What pairs need of one image; computed once, not once per pair.

        Args:
          weights: see `shapes`.
          features: X, [h, w, D].
          parts: bool [P, N], the places of each body part; for "semantic" only.

        Returns:
          map [h, w, D], X; what `derived` makes of it; similar [N, d] and
          values [N, d], the authors' projections; parts [P, N]; own [N, N], A within
          the image. What is not needed is not there.
        """
        places = _flat(features)
        nodes = {"map": features, **self.derived(features)}
        if "similar" in weights:
            similar = _product(places, weights["similar"])
            length = graphs.inverse_norms(similar)[:, None]
            nodes["similar"] = (similar * length).astype(places.dtype)
        if "project" in weights:
            nodes["values"] = _product(places, weights["project"])
        if self.align == "semantic":
            nodes["parts"] = parts.astype(places.dtype)
        if self.graph != "none" and self.align in ("correspondence", "semantic"):
            nodes["own"] = self._within(weights, nodes)
        return nodes

    def derived(self, features: jax.Array) -> dict[str, jax.Array]:
        """What is quicker computed from maps than stored beside them.

        Args:
          features: X, [..., h, w, D].

        Returns:
          norms [..., N], 1 / |X|; where S compares centred features, those at unit
          length, centred [..., N, D].
        """
        places = features.reshape(*features.shape[:-3], -1, features.shape[-1])
        found = {"norms": graphs.inverse_norms(places)}
        if self.centred and self.align == "correspondence":
            centred = places.astype(jnp.float32) - mean(places)[..., None, :]
            length = graphs.inverse_norms(centred)[..., None]
            found["centred"] = (centred * length).astype(places.dtype)
        return found

    def stored(self, nodes: Arrays) -> dict[str, jax.Array]:
        """The nodes that `derived` does not give, of [..., h, w, D]."""
        derived = self.derived(nodes["map"])
        return {name: x for name, x in nodes.items() if name not in derived}

    def _within(self, weights: Arrays, u: Arrays) -> jax.Array:
        """A within an image, Eqs 2 and 4."""
        if self.align == "semantic":
            return graphs.shared(u["parts"], u["parts"])
        edges = self._attention(u, u, weights.get("intra"))
        if self.adjacency == "embedded":
            return edges * (1 - jnp.eye(len(edges)))
        return edges

    def _attention(self, u: Arrays, v: Arrays, diagonal: jax.Array | None) -> jax.Array:
        """ReLU of S less the threshold, [N, M]; `diagonal` is W or W'."""
        if self.adjacency == "embedded":
            importance = graphs.similarity(u["similar"], v["similar"])
        elif self.centred:
            importance = graphs.similarity(u["centred"], v["centred"], weights=diagonal)
        else:
            importance = _cosine(u, v, diagonal)
        return jax.nn.relu(importance - self.threshold)

    def between(self, weights: Arrays, u: Arrays, v: Arrays) -> jax.Array:
        """A between two images, Eqs 3 and 4, or its rivals of Table 2."""
        match self.align:
            case "part":
                return jnp.eye(u["norms"].size)
            case "full":
                return jnp.ones((u["norms"].size, v["norms"].size))
            case "similarity":
                return graphs.nearest(_cosine(u, v))
            case "semantic":
                return graphs.shared(u["parts"], v["parts"])
        return self._attention(u, v, weights.get("inter"))

    def edges(self, weights: Arrays, u: Arrays, v: Arrays) -> graphs.Edges:
        """The graph of a pair, Eq. 4."""
        shape = (u["norms"].size, v["norms"].size)
        if self.graph == "individual":
            cross = jnp.zeros(shape)
        else:
            cross = self.between(weights, u, v)
        if "own" in u:
            return graphs.Edges(u["own"], cross, v["own"])
        own = jnp.full(shape, float(self.align == "full"))
        return graphs.Edges(own, cross, own)

    def conditional_maps(
        self, weights: Arrays, u: Arrays, v: Arrays
    ) -> tuple[jax.Array, jax.Array]:
        """The conditional feature maps of u given v and of v given u, [N, D] each."""
        found = graphs.convolve(
            self.edges(weights, u, v), self._values(u), self._values(v), **self._form
        )
        return tuple(
            self._updated(weights, _flat(w["map"]), values)
            for w, values in zip((u, v), found, strict=True)
        )

    def pooled(
        self, weights: Arrays, u: Arrays, v: Arrays
    ) -> tuple[jax.Array, jax.Array]:
        """The pooled conditional maps: [D] each, or [2 D] with the maximum."""
        return tuple(
            self.projected(weights, pooled, u["map"].dtype)
            for pooled in self.gathered(weights, u, v)
        )

    def gathered(
        self, weights: Arrays, u: Arrays, v: Arrays
    ) -> tuple[jax.Array, jax.Array]:
        """`pooled` but for what `projected` does, for all pairs of a batch at once."""
        if self.pool == "avg_max":
            return tuple(map(mean_and_maximum, self.conditional_maps(weights, u, v)))
        means = graphs.convolve_mean(
            self.edges(weights, u, v), self._values(u), self._values(v), **self._form
        )
        if self._projects_means:
            return means
        return tuple(
            self._updated(weights, mean(_flat(w["map"])), values)
            for w, values in zip((u, v), means, strict=True)
        )

    def projected(self, weights: Arrays, pooled: jax.Array, dtype: Any) -> jax.Array:
        """Theta of Eqs 6 and 7, where it is applied to means of maps.

        Args:
          weights: see `shapes`.
          pooled: what `gathered` gives of any pairs, [..., D] or [..., 2 D].
          dtype: of the product's factors.

        Returns:
          float32, in the same shape.
        """
        if not self._projects_means:
            return pooled
        return _matmul(pooled, weights["theta"], jnp.dtype(dtype))

    def of_pairs(self, weights: Arrays) -> Arrays:
        """The weights that `gathered` and `alignment` use."""
        if not self._projects_means:
            return weights
        return {name: x for name, x in weights.items() if name != "theta"}

    @property
    def _projects_means(self) -> bool:
        return self.graph != "none" and self.update == "linear" and self.pool == "avg"

    def alignment(
        self, weights: Arrays, u: Arrays, v: Arrays
    ) -> tuple[jax.Array, jax.Array]:
        """1 - the mean similarity of joined places: Table 1's alignment, no graph."""
        gap = 1 - graphs.matched_mean(self.between(weights, u, v), _cosine(u, v))
        return gap, gap

    @property
    def _form(self) -> dict[str, Any]:
        sign = 1.0 if self.graph == "normal" else -1.0  # Eq. 6, Eq. 7
        return {"sign": sign, "detach": self.adjacency == "embedded"}

    def _values(self, u: Arrays) -> jax.Array:
        return u["values"] if self.update == "residual" else _flat(u["map"])

    def _updated(
        self, weights: Arrays, features: jax.Array, values: jax.Array
    ) -> jax.Array:
        """theta of Eqs 6 and 7, or the authors' shortcut around it."""
        if self.update == "linear":
            return _matmul(values, weights["theta"], features.dtype)
        return features + _matmul(values, weights["expand"], features.dtype)

    def strengths(self, weights: Arrays, u: Arrays, v: Arrays) -> jax.Array:
        """How strongly places of two images correspond, [N, M], for pictures.

        Edges that are all alike are told apart by the similarity of their ends.
        """
        edges = self.between(weights, u, v)
        if self.align == "correspondence":
            return edges
        return edges * jax.nn.relu(_cosine(u, v))


def _flat(features: jax.Array) -> jax.Array:
    return features.reshape(-1, features.shape[-1])


def mean(places: jax.Array) -> jax.Array:
    """Mean over places, float32 [..., D] of [..., N, D]."""
    return places.astype(jnp.float32).mean(-2)


def mean_and_maximum(places: jax.Array) -> jax.Array:
    """Mean and maximum over places, float32 [..., 2 D] of [..., N, D]."""
    places = places.astype(jnp.float32)
    # By index: the gradient of `max` looks for the value again, and divides by zero
    # where the compiler has rounded it differently there.
    where = jax.lax.stop_gradient(places).argmax(-2, keepdims=True)
    largest = jnp.take_along_axis(places, where, axis=-2).squeeze(-2)
    return jnp.concatenate([places.mean(-2), largest], axis=-1)


def _cosine(u: Arrays, v: Arrays, weights: jax.Array | None = None) -> jax.Array:
    return graphs.similarity(
        _flat(u["map"]),
        _flat(v["map"]),
        weights=weights,
        scale_u=u["norms"],
        scale_v=v["norms"],
    )


def _product(places: jax.Array, weights: jax.Array) -> jax.Array:
    return gradients.product(places, gradients.cast(weights, places.dtype))


def _matmul(values: jax.Array, weights: jax.Array, dtype: Any) -> jax.Array:
    values, weights = values.astype(dtype), gradients.cast(weights, dtype)
    return gradients.product(values, weights, dtype=jnp.float32)
