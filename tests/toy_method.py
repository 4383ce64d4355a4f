"""A method that uses all of the contract at once: two stages, a memory bank, part
labels, and a second look at pairs. Small enough to compile in a moment.

Stage `first` trains an embedding against a bank of earlier batches, whose rows lie over
the devices; stage `second` freezes it and trains a scorer of pairs.
"""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.layers import memory_bank
from reid_jax.models import method

TRACES: list[str] = []
"""A stage's name for every time its objective is traced."""


class Toy(nn.Module):
    num_classes: int
    width: int

    def setup(self):
        self.base = nn.Dense(self.width)
        self.classifier = nn.Dense(self.num_classes)
        self.pair = nn.Dense(1)

    def __call__(self, images):
        feature = self.embed(images)
        self.score(self.maps(images), self.maps(images)[:, None])
        return feature, self.classifier(feature)

    def embed(self, images):
        return nn.tanh(self.base(self.maps(images).reshape(images.shape[0], -1)))

    def maps(self, images):
        pooled = nn.avg_pool(images.astype(jnp.float32) / 255, (8, 8), (8, 8))
        return pooled - pooled.mean((1, 2), keepdims=True)

    def score(self, query, candidates):
        gap = jnp.abs(query[:, None] - candidates).mean((2, 3))
        return self.pair(gap)[..., 0]


class Method(method.Method):
    stages = ("first", "second")
    train_inputs = ("parts",)
    row_axes = types.MappingProxyType({"bank": 1})
    visibility_titles = ("upper", "", "lower")

    def __init__(
        self,
        num_classes,
        image_size,
        *,
        width,
        top_k,
        bank_batches=3,
        explode_at=-1.0,
        pair_inputs=("camera",),
    ):
        del image_size
        self.module = Toy(num_classes, width)
        self.bank_batches = bank_batches
        self.top_k = top_k
        self.explode_at = explode_at
        self.pair_inputs = tuple(pair_inputs)

    def init(self, rng, batch):
        bank = memory_bank.empty(
            batches=self.bank_batches,
            batch_size=batch["image"].shape[0],
            parts=1,
            width=self.module.width,
        )
        return {**self.module.init(rng, batch["image"][:1]), "bank": bank}

    def frozen(self, stage):
        return ("base/", "classifier/") if stage == "second" else ("pair/",)

    def objective(self, variables, batch, *, rng, epoch, stage):
        TRACES.append(stage)
        if stage == "second":
            return self._second(variables, batch)

        feature, logits = self.module.apply(
            {"params": variables["params"]}, batch["image"]
        )
        rows, bank = memory_bank.remember(
            variables["bank"], feature[:, None], batch["label"]
        )
        distance = jnp.square(feature[:, None] - rows.features[:, 0]).mean()
        labels = jax.nn.one_hot(batch["label"], logits.shape[-1])
        identity = -(labels * jax.nn.log_softmax(logits)).sum(-1).mean()
        noise = jax.random.normal(rng, (batch["image"].shape[0],)).mean()
        labelled = (batch["parts"] != 255).mean()
        loss = identity + 0.1 * distance * (1 + noise) + 0 * labelled
        loss += jnp.where(epoch == self.explode_at, jnp.nan, 0.0)
        return loss, {"distance": distance, "epoch": epoch}, {"bank": bank}

    def _second(self, variables, batch):
        maps = jax.lax.stop_gradient(
            self.module.apply(variables, batch["image"], method="maps")
        )
        score = self.module.apply(
            variables,
            maps,
            jnp.broadcast_to(maps, (len(maps), *maps.shape)),
            method="score",
        )
        same = batch["label"][:, None] == batch["label"][None]
        loss = jnp.mean(jnp.logaddexp(0, jnp.where(same, score, -score)))
        return loss, {}, {"bank": variables["bank"]}

    def embed(self, variables, images, camera=None, parts=None):
        del camera, parts
        feature = self.module.apply(variables, images, method="embed")
        # Three bands, of which a dark one counts as hidden.
        bands = images.reshape(images.shape[0], 4, -1)[:, :3].mean(-1) / 255
        return {"vector": feature, "visibility": bands > 0.5}

    def distance(self, query, gallery):
        return jnp.abs(query["vector"][:, None] - gallery["vector"][None]).sum(-1)

    def pair_scorer(self, stage):
        if stage == "first":
            return None
        return Scorer(self.top_k, self.pair_inputs, self.module)

    def pictures(self, variables, batch):
        del variables
        light = batch["image"].mean((2, 3)).reshape(-1, 4, 8).mean(-1) / 255
        activity = jnp.stack([light, 1 - light], -1)
        paths = activity[:, :-1, :, None] * activity[:, 1:, None]
        return {"routes": method.Routes(activity, paths, ("fine", "coarse"))}


class Scorer(method.PairScorer):
    def __init__(self, top_k, inputs, toy):
        self.top_k = top_k
        self.inputs = inputs
        self.toy = toy

    def pair_maps(self, variables, images, camera=None, parts=None):
        maps = self.toy.apply(variables, images, method="maps")
        if camera is not None:
            maps += 0.1 * (1 + camera[:, None, None, None])
        if parts is not None:
            maps *= 1 + (parts > 4).mean((1, 2), keepdims=True)[..., None]
        return {"map": maps}

    def score_pairs(self, variables, query_maps, candidate_maps):
        return self.toy.apply(
            variables, query_maps["map"], candidate_maps["map"], method="score"
        )

    def fuse(self, distances, candidates, scores):
        # Candidates first, by score; the rest keep their distances.
        rows = jnp.arange(distances.shape[0])[:, None]
        return distances.at[rows, candidates].set(scores - 1e3)

    def pictures(self, variables, query_maps, candidate_maps):
        del variables
        gap = jnp.abs(query_maps["map"][:, None] - candidate_maps["map"]).mean(-1)
        places = jnp.broadcast_to(jnp.array([[0.25, 0.5]]), (*gap.shape[:2], 1, 2))
        strength = 1 - jnp.clip(gap.mean((2, 3)), 0, 1)[..., None]
        return {
            "pair_maps": method.PairMaps(gap, 1 - gap),
            "correspondences": method.Correspondences(places, places, strength),
        }
