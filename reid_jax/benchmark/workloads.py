"""What a benchmark times: a config's step, embedding, pair scoring and ranking.

Each is compiled for random data that lie on the devices, and counted: FLOPs, seconds
of compilation. See `benchmark.py` for what is in a figure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from reid_jax import experiment
from reid_jax.benchmark import random_data
from reid_jax.benchmark.flops import count_flops
from reid_jax.benchmark.sweep import Point, share_of_device
from reid_jax.evaluation.embedding import embed_function
from reid_jax.evaluation.pairs import PairNetwork
from reid_jax.experiment import Stage
from reid_jax.models.method import Batch, Method, PairScorer, Variables
from reid_jax.retrieval.labels import Labels
from reid_jax.retrieval.ranking import Ranker
from reid_jax.runtime import sharding
from reid_jax.runtime.progress import said
from reid_jax.runtime.state import TrainState
from reid_jax.training.step import StageProgram, init_state, make_step, stage_optimizer

MEASURES = ("train", "embed", "pairs", "ranking")
COMPARISONS = ("pmap",)
"""What is measured only where it is asked for."""

_DEVICES = "devices"  # the axis of `jax.pmap`

# Sizes of Market-1501: training identities and batches of 16 x 4 images in an epoch;
# persons and images of the gallery.
IDENTITIES, STEPS_PER_EPOCH = 751, 187
PERSONS, GALLERY = 750, 15_913


@dataclasses.dataclass(frozen=True)
class Work:
    """Something to time.

    Attributes:
      what: its name.
      unit, items: what a call works on, and how many of them.
      devices: that work on it.
      call: starts it, and returns arrays that depend on all of it.
      compiled: what runs on the devices.
      compile_seconds: of it, with tracing.
      flops: of a call over all devices; None where they cannot be counted.
    """

    what: str
    unit: str
    items: int
    devices: Sequence[jax.Device]
    call: Callable[[], Any]
    compiled: jax.stages.Compiled
    compile_seconds: float
    flops: int | None


class OutOfMemory(Exception):
    """Memory does not suffice for a work.

    Attributes:
      what, items, devices: of the work.
    """

    def __init__(self, what: str, items: int | None, devices: Sequence[jax.Device]):
        super().__init__(what)
        self.what, self.items, self.devices = what, items, devices


@contextlib.contextmanager
def memory_for(
    what: str, items: int | None, devices: Sequence[jax.Device]
) -> Iterator[None]:
    """Raises OutOfMemory where devices have too little of it for what is done."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(what, items, devices) from error


def workloads(point: Point, measures: Sequence[str]) -> Iterator[Work]:
    """What to time at a point, each made when the one before is done with.

    What does not depend on devices and batch comes with the first point of the same
    fields only, and on process 0.

    Raises:
      OutOfMemory: while one is made.
    """
    config, mesh = point.config, sharding.make_mesh(point.devices)
    method, stages = build(point, bool({"train", "pmap"} & set(measures)))
    shapes = experiment.example_batch(config, stages[0].micro_batch_size)
    layout = stage_program(config, method, stages[0], mesh, shapes).layout
    variables = _initial(config, method, shapes, layout)
    for stage in stages if "train" in measures else ():
        trainer = _trainer(config, method, stage, mesh, shapes, variables)
        del variables
        yield trainer.work
        variables = trainer.release()
    for stage in stages if "pmap" in measures else ():
        trainer = _mapped_trainer(config, method, stage, point.devices)
        yield trainer.work
        trainer.release()
    variables = sharding.gather(experiment.without_rows(method, variables), mesh)
    if "embed" in measures:
        yield _embedding(config, method, variables, mesh, point.embedded)
    if not point.first or jax.process_index() != 0:
        return
    variables = sharding.local(variables)
    scorers = (method.pair_scorer(stage.name) for stage in reversed(stages))
    scorer = next(filter(None, scorers), None)
    if "pairs" in measures and scorer is not None:
        yield from _pairs(config, method, scorer, variables)
    if "ranking" in measures:
        yield _ranking(config, method, variables)


def build(point: Point, trained: bool) -> tuple[Method, tuple[Stage, ...]]:
    """Method and stages, with the point's batch if they are to be trained."""
    config, identities = point.config, IDENTITIES
    method = experiment.build_method(config, num_classes=identities)
    stages = experiment.build_stages(config, method)
    if trained:
        stages = tuple(map(point.resize, stages))
        identities = max(identities, *(stage.identities for stage in stages))
        method = experiment.build_method(config, num_classes=identities)
    return method, stages


def _initial(
    config: Any, method: Method, shapes: Batch, layout: TrainState
) -> Variables:
    """Fresh variables on the mesh."""

    def init() -> Variables:
        example = {name: jnp.zeros(x.shape, x.dtype) for name, x in shapes.items()}
        return method.init(jax.random.key(config.seed), example)

    return jax.jit(init, out_shardings=layout.variables)()


def stage_program(
    config: Any,
    method: Method,
    stage: Stage,
    mesh: jax.sharding.Mesh,
    shapes: Batch,
) -> StageProgram:
    """The program that a run of the config would train the stage by."""
    return StageProgram(
        method,
        stage,
        mesh,
        shapes=shapes,
        steps_per_epoch=STEPS_PER_EPOCH,
        seed=config.seed,
        shard_parameters=config.shard_parameters,
        ema_decay=config.ema_decay,
        gradient_dtype=config.gradient_dtype,
    )


class _Trainer:
    """A stage's training step, and the state that it advances.

    Args:
      step: jitted or mapped, (state, batch) -> (state, metrics).
      state, batch: on the devices.
      work: what `_work` is to know beside.
    """

    def __init__(self, step: Any, state: TrainState, batch: Batch, **work: Any):
        self.state = state
        self._batch = batch
        self.work = _work(step, state, batch, call=self._advance, **work)

    def _advance(self) -> Any:
        self.state, metrics = self.work.compiled(self.state, self._batch)
        return self.state, metrics

    def release(self) -> Variables:
        """The variables. Whoever still has the work holds no arrays by it."""
        variables = self.state.variables
        self.state = self._batch = None
        return variables


def _trainer(
    config: Any,
    method: Method,
    stage: Stage,
    mesh: jax.sharding.Mesh,
    shapes: Batch,
    variables: Variables,
) -> _Trainer:
    """The step of the training loop."""
    program = stage_program(config, method, stage, mesh, shapes)
    about = _about(f"train:{stage.name}", stage.batch_size, mesh.devices.tolist())
    with memory_for(**about):
        return _Trainer(
            program.step,
            program.following(variables),
            random_data.put(random_data.training_rows(config, method, stage), mesh),
            **about,
        )


def _mapped_trainer(
    config: Any, method: Method, stage: Stage, devices: Sequence[jax.Device]
) -> _Trainer:
    """The same step by `jax.pmap`: for each device rows of its own.

    Batch statistics, mining, pairs and banks are of a device's rows alone, as are its
    random numbers; only gradients are averaged.
    """
    share = share_of_device(stage, len(devices))
    shapes = experiment.example_batch(config, share.micro_batch_size)
    mapped = functools.partial(jax.pmap, axis_name=_DEVICES, devices=devices)
    optimizer, rate = stage_optimizer(method, share, steps_per_epoch=STEPS_PER_EPOCH)

    def update(gradients: Any, *rest: Any) -> tuple[Any, Any]:
        return optimizer.update(jax.lax.pmean(gradients, _DEVICES), *rest)

    def fresh(index: jax.Array) -> TrainState:
        state = init_state(
            method,
            share,
            optimizer,
            shapes=shapes,
            seed=config.seed,
            ema_decay=config.ema_decay,
        )
        return state.replace(rng=jax.random.fold_in(state.rng, index))

    averaged = optax.GradientTransformation(optimizer.init, update)
    step = make_step(
        method,
        share,
        averaged,
        rate,
        steps_per_epoch=STEPS_PER_EPOCH,
        ema_decay=config.ema_decay,
        gradient_dtype=config.gradient_dtype,
    )
    batch = {
        name: rows.reshape(len(devices), -1, *rows.shape[1:])
        for name, rows in random_data.training_rows(config, method, stage).items()
    }
    about = _about(f"pmap:{stage.name}", stage.batch_size, devices)
    with memory_for(**about):
        return _Trainer(
            mapped(step, donate_argnums=0),
            mapped(fresh)(np.arange(len(devices))),
            random_data.put(batch, sharding.make_mesh(devices)),
            **about,
        )


def _embedding(
    config: Any,
    method: Method,
    variables: Variables,
    mesh: jax.sharding.Mesh,
    count: int,
) -> Work:
    about = _about("embed", count, mesh.devices.tolist())
    rows = random_data.rows(config, method, count, method.embed_inputs)
    with memory_for(**about):
        rest = random_data.put(rows, mesh)
        image = rest.pop("image")
        rest = {name: rest[name] for name in method.embed_inputs}
        return _work(embed_function(method, mesh), variables, image, rest, **about)


def _pairs(
    config: Any, method: Method, scorer: PairScorer, variables: Variables
) -> Iterator[Work]:
    network, devices = PairNetwork(scorer), jax.local_devices()[:1]
    block = config.evaluation.pair_block
    about = _about("pair maps", block, devices)
    with memory_for(**about):
        rest = jax.device_put(
            random_data.rows(config, method, block, scorer.inputs), devices[0]
        )
        image = rest.pop("image")
        rest = {name: rest[name] for name in scorer.inputs}
        inputs = variables, image, rest
        work = _work(network.pair_maps, *inputs, **about)
    yield work
    queries = 1 if scorer.top_k else config.evaluation.query_block
    about = _about("pair scores", queries * block, devices)
    with memory_for(**about):
        maps = work.compiled(*inputs)
        asked = jax.tree.map(lambda m: jnp.resize(m, (queries, *m.shape[1:])), maps)
        inputs = variables, asked, queries, maps
        work = _work(network.score, *inputs, unit="pairs", **about)
    # A run tells the loop over queries its length; of one that knows it, all counts.
    flops = flops_of(
        lambda asked, maps: network.scores(variables, asked, queries, maps),
        asked,
        maps,
    )
    yield dataclasses.replace(work, flops=flops)


def _ranking(config: Any, method: Method, variables: Variables) -> Work:
    """Distances of a block of queries, and the ranks of their matches."""
    rng = np.random.default_rng(0)
    devices, block = jax.local_devices()[:1], config.evaluation.query_block
    rows = random_data.rows(config, method, 2, method.embed_inputs)
    image, rest = rows["image"], {name: rows[name] for name in method.embed_inputs}
    shapes = jax.eval_shape(lambda: method.embed(variables, image, **rest))
    ranker = Ranker(
        *(
            Labels(
                rng.integers(1, PERSONS + 1, n), rng.integers(0, random_data.CAMERAS, n)
            )
            for n in (block, GALLERY)
        ),
        camera_filter=True,
    )
    about = _about("ranking", block, devices)
    with memory_for(**about):
        query, gallery = (
            jax.device_put(
                jax.tree.map(
                    lambda x, n=n: random_data.like(rng, (n, *x.shape[1:]), x), shapes
                ),
                devices[0],
            )
            for n in (block, GALLERY)
        )
        jitted = jax.jit(method.distance)
        work = _work(jitted, query, gallery, unit="queries", **about)

    def call() -> None:
        ranker.update(np.arange(block), work.compiled(query, gallery))

    return dataclasses.replace(work, call=call)


def _about(what: str, items: int, devices: Sequence[jax.Device]) -> dict[str, Any]:
    """What a work is called by; see `Work`."""
    return {"what": what, "items": items, "devices": devices}


def _work(
    jitted: Any,
    *args: Any,
    what: str,
    items: int,
    devices: Sequence[jax.Device],
    unit: str = "images",
    call: Callable[[], Any] | None = None,
) -> Work:
    """Compiles a function for its arguments, and counts."""
    begin = time.perf_counter()
    with said(f"compiling {what}"):
        compiled = jitted.lower(*args).compile()
    seconds = time.perf_counter() - begin
    return Work(
        what=what,
        unit=unit,
        items=items,
        devices=devices,
        call=call or (lambda: compiled(*args)),
        compiled=compiled,
        compile_seconds=seconds,
        flops=flops_of(jitted, *args),
    )


def flops_of(function: Callable[..., Any], *args: Any) -> int | None:
    """As `count_flops`; None where they cannot be counted."""
    try:
        return count_flops(function, *args)
    except ValueError:  # a loop whose length is not known before it runs
        return None
