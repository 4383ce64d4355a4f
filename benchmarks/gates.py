"""Do SANet's gates see scale? A small task in which the best exit depends on it.

    python -m benchmarks.gates
    python -m benchmarks.gates --seeds=3 --only=text --only=normalised

Every image is a map of three textures over each other: one in detail, one of twice and
one of four times the size. Each is of one of three kinds, drawn apart, and an image's
class is the kind of *its* scale's texture; which scale that is, a signal in three other
channels names. What the other scales show is noise, as the paper's introduction has it.
A grid of cells, its gates one of `VARIANTS`, learns the classes with AdamW. Printed
are the shares of unseen images that it classifies with the most probable routes, with
the sum of all paths by their probabilities, and with random routes; and how many of the
log2(3) = 1.58 bits of the scale the most probable routes hold. Lines of JSON.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from benchmarks.routing import at_random, bits
from reid_jax import errors
from reid_jax.errors import UserError
from reid_jax.layers.norm import BatchNorm
from reid_jax.layers.routing import choice
from reid_jax.models.sanet import SCALES, Cell, Enhancement, Options

SEEDS = flags.DEFINE_integer("seeds", 1, "how often each variant is trained")
STEPS = flags.DEFINE_integer("steps", 300, "batches of 64 images")
ONLY = flags.DEFINE_multi_string("only", (), "names of variants; all by default")

SIZE = {"layers": 3, "enhancement_width": 8}
"""Of the grid."""

TEXTURES = np.array([[[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]])
"""Stripes that stand, stripes that lie, and a chessboard: 2 x 2 places of detail."""
SIDE, CHANNELS, BATCH = 8, 6, 64


@dataclasses.dataclass(frozen=True)
class Variant:
    """What is suspected.

    Attributes:
      fields: of `Options`.
      pooling: "max" over places, as in Eq. 1, or "mean".
      hidden: dynamic routing's gate: a 1x1 convolution to half the channels with batch
        normalisation and ReLU, pooled, and a linear layer.
      balance: weight of a loss that grows as the mean over the batch of a cell's exits
        becomes uneven.
      rate: learning rate of the gates relative to the rest.
    """

    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    pooling: str = "max"
    hidden: bool = False
    balance: float = 0.0
    rate: float = 1.0


NORMALISED = {"gate_norm": True}
VARIANTS = {
    "text": Variant(),
    "normalised": Variant(NORMALISED),
    "mean over places": Variant(pooling="mean"),
    "dynamic routing's gate": Variant(pooling="mean", hidden=True),
    "balance": Variant(balance=0.3),
    "temperature 5": Variant({"temperature": 5.0}),
    "a tenth of the rate": Variant(rate=0.1),
    "one-hot": Variant({"straight_through": True}),
    "normalised, mean over places": Variant(NORMALISED, pooling="mean"),
    "normalised, balance": Variant(NORMALISED, balance=0.3),
    "normalised, one-hot": Variant(NORMALISED | {"straight_through": True}),
}


ROUTES = ("most probable", "all, weighted", "random")


class Suspect(Cell):
    """A cell whose gate pools otherwise or is dynamic routing's, see `Variant`."""

    pooling: str = "max"
    hidden: bool = False

    def _pooled(self, maps: jax.Array) -> jax.Array:
        return maps.max((1, 2)) if self.pooling == "max" else maps.mean((1, 2))

    def _logits(
        self, features: jax.Array, activity: jax.Array, train: bool
    ) -> jax.Array:
        if not self.hidden:
            return super()._logits(features, activity, train)
        narrow = nn.Conv(
            features.shape[-1] // 2, (1, 1), use_bias=False, name="gate_narrow"
        )
        norm = BatchNorm(name="gate_norm")
        hidden = norm(narrow(features), train=train, weights=activity)
        gate = nn.Dense(self.exits, name="gate")
        return gate(self._pooled(jax.nn.relu(hidden)))


@dataclasses.dataclass(frozen=True)
class Images:
    """Maps [N, 8, 8, 6]; and [N], from 0 to 2, their scales and classes."""

    maps: np.ndarray
    scales: np.ndarray
    classes: np.ndarray


@functools.cache
def images(count: int, seed: int) -> Images:
    """Draws images of the task; the same for the same numbers."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(99)
    scales = rng.integers(0, len(SCALES), count)
    kinds = rng.integers(0, len(TEXTURES), (count, len(SCALES)))
    shown, *named = np.linalg.qr(fixed.normal(size=(CHANNELS, 4)))[0].T
    maps = 0.6 * rng.normal(size=(count, SIDE, SIDE, CHANNELS))
    maps += np.array(named)[scales, None, None]
    for scale in range(len(SCALES)):
        tiled = np.tile(TEXTURES, (1, SIDE, SIDE)).repeat(2**scale, 1)
        fitting = tiled.repeat(2**scale, 2)[:, :SIDE, :SIDE, None]
        signs = rng.choice([-2, 2], (count, 1, 1, 1))
        maps += signs * fitting[kinds[:, scale]] * shown
    classes = kinds[np.arange(count), scales]
    return Images(maps.astype(np.float32), scales, classes)


class Classifier(nn.Module):
    """What the cells add to a map, its mean over places, and a linear layer."""

    enhancement: Enhancement

    @nn.compact
    def __call__(
        self, maps: jax.Array, *, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits [B, 3] of maps [B, h, w, C], and the routes."""
        enhanced, routes = self.enhancement(maps, train=train)
        return nn.Dense(len(TEXTURES))((enhanced - maps).mean((1, 2))), routes


def classifier(variant: Variant, decide: Callable[..., Any] = choice) -> Classifier:
    """The network of a variant, with its gates' decision at test."""
    cell = functools.partial(
        Suspect, pooling=variant.pooling, hidden=variant.hidden, decide=decide
    )
    options = Options(**SIZE | variant.fields)
    return Classifier(Enhancement(options, skip=False, cell=cell))


def trained(variant: Variant, *, seed: int, steps: int) -> Any:
    """The variables of a variant after so many steps."""
    network, data, key = classifier(variant), images(2000, 0), jax.random.key(seed)
    maps, classes = jnp.asarray(data.maps), jnp.asarray(data.classes)
    variables = jax.jit(functools.partial(network.init, train=False))(key, maps[:1])
    optimizer = optax.adamw(1e-2)

    def loss(params: Any, rest: Any, rows: jax.Array, key: jax.Array) -> Any:
        (logits, routes), rest = network.apply(
            {"params": params, **rest},
            maps[rows],
            train=True,
            mutable=["batch_stats"],
            rngs={"gumbel": key},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, classes[rows])
        return losses.mean() + variant.balance * unevenness(routes["paths"]), rest

    @jax.jit
    def step(params: Any, rest: Any, moments: Any, index: jax.Array) -> Any:
        drawn, noise = jax.random.split(jax.random.fold_in(key, index))
        rows = jax.random.randint(drawn, (BATCH,), 0, len(maps))
        gradient, rest = jax.grad(loss, has_aux=True)(params, rest, rows, noise)
        updates, moments = optimizer.update(gradient, moments, params)
        updates = jax.tree_util.tree_map_with_path(slowed, updates)
        return optax.apply_updates(params, updates), rest, moments

    def slowed(path: Any, update: jax.Array) -> jax.Array:
        gates = any(key.key.startswith("gate") for key in path)
        return update * variant.rate if gates else update

    params, rest = variables["params"], {"batch_stats": variables["batch_stats"]}
    moments = optimizer.init(params)
    for index in range(steps):
        params, rest, moments = step(params, rest, moments, index)
    return {"params": params, **rest}


def unevenness(paths: jax.Array) -> jax.Array:
    """Sum over cells of the negative entropy of their exits' mean [B, L - 1, S, S]."""
    mean = jnp.nan_to_num(paths).mean(0)
    shares = mean / jnp.maximum(mean.sum(-1, keepdims=True), 1e-6)
    return (shares * jnp.log(shares + 1e-6)).sum()


def tested(variant: Variant, variables: Any, routes: Sequence[str]) -> dict[str, float]:
    """Figures over 900 unseen images by some of `ROUTES`."""
    data, temperature = images(900, 1), Options(**variant.fields).temperature
    decisions = {
        "most probable": choice,
        "all, weighted": lambda logits: jax.nn.softmax(logits / temperature),
        "random": at_random(0),
    }
    figures = {}
    for name in routes:
        decide = decisions[name]
        network = classifier(variant, decide)
        run = jax.jit(functools.partial(network.apply, train=False))
        logits, taken = run(variables, data.maps)
        right = np.asarray(logits).argmax(1) == data.classes
        figures[name] = float(right.mean())
        if decide is choice:
            active = np.nan_to_num(taken["activity"])
            figures["bits"] = bits(active, data.scales)
    return figures


def lines() -> Iterator[dict[str, Any]]:
    """One for each variant and seed."""
    unknown = sorted(set(ONLY.value) - set(VARIANTS))
    if unknown:
        raise UserError(f"no variant {unknown[0]!r}; there are {', '.join(VARIANTS)}")
    for name in ONLY.value or VARIANTS:
        for seed in range(SEEDS.value):
            variables = trained(VARIANTS[name], seed=seed, steps=STEPS.value)
            figures = tested(VARIANTS[name], variables, ROUTES)
            rounded = {key: round(value, 3) for key, value in figures.items()}
            yield {"gates": name, "seed": seed, "steps": STEPS.value, **rounded}


def main(argv: Sequence[str]) -> None:
    """Prints the lines."""
    del argv
    for line in lines():
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    with errors.answered():
        app.run(main)
