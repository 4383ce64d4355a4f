"""Checkpoints: everything a run is, saved and restored through Orbax.

A step's checkpoint has three items: `state` (parameters, optimizer, collections, PRNG
key, step in stage), `data` (the Grain iterator) and `meta` (see `Meta`).
Orbax writes into a temporary folder and renames it (in a bucket it marks the folder
when all is there), so a save that is killed leaves the earlier ones as they were.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypedDict

import flax
import grain
import jax
import orbax.checkpoint as ocp
from etils import epath

from reid_jax import storage
from reid_jax.errors import UserError
from reid_jax.runtime import workdir as workdirs


class TrainState(flax.struct.PyTreeNode):
    """What a training step reads and writes.

    Attributes:
      step: int32 scalar, steps done in this stage.
      rng: root key of this stage; step keys are folded from it.
      params: parameters.
      collections: every other Flax collection (batch statistics, memory banks).
      opt_state: of this stage's optimizer.
    """

    step: jax.Array
    rng: jax.Array
    params: Any
    collections: Any
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """All Flax collections, as `Method` takes them."""
        return {"params": self.params, **self.collections}


class Meta(TypedDict):
    """What a checkpoint says of itself; JSON.

    Attributes:
      stage, stage_index: the training stage that it was saved in.
      step, global_step: steps done in that stage, and in the whole run.
      method: dotted name of the module.
      num_classes: training identities.
      process_count: processes that saved it.
      best: score, stage and entries of `results.json` of the run's best evaluation so
        far; None before the first.
      config: fields by dotted name.
    """

    stage: str
    stage_index: int
    step: int
    global_step: int
    method: str
    num_classes: int
    process_count: int
    best: dict[str, Any] | None
    config: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run: the last few, and the best by mAP.

    Args:
      workdir: of the run; they lie in `checkpoints/last` and `checkpoints/best`.
      keep: how many of the last ones stay.
    """

    def __init__(self, workdir: str, *, keep: int = 2):
        root = storage.absolute(workdir) / "checkpoints"
        self._last = _manager(root / "last", keep)
        self._best = _manager(root / "best", 1)

    def latest_step(self) -> int | None:
        """Global step of the newest checkpoint, or None."""
        return self._last.latest_step()

    def save(
        self,
        step: int,
        state: TrainState,
        data: grain.DatasetIterator,
        meta: Meta,
    ) -> None:
        """Saves everything at a global step, in the background."""
        if self._last.latest_step() == step:
            return
        self._last.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=grain.checkpoint.CheckpointSave(data),
                meta=ocp.args.JsonSave(dict(meta)),
            ),
        )

    def save_best(self, step: int, state: TrainState, meta: Meta) -> None:
        """Saves the best state so far; the earlier best is removed afterwards."""
        if self._best.latest_step() == step:
            return
        self._best.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                meta=ocp.args.JsonSave(dict(meta)),
            ),
        )

    def meta(self) -> Meta:
        """The `meta` item of the newest checkpoint."""
        return read_meta(self._last.directory / str(self.latest_step()))

    def restore(self, abstract: TrainState, layout: TrainState) -> TrainState:
        """The newest state.

        Args:
          abstract: its shapes and dtypes.
          layout: a prefix of its tree with shardings as leaves; those that it was
            saved in may have been others.

        Raises:
          UserError: if the checkpoint is damaged, or its parameters or collections
            have other shapes.
        """
        step = self._last.latest_step()
        folder = self._last.directory / str(step)
        wanted = {"params": abstract.params, "collections": abstract.collections}
        _check_same(_stored(folder, wanted), wanted, folder)
        abstract = place(abstract, layout)
        with _readable(folder):
            return self._last.restore(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)),
            ).state

    def restore_data(self, data: grain.DatasetIterator) -> None:
        """Sets a Grain iterator to the newest checkpoint's position."""
        self._last.restore(
            self._last.latest_step(),
            args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(data)),
        )

    def wait(self) -> None:
        """Blocks until everything is on disk."""
        self._last.wait_until_finished()
        self._best.wait_until_finished()

    def close(self) -> None:
        """Waits, then releases Orbax's threads."""
        self.wait()
        self._last.close()
        self._best.close()


def _manager(directory: epath.Path, keep: int) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        directory,
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, cleanup_tmp_directories=True
        ),
    )


def find(path: str) -> epath.Path:
    """The checkpoint that a user means by a run's folder or a step's folder.

    A run's folder stands for its best checkpoint, or the last one where none was
    evaluated.

    Raises:
      UserError: if there is none.
    """
    storage.check_reachable(path)
    root = storage.absolute(path)
    if (root / "state").is_dir():
        return root
    for kind in ("checkpoints/best", "checkpoints/last", "."):
        steps = [
            folder
            for folder in (root / kind).glob("*")
            if folder.name.isdigit()
            and (folder / "state").is_dir()
            and workdirs.is_whole(folder)
        ]
        if steps:
            return max(steps, key=lambda folder: int(folder.name))
    raise UserError(
        f"no checkpoint in {path}; name a run's folder (--workdir, or --checkpoint) or "
        "one step of it, such as runs/aaformer-demo/checkpoints/last/300"
    )


def read_meta(checkpoint: epath.Path) -> Meta:
    """The `meta` item of one checkpoint folder."""
    reader = ocp.Checkpointer(ocp.JsonCheckpointHandler())
    with reader, _readable(checkpoint):
        return reader.restore(checkpoint / "meta")


def read_variables(
    checkpoint: epath.Path, abstract: Any, *, unwanted: Collection[str] = ()
) -> Any:
    """Parameters and collections of one checkpoint, laid out as `abstract`.

    Args:
      checkpoint: a step's folder, from `find`.
      abstract: variables as `jax.ShapeDtypeStruct`s.
      unwanted: collections that may be there and are not read.

    Raises:
      UserError: if the checkpoint's tree or shapes are another model's.
    """
    wanted = {"params": abstract["params"]}
    if rest := _rest(abstract):  # Orbax cannot read a part of nothing
        wanted["collections"] = rest
    stored = _stored(checkpoint, ("params", "collections"))
    stored["collections"] = {
        name: value
        for name, value in stored["collections"].items()
        if name not in unwanted
    }
    _check_same(stored, wanted, checkpoint)
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    with reader, _readable(checkpoint):
        state = reader.restore(
            checkpoint / "state",
            args=ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                partial_restore=True,
            ),
        )
    return {"params": state["params"], **state.get("collections", {})}


@contextlib.contextmanager
def _readable(checkpoint: epath.Path) -> Iterator[None]:
    """Turns whatever Orbax raises on damaged files into one message."""
    try:
        yield
    except Exception as error:  # Orbax and TensorStore raise many kinds.
        others = sorted(
            int(folder.name)
            for folder in checkpoint.parent.glob("*")
            if folder.name.isdigit() and folder.name != checkpoint.name
        )
        remedy = (
            f"Remove that folder to go on from step {others[-1]}."
            if others
            else "There is no other step beside it."
        )
        first = str(error).strip().splitlines() or [""]
        raise UserError(
            f"the checkpoint {checkpoint} cannot be read: it is damaged or incomplete "
            f"({type(error).__name__}: {first[0][:200]}). {remedy}"
        ) from error


def place(abstract: Any, layout: Any) -> Any:
    """Shapes with shardings, from shapes and a prefix of their tree with shardings."""
    return jax.tree.map(
        lambda sharding, part: jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), part
        ),
        layout,
        abstract,
    )


def _stored(checkpoint: epath.Path, items: Collection[str]) -> dict[str, Any]:
    """Shapes and dtypes of what a checkpoint holds of these items of its state."""
    with _readable(checkpoint):
        stored = ocp.PyTreeCheckpointHandler().metadata(checkpoint / "state").tree
    return {name: stored[name] for name in items}


def _rest(variables: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in variables.items() if name != "params"}


def _check_same(stored: Any, wanted: Any, checkpoint: epath.Path) -> None:
    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in leaves
        }

    a, b = shapes(stored), shapes(wanted)
    missing = sorted(b.keys() - a.keys())
    unexpected = sorted(a.keys() - b.keys())
    reshaped = sorted(k for k in a.keys() & b.keys() if a[k] != b[k])
    if not (missing or unexpected or reshaped):
        return
    lines = [f"{checkpoint} holds another model than the config describes:"]
    lines += [f"  missing there: {name}" for name in missing[:5]]
    lines += [f"  only there: {name}" for name in unexpected[:5]]
    lines += [f"  {k}: {a[k]} there, {b[k]} here" for k in reshaped[:5]]
    total = len(missing) + len(unexpected) + len(reshaped)
    lines.append(f"  (differences: {total})  Use the config that trained it.")
    raise UserError("\n".join(lines))
