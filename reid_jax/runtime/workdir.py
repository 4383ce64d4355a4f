"""A run's folder: whose it is, what made it, and files that are never half-written."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import pathlib
import platform
import re
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
from etils import epath

from reid_jax import storage
from reid_jax.errors import UserError
from reid_jax.storage import PathLike

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"),
    *("tensorflow-datasets", "ml-collections", "clu", "opencv-python-headless"),
)

# Fields that do not change what is computed; a resumed run may differ in them.
FREE_FIELDS = (
    *("shard_parameters", "model.attention_implementation", "model.remat"),
    *("model.scan_blocks", "model.options.scan_blocks"),
    *("data.data_dir", "data.num_workers", "data.resident_bytes"),
    *("max_steps", "log_every_steps", "trackers", "profile_steps"),
    *("checkpoint", "evaluation", "evaluate_on", "variant"),
)

# Fields of a stage that `--extend` may change: its length, and its schedule.
_SCHEDULE = re.compile(
    r"stages\.[^.]+\.(epochs|optimizer\.(learning_rate|weight_decay|warmup_epochs|"
    r"warmup_from|final_factor|milestones|decay_factor))"
)

# Last parts of fields that older runs do not have, and the values that are as if they
# were not there; the newest last.
NEWER_FIELDS = {
    "ema_decay": 0.0,
    "clip_norm": 0.0,
    "camera_scale": 3.0,
    "classifier": "linear",
    "classifier_margin": 0.3,
    "classifier_scale": 30.0,
    "circle_weight": 0.0,
    "circle_margin": 0.25,
    "circle_scale": 128.0,
    "center_weight": 0.0,
    "center_rate": 0.5,
    "part_weights": [1.0, 1.0],
    "resize": "bilinear",
    "normalise": True,
    "neck": "bn",
    "pool": "mean",
    "gradient_dtype": "compute",
}


def write_text(path: PathLike, text: str) -> None:
    """Writes a file in one step: readers see the old content or the new, whole."""
    storage.write_bytes(path, text.encode())


def write_json(path: PathLike, value: Any) -> None:
    """Writes indented JSON in one step."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_object(path: PathLike) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      UserError: if the file is damaged or holds something else; names it.
    """
    value = _read_json(path)
    if not isinstance(value, dict):
        raise _damaged(path, f"{type(value).__name__} in place of an object")
    return value


def read_objects(path: PathLike) -> list[dict[str, Any]]:
    """Reads a JSON list of objects; an absent file is an empty one.

    Raises:
      UserError: if the file is damaged or holds something else; names it.
    """
    value = _read_json(path) if storage.absolute(path).exists() else []
    if not isinstance(value, list) or not all(isinstance(x, dict) for x in value):
        raise _damaged(path, "no list of objects")
    return value


def _read_json(path: PathLike) -> Any:
    try:
        return json.loads(storage.absolute(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: PathLike, reason: str) -> UserError:
    return UserError(f"{path} is damaged ({reason}); remove or mend that file")


@contextlib.contextmanager
def alone_with(path: epath.Path) -> Iterator[None]:
    """Other processes of this machine wait until a file was read and written anew.

    Nobody waits for a file in a bucket.
    """
    if storage.in_bucket(path):
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("w") as file:
        storage.lock(file, wait=True)
        yield


@contextlib.contextmanager
def held(workdir: str) -> Iterator[None]:
    """Holds a work directory against other processes of this machine.

    One in a bucket cannot be held: of two runs that are started there at once, each
    would write over what the other has saved.

    Raises:
      UserError: if another process holds it, or nothing can be written there.
    """
    storage.check_writable(workdir)
    if storage.in_bucket(workdir):
        yield
        return
    folder = pathlib.Path(storage.absolute(workdir))
    with (folder / ".lock").open("w") as file:
        if not storage.lock(file):
            raise UserError(
                f"another process is training in {workdir}; wait for it, stop it, or "
                "name another --workdir"
            )
        try:
            yield
        finally:
            _remove_if_unused(folder)


def _remove_if_unused(folder: pathlib.Path) -> None:
    """A run that was refused leaves no folder, behind."""
    if [path.name for path in folder.iterdir()] == [".lock"]:
        (folder / ".lock").unlink()
        folder.rmdir()


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`, in JSON's types (tuples become lists)."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.loads(json.dumps(value))
    return flat


def has_checkpoint(workdir: str) -> bool:
    """Whether a run has saved a step there, from which it goes on."""
    storage.check_reachable(workdir)
    return bool(saved_steps(storage.absolute(workdir) / "checkpoints" / "last"))


def has_state(workdir: str) -> bool:
    """Whether a run has left any state there, if only its best."""
    best = storage.absolute(workdir) / "checkpoints" / "best"
    return has_checkpoint(workdir) or bool(saved_steps(best))


def saved_steps(folder: epath.Path) -> list[epath.Path]:
    """The steps that were saved to their end in a folder, the newest last."""
    steps = [step for step in folder.glob("*") if _is_saved(step)]
    return sorted(steps, key=lambda step: int(step.name))


def _is_saved(step: epath.Path) -> bool:
    """On a disk Orbax names the folder last; in a bucket it leaves a mark in it."""
    named = step.name.isdigit() and (step / "state").is_dir()
    marked = not storage.in_bucket(step) or (step / "commit_success.txt").exists()
    return named and marked


def check_same_run(
    workdir: str,
    config: Mapping[str, Any],
    *,
    extended: Collection[str] = (),
    saved: Mapping[str, Any] | None = None,
) -> None:
    """Checks that no other config's run lives in `workdir`.

    A run that has left no state has nothing to lose and gives way.

    Args:
      workdir: of the run.
      config: of the run.
      extended: fields in which the run that is there may differ.
      saved: see `changes`.

    Raises:
      UserError: if one does; names the fields that differ.
    """
    changed = changes(workdir, config, saved)
    if not changed.keys() <= set(extended):
        lines = [
            f"  {field}: {_shown(there)} there, {_shown(here)} here"
            for field, (there, here) in changed.items()
        ]
        schedule = all(map(is_schedule, changed)) and has_checkpoint(workdir)
        raise UserError(
            f"{workdir} holds a run with another config:\n"
            + "\n".join(lines)
            + "\nResume it with its own config, or name another --workdir."
            + (" With --extend it goes on as given here." if schedule else "")
        )


def changes(
    workdir: str, config: Mapping[str, Any], saved: Mapping[str, Any] | None = None
) -> dict[str, tuple[Any, Any]]:
    """Fields, (there, here), in which the run in `workdir` has another config.

    None for a run that has left no state, or in fields that a resumed run may change.
    Where its config.json is gone, it has the fields `saved` in its last checkpoint.
    """
    if not has_state(workdir):
        return {}
    path = storage.absolute(workdir) / "config.json"
    there = read_object(path) if path.exists() else saved
    return differences(there, config) if there else {}


def _shown(value: Any) -> str:
    return "(none)" if value is None else str(value)  # absent means the same


def is_schedule(field: str) -> bool:
    """Whether a run can be extended with another value of a field."""
    return _SCHEDULE.fullmatch(field) is not None


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Fields, (old, new), of two configs that make them configs of other networks."""
    a, b = flatten(old), flatten(new)
    absent = {field: NEWER_FIELDS.get(field.rpartition(".")[2]) for field in a | b}
    a, b = absent | a, absent | b
    return {
        field: (a[field], b[field])
        for field in sorted(absent)
        if a[field] != b[field]
        and not any(field == f or field.startswith(f + ".") for f in FREE_FIELDS)
    }


def write_manifest(workdir: str, config: Mapping[str, Any], **more: Any) -> None:
    """Appends what ran here to `manifest.json`: command, versions, devices, revision.

    One entry for every start of the run, the first one first; `more` is added to it.
    """
    path = storage.absolute(workdir) / "manifest.json"
    entry = manifest(config) | more
    with alone_with(path):
        write_json(path, [*read_objects(path), entry])


def manifest(config: Mapping[str, Any]) -> dict[str, Any]:
    """What is needed to run the same again."""
    return {
        "command": [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "backend": jax.default_backend(),
        "devices": sorted({device.device_kind for device in jax.devices()}),
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "seed": config["seed"],
        "config": flatten(config),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Commit of the checkout this file lies in, `+` if it has changes; None outside.

    A repository that has this file without keeping it, as in a `.venv`, is another's.
    """
    file = pathlib.Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        head = git("rev-parse", "HEAD")
        dirty = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if dirty else "")
