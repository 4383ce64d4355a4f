"""Which steps CpaCol's second stage learns with, on random maps.

    python -m benchmarks.verification

An identity is a random map and its images are that map with noise, so that only places
that belong together tell who is shown. CorreL learns to verify 200 identities from
scratch, in batches of 16 x 4, with the SGD of `configs/cpacol.py`; once for each
learning rate and reduction of Eq. 10 over a batch's 128 pairs. Printed are the mean
cross-entropy of a pair in each fifth of the steps (0.693 is that of guessing), and that
and the share of right answers for 32 identities that it has not seen.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from reid_jax.layers.correl import CorreL
from reid_jax.losses.verification import random_partners, verification_loss
from reid_jax.runtime.optimizer import OptimizerSpec, make_optimizer, schedule

CORREL = CorreL(
    (8, 4), levels=2, channels=16, blocks=((3, 2, 8), (3, 2, 16), (3, 1, 16))
)
CHANNELS, NOISE = 12, 1.5
SEEN, NEW = range(200), range(200, 232)
IDENTITIES, IMAGES = 16, 4

Batch = tuple[list[np.ndarray], np.ndarray]
"""Maps float32 [B, H, W, D] of each level, and labels int [B]."""


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Trains once for each pair of rate and reduction; prints a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 1e-2])
    parser.add_argument("--reductions", nargs="+", default=["mean", "sum"])
    options = parser.parse_args(arguments)
    lines = []
    for reduction in options.reductions:
        for rate in options.rates:
            found = learn(options.steps, rate, reduction)
            lines.append({"rate": rate, "reduction": reduction, **found})
            print(lines[-1], flush=True)
    return lines


def learn(steps: int, rate: float, reduction: str) -> dict[str, Any]:
    """The loss on the way, and what the network then makes of new identities."""
    spec = OptimizerSpec(
        "sgd",
        rate,
        weight_decay=1e-4,
        warmup_epochs=steps / 24,
        warmup_from=rate / 100,
        final_factor=0.002,
    )
    optimizer = make_optimizer(spec, schedule(spec, epochs=steps, steps_per_epoch=1))
    levels, _ = images(range(2), np.random.default_rng(0))
    init = jax.jit(partial(CORREL.init, method=_whole))
    variables = init(jax.random.key(0), levels)
    params, statistics = variables["params"], variables["batch_stats"]
    state = optimizer.init(params)

    @jax.jit
    def step(
        params: Any, statistics: Any, state: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, ...]:
        loss = partial(_loss, statistics=statistics, batch=batch, key=key)
        run = jax.grad(partial(loss, reduction=reduction), has_aux=True)
        gradients, (statistics, entropy, _) = run(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), statistics, state, entropy

    losses = []
    for number, batch in enumerate(batches(tqdm(range(steps), leave=False))):
        key = jax.random.key(number)
        params, statistics, state, entropy = step(params, statistics, state, batch, key)
        losses.append(float(entropy))
    test = images(NEW, np.random.default_rng(1))
    judge = jax.jit(partial(_loss, reduction="mean", train=False))
    _, (_, entropy, right) = judge(params, statistics, test, jax.random.key(steps))
    return {
        "fifths": [round(float(np.mean(x)), 3) for x in np.array_split(losses, 5)],
        "new_loss": round(float(entropy), 3),
        "new_right": round(float(right), 3),
    }


def _whole(correl: CorreL, levels: Sequence[jax.Array]) -> jax.Array:
    maps = correl.embed(levels, train=False)
    return correl(maps, maps)


def _loss(
    params: Any,
    statistics: Any,
    batch: Batch,
    key: jax.Array,
    *,
    reduction: str,
    train: bool = True,
) -> tuple[jax.Array, tuple[Any, jax.Array, jax.Array]]:
    """The loss; new statistics, the mean cross-entropy, and the share that is right."""
    levels, labels = batch
    maps, new = CORREL.apply(
        {"params": params, "batch_stats": statistics},
        levels,
        train=train,
        mutable=["batch_stats"],
        method="embed",
    )
    partners = jnp.stack([maps[rows] for rows in random_partners(labels, key)], axis=1)
    logits = CORREL.apply({"params": params}, maps[:, None], partners)
    same = jnp.broadcast_to(jnp.array([True, False]), logits.shape)
    loss = verification_loss(logits, same, reduction=reduction)
    figures = verification_loss(logits, same), jnp.mean((logits > 0) == same)
    return loss, (new["batch_stats"], *figures)


def images(identities: Sequence[int], rng: np.random.Generator) -> Batch:
    """Four noisy images of each identity."""
    shape = (CORREL.levels, *CORREL.grid, CHANNELS)
    own = [np.random.default_rng([7, i]).normal(size=shape) for i in identities]
    maps = np.repeat(np.stack(own), IMAGES, axis=0)
    maps = maps + NOISE * rng.normal(size=maps.shape)
    labels = np.repeat(np.arange(len(own)), IMAGES)
    return [*np.moveaxis(maps.astype(np.float32), 1, 0)], labels


def batches(steps: Sequence[int]) -> Iterator[Batch]:
    """A batch of the seen identities for each step."""
    rng = np.random.default_rng(0)
    for _ in steps:
        yield images(rng.choice(SEEN, IDENTITIES, replace=False), rng)


if __name__ == "__main__":
    main()
