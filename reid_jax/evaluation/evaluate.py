"""Embeds query and gallery, ranks, and reports: `--mode=evaluate` and the loop's own.

Every process embeds its rows; process 0 ranks. What is held at once is the embeddings
of both splits and one block of queries x gallery distances.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from tqdm import tqdm

from data_pipelines.protocols import Protocol
from data_pipelines.records import Records
from reid_jax import checks, experiment, storage
from reid_jax.errors import UserError
from reid_jax.evaluation import answers, finite, results
from reid_jax.evaluation.drawing import PICTURED_MAPS, Drawing, Visibility
from reid_jax.evaluation.embedding import Embedder
from reid_jax.evaluation.pairs import PairNetwork
from reid_jax.evaluation.scoring import Ranking
from reid_jax.evaluation.second_look import SecondLook
from reid_jax.experiment import EvaluationSpec
from reid_jax.models.method import Embedding, Method, Variables
from reid_jax.runtime import checkpoint, sharding, trained
from reid_jax.runtime import workdir as workdirs
from reid_jax.runtime.progress import said


class Evaluator:
    """Evaluates one method again and again, compiling once.

    Args:
      method: to evaluate.
      mesh: to embed on.
      spec: where the data are, and how much is done at once.

    Raises:
      UserError: if the devices do not divide `spec.batch_size`.
    """

    def __init__(self, method: Method, mesh: jax.sharding.Mesh, spec: EvaluationSpec):
        self._method, self._spec = method, spec
        self._embed = Embedder(
            method, mesh, image_size=spec.image_size, batch_size=spec.batch_size
        )
        self._distance = _distance_function(method)
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
          UserError: if no query has a valid match, or the network, an embedding or a
            distance is not finite.
        """
        query, gallery = self._open(protocol, (stage,))
        # First of all, because it fails where no query has a match.
        ranking = Ranking(protocol, query, gallery, self._spec.pictured)
        finite.check_variables(sharding.fetch(variables))
        embeddings = tuple(
            self._embedded(variables, split, what)
            for split, what in ((query, "query"), (gallery, "gallery"))
        )
        entry = results.describe(protocol, query, gallery, step)
        if jax.process_index() != 0:
            return entry
        look = self._second_look(variables, stage, query, gallery)
        before = (
            Ranking(protocol, query, gallery, self._spec.pictured) if look else None
        )
        self._rank(*embeddings, query, ranking, before, look)
        entry |= ranking.figures()
        if before:
            entry["metrics_before_pairs"] = before.figures()["metrics"]
        if picture_dir is not None:
            seen = Visibility.of(*embeddings, self._method.visibility_titles)
            size = self._spec.image_size
            drawing = Drawing(picture_dir, entry, query, gallery, size, seen)
            self._draw(drawing, variables, ranking, before, look)
        return entry

    def _embedded(self, variables: Variables, split: Records, what: str) -> Embedding:
        """The embedding of a split, all of it finite."""
        embedding = self._embed(variables, split, what)
        finite.check_embedding(embedding, split, what)
        return embedding

    def _draw(
        self,
        drawing: Drawing,
        variables: Variables,
        ranking: Ranking,
        before: Ranking | None,
        look: SecondLook | None,
    ) -> None:
        """All pictures of an evaluation."""
        lists, local = ranking.lists, _local(variables)
        drawing.lists(lists)
        drawing.method(self._method, local, lists.some(PICTURED_MAPS))
        if drawing.visibility:
            chosen = lists.examples(answers.QUERIES, answers.ANSWERS)
            answers.draw(drawing, self._method, local, chosen)
        if look and before:
            drawing.lists_beside(before.lists, lists)
            drawing.pairs(lists, look)

    def check(self, protocol: Protocol, stages: Iterable[str] | None = None) -> None:
        """Raises UserError for a protocol that cannot be evaluated.

        No data, no match to find, or no part labels where the method needs them: in
        `stages`, or in any of its stages.
        """
        stages = self._method.stages if stages is None else stages
        query, gallery = self._open(protocol, stages)
        try:
            Ranking(protocol, query, gallery, self._spec.pictured)
        except UserError as error:
            raise UserError(f"{protocol.name}: {error}") from error

    def _open(
        self, protocol: Protocol, stages: Iterable[str]
    ) -> tuple[Records, Records]:
        """Query and gallery, with what the method needs of them."""
        query, gallery = (
            experiment.open_split(
                *(self._spec.data_dir, protocol.dataset, split),
                resize=self._spec.resize,
            )
            for split in (protocol.query_split, protocol.gallery_split)
        )
        networks = [self._pair_networks[s] for s in stages if s in self._pair_networks]
        inputs = [self._method.embed_inputs, *(n.scorer.inputs for n in networks)]
        for split in (query, gallery):
            experiment.check_parts(self._method, split, itertools.chain(*inputs))
        return query, gallery

    def _second_look(
        self, variables: Variables, stage: str, query: Records, gallery: Records
    ) -> SecondLook | None:
        """What the stage has learned of pairs, if anything."""
        network = self._pair_networks.get(stage)
        if network is None:
            return None
        return SecondLook(
            *(network, _local(variables), query, gallery),
            image_size=self._spec.image_size,
            pair_block=self._spec.pair_block,
        )

    def _rank(
        self,
        query: Embedding,
        gallery: Embedding,
        records: Records,
        ranking: Ranking,
        before: Ranking | None,
        look: SecondLook | None,
    ) -> None:
        """Ranks block by block; with a second look, also as it was `before` it."""
        opened = (
            look.rescorer(cache_bytes=self._spec.map_cache_bytes)
            if look
            else contextlib.nullcontext()
        )
        with opened as rescorer:
            for rows, keys in self._blocks(query, gallery, records):
                if before and rescorer:
                    before.update(rows, keys)
                    keys = rescorer.keys(rows, keys)
                ranking.update(rows, keys)

    def _blocks(
        self, query: Embedding, gallery: Embedding, records: Records
    ) -> Iterator[tuple[np.ndarray, jax.Array]]:
        """(query rows [q], distances [block, G]); the last block is padded.

        `records` are the queries'.
        """
        gallery = jax.device_put(gallery, jax.local_devices()[0])
        block = self._spec.query_block
        total = len(jax.tree.leaves(query)[0])
        starts = tqdm(range(0, total, block), "ranking", unit="block", leave=False)
        for start in starts:
            rows = np.arange(start, min(start + block, total))
            # Repeating rows fills the last block: one shape, one compilation.
            filled = np.resize(rows, block)
            part = jax.tree.map(lambda x, filled=filled: x[filled], query)
            distances, whole = self._distance(part, gallery)
            finite.check_distances(np.asarray(whole)[: len(rows)], rows, records)
            yield rows, distances


def _distance_function(
    method: Method,
) -> Callable[[Embedding, Embedding], tuple[jax.Array, jax.Array]]:
    """The jitted (query, gallery) -> distances [Q, G], and which rows are finite."""

    def distance(query: Embedding, gallery: Embedding) -> tuple[jax.Array, jax.Array]:
        distances = method.distance(query, gallery)
        return distances, jnp.isfinite(distances).all(axis=1)

    return jax.jit(distance)


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
    checks.check_config(config)
    folder = checkpoint.find(path)
    meta = checkpoint.read_meta(folder)
    mesh = sharding.make_mesh()
    with said(f"reading {folder}"):
        method, variables = experiment.restore(config, folder, mesh)
    changed = experiment.changed_fields(config, meta["config"])
    pictured = storage.absolute(workdir) / "pictures"
    run = trained.run_folder(folder)
    if run != storage.absolute(workdir) and workdirs.has_checkpoint(workdir):
        pictured = pictured / f"of-{run.name}"  # the run that lives here has its own
    evaluator = Evaluator(method, mesh, experiment.build_evaluation(config))
    protocols = experiment.build_protocols(config)
    for protocol in protocols:
        evaluator.check(protocol, (meta["stage"],))
    storage.check_writable(workdir)
    about = {"checkpoint": str(folder)} | ({"changed": changed} if changed else {})
    if experiment.takes_average(config, meta["config"]):
        about["averaged"] = True
    entries = []
    for protocol in protocols:
        (entry,) = evaluate_protocols(
            evaluator,
            (protocol,),
            variables,
            stage=meta["stage"],
            step=meta["global_step"],
            picture_root=pictured / "changed" if changed else pictured,
        )
        entries.append(entry | about)
        results.write(workdir, entries[-1:])  # kept, whatever becomes of the next one
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


def _local(variables: Variables) -> Variables:
    """The variables on this process's first device."""
    return jax.device_put(sharding.fetch(variables), jax.local_devices()[0])
