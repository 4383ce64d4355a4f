"""What a config runs, compiled for chips that hold no arrays.

The functions are those that training, evaluation and the benchmark jit, with the
shardings, donation and dtypes of a run; their arguments are shapes.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from reid_jax import experiment
from reid_jax.benchmark import workloads
from reid_jax.benchmark.sweep import Point
from reid_jax.evaluation.embedding import embed_function
from reid_jax.evaluation.pairs import PairNetwork
from reid_jax.experiment import Stage
from reid_jax.models.method import Batch, Method, PairScorer, Variables
from reid_jax.plan import topologies
from reid_jax.plan.topologies import Topology
from reid_jax.runtime import sharding
from reid_jax.runtime.checkpoint import place
from reid_jax.runtime.progress import said

MEASURES = workloads.MEASURES


@dataclasses.dataclass(frozen=True)
class Work:
    """Something to compile.

    Attributes:
      what, unit, items: as of the benchmark's.
      devices: that work on it.
      function, arguments: jitted, and shapes with shardings.
      donated: arrays that its caller gives away.
      stage: that it trains, if it does.
    """

    what: str
    unit: str
    items: int
    devices: Sequence[Any]
    function: Any
    arguments: tuple[Any, ...]
    donated: int = 0
    stage: Stage | None = None

    def lower(self) -> jax.stages.Lowered:
        """The program before it is compiled."""
        return self.function.lower(*self.arguments)

    def flops(self) -> int | None:
        """Of a call over all devices; None where they cannot be counted."""
        return workloads.flops_of(self.function, *self.arguments)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A work's program.

    Attributes:
      program: None where the chips' memory does not suffice.
      wanted: bytes of memory that it would take, where that is said of one.
      seconds: of the compilation.
    """

    program: jax.stages.Compiled | None
    wanted: int | None
    seconds: float


def compiled(work: Work, lowered: jax.stages.Lowered, topology: Topology) -> Compiled:
    """Compiles what was lowered.

    Raises:
      UserError: a part of the compiler is not installed.
    """
    begin, program, wanted = time.perf_counter(), None, None
    options = topologies.COMPILER_OPTIONS[topology.chip.platform]
    with said(f"compiling {work.what} for {topology.name}"):
        try:
            program = topologies.with_errors(
                topology.name, lambda: lowered.compile(compiler_options=options)
            )
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            wanted = _wanted(str(error))
    return Compiled(program, wanted, time.perf_counter() - begin)


def _wanted(message: str) -> int | None:
    """The bytes in "the total memory required for HLO temporaries (52.00G) exceeds"."""
    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds|Used ([\d.]+)([KMGT]) of", message)
    if not found:
        return None
    number, unit = (group for group in found.groups() if group)
    return int(float(number) * 2 ** (10 * (1 + "KMGT".index(unit))))


def works(point: Point, measures: Sequence[str]) -> Iterator[Work]:
    """What to compile at a point; what runs on one device with the first only."""
    config, mesh = point.config, sharding.make_mesh(point.devices)
    method, stages = workloads.build(point, "train" in measures)
    shapes = experiment.example_batch(config, stages[0].micro_batch_size)
    for stage in stages if "train" in measures else ():
        yield _training(config, method, stage, mesh, shapes)
    variables = jax.eval_shape(method.init, jax.random.key(0), shapes)
    variables = experiment.without_rows(method, variables)
    if "embed" in measures:
        yield _embedding(config, method, variables, mesh, point.embedded)
    if not point.first:
        return
    one = sharding.make_mesh(point.devices[:1])
    scorers = (method.pair_scorer(stage.name) for stage in reversed(stages))
    scorer = next(filter(None, scorers), None)
    if "pairs" in measures and scorer is not None:
        yield from _pairs(config, scorer, variables, one)
    if "ranking" in measures:
        yield _ranking(config, method, variables, one)


def _training(
    config: Any,
    method: Method,
    stage: Stage,
    mesh: jax.sharding.Mesh,
    shapes: Batch,
) -> Work:
    program = workloads.stage_program(config, method, stage, mesh, shapes)
    state = place(program.abstract(), program.layout)
    batch = experiment.example_batch(config, stage.batch_size)
    if "parts" not in method.train_inputs:
        del batch["parts"]
    return Work(
        what=f"train:{stage.name}",
        unit="images",
        items=stage.batch_size,
        devices=mesh.devices.tolist(),
        function=program.step,
        arguments=(state, place(batch, sharding.batch_sharding(mesh))),
        donated=len(jax.tree.leaves(state)),
        stage=stage,
    )


def _embedding(
    config: Any,
    method: Method,
    variables: Variables,
    mesh: jax.sharding.Mesh,
    count: int,
) -> Work:
    image, rest = _inputs(config, count, method.embed_inputs)
    rows = sharding.batch_sharding(mesh)
    return Work(
        what="embed",
        unit="images",
        items=count,
        devices=mesh.devices.tolist(),
        function=embed_function(method, mesh),
        arguments=(
            place(variables, sharding.replicated(mesh)),
            place(image, rows),
            place(rest, rows),
        ),
    )


def _inputs(config: Any, count: int, names: Sequence[str]) -> tuple[Any, Batch]:
    batch = experiment.example_batch(config, count)
    return batch["image"], {name: batch[name] for name in names}


def _pairs(
    config: Any, scorer: PairScorer, variables: Variables, one: jax.sharding.Mesh
) -> Iterator[Work]:
    network, here = PairNetwork(scorer), sharding.replicated(one)
    block = config.evaluation.pair_block
    inputs = (variables, *_inputs(config, block, scorer.inputs))
    maps = jax.eval_shape(network.pair_maps, *inputs)
    queries = 1 if scorer.top_k else config.evaluation.query_block
    asked = jax.tree.map(
        lambda m: jax.ShapeDtypeStruct((queries, *m.shape[1:]), m.dtype), maps
    )
    # A run tells the loop over queries its length; of one that knows it, all counts.
    score = jax.jit(lambda v, asked, m: network.scores(v, asked, queries, m))
    for what, unit, items, function, arguments in (
        ("pair maps", "images", block, network.pair_maps, inputs),
        (
            "pair scores",
            "pairs",
            queries * block,
            score,
            (variables, asked, maps),
        ),
    ):
        arguments = tuple(place(x, here) for x in arguments)
        yield Work(what, unit, items, one.devices.tolist(), function, arguments)


def _ranking(
    config: Any, method: Method, variables: Variables, one: jax.sharding.Mesh
) -> Work:
    """Distances of a block of queries to a gallery of Market-1501's size."""
    image, rest = _inputs(config, 2, method.embed_inputs)
    shapes = jax.eval_shape(
        lambda variables, image, rest: method.embed(variables, image, **rest),
        variables,
        image,
        rest,
    )
    block = config.evaluation.query_block
    query, gallery = (
        jax.tree.map(
            lambda x, n=n: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype), shapes
        )
        for n in (block, workloads.GALLERY)
    )
    here = sharding.replicated(one)
    return Work(
        what="ranking",
        unit="queries",
        items=block,
        devices=one.devices.tolist(),
        function=jax.jit(method.distance),
        arguments=(place(query, here), place(gallery, here)),
    )
