"""Checkpoints: everything a run is, saved and restored through Orbax.

A step's checkpoint has three items: `state` (parameters, optimizer, collections, PRNG
key, step in stage), `data` (the Grain iterator) and `meta` (see `Meta`).
Orbax writes into a temporary folder and renames it (in a bucket it marks the folder
when all is there), so a save that is killed leaves the earlier ones as they were.
Beside the items lie digests of all files; they are checked before anything is read.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath

from reid_jax import storage
from reid_jax.errors import UserError, first_line
from reid_jax.runtime import digests, exported
from reid_jax.runtime import workdir as workdirs
from reid_jax.runtime.state import AVERAGED, Meta, TrainState, wrong_entry

# Orbax writes the time of the rename into it; nothing of the run is in it.
_UNDIGESTED = ("_CHECKPOINT_METADATA",)


def _is_news(record: logging.LogRecord) -> bool:
    return not (record.exc_info and f"{os.sep}orbax{os.sep}" in record.pathname)


# Orbax logs every failure with its traceback, in each of its threads, and raises it.
absl_logging.get_absl_logger().addFilter(_is_news)


class Checkpoints:
    """The checkpoints of one run: the last few, and the best by mAP.

    One is saved at a time: Orbax's processes meet under the name of the step alone, so
    that those of one folder would be taken for those of the other.

    Args:
      workdir: of the run; they lie in `checkpoints/last` and `checkpoints/best`.
      keep: how many of the last ones stay.

    Raises:
      UserError: if the newest of the last ones is damaged.
    """

    def __init__(self, workdir: str, *, keep: int = 2):
        root = storage.absolute(workdir) / "checkpoints"
        if newest := workdirs.saved_steps(root / "last")[-1:]:
            _check_whole(newest[0])
        self._last = _Series(root / "last", keep)
        self._best = _Series(root / "best", 1)

    def latest_step(self) -> int | None:
        """Global step of the newest checkpoint, or None."""
        return self._last.latest_step()

    def best(self) -> dict[str, Any] | None:
        """The evaluation of the best state that is kept, as `Meta` has it, or None.

        The last checkpoint may know an older one: it is saved before the evaluation
        that ends a run, and a run may be killed between the two. One that cannot be
        read is said to be so, and is none.
        """
        if self._best.latest_step() is None:
            return None
        try:
            return read_meta(self._best.newest())["best"]
        except UserError as error:
            if jax.process_index() == 0:
                print(f"note: the best is sought anew: {error}", file=sys.stderr)
            return None

    def save(
        self,
        step: int,
        state: TrainState,
        data: grain.DatasetIterator,
        meta: Meta,
    ) -> None:
        """Saves everything at a global step, in the background."""
        self.wait()
        self._last.save(
            step,
            state=ocp.args.StandardSave(state.as_saved),
            data=grain.checkpoint.CheckpointSave(data),
            meta=ocp.args.JsonSave(dict(meta)),
        )

    def save_best(self, step: int, state: TrainState, meta: Meta) -> None:
        """Saves the best state so far; the earlier best is removed afterwards.

        One of the same step gives way first: it was the best of another protocol.
        """
        self.wait()
        self._best.remove(step)
        self._best.save(
            step,
            state=ocp.args.StandardSave(state.as_saved),
            meta=ocp.args.JsonSave(dict(meta)),
        )

    def meta(self) -> Meta:
        """The `meta` item of the newest checkpoint."""
        return read_meta(self._last.newest())

    def restore(self, abstract: TrainState, layout: TrainState) -> TrainState:
        """The newest state.

        Args:
          abstract: its shapes and dtypes.
          layout: a prefix of its tree with shardings as leaves; those that it was
            saved in may have been others.

        Raises:
          UserError: if the checkpoint is damaged, its parameters or collections have
            other shapes, or it is a converted network, which has nothing else.
        """
        folder = self._last.newest()
        wanted = {"params": abstract.params, "collections": abstract.collections}
        stored = _stored(folder / "state", (*wanted, "step"), folder)
        if "step" not in stored:
            raise UserError(
                f"{folder} is a converted network, which no training has left an "
                "optimizer for: start from its backbone, in another --workdir, with "
                f"--config.pretrained={folder.parent.parent.parent}"
            )
        del stored["step"]
        _check_same(stored, wanted, folder)
        abstract = place(abstract, layout)
        with _readable(folder):
            restored = self._last.restore(
                state=ocp.args.StandardRestore(abstract.as_saved)
            )
        return TrainState(**restored.state)

    def restore_data(self, data: grain.DatasetIterator) -> None:
        """Sets a Grain iterator to the newest checkpoint's position."""
        with _readable(self._last.newest()):
            self._last.restore(data=grain.checkpoint.CheckpointRestore(data))

    def wait(self) -> None:
        """Blocks until everything is on disk."""
        self._last.wait()
        self._best.wait()

    def close(self) -> None:
        """Waits, then releases Orbax's threads."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._best.close)
            stack.callback(self._last.close)


class _Series:
    """Checkpoints of one folder, sealed with their digests before they appear there."""

    def __init__(self, directory: epath.Path, keep: int):
        self._directory = directory
        self._saving: int | None = None
        sealing = ocp.AsyncOptions(post_finalization_callback=self._seal)
        self._manager = ocp.CheckpointManager(
            directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=True,
                cleanup_tmp_directories=True,
                async_options=sealing,
            ),
        )
        if not storage.in_bucket(directory):
            self._known = os.stat(directory)

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def newest(self) -> epath.Path:
        return self._directory / str(self.latest_step())

    def save(self, step: int, **items: Any) -> None:
        """Saves a step in the background, unless it is there."""
        if self._manager.latest_step() == step:
            return
        self._saving = step
        # Otherwise Orbax passes over a step that is lower than one that is there, as
        # the best may be of a run that was killed before its last ones were saved.
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def remove(self, step: int) -> None:
        """Does nothing if the step is not there."""
        if step in self._manager.all_steps():
            self._manager.delete(step)

    def restore(self, **items: Any) -> Any:
        return self._manager.restore(
            self.latest_step(), args=ocp.args.Composite(**items)
        )

    def wait(self) -> None:
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    def _seal(self) -> None:
        """Called by Orbax on one process, when all but the folder's name is done."""
        place = self._directory / str(self._saving)
        if not storage.in_bucket(place):
            # Orbax makes the folders above its own anew where they are gone.
            storage.check_in_place(self._directory, self._known)
            (place,) = self._directory.glob(f"{self._saving}.*")
        digests.write(place, without=_UNDIGESTED)


def find(path: str) -> epath.Path:
    """The checkpoint that a user means by a run's folder, a step's or an export's.

    A run's folder stands for its best checkpoint, or the last one where none was
    evaluated.

    Raises:
      UserError: if there is none, or it is damaged.
    """
    folder = locate(path)
    _check_whole(exported.sealed(folder) if exported.holds(folder) else folder)
    return folder


def locate(path: str) -> epath.Path:
    """What `find` finds, for what it says of itself: its arrays may be damaged.

    Raises:
      UserError: if there is none.
    """
    storage.check_reachable(path)
    root = storage.absolute(path)
    if exported.holds(root) or (root / "state").is_dir():
        return root
    for kind in ("checkpoints/best", "checkpoints/last", "."):
        if found := workdirs.saved_steps(root / kind):
            return found[-1]
    raise UserError(
        f"no checkpoint in {path}; name a run's folder, one step of it (below its "
        "checkpoints/best or checkpoints/last), or an export. What others trained, and "
        "shipped/NAME, is made a run by: python -m reid_jax.weights --from=... --as=..."
    )


def _check_whole(checkpoint: epath.Path) -> None:
    """Raises UserError for files that are not as they were saved (process 0 looks)."""
    if jax.process_index() != 0:
        return
    changed = digests.differences(checkpoint)
    if changed is None:
        print(
            f"note: {checkpoint} has no digests (an older version saved it); damage "
            "may go unseen",
            file=sys.stderr,
        )
    elif changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UserError(_damaged(checkpoint, f"{changed[0]}{more}"))


def read_meta(checkpoint: epath.Path) -> Meta:
    """The `meta` item of one checkpoint folder.

    Raises:
      UserError: if it is damaged.
    """
    if exported.holds(checkpoint):
        meta = exported.meta(checkpoint)
    else:
        reader = ocp.Checkpointer(ocp.JsonCheckpointHandler())
        with reader, _readable(checkpoint):
            meta = reader.restore(checkpoint / "meta")
    if wrong := wrong_entry(meta):
        raise UserError(_damaged(checkpoint, f"what it says of itself {wrong}"))
    return meta


def read_variables(
    checkpoint: epath.Path,
    abstract: Any,
    *,
    unwanted: Collection[str] = (),
    averaged: bool = False,
) -> Any:
    """Parameters and collections of one checkpoint, laid out as `abstract`.

    Args:
      checkpoint: a step's folder, from `find`.
      abstract: variables as `jax.ShapeDtypeStruct`s.
      unwanted: collections that may be there and are not read.
      averaged: whether moving averages take the place of what they are of.

    Raises:
      UserError: if the checkpoint's tree or shapes are another model's, or if there are
        no averages.
    """
    if exported.holds(checkpoint):
        folder, wanted = checkpoint / exported.PARAMETERS, dict(abstract)
        stored = _stored(folder, wanted, checkpoint)
        averaged = False  # What was exported has been chosen.
    else:
        folder, wanted = checkpoint / "state", {"params": abstract["params"]}
        if rest := _rest(abstract):  # Orbax cannot read a part of nothing
            wanted["collections"] = rest
        stored = _stored(folder, ("params", "collections"), checkpoint)
        rest = stored["collections"].items()
        stored["collections"] = {k: v for k, v in rest if k not in unwanted}
    _check_same(stored, wanted, checkpoint)
    if averaged:
        wanted["average"] = {k: abstract[k] for k in AVERAGED if k in abstract}
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    with reader, _readable(checkpoint):
        read = reader.restore(
            folder,
            args=ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                partial_restore=True,
            ),
        )
    average = read.pop("average", {})
    return read.pop("collections", {}) | read | average


@contextlib.contextmanager
def _readable(checkpoint: epath.Path) -> Iterator[None]:
    """Turns whatever Orbax raises on damaged files into one message."""
    try:
        yield
    except Exception as error:  # Orbax and TensorStore raise many kinds.
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(_damaged(checkpoint, reason)) from error


def _damaged(checkpoint: epath.Path, reason: str) -> str:
    """What is said of a damaged checkpoint, with the nearest one that is whole."""
    root = checkpoint.parent.parent
    beside = [
        step
        for kind in ("last", "best")
        for step in workdirs.saved_steps(root / kind)[::-1]
    ]
    others = [step for step in beside if step != checkpoint]
    whole = [step for step in others if not digests.differences(step)]
    if exported.holds(checkpoint) or exported.holds(checkpoint.parent):
        remedy = "Export its run again."
    elif not whole:
        remedy = "There is no other step of its run that is whole."
    elif checkpoint.parent == whole[0].parent:
        remedy = f"Remove that folder to go on from step {whole[0].name}"
        remedy += "." if digests.differences(whole[0]) is None else ", which is whole."
    else:
        remedy = f"Evaluate or export another step with --checkpoint={whole[0]}"
    return (
        f"the checkpoint {checkpoint} cannot be read: it is damaged or incomplete "
        f"({reason}). {remedy}"
    )


def place(abstract: Any, layout: Any) -> Any:
    """Shapes with shardings, from shapes and a prefix of their tree with shardings."""
    return jax.tree.map(
        lambda sharding, part: jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), part
        ),
        layout,
        abstract,
    )


def _stored(
    folder: epath.Path, items: Collection[str], checkpoint: epath.Path
) -> dict[str, Any]:
    """Shapes and dtypes of what `folder` holds of these items of its tree."""
    with _readable(checkpoint):
        stored = ocp.PyTreeCheckpointHandler().metadata(folder).tree
    return {name: stored[name] for name in items if name in stored}


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
