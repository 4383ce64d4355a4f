"""The contract between a paper and the tools that train, evaluate and export it.

Each paper's module in `reid_jax/models` defines a class named `Method` derived from
the one below. The loop, the evaluator and the exporter know nothing else about a
paper; they find it by its module name (`config.method`), so that a method may also
live outside this repository.

Shapes are written as B images, H x W pixels, D channels, K parts, Q queries,
G gallery images.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

Variables = Mapping[str, Any]
"""Flax collections: `params` and what else the method keeps (`batch_stats`, ...)."""

Batch = Mapping[str, jax.Array]
"""What the loader serves (see `data_pipelines/loader.py`).

image  uint8 [B, H, W, 3], RGB
label  int32 [B], contiguous training identity (training only)
person, camera, index  int32 [B]
parts  uint8 [B, H, W], part classes of the source, 0 background, 255 unlabelled
       (only where configured)
mask   bool [B], False for rows that pad the last evaluation batch
"""

Outcome = tuple[jax.Array, dict[str, jax.Array], Variables]
"""Of a training step: the loss (float32 scalar), scalar metrics by name, and the
collections other than `params` after the step."""

Embedding = dict[str, jax.Array]
"""Small per-image arrays with a leading batch axis, stored for every gallery image:
`vector` [B, D] of unit norm, or `parts` [B, K, D] with `visibility` [B, K], bool or 0
and 1 in the dtype that the method's own `distance` takes; more where distances need
it."""


@dataclasses.dataclass(frozen=True)
class Maps:
    """Heat maps to draw over images, one row of tiles per image.

    Attributes:
      values: float [B, K, h, w] in [0, 1]; NaN marks places the map does not cover,
        which are drawn black.
      titles: one caption for each of the K maps.
      scale: what 0 and 1 are, for the legend.
      about: what is drawn, such as its layer and head: a line under the title.
    """

    values: jax.Array
    titles: tuple[str, ...]
    scale: str = "0 to 1"
    about: str = ""


@dataclasses.dataclass(frozen=True)
class Segments:
    """Partitions to draw over images: which group each place belongs to.

    Attributes:
      values: int [B, K, h, w], group index in 0..n-1, or -1 for none; K partitions.
      titles: one caption for each of the K partitions.
      groups: names of the n groups for the legend; "part 1", ... where not given.
      about: what is drawn, such as its layer and head: a line under the title.
    """

    values: jax.Array
    titles: tuple[str, ...]
    groups: tuple[str, ...] = ()
    about: str = ""


@dataclasses.dataclass(frozen=True)
class Routes:
    """Ways through a grid of cells to draw beside images: L layers of S scales.

    Attributes:
      activity: float [B, L, S], weight of each cell; NaN where there is no cell.
      paths: float [B, L - 1, S, S], weight of the path from a layer's scale to the
        next layer's scale; NaN where there is no path.
      scales: one caption for each of the S scales.
      about: what is drawn: a line under the title.
    """

    activity: jax.Array
    paths: jax.Array
    scales: tuple[str, ...]
    about: str = ""


@dataclasses.dataclass(frozen=True)
class PairMaps:
    """Heat maps of two images that depend on both, for Q queries and K candidates.

    Attributes:
      query: float [Q, K, h, w] in [0, 1], over the query, given each candidate.
      candidate: float [Q, K, h, w], over each candidate, given the query.
      score: float [Q, K], what the pair was scored with, to be written under it.
    """

    query: jax.Array
    candidate: jax.Array
    score: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Correspondences:
    """Places of two images that belong together, drawn as lines between them.

    Attributes:
      query, candidate: float [Q, K, M, 2], row and column as fractions of the image's
        height and width, of M places each; strongest first.
      strength: float [Q, K, M] in [0, 1].
      score: float [Q, K], what the pair was scored with, to be written under it.
    """

    query: jax.Array
    candidate: jax.Array
    strength: jax.Array
    score: jax.Array | None = None


Picture = Maps | Segments | Routes
PairPicture = PairMaps | Correspondences


class Method:
    """What the tools need of a paper.

    A subclass takes plain arguments: `num_classes` (training identities),
    `image_size` (height, width) and the fields of `config.model`; it sets `module`
    and implements `objective`, `embed` and, where the default does not fit, the rest.
    A method is stateless: everything that changes lives in `variables`.

    What the arguments are and what comes back is said here; a paper's docstrings say
    only what is particular to the paper.
    """

    module: nn.Module

    embed_inputs: tuple[str, ...] = ()
    """Batch fields beside `image` that `embed` reads: any of `camera`, `parts`."""

    train_inputs: tuple[str, ...] = ()
    """Batch fields beside the ones always served that `objective` reads: `parts`."""

    part_kind: str = "parts"
    """Kind of part labels whose class numbers the method means, where it reads them."""

    stages: tuple[str, ...] = ("train",)
    """Training stages in order; `config.stages.<name>` has their numbers."""

    position_grid: tuple[int, int] | None = None
    """Rows and columns of the position embedding, if there is one: what pretrained
    embeddings are resized to."""

    row_axes: Mapping[str, int] = types.MappingProxyType({})
    """Collections beside `params` whose arrays have an axis of batch rows, and which
    axis, such as {"bank": 1}: it is sharded over the devices as the batch is."""

    training_only: tuple[str, ...] = ()
    """Further collections that evaluation and export do without, as they do without
    those of `row_axes`."""

    visibility_titles: tuple[str, ...] = ()
    """What pictures call the parts of an Embedding's `visibility`, in its order; ""
    for one that is always visible, which is not drawn."""

    squared_distances: bool = False
    """Whether `distance` gives squares already, that are not to be squared again."""

    pretrained_copies: Mapping[str, str] = types.MappingProxyType({})
    """Modules that start as copies of pretrained ones, by path in a collection, such
    as {"branch/layer4": "backbone/layer4"}."""

    def init(self, rng: jax.Array, batch: Batch) -> Variables:
        """Returns fresh variables. Only shapes and dtypes of `batch` matter."""
        raise NotImplementedError

    def frozen(self, stage: str) -> tuple[str, ...]:
        """Regular expressions of parameter paths (`a/b/kernel`) that do not learn.

        The optimizer leaves them alone; `objective` is responsible for running the
        frozen part with `train=False` and stopped gradients.
        """
        del stage
        return ()

    def objective(
        self,
        variables: Variables,
        batch: Batch,
        *,
        rng: jax.Array,
        epoch: jax.Array,
        stage: str,
    ) -> Outcome:
        """The training loss of one batch.

        Args:
          variables: all collections.
          batch: the whole (global) batch, P identities x K images, identity-major.
          rng: key for this step; draw from it at global shapes only.
          epoch: float scalar, epochs completed in this stage; may be traced.
          stage: one of `stages`; static.
        """
        raise NotImplementedError

    def embed(
        self,
        variables: Variables,
        images: jax.Array,
        camera: jax.Array | None = None,
        parts: jax.Array | None = None,
    ) -> Embedding:
        """Embeds uint8 RGB images [B, H, W, 3] with the network in test mode.

        Rows are independent: an image's embedding does not depend on its batch.
        """
        raise NotImplementedError

    def distance(self, query: Embedding, gallery: Embedding) -> jax.Array:
        """Distances [Q, G], float32; smaller is more alike. Pure, no variables."""
        raise NotImplementedError

    def pair_scorer(self, stage: str) -> PairScorer | None:
        """The second look at pairs of images that `stage` has learned, or None."""
        del stage
        return None

    def pictures(self, variables: Variables, batch: Batch) -> dict[str, Picture]:
        """Arrays behind the pictures particular to this paper, by file name."""
        del variables, batch
        return {}


class PairScorer:
    """Base of a method's re-scoring of query-gallery pairs; stateless like `Method`."""

    top_k: int | None = None
    """Candidates per query to score, or None for the whole gallery."""

    inputs: tuple[str, ...] = ()
    """Batch fields beside `image` that `pair_maps` reads: any of `camera`, `parts`."""

    def pair_maps(
        self,
        variables: Variables,
        images: jax.Array,
        camera: jax.Array | None = None,
        parts: jax.Array | None = None,
    ) -> Any:
        """What two images are compared by: a pytree with leading axis B."""
        raise NotImplementedError

    def score_pairs(
        self, variables: Variables, query_maps: Any, candidate_maps: Any
    ) -> jax.Array:
        """Scores [Q, K] of query maps [Q, ...] with candidates' maps [Q, K, ...]."""
        raise NotImplementedError

    def fuse(
        self, distances: jax.Array, candidates: jax.Array, scores: jax.Array
    ) -> jax.Array:
        """Ranking keys [Q, G], smaller first.

        Args:
          distances: [Q, G] from `Method.distance`.
          candidates: int32 [Q, K], gallery indices that were scored: the `top_k`
            nearest, nearest first; where it is None, all of them in gallery order.
          scores: [Q, K] from `score_pairs`.
        """
        raise NotImplementedError

    def pictures(
        self, variables: Variables, query_maps: Any, candidate_maps: Any
    ) -> dict[str, PairPicture]:
        """Arrays behind pictures of pairs, by file name; arguments as `score_pairs`."""
        del variables, query_maps, candidate_maps
        return {}


def parameter_count(variables: Variables) -> int:
    """Number of trainable scalars in `params`."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
