"""What joins places: CACE-Net's alignments on people who are dressed alike.

    python -m benchmarks.look_alikes --workdir=runs/look-alikes --seeds=5

The pictures are of rendered people in groups of five whose garments are of one kind,
pattern and colour (see `look_alikes`): they differ in hair, shoes, bag, prints and
build. The test has other people than the training, each of them a query in turn.

With every seed a small ResNet learns individual features. It is then frozen, and each
alignment learns conditional features from its maps, in the same batches. All of them
re-rank the same lists ("none"), so that mAP differs by the alignment alone, by both
distances of conditional features. Prints a line of JSON for each; started again, it
goes on with what is missing.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import cacenet
from data_pipelines.synthetic import identity, render, seeds
from data_pipelines.synthetic.plan import Shot
from reid_jax import errors, experiment
from reid_jax.errors import UserError
from reid_jax.layers.pair_graph import PairGraph
from reid_jax.models.cacenet import Method
from reid_jax.retrieval.distances import euclidean
from reid_jax.retrieval.labels import Labels
from reid_jax.retrieval.ranking import Ranker
from reid_jax.retrieval.rescoring import candidates

VARIANTS: dict[str, dict[str, Any]] = {
    "part": {"align": "part"},
    "similarity": {"align": "similarity"},
    "full": {"align": "full"},
    "ones": {"start": "ones"},
    "normal": {"start": "normal"},
    "centred": {"centred": True},
    "threshold": {"threshold": 0.3},
}
"""Fields of `config.model` by name; from "ones" on, correspondence attention."""

SETTINGS = ("people", "groups", "test_groups", "first_steps", "steps", "top_k")
"""Options that change what every line says."""

METRICS = ("euclidean", "cosine")
"""Of conditional features, by which the nearest are sorted anew."""

ALIKE, CAMERAS, SHOTS = 5, 4, 2
"""People of a group; cameras, and pictures of each person from each of them."""

IDENTITIES, IMAGES, RATE, WARMUP = 8, 4, 2e-3, 20
"""Of a batch; of AdamW, with steps of warm-up before its cosine."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Images uint8 [N, H, W, 3] of persons and cameras, int [N]."""

    image: np.ndarray
    person: np.ndarray
    camera: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """Identities from 0."""
        return np.unique(self.person, return_inverse=True)[1].astype(np.int32)


@cache
def look_alikes(people: int) -> list[list[int]]:
    """Groups of `ALIKE` of so many people, by number, in a random order."""

    def looks(cloth: Any) -> tuple[Any, ...]:
        return cloth.pattern, *np.round(4 * cloth.base).astype(int).tolist()

    groups = collections.defaultdict(list)
    for number in range(1, people + 1):
        rng = seeds.generator("person", "market", number)
        who = identity.person(rng)
        key = who.upper, who.lower, looks(who.torso_cloth), looks(who.lower_cloth)
        groups[key].append(number)
    found = [group[:ALIKE] for group in groups.values() if len(group) >= ALIKE]
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def pictures(groups: Sequence[Sequence[int]], split: str) -> Pictures:
    """Every person from every camera, `SHOTS` times."""
    seen = [
        (person, camera)
        for group in groups
        for person in group
        for camera in np.arange(CAMERAS).repeat(SHOTS).tolist()
    ]
    shots = [
        Shot("holistic", "market", split, index, person, camera)
        for index, (person, camera) in enumerate(seen)
    ]
    images = np.stack([render.render(shot)[0] for shot in shots])
    return Pictures(images, *np.array(seen).T)


def batches(labels: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Rows of endless batches: identities drawn, and images of each."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
    while True:
        chosen = rng.choice(len(members), IDENTITIES, replace=False)
        drawn = [rng.choice(members[who], IMAGES, replace=False) for who in chosen]
        yield np.concatenate(drawn)


def build(fields: dict[str, Any], train: Pictures) -> Method:
    """The demo's network with some fields."""
    config = cacenet.get_config("demo")
    config.model.update(fields)
    return experiment.build_method(config, num_classes=int(train.labels.max()) + 1)


class Learner:
    """AdamW on an objective (params, rest, *batch) -> (loss, new rest)."""

    def __init__(self, objective: Callable[..., tuple[jax.Array, Any]], steps: int):
        warmup = min(WARMUP, steps // 2)
        rate = optax.warmup_cosine_decay_schedule(0, RATE, warmup, steps)
        self._optimizer, self._steps = optax.adamw(rate, weight_decay=0.05), steps

        @jax.jit
        def step(params: Any, rest: Any, state: Any, *batch: Any) -> Any:
            found, rest = jax.grad(objective, has_aux=True)(params, rest, *batch)
            updates, state = self._optimizer.update(found, state, params)
            return optax.apply_updates(params, updates), rest, state

        self._step = step

    def __call__(self, params: Any, rest: Any, batches: Iterator[Any]) -> Any:
        """What `params` and `rest` become."""
        state = self._optimizer.init(params)
        for _, batch in zip(range(self._steps), batches, strict=False):
            params, rest, state = self._step(params, rest, state, *batch)
        return params, rest


@dataclasses.dataclass(frozen=True)
class Base:
    """What a seed's frozen network makes of both splits: maps, and the test's list."""

    variables: Any
    train: np.ndarray
    test: np.ndarray
    distances: np.ndarray


class Individual:
    """Learns individual features (3.2)."""

    def __init__(self, train: Pictures, test: Pictures, steps: int):
        self._train, self._test = train, test
        self._method = method = build({"graph": "none", "align": "none"}, train)
        self._init = jax.jit(method.init)

        def objective(params: Any, rest: Any, image: Any, label: Any) -> Any:
            loss, _, rest = method.objective(
                {"params": params, **rest},
                {"image": image, "label": label},
                rng=jax.random.key(0),
                epoch=jnp.zeros(()),
                stage="train",
            )
            return loss, rest

        def look(variables: Any, images: jax.Array) -> Any:
            inputs = method.standardise(images)
            maps = method.module.apply(variables, inputs, train=False, method="maps")
            return maps, method.embed(variables, images)["vector"]

        self._learn, self._look = Learner(objective, steps), jax.jit(look)

    def __call__(self, seed: int) -> Base:
        """A network from scratch, in batches of its own."""
        train, flips = self._train, np.random.default_rng(seed)
        example = {"image": train.image[:1]}
        variables = self._init(jax.random.key(seed), example)
        params, rest = self._learn(
            variables["params"],
            {"batch_stats": variables["batch_stats"]},
            (
                (train.image[rows][:, :, :: flips.choice([-1, 1])], train.labels[rows])
                for rows in batches(train.labels, seed)
            ),
        )
        variables = {"params": params, **rest}
        maps, _ = self._both(variables, train.image)
        test_maps, vectors = self._both(variables, self._test.image)
        return Base(variables, maps, test_maps, np.array(euclidean(vectors, vectors)))

    def _both(self, variables: Any, images: np.ndarray) -> list[np.ndarray]:
        blocks = np.split(images, len(images) // (ALIKE * CAMERAS * SHOTS))
        found = [self._look(variables, block) for block in blocks]
        return [np.concatenate(arrays) for arrays in zip(*found, strict=True)]


class Conditional:
    """Learns an alignment and conditional features (3.3, 3.4) from frozen maps."""

    def __init__(self, fields: dict[str, Any], train: Pictures, steps: int):
        self._method = method = build(fields, train)
        self._train = train
        self._init = jax.jit(method.init)

        def forward(network: Any, maps: jax.Array) -> Any:
            return network.of_pairs(network.nodes(maps, None), train=True)

        def objective(params: Any, rest: Any, maps: Any, labels: Any) -> Any:
            outputs, new = method.module.apply(
                {"params": params, "batch_stats": rest},
                maps,
                method=forward,
                mutable=["batch_stats"],
            )
            losses = method.pair_losses(outputs, labels)
            return sum(losses.values()), {**rest, **new["batch_stats"]}

        def distance(metric: str) -> Any:
            options = dataclasses.replace(method.options, pair_metric=metric)
            network = method.module.clone(options=options)
            return jax.jit(partial(network.apply, method="pair_distance"))

        self._learn = Learner(objective, steps)
        self._nodes = jax.jit(partial(method.module.apply, method="nodes"))
        self._distances = {metric: distance(metric) for metric in METRICS}
        self._select = jax.jit(partial(selection, method.module.pairs))

    def __call__(self, base: Base, seed: int) -> Any:
        """The variables of the whole network."""
        train = self._train
        fresh = self._init(jax.random.key(seed), {"image": train.image[:1]})
        known = base.variables["params"]
        params = {k: x for k, x in fresh["params"].items() if k not in known}
        rest = {**fresh["batch_stats"], **base.variables["batch_stats"]}
        params, rest = self._learn(
            params,
            rest,
            (
                (base.train[rows], train.labels[rows])
                for rows in batches(train.labels, seed + 1000)
            ),
        )
        return {"params": {**known, **params}, "batch_stats": rest}

    def keys(
        self, variables: Any, base: Base, *, top_k: int, metric: str
    ) -> np.ndarray:
        """The test's list after its nearest `top_k` were compared in pairs."""
        nodes = self._nodes(variables, base.test, None)
        near = candidates(base.distances, top_k)
        scores = [
            self._distances[metric](
                variables,
                jax.tree.map(lambda x, r=row: x[r : r + 1], nodes),
                jax.tree.map(lambda x, r=row: x[near[r : r + 1]], nodes),
            )
            for row in range(len(near))
        ]
        scorer = self._method.pair_scorer("train")
        distances = jnp.asarray(base.distances)
        return np.asarray(scorer.fuse(distances, near, jnp.concatenate(scores)))

    def selection(self, variables: Any, base: Base) -> dict[str, float]:
        """What the graph keeps, and how much of a vector is the pair's."""
        some = base.test[:: ALIKE * CAMERAS * SHOTS // 2]
        nodes = self._nodes(variables, some, None)
        found = self._select(variables["params"], nodes)
        return {name: round(float(value), 4) for name, value in found.items()}


def scored(keys: np.ndarray, test: Pictures) -> dict[str, float]:
    """Percent, of every image among all others."""
    everybody = Labels(test.person, test.camera)
    ranker = Ranker(everybody, everybody, camera_filter=True)
    ranker.update(np.arange(len(keys)), keys)
    result = ranker.result()
    return {"mAP": 100 * result.mAP, "rank-1": 100 * float(result.cmc[0])}


def selection(pairs: PairGraph, weights: Any, nodes: Any) -> dict[str, jax.Array]:
    """Means over pairs of different images, of nodes [B, ...]."""
    full = dataclasses.replace(pairs, align="full")

    def look(u: Any, v: Any) -> Any:
        mine, _ = pairs.pooled(weights, u, v)
        plain = ({k: x for k, x in w.items() if k != "own"} for w in (u, v))
        other, _ = full.pooled(weights, *plain)
        norms = jnp.linalg.norm(pairs.conditional_maps(weights, u, v)[0], axis=-1)
        zero = (pairs.between(weights, u, v) == 0).mean()
        length = jnp.linalg.norm(mine) * jnp.linalg.norm(other)
        return zero, (mine * other).sum() / length, norms, mine

    size = len(nodes["map"])
    others = np.array([[j for j in range(size) if j != i] for i in range(size)])
    candidates = jax.tree.map(lambda x: x[others], nodes)
    zero, cosine, norms, vectors = jax.vmap(jax.vmap(look, (None, 0)))(
        nodes, candidates
    )
    alike = jax.vmap(jnp.corrcoef)(norms)
    varying = vectors - vectors.mean(1, keepdims=True)
    found = {
        "zero edges": zero.mean(),
        "cosine with full": cosine.mean(),
        "maps of a query correlate": (alike.mean() * (size - 1) - 1) / (size - 2),
        "share of the pair": jnp.square(varying).sum() / jnp.square(vectors).sum(),
    }
    if "inter" in weights:
        found |= {"least W'": weights["inter"].min()}
        found |= {"largest W'": weights["inter"].max()}
    return found


class Record:
    """Lines of JSON, one for each seed and name, that are there to stay.

    Args:
      path: of the file.
      settings: that all lines are of; older ones do not say.

    Raises:
      UserError: if there are lines of other settings.
    """

    def __init__(self, path: pathlib.Path, settings: dict[str, Any]):
        self._path, self._settings = path, settings
        known = path.read_text().splitlines() if path.exists() else []
        lines = [json.loads(line) for line in known]
        for line in lines:
            if line.get("settings", settings) != settings:
                raise UserError(
                    f"{path} is of {line['settings']}, not of {settings}: choose "
                    "another --workdir"
                )
        self._done = {(line["seed"], line["name"]) for line in lines}

    def missing(self, seed: int, names: Sequence[str]) -> list[str]:
        """Those of the names that have no line yet."""
        return [name for name in names if (seed, name) not in self._done]

    def add(self, seed: int, name: str, figures: dict[str, Any]) -> None:
        """Writes and prints a line."""
        line = {"seed": seed, "name": name, **figures, "settings": self._settings}
        line = json.dumps(line)
        print(line, flush=True)
        with self._path.open("a") as file:
            file.write(line + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is missing in the workdir's `results.jsonl`.

    Raises:
      UserError: for a variant that is not known, or results of other settings there.
    """
    options = _parse(argv)
    names = options.variants.split(",")
    if not set(names) <= set(VARIANTS):
        raise UserError(
            f"--variants={options.variants}: known are {', '.join(VARIANTS)}"
        )
    options.workdir.mkdir(parents=True, exist_ok=True)
    settings = {name: vars(options)[name] for name in SETTINGS}
    record = Record(options.workdir / "results.jsonl", settings)
    if not any(record.missing(seed, ["none", *names]) for seed in range(options.seeds)):
        return
    groups, last = look_alikes(options.people), options.groups + options.test_groups
    train = pictures(groups[: options.groups], "train")
    test = pictures(groups[options.groups : last], "query")
    individual = Individual(train, test, options.first_steps)
    learners = {
        name: Conditional(VARIANTS[name], train, options.steps) for name in names
    }
    for seed in range(options.seeds):
        missing = record.missing(seed, ["none", *learners])
        if not missing:
            continue
        base = individual(seed)
        for name in missing:
            if name == "none":
                record.add(seed, name, scored(base.distances, test))
                continue
            learner = learners[name]
            variables, figures = learner(base, seed), {}
            for metric in METRICS:
                keys = learner.keys(variables, base, top_k=options.top_k, metric=metric)
                figures[metric] = scored(keys, test)
            found = learner.selection(variables, base)
            record.add(seed, name, figures | found)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=pathlib.Path, default="runs/look-alikes")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--people", type=int, default=12_000, help="to choose among")
    parser.add_argument("--groups", type=int, default=30, help="of the training")
    parser.add_argument("--test_groups", type=int, default=8)
    parser.add_argument("--first_steps", type=int, default=120, help="of the ResNet")
    parser.add_argument("--steps", type=int, default=150, help="of each alignment")
    parser.add_argument("--top_k", type=int, default=40)
    return parser.parse_args(argv)


if __name__ == "__main__":
    with errors.answered():
        main()
