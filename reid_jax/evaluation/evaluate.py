"""Embeds query and gallery, ranks, and reports: `--mode=evaluate` and the loop's own.

Every process embeds its rows; process 0 ranks. What is held at once is the embeddings
of both splits, one block of queries x gallery distances, and of k-reciprocal re-ranking
some hundred numbers for an image.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from data_pipelines.protocols import Protocol
from data_pipelines.records import Records
from reid_jax import checks, experiment, storage
from reid_jax.errors import UserError
from reid_jax.evaluation import answers, finite, results
from reid_jax.evaluation.details import Details
from reid_jax.evaluation.drawing import PICTURED_MAPS, Drawing, Visibility
from reid_jax.evaluation.embedding import Embedder
from reid_jax.evaluation.pairs import PairNetwork
from reid_jax.evaluation.scoring import Ranking
from reid_jax.evaluation.second_look import SecondLook
from reid_jax.experiment import EvaluationSpec
from reid_jax.models.method import Embedding, Method, Variables
from reid_jax.retrieval import reranking, search
from reid_jax.retrieval.k_reciprocal import Encoding
from reid_jax.retrieval.labels import Labels
from reid_jax.retrieval.reranking import Pair, Reranking
from reid_jax.retrieval.search import Comparison, Gallery
from reid_jax.retrieval.steps import fields_of
from reid_jax.retrieval.verification import Verification
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
        self._comparison = Comparison(method.distance, spec.search)
        scorers = {stage: method.pair_scorer(stage) for stage in method.stages}
        self._pair_networks = {
            stage: PairNetwork(scorer) for stage, scorer in scorers.items() if scorer
        }

    def pictured(self, protocol: Protocol) -> str:
        """Where pictures of a protocol go, below all pictures."""
        return results.picture_folder(protocol.name, fields_of(self._spec.rerank))

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
          picture_dir: where ranking lists and the method's pictures go, if anywhere
            and if the spec wants any.

        Raises:
          UserError: if no query has a valid match, a step of re-ranking has no sense
            for the method, or the network, an embedding or a distance is not finite.
        """
        picture_dir = picture_dir if self._spec.pictures else None
        query, gallery = self._open(protocol, (stage,))
        pictured = self._spec.pictured if picture_dir is not None else None
        ranked = functools.partial(Ranking, protocol, query, gallery, pictured)
        # First of all, because it fails where no query has a match.
        ranking = ranked()
        self.check_steps(variables)
        finite.check_variables(sharding.fetch(variables))
        plain, compared = self._embedded(variables, query, gallery)
        # Every process has what the best is compared by.
        entry = results.describe(protocol, query, gallery, step) | self._ways()
        if jax.process_index() != 0:
            return entry
        look = self._second_look(variables, stage, query, gallery)
        states = self._states(ranked, look) | {"final": ranking}
        if results.BEFORE_RERANKING in states:
            self._rank(plain, query, {"final": states[results.BEFORE_RERANKING]})
        steps = Reranking(
            self._spec.rerank,
            self._comparison,
            squares=self._method.squared_distances,
            block=self._spec.query_block,
        )
        compared = steps.embeddings(compared)
        roc = self._verification(protocol, query, gallery)
        details = Details(protocol, query, gallery) if picture_dir is not None else None
        shared = steps.encoding(*compared)
        self._rank(compared, query, states, shared, look, roc, details)
        entry |= self._reported(states, roc)
        if picture_dir is not None:
            titles, size = self._method.visibility_titles, self._spec.image_size
            seen = (Visibility.of(*pair, titles) for pair in (compared, plain))
            drawing = Drawing(picture_dir, entry, query, gallery, size, *seen)
            drawing.clear()
            self._draw(drawing, variables, states, look, roc)
            drawing.ends(details)
        return entry

    def _embedded(
        self, variables: Variables, query: Records, gallery: Records
    ) -> tuple[Pair, Pair]:
        """The embeddings of both splits, and those behind the flip; all are finite."""
        found = []
        for split, what in ((query, "query"), (gallery, "gallery")):
            if "flip" in self._spec.rerank:
                made = self._embed.with_flip(variables, split, what)
            else:
                made = (self._embed(variables, split, what),)
            for embedding in made:
                finite.check_embedding(embedding, split, what)
            found.append((made[0], made[-1]))
        plain, compared = zip(*found, strict=True)
        return plain, compared

    def _states(
        self, ranked: Callable[[], Ranking], look: SecondLook | None
    ) -> dict[str, Ranking]:
        """What is ranked beside the end: what was before each change, by its name."""
        names = [results.BEFORE_RERANKING] if self._spec.rerank else []
        names += [results.BEFORE_PAIRS] if look else []
        return {name: ranked() for name in names}

    def _verification(
        self, protocol: Protocol, query: Records, gallery: Records
    ) -> Verification | None:
        if not self._spec.verification:
            return None
        labels = (Labels(r.person, r.camera) for r in (query, gallery))
        return Verification(*labels, camera_filter=protocol.camera_filter)

    def _reported(
        self, states: Mapping[str, Ranking], roc: Verification | None
    ) -> dict[str, Any]:
        """Figures of an entry of `results.json`."""
        figures = states["final"].figures()
        for name, before in states.items():
            if name != "final":
                figures[f"metrics_{name}"] = before.figures()["metrics"]
        if roc:
            figures["verification"] = roc.curve().report()
        return figures

    def _ways(self) -> dict[str, Any]:
        """How it is ranked, where that is not by all plain distances."""
        found = {}
        if self._spec.rerank:
            found["rerank"] = fields_of(self._spec.rerank)
        if (chosen := self._spec.search).by != "top_k":  # there may be better ones
            found["search"] = {"by": chosen.by, "recall": chosen.recall}
        return found

    def _draw(
        self,
        drawing: Drawing,
        variables: Variables,
        states: Mapping[str, Ranking],
        look: SecondLook | None,
        roc: Verification | None,
    ) -> None:
        """All pictures of an evaluation."""
        lists, local = states["final"].lists, sharding.local(variables)
        drawing.lists(lists)
        drawing.method(self._method, local, lists.some(PICTURED_MAPS))
        if drawing.visibility:
            chosen = lists.examples(answers.QUERIES, answers.ANSWERS)
            answers.draw(drawing, self._method, local, chosen)
        for name in results.STATES:
            if name in states:
                drawing.lists_beside(states[name].lists, lists, name)
        if look:
            drawing.pairs(lists, look)
        if roc:
            drawing.roc(roc.curve())

    def check(self, protocol: Protocol, stages: Iterable[str] | None = None) -> None:
        """Raises UserError for a protocol that cannot be evaluated.

        No data, no match to find, one person alone where ROC is wanted, or no part
        labels where the method needs them: in `stages`, or in any of its stages.
        """
        stages = self._method.stages if stages is None else stages
        query, gallery = self._open(protocol, stages)
        try:
            Ranking(protocol, query, gallery, self._spec.pictured)
            self._verification(protocol, query, gallery)
        except UserError as error:
            raise UserError(f"{protocol.name}: {error}") from error

    def check_steps(self, variables: Variables) -> None:
        """Raises UserError for steps of re-ranking that make no sense for the method.

        Args:
          variables: their shapes are enough.
        """
        if steps := self._spec.rerank:
            shapes = self._embed.shapes(variables)
            reranking.check(steps, shapes, self._method.visibility_titles)

    def _open(
        self, protocol: Protocol, stages: Iterable[str]
    ) -> tuple[Records, Records]:
        """Query and gallery, with what the method needs of them."""
        query, gallery = (
            experiment.open_split(
                protocol.dataset, split, self._spec.data_dir, resize=self._spec.resize
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
            network,
            sharding.local(variables),
            query,
            gallery,
            image_size=self._spec.image_size,
            pair_block=self._spec.pair_block,
        )

    def _rank(
        self,
        embeddings: tuple[Embedding, Embedding],
        records: Records,
        states: Mapping[str, Ranking],
        encoding: Encoding | None = None,
        look: SecondLook | None = None,
        roc: Verification | None = None,
        details: Details | None = None,
    ) -> None:
        """Ranks block by block: distances, what they share, what pairs are scored.

        Thresholds are of distances: other keys mean nothing beyond their own query.
        """
        opened = (
            look.rescorer(cache_bytes=self._spec.map_cache_bytes)
            if look
            else contextlib.nullcontext()
        )
        with opened as rescorer:
            for rows, distances in self._blocks(*embeddings, records):
                keys = distances
                if roc:
                    roc.update(rows, np.asarray(distances))
                if encoding:
                    shared = encoding.keys(rows, np.asarray(distances)[: len(rows)])
                    keys = np.resize(shared, distances.shape)
                if rescorer:
                    states[results.BEFORE_PAIRS].update(rows, keys)
                    keys = rescorer.keys(rows, keys)
                states["final"].update(rows, keys)
                if details:
                    scores = states["final"].scores(rows)
                    details.update(rows, keys, distances, scores)

    def _blocks(
        self, query: Embedding, gallery: Embedding, records: Records
    ) -> Iterator[tuple[np.ndarray, jax.Array | np.ndarray]]:
        """(query rows [q], distances [block, G]); the last block is padded.

        `records` are the queries'.
        """
        placed, block = Gallery(self._comparison, gallery), self._spec.query_block
        with tqdm(
            search.blocks(query, block),
            "ranking",
            total=-(-len(records) // block),
            unit="block",
            leave=False,
        ) as blocks:
            for rows, part in blocks:
                distances, whole = placed.distances(part)
                finite.check_distances(np.asarray(whole)[: len(rows)], rows, records)
                yield rows, distances


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
    if run != storage.absolute(workdir) and workdirs.has_state(workdir):
        pictured = pictured / f"of-{run.name}"  # the run that lives here has its own
    evaluator = Evaluator(method, mesh, experiment.build_evaluation(config))
    protocols = experiment.build_protocols(config)
    for protocol in protocols:
        evaluator.check(protocol, (meta["stage"],))
    storage.check_writable(workdir)
    about = {"checkpoint": str(folder)} | ({"changed": changed} if changed else {})
    if run != storage.absolute(workdir):
        about["run"] = str(run)
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
    """One entry per protocol; pictures of each, re-ranked or not, have a folder."""
    return [
        evaluator.evaluate(
            variables,
            protocol,
            stage=stage,
            step=step,
            picture_dir=picture_root and picture_root / evaluator.pictured(protocol),
        )
        for protocol in protocols
    ]
