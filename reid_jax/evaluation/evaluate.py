"""Embeds query and gallery, ranks, and reports: `--mode=evaluate` and the loop's own.

Every process embeds its rows; process 0 ranks. What is held at once is the embeddings
of both splits and one block of queries x gallery distances.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from data_pipelines import loader
from data_pipelines.protocols import Protocol
from data_pipelines.records import Records
from reid_jax import experiment, pictures, storage
from reid_jax.errors import UserError
from reid_jax.evaluation.pairs import PairNetwork, PairRescorer
from reid_jax.evaluation.scoring import Ranking, Visibility, describe, spread
from reid_jax.models.method import Embedding, Method, Variables
from reid_jax.retrieval.rescoring import MapStore
from reid_jax.runtime import checkpoint, sharding
from reid_jax.runtime import workdir as workdirs

PICTURED_MAPS = 8
PICTURED_PAIRS = 4
"""Queries of a picture of pairs, and candidates of each."""


def embed_function(
    method: Method, mesh: jax.sharding.Mesh
) -> Callable[[Variables, jax.Array, dict[str, jax.Array]], Embedding]:
    """The jitted (variables, images, other inputs by name) -> Embedding, replicated."""

    def embed(
        variables: Variables, image: jax.Array, rest: dict[str, jax.Array]
    ) -> Embedding:
        return method.embed(variables, image, **rest)

    return jax.jit(embed, out_shardings=sharding.replicated(mesh))


class Evaluator:
    """Evaluates one method again and again, compiling once.

    Args:
      config: of the run; `evaluation` and `data` are read.
      method: to evaluate.
      mesh: to embed on.

    Raises:
      UserError: if the devices do not divide `config.evaluation.batch_size`.
    """

    def __init__(self, config: Any, method: Method, mesh: jax.sharding.Mesh):
        self._config = config
        self._size = experiment.image_size(config)
        self._method = method
        self._mesh = mesh
        self._batch_size = config.evaluation.batch_size
        sharding.check_divides(
            self._batch_size, mesh, field="config.evaluation.batch_size"
        )
        self._embed = embed_function(method, mesh)
        self._distance = jax.jit(method.distance)
        scorers = {stage: method.pair_scorer(stage) for stage in method.stages}
        self._pair_networks = {
            stage: PairNetwork(scorer) for stage, scorer in scorers.items() if scorer
        }

    def evaluate(
        self,
        variables: Variables,
        protocol: Protocol,
        *,
        stage: str,
        step: int,
        picture_dir: epath.Path | None = None,
    ) -> dict[str, Any]:
        """One entry of `results.json`; only process 0's has figures.

        Args:
          variables: replicated on the mesh.
          protocol: what to evaluate on.
          stage: whose pair scorer, if it has one, takes part.
          step: global step, for the record.
          picture_dir: where ranking lists and the method's pictures go, if anywhere.

        Raises:
          UserError: if no query has a valid match.
        """
        query, gallery = self._open(protocol, (stage,))
        # First of all, because it fails where no query has a match.
        ranking = Ranking(protocol, query, gallery)
        query_embedding = self.embed_records(variables, query, "query")
        gallery_embedding = jax.device_put(
            self.embed_records(variables, gallery, "gallery"), jax.local_devices()[0]
        )
        entry = describe(protocol, query, gallery, step)
        if jax.process_index() != 0:
            return entry
        with self._rescorer(variables, stage, query, gallery) as rescorer:
            before = Ranking(protocol, query, gallery) if rescorer else None
            for rows, keys in self._blocks(query_embedding, gallery_embedding):
                if before and rescorer:
                    before.update(rows, keys)
                    keys = rescorer.keys(rows, keys)
                ranking.update(rows, keys)
        entry |= ranking.figures()
        if before:
            entry["metrics_before_pairs"] = before.figures()["metrics"]
        if picture_dir is not None:
            titles = self._method.visibility_titles
            seen = _visibility(query_embedding, gallery_embedding, titles)
            ranking.draw(picture_dir / "ranking.png", entry, self._size, seen)
            title = f"{protocol.name}, step {step}"
            self._draw_method(variables, query, picture_dir, title)
            if before:
                path = picture_dir / "ranking_pairs.png"
                ranking.draw_beside(before, path, entry, self._size, seen)
                self._draw_pairs(
                    variables, stage, ranking, query, gallery, entry, picture_dir
                )
        return entry

    def check(self, protocol: Protocol, stages: Iterable[str] | None = None) -> None:
        """Raises UserError for a protocol that cannot be evaluated.

        No data, no match to find, or no part labels where the method needs them: in
        `stages`, or in any of its stages.
        """
        stages = self._method.stages if stages is None else stages
        query, gallery = self._open(protocol, stages)
        try:
            Ranking(protocol, query, gallery)
        except UserError as error:
            raise UserError(f"{protocol.name}: {error}") from error

    def _open(
        self, protocol: Protocol, stages: Iterable[str]
    ) -> tuple[Records, Records]:
        """Query and gallery, with what the method needs of them."""
        query, gallery = (
            experiment.open_split(self._config.data.data_dir, protocol.dataset, split)
            for split in (protocol.query_split, protocol.gallery_split)
        )
        networks = [self._pair_networks[s] for s in stages if s in self._pair_networks]
        inputs = [self._method.embed_inputs, *(n.scorer.inputs for n in networks)]
        for split in (query, gallery):
            experiment.check_parts(self._method, split, itertools.chain(*inputs))
        return query, gallery

    def embed_records(
        self, variables: Variables, records: Records, what: str
    ) -> Embedding:
        """Embeddings [N, ...] of a split, on the host of every process."""
        batches = loader.eval_batches(
            records,
            image_size=self._size,
            batch_size=self._batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            with_parts="parts" in self._method.embed_inputs,
        )
        blocks = []
        with _bar(len(records), f"embedding {what}") as bar:
            for batch in batches:
                rows = sharding.put_batch(batch, self._mesh)
                rest = {name: rows[name] for name in self._method.embed_inputs}
                out = self._embed(variables, rows["image"], rest)
                blocks.append(sharding.fetch(out))
                bar.update(min(self._batch_size, len(records) - bar.n))
        # Only the last batch is padded, at its end.
        return jax.tree.map(lambda *x: np.concatenate(x)[: len(records)], *blocks)

    def _blocks(
        self, query: Embedding, gallery: Embedding
    ) -> Iterator[tuple[np.ndarray, jax.Array]]:
        """(query rows [q], distances [block, G]); the last block is padded."""
        block = self._config.evaluation.query_block
        total = len(jax.tree.leaves(query)[0])
        for start in range(0, total, block):
            rows = np.arange(start, min(start + block, total))
            # Repeating rows fills the last block: one shape, one compilation.
            filled = np.resize(rows, block)
            part = jax.tree.map(lambda x, filled=filled: x[filled], query)
            yield rows, self._distance(part, gallery)

    @contextlib.contextmanager
    def _rescorer(
        self, variables: Variables, stage: str, query: Records, gallery: Records
    ) -> Iterator[PairRescorer | None]:
        """The method's second look at pairs, if the stage has learned one."""
        network = self._pair_networks.get(stage)
        if network is None:
            yield None
            return
        local = _local(variables)
        limit, block = network.scorer.top_k, self._config.evaluation.pair_block
        pairs = len(query) * min(limit or len(gallery), len(gallery))
        with (
            tempfile.TemporaryDirectory() as folder,
            MapStore(
                lambda indices: self._pair_maps(network, local, gallery, indices),
                directory=folder,
                max_bytes=self._config.evaluation.map_cache_bytes,
                batch_size=block,
            ) as store,
            _bar(pairs, "scoring pairs", unit="pair") as bar,
        ):
            yield PairRescorer(
                network,
                local,
                query_maps=lambda rows: self._pair_maps(network, local, query, rows),
                gallery_maps=store,
                pair_block=block,
                progress=bar.update,
            )

    def _pair_maps(
        self,
        network: PairNetwork,
        variables: Variables,
        records: Records,
        indices: np.ndarray,
    ) -> Any:
        """Maps of some images, a pytree of NumPy arrays of leading axis n."""
        inputs, block = network.scorer.inputs, self._config.evaluation.pair_block
        blocks = []
        for start in range(0, len(indices), block):
            batch = loader.image_batch(
                records,
                # Repeating rows fills the last block: one shape, one compilation.
                np.resize(indices[start : start + block], block),
                image_size=self._size,
                with_parts="parts" in inputs,
            )
            rest = {name: batch[name] for name in inputs}
            maps = network.pair_maps(variables, batch["image"], rest)
            blocks.append(jax.tree.map(np.asarray, maps))
        return jax.tree.map(lambda *x: np.concatenate(x)[: len(indices)], *blocks)

    def _draw_method(
        self, variables: Variables, query: Records, folder: epath.Path, title: str
    ) -> None:
        """The pictures that are particular to the method, over some queries."""
        indices = spread(np.arange(len(query)), PICTURED_MAPS)
        batch = loader.image_batch(
            query, indices, image_size=self._size, with_parts=True
        )
        for name, item in self._method.pictures(_local(variables), batch).items():
            what = f"{name.replace('_', ' ')}: {title}"
            pictures.draw(folder / f"{name}.png", batch["image"], item, title=what)

    def _draw_pairs(
        self,
        variables: Variables,
        stage: str,
        ranking: Ranking,
        query: Records,
        gallery: Records,
        entry: dict[str, Any],
        folder: epath.Path,
    ) -> None:
        """The pair scorer's pictures, over the first candidates of some queries."""
        network, local = self._pair_networks[stage], _local(variables)
        chosen = ranking.examples(PICTURED_PAIRS, PICTURED_PAIRS)
        query_maps = self._pair_maps(network, local, query, chosen.rows)
        flat = self._pair_maps(network, local, gallery, chosen.gallery.ravel())
        maps = jax.tree.map(
            lambda m: m.reshape(*chosen.gallery.shape, *m.shape[1:]), flat
        )
        for name, item in network.scorer.pictures(local, query_maps, maps).items():
            path = folder / f"{name}.png"
            ranking.draw_pairs(path, chosen, item, entry, self._size)


def evaluate_checkpoint(
    config: Any, path: str, *, workdir: str
) -> list[dict[str, Any]]:
    """`--mode=evaluate`: evaluates any checkpoint and writes `results.json`.

    Args:
      config: of the run; `evaluate_on` may name other protocols.
      path: a run's folder, or one step's.
      workdir: where `results.json` and `pictures/` go.

    Raises:
      UserError: no checkpoint, another model's checkpoint, or data that are missing.
    """
    experiment.check_numbers(config)
    folder = checkpoint.find(path)
    meta = checkpoint.read_meta(folder)
    mesh = sharding.make_mesh()
    method, variables = experiment.restore(config, folder, mesh)
    changed = experiment.changed_fields(config, meta["config"])
    pictured = epath.Path(workdir) / "pictures"
    evaluator = Evaluator(config, method, mesh)
    protocols = experiment.build_protocols(config)
    for protocol in protocols:
        evaluator.check(protocol, (meta["stage"],))
    storage.check_writable(workdir)
    entries = evaluate_protocols(
        evaluator,
        protocols,
        variables,
        stage=meta["stage"],
        step=meta["global_step"],
        picture_root=pictured / "changed" if changed else pictured,
    )
    about = {"checkpoint": str(folder)} | ({"changed": changed} if changed else {})
    entries = [entry | about for entry in entries]
    write_results(workdir, entries)
    return entries


def evaluate_protocols(
    evaluator: Evaluator,
    protocols: tuple[Protocol, ...],
    variables: Variables,
    *,
    stage: str,
    step: int,
    picture_root: epath.Path | None = None,
) -> list[dict[str, Any]]:
    """One entry per protocol; each protocol's pictures in a folder of its own."""
    return [
        evaluator.evaluate(
            variables,
            protocol,
            stage=stage,
            step=step,
            picture_dir=picture_root / protocol.name.replace(":", "-")
            if picture_root
            else None,
        )
        for protocol in protocols
    ]


def write_results(workdir: str, entries: list[dict[str, Any]]) -> None:
    """Writes `results.json` (process 0 only).

    Entries of other protocols, steps and model fields that are there stay; one of the
    same is replaced, but keeps the `best` of its run.
    """
    if jax.process_index() != 0:
        return
    path = epath.Path(workdir) / "results.json"
    old = workdirs.read_json(path) if path.exists() else []
    merged = {_identity(entry): entry for entry in old}
    for entry in entries:
        before = merged.pop(_identity(entry), {})
        best = {"best": before["best"]} if "best" in before else {}
        merged[_identity(entry)] = best | entry
    workdirs.write_json(path, list(merged.values()))


def _identity(entry: dict[str, Any]) -> str:
    """What makes an entry of the results another one."""
    names = ("protocol", "step", "ap", "camera_filter", "changed")
    return json.dumps([entry.get(name) for name in names])


def summary(entry: dict[str, Any]) -> str:
    """One line for the terminal."""
    figures = ", ".join(f"{k} {v:.1%}" for k, v in entry["metrics"].items())
    note = f"; {entry['note']}" if "note" in entry else ""
    before = entry.get("metrics_before_pairs")
    if before:
        note += f"; before pairs: mAP {before['mAP']:.1%}"
    return f"{entry['protocol']}: {figures} ({entry['valid_queries']} queries{note})"


def _local(variables: Variables) -> Variables:
    """The variables on this process's first device."""
    return jax.device_put(sharding.fetch(variables), jax.local_devices()[0])


def _visibility(
    query: Embedding, gallery: Embedding, titles: tuple[str, ...]
) -> Visibility | None:
    """Which parts are visible, on the host, where there are any to draw."""
    if "visibility" not in query or (titles and not any(titles)):
        return None
    drawn = np.flatnonzero(titles) if titles else slice(None)
    seen = (np.asarray(side["visibility"])[:, drawn] for side in (query, gallery))
    return Visibility(*seen, tuple(filter(None, titles)))


def _bar(total: int, what: str, unit: str = "img") -> tqdm:
    hidden = jax.process_index() != 0
    return tqdm(total=total, desc=what, unit=unit, leave=False, disable=hidden)
